"""Thoughts as OpenAI's own client reads them: apart from the answer, before calls and forms, and left out on request.

The models repeat what a message tells them to (`tool_service.py`).
"""

import openai
import pydantic
import pytest
import requests
from tool_service import (  # noqa: F401
    AFTER,
    FORMATS,
    PARIS,
    TOOLS,
    UTC,
    asking,
    calls_of,
    lines,
    named,
    of,
    parroting,
    parrots,
    same,
    say,
    streamed,
)

THINKERS = ("qwen", "magistral", "harmony")
# What a model writes for a thought and an answer.
WRITTEN = {
    "qwen": "<think>\nTHOUGHT\n</think>\n\nANSWER",
    "magistral": "[THINK]THOUGHT[/THINK]ANSWER",
    "harmony": "<|channel|>analysis<|message|>THOUGHT<|end|><|start|>assistant<|channel|>final<|message|>ANSWER",
}
THOUGHT = "Is it 世 </thin or\n\n[2] {}?"


class Answer(pydantic.BaseModel):
    days: int = pydantic.Field(ge=0, le=9)


class Weather(pydantic.BaseModel):
    city: str = pydantic.Field(max_length=12)
    days: int = pydantic.Field(ge=1, le=9)


FORM = {"type": "json_schema", "json_schema": {"name": "answer", "schema": of({"days": {"enum": [1, 2, 3]}})}}


def written(model, thought, answer=""):
    """An answer after a thought; calls bring their own beginning."""
    text = WRITTEN[model].replace("THOUGHT", thought)
    if model == "harmony" and answer.startswith("<|channel|>"):
        text = text.replace("<|channel|>final<|message|>", "")
    return text.replace("ANSWER", answer)


def settings(**values):
    return {"extra_body": {"chat_template_kwargs": values}}


def thoughts_of(message):
    return getattr(message, "reasoning", None)


def both(server, model, text, **more):
    """The whole answer, after it was seen that a stream says the same, thoughts first."""
    whole = say(server, model, text, **more)
    pieces = streamed(server, model, text, **more)
    same(whole, pieces)
    assert pieces.order == sorted(pieces.order, key=["reasoning", "content", "call"].index)
    return whole


def used(server, model, text, **more):
    return server.client.chat.completions.create(**asking(server, model, text, **more)).usage


# ------------------------------------------------------------------------------------------------------ thoughts, apart


@pytest.mark.parametrize("model", THINKERS)
def test_thoughts_and_an_answer(parrots, model):
    choice = both(parrots, model, written(model, THOUGHT, "Yes.\n"))
    assert (thoughts_of(choice.message), choice.message.content) == (THOUGHT, "Yes.\n")
    assert (choice.finish_reason, choice.message.tool_calls) == ("stop", None)


@pytest.mark.parametrize("model", THINKERS)
def test_tokens_of_thoughts_are_counted(parrots, model):
    encode = parrots.oracles[model].encode
    usage = used(parrots, model, written(model, THOUGHT, "Yes."))
    thought = usage.completion_tokens_details.reasoning_tokens
    # The marks may count or not.
    least, most = len(encode(THOUGHT)), len(encode(written(model, THOUGHT)))
    assert least <= thought <= most < usage.completion_tokens
    assert used(parrots, model, "Yes.").completion_tokens_details.reasoning_tokens == 0
    wish = {"stream": True, "stream_options": {"include_usage": True}}
    *_, last = parrots.client.chat.completions.create(**asking(parrots, model, written(model, THOUGHT, "Yes."), **wish))
    assert last.usage.completion_tokens_details.reasoning_tokens == thought


@pytest.mark.parametrize("model", THINKERS)
def test_thoughts_are_left_out(parrots, model):
    """They are thought all the same, and counted."""
    text, wish = written(model, THOUGHT, "Yes."), {"extra_body": {"include_reasoning": False}}
    choice = both(parrots, model, text, **wish)
    assert (thoughts_of(choice.message), choice.message.content) == (None, "Yes.")
    told, silent = used(parrots, model, text), used(parrots, model, text, **wish)
    assert told.completion_tokens_details == silent.completion_tokens_details


