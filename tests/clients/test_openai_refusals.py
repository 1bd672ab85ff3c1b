"""What OpenAI's clients are told: of fields that a model has no use for, of limits by the flag that sets them, of paths that
are not served; by the names that their own requests have.
"""

import openai
import pytest
import requests
import tiny_llm
from conftest import starter, stop_all
from openai_service import (  # noqa: F401
    BASES,
    GREEDY,
    LONG,
    LONG_CONTEXT,
    MESSAGES,
    TEXT,
    chat,
    client,
    complete,
    connect,
    eventually,
    oracle,
    said,
    sampled,
    service,
    wait_for,
)

NAMES = ("qwen", "publishers/ns/models/qwen")
# The model has 512 tokens, of 256 bytes each on a CPU, in blocks of 32: room for 160.
SMALL_CACHE, SMALL_CONTEXT = 40 << 10, 160


def refused(server, body, path="/v1/chat/completions", status=400):
    reply = requests.post(server.url + path, json={"model": "tiny", **body}, timeout=60)
    assert reply.status_code == status, reply.text
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["code"] == status
    return error


# -------------------------------------------------------------------------------------------------------------- fields


def test_documents_that_the_template_does_not_read(service):
    for path in ("/v1/chat/completions", "/tokenize"):
        error = refused(service, {"messages": MESSAGES, "documents": [{"title": "t", "text": "y"}]}, path)
        assert error["param"] == "documents" and "chat template" in error["message"]


def test_settings_that_the_template_does_not_read_change_nothing(client):
    silent = chat(client, max_tokens=8).choices[0].message.content
    more = {"documents": [], "chat_template_kwargs": {"zzz": 1}}
    assert chat(client, max_tokens=8, reasoning_effort="high", extra_body=more).choices[0].message.content == silent


# What is sent besides a prompt, the field that is complained about, and what the message says.
CHATS = {
    "allowed": ({"allowed_token_ids": [9999999]}, "allowed_token_ids", "9999999 of allowed_token_ids"),
    "stop": ({"stop_token_ids": [9999999]}, "stop_token_ids", "9999999 of stop_token_ids"),
    "bias": ({"logit_bias": {"9999999": 1}}, "logit_bias", "9999999 of logit_bias"),
    "old": ({"max_tokens": 5000}, "max_tokens", "max_tokens is 5000"),
    "new": ({"max_completion_tokens": 5000}, "max_completion_tokens", "max_completion_tokens is 5000"),
    "least": ({"min_tokens": 1000}, "min_tokens", "this model's context of 512 tokens"),
    "stated": ({"min_tokens": 9, "max_completion_tokens": 8}, "min_tokens", "'max_completion_tokens' is 8"),
    "prompt": ({"messages": [{"role": "user", "content": "a" * 600}]}, "messages", "this model's context of 512 tokens"),
}
COMPLETIONS = {
    "prompt": ({"prompt": [9999999]}, "prompt", "9999999 of the prompt"),
    "length": ({"prompt": [65] * 600}, "prompt", "this model's context of 512 tokens"),
    "tokens": ({"max_tokens": 5000}, "max_tokens", "max_tokens is 5000"),
    "least": ({"min_tokens": 1000}, "min_tokens", "'max_tokens' is left out"),
}


@pytest.mark.parametrize("case", CHATS)
def test_chats_are_told_of_their_own_fields(service, case):
    more, param, what = CHATS[case]
    error = refused(service, {"messages": MESSAGES, **more})
    assert error["param"] == param and what in error["message"], error


# What is asked for, the field that is complained about, and what the message says.
SEVERAL = {
    "token": ({"prompt": [[65], [66, 9999999]]}, "prompt[1]", "9999999 of prompt[1]"),
    "length": ({"prompt": [[65], [66], [65] * 600]}, "prompt[2]", "this model's context of 512 tokens"),
    "text": ({"prompt": ["a", "b" * (2 << 20)]}, "prompt[1]", "bytes"),
    "tokens": ({"prompt": ["a", "b" * 500], "max_tokens": 20}, "max_tokens", "max_tokens is 20, and prompt[1] has 50"),
}


@pytest.mark.parametrize("case", SEVERAL)
def test_what_is_wrong_with_one_of_several_prompts_says_which(service, case):
    more, param, what = SEVERAL[case]
    error = refused(service, more, "/v1/completions")
    assert error["param"] == param and what in error["message"], error


@pytest.mark.parametrize("case", COMPLETIONS)
def test_completions_are_told_of_their_own_fields(service, case):
    more, param, what = COMPLETIONS[case]
    error = refused(service, {"prompt": TEXT, **more}, "/v1/completions")
    assert error["param"] == param and what in error["message"], error


