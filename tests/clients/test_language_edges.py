"""Where tools, thoughts, forms and Triton's fields meet: what one of them does must not undo another.

Models answer what the last message says; see `tool_service.py`.
"""

import json

import numpy as np
import openai
import pytest
import requests
import tritonclient.http
from tool_service import (  # noqa: F401
    FORMATS,
    PARIS,
    TELLING,
    TOOLS,
    WEATHER,
    asking,
    calls_of,
    lines,
    parrots,
    say,
    tool,
)

CIRCLE = {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}
ROUND = {"$defs": CIRCLE, "$ref": "#/$defs/a"}
DEEPER = {"$defs": CIRCLE, "type": "object", "properties": {"a": {"$ref": "#/$defs/a"}}, "required": ["a"]}


@pytest.mark.parametrize("more", [
    {"tools": [tool("f", ROUND)], "tool_choice": "required"},
    {"extra_body": {"structured_outputs": {"json": DEEPER}}},
    {"extra_body": {"structured_outputs": {"grammar": "start: start"}}},
])
def test_a_form_that_leads_nowhere(parrots, more):
    """Whether that is seen at once or in the middle of the answer, it is the request's fault, and others go on."""
    with pytest.raises(openai.BadRequestError, match="no text is allowed|cannot be|exceeded"):
        parrots.client.chat.completions.create(**asking(parrots, "hermes", "Hello.", max_tokens=200, **more))
    assert say(parrots, "hermes", "Hello.").message.content == "Hello."


