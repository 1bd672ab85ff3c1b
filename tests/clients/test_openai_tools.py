"""Calls of tools as OpenAI's own client reads them: those a model makes when it likes, and those it is made to make.

The models repeat what a message tells them to (`tool_service.py`), each in a format of its own. Thoughts are in
`test_openai_reasoning.py`.
"""

import asyncio
import json
import re
import time

import openai
import parrot_llm
import pydantic
import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families
from tool_service import (  # noqa: F401
    AFTER,
    CLOCK,
    FORMATS,
    PARIS,
    TELLING,
    TOOLS,
    UTC,
    WEATHER,
    asking,
    calls_of,
    connect,
    lines,
    named,
    of,
    parrots,
    same,
    say,
    streamed,
    streamed_choices,
    tool,
)

# Whatever may stand in arguments: brackets and quotes in texts, marks of calls, characters of four bytes, numbers.
NESTED = '{"city": "Köln 🙂", "a": {"b": [1, {"c": "} \\"]\\\\"}], "d": -1.5e3}, "e": null, "f": [], "世": "[x]"}'
WHAT_FITS = {"get_weather": {"city": str, "days": int}, "get_time": {"zone": str}}


def fits(name, arguments):
    """Do arguments follow the schema of their tool?"""
    values = json.loads(arguments)
    assert {key: type(value) for key, value in values.items()} == WHAT_FITS[name]
    assert len(values.get("city", "")) <= 12 and values.get("days", 1) in (1, 2, 3)
    assert values.get("zone", "UTC") in ("UTC", "CET")


def both(server, model, text, **more):
    """The whole answer, after it was seen that a stream says the same."""
    whole = say(server, model, text, **more)
    same(whole, streamed(server, model, text, **more))
    return whole


def refused(server, model, **more):
    with pytest.raises(openai.BadRequestError) as caught:
        server.client.chat.completions.create(**asking(server, model, "Hello.", **more))
    return caught.value


# ------------------------------------------------------------------------------------------------ what a model likes to


@pytest.mark.parametrize("model", TELLING)
def test_a_call(parrots, model):
    choice = both(parrots, model, FORMATS[model].write(("get_weather", PARIS)), tools=TOOLS)
    assert (choice.message.role, choice.message.content) == ("assistant", None)
    assert calls_of(choice.message) == [("get_weather", PARIS)]
    assert choice.finish_reason == "tool_calls"
    (call,) = choice.message.tool_calls
    assert call.type == "function"
    assert re.fullmatch("[0-9a-z]{9}" if model in ("mistral", "magistral") else "call_[0-9a-z]{24}", call.id)


@pytest.mark.parametrize("model", TELLING)
def test_several_calls(parrots, model):
    calls = [("get_weather", PARIS), ("get_time", UTC), ("get_weather", NESTED)]
    choice = both(parrots, model, FORMATS[model].write(*calls), tools=TOOLS, tool_choice="auto")
    assert (choice.message.content, calls_of(choice.message)) == (None, calls)
    assert len({call.id for call in choice.message.tool_calls}) == 3
    assert choice.finish_reason == "tool_calls"


@pytest.mark.parametrize("model", TELLING)
def test_one_call_where_several_are_not_wanted(parrots, model):
    """What a model would go on to say is not even computed."""
    text = FORMATS[model].write(("get_weather", PARIS), ("get_time", UTC), ("get_weather", NESTED))
    wish = {"tools": TOOLS, "parallel_tool_calls": False}
    choice = both(parrots, model, text, **wish)
    assert (calls_of(choice.message), choice.finish_reason) == ([("get_weather", PARIS)], "tool_calls")
    reply = parrots.client.chat.completions.create(**asking(parrots, model, text, **wish))
    one = FORMATS[model].write(("get_weather", PARIS))
    assert reply.usage.completion_tokens <= len(parrots.oracles[model].encode(one)) + 1


BEFORE = {
    "llama": "I look it up. <|python_tag|>CALLS",
    "harmony": "<|channel|>commentary<|message|>I look it up.<|end|><|start|>assistantCALLS",
}


