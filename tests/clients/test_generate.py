"""Triton's generate extension, as its backend for vLLM has it: text as JSON, whole and in events.

What the model must say is computed by `tiny_llm.Oracle`. Text as tensors is in `test_generate_tensors.py`.
"""

import json

import pytest
import requests
from harness import assert_same, tensor
from openai_service import (  # noqa: F401
    CLOSE,
    LONG,
    TEXT,
    eventually,
    long_service,
    oracle,
    said,
    sampled,
    service,
    wait_for,
)

PATHS = ("/v2/models/tiny", "/v2/models/tiny/versions/1")
COUNT = 12
GREEDILY = {"temperature": 0, "max_tokens": COUNT}
TELL = ("return_finish_reason", "return_cumulative_logprob", "return_num_input_tokens", "return_num_output_tokens")


def post(server, verb="generate", path=PATHS[0], status=200, **body):
    reply = requests.post(f"{server.url}{path}/{verb}", json={"text_input": TEXT, **GREEDILY, **body}, timeout=60)
    assert reply.status_code == status, reply.text
    return reply


def text(server, **body):
    return post(server, **body).json()["text_output"]


def events(reply):
    """The objects of a stream, which ends without a mark of its own."""
    assert reply.headers["Content-Type"] == "text/event-stream; charset=utf-8"
    *found, nothing = reply.content.decode().split("\n\n")
    assert nothing == ""
    assert all(event.startswith("data: {") and "\n" not in event for event in found)
    return [json.loads(event.removeprefix("data: ")) for event in found]


@pytest.fixture(scope="module")
def answer(oracle):
    return oracle.decode(said(oracle, COUNT, TEXT))


def likelihood(oracle, count=COUNT):
    """The logarithm of the probability of the answer."""
    tokens, new = oracle.encode(TEXT), said(oracle, count, TEXT)
    return sum(oracle.logprobs(tokens + new)[range(len(tokens) - 1, len(tokens) + count - 1), new])


# ------------------------------------------------------------------------------------------------------------ generate


@pytest.mark.parametrize("path", PATHS)
def test_the_answer_comes_after_the_prompt(service, answer, path):
    """Sixteen tokens, unless something else is asked for."""
    told = {"model_name": "tiny", "model_version": "1", "text_output": TEXT + answer}
    assert post(service, path=path).json() == told
    assert post(service, path=path, id="a-42").json() == {**told, "id": "a-42"}
    assert post(service, path=path, max_tokens=None, return_num_output_tokens=True).json()["num_output_tokens"] == 16


def test_the_prompt_is_left_out(service, answer):
    assert text(service, exclude_input_in_output=True) == answer
    assert text(service, exclude_input_in_output=False) == TEXT + answer


def test_the_prompt_is_told_as_it_was_sent(service):
    """Also where it is written in control tokens."""
    prompt = "<|im_start|>user\nhé<|im_end|>\n<|im_start|>assistant\n"
    assert text(service, text_input=prompt).startswith(prompt)


GREEDY_TEXT = '{"max_tokens": 3, "temperature": 0}'
COMPANIONS = {
    "parameters": {"parameters": {"max_tokens": 3, "temperature": 0}},
    "sampling_parameters": {"sampling_parameters": {"max_tokens": 3, "temperature": 0}},
    "both": {"parameters": {"temperature": 0}, "sampling_parameters": {"max_tokens": 3}},
    "text": {"sampling_parameters": GREEDY_TEXT},
    # As the samples of that backend have it.
    "text of texts": {"sampling_parameters": '{"max_tokens": "3", "temperature": "0.0", "top_p": "0.95"}'},
    # Tensors of one element.
    "lists": {"text_input": [TEXT], "stream": [False], "sampling_parameters": [GREEDY_TEXT]},
    "another name": {"max_new_tokens": 3, "runtime_top_k": 1},
    "a third name": {"max_new_tokens": 3, "runtime_top_p": 1e-6, "model": "tiny"},
}


