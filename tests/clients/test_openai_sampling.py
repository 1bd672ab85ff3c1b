"""How tokens are chosen, and what is told of them, by the fields that OpenAI's and vLLM's clients send. What the model must
say is computed by `tiny_llm.Oracle`, after the definitions of the fields.
"""

import collections
import contextlib
import json
import threading

import numpy as np
import openai
import pytest
import requests
import tiny_llm
from openai_service import (  # noqa: F401
    BASES,
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
    eventually,
    long_service,
    oracle,
    said,
    sampled,
    service,
    serving,
    wait_for,
)

COUNT = 12
# Two blocks of the cache and some.
LENGTHY = "Once upon a time there was a server of models; " * 2


def tokens_of(reply):
    """The ids of an answer's only choice, which were asked for."""
    (choice,) = reply.choices
    return choice.token_ids


def penalised(oracle, prompt, count, repetition=1.0, presence=0.0, frequency=0.0):
    """The likeliest continuation: what was there already is made less likely, and what was generated even less."""
    chosen = []
    for _ in range(count):
        logits = np.array(oracle.logits(prompt + chosen)[-1])
        known = list(set(prompt + chosen))
        logits[known] = np.where(logits[known] > 0, logits[known] / repetition, logits[known] * repetition)
        for token, times in collections.Counter(chosen).items():
            logits[token] -= presence + frequency * times
        second, best = np.sort(logits)[-2:]
        assert best - second > tiny_llm.TIE, f"too close to call after {chosen}"
        chosen.append(int(logits.argmax()))
    return chosen


PENALTIES = {
    "repetition": ({"extra_body": {"repetition_penalty": 1.3}}, {"repetition": 1.3}),
    "presence": ({"presence_penalty": 1.5}, {"presence": 1.5}),
    "frequency": ({"frequency_penalty": 1.2}, {"frequency": 1.2}),
}


@pytest.mark.parametrize("kind", PENALTIES)
def test_penalties(client, oracle, kind):
    wish, numbers = PENALTIES[kind]
    # A prompt to which the model would say something twice.
    for prompt in (TEXT, "Hello", "aaaa", "Once upon", LENGTHY):
        ids = oracle.encode(prompt)
        with contextlib.suppress(AssertionError):
            expected, plain = penalised(oracle, ids, COUNT, **numbers), oracle.greedy(ids, COUNT)
            if expected != plain:
                break
    else:
        pytest.fail("no prompt shows a penalty")
    more = {**wish, "extra_body": {**wish.get("extra_body", {}), "return_token_ids": True, "ignore_eos": True}}
    assert tokens_of(complete(client, prompt, max_tokens=COUNT, **more)) == expected


def test_typical_tokens(client, oracle):
    """Those whose surprise is closest to what is expected, until they have so much of the probability."""
    share, prompt, surprising = 0.2, oracle.encode(TEXT), 0
    for seed in range(6):
        extra = {"typical_p": share, "return_token_ids": True, "ignore_eos": True, "top_p": 1.0}
        new = tokens_of(complete(client, TEXT, max_tokens=8, temperature=1, seed=seed, extra_body=extra))
        logprobs = oracle.logprobs(prompt + new)[len(prompt) - 1 : -1]
        for row, token in zip(logprobs, new, strict=True):
            expected = -(np.exp(row) * row).sum()
            order = np.argsort(abs(-row - expected), kind="stable")
            before = np.concatenate([[0], np.cumsum(np.exp(row[order]))[:-1]])
            kept = set(order[before < share + 1e-3].tolist())
            assert token in kept
            surprising += int(row.argmax()) not in kept
    assert surprising, "the likeliest token was always among them: this shows nothing"


def test_the_best_of_several(client):
    wish = {"max_tokens": 8, "temperature": 1, "seed": 5, "logprobs": 0, "extra_body": {"ignore_eos": True}}
    all_three = complete(client, TEXT, n=3, **wish).choices
    assert len({choice.text for choice in all_three}) == 3
    ranked = sorted(all_three, key=lambda choice: -sum(choice.logprobs.token_logprobs))
    best = complete(client, TEXT, n=2, best_of=3, **wish)
    assert [choice.text for choice in best.choices] == [choice.text for choice in ranked[:2]]
    assert [choice.index for choice in best.choices] == [0, 1]
    # All that was computed is counted.
    assert counts(best.usage)[:2] == (len(TEXT), 24)


