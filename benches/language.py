"""Language models beside llama.cpp, on the same GGUF files, in turns.

    python language.py --tensorgate BINARY --models DIR --llama-python PYTHON --out DIR

DIR is what peers/language_models.py makes; PYTHON has llama-cpp-python, numpy and gguf. We are asked over HTTP with streams;
llama.cpp is called in its own process, and samples nothing. Only one of the two runs at a time: the other is stopped.
"""

import argparse
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE / "peers"))

import language_client  # noqa: E402

KINDS = ("q4_k_m", "q8_0", "bf16")
MEASURES = {"prompt": "prompt of 512", "decode_1": "one sequence", "decode_16": "sixteen sequences"}


def free_port():
    """One that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start(binary, directory):
    """A server, its client, and the seconds until its first token."""
    port, begun = free_port(), time.perf_counter()
    words = [binary, "serve", "--model-dir", directory, "--model-name", "m", "--max-model-len", "2048", "--host",
             "127.0.0.1", "--http-port", str(port), "--grpc-port", "off", "--drain-delay", "0s"]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=5)
            break
        except OSError:
            if process.poll() is not None:
                raise SystemExit(f"the server ended with {process.returncode}") from None
            time.sleep(0.02)
    client = language_client.Client("127.0.0.1", port, "m")
    client.stream([300], 1)
    return process, client, time.perf_counter() - begun


def ours(client, numbers):
    """Tokens/s over HTTP."""
    return {
        "prompt": language_client.prompt_rate(client, numbers, 512, 1),
        "decode_1": language_client.decode_rate(client, numbers, 1, 16, 48),
        "decode_16": language_client.decode_rate(client, numbers, 16, 16, 32),
    }


def theirs(python, model):
    """Tokens/s of llama.cpp."""
    words = [python, HERE / "peers" / "llamacpp.py", model, "--steps", "48"]
    found = subprocess.run(words, check=True, capture_output=True, text=True, env=os.environ)
    return json.loads(found.stdout.splitlines()[-1])


def main():
    """Measures, prints, and writes what it found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tensorgate", required=True)
    parser.add_argument("--models", type=Path, required=True)
    parser.add_argument("--llama-python", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kinds", nargs="*", default=KINDS)
    arguments = parser.parse_args()
    numbers, lines = random.Random(3), []
    for kind in arguments.kinds:
        process, client, first = start(arguments.tensorgate, arguments.models / kind)
        rounds = []
        try:
            for _ in range(arguments.rounds):
                mine = ours(client, numbers)
                process.send_signal(signal.SIGSTOP)
                try:
                    peer = theirs(arguments.llama_python, arguments.models / kind / "model.gguf")
                finally:
                    process.send_signal(signal.SIGCONT)
                rounds.append((mine, peer))
                print(kind, json.dumps(mine), json.dumps(peer), flush=True)
        finally:
            process.terminate()
            process.wait()
        for key, what in MEASURES.items():
            mine = [round_[0][key] for round_ in rounds]
            peer = [round_[1][key] for round_ in rounds]
            ratio = statistics.median(a / b for a, b in zip(mine, peer, strict=True))
            lines.append(f"| {kind} | {what} | {statistics.median(mine):.1f} | {statistics.median(peer):.1f} "
                         f"| {ratio:.2f} |")
        peer_first = statistics.median(round_[1]["first_token_s"] for round_ in rounds)
        lines.append(f"| {kind} | from start to first token, s | {first:.2f} | {peer_first:.2f} | {peer_first / first:.2f} |")
    table = "| file | tokens/s | tensorgate | llama.cpp | ratio |\n|---|---|---:|---:|---:|\n" + "\n".join(lines) + "\n"
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "language.md").write_text(table)
    print(table)


if __name__ == "__main__":
    main()
