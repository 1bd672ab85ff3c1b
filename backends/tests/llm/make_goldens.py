"""Writes goldens/*.json and *.bin: the logits of tiny random models, as transformers computes them in 32-bit floats.

    pip install torch transformers safetensors numpy      (torch 2.15, transformers 5.24 were used)
    python make_goldens.py [case ...]

Each case is a configuration. It is run with two initialisations: `fan_in`, with the configuration as transformers 5
spells it, and `sigma`, with the spelling of transformers 4 (the same model, but for the weights). The weights are not
stored: `backends::llm::weights::dummy` makes the same bits from seed, tensor name and index. The names and shapes come
from `save_pretrained`, and the weights go through `from_pretrained`, so both are what a published checkpoint has.
"""

import copy, json, os, sys, tempfile, warnings
import numpy as np

os.environ["HF_HUB_OFFLINE"] = "1"
warnings.filterwarnings("ignore")
import torch, transformers
from safetensors.numpy import load_file, save_file

transformers.logging.set_verbosity_error()
torch.manual_seed(0)
HERE = os.path.dirname(os.path.abspath(__file__))
GOLDEN = np.uint64(0x9E3779B97F4A7C15)
TOKENS = 40
VOCAB = 257


def scatter(seed, name, count):
    """`count` numbers of mean 0 and deviation 1, as `dummy.rs` makes them."""
    key = 0xCBF29CE484222325
    for byte in name.encode():
        key = (key ^ byte) * 0x100000001B3 % 2**64
    key ^= seed * int(GOLDEN) % 2**64
    with np.errstate(over="ignore"):
        z = np.uint64(key) + (np.arange(count, dtype=np.uint64) + np.uint64(1)) * GOLDEN
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    mask = np.uint64(0xFFFF)
    total = sum((z >> np.uint64(shift)) & mask for shift in (0, 16, 32, 48))
    return (total.astype(np.float64) - 131070.0) / np.sqrt(np.float64(4294967295.0) / 3.0)


def fill(name, shape, init, plus_one):
    """Mean and deviation of a tensor."""
    if name.endswith("sinks"):
        return 0.0, 1.0
    if "norm" in name:
        return (0.0 if plus_one else 1.0), 0.1
    if init == "sigma":
        return 0.0, 0.02
    if len(shape) == 1 or name.endswith("bias"):
        return 0.0, 0.1
    if name.endswith("embed_tokens.weight"):
        return 0.0, 1.0
    return 0.0, float(1.0 / np.sqrt(np.float64(shape[-2] if len(shape) == 3 else shape[-1])))


def weights(shapes, init, seed, plus_one):
    made = {}
    for name, shape in shapes.items():
        mean, sigma = fill(name, shape, init, plus_one)
        numbers = mean + sigma * scatter(seed, name, int(np.prod(shape)))
        made[name] = numbers.astype(np.float32).reshape(shape)
    return made


