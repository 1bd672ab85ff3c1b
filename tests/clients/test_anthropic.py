"""Anthropic's Messages API as its own client speaks it: whole messages, streams, errors. Tools and thoughts are in
`test_anthropic_tools.py`.

What the model must say is computed by `tiny_llm.Oracle`. The client has no argument for temperatures: they are sent
beside the others.
"""

import asyncio
import json

import anthropic
import openai_service
import pytest
import requests
from conftest import starter, stop_all
from openai_service import LONG, long_service, oracle, sampled, service, wait_for  # noqa: F401
from test_openai import MALFORMED

USER = [{"role": "user", "content": "Once upon a time"}]
SYSTEM = "Be brief."
COUNT = 24
GREEDY = {"model": "tiny", "max_tokens": COUNT, "messages": USER, "extra_body": {"temperature": 0}}


def connect(server, kind=anthropic.Anthropic, key="none"):
    # Without retries: what fails once is to be seen.
    return kind(base_url=server.url, api_key=key, max_retries=0, timeout=60)


@pytest.fixture(scope="module")
def client(service):
    return connect(service)


def prompt(oracle, messages, system=None):
    """Tokens of a conversation."""
    before = [{"role": "system", "content": system}] if system else []
    return oracle.encode(oracle.chat_prompt(before + messages))


def answer(oracle, messages=USER, system=None, count=COUNT):
    return oracle.decode(oracle.greedy(prompt(oracle, messages, system), count))


def text(message):
    (block,) = message.content
    assert block.type == "text"
    return block.text


def read(usage):
    """Tokens of the prompt, whether or not the cache had them."""
    assert usage.cache_creation_input_tokens == 0
    return usage.input_tokens + usage.cache_read_input_tokens


# ------------------------------------------------------------------------------------------------------------ messages


def test_a_message(client, oracle):
    reply = client.messages.create(**GREEDY)
    assert (reply.type, reply.role, reply.model) == ("message", "assistant", "tiny")
    assert text(reply) == answer(oracle)
    assert (reply.stop_reason, reply.stop_sequence) == ("max_tokens", None)
    assert (read(reply.usage), reply.usage.output_tokens) == (len(prompt(oracle, USER)), COUNT)
    assert reply.id.startswith("msg_")
    assert reply.id != client.messages.create(**GREEDY).id


def test_models(client):
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(anthropic.NotFoundError):
        client.models.retrieve("nobody")


SYSTEMS = {
    "text": SYSTEM,
    "block": [{"type": "text", "text": SYSTEM, "cache_control": {"type": "ephemeral"}}],
    "blocks": [{"type": "text", "text": "Be brief."}, {"type": "text", "text": "Be kind."}],
}


@pytest.mark.parametrize("case", SYSTEMS)
def test_system(client, oracle, case):
    system = SYSTEM + ("\nBe kind." if case == "blocks" else "")
    reply = client.messages.create(**GREEDY, system=SYSTEMS[case])
    assert text(reply) == answer(oracle, system=system)
    counted = client.messages.count_tokens(model="tiny", messages=USER, system=SYSTEMS[case])
    assert counted.input_tokens == read(reply.usage) == len(prompt(oracle, USER, system))


def block(words):
    return {"type": "text", "text": words}


TALKS = {
    "turns": ([*USER, {"role": "assistant", "content": "Hm."}, {"role": "user", "content": "Go on"}],) * 2,
    "blocks": (
        [{"role": "user", "content": [block("Once"), block("upon")]}, {"role": "assistant", "content": [block("Hm.")]},
         {"role": "user", "content": [block("a time")]}],
        [{"role": "user", "content": "Once\nupon"}, {"role": "assistant", "content": "Hm."},
         {"role": "user", "content": "a time"}],
    ),
    "one after another": (
        [*USER, {"role": "user", "content": [block("Go"), block("on")]}, {"role": "assistant", "content": "Hm."},
         {"role": "assistant", "content": [block("So.")]}, {"role": "user", "content": "Yes"}],
        [{"role": "user", "content": "Once upon a time\nGo\non"}, {"role": "assistant", "content": "Hm.\nSo."},
         {"role": "user", "content": "Yes"}],
    ),
    "said by the system in between": ([*USER, {"role": "system", "content": "Hurry."}],) * 2,
}


@pytest.mark.parametrize("case", TALKS)
def test_conversations(client, oracle, case):
    messages, plain = TALKS[case]
    assert text(client.messages.create(**GREEDY | {"messages": messages})) == answer(oracle, plain)
    counted = client.messages.count_tokens(model="tiny", messages=messages)
    assert counted.input_tokens == len(prompt(oracle, plain))