@pytest.mark.parametrize("case", COMPANIONS)
def test_where_companions_stand(service, oracle, case):
    body = {"text_input": TEXT, "exclude_input_in_output": True, **COMPANIONS[case]}
    reply = requests.post(f"{service.url}{PATHS[0]}/generate", json=body, timeout=60)
    assert reply.status_code == 200, reply.text
    assert reply.json()["text_output"] == oracle.decode(said(oracle, 3, TEXT))


def test_stop_words(service, answer):
    stop = answer[6:8]
    for words in (stop, ["\0 never", stop]):
        reply = post(service, stop_words=words, return_finish_reason=True).json()
        assert (reply["text_output"], reply["finish_reason"]) == (TEXT + answer[: answer.index(stop)], "stop")
        pieces = events(post(service, "generate_stream", stop_words=words))
        assert "".join(piece["text_output"] for piece in pieces) == answer[: answer.index(stop)]


def test_tokens_that_end_a_text(service, oracle):
    new = said(oracle, COUNT, TEXT)
    end, other = new[4], next(token for token in range(256) if token not in new)
    for more in ({"end_id": end}, {"end_id": end, "stop_token_ids": [other]}, {"end_id": other, "stop_token_ids": end}):
        reply = post(service, return_finish_reason=True, return_num_output_tokens=True, **more).json()
        assert (reply["finish_reason"], reply["num_output_tokens"]) == ("stop", new.index(end) + 1)


@pytest.mark.parametrize("name", ["structured_outputs", "guided_decoding"])
@pytest.mark.parametrize("form", [{"regex": "[a-c]{3}"}, '{"regex": "[a-c]{3}"}'], ids=["object", "text"])
def test_forms(service, name, form):
    """By the names that backend has for them; in an older one and as text, too."""
    told = text(service, exclude_input_in_output=True, sampling_parameters={name: form})
    assert len(told) == 3 and set(told) <= set("abc")


def test_what_else_is_told(service, oracle):
    reply = post(service, **dict.fromkeys(TELL, True)).json()
    assert reply["cumulative_logprob"] == pytest.approx(likelihood(oracle), **CLOSE)
    assert (reply["finish_reason"], reply["num_input_tokens"], reply["num_output_tokens"]) == ("length", 6, COUNT)


def test_chance_depends_on_the_seed(service):
    def texts(seed):
        return text(service, n=2, temperature=1, random_seed=seed)

    first, second = texts(7)
    assert first != second and first.startswith(TEXT)
    assert texts(7) == [first, second] != texts(8)


# ---------------------------------------------------------------------------------------------------- generate_stream


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("wish", [{}, {"stream": True}, {"parameters": {"stream": True}}])
def test_pieces_are_the_answer(service, answer, path, wish):
    """Without the prompt."""
    pieces = events(post(service, "generate_stream", path, id="me", **wish))
    assert len(pieces) > COUNT / 2
    assert "".join(piece.pop("text_output") for piece in pieces) == answer
    assert all(piece == {"model_name": "tiny", "model_version": "1", "id": "me"} for piece in pieces)


def test_one_event_where_no_stream_is_wanted(service):
    assert events(post(service, "generate_stream", stream=False)) == [post(service).json()]


