"""Llama-3.1-8B's shape with made-up weights, as safetensors: 16 GB in seconds, by the standard library alone.

    python3 benches/gpu/model.py DIR
"""

import array
import json
import math
import pathlib
import random
import sys
from concurrent.futures import ThreadPoolExecutor

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1] / "peers"))
from language_shape import write_tokenizer  # noqa: E402

LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 14_336,
    "vocab_size": 128_256, "max_position_embeddings": 131_072, "rms_norm_eps": 1e-5, "rope_theta": 5e5,
    "tie_word_embeddings": False, "hidden_act": "silu", "attention_bias": False, "torch_dtype": "bfloat16",
    "bos_token_id": 256, "eos_token_id": 258,
}
LONGEST_FILE = 4 << 30
# Numbers that are written over and over: a prime, so that no two rows of a matrix are the same.
NUMBERS = 1_000_003
ONE = b"\x80\x3f"


def tensors(shape):
    """Names and shapes of the model, in the order of its files."""
    hidden, inner, head = shape["hidden_size"], shape["intermediate_size"], shape["head_dim"]
    queries, keys = shape["num_attention_heads"] * head, shape["num_key_value_heads"] * head
    yield "model.embed_tokens.weight", (shape["vocab_size"], hidden)
    for layer in range(shape["num_hidden_layers"]):
        block = f"model.layers.{layer}."
        yield block + "input_layernorm.weight", (hidden,)
        yield block + "self_attn.q_proj.weight", (queries, hidden)
        yield block + "self_attn.k_proj.weight", (keys, hidden)
        yield block + "self_attn.v_proj.weight", (keys, hidden)
        yield block + "self_attn.o_proj.weight", (hidden, queries)
        yield block + "post_attention_layernorm.weight", (hidden,)
        yield block + "mlp.gate_proj.weight", (inner, hidden)
        yield block + "mlp.up_proj.weight", (inner, hidden)
        yield block + "mlp.down_proj.weight", (hidden, inner)
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (shape["vocab_size"], hidden)


def shards(shape, longest):
    """Tensors by file."""
    files, size = [[]], 0
    for name, sizes in tensors(shape):
        bytes_ = 2 * math.prod(sizes)
        if size + bytes_ > longest:
            files.append([])
            size = 0
        files[-1].append((name, sizes))
        size += bytes_
    return files


def blocks(widths):
    """For each width of a matrix numbers as training begins with, in bf16: the upper halves of floats of 32 bits."""
    draw = random.Random(0).gauss
    drawn = [draw(0, 1) for _ in range(NUMBERS)]
    made = {}
    for width in widths:
        floats = array.array("f", [each / math.sqrt(width) for each in drawn])
        made[width] = memoryview(memoryview(floats).cast("B").cast("H")[1::2].tobytes())
    return made


def write_file(path, held, made):
    """A file of such tensors; norms leave alone."""
    header, places = {}, []
    begin = 0
    for name, sizes in held:
        end = begin + 2 * math.prod(sizes)
        header[name] = {"dtype": "BF16", "shape": sizes, "data_offsets": [begin, end]}
        places.append((begin, end, sizes))
        begin = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for begin, end, sizes in places:
            block = made[sizes[1]] if len(sizes) > 1 else ONE * sizes[0]
            at = begin % len(block) if len(sizes) > 1 else 0
            while begin < end:
                begin += file.write(block[at:at + end - begin])
                at = 0


def write_model(folder, shape, longest=LONGEST_FILE):
    """config.json, tokenizer.json and weights."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(shape), "utf-8")
    write_tokenizer(folder, shape["vocab_size"])
    files = shards(shape, longest)
    names = [f"model-{number:05}-of-{len(files):05}.safetensors" for number in range(1, len(files) + 1)]
    made = blocks({sizes[1] for _, sizes in tensors(shape) if len(sizes) > 1})
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name, held: write_file(folder / name, held, made), names, files))
    places = {tensor: name for name, held in zip(names, files) for tensor, _ in held}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}), "utf-8")


if __name__ == "__main__":
    write_model(pathlib.Path(sys.argv[1]), LLAMA)
