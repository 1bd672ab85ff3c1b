"""Writes gguf/*.gguf and their logits: tiny models, converted by llama.cpp's own converter.

    pip install torch transformers safetensors gguf
    python make_gguf.py LLAMA_CPP_SOURCE [case ...]        (the tree that holds convert_hf_to_gguf.py and gguf-py;
                                                    that within llama-cpp-python 0.3.36 was used)

Weights are rounded to what Q8_0 can hold, so that transformers computes with the very numbers of the file. Where
llama-cpp-python is installed, its logits are compared, too (within its own 8-bit rounding of activations).
`quantised.gguf` holds a tensor of each block format, `quantised.bin` what gguf-py's reader makes of them.
"""

import json, os, sys, tempfile
from pathlib import Path
import numpy as np

SOURCE = Path(sys.argv[1]).resolve()
sys.path[:0] = [str(SOURCE), str(SOURCE / "gguf-py"), str(Path(__file__).parent)]
import gguf, safetensors.torch, torch, transformers
from gguf import quants
from make_goldens import HERE, scatter, weights
from safetensors.numpy import load_file, save_file

torch.manual_seed(0)
TOKENS, VOCAB = 24, 48
COMMON = dict(vocab_size=VOCAB, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
              num_key_value_heads=2, max_position_embeddings=64, bos_token_id=1, eos_token_id=2, pad_token_id=0)  # fmt: skip
LLAMA3 = dict(rope_type="llama3", rope_theta=5e5, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=16)  # fmt: skip
LONG = dict(rope_type="longrope", rope_theta=1e4, short_factor=[1.0, 1.1, 1.2, 1.3], long_factor=[1.0, 1.5, 2.0, 2.5])
GEMMA3 = dict(full_attention=dict(rope_type="linear", factor=8.0, rope_theta=1e6),
              sliding_attention=dict(rope_type="default", rope_theta=1e4))  # fmt: skip
YARN = dict(rope_type="yarn", rope_theta=150000.0, factor=32.0, beta_fast=32.0, beta_slow=1.0, truncate=False,
            original_max_position_embeddings=16)  # fmt: skip
CASES = {
    "llama": ("LlamaForCausalLM", dict(rope_parameters=LLAMA3)),
    "qwen2": ("Qwen2ForCausalLM", dict(rope_parameters=dict(rope_type="default", rope_theta=1e6))),
    "qwen3": ("Qwen3ForCausalLM", dict(head_dim=16, tie_word_embeddings=True)),
    "gemma2": ("Gemma2ForCausalLM", dict(head_dim=8, query_pre_attn_scalar=8, sliding_window=8)),
    "gemma3": ("Gemma3ForCausalLM", dict(head_dim=8, query_pre_attn_scalar=8, sliding_window=8,
        num_hidden_layers=6, rope_parameters=GEMMA3)),
    "phi3": ("Phi3ForCausalLM", dict(original_max_position_embeddings=16, rope_parameters=LONG)),
    "smollm3": ("SmolLM3ForCausalLM", dict(num_hidden_layers=4)),
    "olmo2": ("Olmo2ForCausalLM", {}),
    "granite": ("GraniteForCausalLM", dict(embedding_multiplier=12.0, logits_scaling=8.0, residual_multiplier=0.22,
        attention_multiplier=0.125)),
    "qwen3moe": ("Qwen3MoeForCausalLM", dict(head_dim=8, num_experts=4, num_experts_per_tok=2,
        moe_intermediate_size=32, norm_topk_prob=True)),
    "mixtral": ("MixtralForCausalLM", dict(num_local_experts=4, num_experts_per_tok=2)),
    "gpt_oss": ("GptOssForCausalLM", dict(head_dim=8, num_local_experts=4, num_experts_per_tok=2, sliding_window=8,
        rope_parameters=YARN)),
}  # fmt: skip


def rounded(name, tensor):
    """The tensor as Q8_0 holds it; gpt-oss's stacked experts lie transposed."""
    if tensor.ndim < 2 or "bias" in name or "norm" in name:
        return tensor
    rows = np.ascontiguousarray(tensor.swapaxes(-1, -2)) if tensor.ndim == 3 else tensor
    kind = gguf.GGMLQuantizationType.Q8_0
    rows = quants.dequantize(quants.quantize(rows, kind), kind).reshape(rows.shape)
    return np.ascontiguousarray(rows.swapaxes(-1, -2)) if tensor.ndim == 3 else rows