def test_logprobs_of_prompts(client, oracle):
    for reply, ids, of in (
        (complete(client, TEXT, max_tokens=2, extra_body={"prompt_logprobs": 2}), oracle.encode(TEXT), "choice"),
        (chat(client, max_tokens=2, extra_body={"prompt_logprobs": 2}), oracle.encode(oracle.chat_prompt(MESSAGES)), "reply"),
    ):
        told = (reply.choices[0] if of == "choice" else reply).prompt_logprobs
        assert told[0] is None and len(told) == len(ids)
        for row, token, each in zip(oracle.logprobs(ids), ids[1:], told[1:]):
            mine = each[str(token)]
            assert mine["logprob"] == pytest.approx(row[token], **CLOSE)
            assert mine["decoded_token"] == oracle.token_text(token)
            assert mine["rank"] == pytest.approx(1 + (row > row[token]).sum(), abs=1)
            assert max(other["logprob"] for other in each.values()) == pytest.approx(row.max(), **CLOSE)
            assert len(each) in (2, 3)


def test_ids_of_tokens(client, oracle):
    extra = {"return_token_ids": True}
    (choice,) = (reply := complete(client, TEXT, max_tokens=4, extra_body=extra)).choices
    assert (choice.prompt_token_ids, choice.token_ids) == (oracle.encode(TEXT), said(oracle, 4, TEXT)), reply
    reply = chat(client, max_tokens=4, extra_body=extra)
    assert reply.prompt_token_ids == oracle.encode(oracle.chat_prompt(MESSAGES))
    assert tokens_of(reply) == said(oracle, 4)
    told = complete(client, TEXT, max_tokens=4, logprobs=1, extra_body={"return_tokens_as_token_ids": True})
    assert told.choices[0].logprobs.tokens == [f"token_id:{token}" for token in said(oracle, 4, TEXT)]


def test_texts_of_tokens(service, oracle):
    body = {"model": "tiny", "prompt": "héllo", "return_token_strs": True}
    told = requests.post(f"{service.url}/tokenize", json=body, timeout=60).json()
    assert len(told["token_strs"]) == told["count"] == 6
    assert told["token_strs"][0] == "h"


@pytest.mark.parametrize("side", ["left", "right", None])
def test_prompts_are_cut(client, oracle, side):
    ids = oracle.encode(LENGTHY)
    kept = ids[:40] if side == "right" else ids[-40:]
    extra = {"truncate_prompt_tokens": 40, "return_token_ids": True, **({"truncation_side": side} if side else {})}
    reply = complete(client, LENGTHY, max_tokens=4, extra_body=extra)
    assert reply.usage.prompt_tokens == 40
    assert (reply.choices[0].prompt_token_ids, tokens_of(reply)) == (kept, oracle.greedy(kept, 4))


def test_prompts_are_found_again_under_the_same_salt(client):
    def cached(salt):
        wish = {"cache_salt": salt} if salt else {}
        usage = complete(client, "Of salt and caches: " + LENGTHY, max_tokens=1, extra_body=wish).usage
        return usage.prompt_tokens_details.cached_tokens

    assert [cached(salt) for salt in ("a", "b", None)] == [0, 0, 0]
    for salt in ("a", "b", None):
        assert cached(salt) >= 64


def test_usage_of_every_piece(client):
    options = {"include_usage": True, "continuous_usage_stats": True}
    for ask in (lambda **more: complete(client, TEXT, **more), lambda **more: chat(client, **more)):
        pieces = list(ask(max_tokens=6, stream=True, stream_options=options, extra_body={"ignore_eos": True}))
        told = [piece.usage.completion_tokens for piece in pieces]
        assert told == sorted(told) and told[-1] == 6 and set(told) >= {1, 2, 3, 4, 5}
        assert all(piece.usage.total_tokens == piece.usage.prompt_tokens + count for piece, count in zip(pieces, told))


# -------------------------------------------------------------------------------------------- what ends in the middle


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("path", ["completions", "chat/completions"])
def test_an_error_ends_a_stream(long_service, base, path):
    """Here, that its time is over. It comes as an event, and the stream ends as every other does."""
    prompt = {"prompt": TEXT} if path == "completions" else {"messages": MESSAGES}
    body = {**GREEDY, **prompt, "max_tokens": LONG, "stream": True, "ignore_eos": True}
    headers = {"X-Request-Timeout-Ms": "1000"}
    with requests.post(f"{long_service.url}{base}/{path}", json=body, headers=headers, stream=True, timeout=60) as reply:
        assert reply.status_code == 200
        events = [line.removeprefix(b"data: ") for line in reply.iter_lines() if line]
    assert events[-1] == b"[DONE]"
    error = json.loads(events[-2])["error"]
    assert "deadline" in error["message"] and set(error) == {"message", "type", "param", "code"}
    assert len(events) > 3 and all("choices" in json.loads(event) for event in events[:-2])
    with pytest.raises(openai.APIError, match="deadline"):
        list(connect(long_service, base).completions.create(**body_of_client(), extra_headers=headers))
    wait_for(long_service, 0)


