"""Answers that keep to a form: JSON, schemas, regular expressions, choices, grammars.

The model's weights are random, so that what it says keeps to nothing of itself.
"""

import asyncio
import json
import re

import openai
import pydantic
import pytest
import requests
from openai_service import TEXT, chat, client, complete, oracle, service  # noqa: F401

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "kind": {"enum": ["cat", "dog"]},
        "tags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
    },
    "required": ["name", "age", "kind", "tags"],
    "additionalProperties": False,
}




def fits(value):
    assert set(value) == {"name", "age", "kind", "tags"}
    assert isinstance(value["name"], str) and len(value["name"]) <= 8
    assert 0 <= value["age"] <= 120 and value["kind"] in ("cat", "dog")
    assert len(value["tags"]) <= 3 and all(tag in (True, False) for tag in value["tags"])


@pytest.mark.parametrize("seed", range(4))
def test_a_schema_is_kept_to(client, seed):
    form = {"type": "json_schema", "json_schema": {"name": "animal", "schema": SCHEMA, "strict": True}}
    reply = chat(client, response_format=form, temperature=1.0, seed=seed, max_tokens=400)
    assert reply.choices[0].finish_reason == "stop"
    fits(json.loads(reply.choices[0].message.content))


def test_a_stream_keeps_to_it_too_and_so_does_each_choice(client):
    form = {"type": "json_schema", "json_schema": {"name": "animal", "schema": SCHEMA}}
    texts = ["", "", ""]
    for chunk in chat(client, response_format=form, temperature=1.0, seed=5, n=3, max_tokens=400, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    for text in texts:
        fits(json.loads(text))
    assert len(set(texts)) > 1


def test_models_of_pydantic(client):
    class Legs(pydantic.BaseModel):
        legs: int = pydantic.Field(ge=0, le=9)
        wild: bool

    reply = client.chat.completions.parse(
        model="tiny", messages=[{"role": "user", "content": "?"}], response_format=Legs, temperature=1.0, seed=1)
    assert 0 <= reply.choices[0].message.parsed.legs <= 9


def test_any_object(client):
    reply = chat(client, response_format={"type": "json_object"}, temperature=0.5, seed=3, max_tokens=60)
    text = reply.choices[0].message.content
    assert text.startswith("{")
    if reply.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(text), dict)


FORMS = {
    "regex": ({"regex": "[a-c]{3}-[0-9]{2}"}, re.compile("[a-c]{3}-[0-9]{2}")),
    "choice": ({"choice": ["yes", "no", 'may"be\n']}, re.compile('yes|no|may"be\n')),
    "odd choice": ({"choice": ["a\x7fb"]}, re.compile("a\x7fb")),
    "number": ({"json": {"enum": [(1 << 63) - 1, 1 << 60]}}, re.compile("9223372036854775807|1152921504606846976")),
    "format": ({"json": {"type": "string", "format": "path", "maxLength": 3}}, re.compile('".*"')),
    "reference": ({"json": {"$ref": "#/$defs/a~0b%20c", "$defs": {"a~b c": {"const": 5}}}}, re.compile("5")),
    "grammar": ({"grammar": 'start: "(" start ")" | "x"'}, re.compile(r"\(*x\)*")),
    "json": ({"json": {"type": "integer", "minimum": 10, "maximum": 99}}, re.compile("[1-9][0-9]")),
    "json as text": ({"json": '{"const": "\u00e9\U0001f642"}'}, re.compile('"(é|\\\\u00e9)(🙂|.*)"')),
}


@pytest.mark.parametrize("case", FORMS)
def test_forms_of_vllm(client, case):
    form, pattern = FORMS[case]
    reply = complete(client, TEXT, max_tokens=200, temperature=1.0, seed=2, extra_body={"structured_outputs": form})
    assert reply.choices[0].finish_reason == "stop"
    assert pattern.fullmatch(reply.choices[0].text), reply.choices[0].text


def test_text_is_text(client, oracle):
    plain = chat(client, max_tokens=8)
    stated = chat(client, max_tokens=8, response_format={"type": "text"})
    assert stated.choices[0].message.content == plain.choices[0].message.content


@pytest.mark.parametrize("much", [{"top_p": 1e-30}, {"temperature": 1e-30}, {"extra_body": {"min_p": 1.0}}])
def test_one_token_that_is_left_is_taken(client, much):
    more = {"structured_outputs": {"regex": "(a+)+b"}, **much.get("extra_body", {})}
    reply = chat(client, **{"temperature": 1.0, **much, "max_tokens": 4, "extra_body": more})
    assert set(reply.choices[0].message.content) <= {"a", "b"}