def test_what_pieces_tell(service, oracle):
    """Tokens are those of the piece, and probabilities those of the whole so far."""
    pieces = events(post(service, "generate_stream", **dict.fromkeys(TELL, True)))
    assert sum(piece["num_output_tokens"] for piece in pieces) == COUNT
    assert {piece["num_input_tokens"] for piece in pieces} == {len(TEXT)}
    assert [piece["finish_reason"] == "length" for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert pieces[-1]["cumulative_logprob"] == pytest.approx(likelihood(oracle), **CLOSE)


def cancelled(server):
    return sampled(server, "nv_inference_request_failure_total", model="tiny", reason="CANCELED")


def test_a_closed_stream_is_cancelled(long_service):
    body, before = {"text_input": "Once", "max_tokens": LONG, "ignore_eos": True}, cancelled(long_service)
    with requests.post(f"{long_service.url}{PATHS[0]}/generate_stream", json=body, stream=True, timeout=60) as reply:
        lines = reply.iter_lines()
        assert next(lines).startswith(b"data: {")
        wait_for(long_service, 1)
    wait_for(long_service, 0)
    eventually(lambda: cancelled(long_service), before + 1)


def test_an_error_ends_a_stream(long_service):
    """Here, that its time is over."""
    body = {"text_input": "Once", "max_tokens": LONG, "ignore_eos": True}
    path, headers = f"{long_service.url}{PATHS[0]}/generate", {"X-Request-Timeout-Ms": "300"}
    *pieces, last = events(requests.post(path + "_stream", json=body, headers=headers, timeout=60))
    assert pieces and all("error" not in piece for piece in pieces)
    assert "deadline" in last["error"] and set(last) == {"error"}
    whole = requests.post(path, json=body, headers=headers, timeout=60)
    assert (whole.status_code, whole.json()) == (504, last)
    stated = requests.post(path, json={**body, "parameters": {"timeout": 300_000}}, timeout=60)
    assert (stated.status_code, stated.json()) == (504, last)


# -------------------------------------------------------------------------------------------------------------- errors


WRONG = {
    "no text": ({"text_input": None}, "text_input"),
    "a number": ({"text_input": 3}, "text_input"),
    "two texts": ({"text_input": ["a", "b"]}, "'text_input': it has 2 texts, and 1 is possible"),
    "temperature": ({"temperature": 9}, "temperature"),
    "tokens": ({"max_tokens": "many"}, "max_tokens"),
    "stop words": ({"stop_words": 3}, "stop"),
    "stream": ({"stream": "yes"}, "stream"),
    "other text": ({"sampling_parameters": "greedy"}, "sampling_parameters"),
    "images": ({"image": ["aGk="]}, "image"),
    "echo": ({"echo": True}, "echo"),
    "prompt": ({"prompt": "b"}, "text_input"),
    "another model": ({"model": "iris"}, "'model': it is 'iris'"),
    "probabilities": ({"logprobs": 2}, "return_cumulative_logprob"),
    "time": ({"timeout": "soon"}, "timeout"),
    "too long": ({"text_input": "a" * 600}, "600"),
}


@pytest.mark.parametrize("verb", ["generate", "generate_stream"])
@pytest.mark.parametrize("case", WRONG)
def test_wrong_fields_are_named(service, case, verb):
    body, named = WRONG[case]
    reply = post(service, verb, status=400, **body)
    assert reply.headers["Content-Type"].split(";")[0] == "application/json"
    assert set(reply.json()) == {"error"}
    assert named in reply.json()["error"]


def test_generate_is_not_streamed(service):
    assert "generate_stream" in post(service, stream=True, status=400).json()["error"]
    error = post(service, "generate_stream", n=2, status=400).json()["error"]
    assert "2 answers" in error and "n must be 1" in error


@pytest.mark.parametrize("verb", ["generate", "generate_stream"])
def test_unknown_models(service, verb):
    for path in ("/v2/models/nobody", "/v2/models/nobody/versions/1", "/v2/models/tiny/versions/2"):
        assert path.split("/")[3] in post(service, verb, path, status=404).json()["error"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"text_input": "\xff"}', b'{"text_input": "a"} x'])
def test_malformed_bodies(service, body):
    for verb in ("generate", "generate_stream"):
        reply = requests.post(f"{service.url}{PATHS[0]}/{verb}", data=body, timeout=60)
        assert reply.status_code == 400 and reply.json()["error"]


def test_trees_infer_and_do_not_generate(service, iris):
    for verb in ("generate", "generate_stream"):
        error = post(service, verb, "/v2/models/iris", status=400).json()["error"]
        assert "iris" in error and "language model" in error
    reply = requests.post(f"{service.url}/v2/models/iris/infer", json=iris.request, timeout=60).json()
    assert_same(tensor(reply["outputs"][0]), iris.answer)