def test_an_answer_that_has_begun(client, oracle):
    """The model goes on from a last message of the assistant."""
    begun = "The best answer is ("
    reply = client.messages.create(**GREEDY | {"messages": [*USER, {"role": "assistant", "content": begun}]})
    tokens = prompt(oracle, USER) + oracle.encode(begun)
    assert text(reply) == oracle.decode(oracle.greedy(tokens, COUNT))


def test_stop_sequences(client, oracle):
    whole = answer(oracle)
    stop = whole[9:12]
    reply = client.messages.create(**GREEDY, stop_sequences=["\0 never", stop])
    assert text(reply) == whole[: whole.index(stop)]
    assert (reply.stop_reason, reply.stop_sequence) == ("stop_sequence", stop)


def test_how_tokens_are_chosen(client, oracle):
    def say(**more):
        return text(client.messages.create(**GREEDY | {"extra_body": more}))

    assert say(temperature=1, top_k=1) == say(temperature=1, top_p=1e-6) == answer(oracle)
    assert len({say(temperature=1) for _ in range(3)}) == 3
    # Without a word, as the model's generation_config.json says.
    assert len({text(client.messages.create(model="tiny", max_tokens=COUNT, messages=USER)) for _ in range(3)}) == 3


def test_what_other_servers_need_is_no_error(client, oracle):
    """Among it what the client sends for the beta API."""
    metadata, fast = {"user_id": "me"}, {"speed": "fast", "service_tier": "standard_only"}
    assert text(client.messages.create(**GREEDY, metadata=metadata, **fast)) == answer(oracle)
    beta = client.beta.messages.create(**GREEDY, betas=["context-1m-2025-08-07"], cache_control={"type": "ephemeral"})
    assert text(beta) == answer(oracle)


def test_prompts_are_found_in_the_cache(client, oracle):
    messages = [{"role": "user", "content": "the more the merrier " * 8}]
    first, again = (client.messages.create(**GREEDY | {"messages": messages}) for _ in range(2))
    assert first.usage.cache_read_input_tokens < again.usage.cache_read_input_tokens
    assert read(first.usage) == read(again.usage) == len(prompt(oracle, messages))
    assert text(first) == text(again)


# ------------------------------------------------------------------------------------------------------------- streams


def test_events_in_their_order(client, oracle):
    """But for pings, which the client keeps to itself."""
    start, begin, *deltas, end, over, stop = client.messages.create(**GREEDY, stream=True)
    assert [each.type for each in (start, begin, end, over, stop)] == [
        "message_start", "content_block_start", "content_block_stop", "message_delta", "message_stop"]
    assert (start.message.role, start.message.model, start.message.content) == ("assistant", "tiny", [])
    assert (start.message.stop_reason, start.message.usage.output_tokens) == (None, 0)
    assert read(start.message.usage) == read(over.usage) == len(prompt(oracle, USER))
    assert (begin.index, begin.content_block.type, begin.content_block.text) == (0, "text", "")
    assert {(delta.type, delta.index, delta.delta.type) for delta in deltas} == {
        ("content_block_delta", 0, "text_delta")}
    assert len(deltas) > COUNT / 2
    assert "".join(delta.delta.text for delta in deltas) == answer(oracle)
    assert (over.delta.stop_reason, over.delta.stop_sequence, over.usage.output_tokens) == ("max_tokens", None, COUNT)


def test_events_as_they_are_written(service):
    body = {**GREEDY, "stream": True, "temperature": 0}
    del body["extra_body"]
    reply = requests.post(f"{service.url}/v1/messages", json=body, timeout=60)
    assert reply.headers["Content-Type"].split(";")[0] == "text/event-stream"
    *events, nothing = reply.content.decode().split("\n\n")
    assert nothing == ""
    for event in events:
        name, data = event.split("\n")
        assert name == "event: " + json.loads(data.removeprefix("data: "))["type"]
    assert [event.split("\n")[0] for event in events[:3]] == [
        "event: message_start", "event: ping", "event: content_block_start"]
    assert events[-1] == 'event: message_stop\ndata: {"type":"message_stop"}'


def test_the_helper_puts_a_stream_together(client, oracle):
    stop = answer(oracle)[9:12]
    for wish in ({}, {"stop_sequences": [stop]}):
        whole = client.messages.create(**GREEDY, **wish)
        with client.messages.stream(**GREEDY, **wish) as stream:
            assert "".join(stream.text_stream) == text(whole)
            final = stream.get_final_message()
        assert text(final) == text(whole)
        assert (final.stop_reason, final.stop_sequence) == (whole.stop_reason, whole.stop_sequence)
        assert (read(final.usage), final.usage.output_tokens) == (read(whole.usage), whole.usage.output_tokens)


