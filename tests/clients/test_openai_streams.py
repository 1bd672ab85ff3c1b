"""OpenAI's streams as its own client reads them; many requests at a time; requests that nobody waits for any more.

What is streamed is compared with the whole answer, which `test_openai.py` compares with an oracle.
"""

import asyncio
import json
from collections import defaultdict

import openai
import pytest
import requests
from harness import assert_same, tensor
from openai_service import (  # noqa: F401
    CLOSE,
    GREEDY,
    LONG,
    MESSAGES,
    TEXT,
    chat,
    client,
    complete,
    connect,
    counts,
    long_service,
    oracle,
    running,
    said,
    service,
    wait_for,
)

# Bytes that make whole characters sometimes, and often do not.
HALVES = [*"é世".encode(), ord("a")]
WISHES = {
    "plain": {},
    "stop": {"stop": ["8J", "a8", ":L", "Ba"]},
    "choices": {"n": 2, "temperature": 1, "seed": 11},
    "halves": {"extra_body": {"allowed_token_ids": HALVES}},
}


def ask(client, kind, **more):
    return chat(client, **more) if kind == "chat" else complete(client, TEXT, **more)


def texts_of(reply):
    return {each.index: each.message.content if hasattr(each, "message") else each.text for each in reply.choices}


def gather(chunks):
    """Of each choice, its text and why it ended, as often as that is said."""
    texts, ends = defaultdict(str), defaultdict(list)
    for choice in (choice for chunk in chunks for choice in chunk.choices):
        piece = choice.delta.content if hasattr(choice, "delta") else choice.text
        texts[choice.index] += piece or ""
        if choice.finish_reason is not None:
            ends[choice.index].append(choice.finish_reason)
    return texts, ends


@pytest.mark.parametrize("wish", WISHES)
@pytest.mark.parametrize("kind", ["chat", "completion"])
def test_stream_is_the_whole_in_pieces(client, kind, wish):
    more = {"max_tokens": 40, **WISHES[wish]}
    whole = ask(client, kind, **more)
    chunks = list(ask(client, kind, **more, stream=True))
    texts, ends = gather(chunks)
    assert texts == texts_of(whole)
    assert ends == {each.index: [each.finish_reason] for each in whole.choices}
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.usage is None for chunk in chunks)
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk" if kind == "chat" else "text_completion"}


def test_halves_of_characters(client, oracle):
    """What is no UTF-8 is replaced as Python replaces it."""
    new = said(oracle, 40, TEXT, allowed=HALVES)
    assert "\ufffd" in oracle.decode(new)
    assert texts_of(complete(client, TEXT, max_tokens=40, **WISHES["halves"])) == {0: oracle.decode(new)}


def test_each_choice_of_a_chat_begins_with_its_role(client):
    chunks = list(chat(client, max_tokens=4, stream=True, n=2, temperature=1))
    deltas = {index: [c.delta for chunk in chunks for c in chunk.choices if c.index == index] for index in (0, 1)}
    for first, *others in deltas.values():
        assert (first.role, first.content) == ("assistant", "")
        assert all(delta.role is None for delta in others)


@pytest.mark.parametrize("kind", ["chat", "completion"])
def test_usage_comes_last_if_it_is_asked_for(client, kind):
    *others, last = ask(client, kind, max_tokens=6, stream=True, stream_options={"include_usage": True})
    assert last.choices == []
    assert counts(last.usage) == counts(ask(client, kind, max_tokens=6).usage)
    assert all(chunk.usage is None and chunk.choices for chunk in others)


def test_logprobs_are_streamed(client):
    wish = {"max_tokens": 12, "logprobs": True, "top_logprobs": 2}
    chunks = [choice for chunk in chat(client, **wish, stream=True) for choice in chunk.choices]
    pieces = [each for choice in chunks if choice.logprobs for each in choice.logprobs.content or []]
    whole = chat(client, **wish).choices[0].logprobs.content
    assert [(each.token, each.bytes) for each in pieces] == [(each.token, each.bytes) for each in whole]
    assert [each.logprob for each in pieces] == pytest.approx([each.logprob for each in whole], **CLOSE)


def offsets_of(client, **more):
    """Where tokens begin, streamed and whole."""
    wish = {"max_tokens": 8, "logprobs": 0, **more}
    chunks = [choice for chunk in complete(client, TEXT, **wish, stream=True) for choice in chunk.choices]
    streamed = [offset for choice in chunks if choice.logprobs for offset in choice.logprobs.text_offset]
    return streamed, complete(client, TEXT, **wish).choices[0].logprobs.text_offset


def test_offsets_count_what_is_held_back(client):
    """A stop string that begins in the text, and does not go on, keeps back what has come of it."""
    text = complete(client, TEXT, max_tokens=8).choices[0].text
    streamed, whole = offsets_of(client, stop=[text[1:4] + "\0"])
    assert streamed == whole == sorted(whole) and whole[-1] > 5


