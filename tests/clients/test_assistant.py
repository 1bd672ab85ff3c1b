"""The demo model in models/, asked with the `openai` package: the answers are those of its exchanges.json.

Whether the answers are right is not asked here; models/train_assistant.py does so when it makes the model.
"""

import json
import pathlib
import re
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from conftest import starter, stop_all
from openai_service import connect

NAME = "assistant"
README = pathlib.Path(__file__).resolve().parents[2] / "README.md"


@pytest.fixture(scope="module")
def service(binary, models, tmp_path_factory):
    """A server over all example models, as `make run` starts it."""
    start, started = starter(binary, tmp_path_factory.mktemp("assistant"))
    try:
        yield start("serve", "--model-repository", models, "--http-port", "{http}", "--grpc-port", "{grpc}")
        stop_all(started)
    finally:
        for each in started:
            each.kill()


@pytest.fixture(scope="module")
def client(service):
    return connect(service)


@pytest.fixture(scope="module")
def exchanges(models):
    return json.loads((models / NAME / "exchanges.json").read_text("utf-8"))


def answer(client, messages):
    """The likeliest tokens: so say the model's own defaults."""
    (choice,) = client.chat.completions.create(model=NAME, messages=messages).choices
    assert choice.finish_reason == "stop"
    return choice.message.content


def streamed(client, messages):
    choices = [chunk.choices[0] for chunk in client.chat.completions.create(model=NAME, messages=messages, stream=True)]
    assert choices[-1].finish_reason == "stop"
    return "".join(choice.delta.content or "" for choice in choices)


@pytest.mark.parametrize("ask", [answer, streamed])
def test_exchanges(client, exchanges, ask):
    for each in exchanges:
        assert ask(client, each["messages"]) == each["answer"]


def test_exchanges_several_at_once(client, exchanges):
    """Whole and streamed, all together: who else is answered changes nothing."""
    asked = [(ask, each) for each in exchanges for ask in (answer, streamed)] * 2
    with ThreadPoolExecutor(len(asked)) as pool:
        told = list(pool.map(lambda each: each[0](client, each[1]["messages"]), asked))
    assert told == [each["answer"] for _, each in asked]


def test_conversations_go_on(client, exchanges):
    """What was said before is in the request: the same question alone has another answer."""
    (long, *_) = [each for each in exchanges if len(each["messages"]) > 3]
    assert answer(client, long["messages"][2:3]) != long["messages"][3]["content"]


def test_readme(client):
    """The chat that README.md shows is the one that people get."""
    asked, shown = re.search(r"/v1/chat/completions.*?-d '(.*?)'.*?\n(.*?)\n", README.read_text("utf-8"), re.S).groups()
    assert f'"content":{json.dumps(answer(client, json.loads(asked)["messages"]))}' in shown


def test_the_context_is_its_own(client):
    """A prompt of more tokens than the model was made for is refused."""
    assert client.models.retrieve(NAME).max_model_len == 512
    with pytest.raises(openai.BadRequestError):
        answer(client, [{"role": "user", "content": "Hello " * 600}])
