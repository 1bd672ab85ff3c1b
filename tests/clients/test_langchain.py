"""LangChain's `ChatOpenAI` with this server behind it: answers, streams, tools and the loop around them, and forms.

The models repeat what a message tells them to (`tool_service.py`).
"""

import asyncio
import functools
import operator

import openai
import pydantic
import pytest
from langchain_core.messages import HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from tool_service import FORMATS, PARIS, TELLING, UTC, lines, parrots  # noqa: F401


@tool
def get_weather(city: str, days: int) -> str:
    """Says how the weather will be."""
    return f"{city} will be fine for {days} days."


@tool
def get_time(zone: str) -> str:
    """Says what time it is."""
    return f"Late, in {zone}."


class Weather(pydantic.BaseModel):
    """How the weather is."""

    city: str = pydantic.Field(max_length=12)
    days: int = pydantic.Field(ge=1, le=9)


FINE = Weather(city="Paris", days=2)


def chat(server, model, **more):
    wish = {"temperature": 0, "max_retries": 0, "timeout": 60, **more}
    return ChatOpenAI(base_url=server.url + "/v1", api_key="none", model=model, **wish)


def asks(server, model, text):
    """Messages whose answer is `text`."""
    return [SystemMessage("Be brief."), HumanMessage(lines(server, model, text))]


def answer(model, text):
    return f"<|channel|>final<|message|>{text}" if model == "harmony" else text


def calls_of(message):
    return [(call["name"], call["args"]) for call in message.tool_calls]


def test_an_answer(parrots):
    message = chat(parrots, "plain").invoke(asks(parrots, "plain", "Yes. 🙂"))
    assert (message.content, message.tool_calls) == ("Yes. 🙂", [])
    assert (message.response_metadata["finish_reason"], message.response_metadata["model_name"]) == ("stop", "plain")
    usage = message.usage_metadata
    assert usage["output_tokens"] == len(b"Yes. ") + 4 + 1
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]


def test_a_stream(parrots):
    chunks = list(chat(parrots, "plain", stream_usage=True).stream(asks(parrots, "plain", "Yes. 🙂")))
    assert len([chunk for chunk in chunks if chunk.content]) == len("Yes. 🙂")
    whole = functools.reduce(operator.add, chunks)
    assert (whole.content, whole.response_metadata["finish_reason"]) == ("Yes. 🙂", "stop")
    assert whole.usage_metadata["output_tokens"] == len(b"Yes. ") + 4 + 1


@pytest.mark.parametrize("model", TELLING)
def test_tools_that_a_model_likes(parrots, model):
    """Called, run, and their results sent back, as agents do."""
    llm = chat(parrots, model).bind_tools([get_weather, get_time])
    calls = FORMATS[model].write(("get_weather", PARIS), ("get_time", UTC))
    messages = asks(parrots, model, calls)
    for message in (llm.invoke(messages), functools.reduce(operator.add, llm.stream(messages))):
        assert calls_of(message) == [("get_weather", {"city": "Paris", "days": 2}), ("get_time", {"zone": "UTC"})]
        assert message.content == "" and not message.invalid_tool_calls
        assert message.response_metadata["finish_reason"] == "tool_calls"
        by_name = {each.name: each for each in (get_weather, get_time)}
        results = [by_name[call["name"]].invoke(call) for call in message.tool_calls]
        assert [result.content for result in results] == ["Paris will be fine for 2 days.", "Late, in UTC."]
        assert all(isinstance(result, ToolMessage) for result in results)
        asked = HumanMessage(lines(parrots, model, answer(model, "Fine.")))
        assert llm.invoke([*messages, message, *results, asked]).content == "Fine."


def test_an_answer_although_there_are_tools(parrots):
    llm = chat(parrots, "qwen").bind_tools([get_weather])
    message = llm.invoke(asks(parrots, "qwen", "<think>\nhm\n</think>\n\nYes."))
    assert (message.content, message.tool_calls) == ("Yes.", [])
    assert message.usage_metadata["output_token_details"]["reasoning"] > 0


