"""The OpenAI API as its own client speaks it, with a tree model in the same process: whole answers, and errors.

What the language model must say is computed by `tiny_llm.Oracle`. Streams are in `test_openai_streams.py`, keys in
`test_api_keys.py`, and what is wrong on the wire in `test_hostile_*.py`.
"""

import json

import numpy as np
import openai
import pytest
import requests
import tiny_llm
from openai_service import (  # noqa: F401
    BASES,
    CLOSE,
    MESSAGES,
    TEXT,
    chat,
    client,
    complete,
    connect,
    counts,
    eventually,
    oracle,
    running,
    said,
    sampled,
    service,
)


def offsets(texts):
    return [sum(map(len, texts[:index])) for index in range(len(texts))]


def likeliest(oracle, logprobs, count):
    """Texts and values of the likeliest tokens; of those with the same text the likeliest."""
    found = {}
    for token in np.argsort(-logprobs)[:count]:
        found.setdefault(oracle.token_text(int(token)), logprobs[token])
    return found


# -------------------------------------------------------------------------------------------------------------- models


@pytest.mark.parametrize("base", BASES)
def test_models(service, base):
    (listed,) = connect(service, base).models.list().data
    retrieved = connect(service, base).models.retrieve("tiny")
    for card in (listed, retrieved):
        assert (card.id, card.object, card.max_model_len) == ("tiny", "model", tiny_llm.CONTEXT)


@pytest.mark.parametrize("base", BASES)
def test_unknown_models_are_not_retrieved(service, base):
    with pytest.raises(openai.NotFoundError):
        connect(service, base).models.retrieve("nobody")


def test_one_list_serves_both_protocols(service):
    body = requests.get(f"{service.url}/v1/models").json()
    assert "iris" in body["models"]
    assert body["object"] == "list"
    assert [card["id"] for card in body["data"]] == ["tiny"], "no chat client is to be offered a tree"
    assert requests.get(f"{service.url}/v1/models/iris").json() == {"name": "iris", "ready": True}


# --------------------------------------------------------------------------------------------------------- completions


@pytest.mark.parametrize("base", BASES)
def test_completion(service, oracle, base):
    """Sixteen tokens, unless something else is asked for."""
    reply = complete(connect(service, base), TEXT)
    assert (reply.object, reply.model) == ("text_completion", "tiny")
    (choice,) = reply.choices
    assert choice.text == oracle.decode(said(oracle, 16, TEXT))
    assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "length", None)
    assert counts(reply.usage) == (len(TEXT), 16, len(TEXT) + 16)


def test_prompt_of_tokens(client, oracle):
    """Also of such as no text leads to."""
    long = tiny_llm.vocabulary(tiny_llm.EXTRAS).index("é".encode())
    tokens = [*b"caf", long, oracle.special["<|im_start|>"], 0, 255]
    reply = complete(client, tokens, max_tokens=8)
    assert reply.choices[0].text == oracle.decode(oracle.greedy(tokens, 8))
    assert counts(reply.usage) == (len(tokens), 8, len(tokens) + 8)


@pytest.mark.parametrize("as_tokens", [False, True], ids=["texts", "tokens"])
def test_list_of_prompts(client, oracle, as_tokens):
    texts = ["Hello", TEXT, "<|im_start|>user\nhé"]
    tokens = [oracle.encode(text) for text in texts]
    reply = complete(client, tokens if as_tokens else texts, max_tokens=8)
    assert [choice.index for choice in reply.choices] == [0, 1, 2]
    assert [choice.text for choice in reply.choices] == [oracle.decode(oracle.greedy(each, 8)) for each in tokens]
    assert counts(reply.usage)[:2] == (sum(map(len, tokens)), 24)


def test_logprobs_of_a_completion(client, oracle):
    tokens, new = oracle.encode(TEXT), said(oracle, 8, TEXT)
    expected = oracle.logprobs(tokens + new)[len(tokens) - 1 : -1]
    told = complete(client, TEXT, max_tokens=8, logprobs=3).choices[0].logprobs
    assert told.tokens == [oracle.token_text(token) for token in new]
    assert told.text_offset == offsets(told.tokens)
    assert told.token_logprobs == pytest.approx(expected[range(8), new].tolist(), **CLOSE)
    for row, top in zip(expected, told.top_logprobs, strict=True):
        assert top == pytest.approx(likeliest(oracle, row, 3), **CLOSE)


