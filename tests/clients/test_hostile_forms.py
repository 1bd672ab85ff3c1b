"""Forms of answers that mean harm: their compiler recurses until the stack ends, computes for hours or takes all memory.

Each is its request's 400, which says what it takes too much of; the server lives, keeps its memory, leaves no process
behind, and compiles the forms of others meanwhile.
"""

import concurrent.futures
import json
import pathlib
import time

import pytest
import requests
from openai_service import serving
from wire import MIB

# What two forms that were compiled may leave behind: lexers, the vocabulary as a trie, an allocator's rest.
ROOM = 192 * MIB


@pytest.fixture(scope="module")
def service(binary, models, tmp_path_factory):
    with serving(binary, models, tmp_path_factory.mktemp("forms")) as server:
        yield server


def chain(link, count):
    """Schemas each of which refers to the next one."""
    rules = {f"n{i}": link({"$ref": f"#/$defs/n{i + 1}"}) for i in range(count)}
    return {"$defs": {**rules, f"n{count}": {"type": "null"}}, "$ref": "#/$defs/n0"}


def has(following):
    return {"type": "object", "properties": {"x": following}}


def rules(link, count, letter="r"):
    """Rules of a grammar each of which names the next one."""
    lines = [f"{letter}{i}: " + link.format(f"{letter}{i + 1}") for i in range(count)]
    return "\n".join([f"start: {letter}0", *lines, f'{letter}{count}: "a"'])


# What each takes too much of. Those that do not end reach the end of their time or of their memory first.
STACK, ENDLESS = ("MiB of stack",), ("s to compile", "MiB of memory")
# Chains as long as a form may be, or half of that.
FORMS = {
    "objects": ({"json": chain(has, 2000)}, STACK),
    "references": ({"json": chain(lambda following: following, 5000)}, STACK),
    "anyOf": ({"json": chain(lambda following: {"anyOf": [following]}, 3500)}, STACK),
    "anyOf with another": ({"json": chain(lambda following: {"anyOf": [following, {"type": "null"}]}, 2500)}, STACK),
    "allOf": ({"json": chain(lambda following: {"allOf": [following]}, 3500)}, STACK),
    "rules": ({"grammar": rules("{}", 10_000)}, STACK),
    "rules with text": ({"grammar": rules('"a" {} "b"', 8000)}, STACK),
    "terminals": ({"grammar": rules("{}", 10_000, "R")}, STACK),
    "schema in a grammar": ({"grammar": "start: %json " + json.dumps(chain(has, 2000))}, STACK),
    "all of many": ({"grammar": "start: A\nA: " + " & ".join(f"/.*a{i}.*/" for i in range(30))}, ENDLESS),
    "stars": ({"regex": "(a*b)*" * 20_000}, ENDLESS),
}


def ask(service, form, headers=None, **more):
    body = {"model": "tiny", "max_tokens": 5, "prompt": "a", "structured_outputs": form, **more}
    return requests.post(service.url + "/v1/completions", json=body, headers=headers, timeout=60)


def serves(service):
    reply = ask(service, {"regex": "[0-9]{3}"}, max_tokens=20)
    assert reply.status_code == 200, reply.text
    assert len(reply.json()["choices"][0]["text"]) == 3


def held(service):
    pages = pathlib.Path(f"/proc/{service.child.pid}/statm").read_text().split()[1]
    return int(pages) * 4096


def children(service):
    tasks = pathlib.Path(f"/proc/{service.child.pid}/task").iterdir()
    return [child for task in tasks for child in (task / "children").read_text().split()]


def refused(reply, words):
    assert reply.status_code == 400, reply.text[:500]
    assert any(word in reply.text for word in words), reply.text[:500]


def unharmed(service, before):
    assert service.child.poll() is None, service.tail()
    serves(service)
    assert children(service) == []
    assert held(service) < before + ROOM


@pytest.mark.parametrize("name", FORMS)
def test_a_form_that_harms_is_that_requests_problem(service, name):
    form, words = FORMS[name]
    serves(service)
    before = held(service)
    began = time.monotonic()
    refused(ask(service, form), words)
    assert time.monotonic() - began < 10
    unharmed(service, before)


SCHEMA = {"type": "object", "properties": {"a": {"$ref": "#/$defs/n0"}}, "$defs": chain(has, 1500)["$defs"]}
MESSAGES = [{"role": "user", "content": "a"}]
WAYS = {
    "response_format": ("/v1/chat/completions", {
        "messages": MESSAGES,
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}}),
    "tools": ("/v1/chat/completions", {
        "messages": MESSAGES, "tool_choice": "required",
        "tools": [{"type": "function", "function": {"name": "g", "parameters": SCHEMA}}]}),
    "Anthropic's tools": ("/v1/messages", {
        "messages": MESSAGES, "tool_choice": {"type": "any"}, "tools": [{"name": "g", "input_schema": SCHEMA}]}),
    "Triton's generate": ("/v2/models/tiny/generate", {"text_input": "a", "structured_outputs": {"json": SCHEMA}}),
}


@pytest.mark.parametrize("way", WAYS)
def test_whichever_way_it_comes(service, way):
    path, body = WAYS[way]
    serves(service)
    before = held(service)
    reply = requests.post(service.url + path, json={"model": "tiny", "max_tokens": 5, **body}, timeout=60)
    refused(reply, STACK)
    unharmed(service, before)


def test_forms_of_others_are_compiled_meanwhile(service):
    """Four that take their time, on two turns: a harmless one waits for its own, and is not sent away."""
    serves(service)
    before = held(service)
    form, words = FORMS["stars"]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        harmful = [pool.submit(ask, service, form) for _ in range(4)]
        harmless = [pool.submit(ask, service, {"regex": f"[0-9]{{{count}}}"}, max_tokens=20) for count in range(2, 6)]
        for count, reply in enumerate(harmless, 2):
            assert reply.result().status_code == 200, reply.result().text
            assert len(reply.result().json()["choices"][0]["text"]) == count
        for reply in harmful:
            refused(reply.result(), words)
    unharmed(service, before)


def test_a_deadline_ends_the_wait(service):
    reply = ask(service, FORMS["stars"][0], headers={"x-request-timeout-ms": "300"})
    assert reply.status_code == 504, reply.text


ORDINARY = {
    "schema": {"json": chain(has, 30)},
    "itself": {"json": {"$defs": {"n": has({"$ref": "#/$defs/n"})}, "$ref": "#/$defs/n"}},
    "nested": {"json": has(has(has(has({"type": "array", "items": {"enum": ["a", "b"]}}))))},
    "grammar": {"grammar": rules('"a" {} "b"', 100)},
    "both": {"grammar": "start: A\nA: /.*a.*/ & /.*b.*/"},
}


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_forms_are_followed(service, name):
    # The second time it is known.
    first, second = (ask(service, ORDINARY[name], temperature=0) for _ in range(2))
    assert first.status_code == second.status_code == 200, first.text
    assert first.json()["choices"][0]["text"] == second.json()["choices"][0]["text"]
