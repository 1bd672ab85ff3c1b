"""Loads a language model over OpenAI's API, and tells how many tokens came in a second. Standard library alone."""

import http.client
import json
import threading
import time


class Client:
    """Asks one server for completions."""

    def __init__(self, host, port, model):
        self.host, self.port, self.model = host, port, model

    def stream(self, prompt, max_tokens):
        """The times at which tokens came, since the request was sent."""
        body = json.dumps({
            "model": self.model, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0,
            "ignore_eos": True, "stream": True, "return_token_ids": True,
        })
        connection = http.client.HTTPConnection(self.host, self.port, timeout=600)
        start = time.perf_counter()
        connection.request("POST", "/v1/completions", body, {"content-type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            raise RuntimeError(response.read().decode())
        times = []
        for line in response:
            # The first event tells the prompt, and each further one a token.
            if line.startswith(b"data: {") and b'"token_ids":[' in line:
                times.append(time.perf_counter() - start)
        connection.close()
        return times


def prompt_rate(client, random, length, repeat=2):
    """Tokens/s of prompts that nothing of is known."""
    best = 0.0
    for _ in range(repeat):
        ids = [random.randrange(300, 150_000) for _ in range(length)]
        best = max(best, length / client.stream(ids, 1)[0])
    return best


def decode_rate(client, random, clients, prompt, tokens):
    """Tokens/s of all clients together while all of them have their first token and none its last."""
    results = []
    prompts = [[random.randrange(300, 150_000) for _ in range(prompt)] for _ in range(clients)]
    begun = time.perf_counter()

    def run(ids):
        offset = time.perf_counter() - begun
        results.append([offset + t for t in client.stream(ids, tokens)])

    threads = [threading.Thread(target=run, args=(ids,)) for ids in prompts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    first, last = max(r[0] for r in results), min(r[-1] for r in results)
    counted = sum(1 for r in results for t in r if first < t <= last)
    return counted / (last - first)