@pytest.mark.parametrize("model", TELLING)
def test_text_before_a_call(parrots, model):
    calls = FORMATS[model].write(("get_weather", NESTED), ("get_time", UTC))
    text = BEFORE.get(model, "I look it up.\n\nCALLS").replace("CALLS", calls)
    choice = both(parrots, model, text, tools=TOOLS)
    assert choice.message.content == "I look it up."
    assert calls_of(choice.message) == [("get_weather", NESTED), ("get_time", UTC)]
    assert choice.finish_reason == "tool_calls"


def test_text_after_a_call(parrots):
    text = FORMATS["hermes"].write(("get_time", "{}")) + "\n That is it. "
    choice = both(parrots, "hermes", text, tools=TOOLS)
    assert (choice.message.content, calls_of(choice.message)) == ("That is it. ", [("get_time", "{}")])


@pytest.mark.parametrize("model", TELLING)
def test_an_answer_without_calls(parrots, model):
    """With tools it is what it is without them."""
    text = "<|channel|>final<|message|>Nothing: {} < [.\n" if model == "harmony" else "Nothing: {} < [.\n"
    choice = both(parrots, model, text, tools=TOOLS)
    assert (choice.message.content, choice.message.tool_calls) == ("Nothing: {} < [.\n", None)
    assert choice.finish_reason == "stop"
    assert both(parrots, model, text).message.content == choice.message.content


@pytest.mark.parametrize("model", TELLING)
def test_a_call_that_is_cut_off(parrots, model):
    """It is told as far as it came, and that it was cut off."""
    text = FORMATS[model].write(("get_weather", NESTED))
    most = len(parrots.oracles[model].encode(text[: text.index('"d"')]))
    choice = both(parrots, model, text, tools=TOOLS, max_tokens=most)
    assert choice.finish_reason == "length"
    assert calls_of(choice.message) == [("get_weather", NESTED[: NESTED.index('"d"')])]


NO_CALLS = [
    ("hermes", '<tool_call>\n{"nam'),
    ("hermes", "<tool_call>\nget_time(1)\n</tool_call>"),
    ("hermes", '<tool_call>{"name": 1}</tool_call> so'),
    ("hermes", "a <tool_ b <tool_call>"),
    ("qwen", "<tool_call>\nget_time(1)\n</tool_call>"),
    ("granite", "<|tool_call|>[1, 2]"),
    ("granite", "Well, [1, 2]"),
    ("llama", '{"name": "get_rich", "parameters": {}}'),
    ("llama", '{"city": "Paris"}'),
    ("llama", 'No: {"name": "get_time", "parameters": {}}'),
    ("llama", "<|python_tag|>print(1)"),
    ("mistral", "Well [TOOL_CALLS]now"),
    ("mistral", '[{"name": "get_time", "arguments": {}}]'),
]


@pytest.mark.parametrize("model, text", NO_CALLS)
def test_what_is_no_call_is_text(parrots, model, text):
    choice = both(parrots, model, text, tools=TOOLS)
    assert (choice.message.content, choice.message.tool_calls) == (text, None)
    assert choice.finish_reason == "stop"


BROKEN = '{"city": Paris, "days": 2}'


@pytest.mark.parametrize("model", TELLING)
def test_a_call_whose_arguments_are_no_json_is_text(parrots, model):
    """A stream has told the call by then, and goes on with its arguments as they are."""
    text = FORMATS[model].write(("get_weather", BROKEN))
    choice = say(parrots, model, text, tools=TOOLS)
    told = BROKEN if model == "harmony" else text
    assert (choice.message.content, choice.message.tool_calls, choice.finish_reason) == (told, None, "stop")
    pieces = streamed(parrots, model, text, tools=TOOLS)
    assert (pieces.content, pieces.named, pieces.finish_reason) == ("", [("get_weather", BROKEN)], "tool_calls")


def test_of_several_calls_those_are_told_that_are_json(parrots):
    good, bad = (FORMATS["hermes"].write(call) for call in (("get_time", UTC), ("get_weather", BROKEN)))
    for text in (f"{good}\n{bad}", f"{bad}\n{good}"):
        told = say(parrots, "hermes", text, tools=TOOLS).message
        assert (told.content, calls_of(told)) == (bad, [("get_time", UTC)])


