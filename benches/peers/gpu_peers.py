"""Others on the same card, and what the card allows: torch, cuBLAS by torch, transformers. Needs torch with CUDA.

    python3 gpu_peers.py limits      a copy within the card's memory, and a large product
    python3 gpu_peers.py libraries   SDPA and cuBLAS
    python3 gpu_peers.py peers       transformers' generate with a static cache, compiled

Rows are lines of JSON. A peer's row is called after the job, with its name before: `cublas:gemm.m1`. Which of our rows
is the same job on a card, `gpu/table.py` knows.
"""

import gc
import json
import pathlib
import sys
import time

try:
    import torch
except ImportError:
    print("torch is not installed here: neither limits nor peers are measured", file=sys.stderr)
    sys.exit(2)

sys.path.append(str(pathlib.Path(__file__).resolve().parents[1] / "gpu"))
from model import LLAMA  # noqa: E402

QWEN = {
    "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 1024, "num_hidden_layers": 28,
    "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 3072,
    "vocab_size": 151_936, "max_position_embeddings": 40_960, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
    "tie_word_embeddings": True, "hidden_act": "silu", "attention_bias": False, "torch_dtype": "bfloat16",
}
HIDDEN, INNER, HEAD = LLAMA["hidden_size"], LLAMA["intermediate_size"], LLAMA["head_dim"]
HEADS, KV_HEADS = LLAMA["num_attention_heads"], LLAMA["num_key_value_heads"]
# As `tensorgate-benches gpu` has them.
MATRICES = {"qkv": ((HEADS + 2 * KV_HEADS) * HEAD, HIDDEN), "output": (HIDDEN, HEADS * HEAD),
            "gate-up": (2 * INNER, HIDDEN), "down": (HIDDEN, INNER)}
TURNS = 4
BF16 = torch.bfloat16


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
        kind = f"gemm.m{rows}"
        x = {inputs: random(rows, inputs) for _, inputs in MATRICES.values()}
        y = {outputs: random(rows, outputs) for outputs, _ in MATRICES.values()}

        def work(names, x=x, y=y):
            for turn in range(TURNS):
                for name in names:
                    outputs, inputs = MATRICES[name]
                    torch.matmul(x[inputs], weights[name][turn].T, out=y[outputs])

        for what, names in [(kind, list(MATRICES))] + [(f"{kind}.{name}", [name]) for name in MATRICES]:
            took = seconds(lambda names=names: work(names), 0.1) / TURNS
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


@torch.no_grad()
def first(model, what, tokens=1024):
    """A prompt's forward pass, and the likeliest token."""
    ids = torch.randint(1000, 100_000, (1, tokens), device="cuda")
    times = [timed(lambda: model(ids, use_cache=True, logits_to_keep=1).logits.argmax().item()) for _ in range(6)]
    row(f"transformers:{what}", sorted(times[1:])[2] * 1e3, "ms")


@torch.no_grad()
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
    print(what, file=sys.stderr, flush=True)
    try:
        work()
    except Exception as error:  # noqa: BLE001, it is told
        note(f"{what}: {type(error).__name__}: {str(error)[:300]}")
    gc.collect()
    torch.cuda.empty_cache()


def libraries():
    """Kernels of torch."""
    tried("sdpa", attention)
    tried("cublas", products)


def peers():
    """transformers, one sequence first."""
    held = {}

    def llama(work):
        held["llama"] = held.get("llama") or build(LLAMA)
        work(held["llama"])

    def decodes(batch):
        what = f"decode.{name}.b{batch}"
        tried(f"transformers, {what}", lambda: llama(lambda model: decode(model, what, batch)))

    name = "llama-3.1-8b.bf16"
    tried("transformers, a prompt", lambda: llama(lambda model: first(model, f"ttft.{name}.1k")))
    decodes(1)
    tried("transformers, qwen3", lambda: decode(build(QWEN), "decode.qwen3-0.6b.bf16.b1", 1))
    decodes(32)
    # 256 sequences have 36 GB of keys and values, and prompts need as much again.
    if torch.cuda.get_device_properties(0).total_memory > 100e9:
        decodes(256)


def main():
    """Does what the first argument says."""
    command = sys.argv[1]
    if not torch.cuda.is_available():
        print("torch finds no GPU here: neither limits nor peers are measured", file=sys.stderr)
        sys.exit(2)
    print(f"torch {torch.__version__}", file=sys.stderr)
    {"limits": limits, "libraries": libraries, "peers": peers}[command]()


if __name__ == "__main__":
    main()