def set_vocab(model):
    """A vocabulary of nothing, so that the converter needs no tokenizer."""
    model.gguf_writer.add_tokenizer_model("gpt2")
    model.gguf_writer.add_tokenizer_pre("default")
    model.gguf_writer.add_token_list([f"<{i}>" for i in range(VOCAB)])
    model.gguf_writer.add_token_types([gguf.TokenType.NORMAL] * VOCAB)
    model.gguf_writer.add_token_merges(["< 0"])


def convert(directory, path, kind="MOSTLY_Q8_0"):
    from convert_hf_to_gguf import ModelBase, ModelType, get_model_architecture, get_model_class

    architecture = get_model_architecture(ModelBase.load_hparams(Path(directory), False), ModelType.TEXT)
    model_class = get_model_class(architecture)
    tiny = type(model_class.__name__, (model_class,), {"set_vocab": set_vocab, "model_arch": model_class.model_arch})
    with torch.inference_mode():
        tiny(Path(directory), gguf.LlamaFileType[kind], Path(path), eager=True).write()


def llama_cpp(path, tokens):
    try:
        import llama_cpp
    except ImportError:
        return None
    model = llama_cpp.Llama(str(path), n_ctx=64, logits_all=True, verbose=False, n_threads=2)
    model.eval(tokens)
    return model.scores[: len(tokens)].copy()


