//! `config.json`: what published models say, and what is refused, by the name of the field.

use backends::llm::rope::Scaling;
use backends::llm::spec::{DecoderSpec, Rotation};
use backends::llm::weights::Format;
use backends::llm::weights::dummy::{Dummy, Init};
use backends::llm::{FAMILIES, layout};
use serde_json::{Value, json};
use std::path::Path;

fn read(text: &str) -> Result<DecoderSpec, String> {
    DecoderSpec::from_config(Path::new("config.json"), text.as_bytes()).map_err(|e| e.to_string())
}

/// A small Llama with one field more, or another value of one.
fn llama(field: &str, value: &str) -> String {
    let mut config: serde_json::Value = serde_json::from_str(
        r#"{"architectures":["LlamaForCausalLM"],"hidden_size":64,"intermediate_size":96,"vocab_size":300,
            "num_hidden_layers":2,"num_attention_heads":4,"num_key_value_heads":2,"max_position_embeddings":128}"#,
    )
    .unwrap();
    config[field] = serde_json::from_str(value).unwrap();
    config.to_string()
}

/// A small model of an architecture, with these fields besides.
fn model(architecture: &str, fields: &Value) -> Result<DecoderSpec, String> {
    let mut config: Value = serde_json::from_str(&llama("architectures", &json!([architecture]).to_string())).unwrap();
    config.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    read(&config.to_string())
}

fn refused(field: &str, value: &str, why: &str) {
    let reason = read(&llama(field, value)).expect_err(why);
    assert!(reason.contains(why), "expected '{why}' in: {reason}");
}

#[test]
fn an_unknown_architecture_is_refused_with_the_list() {
    let reason = read(&llama("architectures", r#"["BertModel"]"#)).unwrap_err();
    assert!(
        reason.starts_with("config.json: `architectures` is 'BertModel', not supported; supported are"),
        "{reason}"
    );
    for family in FAMILIES {
        assert!(reason.contains(family.architecture));
    }
    refused("architectures", "[]", "holds no name");
    refused("architectures", &format!("[\"{}\"]", "x".repeat(1 << 20)), "not supported");
}

#[test]
fn sizes_are_bounded_and_divide() {
    refused("hidden_size", "0", "`hidden_size` is 0; expected a whole number from 1 to 1048576");
    refused("hidden_size", "1e30", "`hidden_size` is 1e+30");
    refused("vocab_size", "-3", "`vocab_size` is -3");
    refused("num_hidden_layers", "2.5", "`num_hidden_layers` is 2.5");
    refused("num_hidden_layers", "null", "`num_hidden_layers` is missing");
    refused("num_key_value_heads", "3", "does not divide the 4 of `num_attention_heads`");
    refused("num_attention_heads", "6", "6 heads do not divide the 64 of `hidden_size`");
    refused("head_dim", "15", "rotates 15 of 15 numbers");
    refused("rms_norm_eps", "0", "`rms_norm_eps` is 0; expected a number above zero");
    refused("tie_word_embeddings", "1", "`tie_word_embeddings` is 1; expected true or false");
}

#[test]
fn weights_of_eight_bits_are_understood() {
    for config in [
        r#"{"quant_method":"fp8","fmt":"e4m3","weight_block_size":[128,128],"activation_scheme":"dynamic"}"#,
        r#"{"quant_method":"fp8","activation_scheme":"static"}"#,
        r#"{"quant_method":"fbgemm_fp8","activation_scale_ub":1200,"modules_to_not_convert":["lm_head"]}"#,
        r#"{"quant_method":"compressed-tensors","format":"float-quantized","config_groups":{"group_0":{
            "targets":["Linear"],"weights":{"type":"float","num_bits":8,"strategy":"channel","block_structure":null}}}}"#,
    ] {
        read(&llama("quantization_config", config)).unwrap();
    }
}