@pytest.mark.parametrize("model", THINKERS)
def test_nothing_but_an_answer(parrots, model):
    """Marks within it are text."""
    text = {"harmony": "<|channel|>final<|message|>Yes."}.get(model, "Yes. <think>No.</think>")
    choice = both(parrots, model, text)
    assert (thoughts_of(choice.message), choice.message.content) == (None, text.rpartition("<|message|>")[2])


@pytest.mark.parametrize("model", THINKERS)
def test_thoughts_that_are_cut_off(parrots, model):
    text = written(model, THOUGHT, "Yes.")
    most = len(parrots.oracles[model].encode(text[: text.index("</thin or")]))
    choice = both(parrots, model, text, max_tokens=most)
    assert choice.finish_reason == "length"
    assert (thoughts_of(choice.message).strip(), choice.message.content) == ("Is it 世", None)


@pytest.mark.parametrize("model", THINKERS)
def test_whitespace_around_thoughts_is_none_of_them(parrots, model):
    choice = both(parrots, model, written(model, f"\n {THOUGHT} \n\n", "Yes."))
    assert (thoughts_of(choice.message), choice.message.content) == (THOUGHT, "Yes.")


NO_MESSAGE = [
    ("<|channel|>final Yes.", None, "Yes."),
    ("<|channel|>analysis Hm.<|end|><|start|>assistant<|channel|>final<|message|>Yes.", "Hm.", "Yes."),
    ("<|channel|>analysis Hm.", "Hm.", None),
]


@pytest.mark.parametrize("text, thought, said", NO_MESSAGE)
def test_parts_of_harmony_without_a_message_are_told(parrots, text, thought, said):
    choice = both(parrots, "harmony", text)
    assert (thoughts_of(choice.message), choice.message.content) == (thought, said)


@pytest.mark.parametrize("model", THINKERS)
def test_empty_thoughts_are_none(parrots, model):
    choice = both(parrots, model, written(model, "", "Yes."))
    assert (thoughts_of(choice.message), choice.message.content) == (None, "Yes.")


def test_a_prompt_that_opens_thoughts(parrots):
    after = AFTER["qwen"] + "<think>\n"
    choice = both(parrots, "qwen", f"{THOUGHT}\n</think>\n\nYes.", after=after, **settings(opens=True))
    assert (thoughts_of(choice.message), choice.message.content) == (THOUGHT, "Yes.")
    choice = both(parrots, "qwen", "and so on", after=after, **settings(opens=True))
    assert (thoughts_of(choice.message), choice.message.content) == ("and so on", None)


def test_a_model_that_is_told_not_to_think(parrots):
    after = AFTER["qwen"] + "<think>\n\n</think>\n\n"
    choice = both(parrots, "qwen", "<think>Yes.", after=after, **settings(enable_thinking=False))
    assert (thoughts_of(choice.message), choice.message.content) == (None, "<think>Yes.")


@pytest.mark.parametrize("open", ["<think>", "<think>\nWell", "<think>\nWell</think>"])
def test_a_message_that_is_continued(parrots, open):
    """It may end within thoughts."""
    words = lines(parrots, "qwen", "now</think>Yes." if open.count("<") == 1 else "Yes.", after=open)
    messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": words + open}]
    how = {"continue_final_message": True, "add_generation_prompt": False}
    reply = parrots.client.chat.completions.create(model="qwen", temperature=0, messages=messages, extra_body=how)
    message = reply.choices[0].message
    assert (thoughts_of(message), message.content) == (("now" if open.count("<") == 1 else None), "Yes.")