def test_an_answer_that_cannot_go_on_harms_no_other(client):
    """All that the form allows is banned: that answer fails, and those computed in the same steps do not."""
    async def ask():
        async with openai.AsyncOpenAI(base_url=client.base_url, api_key="none", max_retries=0) as many:
            wrong = {"structured_outputs": {"regex": "[ab]+"}, "bad_words": ["a", "b"]}
            calls = [many.completions.create(model="tiny", prompt=f"{number} is", max_tokens=40, extra_body=body)
                     for number in range(12) for body in ({"ignore_eos": True}, wrong)]
            return await asyncio.gather(*calls, return_exceptions=True)

    answers = asyncio.run(ask())
    assert all(answer.usage.completion_tokens == 40 for answer in answers[::2])
    assert all(isinstance(answer, openai.BadRequestError) for answer in answers[1::2])


# Tokens are bytes; 262 is the model's end of a text.
EXCLUSIVE = {
    "form, allowed": {"structured_outputs": {"regex": "[0-9]+"}, "allowed_token_ids": [0, 1, 2]},
    "form, banned": {"structured_outputs": {"choice": ["yes"]}, "bad_words": ["y"]},
    "allowed, banned": {"allowed_token_ids": [ord("y")], "bad_words": ["y"]},
    "allowed, min_tokens": {"allowed_token_ids": [262], "min_tokens": 2},
}


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("case", EXCLUSIVE)
def test_wishes_that_exclude_each_other_are_named(client, case, temperature):
    with pytest.raises(openai.BadRequestError, match="no token is left: .* exclude each other"):
        complete(client, TEXT, max_tokens=8, temperature=temperature, extra_body=EXCLUSIVE[case])


@pytest.mark.parametrize("more", [{"min_tokens": 6}, {"allowed_token_ids": [*b"yes"]}])
def test_a_complete_form_ends_the_answer(client, more):
    """Nothing else could come."""
    reply = complete(client, TEXT, max_tokens=8, extra_body={"structured_outputs": {"choice": ["yes"]}, **more})
    assert (reply.choices[0].text, reply.choices[0].finish_reason) == ("yes", "stop")


BIG = 1234567890123456789
WRONG = {
    "regex": ("structured_outputs", {"structured_outputs": {"regex": "([a"}}),
    "grammar": ("structured_outputs", {"structured_outputs": {"grammar": "start: nowhere"}}),
    "schema": ("response_format", {"response_format": {
        "type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nothing"}}}}),
    "reference": ("response_format", {"response_format": {
        "type": "json_schema", "json_schema": {"name": "x", "schema": {"$ref": "#/$defs/lost"}}}}),
    "nothing fits": ("response_format", {"response_format": {
        "type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "integer", "minimum": 3, "maximum": 2}}}}),
    "number": ("response_format", {"response_format": {
        "type": "json_schema", "json_schema": {"name": "x", "schema": {"items": {"const": BIG}}}}}),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_followed_is_that_requests_problem(service, client, case):
    param, body = WRONG[case]
    messages = [{"role": "user", "content": "hi"}]
    reply = requests.post(
        service.url + "/v1/chat/completions", json={"model": "tiny", "messages": messages, **body}, timeout=60)
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["param"] == param
    assert chat(client, max_tokens=3).usage.completion_tokens == 3


def test_a_number_that_cannot_be_kept_is_told_with_its_place(client):
    with pytest.raises(openai.BadRequestError, match=f"a.const is {BIG}, which cannot be kept to the digit"):
        complete(client, TEXT, extra_body={"structured_outputs": {"json": {"properties": {"a": {"const": BIG}}}}})


@pytest.mark.parametrize("seed", range(6))
def test_a_number_above_0_is_not_0(client, seed):
    more = {"structured_outputs": {"json": {"type": "number", "exclusiveMinimum": 0, "maximum": 0.05}}}
    reply = complete(client, TEXT, temperature=1.0, seed=seed, max_tokens=20, extra_body=more)
    if reply.choices[0].finish_reason == "stop":
        assert 0 < float(reply.choices[0].text) <= 0.05


def test_objects_of_many_properties(client):
    properties = {f"p{number}": {"type": "null"} for number in range(400)}
    schema = {"type": "object", "properties": properties, "additionalProperties": False}
    more = {"structured_outputs": {"json": schema}}
    reply = complete(client, TEXT, temperature=1.0, seed=3, max_tokens=120, extra_body=more)
    assert reply.choices[0].text.lstrip().startswith("{")


def test_forms_that_ask_for_much_are_refused_in_time(service, client):
    deep = {"type": "object", "properties": {f"p{i}": {"type": "string", "pattern": "(a|b|c){1,200}x?" * 8}
                                             for i in range(200)}}
    body = {"model": "tiny", "max_tokens": 3, "messages": [{"role": "user", "content": "hi"}],
            "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": deep}}}
    reply = requests.post(service.url + "/v1/chat/completions", json=body, timeout=60)
    assert reply.status_code in (200, 400), reply.text
    assert chat(client, max_tokens=3).usage.completion_tokens == 3


def test_the_client_knows_the_error(client):
    with pytest.raises(openai.BadRequestError):
        complete(client, TEXT, extra_body={"structured_outputs": {"regex": "("}})