EXTRA = '{"id": 7, "name": "get_time", "WORD": {"zone": "UTC"}, "why": {"a": "}"}}'
EXTRAS = [
    ("hermes", "<tool_call>\n" + EXTRA.replace("WORD", "arguments") + "\n</tool_call>"),
    ("granite", "<|tool_call|>[" + EXTRA.replace("WORD", "arguments") + "]"),
    ("llama", EXTRA.replace("WORD", "parameters")),
]


@pytest.mark.parametrize("model, text", EXTRAS)
def test_what_a_call_has_besides_is_no_part_of_its_arguments(parrots, model, text):
    choice = both(parrots, model, text, tools=TOOLS)
    assert (choice.message.content, calls_of(choice.message)) == (None, [("get_time", UTC)])


def test_a_call_of_an_unknown_tool_is_the_callers_to_judge(parrots):
    """Where a mark says that it is a call."""
    choice = both(parrots, "hermes", FORMATS["hermes"].write(("get_rich", "{}")), tools=TOOLS)
    assert calls_of(choice.message) == [("get_rich", "{}")]


@pytest.mark.parametrize("model", ["hermes", "llama"])
def test_choices_and_logprobs(parrots, model):
    """Choices do not mix, and no token is lost where a piece of text waits to be told apart."""
    text = FORMATS[model].write(("get_weather", PARIS))
    wish = {"tools": TOOLS, "n": 3, "temperature": 1, "logprobs": True, "stream_options": {"include_usage": True}}
    tokens, used = {}, None
    for chunk in parrots.client.chat.completions.create(**asking(parrots, model, text, stream=True, **wish)):
        used = chunk.usage or used
        for choice in chunk.choices:
            told = choice.logprobs.content if choice.logprobs else []
            tokens.setdefault(choice.index, bytearray()).extend(b"".join(bytes(each.bytes) for each in told))
    assert tokens == dict.fromkeys(range(3), f"{text}<|im_end|>".encode())
    assert used.completion_tokens == 3 * (len(parrots.oracles[model].encode(text)) + 1)
    del wish["stream_options"]
    found = streamed_choices(parrots, model, text, **wish)
    assert {index: each.named for index, each in found.items()} == dict.fromkeys(range(3), [("get_weather", PARIS)])
    assert len({each.calls[0][0] for each in found.values()}) == 3


# ------------------------------------------------------------------------------------------------ what it is made to do

# What does not follow the form, but begins where a form that leaves room for thoughts has none.
REFUSALS = {"magistral": "[TOOL_CALLS]Hello.", "harmony": "<|channel|>commentary Hello."}


@pytest.mark.parametrize("model", FORMATS)
def test_a_call_is_required(parrots, model):
    """Of any tool, and of one if not more are wanted: however little the model likes it, it follows the schema."""
    kwargs = {"extra_body": {"chat_template_kwargs": {"enable_thinking": False}}} if model == "qwen" else {}
    after = AFTER[model] + ("<think>\n\n</think>\n\n" if model == "qwen" else "")
    wish = {"tools": TOOLS, "tool_choice": "required", "after": after, **kwargs}
    text = REFUSALS.get(model, "Hello.")
    choice = both(parrots, model, text, parallel_tool_calls=False, max_tokens=300, **wish)
    ((name, arguments),) = calls_of(choice.message)
    fits(name, arguments)
    assert (choice.message.content, choice.finish_reason) == (None, "tool_calls")


@pytest.mark.parametrize("model", FORMATS)
def test_calls_that_are_required_may_be_several(parrots, model):
    calls = [("get_weather", PARIS), ("get_time", UTC)]
    single = model in ("harmony", "llama", "plain")
    text = FORMATS[model].write(*(calls[:1] if single else calls))
    choice = both(parrots, model, text, tools=TOOLS, tool_choice="required")
    assert (calls_of(choice.message), choice.finish_reason) == (calls[:1] if single else calls, "tool_calls")


@pytest.mark.parametrize("model", FORMATS)
def test_a_call_of_one_tool(parrots, model):
    """Which the caller knows to come, so that the answer ends as any other."""
    text = FORMATS[model].write(("get_time", UTC))
    for wanted in ("get_time", "get_weather"):
        wish = {"tools": TOOLS, "tool_choice": named(wanted), "max_tokens": 300}
        choice = both(parrots, model, text, **wish)
        ((name, arguments),) = calls_of(choice.message)
        assert (name, choice.message.content, choice.finish_reason) == (wanted, None, "stop")
        fits(name, arguments)


