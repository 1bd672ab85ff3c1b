"""llama.cpp in this process, through llama-cpp-python: prompts, one sequence, sixteen sequences.

    python llamacpp.py MODEL.gguf --threads 2

Prints one line of JSON: tokens/s. Tokens are not sampled (the next one is given), which spares llama.cpp some work.
"""

import argparse
import json
import time

import llama_cpp
import numpy as np


class Context:
    """A model, and room for some sequences."""

    def __init__(self, path, threads, sequences, context):
        llama_cpp.llama_backend_init()
        llama_cpp.llama_log_set(_quiet, None)
        self.model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
        assert self.model, path
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx = context
        parameters.n_batch = parameters.n_ubatch = 512
        parameters.n_threads = parameters.n_threads_batch = threads
        parameters.n_seq_max = sequences
        parameters.kv_unified = True
        self.context = llama_cpp.llama_init_from_model(self.model, parameters)
        assert self.context
        self.batch = llama_cpp.llama_batch_init(512, 0, 1)

    def decode(self, rows):
        """Computes (sequence, position, token, logits wanted)."""
        for row, (sequence, position, token, wanted) in enumerate(rows):
            self.batch.token[row] = token
            self.batch.pos[row] = position
            self.batch.n_seq_id[row] = 1
            self.batch.seq_id[row][0] = sequence
            self.batch.logits[row] = wanted
        self.batch.n_tokens = len(rows)
        assert llama_cpp.llama_decode(self.context, self.batch) == 0

    def clear(self):
        """Forgets all sequences."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)


@llama_cpp.llama_log_callback
def _quiet(_level, _text, _data):
    pass


def prompt_rate(context, random, length, repeat):
    """Tokens/s of a prompt; the best of some."""
    best = 0.0
    for _ in range(repeat):
        context.clear()
        ids = random.integers(300, 150_000, length)
        start = time.perf_counter()
        for first in range(0, length, 512):
            part = range(first, min(first + 512, length))
            context.decode([(0, i, int(ids[i]), i == length - 1) for i in part])
        best = max(best, length / (time.perf_counter() - start))
    return best


def decode_rate(context, random, sequences, prompt, steps):
    """Tokens/s of all sequences together, after prompts of some tokens."""
    context.clear()
    for sequence in range(sequences):
        ids = random.integers(300, 150_000, prompt)
        context.decode([(sequence, i, int(ids[i]), i == prompt - 1) for i in range(prompt)])
    start = time.perf_counter()
    for step in range(steps):
        ids = random.integers(300, 150_000, sequences)
        context.decode([(s, prompt + step, int(ids[s]), True) for s in range(sequences)])
    return sequences * steps / (time.perf_counter() - start)


def main():
    """Measures, and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--steps", type=int, default=64)
    arguments = parser.parse_args()
    random = np.random.default_rng(1)
    start = time.perf_counter()
    context = Context(arguments.model, arguments.threads, 16, 16 * 128 + 1024)
    context.decode([(0, 0, 300, True)])
    first = time.perf_counter() - start
    found = {
        "engine": "llama.cpp",
        "first_token_s": first,
        "prompt": prompt_rate(context, random, arguments.prompt, 2),
        "decode_1": decode_rate(context, random, 1, 16, arguments.steps),
        "decode_16": decode_rate(context, random, 16, 16, arguments.steps // 2),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
