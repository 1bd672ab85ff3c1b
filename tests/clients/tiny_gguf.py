"""The tiny language model of `tiny_llm` as one GGUF file, as llama.cpp's converter would write it."""

import json
import struct

import tiny_llm

ALIGNMENT = 32
# Types of metadata, and of tensors.
U32, I32, F32, TEXT, ARRAY = 4, 5, 6, 8, 9
TENSOR_F32 = 0

NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def text(value):
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def array(key, kind, values):
    packed = [text(value) if kind == TEXT else struct.pack("<i", value) for value in values]
    return text(key) + struct.pack("<IIQ", ARRAY, kind, len(values)) + b"".join(packed)


def entry(key, kind, value):
    data = text(value) if kind == TEXT else struct.pack("<I" if kind == U32 else "<f", value)
    return text(key) + struct.pack("<I", kind) + data


def renamed(name):
    """`model.layers.1.mlp.up_proj.weight` is `blk.1.ffn_up.weight`."""
    if name in NAMES:
        return NAMES[name]
    _, _, layer, *part, weight = name.split(".")
    return f"blk.{layer}.{NAMES['.'.join(part)]}.{weight}"


def tokenizer_entries(directory):
    """The tokenizer as metadata: kinds are 1 for tokens of text, 3 for control tokens."""
    read = json.loads((directory / "tokenizer.json").read_text())
    settings = json.loads((directory / "tokenizer_config.json").read_text())
    names = {token: (name, 1) for name, token in read["model"]["vocab"].items()}
    names |= {added["id"]: (added["content"], 3) for added in read["added_tokens"]}
    ordered = [names[token] for token in range(len(names))]
    ends = {name: token for token, (name, _) in names.items()}
    return [
        entry("tokenizer.ggml.model", TEXT, "gpt2"),
        entry("tokenizer.ggml.pre", TEXT, "gpt-2"),
        array("tokenizer.ggml.tokens", TEXT, [name for name, _ in ordered]),
        array("tokenizer.ggml.token_type", I32, [kind for _, kind in ordered]),
        array("tokenizer.ggml.merges", TEXT, []),
        entry("tokenizer.ggml.eos_token_id", U32, ends[settings["eos_token"]]),
        entry("tokenizer.chat_template", TEXT, settings["chat_template"]),
    ]


def convert(directory):
    """Puts `model.gguf` in the place of all other files."""
    config = json.loads((directory / "config.json").read_text())
    tensors = tiny_llm.read_safetensors(directory / "model.safetensors")
    whole = {
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "block_count": config["num_hidden_layers"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.key_length": config["head_dim"],
        "attention.value_length": config["head_dim"],
        "vocab_size": config["vocab_size"],
    }
    entries = [entry("general.architecture", TEXT, "qwen3")]
    entries += [entry(f"qwen3.{key}", U32, value) for key, value in whole.items()]
    entries += [
        entry("qwen3.rope.freq_base", F32, config["rope_theta"]),
        entry("qwen3.attention.layer_norm_rms_epsilon", F32, config["rms_norm_eps"]),
    ]
    entries += tokenizer_entries(directory)
    described, data = b"", b""
    for name, tensor in tensors.items():
        sizes = tensor.shape[::-1]
        described += text(renamed(name)) + struct.pack("<I", len(sizes)) + struct.pack(f"<{len(sizes)}Q", *sizes)
        described += struct.pack("<IQ", TENSOR_F32, len(data))
        data += tensor.astype("<f4").tobytes()
        data += bytes(-len(data) % ALIGNMENT)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(entries)) + b"".join(entries) + described
    (directory / "model.gguf").write_bytes(head + bytes(-len(head) % ALIGNMENT) + data)
    for path in directory.iterdir():
        if path.name != "model.gguf":
            path.unlink()