def test_echo(client, oracle):
    """The prompt comes first, in the logprobs too, where nothing is known of its first token."""
    tokens = oracle.encode(TEXT) + said(oracle, 4, TEXT)
    expected = oracle.logprobs(tokens)[:-1]
    reply = complete(client, TEXT, max_tokens=4, echo=True, logprobs=1)
    told = reply.choices[0].logprobs
    assert reply.choices[0].text == oracle.decode(tokens)
    assert told.tokens == [oracle.token_text(token) for token in tokens]
    assert told.text_offset == offsets(told.tokens)
    assert (told.token_logprobs[0], told.top_logprobs[0]) == (None, None)
    assert told.token_logprobs[1:] == pytest.approx(expected[range(len(expected)), tokens[1:]].tolist(), **CLOSE)
    for row, top in zip(expected, told.top_logprobs[1:], strict=True):
        ((text, value),) = likeliest(oracle, row, 1).items()
        assert top[text] == pytest.approx(value, **CLOSE)
    assert counts(reply.usage) == (len(TEXT), 4, len(TEXT) + 4)


def test_a_token_that_nobody_gets_is_not_counted(service, client):
    def tokens():
        return sampled(service, "vllm:generation_tokens_total", model_name="tiny")

    complete(client, TEXT, max_tokens=2, extra_body={"ignore_eos": True})
    eventually(lambda: running(service), 0)
    before = tokens()
    complete(client, TEXT, max_tokens=0, echo=True)
    complete(client, TEXT, max_tokens=3, extra_body={"ignore_eos": True})
    eventually(tokens, before + 3)


CALL = {"id": "call_1", "type": "function", "function": {"name": "look_up", "arguments": "{}"}}


@pytest.mark.parametrize("lacking", [{"content": None}, {}])
def test_answers_that_call_can_be_sent_back(client, lacking):
    """Their content is null: the template adds texts, and would fail on that."""
    calls = {"role": "assistant", "tool_calls": [CALL]}
    told = [{"role": "tool", "tool_call_id": "call_1", "content": "42"}]
    first, second = (
        chat(client, messages=[*MESSAGES, {**calls, **content}, *told], max_tokens=4)
        for content in (lacking, {"content": ""})
    )
    assert first.choices[0].message.content == second.choices[0].message.content
    assert first.usage.prompt_tokens == second.usage.prompt_tokens


def test_roles_are_the_templates(client, oracle):
    messages = [{"role": "control", "content": "thinking"}, *MESSAGES]
    reply = chat(client, messages=messages, max_tokens=4)
    assert reply.usage.prompt_tokens == len(oracle.encode(oracle.chat_prompt(messages)))


def test_echo_alone(client):
    """As evaluations ask for the probability of a text."""
    reply = complete(client, TEXT, max_tokens=0, echo=True, logprobs=1)
    assert reply.choices[0].text == TEXT
    assert len(reply.choices[0].logprobs.token_logprobs) == len(TEXT)
    assert counts(reply.usage) == (len(TEXT), 0, len(TEXT))


# --------------------------------------------------------------------------------------------------------------- chats


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
def test_chat(service, oracle, base, field):
    reply = chat(connect(service, base), **{field: 24})
    assert (reply.object, reply.model) == ("chat.completion", "tiny")
    (choice,) = reply.choices
    assert (choice.message.role, choice.message.content) == ("assistant", oracle.decode(said(oracle, 24)))
    assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "length", None)
    prompt = len(oracle.encode(oracle.chat_prompt(MESSAGES)))
    assert counts(reply.usage) == (prompt, 24, prompt + 24)


def test_chat_goes_on_to_the_end_of_the_context(client):
    reply = chat(client, extra_body={"ignore_eos": True})
    assert reply.choices[0].finish_reason == "length"
    assert reply.usage.total_tokens == tiny_llm.CONTEXT