def test_tools_without_parameters(parrots):
    """Any object is fine where no schema says more."""
    text = FORMATS["hermes"].write(("ping", '{"a": [1, "x"]}'))
    for choice in ("auto", "required", named("ping")):
        answer = both(parrots, "hermes", text, tools=[tool("ping")], tool_choice=choice)
        assert calls_of(answer.message) == [("ping", '{"a": [1, "x"]}')]


@pytest.mark.parametrize("model", ["hermes", "llama"])
def test_no_call_is_wanted(parrots, model):
    """The model is not told of tools, and what it says is text."""
    text = FORMATS[model].write(("get_weather", PARIS))
    wish = {"tools": TOOLS, "tool_choice": "none"}
    choice = both(parrots, model, text, **wish)
    assert (choice.message.content, choice.message.tool_calls, choice.finish_reason) == (text, None, "stop")
    told, silent, nothing = (
        parrots.client.chat.completions.create(**asking(parrots, model, text, **more)).usage.prompt_tokens
        for more in ({"tools": TOOLS}, wish, {})
    )
    assert told > silent == nothing


@pytest.mark.parametrize("model", ["hermes", "qwen", "granite"])
def test_strict_tools(parrots, model):
    """The model may say and call what it likes, but calls follow the schema."""
    strict = [tool("get_weather", WEATHER["function"]["parameters"], strict=True), CLOCK]
    for text in ("Nothing: <tool_ {}", FORMATS[model].write(("get_weather", PARIS))):
        choice = both(parrots, model, text, tools=strict, max_tokens=300)
        said = choice.message.content or FORMATS[model].write(*calls_of(choice.message))
        assert (said, choice.finish_reason) == (text, "tool_calls" if choice.message.tool_calls else "stop")
    wrong = "Well.\n" + FORMATS[model].write(("get_weather", '{"days": 7, "town": null}'))
    choice = both(parrots, model, wrong, tools=strict, parallel_tool_calls=False, max_tokens=300)
    ((name, arguments),) = calls_of(choice.message)
    fits(name, arguments)
    assert (name, choice.message.content) == ("get_weather", "Well.")


def test_strict_tools_where_no_mark_says_what_a_call_is(parrots):
    strict = [tool("get_weather", WEATHER["function"]["parameters"], strict=True)]
    assert refused(parrots, "llama", tools=strict).param == "tools.function.strict"
    choice = say(parrots, "llama", "Hello.", tools=strict, tool_choice="required")
    fits(*calls_of(choice.message)[0])


FORM = {"type": "json_schema", "json_schema": {"name": "answer", "schema": of({"days": {"enum": [1, 2, 3]}})}}


@pytest.mark.parametrize("model", TELLING)
def test_a_form_or_a_call(parrots, model):
    call = both(parrots, model, FORMATS[model].write(("get_weather", PARIS)), tools=TOOLS, response_format=FORM)
    assert (calls_of(call.message), call.finish_reason) == ([("get_weather", PARIS)], "tool_calls")
    text = '<|channel|>final<|message|>{"days": 3}' if model == "harmony" else '{"days": 3}'
    form = both(parrots, model, text, tools=TOOLS, response_format=FORM)
    assert (form.message.content, form.message.tool_calls, form.finish_reason) == ('{"days": 3}', None, "stop")


ENDS = [("hermes", "<|im_end|>"), ("hermes", "<|endoftext|>"), ("harmony", "<|call|>"), ("harmony", "<|return|>")]


@pytest.mark.parametrize("model, end", ENDS)
def test_each_end_of_a_model_ends_a_form(parrots, model, end):
    """Where it may end and may go on, the model has the word, and says it in its way."""
    text = "<|channel|>final<|message|>yes" if model == "harmony" else "yes"
    wish = {"end": end, "max_tokens": 40, "extra_body": {"structured_outputs": {"regex": "[a-z]*"}}}
    choice = both(parrots, model, text, **wish)
    assert (choice.message.content, choice.finish_reason) == ("yes", "stop")


