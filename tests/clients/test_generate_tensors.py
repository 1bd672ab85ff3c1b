"""Text as tensors, as Triton's backend for vLLM has it, through tritonclient: inference over REST and gRPC, streams of
gRPC, what of it is described, and what is counted.

What the model must say is computed by `tiny_llm.Oracle`. Text as JSON is in `test_generate.py`.
"""

import asyncio
import json
import queue

import numpy as np
import pytest
import requests
from harness import assert_same
from openai_service import (  # noqa: F401
    CLOSE,
    GREEDY,
    LONG,
    TEXT,
    chat,
    client,
    eventually,
    long_service,
    oracle,
    said,
    sampled,
    service,
    wait_for,
)
from sdk import InferenceServerException, triton_grpc, triton_grpc_aio, triton_http
from test_generate import COUNT, GREEDILY, PATHS, TELL, answer, likelihood, post  # noqa: F401

PROMPTS = [f"{'the more the merrier ' * (number % 3)}{number}" for number in range(8)]


# ------------------------------------------------------------------------------------------------------------- tensors


NUMPY = {str: ("BYTES", object), bool: ("BOOL", bool), int: ("INT32", np.int32), float: ("FP32", np.float32)}


def inputs(kind, prompt=TEXT, binary_data=None, **more):
    """Tensors of tritonclient: texts, flags and numbers of one element."""
    made = []
    how = {} if binary_data is None else {"binary_data": binary_data}
    for name, value in {"text_input": prompt, **more}.items():
        value = json.dumps(value) if isinstance(value, dict) else value
        datatype, dtype = NUMPY[type(value)]
        made.append(kind.InferInput(name, [1], datatype))
        made[-1].set_data_from_numpy(np.array([value.encode() if datatype == "BYTES" else value], dtype), **how)
    return made


def texts(result, name="text_output"):
    """tritonclient makes texts of JSON, and bytes of all else."""
    return [value if isinstance(value, str) else value.decode() for value in result.as_numpy(name)]


WISHES = {
    "sampling_parameters": ({"sampling_parameters": GREEDILY}, {}),
    "parameters": ({}, GREEDILY),
    "tensors": ({"temperature": 0.0, "max_tokens": COUNT}, {}),
    # As the samples of that backend send them: as text, and twice.
    "both": ({"sampling_parameters": {"temperature": "0.0", "max_tokens": str(COUNT)}},
             {"temperature": "0.0", "max_tokens": str(COUNT)}),
}


@pytest.mark.parametrize("wish", WISHES)
@pytest.mark.parametrize("form", ["json", "binary"])
def test_infer_over_rest(service, answer, form, wish):
    more, parameters = WISHES[wish]
    outputs = [triton_http.InferRequestedOutput("text_output", binary_data=form == "binary")]
    with triton_http.InferenceServerClient(service.http) as each:
        asked = inputs(triton_http, **more, binary_data=form == "binary")
        result = each.infer("tiny", asked, outputs=outputs, parameters=parameters, request_id="a-42")
    assert texts(result) == [TEXT + answer]
    assert result.as_numpy("text_output").shape == (1,)
    assert result.get_response()["id"] == "a-42"


@pytest.mark.parametrize("wish", WISHES)
def test_infer_over_grpc(service, answer, wish):
    more, parameters = WISHES[wish]
    with triton_grpc.InferenceServerClient(service.grpc) as each:
        for exclude in (True, False):
            asked = inputs(triton_grpc, exclude_input_in_output=exclude, stream=False, **more)
            result = each.infer("tiny", asked, parameters=parameters, model_version="1")
            assert texts(result) == [answer if exclude else TEXT + answer]


def test_outputs_that_are_asked_for(service, oracle):
    """By name, or by the inputs that ask for them."""
    names = ("text_output", "finish_reason", "cumulative_logprob", "num_output_tokens", "num_input_tokens")
    with triton_grpc.InferenceServerClient(service.grpc) as each:
        outputs = [triton_grpc.InferRequestedOutput(name) for name in names]
        named = each.infer("tiny", inputs(triton_grpc), outputs=outputs, parameters=GREEDILY)
        asked = inputs(triton_grpc, **dict.fromkeys(TELL, True))
        told = each.infer("tiny", asked, parameters=GREEDILY)
    for result in (named, told):
        assert texts(result, "finish_reason") == ["length"]
        assert result.as_numpy("cumulative_logprob").dtype == np.float32
        assert result.as_numpy("cumulative_logprob") == pytest.approx([likelihood(oracle)], **CLOSE)
        for name, count in (("num_output_tokens", COUNT), ("num_input_tokens", len(TEXT))):
            assert_same(result.as_numpy(name), np.array([count], dtype=np.uint32))


