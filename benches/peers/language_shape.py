"""The shape of the benchmarks' language model, and its files without weights."""

import json

HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD, INNER, VOCABULARY, CONTEXT = 1024, 28, 16, 8, 128, 3072, 151_936, 4096
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def alphabet():
    """The characters that byte-level tokens write bytes as."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table, free = {}, 256
    for byte in range(256):
        table[byte] = chr(byte) if byte in plain else chr(free)
        free += byte not in plain
    return [table[byte] for byte in range(256)]


def tokens(vocabulary=VOCABULARY):
    """Tokens and their kinds (1: normal, 3: control)."""
    names = alphabet() + CONTROL
    kinds = [1] * 256 + [3] * len(CONTROL)
    words = [f"word{number}" for number in range(vocabulary - len(names))]
    return names + words, kinds + [1] * len(words)


def write_config(folder):
    """`config.json` and `tokenizer.json`, for a server that makes up the weights."""
    config = {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": HIDDEN, "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": HEAD, "intermediate_size": INNER,
        "vocab_size": VOCABULARY, "max_position_embeddings": CONTEXT, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
        "tie_word_embeddings": True, "hidden_act": "silu", "attention_bias": False, "torch_dtype": "bfloat16",
        "eos_token_id": tokens()[0].index("<|im_end|>"),
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    write_tokenizer(folder)


def write_tokenizer(folder, vocabulary=VOCABULARY):
    """`tokenizer.json`."""
    names, kinds = tokens(vocabulary)
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
             "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False, "merges": []}
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "post_processor": None,
        "pre_tokenizer": byte_level, "decoder": byte_level,
        "added_tokens": [{"id": i, "content": name} | flags for i, name in enumerate(names) if kinds[i] == 3],
        "model": model | {"vocab": {name: i for i, name in enumerate(names) if kinds[i] == 1}},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