def test_a_type_that_is_none_is_told_with_its_place(service):
    schema = {"type": "object", "properties": {"a": {"type": "array", "items": {"type": "florp"}}}}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    error = refused(service, {"messages": MESSAGES, "response_format": form})
    assert error["param"] == "response_format"
    assert "properties.a.items.type is \"florp\"" in error["message"], error


def test_alternatives_that_may_both_fit_are_told_with_their_place(service):
    schema = {"type": "object", "properties": {"a": {"oneOf": [{"type": "number"}, {"type": "integer"}]}}}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    error = refused(service, {"messages": MESSAGES, "response_format": form})
    assert "'oneOf' have to exclude each other" in error["message"], error
    assert error["message"].endswith("at properties.a.oneOf"), error


# --------------------------------------------------------------------------------------------------------------- texts


def test_what_is_echoed_is_what_was_read(client, oracle):
    """A prompt that was cut is told as it was cut, and places count from there."""
    kept, more = b"time", {"truncate_prompt_tokens": 4}
    reply = complete(client, "Once upon a time", max_tokens=2, echo=True, logprobs=0, extra_body=more)
    (choice,) = reply.choices
    tokens = [*kept, *oracle.greedy(list(kept), 2)]
    assert choice.text == oracle.decode(tokens)
    texts = [oracle.token_text(token) for token in tokens]
    assert choice.logprobs.tokens == texts
    assert choice.logprobs.text_offset == [sum(map(len, texts[:place])) for place in range(len(texts))]
    assert reply.usage.prompt_tokens == 4


# The message that is continued, and what the prompt ends with: the template takes no parts.
ENDINGS = {
    "text": ("The port is one", "The port is one"),
    "parts": ([{"type": "text", "text": "The"}, {"type": "text", "text": "port"}], "The\nport"),
    "refusal": ([{"type": "text", "text": "No."}, {"type": "refusal", "refusal": "I will not"}], "No.\nI will not"),
}


@pytest.mark.parametrize("kept", [None, 9])
@pytest.mark.parametrize("case", ENDINGS)
def test_a_chat_echoes_what_was_read(client, case, kept):
    content, words = ENDINGS[case]
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": content}]
    more = {"echo": True, "continue_final_message": True, "add_generation_prompt": False}
    if kept:
        # Tokens are bytes.
        words, more["truncate_prompt_tokens"] = words[-kept:], kept
    reply = chat(client, messages=messages, max_tokens=1, extra_body=more)
    text = reply.choices[0].message.content
    assert text.startswith(words) and len(text) <= len(words) + 4, text


@pytest.mark.parametrize("stream", [False, True])
def test_a_token_that_stops_may_stay(client, oracle, stream):
    """As in vLLM; the model's own end never is a part of the text."""
    new = said(oracle, 16, TEXT)
    at = new.index(new[6])
    more = {"stop_token_ids": [new[6]], "include_stop_str_in_output": True}
    reply = complete(client, TEXT, stream=stream, extra_body=more)
    text = "".join(chunk.choices[0].text for chunk in reply) if stream else reply.choices[0].text
    assert text == oracle.decode(new[: at + 1])
    end = {str(oracle.special["<|im_end|>"]): 100}
    more = {"include_stop_str_in_output": True, "skip_special_tokens": False}
    assert complete(client, TEXT, logit_bias=end, extra_body=more).choices[0].text == ""


# -------------------------------------------------------------------------------------------------------------- limits


def serving(binary, folder, *words, context=tiny_llm.CONTEXT):
    """A server over `tiny` alone, with these words."""
    tiny_llm.make(folder / "models" / "tiny", context=context)
    start, started = starter(binary, folder)
    listen = ["--http-port", "{http}", "--grpc-port", "{grpc}"]
    return start("serve", "--model-repository", folder / "models", *listen, *words), started


BOUNDS = {
    "cache": (["--kv-cache-bytes", str(SMALL_CACHE)], SMALL_CONTEXT, "--kv-cache-bytes"),
    "flag": (["--max-model-len", "100"], 100, "--max-model-len"),
}


@pytest.mark.parametrize("bound", BOUNDS)
def test_a_context_names_what_bounds_it(binary, tmp_path, bound):
    words, tokens, flag = BOUNDS[bound]
    server, started = serving(binary, tmp_path, *words)
    try:
        assert connect(server).models.retrieve("tiny").max_model_len == tokens
        for body in ({"prompt": [65] * 200}, {"prompt": "a", "max_tokens": 300}):
            message = refused(server, body, "/v1/completions")["message"]
            assert f"the context of {tokens} tokens" in message and flag in message, message
            others = {"--kv-cache-bytes", "--max-model-len"} - {flag}
            assert not any(other in message for other in others), message
        warned = f"a context of {tokens} of the model's {tiny_llm.CONTEXT} tokens" in server.log.read_text()
        assert warned == (bound == "cache"), server.tail()
        stop_all(started)
    finally:
        for each in started:
            each.kill()