def test_logprobs_of_a_chat(client, oracle):
    tokens, new = oracle.encode(oracle.chat_prompt(MESSAGES)), said(oracle, 12)
    expected = oracle.logprobs(tokens + new)[len(tokens) - 1 : -1]
    (choice,) = chat(client, max_tokens=12, logprobs=True, top_logprobs=2).choices
    assert b"".join(bytes(each.bytes) for each in choice.logprobs.content).decode() == choice.message.content
    for token, row, told in zip(new, expected, choice.logprobs.content, strict=True):
        assert (told.token, bytes(told.bytes)) == (oracle.token_text(token), oracle.token_bytes(token))
        assert told.logprob == pytest.approx(row[token], **CLOSE)
        assert [bytes(top.bytes) for top in told.top_logprobs] == [
            oracle.token_bytes(int(top)) for top in np.argsort(-row)[:2]
        ]
        assert [top.logprob for top in told.top_logprobs] == pytest.approx(np.sort(row)[:-3:-1].tolist(), **CLOSE)


def test_logprobs_without_alternatives(client):
    told = chat(client, max_tokens=2, logprobs=True).choices[0].logprobs.content
    assert [each.top_logprobs for each in told] == [[], []]


def test_choices(client):
    """Chance depends on the seed, and differs between choices."""

    def texts(seed):
        wish = {"n": 3, "max_tokens": 16, "temperature": 1, "seed": seed, "extra_body": {"ignore_eos": True}}
        reply = chat(client, **wish)
        assert [choice.index for choice in reply.choices] == [0, 1, 2]
        assert reply.usage.completion_tokens == 48
        return [choice.message.content for choice in reply.choices]

    first = texts(7)
    assert len(set(first)) == 3
    assert texts(7) == first
    assert texts(8) != first


def test_defaults_come_from_the_model(client):
    """From its generation_config.json, as in vLLM."""
    wish = {"messages": MESSAGES, "model": "tiny", "seed": 3, "max_tokens": 24}
    silent, explicit = (
        client.chat.completions.create(**wish, **more) for more in ({}, {"temperature": 0.7, "top_p": 0.9})
    )
    assert silent.choices[0].message.content == explicit.choices[0].message.content
    assert silent.choices[0].message.content != chat(client, max_tokens=24).choices[0].message.content


@pytest.mark.parametrize("include", [False, True])
def test_stop_string(client, oracle, include):
    """It lies across tokens; the one that completes it is the last that is counted."""
    new = said(oracle, 24)
    whole = oracle.decode(new)
    stop = whole[9:12]
    start = whole.index(stop)
    last = next(n for n in range(25) if len(oracle.decode(new[:n])) >= start + 3)
    body = {"include_stop_str_in_output": include}
    reply = chat(client, max_tokens=24, stop=["\0 never", stop], extra_body=body)
    (choice,) = reply.choices
    assert choice.message.content == whole[: start + (3 if include else 0)]
    assert (choice.finish_reason, choice.stop_reason) == ("stop", stop)
    assert reply.usage.completion_tokens == last


def test_stop_token(client, oracle):
    new = said(oracle, 16, TEXT)
    at = new.index(new[6])
    reply = complete(client, TEXT, extra_body={"stop_token_ids": [new[6]]})
    (choice,) = reply.choices
    assert choice.text == oracle.decode(new[:at])
    assert (choice.finish_reason, choice.stop_reason) == ("stop", new[6])
    assert reply.usage.completion_tokens == at + 1


def test_end_of_text(client, oracle):
    """The model's own end is counted, not shown, and no reason that a client gave."""
    reply = chat(client, max_tokens=8, logit_bias={str(oracle.special["<|im_end|>"]): 100})
    (choice,) = reply.choices
    assert (choice.message.content, choice.finish_reason, choice.stop_reason) == ("", "stop", None)
    assert reply.usage.completion_tokens == 1


def test_logit_bias(client):
    assert chat(client, max_tokens=8, logit_bias={str(ord("X")): 100}).choices[0].message.content == "X" * 8


# --------------------------------------------------------------------------------------------------------------- trees


def test_trees_are_described_as_ever(service, iris):
    described = requests.get(f"{service.url}/v2/models/iris").json()
    assert (described["name"], described["versions"]) == ("iris", ["1"])
    assert described["inputs"] and described["outputs"]
    reply = requests.post(f"{service.url}/v1/models/iris:predict", json={"instances": iris.json_rows})
    assert reply.json() == iris.predictions


# -------------------------------------------------------------------------------------------------------------- errors