def test_many_at_a_time(service, oracle):
    prompts = [[{"role": "user", "content": f"{'the more ' * (number % 3)}{number}"}] for number in range(8)]

    async def whole(many, messages):
        return text(await many.messages.create(**GREEDY | {"messages": messages}))

    async def streamed(many, messages):
        async with many.messages.stream(**GREEDY | {"messages": messages}) as stream:
            return "".join([piece async for piece in stream.text_stream])

    async def together():
        async with connect(service, anthropic.AsyncAnthropic) as many:
            calls = [call(many, messages) for messages in prompts for call in (whole, streamed)]
            return await asyncio.gather(*calls)

    told = asyncio.run(together())
    assert told[::2] == told[1::2] == [answer(oracle, messages) for messages in prompts]


def test_a_closed_stream_is_cancelled(long_service):
    """And its blocks are free."""
    wish = GREEDY | {"max_tokens": LONG}
    with connect(long_service).messages.stream(**wish) as stream:
        for _, _ in zip(range(3), stream.text_stream):
            pass
        wait_for(long_service, 1)
    wait_for(long_service, 0)
    assert sampled(long_service, "vllm:kv_cache_usage_perc", model_name="tiny") == 0


def test_who_does_not_wait_is_cancelled(long_service):
    body = {"model": "tiny", "max_tokens": LONG, "messages": USER, "temperature": 0}
    with pytest.raises(requests.Timeout):
        requests.post(f"{long_service.url}/v1/messages", json=body, timeout=1)
    wait_for(long_service, 0)


def test_an_error_ends_a_stream(long_service):
    """Here, that its time is over."""
    wish = GREEDY | {"max_tokens": LONG, "extra_headers": {"X-Request-Timeout-Ms": "300"}}
    told = []
    with pytest.raises(anthropic.APIStatusError, match="deadline") as caught:
        told.extend(connect(long_service).messages.create(**wish, stream=True))
    assert caught.value.body["error"]["type"] == "timeout_error"
    assert told[0].type == "message_start" and told[-1].type == "content_block_delta"


# -------------------------------------------------------------------------------------------------------------- errors


def refused(server, body, status=400, path="/v1/messages"):
    """The error of a body that is an object, or bytes as they are."""
    data = body if isinstance(body, bytes) else json.dumps(body)
    reply = requests.post(server.url + path, data=data, headers={"Content-Type": "application/json"}, timeout=60)
    assert reply.status_code == status, reply.text
    told = reply.json()
    assert told["type"] == "error" and set(told["error"]) == {"type", "message"}
    return told["error"]


def asks(*blocks):
    return {"messages": [{"role": "user", "content": list(blocks)}]}


