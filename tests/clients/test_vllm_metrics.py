"""What metrics tell of answers, by vLLM's names."""

import pytest
from openai_service import TEXT, complete, connect, eventually, sampled, serving

COUNT = 8
LONG = 4000
ENDS = ("stop", "length", "abort", "error")
WHOLE = ("e2e_request_latency", "request_queue_time", "request_inference_time", "request_prefill_time", "request_decode_time")


@pytest.fixture(scope="module")
def service(binary, models, tmp_path_factory):
    with serving(binary, models, tmp_path_factory.mktemp("metrics"), context=2 * LONG) as server:
        yield server


def told(server, name, **labels):
    return sampled(server, f"vllm:{name}", model_name="tiny", engine="0", **labels)


def ends(server):
    return [told(server, "request_success_total", finished_reason=end) for end in ENDS]


def test_answers_are_counted_by_why_they_ended(service):
    client = connect(service)
    before = ends(service)
    assert before == [0, 0, 0, 0]
    first = complete(client, TEXT, max_tokens=COUNT, n=2, extra_body={"ignore_eos": True})
    prompt = first.usage.prompt_tokens
    text = first.choices[0].text
    stopped = complete(client, TEXT, max_tokens=LONG, stop=text[len(text) // 2])
    assert stopped.choices[0].finish_reason == "stop"
    eventually(lambda: ends(service), [1, 2, 0, 0])
    with complete(client, TEXT, max_tokens=LONG, stream=True, extra_body={"ignore_eos": True}) as stream:
        next(iter(stream))
    eventually(lambda: ends(service), [1, 2, 1, 0])
    # Each of the two answers has the prompt, and so has what was broken off.
    assert told(service, "prompt_tokens_total") == 4 * prompt
    assert told(service, "time_to_first_token_seconds_count") == 4
    for name in WHOLE:
        assert told(service, f"{name}_seconds_count") == 3, name
        assert told(service, f"{name}_seconds_bucket", le="+Inf") == 3, name
    assert told(service, "request_prompt_tokens_sum") == 3 * prompt
    assert 2 * COUNT < told(service, "request_generation_tokens_sum") <= told(service, "generation_tokens_total")
    assert told(service, "request_generation_tokens_bucket", le="5000") == 3
    gaps, tokens = (told(service, name) for name in ("inter_token_latency_seconds_count", "generation_tokens_total"))
    assert gaps == tokens - 4


def test_what_takes_long_takes_long_there(service):
    seconds = ("e2e_request_latency_seconds_sum", "request_decode_time_seconds_sum", "inter_token_latency_seconds_sum")
    before = [told(service, name) for name in seconds]
    aborted = ends(service)[2]
    complete(connect(service), TEXT, max_tokens=500, extra_body={"ignore_eos": True})
    whole, decode, gaps = (told(service, name) - then for name, then in zip(seconds, before, strict=True))
    assert 0 < decode <= whole
    assert gaps == pytest.approx(decode, rel=1e-6)
    assert ends(service)[2] == aborted