def test_what_excludes_each_other(parrots):
    for choice in ("required", named("get_time")):
        error = refused(parrots, "hermes", tools=TOOLS, tool_choice=choice, response_format=FORM)
        assert error.param == "response_format"
    error = refused(parrots, "hermes", tools=TOOLS, tool_choice=named("nobody"))
    assert error.param == "tool_choice.function.name"
    assert refused(parrots, "hermes", tool_choice="required").param == "tool_choice"
    wrong = tool("f", {"type": "object", "properties": {"a": {"$ref": "#/lost"}}})
    for choice in ("required", named("f")):
        error = refused(parrots, "hermes", tools=[*TOOLS, wrong], tool_choice=choice)
        assert error.param == "tools" and error.body["message"].startswith("tools[2] 'f': ")


def test_models_that_know_no_tools(parrots):
    """What they say is not taken for a call, unless they are made to call."""
    for choice in ({}, {"tool_choice": "auto"}):
        error = refused(parrots, "plain", tools=TOOLS, **choice)
        assert error.param == "tools" and "tool_choice" in error.message
    assert say(parrots, "plain", "Hello.", tools=TOOLS, tool_choice="none").message.content == "Hello."


# ------------------------------------------------------------------------------------------------ what comes back to it


def dumped(value):
    """JSON as templates write it."""
    return json.dumps(value, ensure_ascii=False)


def rendered(model, messages, tools):
    """The prompt that a model's template makes, without a template."""
    end, begin = "<|end|>" if model == "harmony" else "<|im_end|>", AFTER[model].partition("\n")[2]
    prompt = "<|im_start|>system\n<tools>\n" + "".join(dumped(each) + "\n" for each in tools) + f"</tools>{end}\n"
    for message in messages:
        role, content = message["role"], message["content"] or ""
        if isinstance(content, list):
            texts = [part["text"] for part in content]
            content = "".join(f"[{text}]" for text in texts) if model == "mistral" else "\n".join(texts)
        prompt += f"<|im_start|>{role}" + (f" {message['tool_call_id']}" if role == "tool" else "") + f"\n{content}"
        calls = [(each["function"]["name"], each["function"]["arguments"]) for each in message.get("tool_calls", ())]
        calls = [(name, dumped(json.loads(text) if text[:1] in ("{", "") else text)) for name, text in calls]
        write = FORMATS[model].write
        if model in ("hermes", "qwen"):
            prompt += "".join("\n" + write(call) for call in calls)
        elif model == "llama":
            prompt += "; ".join("<|python_tag|>" + write(call) for call in calls)
        elif model == "harmony":
            prompt += "".join(write(call) + "<|call|>" for call in calls)
        elif calls:
            prompt += write(*calls)
        prompt += f"{end}\n"
    return prompt + begin


def called(id, name, arguments):
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


@pytest.mark.parametrize("model", TELLING)
def test_results_go_back(parrots, model):
    """Templates see arguments as the objects that they are, and content as the text that it is."""
    ids = ["a1b2c3d4e", "A1B2C3D4E", "123456789"]
    made = [
        called(ids[0], "get_weather", '{"city":"Köln \\ud83d\\ude42",  "days":2}'),
        called(ids[1], "get_time", "not JSON"),
    ]
    messages = [
        {"role": "user", "content": "How is it?"},
        {"role": "assistant", "content": None, "tool_calls": made},
        {"role": "tool", "tool_call_id": ids[0], "content": '{"sky": "blue"}'},
        {"role": "tool", "tool_call_id": ids[1], "content": "no such zone"},
        {"role": "assistant", "content": "Once more.", "tool_calls": [called(ids[2], "get_weather", NESTED)]},
        {"role": "tool", "tool_call_id": ids[2], "content": "rain"},
        {"role": "user", "content": [{"type": "text", "text": "So"}, {"type": "text", "text": "what?"}]},
    ]
    expected = rendered(model, messages, TOOLS)
    body = {"model": model, "messages": messages, "tools": TOOLS}
    told = requests.post(parrots.url + "/tokenize", json=body, timeout=60).json()
    back = {"model": model, "tokens": told["tokens"]}
    assert requests.post(parrots.url + "/detokenize", json=back, timeout=60).json() == {"prompt": expected}
    assert told["tokens"] == parrots.oracles[model].encode(expected)
    reply = parrots.client.chat.completions.create(**body, max_tokens=1)
    assert reply.usage.prompt_tokens == told["count"]