def test_ids_of_another_api(parrots):
    """Mistral's template takes ids of nine characters alone; histories have others."""
    url, ids = parrots.url + "/v1/messages", ("toolu_062af4c1d2e3b4a5f6071829", "call_1")
    turns = []
    for id in ids:
        turns += [
            {"role": "user", "content": "What time is it?"},
            {"role": "assistant", "content": [{"type": "tool_use", "id": id, "name": "get_time", "input": {}}]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": id, "content": "noon"}]},
        ]
    body = {"model": "mistral", "max_tokens": 4, "messages": turns}
    reply = requests.post(url, json=body, timeout=60)
    assert reply.status_code == 200, reply.text


def test_strict_tools_bind_no_thoughts(parrots):
    """A mark among thoughts is a thought."""
    strict = [tool("get_weather", WEATHER["function"]["parameters"], strict=True)]
    call = FORMATS["qwen"].write(("get_weather", PARIS))
    choice = say(parrots, "qwen", "<think>a <tool_call> b</think>" + call, tools=strict, max_tokens=300)
    assert choice.message.reasoning == "a <tool_call> b"
    assert calls_of(choice.message) == [("get_weather", PARIS)]
    choice = say(parrots, "qwen", "\n<think>a <tool_call> b</think>" + call, tools=strict, max_tokens=300)
    assert (choice.message.reasoning, calls_of(choice.message)) == ("a <tool_call> b", [("get_weather", PARIS)])


def test_strict_tools_bind_no_text(parrots):
    """Also where it begins as thoughts do, or calls."""
    strict = [tool("get_weather", WEATHER["function"]["parameters"], strict=True)]
    for text in ("No.", "<b>Hi</b> <tool", "[1, 2]", "<", "<thin", "<thinking>"):
        choice = say(parrots, "qwen", text, tools=strict, max_tokens=300)
        assert (choice.message.content, choice.finish_reason) == (text, "stop")
    choice = say(parrots, "qwen", "<p>" + FORMATS["qwen"].write(("get_weather", PARIS)), tools=strict, max_tokens=300)
    assert (choice.message.content, calls_of(choice.message)) == ("<p>", [("get_weather", PARIS)])
    choice = say(parrots, "qwen", "<p>" + FORMATS["qwen"].write(("get_weather", "7")), tools=strict, max_tokens=300)
    assert calls_of(choice.message)[0][1].startswith("{")


@pytest.mark.parametrize("choice", ["auto", "required"])
def test_a_number_that_cannot_be_kept_is_told_of_its_tool(parrots, choice):
    strict = tool("f", {"type": "object", "properties": {"id": {"const": 1234567890123456789}}}, strict=True)
    what = r"tools\[1\] 'f': properties.id.const is 1234567890123456789, which cannot be kept to the digit"
    with pytest.raises(openai.BadRequestError, match=what):
        say(parrots, "hermes", "No.", tools=[WEATHER, strict], tool_choice=choice)


def test_tools_that_no_template_tells_of(parrots):
    what = "does not tell it of tools; force a call with tool_choice"
    with pytest.raises(openai.BadRequestError, match=what) as caught:
        say(parrots, "plain", "No.", tools=[WEATHER])
    assert caught.value.param == "tools"


OPEN = [{}, {"description": "Anything."}, {"properties": {"a": {"type": "integer"}}}, {"type": ["object", "null"]}]
OPEN += [{"anyOf": [{"type": "integer"}, {"$ref": "#/$defs/a"}], "$defs": {"a": {"properties": {"a": {"const": 1}}}}}]


@pytest.mark.parametrize("model", ["hermes", "llama", "magistral", "harmony"])
@pytest.mark.parametrize("parameters", OPEN)
def test_arguments_are_an_object(parrots, model, parameters):
    """Whether or not the schema says so."""
    forced = {"tools": [tool("f", parameters)], "tool_choice": "required", "parallel_tool_calls": False}
    choice = say(parrots, model, FORMATS[model].write(("f", '{"a": 1}')), **forced)
    assert calls_of(choice.message) == [("f", '{"a": 1}')]
    choice = say(parrots, model, FORMATS[model].write(("f", "7")), max_tokens=60, **forced)
    assert calls_of(choice.message)[0][1].startswith("{")


def test_arguments_that_are_no_object_are_refused(parrots):
    with pytest.raises(openai.BadRequestError, match=r"tools\[1\] 'f'.*are an object") as caught:
        say(parrots, "hermes", "No.", tools=[WEATHER, tool("f", {"type": "array"})])
    assert caught.value.param == "tools[1].function.parameters.type"


def test_a_chat_far_over_the_context(parrots):
    """Its prompt is not even written to its end."""
    messages = [{"role": "user", "content": "a" * (2 << 20)}]
    with pytest.raises(openai.BadRequestError, match="the prompt has more than 1048576 bytes.*context") as caught:
        parrots.client.chat.completions.create(model="hermes", messages=messages)
    assert caught.value.param == "messages"


@pytest.mark.parametrize("model", TELLING)
def test_a_call_that_a_stop_string_cuts(parrots, model):
    text = FORMATS[model].write(("get_weather", PARIS))
    choice = say(parrots, model, text, tools=TOOLS, stop=["aris"])
    assert (choice.finish_reason, choice.stop_reason) == ("stop", "aris")


@pytest.mark.parametrize("model", FORMATS)
def test_a_call_that_is_forced_is_no_text_when_it_is_cut_off(parrots, model):
    text = FORMATS[model].write(("get_weather", PARIS))
    for most in (1, 2, 4, 12):
        choice = say(parrots, model, text, tools=TOOLS, tool_choice="required", max_tokens=most)
        assert choice.finish_reason in ("length", "tool_calls")
        assert not choice.message.content


def stream(parrots, text, **more):
    body = {"text_input": lines(parrots, "plain", text, after=""), "max_tokens": 100, "temperature": 0, **more}
    reply = requests.post(f"{parrots.url}/v2/models/plain/generate_stream", json=body, timeout=60)
    assert reply.status_code == 200, reply.text
    return [json.loads(event.removeprefix("data: ")) for event in reply.text.split("\n\n") if event]


@pytest.mark.parametrize("text, stop", [("世🙂é ok", None), ("abc STOp x", ["STOP"])])
def test_tokens_of_pieces_add_up(parrots, text, stop):
    """Those that write half a character, and those that may begin a stop string, are counted too."""
    more = {"stop_words": stop} if stop else {}
    pieces = stream(parrots, text, return_num_output_tokens=True, **more)
    assert "".join(piece["text_output"] for piece in pieces) == text
    # A token for each byte, and the end.
    assert sum(piece["num_output_tokens"] for piece in pieces) == len(text.encode()) + 1


@pytest.mark.parametrize("more, what", [
    ({"lora_name": "a"}, "lora_name"),
    ({"guided_decoding_guide": "{}"}, "guided_decoding_guide"),
    ({"max_tokens": 3, "max_new_tokens": 5}, "max_new_tokens"),
    ({"multi_modal_data": {"image": ["x"]}}, "multi_modal_data"),
])
def test_what_would_change_the_answer_is_not_passed_over(parrots, more, what):
    body = {"text_input": "a", **more}
    reply = requests.post(f"{parrots.url}/v2/models/plain/generate", json=body, timeout=60)
    assert (reply.status_code, what in reply.json()["error"]) == (400, True), reply.text


def infer(parrots, *inputs):
    with tritonclient.http.InferenceServerClient(parrots.url.removeprefix("http://")) as client:
        asked = []
        for name, datatype, values in [("text_input", "BYTES", np.array(["a"], object)), *inputs]:
            asked.append(tritonclient.http.InferInput(name, values.shape, datatype))
            asked[-1].set_data_from_numpy(values)
        return client.infer("plain", asked)


@pytest.mark.parametrize("input, what", [
    (("zzz", "FP64", np.array([1.0])), "unexpected inference input 'zzz'"),
    (("temperature", "FP32", np.array([np.nan], np.float32)), "'temperature' holds NaN"),
    (("top_p", "FP64", np.array([np.inf])), "'top_p' holds inf"),
])
def test_tensors_that_say_nothing(parrots, input, what):
    with pytest.raises(tritonclient.http.InferenceServerException, match=what) as caught:
        infer(parrots, input)
    assert caught.value.status() == "400"


def test_long_names_and_many_tools(parrots):
    """Anthropic's clients have more of both than OpenAI's."""
    tools = [{"name": f"{'n' * 96}{n}", "input_schema": {"type": "object"}} for n in range(200)]
    body = {"model": "hermes", "max_tokens": 2, "messages": [{"role": "user", "content": "Hi"}], "tools": tools}
    reply = requests.post(parrots.url + "/v1/messages/count_tokens", json=body, timeout=60)
    assert reply.status_code == 200, reply.text
