"""Makes the language models of the benchmarks: Qwen3-0.6B's shape with random weights.

    python language_models.py DIR

DIR/bf16/model.gguf, DIR/q8_0/model.gguf, DIR/q4_k_m/model.gguf; the latter two are what llama.cpp's own quantiser makes
of the first. Weights are normal with a standard deviation of 1/sqrt(inputs), from a seed. The tokenizer has Qwen3's number of
tokens: the bytes, the control tokens of ChatML, and words that nobody writes.
"""

import ctypes
import sys
from pathlib import Path

import gguf
import llama_cpp
import numpy as np
from language_shape import CONTEXT, HEAD, HEADS, HIDDEN, INNER, KV_HEADS, LAYERS, VOCABULARY, tokens

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def bf16(array):
    """The upper halves of 32-bit floats, rounded to nearest."""
    bits = array.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def write(path):
    """The bf16 file."""
    rng = np.random.default_rng(7)
    writer = gguf.GGUFWriter(str(path), "qwen3")
    writer.add_name("bench")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_key_length(HEAD)
    writer.add_value_length(HEAD)
    writer.add_rope_freq_base(1e6)
    writer.add_layer_norm_rms_eps(1e-6)
    names, kinds = tokens()
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(names)
    writer.add_token_types(kinds)
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(258)
    writer.add_bos_token_id(256)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)
    names[names.index("word0")] = "ab"
    writer.kv_data[0]["tokenizer.ggml.tokens"].value = names

    def matrix(name, rows, inputs):
        values = bf16(rng.standard_normal((rows, inputs), dtype=np.float32) / np.sqrt(inputs))
        writer.add_tensor(name, values.view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16)

    def norm(name, width):
        writer.add_tensor(name, np.ones(width, dtype=np.float32))

    matrix("token_embd.weight", VOCABULARY, HIDDEN)
    norm("output_norm.weight", HIDDEN)
    for layer in range(LAYERS):
        block = f"blk.{layer}."
        norm(block + "attn_norm.weight", HIDDEN)
        norm(block + "ffn_norm.weight", HIDDEN)
        norm(block + "attn_q_norm.weight", HEAD)
        norm(block + "attn_k_norm.weight", HEAD)
        matrix(block + "attn_q.weight", HEADS * HEAD, HIDDEN)
        matrix(block + "attn_k.weight", KV_HEADS * HEAD, HIDDEN)
        matrix(block + "attn_v.weight", KV_HEADS * HEAD, HIDDEN)
        matrix(block + "attn_output.weight", HIDDEN, HEADS * HEAD)
        matrix(block + "ffn_gate.weight", INNER, HIDDEN)
        matrix(block + "ffn_up.weight", INNER, HIDDEN)
        matrix(block + "ffn_down.weight", HIDDEN, INNER)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def quantise(source, target, kind):
    """By llama.cpp."""
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = kind
    parameters.nthread = 2
    failed = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(parameters))
    assert failed == 0, failed


def main():
    """Makes what is not there yet."""
    root = Path(sys.argv[1])
    source = root / "bf16" / "model.gguf"
    kinds = {"q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0, "q4_k_m": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M}
    if not source.exists():
        source.parent.mkdir(parents=True, exist_ok=True)
        part = source.with_suffix(".part")
        write(part)
        part.rename(source)
    for name, kind in kinds.items():
        target = root / name / "model.gguf"
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            part = target.with_suffix(".part")
            quantise(source, part, kind)
            part.rename(target)


if __name__ == "__main__":
    main()