@pytest.mark.parametrize("left_out, expected", [(True, [0, 0, 0]), (False, [0, 12, 24])])
def test_offsets_of_control_tokens(client, oracle, left_out, expected):
    (mark,) = oracle.encode("<|im_start|>")
    more = {"allowed_token_ids": [mark], "skip_special_tokens": left_out}
    streamed, whole = offsets_of(client, max_tokens=3, extra_body=more)
    assert streamed == whole == expected


def test_a_stop_string_may_begin_before_the_least_tokens(client, oracle):
    """It stops where it ends after them, and nothing of it was told by then."""
    texts = [oracle.token_text(token) for token in said(oracle, 8, TEXT)]
    stop = "".join(texts[1:4])
    assert "".join(texts).count(stop) == 1
    for least in range(7):
        wish = {"max_tokens": 8, "stop": [stop], "extra_body": {"min_tokens": least}}
        text, end = (texts[0], "stop") if least < 4 else ("".join(texts), "length")
        whole = complete(client, TEXT, **wish).choices[0]
        assert (whole.text, whole.finish_reason) == (text, end), least
        streamed, ends = gather(complete(client, TEXT, **wish, stream=True))
        assert (streamed[0], ends[0]) == (text, [end]), least


def test_a_prompt_alone_ends_as_it_does_whole(client):
    """What is computed for it is no answer, and ends in no way that anybody is told."""
    stop = complete(client, TEXT, max_tokens=1).choices[0].text
    wish = {"max_tokens": 0, "echo": True, "stop": [stop]}
    whole = complete(client, TEXT, **wish).choices[0]
    pieces = [choice for chunk in complete(client, TEXT, **wish, stream=True) for choice in chunk.choices]
    assert "".join(piece.text for piece in pieces) == whole.text == TEXT
    ends = [choice for choice in (whole, *pieces) if choice.finish_reason]
    assert [(choice.finish_reason, getattr(choice, "stop_reason", None)) for choice in ends] == [("length", None)] * 2


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/openai/v1/completions"])
def test_events_as_they_are_written(service, path):
    asked = {"prompt": TEXT} if path.endswith("/v1/completions") else {"messages": MESSAGES, "max_tokens": 16}
    reply = requests.post(service.url + path, json={**GREEDY, **asked, "stream": True}, timeout=60)
    assert reply.status_code == 200
    assert reply.headers["Content-Type"].split(";")[0] == "text/event-stream"
    assert reply.content.endswith(b"\n\ndata: [DONE]\n\n")
    *events, done, nothing = reply.content.decode().split("\n\n")
    assert (done, nothing) == ("data: [DONE]", "")
    for event in events:
        assert event.startswith("data: {") and "\n" not in event
        assert json.loads(event.removeprefix("data: "))["model"] == "tiny"


# -------------------------------------------------------------------------------------------------- many, and cut short


def test_a_batch_changes_nothing(service, client):
    """Sixteen at the same time say what each says alone."""
    prompts = [f"{'the more the merrier ' * (number % 4)}{number}" for number in range(16)]

    async def together():
        async with connect(service, kind=openai.AsyncOpenAI) as many:
            replies = await asyncio.gather(*(complete(many, prompt, max_tokens=32) for prompt in prompts))
        return [reply.choices[0].text for reply in replies]

    # Together first: what is asked again comes out of the prefix cache.
    batched = asyncio.run(together())
    assert batched == [complete(client, prompt, max_tokens=32).choices[0].text for prompt in prompts]
    assert len(set(batched)) == 16


def long_stream(server):
    return complete(connect(server), "Once", stream=True, max_tokens=LONG, extra_body={"ignore_eos": True})


def test_a_closed_stream_is_cancelled(long_service):
    stream = long_stream(long_service)
    for _ in range(3):
        next(stream)
    wait_for(long_service, 1)
    stream.close()
    wait_for(long_service, 0)


def test_who_does_not_wait_is_cancelled(long_service):
    """Also where the answer would have come whole."""
    body = {**GREEDY, "prompt": "Once", "max_tokens": LONG, "ignore_eos": True}
    with pytest.raises(requests.Timeout):
        requests.post(f"{long_service.url}/v1/completions", json=body, timeout=1)
    wait_for(long_service, 0)


def test_trees_answer_beside_a_stream(long_service, iris):
    with long_stream(long_service) as stream:
        next(stream)
        wait_for(long_service, 1)
        reply = requests.post(f"{long_service.url}/v2/models/iris/infer", json=iris.request, timeout=10)
        assert running(long_service) == 1, "the stream is still there"
        assert next(stream).choices[0].finish_reason is None
    assert_same(tensor(reply.json()["outputs"][0]), iris.answer)
    wait_for(long_service, 0)