def make(case, architecture, settings):
    model_class = getattr(transformers, architecture)
    config = model_class.config_class(**{**COMMON, **settings})
    seed = sum(map(ord, case))
    tokens = [int(x) % VOCAB for x in np.abs(scatter(seed, "tokens", TOKENS) * 1e6)]
    with tempfile.TemporaryDirectory() as directory:
        model_class(config).float().save_pretrained(directory)
        path = f"{directory}/model.safetensors"
        shapes = {name: tensor.shape for name, tensor in load_file(path).items()}
        made = weights(shapes, "fan_in", seed, "gemma" in config.model_type)
        save_file({name: rounded(name, tensor) for name, tensor in made.items()}, path, metadata={"format": "pt"})
        model = transformers.AutoModelForCausalLM.from_pretrained(
            directory, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        with torch.no_grad():
            logits = model(torch.tensor([tokens]), use_cache=False).logits[0].float().numpy()
        with open(f"{directory}/tokenizer.json", "w") as file:  # Gemma 3's converter looks for special tokens
            json.dump({"added_tokens": [], "model": {"vocab": {f"<{i}>": i for i in range(VOCAB)}}}, file)
        convert(directory, f"{HERE}/gguf/{case}.gguf")
    logits.astype("<f4").tofile(f"{HERE}/gguf/{case}.bin")
    with open(f"{HERE}/gguf/{case}.json", "w") as file:
        file.write(json.dumps(tokens) + "\n")
    theirs = llama_cpp(f"{HERE}/gguf/{case}.gguf", tokens)
    far = "" if theirs is None else f"llama.cpp rms {np.sqrt(((theirs - logits) ** 2).mean()) / logits.std():.4f}"
    print(f"{case:10} {os.path.getsize(f'{HERE}/gguf/{case}.gguf')} bytes, std {logits.std():.3f} {far}", flush=True)


def quantised():
    """Random blocks: any bytes are a valid block but for the scales, which are kept finite and small."""
    writer = gguf.GGUFWriter(f"{HERE}/gguf/quantised.gguf", "none")
    out = []
    for kind in ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_K", "Q5_K", "Q6_K", "MXFP4"):
        kind = gguf.GGMLQuantizationType[kind]
        numbers, size = gguf.GGML_QUANT_SIZES[kind]
        rows, columns = 3, 512
        if numbers == 1:
            raw = scatter(7, kind.name, rows * columns).astype(np.float32).reshape(rows, columns)
            raw = quants.quantize(raw, kind)
        else:
            count = rows * columns // numbers
            bits = (scatter(7, kind.name, count * size) * 1e6).astype(np.int64).astype(np.uint8).reshape(count, size)
            halves = {"Q8_0": [0], "Q4_0": [0], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "MXFP4": []}[kind.name]
            for at in halves:
                scale = np.abs(scatter(8, f"{kind.name}{at}", count) * 0.05).astype(np.float16)
                bits[:, at : at + 2] = scale.view(np.uint8).reshape(count, 2)
            if kind.name == "MXFP4":
                bits[:, 0] = 110 + bits[:, 0] % 30
            raw = bits.reshape(rows, columns // numbers * size)
        writer.add_tensor(kind.name, raw, raw_dtype=kind)
        out.append(quants.dequantize(raw, kind).astype("<f4").ravel())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    np.concatenate(out).tofile(f"{HERE}/gguf/quantised.bin")


def mxfp4():
    """A gpt-oss checkpoint as it is published: two shards, BF16 and F16, experts as `_blocks` and `_scales`; and the
    GGUF file of it, whose experts are MXFP4."""
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors

    case, directory = "gpt_oss_mxfp4", f"{HERE}/shards"
    os.makedirs(directory, exist_ok=True)
    config = transformers.GptOssConfig(**{**COMMON, **CASES["gpt_oss"][1]}, torch_dtype="bfloat16")
    model = transformers.GptOssForCausalLM(config).float().eval()
    seed, stored, state = sum(map(ord, case)), {}, {}
    for name, made in weights({n: tuple(p.shape) for n, p in model.named_parameters()}, "fan_in", seed, False).items():
        if made.ndim == 3:
            experts, columns, rows = made.shape
            bits = (scatter(seed, name + "_blocks", made.size // 2) * 1e6).astype(np.int64).astype(np.uint8)
            stored[name + "_blocks"] = torch.from_numpy(bits).reshape(experts, rows, columns // 32, 16)
            bits = 121 + (scatter(seed, name + "_scales", made.size // 32) * 1e6).astype(np.int64).astype(np.uint8) % 5
            stored[name + "_scales"] = torch.from_numpy(bits.astype(np.uint8)).reshape(experts, rows, columns // 32)
            blocks, scales = stored[name + "_blocks"], stored[name + "_scales"]
            state[name] = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
        else:
            stored[name] = torch.from_numpy(made).to(torch.float16 if "norm" in name else torch.bfloat16)
            state[name] = stored[name].float()
    model.load_state_dict(state)
    tokens = [int(x) % VOCAB for x in np.abs(scatter(seed, "tokens", TOKENS) * 1e6)]
    with torch.no_grad():
        logits = model(torch.tensor([tokens]), use_cache=False).logits[0].float().numpy()
    names = sorted(stored)
    halves = [name for name in names if "layers.1." not in name], [name for name in names if "layers.1." in name]
    shards = {f"model-0000{i + 1}-of-00002.safetensors": halves[i] for i in range(2)}
    for shard, held in shards.items():
        safetensors.torch.save_file({name: stored[name] for name in held}, f"{directory}/{shard}")
    weight_map = {name: shard for shard, held in shards.items() for name in held}
    total = sum(tensor.numel() * tensor.element_size() for tensor in stored.values())
    with open(f"{directory}/model.safetensors.index.json", "w") as file:
        json.dump({"metadata": {"total_size": total}, "weight_map": weight_map}, file, indent=1)
    config = {**config.to_dict(), "architectures": ["GptOssForCausalLM"], "dtype": "bfloat16"}
    with open(f"{directory}/config.json", "w") as file:
        json.dump({**config, "quantization_config": {"quant_method": "mxfp4"}}, file, indent=1)
    for kind in ("gguf", "shards"):
        logits.astype("<f4").tofile(f"{HERE}/{kind}/{case}.bin")
        with open(f"{HERE}/{kind}/{case}.json", "w") as file:
            file.write(json.dumps(tokens) + "\n")
    convert(directory, f"{HERE}/gguf/{case}.gguf", "MOSTLY_BF16")
    theirs = llama_cpp(f"{HERE}/gguf/{case}.gguf", tokens)
    far = "" if theirs is None else f"llama.cpp rms {np.sqrt(((theirs - logits) ** 2).mean()) / logits.std():.4f}"
    print(f"{case} std {logits.std():.3f} {far}")


if __name__ == "__main__":
    os.makedirs(f"{HERE}/gguf", exist_ok=True)
    quantised()
    mxfp4()
    for case in sys.argv[2:] or CASES:
        make(case, *CASES[case])
