"""A server over a tree model and a tiny language model, and how tests ask the latter through OpenAI's client.

No test is here. The fixtures are imported by name where they are used.
"""

import contextlib
import shutil

import openai
import pytest
import tiny_llm
from conftest import starter, stop_all

BASES = ("/v1", "/openai/v1")
GREEDY = {"model": "tiny", "temperature": 0}
# The model goes on with tokens of one to four bytes, and of two characters.
TEXT = "x = 1;"
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Once upon a time"}]
# Logarithms of probabilities are to be as close to the oracle's.
CLOSE = {"abs": 1e-3}


@contextlib.contextmanager
def serving(binary, models, folder, **wishes):
    """A server over iris and `tiny`, and the oracle of the latter."""
    shutil.copytree(models / "iris", folder / "models" / "iris")
    oracle = tiny_llm.make(folder / "models" / "tiny", **wishes)
    start, started = starter(binary, folder)
    try:
        listen = ["--http-port", "{http}", "--grpc-port", "{grpc}"]
        server = start("serve", "--model-repository", folder / "models", *listen)
        server.oracle = oracle
        yield server
        stop_all(started)
    finally:
        for each in started:
            each.kill()


@pytest.fixture(scope="module")
def service(binary, models, tmp_path_factory):
    with serving(binary, models, tmp_path_factory.mktemp("openai")) as server:
        yield server


def connect(server, base="/v1", kind=openai.OpenAI):
    # Without retries: what fails once is to be seen.
    return kind(base_url=server.url + base, api_key="none", max_retries=0, timeout=60)


@pytest.fixture(scope="module")
def client(service):
    return connect(service)


@pytest.fixture(scope="module")
def oracle(service):
    return service.oracle


def complete(client, prompt, **more):
    return client.completions.create(**{**GREEDY, "prompt": prompt, **more})


def chat(client, **more):
    return client.chat.completions.create(**{**GREEDY, "messages": MESSAGES, **more})


def said(oracle, count, prompt=None, **more):
    """The tokens that the model goes on with after a text, or after `MESSAGES`."""
    return oracle.greedy(oracle.encode(prompt or oracle.chat_prompt(MESSAGES)), count, **more)


def counts(usage):
    return usage.prompt_tokens, usage.completion_tokens, usage.total_tokens