#[test]
fn what_is_not_understood_is_refused_by_name() {
    refused("hidden_act", r#""relu""#, "`hidden_act` is 'relu'; supported are silu");
    refused("torch_dtype", r#""float8_e4m3fn""#, "`torch_dtype` is 'float8_e4m3fn'");
    refused("quantization_config", r#"{"quant_method":"quip"}"#, "is of method 'quip'");
    let blocks = r#"{"quant_method":"fp8","weight_block_size":[64,128]}"#;
    refused("quantization_config", blocks, "has a weight_block_size of [64,128]");
    refused("quantization_config", r#"{"quant_method":"fp8","fmt":"e5m2"}"#, "of format 'e5m2'");
    let nibbles =
        r#"{"quant_method":"compressed-tensors","config_groups":{"a":{"weights":{"type":"float","num_bits":4}}}}"#;
    refused("quantization_config", nibbles, "has weights of 4 bits of type 'float'");
    refused(
        "rope_scaling",
        r#"{"rope_type":"dynamic","factor":2}"#,
        "`rope_type` is 'dynamic'; supported are default, linear",
    );
    refused("rope_scaling", r#"{"type":"yarn","factor":2,"mscale":1}"#, "`mscale` is not supported");
    refused("rope_scaling", r#"{"type":"linear"}"#, "`factor` is missing");
    refused("rope_scaling", r#"{"type":"linear","factor":-1}"#, "`factor` is -1");
    refused(
        "rope_scaling",
        r#"{"rope_type":"longrope","short_factor":[1],"long_factor":[1]}"#,
        "`short_factor` has 1 numbers; expected 8",
    );
    refused(
        "rope_scaling",
        r#"{"rope_type":"llama3","factor":8,"low_freq_factor":4,"high_freq_factor":4}"#,
        "is not below",
    );
    refused("rope_scaling", "[]", "`rope_scaling` is a list; expected an object");
    refused("rope_theta", "1", "`rope_theta` is 1; expected a number above 1");
    for (architecture, fields, why) in [
        (
            "Qwen3ForCausalLM",
            json!({"layer_types": ["full_attention", "linear_attention"]}),
            "`layer_types` holds 'linear_attention'",
        ),
        ("Qwen3ForCausalLM", json!({"layer_types": ["full_attention"]}), "has 1 entries for 2 layers"),
        ("SmolLM3ForCausalLM", json!({"no_rope_layers": [1, 2]}), "is not a list of 2 zeros and ones"),
        ("SmolLM3ForCausalLM", json!({"no_rope_layers": [1]}), "is not a list of 2 zeros and ones"),
        ("Phi3ForCausalLM", json!({"partial_rotary_factor": 0.2}), "is 0.2, which rotates 3 of 16 numbers"),
    ] {
        let reason = model(architecture, &fields).expect_err(why);
        assert!(reason.contains(why), "expected '{why}' in: {reason}");
    }
    let reason = read("[]").unwrap_err();
    assert!(reason.contains("is no JSON object"), "{reason}");
}

#[test]
fn yarn_stretches_the_context() {
    let context = |scaling: &str| read(&llama("rope_scaling", scaling)).unwrap().context;
    assert_eq!(context(r#"{"type":"yarn","factor":4,"original_max_position_embeddings":128}"#), 512);
    assert_eq!(context(r#"{"rope_type":"yarn","factor":4.0}"#), 512, "the file states the context before");
    assert_eq!(context(r#"{"rope_type":"yarn","factor":4,"original_max_position_embeddings":32}"#), 128, "after");
    assert_eq!(context(r#"{"rope_type":"yarn","factor":1e30}"#), 1 << 28);
    assert_eq!(context(r#"{"type":"linear","factor":4}"#), 128);
}

/// transformers ignores what a model's own configuration does not know.
#[test]
fn fields_of_other_architectures_change_nothing() {
    let shown = |architecture: &str, fields: &Value| format!("{:?}", model(architecture, fields).unwrap());
    let multipliers = json!({
        "embedding_multiplier": 2, "residual_multiplier": 0.5, "logits_scaling": 3, "attention_multiplier": 0.25,
    });
    let unrotated = json!({"no_rope_layers": [1, 0], "no_rope_layer_interval": 2});
    let windows = json!({"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8});
    let window = json!({"sliding_window": 8});
    let partial = json!({"partial_rotary_factor": 0.5, "rope_parameters": {"partial_rotary_factor": 0.5}});
    let none = json!({});
    for (fields, same, architecture, reader) in [
        (&multipliers, &none, "LlamaForCausalLM", "GraniteForCausalLM"),
        (&unrotated, &none, "LlamaForCausalLM", "SmolLM3ForCausalLM"),
        (&windows, &window, "LlamaForCausalLM", "Qwen3ForCausalLM"),
        (&windows, &window, "Phi3ForCausalLM", "MistralForCausalLM"),
        (&json!({"rope_local_base_freq": 100}), &none, "Qwen3ForCausalLM", "Gemma3ForCausalLM"),
        (&json!({"sliding_window_pattern": 1}), &none, "Gemma2ForCausalLM", "Gemma3ForCausalLM"),
        (&partial, &none, "LlamaForCausalLM", "Phi3ForCausalLM"),
    ] {
        assert_eq!(shown(architecture, fields), shown(architecture, same), "{architecture}: {fields}");
        assert_ne!(shown(reader, fields), shown(reader, same), "{reader}: {fields}");
    }
}

#[test]
fn a_rope_scaling_wins_over_rope_parameters() {
    let yarn = json!({"type": "yarn", "factor": 4, "original_max_position_embeddings": 32});
    let parameters = json!({"rope_type": "linear", "factor": 2, "rope_theta": 1e6});
    let rope = |fields: Value| model("Qwen3ForCausalLM", &fields).map(|spec| spec.rope);
    let found = rope(json!({"rope_parameters": parameters, "rope_scaling": yarn})).unwrap();
    let alone = rope(json!({"rope_theta": 1e6, "rope_scaling": yarn})).unwrap();
    assert!(matches!(found.scaling, Scaling::Yarn { factor: 4.0, original: 32.0, .. }), "{found:?}");
    assert_eq!((&found, found.theta), (&alone, 1e6));
    // A theta of the file's own, and one of the block's.
    let outer = rope(json!({"rope_parameters": parameters, "rope_scaling": yarn, "rope_theta": 5e5}));
    assert_eq!(outer.unwrap().theta, 5e5);
    let inner = json!({"rope_type": "linear", "factor": 3, "rope_theta": 100});
    let inner = rope(json!({"rope_parameters": parameters, "rope_scaling": inner})).unwrap();
    assert_eq!((inner.theta, inner.scaling), (100.0, Scaling::Linear { factor: 3.0 }));
    for nothing in [json!(null), json!({})] {
        let rope = rope(json!({"rope_parameters": parameters, "rope_scaling": nothing})).unwrap();
        assert_eq!(rope.scaling, Scaling::Linear { factor: 2.0 });
    }
    let dynamic = json!({"rope_type": "dynamic", "factor": 2});
    let reason = rope(json!({"rope_parameters": parameters, "rope_scaling": dynamic})).unwrap_err();
    assert!(reason.contains("`rope_type` is 'dynamic'; supported are"), "{reason}");
}

/// As Gemma 3 has it: windowed layers keep theirs.
#[test]
fn a_rope_scaling_is_of_layers_that_see_all() {
    let parameters = json!({
        "full_attention": {"rope_type": "default", "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    });
    let fields = json!({"rope_parameters": parameters, "rope_scaling": {"rope_type": "linear", "factor": 8}});
    let spec = model("Gemma3ForCausalLM", &fields).unwrap();
    assert_eq!((spec.rope.theta, spec.rope.scaling), (1e6, Scaling::Linear { factor: 8.0 }));
    let local = spec.rope_local.unwrap();
    assert_eq!((local.theta, local.scaling), (1e4, Scaling::None));
}

#[test]
fn tokens_that_see_those_after_them_are_refused() {
    const WHY: &str = "supported are models whose tokens see those before them only";
    refused("is_causal", "false", &format!("`is_causal` is false; {WHY}"));
    let reason = model("Gemma3ForCausalLM", &json!({"use_bidirectional_attention": true})).unwrap_err();
    assert!(reason.ends_with(&format!("`use_bidirectional_attention` is true; {WHY}")), "{reason}");
    for fields in [json!({"is_causal": true}), json!({"is_causal": null, "use_bidirectional_attention": false})] {
        model("Gemma3ForCausalLM", &fields).unwrap();
    }
}

#[test]
fn rotations_that_a_file_leaves_out_are_their_families() {
    let experts = json!({"num_local_experts": 4, "num_experts_per_tok": 2});
    let scaling = |mut fields: Value| {
        fields.as_object_mut().unwrap().extend(experts.as_object().unwrap().clone());
        model("GptOssForCausalLM", &fields).unwrap().rope.scaling
    };
    let yarn =
        json!({"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096, "truncate": false});
    assert_eq!(scaling(json!({})), scaling(json!({"rope_scaling": yarn})));
    assert!(matches!(scaling(json!({})), Scaling::Yarn { factor: 32.0, original: 4096.0, truncate: false, .. }));
    assert_eq!(scaling(json!({"rope_parameters": {"rope_type": "default"}})), Scaling::None);

    let divisors = vec![2.0; 8];
    let longrope = json!({"type": "longrope", "short_factor": divisors, "long_factor": divisors});
    let spec = model("Phi3ForCausalLM", &json!({"rope_scaling": longrope, "max_position_embeddings": 8192})).unwrap();
    let attention = (1.0 + 2f64.ln() / 4096f64.ln()).sqrt();
    let (short, long) = (divisors.clone(), divisors);
    assert_eq!(spec.rope.scaling, Scaling::PerPair { short, long, original: 4096, attention });
}

/// The rotation of Llama 3.1 8B, as it was published.
#[test]
fn the_configuration_of_llama_3_1_is_read() {
    let spec = read(
        r#"{"architectures":["LlamaForCausalLM"],"attention_bias":false,"bos_token_id":128000,"hidden_act":"silu",
        "hidden_size":4096,"initializer_range":0.02,"intermediate_size":14336,"max_position_embeddings":131072,
        "mlp_bias":false,"model_type":"llama","num_attention_heads":32,"num_hidden_layers":32,"num_key_value_heads":8,
        "pretraining_tp":1,"rms_norm_eps":1e-05,"rope_scaling":{"factor":8.0,"low_freq_factor":1.0,
        "high_freq_factor":4.0,"original_max_position_embeddings":8192,"rope_type":"llama3"},"rope_theta":500000.0,
        "tie_word_embeddings":false,"torch_dtype":"bfloat16","use_cache":true,"vocab_size":128256}"#,
    )
    .unwrap();
    assert_eq!(spec.rope.scaling, Scaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original: 8192.0 });
    assert_eq!((spec.rope.theta, spec.rope.dims, spec.attention.head_dim), (500_000.0, 128, 128));
    assert_eq!(layout::parameters(&spec), Some(8_030_261_248));
    assert!(spec.layers.iter().all(|layer| layer.window.is_none() && layer.rotation == Rotation::Global));
}

#[test]
fn dummy_weights_are_the_same_in_every_order_and_fit_their_type() {
    let spec = read(&llama("tie_word_embeddings", "true")).unwrap();
    let name = "model.layers.1.mlp.up_proj.weight";
    use backends::llm::Weights;
    let narrow = Dummy::new(&spec, Format::Bf16, Init::FanIn, 3).unwrap();
    let wide = Dummy::new(&spec, Format::F32, Init::FanIn, 3).unwrap();
    let size = Format::F32.bytes(&wide.info(name).unwrap().shape).unwrap();
    let whole = wide.read(name, 0..size).unwrap();
    assert_eq!(wide.read(name, 400..800).unwrap(), whole[400..800]);
    let widened = backends::llm::weights::blocks::dequantise(Format::Bf16, &narrow.read(name, 0..size / 2).unwrap());
    let numbers = backends::llm::weights::blocks::dequantise(Format::F32, &whole);
    assert!(widened.iter().zip(&numbers).all(|(a, b)| (a - b).abs() <= b.abs() / 256.0));
    let power = numbers.iter().map(|x| f64::from(x * x)).sum::<f64>() / numbers.len() as f64;
    assert!((power * 64.0 - 1.0).abs() < 0.05, "the variance is {power}, not 1/64");
    assert!(Dummy::new(&spec, Format::Q8_0, Init::FanIn, 3).is_err());
}