@pytest.mark.parametrize("model", FORMATS)
@pytest.mark.parametrize("choice", ["any", "get_weather"])
def test_tools_that_must_be_called(parrots, model, choice):
    llm = chat(parrots, model).bind_tools([get_weather, get_time], tool_choice=choice, parallel_tool_calls=False)
    messages = asks(parrots, model, FORMATS[model].write(("get_weather", PARIS)))
    for message in (llm.invoke(messages), functools.reduce(operator.add, llm.stream(messages))):
        assert calls_of(message) == [("get_weather", {"city": "Paris", "days": 2})]
        assert not message.invalid_tool_calls


def test_strict_tools(parrots):
    llm = chat(parrots, "hermes").bind_tools([get_weather], strict=True, parallel_tool_calls=False)
    message = llm.invoke(asks(parrots, "hermes", FORMATS["hermes"].write(("get_weather", '{"days": 2, "town": 1}'))))
    ((name, arguments),) = calls_of(message)
    kinds = {key: type(value) for key, value in arguments.items()}
    assert (name, kinds) == ("get_weather", {"city": str, "days": int})


def test_a_call_that_is_cut_off(parrots):
    """LangChain says that its arguments are none."""
    text = FORMATS["hermes"].write(("get_weather", PARIS))
    llm = chat(parrots, "hermes", max_tokens=len(text) - len('"days": 2}}\n</tool_call>')).bind_tools([get_weather])
    message = llm.invoke(asks(parrots, "hermes", text))
    assert message.response_metadata["finish_reason"] == "length"
    assert [call["args"] for call in message.invalid_tool_calls] == ['{"city": "Paris", ']


@pytest.mark.parametrize("model", FORMATS)
@pytest.mark.parametrize("method", ["function_calling", "json_schema", "json_mode"])
def test_structured_output(parrots, model, method):
    form = FORMATS[model]
    text = form.write(("Weather", PARIS)) if method == "function_calling" else answer(model, PARIS)
    messages = asks(parrots, model, text)
    assert chat(parrots, model).with_structured_output(Weather, method=method).invoke(messages) == FINE
    raw = chat(parrots, model).with_structured_output(Weather, method=method, include_raw=True).invoke(messages)
    assert (raw["parsed"], raw["parsing_error"]) == (FINE, None)


@pytest.mark.parametrize("method", ["function_calling", "json_schema"])
def test_structured_output_that_a_model_does_not_like(parrots, method):
    schema = Weather.model_json_schema()
    for wanted in (Weather, schema):
        llm = chat(parrots, "hermes", max_tokens=300).with_structured_output(wanted, method=method)
        found = llm.invoke(asks(parrots, "hermes", "No."))
        Weather.model_validate(found if wanted is schema else found.model_dump())


# LangChain's own, about what it made of the answer.
@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
def test_structured_output_is_streamed(parrots):
    llm = chat(parrots, "hermes").with_structured_output(Weather, method="json_schema")
    assert list(llm.stream(asks(parrots, "hermes", PARIS)))[-1] == FINE


def test_many_at_the_same_time(parrots):
    async def ask():
        llm = chat(parrots, "llama").bind_tools([get_time])
        texts = [FORMATS["llama"].write(("get_time", f'{{"zone": "{number}"}}')) for number in range(8)]
        messages = await llm.abatch([asks(parrots, "llama", text) for text in texts])
        pieces = [chunk async for chunk in llm.astream(asks(parrots, "llama", texts[0]))]
        return [*messages, functools.reduce(operator.add, pieces)]

    expected = [[("get_time", {"zone": str(number)})] for number in (*range(8), 0)]
    assert [calls_of(message) for message in asyncio.run(ask())] == expected


def test_models_that_know_no_tools(parrots):
    with pytest.raises(openai.BadRequestError, match="tool_choice"):
        chat(parrots, "plain").bind_tools([get_time]).invoke("Late?")
