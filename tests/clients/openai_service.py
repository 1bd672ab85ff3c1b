"""A server over a tree model and a tiny language model, and how tests ask the latter through OpenAI's client.

No test is here. The fixtures are imported by name where they are used.
"""

import contextlib
import shutil
import time

import openai
import pytest
import requests
import tiny_llm
from conftest import starter, stop_all
from prometheus_client.parser import text_string_to_metric_families

BASES = ("/v1", "/openai/v1")
GREEDY = {"model": "tiny", "temperature": 0}
# The model goes on with tokens of one to four bytes, and of two characters.
TEXT = "x = 1;"
MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Once upon a time"}]
# Logarithms of probabilities are to be as close to the oracle's.
CLOSE = {"abs": 1e-3}
# Enough tokens that nobody generates them in the time that tests wait.
LONG_CONTEXT, LONG = 65536, 60000
WAIT_SECONDS = 10


@contextlib.contextmanager
def serving(binary, models, folder, more=(), **wishes):
    """A server over iris and `tiny`, and the oracle of the latter; `more` arguments."""
    shutil.copytree(models / "iris", folder / "models" / "iris")
    oracle = tiny_llm.make(folder / "models" / "tiny", **wishes)
    start, started = starter(binary, folder)
    try:
        listen = ["--http-port", "{http}", "--grpc-port", "{grpc}"]
        server = start("serve", "--model-repository", folder / "models", *listen, *more)
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


@pytest.fixture(scope="module")
def long_service(binary, models, tmp_path_factory):
    """The same model with a context that takes a while to fill."""
    with serving(binary, models, tmp_path_factory.mktemp("openai"), context=LONG_CONTEXT) as server:
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


def sampled(server, name, **labels):
    """The value of a metric with these labels, among others."""
    families = text_string_to_metric_families(requests.get(f"{server.url}/metrics", timeout=10).text)
    samples = (sample for family in families for sample in family.samples)
    (value,) = (each.value for each in samples if each.name == name and labels.items() <= each.labels.items())
    return value


def running(server):
    """How many sequences of `tiny` run, by the gauge that autoscalers look at."""
    return sampled(server, "vllm:num_requests_running", model_name="tiny")


def eventually(look, wanted):
    """Waits for `look()` to find what is wanted."""
    deadline = time.monotonic() + WAIT_SECONDS
    while (found := look()) != wanted:
        assert time.monotonic() < deadline, f"{found}, not {wanted}"
        time.sleep(0.05)


def wait_for(server, number):
    eventually(lambda: running(server), number)