# --------------------------------------------------------------------------------------------------------------- paths


@pytest.fixture(scope="module")
def named(binary, tmp_path_factory):
    """A server of one model with two names, of which one has slashes."""
    folder = tmp_path_factory.mktemp("named")
    tiny_llm.make(folder / "tiny")
    start, started = starter(binary, folder)
    try:
        words = ["--served-model-name", *NAMES, "--port", "{http}"]
        yield start("vllm", "serve", folder / "tiny", *words)
        stop_all(started)
    finally:
        for each in started:
            each.kill()


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("name", NAMES)
def test_a_model_is_retrieved_by_each_name(named, base, name):
    """With its slashes escaped, as the client does it, or as they are."""
    assert connect(named, base).models.retrieve(name).id == name
    card = requests.get(f"{named.url}{base}/models/{name}", timeout=10)
    assert card.status_code == 200, card.text
    assert (card.json()["id"], card.json()["root"]) == (name, NAMES[0])


def test_paths_below_a_model_that_is_none_are_no_route(named):
    for path in ("/v1/models/qwen/versions/1", "/v1/models/nobody/at/all"):
        reply = requests.get(named.url + path, timeout=10)
        assert (reply.status_code, reply.json()) == (404, {"error": "Not Found"})
    assert requests.post(f"{named.url}/v1/models/a/b:predict", json={}, timeout=10).status_code == 404
    with pytest.raises(openai.NotFoundError):
        connect(named, "/openai/v1").models.retrieve("nobody/at/all")


ABSENT = {
    "embeddings": ("POST", "/v1/embeddings", 404),
    "responses": ("POST", "/v1/responses", 404),
    "below": ("POST", "/openai/v1/audio/speech", 404),
    "method": ("GET", "/v1/chat/completions", 405),
    "other method": ("DELETE", "/openai/v1/models", 405),
}


@pytest.mark.parametrize("case", ABSENT)
def test_paths_that_are_not_served_are_refused_in_openais_form(service, case):
    method, path, status = ABSENT[case]
    reply = requests.request(method, service.url + path, timeout=10)
    assert reply.status_code == status, reply.text
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and (error["code"], error["param"]) == (status, None)


def test_the_client_reads_them(client):
    with pytest.raises(openai.NotFoundError, match="Not Found"):
        client.embeddings.create(model="tiny", input="a")


def test_paths_of_others_are_refused_as_ever(service):
    for method, path, status in (("GET", "/v1/nothing", 404), ("DELETE", "/v1/models/iris", 405)):
        reply = requests.request(method, service.url + path, timeout=10)
        assert (reply.status_code, isinstance(reply.json()["error"], str)) == (status, True)


def test_what_is_not_text_is_told_by_its_type(service):
    reply = requests.post(f"{service.url}/v2/models/tiny/generate", json={"text_input": 5}, timeout=10)
    assert reply.status_code == 400 and "but got an integer instead" in reply.json()["error"], reply.text


def test_a_queue_that_is_full_names_its_model_and_its_flag(binary, tmp_path):
    words = ["--max-num-seqs", "1", "--queue-size", "1"]
    server, started = serving(binary, tmp_path, *words, context=LONG_CONTEXT)
    try:
        # Where nothing waits a request enters with all of its answers: one runs, and more wait than others may.
        holding = connect(server).completions.create(
            **GREEDY, prompt="a", max_tokens=LONG, n=3, stream=True, extra_body={"ignore_eos": True}
        )
        next(iter(holding))
        with pytest.raises(openai.RateLimitError) as caught:
            complete(connect(server), "b", max_tokens=1)
        assert "model 'tiny'" in caught.value.message and "--queue-size" in caught.value.message
        holding.close()
        stop_all(started)
    finally:
        for each in started:
            each.kill()


def test_the_prompts_of_a_request_do_not_wait_for_each_other(binary, tmp_path):
    """Where nothing waits all of them enter, however short the queue is; elsewhere none does."""
    server, started = serving(binary, tmp_path, "--max-num-seqs", "4", "--queue-size", "8", context=LONG_CONTEXT)
    try:
        for prompts, n in ((13, 1), (64, 4), (13, 16)):
            reply = complete(connect(server), [f"{number} is" for number in range(prompts)], n=n, max_tokens=2)
            assert len(reply.choices) == prompts * n
        holding = connect(server).completions.create(
            **GREEDY, prompt=["a", "b"], max_tokens=LONG, n=4, stream=True, extra_body={"ignore_eos": True}
        )
        next(iter(holding))
        with pytest.raises(openai.RateLimitError):
            complete(connect(server), ["c"] * 13, max_tokens=1)
        eventually(lambda: sampled(server, "vllm:num_requests_waiting", model_name="tiny"), 4)
        holding.close()
        wait_for(server, 0)
        stop_all(started)
    finally:
        for each in started:
            each.kill()
