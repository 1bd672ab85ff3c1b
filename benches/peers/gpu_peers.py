"""Others on the same card, and what the card allows: torch, cuBLAS by torch, transformers. Needs torch with CUDA.

    python3 gpu_peers.py limits      a copy within the card's memory, and a large product
    python3 gpu_peers.py model DIR   Llama-3.1-8B's shape with random weights, as safetensors
    python3 gpu_peers.py peers       SDPA, cuBLAS, and transformers' generate with a static cache, compiled

Rows are lines of JSON. A peer's row is called after ours, with its name before: `cublas:gemm.skinny.m1`.
"""

import gc
import json
import math
import pathlib
import sys
import time

try:
    import torch
except ImportError:
    print("torch is not installed here: neither limits nor peers are measured", file=sys.stderr)
    sys.exit(2)

from language_shape import write_tokenizer

HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD, INNER, VOCABULARY = 4096, 32, 32, 8, 128, 14_336, 128_256
LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": HEAD, "intermediate_size": INNER,
    "vocab_size": VOCABULARY, "max_position_embeddings": 131_072, "rms_norm_eps": 1e-5, "rope_theta": 5e5,
    "tie_word_embeddings": False, "hidden_act": "silu", "attention_bias": False, "torch_dtype": "bfloat16",
    "bos_token_id": 256, "eos_token_id": 258,
}
QWEN = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 1024, "num_hidden_layers": 28,
    "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 3072,
    "vocab_size": 151_936, "max_position_embeddings": 40_960, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
    "tie_word_embeddings": True, "hidden_act": "silu", "attention_bias": False, "torch_dtype": "bfloat16",
}
# As `tensorgate-benches gpu` has them.
MATRICES = {"qkv": ((HEADS + 2 * KV_HEADS) * HEAD, HIDDEN), "output": (HIDDEN, HEADS * HEAD),
            "gate-up": (2 * INNER, HIDDEN), "down": (HIDDEN, INNER)}
TURNS = 4
BF16 = torch.bfloat16
LONGEST_FILE = 4 << 30


def row(what, value, unit):
    """Prints a row."""
    print(json.dumps({"what": what, "value": value, "unit": unit, "limit": None}), flush=True)


def note(text):
    """Prints what a reader should know."""
    print(json.dumps({"note": text}), flush=True)


def seconds(work, least=0.2, runs=3):
    """Device time of some work, which is captured as a graph."""
    work()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()

    def timed(times):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(times):
            graph.replay()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3

    timed(1)
    times = min(max(int(least / max(timed(1), 1e-7)), 1), 100_000)
    return min(timed(times) for _ in range(runs)) / times


def random(*shape):
    """Random numbers, for zeros take less power, and so less time."""
    return torch.randn(*shape, device="cuda", dtype=BF16)


def limits():
    """What the card allows."""
    source = random(1 << 31)
    target = torch.empty_like(source)
    # By a kernel: what a graph makes of `copy_` moved 2,719 GB/s on an H200 whose kernels moved 4,331.
    row("copy", 2 * source.nbytes / seconds(lambda: torch.mul(source, 1, out=target)) / 1e9, "GB/s")
    del source, target
    size = 8192
    a, b, c = random(size, size), random(size, size), torch.empty(size, size, device="cuda", dtype=BF16)
    row("matrix", 2 * size**3 / seconds(lambda: torch.matmul(a, b, out=c), 0.5) / 1e12, "TFLOP/s")


def tensors():
    """Names and shapes of the model, in the order of its files."""
    yield "model.embed_tokens.weight", (VOCABULARY, HIDDEN)
    for layer in range(LAYERS):
        block = f"model.layers.{layer}."
        yield block + "input_layernorm.weight", (HIDDEN,)
        yield block + "self_attn.q_proj.weight", (HEADS * HEAD, HIDDEN)
        yield block + "self_attn.k_proj.weight", (KV_HEADS * HEAD, HIDDEN)
        yield block + "self_attn.v_proj.weight", (KV_HEADS * HEAD, HIDDEN)
        yield block + "self_attn.o_proj.weight", (HIDDEN, HEADS * HEAD)
        yield block + "post_attention_layernorm.weight", (HIDDEN,)
        yield block + "mlp.gate_proj.weight", (INNER, HIDDEN)
        yield block + "mlp.up_proj.weight", (INNER, HIDDEN)
        yield block + "mlp.down_proj.weight", (HIDDEN, INNER)
    yield "model.norm.weight", (HIDDEN,)
    yield "lm_head.weight", (VOCABULARY, HIDDEN)


def shards():
    """Tensors by file."""
    files, size = [[]], 0
    for name, shape in tensors():
        bytes_ = 2 * math.prod(shape)
        if size + bytes_ > LONGEST_FILE:
            files.append([])
            size = 0
        files[-1].append((name, shape))
        size += bytes_
    return files


def make_up(shape):
    """Numbers as training begins with; norms leave alone."""
    if len(shape) == 1:
        return torch.ones(shape, dtype=BF16)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return (torch.randn(*shape, device=device, dtype=BF16) / math.sqrt(shape[1])).cpu()