def refused(server, path, body, status=400):
    """The error of a body that is an object, or bytes as they are."""
    data = body if isinstance(body, bytes) else json.dumps(body)
    reply = requests.post(server.url + path, data=data, headers={"Content-Type": "application/json"}, timeout=60)
    assert reply.status_code == status, reply.text
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"] and error["type"] and error["code"] == status
    return error


FUNCTION = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}
# What is sent besides the model and `MESSAGES`, and the field that is complained about.
WRONG = {
    "no messages": ({"messages": None}, "messages"),
    "empty messages": ({"messages": []}, "messages"),
    "temperature": ({"temperature": 9}, "temperature"),
    "role": ({"messages": [{"role": "wizard!", "content": "hi"}]}, "messages[0].role"),
    "tools": ({"tools": [FUNCTION]}, "tools"),
    "format": ({"response_format": {"type": "xml"}}, "response_format.type"),
    "tokens": ({"max_tokens": "many"}, "max_tokens"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_fields_are_named(service, case):
    more, param = WRONG[case]
    error = refused(service, "/v1/chat/completions", {"model": "tiny", "messages": MESSAGES, **more})
    assert error["param"] == param
    assert param in error["message"]


def test_the_client_knows_the_errors(client):
    with pytest.raises(openai.BadRequestError) as caught:
        chat(client, temperature=9)
    assert caught.value.param == "temperature"
    for call in (lambda: chat(client, model="nobody"), lambda: complete(client, TEXT, model="nobody")):
        with pytest.raises(openai.NotFoundError, match="nobody"):
            call()


MALFORMED = {
    "empty": b"",
    "cut off": b'{"model": "tiny", "prompt": ',
    "list": b"[]",
    "more": b'{"model": "tiny", "prompt": "a"} x',
    "no UTF-8": b'{"model": "tiny", "prompt": "\xff"}',
    "half a surrogate": b'{"model": "tiny", "prompt": "\\ud83d"}',
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_bodies(service, case):
    for base in BASES:
        refused(service, f"{base}/completions", MALFORMED[case])


def test_prompts_longer_than_the_context(service):
    """The message says how long the prompt is, and how long it may be (with or without a token of the answer)."""
    error = refused(service, "/v1/completions", {"model": "tiny", "prompt": [65] * 600})
    assert "600" in error["message"]
    assert "512" in error["message"] or "511" in error["message"]
    long = [{"role": "user", "content": "a" * 600}]
    refused(service, "/v1/chat/completions", {"model": "tiny", "messages": long})


def test_trees_do_not_chat(service):
    body = {"model": "iris", "messages": MESSAGES}
    reply = requests.post(f"{service.url}/v1/chat/completions", json=body)
    assert reply.status_code in (400, 404)
    error = refused(service, "/v1/chat/completions", body, reply.status_code)
    assert "iris" in error["message"] and "language model" in error["message"]


# -------------------------------------------------------------------------------------------------------------- tokens


def post(server, path, **body):
    reply = requests.post(server.url + path, json={"model": "tiny", **body})
    assert reply.status_code == 200, reply.text
    return reply.json()


def test_tokenize_and_back(service, oracle):
    told = post(service, "/tokenize", prompt="héllo")
    assert (told["count"], told["max_model_len"]) == (6, tiny_llm.CONTEXT)
    assert told["tokens"] == oracle.encode("héllo")
    assert post(service, "/detokenize", tokens=told["tokens"]) == {"prompt": "héllo"}


def test_tokenize_a_conversation(service, oracle):
    for prompted in (True, False):
        told = post(service, "/tokenize", messages=MESSAGES, add_generation_prompt=prompted)
        assert told["tokens"] == oracle.encode(oracle.chat_prompt(MESSAGES, prompted))
        assert told["count"] == len(told["tokens"])


def test_tokens_that_the_model_does_not_have(service):
    error = refused(service, "/detokenize", {"model": "tiny", "tokens": [65, 4096]})
    assert error["param"] == "tokens" and "4096" in error["message"]


def test_tokens_of_unknown_models(service):
    refused(service, "/tokenize", {"model": "nobody", "prompt": "a"}, 404)
    refused(service, "/detokenize", {"model": "nobody", "tokens": [1]}, 404)