def test_infer_refuses(service):
    wrong = {
        "temperature": inputs(triton_grpc, sampling_parameters={"temperature": 9}),
        "exactly one": inputs(triton_grpc, stream=True),
        "sampling_parameters": inputs(triton_grpc, sampling_parameters="greedy"),
        "text_input": inputs(triton_grpc, stream=False)[1:],
    }
    with triton_grpc.InferenceServerClient(service.grpc) as each:
        for named, asked in wrong.items():
            with pytest.raises(InferenceServerException, match=named):
                each.infer("tiny", asked)
        with pytest.raises(InferenceServerException, match="logits"):
            each.infer("tiny", inputs(triton_grpc), outputs=[triton_grpc.InferRequestedOutput("logits")])


@pytest.mark.parametrize("status, name, value", [
    (400, "timeout", "soon"),
    (400, "timeout", -5),
    (400, "priority", -1),
    (400, "triton_foo", 1),
    (400, "binary_data_output", "yes"),
    (501, "sequence_id", 7),
    (501, "sequence_start", True),
])
def test_parameters_mean_what_they_mean_to_trees(service, status, name, value):
    text = {"name": "text_input", "datatype": "BYTES", "shape": [1], "data": [TEXT]}
    body = {"inputs": [text], "parameters": {**GREEDILY, name: value}}
    reply = requests.post(f"{service.url}{PATHS[0]}/infer", json=body, timeout=60)
    assert (reply.status_code, name in reply.json()["error"]) == (status, True), reply.text


@pytest.mark.parametrize("kind", [triton_http, triton_grpc])
def test_a_timeout_ends_an_answer(long_service, kind):
    wish = {"parameters": {"max_tokens": LONG, "ignore_eos": True}, "timeout": 300_000}
    with kind.InferenceServerClient(long_service.http if kind is triton_http else long_service.grpc) as each:
        with pytest.raises(InferenceServerException, match="deadline"):
            each.infer("tiny", inputs(kind, "Once"), **wish)


# ------------------------------------------------------------------------------------------------------------- streams


class Stream:
    """A stream of tritonclient, and what comes out of it."""

    def __init__(self, server, **more):
        self.client, self.answers = triton_grpc.InferenceServerClient(server.grpc), queue.Queue()
        self.client.start_stream(lambda result, error: self.answers.put((result, error)), **more)

    def ask(self, prompt, name="", stream=True, parameters=GREEDILY, **more):
        asked = inputs(triton_grpc, prompt, stream=stream, **more)
        self.client.async_stream_infer("tiny", asked, request_id=name, parameters=parameters)

    def next(self):
        result, error = self.answers.get(timeout=30)
        if error:
            raise error
        response = result.get_response()
        assert response.model_name == "tiny"
        return response.id, texts(result)[0], response.parameters["triton_final_response"].bool_param

    def close(self, cancel=False):
        self.client.stop_stream(cancel_requests=cancel)
        self.client.close()


@pytest.fixture
def stream(service):
    made = Stream(service)
    yield made
    made.close()


def test_pieces_on_a_stream(stream, answer):
    """The last of them says so."""
    stream.ask(TEXT, "me")
    pieces = [stream.next()]
    while not pieces[-1][2]:
        pieces.append(stream.next())
    assert len(pieces) > COUNT / 2
    assert "".join(piece for _, piece, _ in pieces) == answer
    assert {name for name, _, _ in pieces} == {"me"}
    assert stream.answers.empty()


def test_whole_answers_on_a_stream(stream, answer):
    stream.ask(TEXT, "me", stream=False)
    assert stream.next() == ("me", TEXT + answer, True)


def test_prompts_of_one_stream_are_answered_at_the_same_time(stream, oracle):
    for number, prompt in enumerate(PROMPTS):
        stream.ask(prompt, str(number), parameters={"temperature": 0, "max_tokens": 40})
    pieces, ends = [], 0
    while ends < len(PROMPTS):
        pieces.append(stream.next())
        ends += pieces[-1][2]
    for number, prompt in enumerate(PROMPTS):
        told, lasts = zip(*((piece, last) for name, piece, last in pieces if name == str(number)))
        assert "".join(told) == oracle.decode(said(oracle, 40, prompt))
        assert lasts == (*[False] * (len(lasts) - 1), True)
    turns = sum(one[0] != next_one[0] for one, next_one in zip(pieces, pieces[1:]))
    assert turns > len(PROMPTS), "pieces of one come between those of others"