def spelled_4(config):
    """The same configuration as transformers 4 spells it."""
    old = copy.deepcopy(config)
    old["torch_dtype"] = old.pop("dtype")
    rope = old.pop("rope_parameters")
    if "full_attention" in rope:
        old["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        rope = rope["full_attention"]
    rope = dict(rope)
    old["rope_theta"] = rope.pop("rope_theta")
    if "partial_rotary_factor" in rope:
        old["partial_rotary_factor"] = rope.pop("partial_rotary_factor")
    old["rope_scaling"] = rope if rope.pop("rope_type") != "default" else None
    if old["rope_scaling"] is not None:
        kind = (config["rope_parameters"].get("full_attention") or config["rope_parameters"])["rope_type"]
        old["rope_scaling"]["type" if kind == "longrope" or (kind == "linear" and "gemma" not in old["model_type"]) else "rope_type"] = kind
    if "gpt_oss" not in old["model_type"]:  # its configuration had layer_types from the beginning
        old.pop("layer_types", None)
    if "_sliding_window_pattern" in old:
        old["sliding_window_pattern"] = old.pop("_sliding_window_pattern")
    return old


def run(config, tensors, tokens):
    with tempfile.TemporaryDirectory() as directory:
        with open(f"{directory}/config.json", "w") as file:
            json.dump(config, file)
        save_file(tensors, f"{directory}/model.safetensors", metadata={"format": "pt"})
        model = transformers.AutoModelForCausalLM.from_pretrained(
            directory, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        with torch.no_grad():
            return model(torch.tensor([tokens]), use_cache=False).logits[0].float().numpy()


def make(case, architecture, settings):
    common = dict(
        vocab_size=VOCAB, hidden_size=64, intermediate_size=96, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    model_class = getattr(transformers, architecture)
    config = model_class.config_class(**{**common, **settings})
    config._attn_implementation = "eager"
    with tempfile.TemporaryDirectory() as directory:
        model_class(config).float().save_pretrained(directory)
        shapes = {name: tensor.shape for name, tensor in load_file(f"{directory}/model.safetensors").items()}
        with open(f"{directory}/config.json") as file:
            config = json.load(file)
    seed = sum(map(ord, case))
    ids = scatter(seed, "tokens", TOKENS)
    tokens = [int(x) % VOCAB for x in np.abs(ids * 1e6)]
    out = {"seed": seed, "context": TOKENS, "tokens": tokens, "runs": []}
    logits = []
    for init, spelling in (("fan_in", config), ("sigma", spelled_4(config))):
        tensors = weights(shapes, init, seed, "gemma" in config["model_type"])
        logits.append(run(spelling, tensors, tokens))
        out["runs"].append({"init": init, "config": spelling})
    with open(f"{HERE}/goldens/{case}.json", "w") as file:
        json.dump(out, file, indent=None, separators=(",", ":"))
        file.write("\n")
    np.stack(logits).astype("<f4").tofile(f"{HERE}/goldens/{case}.bin")
    print(f"{case:16} {len(shapes)} tensors, std", *(f"{x.std():.3f}" for x in logits), flush=True)


LLAMA3 = dict(rope_type="llama3", rope_theta=5e5, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=32)  # fmt: skip
YARN = dict(rope_type="yarn", rope_theta=1e4, factor=4.0, original_max_position_embeddings=32)
LONG = dict(rope_type="longrope", rope_theta=1e4, short_factor=[1.0 + 0.02 * i for i in range(6)],
            long_factor=[1.0 + 0.5 * i for i in range(6)])  # fmt: skip
SHORT = dict(rope_type="longrope", rope_theta=1e4, short_factor=[1.0 + 0.1 * i for i in range(8)],
             long_factor=[1.0 + 0.5 * i for i in range(8)])  # fmt: skip
GEMMA3 = dict(
    full_attention=dict(rope_type="linear", factor=8.0, rope_theta=1e6),
    sliding_attention=dict(rope_type="default", rope_theta=1e4),
)
CASES = {
    "qwen3": ("Qwen3ForCausalLM", dict(head_dim=32, rope_parameters=dict(rope_type="default", rope_theta=1e6))),
    "qwen3_window": ("Qwen3ForCausalLM", dict(head_dim=16, tie_word_embeddings=True, attention_bias=True,
        use_sliding_window=True, sliding_window=8, max_window_layers=1)),
    "llama2": ("LlamaForCausalLM", dict(num_key_value_heads=4, rms_norm_eps=1e-5)),
    "llama3": ("LlamaForCausalLM", dict(rope_parameters=LLAMA3, rms_norm_eps=1e-5, tie_word_embeddings=True)),
    "llama_linear": ("LlamaForCausalLM", dict(attention_bias=True, mlp_bias=True, head_dim=24,
        rope_parameters=dict(rope_type="linear", factor=2.5, rope_theta=1e4))),
    "llama_yarn": ("LlamaForCausalLM", dict(rope_parameters=YARN, hidden_act="gelu")),
    "mistral": ("MistralForCausalLM", dict(sliding_window=8, head_dim=32)),
    "qwen2": ("Qwen2ForCausalLM", dict(rope_parameters=dict(rope_type="default", rope_theta=1e6))),
    "gemma2": ("Gemma2ForCausalLM", dict(head_dim=32, query_pre_attn_scalar=24, sliding_window=8,
        attn_logit_softcapping=5.0, final_logit_softcapping=6.0)),
    "gemma3": ("Gemma3ForCausalLM", dict(head_dim=32, query_pre_attn_scalar=48, sliding_window=8,
        sliding_window_pattern=3, num_hidden_layers=4, rope_parameters=GEMMA3)),
    "phi3": ("Phi3ForCausalLM", dict(sliding_window=24, original_max_position_embeddings=64, rope_parameters=SHORT)),
    "phi4_mini": ("Phi3ForCausalLM", dict(tie_word_embeddings=True, partial_rotary_factor=0.75,
        original_max_position_embeddings=32, rope_parameters=LONG)),
    "smollm3": ("SmolLM3ForCausalLM", dict(num_hidden_layers=4, no_rope_layer_interval=2)),
    "olmo2": ("Olmo2ForCausalLM", dict(rope_parameters=dict(rope_type="default", rope_theta=5e5))),
    "granite": ("GraniteForCausalLM", dict(embedding_multiplier=12.0, logits_scaling=8.0, residual_multiplier=0.22,
        attention_multiplier=0.0078125, tie_word_embeddings=True)),
    "qwen3_moe": ("Qwen3MoeForCausalLM", dict(head_dim=16, num_experts=8, num_experts_per_tok=3,
        moe_intermediate_size=32, norm_topk_prob=True, mlp_only_layers=[0])),
    "qwen3_moe_raw": ("Qwen3MoeForCausalLM", dict(head_dim=16, num_experts=4, num_experts_per_tok=2,
        moe_intermediate_size=32, norm_topk_prob=False, decoder_sparse_step=2)),
    "mixtral": ("MixtralForCausalLM", dict(num_local_experts=4, num_experts_per_tok=2)),
    "gpt_oss": ("GptOssForCausalLM", dict(head_dim=16, num_local_experts=4, num_experts_per_tok=2, sliding_window=8,
        intermediate_size=64, rope_parameters=dict(rope_type="yarn", rope_theta=150000.0, factor=32.0, beta_fast=32.0,
        beta_slow=1.0, truncate=False, original_max_position_embeddings=16))),
}  # fmt: skip

if __name__ == "__main__":
    os.makedirs(f"{HERE}/goldens", exist_ok=True)
    for case in sys.argv[1:] or CASES:
        make(case, *CASES[case])