def write_model(folder):
    """config.json, tokenizer.json and 16 GB of weights."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(LLAMA), "utf-8")
    write_tokenizer(folder, VOCABULARY)
    files, places = shards(), {}
    for number, held in enumerate(files, 1):
        name = f"model-{number:05}-of-{len(files):05}.safetensors"
        header, offset = {}, 0
        for tensor, shape in held:
            end = offset + 2 * math.prod(shape)
            header[tensor] = {"dtype": "BF16", "shape": shape, "data_offsets": [offset, end]}
            offset, places[tensor] = end, name
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with (folder / name).open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for _, shape in held:
                file.write(make_up(shape).view(torch.uint8).numpy().data)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}), "utf-8")


def attention():
    """torch's SDPA: 256 rows of one token, and one prompt."""
    sdpa, rows, context = torch.nn.functional.scaled_dot_product_attention, 256, 4096
    query = random(rows, HEADS, 1, HEAD)
    keys, values = (random(rows, KV_HEADS, context, HEAD) for _ in range(2))
    took = seconds(lambda: sdpa(query, keys, values, enable_gqa=True))
    row("sdpa:attention.decode.256x4k", (2 * keys.nbytes + 2 * query.nbytes) / took / 1e9, "GB/s")
    query = random(1, HEADS, context, HEAD)
    keys, values = keys[:1], values[:1]
    took = seconds(lambda: sdpa(query, keys, values, is_causal=True, enable_gqa=True))
    row("sdpa:attention.prompt.1x4k", 4 * HEADS * HEAD * context * (context + 1) / 2 / took / 1e12, "TFLOP/s")


def products():
    """cuBLAS, with a layer's matrices."""
    weights = {name: [random(*shape) for _ in range(TURNS)] for name, shape in MATRICES.items()}
    for rows in [1, 16, 64, 256, 1024, 4096]:
        kind = f"gemm.{'skinny' if rows <= 64 else 'tiled'}.m{rows}"
        x = {inputs: random(rows, inputs) for _, inputs in MATRICES.values()}
        y = {outputs: random(rows, outputs) for outputs, _ in MATRICES.values()}

        def work(names, x=x, y=y):
            for turn in range(TURNS):
                for name in names:
                    outputs, inputs = MATRICES[name]
                    torch.matmul(x[inputs], weights[name][turn].T, out=y[outputs])

        for what, names in [(kind, list(MATRICES))] + [(f"{kind}.{name}", [name]) for name in MATRICES]:
            took = seconds(lambda names=names: work(names)) / TURNS
            shapes = [MATRICES[name] for name in names]
            moved = sum(2 * (o * i + rows * (o + i)) for o, i in shapes)
            done = sum(2 * rows * o * i for o, i in shapes)
            value, unit = (moved / took / 1e9, "GB/s") if rows <= 64 else (done / took / 1e12, "TFLOP/s")
            row(f"cublas:{what}", value, unit)


def build(shape):
    """A model of transformers on the card."""
    import transformers

    config = transformers.AutoConfig.for_model(**shape)
    with torch.device("cuda"):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=BF16, attn_implementation="sdpa")
    return model.eval()


def timed(work):
    """Seconds, on the clock."""
    torch.cuda.synchronize()
    begun = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - begun


@torch.inference_mode()
def first(model, what, tokens=1024):
    """A prompt's forward pass, and the likeliest token."""
    ids = torch.randint(1000, 100_000, (1, tokens), device="cuda")
    times = [timed(lambda: model(ids, use_cache=True, logits_to_keep=1).logits.argmax().item()) for _ in range(6)]
    row(f"transformers:{what}", sorted(times[1:])[2] * 1e3, "ms")


@torch.inference_mode()
def decode(model, what, batch, tokens=128, context=1024):
    """Tokens a second of generate, without the prompt's part of its time."""
    ids = torch.randint(1000, 100_000, (batch, context - tokens // 2), device="cuda")
    mask = torch.ones_like(ids)

    def generate():
        model.generate(ids, attention_mask=mask, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False,
                       cache_implementation="static", pad_token_id=0)

    def prompt():
        model(ids, attention_mask=mask, use_cache=True, logits_to_keep=1)

    for _ in range(2):
        timed(generate)
        timed(prompt)
    took = timed(generate) - timed(prompt)
    row(f"transformers:{what}", batch * (tokens - 1) / took, "tokens/s")


def tried(what, work):
    """Others' troubles are no end of ours."""
    try:
        work()
    except Exception as error:  # noqa: BLE001, it is told
        note(f"{what}: {type(error).__name__}: {str(error)[:300]}")
    gc.collect()
    torch.cuda.empty_cache()


def peers():
    """All peers, the shortest first."""
    tried("sdpa", attention)
    tried("cublas", products)
    held = {}

    def llama(work):
        held["llama"] = held.get("llama") or build(LLAMA)
        work(held["llama"])

    name = "llama-3.1-8b.bf16"
    tried("transformers, a prompt", lambda: llama(lambda model: first(model, f"ttft.{name}.1k")))
    # 256 sequences have 36 GB of keys and values, and prompts need as much again.
    large = torch.cuda.get_device_properties(0).total_memory > 100e9
    for batch in [1, 32, 256] if large else [1, 32]:
        what = f"decode.{name}.b{batch}"
        tried(f"transformers, {what}", lambda what=what, batch=batch: llama(lambda model: decode(model, what, batch)))
    held.clear()
    gc.collect()
    torch.cuda.empty_cache()
    tried("transformers, qwen3", lambda: decode(build(QWEN), "decode.qwen3-0.6b.bf16.b1", 1))


def main():
    """Does what the first argument says."""
    command, *rest = sys.argv[1:] or ["peers"]
    if command == "model":
        write_model(pathlib.Path(rest[0]))
        return
    if not torch.cuda.is_available():
        print("torch finds no GPU here: neither limits nor peers are measured", file=sys.stderr)
        sys.exit(2)
    print(f"torch {torch.__version__}", file=sys.stderr)
    {"limits": limits, "peers": peers}[command]()


if __name__ == "__main__":
    main()