def test_an_error_is_an_answer_of_a_stream(stream, answer):
    stream.ask(TEXT, "bad", parameters={"temperature": 9})
    with pytest.raises(InferenceServerException, match="temperature"):
        stream.next()
    stream.ask(TEXT, stream=False)
    assert stream.next()[1] == TEXT + answer


def test_an_error_ends_a_stream_that_wants_it(service):
    made = Stream(service, headers={"triton_grpc_error": "true"})
    made.ask(TEXT, parameters={"temperature": 9})
    with pytest.raises(InferenceServerException, match="INVALID_ARGUMENT.*temperature"):
        made.next()
    made.close()


def test_a_cancelled_stream_generates_nothing_more(long_service):
    """Nor does a long answer hold up a short one before that."""
    made = Stream(long_service)
    made.ask("Once", "long", parameters={"max_tokens": LONG, "ignore_eos": True})
    assert made.next()[0] == "long"
    made.ask("Once", "short", stream=False, parameters=GREEDILY)
    while made.next()[0] != "short":
        pass
    wait_for(long_service, 1)
    made.close(cancel=True)
    wait_for(long_service, 0)


def test_asyncio_streams(service, oracle):
    """As the samples of that backend ask."""

    async def requests():
        for number, prompt in enumerate(PROMPTS):
            wish = {"temperature": "0.0", "max_tokens": str(COUNT)}
            asked = inputs(triton_grpc_aio, prompt, stream=True, sampling_parameters=wish)
            yield {"model_name": "tiny", "inputs": asked, "request_id": str(number), "parameters": wish,
                   "outputs": [triton_grpc_aio.InferRequestedOutput("text_output")]}

    async def talk():
        found = dict.fromkeys(map(str, range(len(PROMPTS))), "")
        async with triton_grpc_aio.InferenceServerClient(service.grpc) as each:
            async for result, error in each.stream_infer(requests()):
                assert error is None, error
                found[result.get_response().id] += texts(result)[0]
        return list(found.values())

    assert asyncio.run(talk()) == [oracle.decode(said(oracle, COUNT, prompt)) for prompt in PROMPTS]


# ------------------------------------------------------------------------------------ descriptions, and what is counted


def test_the_ports_are_described(service):
    with triton_grpc.InferenceServerClient(service.grpc) as each:
        metadata = each.get_model_metadata("tiny", as_json=True)
        config = each.get_model_config("tiny", as_json=True)["config"]
    for port, ports in (("text_input", metadata["inputs"]), ("text_output", metadata["outputs"])):
        assert {"name": port, "datatype": "BYTES", "shape": ["1"]} in ports
    optional = {port["name"] for port in config["input"] if port.get("optional")}
    assert {"stream", "sampling_parameters", "exclude_input_in_output", "max_tokens", "temperature", "stop"} <= optional
    assert "text_input" in {port["name"] for port in config["input"]} - optional
    assert config.get("max_batch_size", 0) == 0, "prompts have no dimension for a batch"
    rest = requests.get(f"{service.url}{PATHS[0]}", timeout=10).json()
    assert [port["name"] for port in rest["inputs"]] == [port["name"] for port in metadata["inputs"]]


def counted(server):
    """Requests and inferences, by the statistics and by the metrics."""
    (stats,) = requests.get(f"{server.url}{PATHS[0]}/stats", timeout=10).json()["model_stats"]
    metrics = [sampled(server, f"nv_inference_{name}_total", model="tiny") for name in ("request_success", "count")]
    return [stats["inference_stats"]["success"]["count"], stats["inference_count"], *map(int, metrics)]


def test_a_request_of_any_api_counts_once(service, client):
    def over_grpc():
        with triton_grpc.InferenceServerClient(service.grpc) as each:
            each.infer("tiny", inputs(triton_grpc), parameters=GREEDILY)

    def over_a_stream():
        made = Stream(service)
        made.ask(TEXT)
        while not made.next()[2]:
            pass
        made.close()

    def over_anthropics(**more):
        body = {**GREEDY, "max_tokens": 2, "messages": [{"role": "user", "content": "hi"}], **more}
        assert requests.post(f"{service.url}/v1/messages", json=body, timeout=60).status_code == 200

    calls = [
        lambda: post(service),
        lambda: post(service, n=2, temperature=1),
        lambda: post(service, "generate_stream"),
        over_grpc,
        over_a_stream,
        lambda: chat(client, max_tokens=2),
        lambda: list(chat(client, max_tokens=2, stream=True)),
        over_anthropics,
        lambda: over_anthropics(stream=True),
    ]
    before = counted(service)
    for number, call in enumerate(calls, 1):
        call()
        eventually(lambda: [now - then for now, then in zip(counted(service), before)], [number] * 4)