PICTURE = {"type": "base64", "media_type": "image/png", "data": "aGk="}
TOOL = {"name": "look_up", "input_schema": {"type": "object"}}
# What is sent besides the rest, and the field that is complained about.
WRONG = {
    "no model": ({"model": None}, "model"),
    "no max_tokens": ({"max_tokens": None}, "max_tokens"),
    "some tokens": ({"max_tokens": "many"}, "max_tokens"),
    "fewer than none": ({"max_tokens": -1}, "max_tokens"),
    "no messages": ({"messages": None}, "messages"),
    "empty messages": ({"messages": []}, "messages"),
    "text for messages": ({"messages": "hi"}, "messages"),
    "role": ({"messages": [{"role": "wizard", "content": "hi"}]}, "messages[0].role"),
    "no content": ({"messages": [{"role": "user"}]}, "messages[0].content"),
    "image": (asks({"type": "image", "source": PICTURE}), "messages[0].content[0].type"),
    "document": (asks(block("see"), {"type": "document", "source": PICTURE}), "messages[0].content[1].type"),
    "unknown block": (asks({"type": "smell"}), "messages[0].content[0].type"),
    "call by the user": (asks({"type": "tool_use", "id": "a", "name": "b", "input": {}}), "messages[0].content[0]"),
    "result of no call": (asks({"type": "tool_result", "content": "b"}), "messages[0].content[0].tool_use_id"),
    "image in a result": (
        asks({"type": "tool_result", "tool_use_id": "a", "content": [{"type": "image", "source": PICTURE}]}),
        "messages[0].content[0].content[0].type",
    ),
    "system": ({"system": 3}, "system"),
    "image of the system": ({"system": [{"type": "image", "source": PICTURE}]}, "system[0].type"),
    "temperature": ({"temperature": 1.5}, "temperature"),
    "stop sequence": ({"stop_sequences": [3]}, "stop_sequences[0]"),
    "stream": ({"stream": "yes"}, "stream"),
    "thinking": ({"thinking": {"type": "hard"}}, "thinking.type"),
    "short thoughts": ({"thinking": {"type": "enabled", "budget_tokens": 3}}, "thinking.budget_tokens"),
    "server tool": ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
    "no schema": ({"tools": [{"name": "look_up"}]}, "tools[0].input_schema"),
    "name of a tool": ({"tools": [TOOL | {"name": "look up"}]}, "tools[0].name"),
    "two tools of a name": ({"tools": [TOOL, TOOL]}, "tools[1].name"),
    "choice without tools": ({"tool_choice": {"type": "any"}}, "tool_choice"),
    "choice of no tool": ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "b"}}, "tool_choice.name"),
    "unknown choice": ({"tools": [TOOL], "tool_choice": {"type": "some"}}, "tool_choice.type"),
    "tools of a server": ({"mcp_servers": [{"type": "url", "url": "http://a", "name": "b"}]}, "mcp_servers"),
    "container": ({"container": "a"}, "container"),
    "format": ({"output_config": {"format": {"type": "xml"}}}, "output_config.format.type"),
    "no schema to keep to": ({"output_config": {"format": {"type": "json_schema", "schema": {"type": "nothing"}}}},
                             "output_config.format"),
    "effort": ({"output_config": {"effort": "none"}}, "output_config.effort"),
    "too long": (asks(block("a" * 600)), "512"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_fields_are_named(service, case):
    more, named = WRONG[case]
    body = {"model": "tiny", "max_tokens": 3, "messages": USER, **more}
    error = refused(service, {name: value for name, value in body.items() if value is not None})
    assert error["type"] == "invalid_request_error"
    assert named in error["message"]


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_bodies(service, case, path):
    assert refused(service, MALFORMED[case], path=path)["type"] == "invalid_request_error"


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_wrong_methods(service, method, path):
    reply = requests.request(method, service.url + path, timeout=60)
    assert (reply.status_code, reply.headers["Allow"]) == (405, "POST")
    error = {"type": "invalid_request_error", "message": "Method Not Allowed"}
    assert reply.json() == {"type": "error", "error": error}


@pytest.mark.parametrize("model", ["nobody", "iris"])
def test_models_that_do_not_talk(service, model):
    for path in ("/v1/messages", "/v1/messages/count_tokens"):
        status = 404 if model == "nobody" else 400
        error = refused(service, {"model": model, "max_tokens": 3, "messages": USER}, status, path)
        assert error["type"] == ("not_found_error" if model == "nobody" else "invalid_request_error")
        assert model in error["message"]


def test_the_client_knows_the_errors(client):
    with pytest.raises(anthropic.NotFoundError, match="nobody"):
        client.messages.create(**GREEDY | {"model": "nobody"})
    for stream in (False, True):
        with pytest.raises(anthropic.BadRequestError, match="temperature") as caught:
            client.messages.create(**GREEDY | {"extra_body": {"temperature": 9}}, stream=stream)
    assert caught.value.body["error"]["type"] == "invalid_request_error"
    with pytest.raises(anthropic.NotFoundError):
        client.messages.count_tokens(model="nobody", messages=USER)


def test_counting_needs_no_max_tokens_and_forgives_nothing_else(service):
    told = refused(service, {"model": "tiny", "messages": []}, path="/v1/messages/count_tokens")
    assert "messages" in told["message"]


def test_keys(binary, service, tmp_path):
    """The client shows its key as x-api-key."""
    (tmp_path / "keys").write_text("correct-horse\n")
    models = service.log.parent / "models" / "tiny"
    start, started = starter(binary, tmp_path)
    listen = ["--http-port", "{http}", "--grpc-port", "{grpc}"]
    guarded = start("serve", "--model-dir", models, *listen, "--api-keys-file", tmp_path / "keys")
    try:
        with pytest.raises(anthropic.AuthenticationError):
            connect(guarded, key="wrong").messages.create(**GREEDY)
        with pytest.raises(anthropic.AuthenticationError) as caught:
            connect(guarded, key="wrong").messages.create(**GREEDY, stream=True)
        assert caught.value.body
        mine = connect(guarded, key="correct-horse")
        assert mine.messages.create(**GREEDY).usage.output_tokens == COUNT
        by_token = anthropic.Anthropic(base_url=guarded.url, auth_token="correct-horse", max_retries=0)
        assert by_token.messages.count_tokens(model="tiny", messages=USER).input_tokens > 0
        stop_all(started)
    finally:
        guarded.kill()


def test_openai_says_the_same(service, client):
    """One conversation, two protocols, one answer."""
    asked = openai_service.connect(service).chat.completions.create(
        model="tiny", max_tokens=COUNT, temperature=0, messages=[{"role": "system", "content": SYSTEM}, *USER])
    assert asked.choices[0].message.content == text(client.messages.create(**GREEDY, system=SYSTEM))