def body_of_client():
    return {**GREEDY, "prompt": TEXT, "max_tokens": LONG, "stream": True, "extra_body": {"ignore_eos": True}}


def test_who_does_not_read_holds_up_nobody(long_service):
    """A stream that nobody reads goes on, and so do others beside it; when its client leaves it ends."""
    body = {**GREEDY, "prompt": TEXT, "max_tokens": LONG, "stream": True, "ignore_eos": True}
    unread = requests.post(f"{long_service.url}/v1/completions", json=body, stream=True, timeout=60)
    wait_for(long_service, 1)
    oracle = long_service.oracle
    for _ in range(3):
        reply = complete(connect(long_service), TEXT, max_tokens=4)
        assert reply.choices[0].text == oracle.decode(said(oracle, 4, TEXT))
    unread.close()
    wait_for(long_service, 0)


# ---------------------------------------------------------------------------------------------------- one at a time


@pytest.fixture(scope="module")
def narrow(binary, models, tmp_path_factory):
    """Computes one sequence at a time."""
    with serving(binary, models, tmp_path_factory.mktemp("narrow"), more=["--max-num-seqs", "1"], context=65536) as server:
        yield server


def held(server):
    """A stream that has the engine to itself until it is closed."""
    body = {**GREEDY, "prompt": TEXT, "max_tokens": LONG, "stream": True, "ignore_eos": True}
    reply = requests.post(f"{server.url}/v1/completions", json=body, stream=True, timeout=60)
    # Kept: who lets go of an iterator lets go of the connection.
    reply.events = reply.iter_lines()
    next(reply.events)
    return reply


def queued(server, number):
    eventually(lambda: sampled(server, "vllm:num_requests_waiting", model_name="tiny"), number)


def test_urgent_requests_go_first(narrow):
    """As in vLLM, the lower number."""
    first, done = held(narrow), []

    def ask(name, priority):
        # Long enough that answers do not overtake each other on their way.
        complete(connect(narrow), TEXT, max_tokens=2000, extra_body={"priority": priority, "ignore_eos": True})
        done.append(name)

    threads = []
    for number, (name, priority) in enumerate([("later", 5), ("usual", 0), ("urgent", -5)]):
        threads.append(threading.Thread(target=ask, args=(name, priority)))
        threads[-1].start()
        queued(narrow, number + 1)
    first.close()
    for thread in threads:
        thread.join()
    assert done == ["urgent", "usual", "later"]


def test_who_leaves_while_queued_is_forgotten(narrow):
    first = held(narrow)
    with pytest.raises(openai.APITimeoutError):
        complete(connect(narrow).with_options(timeout=0.5), TEXT, max_tokens=2)
    queued(narrow, 0)
    first.close()
    wait_for(narrow, 0)
    assert complete(connect(narrow), TEXT, max_tokens=2).usage.completion_tokens == 2


def test_metrics_of_a_model_that_is_loaded_again_and_unloaded(binary, models, tmp_path):
    """Counters go on, whether or not anybody had asked for them in between; what is gone is told of no more."""
    with serving(binary, models, tmp_path) as server:

        def managed(verb):
            assert requests.post(f"{server.url}/v2/repository/models/tiny/{verb}", json={}, timeout=30).ok

        def tokens():
            return sampled(server, "vllm:generation_tokens_total", model_name="tiny")

        def lines():
            return requests.get(f"{server.url}/metrics", timeout=10).text.splitlines()

        def caches():
            return sum(float(line.split()[-1]) for line in lines() if line.startswith("vllm:cache_config_info{"))

        def told():
            return [line for line in lines() if '"tiny"' in line]

        for _ in range(2):
            complete(connect(server), TEXT, max_tokens=COUNT, extra_body={"ignore_eos": True})
            managed("load")
        eventually(tokens, 2 * COUNT)
        eventually(caches, 1)
        complete(connect(server), TEXT, max_tokens=COUNT, extra_body={"ignore_eos": True})
        eventually(tokens, 3 * COUNT)
        managed("unload")
        eventually(told, [])
        managed("load")
        eventually(tokens, 0)