@pytest.mark.parametrize("model", TELLING)
def test_a_conversation(parrots, model):
    """What a client is given it gives back as it is, ids of calls and all."""
    asked = asking(parrots, model, FORMATS[model].write(("get_weather", PARIS), ("get_time", UTC)), tools=TOOLS)
    message = parrots.client.chat.completions.create(**asked).choices[0].message
    results = [{"role": "tool", "tool_call_id": call.id, "content": "fine"} for call in message.tool_calls]
    text = "<|channel|>final<|message|>Fine." if model == "harmony" else "Fine."
    results[-1]["content"] = lines(parrots, model, text)
    asked["messages"] += [message.model_dump(exclude_none=True), *results]
    assert parrots.client.chat.completions.create(**asked).choices[0].message.content == "Fine."


# ----------------------------------------------------------------------------------------------- what the client offers


class Weather(pydantic.BaseModel):
    city: str
    days: int = pydantic.Field(ge=1, le=9)


class Answer(pydantic.BaseModel):
    good: bool


def test_tools_and_answers_of_pydantic(parrots):
    wish = {"tools": [openai.pydantic_function_tool(Weather)], "response_format": Answer}
    text = FORMATS["hermes"].write(("Weather", PARIS))
    complete = parrots.client.chat.completions
    (call,) = complete.parse(**asking(parrots, "hermes", text, **wish)).choices[0].message.tool_calls
    assert call.function.parsed_arguments == Weather(city="Paris", days=2)
    assert complete.parse(**asking(parrots, "hermes", '{"good": true}', **wish)).choices[0].message.parsed.good
    with complete.stream(**asking(parrots, "hermes", text, **wish)) as stream:
        events = list(stream)
    (done,) = [event for event in events if event.type == "tool_calls.function.arguments.done"]
    assert (done.name, done.parsed_arguments) == ("Weather", Weather(city="Paris", days=2))
    pieces = [event for event in events if event.type == "tool_calls.function.arguments.delta"]
    assert "".join(piece.arguments_delta for piece in pieces) == PARIS
    (last,) = stream.get_final_completion().choices
    assert (last.finish_reason, calls_of(last.message)) == ("tool_calls", [("Weather", PARIS)])


def test_many_at_the_same_time(parrots):
    """Formats, calls and texts do not mix."""
    async def ask(many, model, number):
        calls = [("get_weather", f'{{"city": "{number}", "days": 1}}')] * (number % 3)
        text = FORMATS[model].write(*calls) if calls else f"{number}"
        choice = (await many.chat.completions.create(**asking(parrots, model, text, tools=TOOLS))).choices[0]
        assert (calls_of(choice.message), choice.message.content) == (calls, None if calls else text)

    async def together():
        async with connect(parrots, openai.AsyncOpenAI) as many:
            models = ("hermes", "llama", "mistral")
            await asyncio.gather(*(ask(many, model, number) for model in models for number in range(6)))

    asyncio.run(together())


def gauges(server, model):
    families = text_string_to_metric_families(requests.get(f"{server.url}/metrics", timeout=10).text)
    wanted = ("vllm:num_requests_running", "vllm:kv_cache_usage_perc", "vllm:generation_tokens_total")
    samples = [sample for family in families for sample in family.samples if sample.labels.get("model_name") == model]
    return [next(sample.value for sample in samples if sample.name == name) for name in wanted]


def test_a_stream_that_is_closed_within_a_call(parrots):
    """Its blocks are free again, and nobody computes the rest."""
    endless = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "' + "a" * 200
    before = gauges(parrots, "hermes")[2]
    wish = {"tools": TOOLS, "stream": True, "end": "", "extra_body": {"ignore_eos": True}}
    stream = parrots.client.chat.completions.create(**asking(parrots, "hermes", endless, **wish))
    pieces = (call.function for chunk in stream for each in chunk.choices for call in each.delta.tool_calls or [])
    assert next(pieces).name == "get_weather"
    assert "".join(next(pieces).arguments for _ in range(20)).startswith('{"city": "aaa')
    assert gauges(parrots, "hermes")[0] == 1
    stream.close()
    deadline = time.monotonic() + 10
    while (now := gauges(parrots, "hermes"))[:2] != [0, 0]:
        assert time.monotonic() < deadline, now
        time.sleep(0.02)
    assert now[2] - before < parrot_llm.CONTEXT / 2