def test_thoughts_go_back_to_the_template(parrots):
    """Under the name that it reads, whatever a client calls them."""
    prompts = []
    for extra in ({}, {"reasoning": "hm"}, {"reasoning_content": "hm"}):
        messages = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "Yes.", **extra}]
        reply = requests.post(parrots.url + "/tokenize", json={"model": "qwen", "messages": messages}, timeout=60)
        prompts.append(reply.json()["tokens"])
    encode = parrots.oracles["qwen"].encode
    turns = "<|im_start|>user\n?<|im_end|>\n<|im_start|>assistant\n{}Yes.<|im_end|>\n<|im_start|>assistant\n"
    assert prompts == [encode(turns.format(""))] + [encode(turns.format("<think>hm</think>"))] * 2


# ---------------------------------------------------------------------------------------- thoughts, and what comes then


@pytest.mark.parametrize("choice", ["auto", "required", "named"])
@pytest.mark.parametrize("model", THINKERS)
def test_calls_after_thoughts(parrots, model, choice):
    text = written(model, THOUGHT, FORMATS[model].write(("get_weather", PARIS)))
    wanted = named("get_weather") if choice == "named" else choice
    told = both(parrots, model, text, tools=TOOLS, tool_choice=wanted, max_tokens=300)
    assert (thoughts_of(told.message), told.message.content) == (THOUGHT, None)
    assert calls_of(told.message) == [("get_weather", PARIS)]
    assert told.finish_reason == ("stop" if choice == "named" else "tool_calls")


@pytest.mark.parametrize("model", THINKERS)
def test_a_text_and_calls_after_thoughts(parrots, model):
    calls = FORMATS[model].write(("get_weather", PARIS), ("get_time", UTC))
    between = "<|channel|>commentary<|message|>So.<|end|><|start|>assistant" if model == "harmony" else "So.\n"
    told = both(parrots, model, written(model, THOUGHT, between + calls), tools=TOOLS)
    assert (thoughts_of(told.message), told.message.content) == (THOUGHT, "So.")
    assert calls_of(told.message) == [("get_weather", PARIS), ("get_time", UTC)]


@pytest.mark.parametrize("model", THINKERS)
def test_forms_after_thoughts(parrots, model):
    """The answer keeps to the form, thoughts to none."""
    told = both(parrots, model, written(model, THOUGHT, '{"days": 3}'), response_format=FORM)
    assert (thoughts_of(told.message), told.message.content) == (THOUGHT, '{"days": 3}')
    told = both(parrots, model, written(model, THOUGHT, "Yes."), response_format=FORM, max_tokens=300)
    assert thoughts_of(told.message) == THOUGHT and told.finish_reason == "stop"
    assert Answer.model_validate_json(told.message.content).days in (1, 2, 3)
    direct = "<|channel|>final<|message|>" if model == "harmony" else ""
    told = both(parrots, model, direct + '{"days": 2}', response_format=FORM, max_tokens=300)
    assert (thoughts_of(told.message), told.message.content) == (None, '{"days": 2}')


def test_forms_after_thoughts_that_the_prompt_opens(parrots):
    wish = {"after": AFTER["qwen"] + "<think>\n", "response_format": FORM, "max_tokens": 300}
    wish["extra_body"] = {"chat_template_kwargs": {"opens": True}}
    told = both(parrots, "qwen", f"{THOUGHT}</think>\n" + '{"days": 1}', **wish)
    assert (thoughts_of(told.message), told.message.content) == (THOUGHT, '{"days": 1}')


def test_forms_without_thoughts(parrots):
    """Where the model is told not to think, nothing but the form may come."""
    wish = {"after": AFTER["qwen"] + "<think>\n\n</think>\n\n", "response_format": FORM, "max_tokens": 300}
    wish["extra_body"] = {"chat_template_kwargs": {"enable_thinking": False}}
    told = both(parrots, "qwen", "<think>hm</think>" + '{"days": 1}', **wish)
    assert thoughts_of(told.message) is None
    assert Answer.model_validate_json(told.message.content).days in (1, 2, 3)


@pytest.mark.parametrize("model", THINKERS)
def test_models_of_pydantic_after_thoughts(parrots, model):
    complete = parrots.client.chat.completions
    asked = asking(parrots, model, written(model, THOUGHT, '{"days": 3}'), response_format=Answer)
    assert complete.parse(**asked).choices[0].message.parsed == Answer(days=3)
    with complete.stream(**asked) as stream:
        assert "".join(event.delta for event in stream if event.type == "content.delta") == '{"days": 3}'
    assert stream.get_final_completion().choices[0].message.parsed == Answer(days=3)
    text = written(model, THOUGHT, FORMATS[model].write(("Weather", PARIS)))
    wish = {"tools": [openai.pydantic_function_tool(Weather)], "tool_choice": "required"}
    (call,) = complete.parse(**asking(parrots, model, text, **wish)).choices[0].message.tool_calls
    assert call.function.parsed_arguments == Weather(city="Paris", days=2)


def test_strict_tools_after_thoughts(parrots):
    """Thoughts are free, and so is text; calls are not."""
    strict = [openai.pydantic_function_tool(Weather)]
    text = written("qwen", THOUGHT, FORMATS["qwen"].write(("Weather", PARIS)))
    told = both(parrots, "qwen", text, tools=strict, max_tokens=300)
    assert (thoughts_of(told.message), calls_of(told.message)) == (THOUGHT, [("Weather", PARIS)])
    wrong = written("qwen", THOUGHT, FORMATS["qwen"].write(("Weather", '{"days": null}')))
    told = both(parrots, "qwen", wrong, tools=strict, parallel_tool_calls=False, max_tokens=300)
    Weather.model_validate_json(calls_of(told.message)[0][1])


# --------------------------------------------------------------------------------------------------- what the flags say


@pytest.fixture(scope="module")
def told_nothing(binary, tmp_path_factory):
    flags = ("--reasoning-parser", "none", "--tool-call-parser", "none")
    with parroting(binary, tmp_path_factory.mktemp("none"), ("qwen",), flags) as server:
        yield server


def test_nothing_is_told_apart(told_nothing):
    text = written("qwen", "hm", FORMATS["qwen"].write(("get_weather", PARIS)))
    choice = both(told_nothing, "qwen", text)
    assert (thoughts_of(choice.message), choice.message.content) == (None, text)
    assert used(told_nothing, "qwen", text).completion_tokens_details is None
    with pytest.raises(openai.BadRequestError) as caught:
        say(told_nothing, "qwen", text, tools=TOOLS)
    assert caught.value.param == "tools"
    forced = '{"name": "get_weather", "parameters": ' + PARIS + "}"
    choice = both(told_nothing, "qwen", forced, tools=TOOLS, tool_choice="required")
    assert (calls_of(choice.message), choice.finish_reason) == ([("get_weather", PARIS)], "tool_calls")


@pytest.fixture(scope="module")
def told_otherwise(binary, tmp_path_factory):
    flags = ("--reasoning-parser=deepseek_r1", "--tool-call-parser=llama3_json")
    with parroting(binary, tmp_path_factory.mktemp("other"), ("hermes", "plain"), flags) as server:
        yield server


def test_an_operator_knows_better_than_the_template(told_otherwise):
    text = "<think>hm</think>" + FORMATS["llama"].write(("get_weather", PARIS))
    choice = both(told_otherwise, "hermes", text, tools=TOOLS)
    assert (thoughts_of(choice.message), calls_of(choice.message)) == ("hm", [("get_weather", PARIS)])
    assert choice.finish_reason == "tool_calls"
    choice = both(told_otherwise, "plain", "<think>hm</think>" + '{"days": 2}', response_format=FORM)
    assert (thoughts_of(choice.message), choice.message.content) == ("hm", '{"days": 2}')
