"""Tools, thoughts and forms of Anthropic's Messages API, through its own client.

The models are those of `tool_service.py`: `qwen` thinks and writes calls, as the last message dictates, and the
template of `plain` knows of neither.
"""

import json

import anthropic
import pydantic
import pytest
import requests
from test_anthropic import connect, read
from test_anthropic import text as text_of
from tool_service import FORMATS, PARIS, UTC, lines, of, parroting

WEATHER = {
    "name": "get_weather",
    "description": "What the sky does.",
    "input_schema": of({"city": {"type": "string", "maxLength": 12}, "days": {"enum": [1, 2, 3]}}),
}
CLOCK = {"name": "get_time", "input_schema": of({"zone": {"const": "UTC"}})}
TOOLS = [WEATHER, CLOCK]
CALLS = [("get_weather", {"city": "Paris", "days": 2}), ("get_time", {"zone": "UTC"})]
THOUGHT, WORDS = "Hm, a question.", "Let me see."
WRITTEN = f"<think>\n{THOUGHT}\n</think>\n\n{WORDS}\n"
WRITTEN += FORMATS["qwen"].write(("get_weather", PARIS), ("get_time", UTC))
CLOSED = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"


@pytest.fixture(scope="module")
def parrots(binary, tmp_path_factory):
    with parroting(binary, tmp_path_factory.mktemp("parrots"), ("qwen", "plain")) as server:
        yield server


@pytest.fixture(scope="module")
def client(parrots):
    return connect(parrots)


@pytest.fixture
def asking(parrots):
    """What makes `qwen` answer with a text."""

    def asking(text, before=(), after=None, model="qwen", **more):
        messages = [*before, {"role": "user", "content": lines(parrots, model, text, after)}]
        return {"model": model, "max_tokens": 300, "messages": messages, "extra_body": {"temperature": 0}, **more}

    return asking


def calls(message):
    found = [block for block in message.content if block.type == "tool_use"]
    assert all(block.id.startswith("toolu_") for block in found)
    assert len({block.id for block in found}) == len(found)
    return [(block.name, block.input) for block in found]


def shapes(message):
    """Blocks without what is new each time."""
    return [block.to_dict() | {"id": None} for block in message.content]


def tokens(server, messages, model="qwen", **more):
    """Of a conversation as OpenAI's API has it."""
    reply = requests.post(f"{server.url}/tokenize", json={"model": model, "messages": messages, **more}, timeout=60)
    assert reply.status_code == 200, reply.text
    return reply.json()["count"]


def of_openai(tool):
    function = {"name": tool["name"], "parameters": tool["input_schema"]}
    if "description" in tool:
        function["description"] = tool["description"]
    return {"type": "function", "function": function}


# --------------------------------------------------------------------------------------------------------------- calls


def test_a_model_calls_what_it_likes(client, asking):
    reply = client.messages.create(**asking(WRITTEN), tools=TOOLS)
    assert [block.type for block in reply.content] == ["thinking", "text", "tool_use", "tool_use"]
    assert (reply.content[0].thinking, reply.content[0].signature, reply.content[1].text) == (THOUGHT, "", WORDS)
    assert calls(reply) == CALLS
    assert (reply.stop_reason, reply.stop_sequence) == ("tool_use", None)


def test_or_nothing(client, asking):
    for choice in ({}, {"tool_choice": {"type": "auto"}}, {"tool_choice": {"type": "none"}}):
        reply = client.messages.create(**asking("No."), tools=TOOLS, **choice)
        assert (text_of(reply), reply.stop_reason) == ("No.", "end_turn")


def test_one_call_at_a_time(client, asking):
    choice = {"type": "auto", "disable_parallel_tool_use": True}
    reply = client.messages.create(**asking(WRITTEN), tools=TOOLS, tool_choice=choice)
    assert (calls(reply), reply.stop_reason) == (CALLS[:1], "tool_use")


def test_no_call_is_read_where_none_may_be(client, asking):
    for more in ({}, {"tools": TOOLS, "tool_choice": {"type": "none"}}):
        reply = client.messages.create(**asking(WRITTEN), **more)
        assert [block.type for block in reply.content] == ["thinking", "text"]
        assert reply.content[1].text == WRITTEN.split("\n\n")[1]
        assert reply.stop_reason == "end_turn"


@pytest.mark.parametrize("model", ["qwen", "plain"])
@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "get_time"}])
def test_a_call_that_must_be(client, asking, model, choice):
    """The text that is dictated is none; the schema leaves nothing else."""
    tools = TOOLS if choice["type"] == "tool" else [CLOCK]
    more = {"tools": tools, "tool_choice": choice | {"disable_parallel_tool_use": True}}
    reply = client.messages.create(**asking("No.", model=model, **more))
    assert (calls(reply), reply.stop_reason) == (CALLS[1:], "tool_use")
    assert [block.type for block in reply.content if block.type != "thinking"] == ["tool_use"]
    with client.messages.stream(**asking("No.", model=model, **more)) as stream:
        assert shapes(stream.get_final_message()) == shapes(reply)


def test_a_model_without_a_format_is_not_asked_to_choose(client, asking):
    with pytest.raises(anthropic.BadRequestError, match="tools"):
        client.messages.create(**asking("No.", model="plain"), tools=TOOLS)


def test_strict_tools_are_called_by_their_schemas(client, asking):
    """What is dictated has a third day, which is none of those."""
    wrong = FORMATS["qwen"].write(("get_weather", '{"city": "Paris", "days": 7}'))
    free = client.messages.create(**asking(wrong), tools=TOOLS)
    assert calls(free) == [("get_weather", {"city": "Paris", "days": 7})]
    reply = client.messages.create(**asking(wrong), tools=[WEATHER | {"strict": True}])
    ((name, arguments),) = calls(reply)
    assert name == "get_weather" and arguments["days"] in (1, 2, 3)


def test_inputs_are_objects_whatever_schemas_say(client, asking):
    tool = {"name": "f", "input_schema": {"additionalProperties": False}}
    choice = {"type": "tool", "name": "f"}
    reply = client.messages.create(**asking(FORMATS["qwen"].write(("f", "7"))), tools=[tool], tool_choice=choice)
    assert calls(reply) == [("f", {})]


def test_numbers_are_told_to_the_digit(client, asking):
    """An input is what the model wrote: read and written again, it would be another one."""
    written = '{"city": 123456789012345678901, "days": 0.12345678901234567891, "far": 1e400}'
    wish = asking(FORMATS["qwen"].write(("get_weather", written)))
    reply = client.messages.with_raw_response.create(**wish, tools=TOOLS)
    assert f'"input":{written}' in reply.http_response.text


def test_a_call_that_is_cut_short(client, asking):
    """What there is of it is kept, and is no object."""
    written = FORMATS["qwen"].write(("get_weather", PARIS))
    count = len(written[: written.index("Par")].replace("<tool_call>", "*"))
    wish = asking(written, max_tokens=count)
    reply = client.messages.create(**wish, tools=TOOLS)
    assert calls(reply) == [("get_weather", {"INVALID_JSON": '{"city": "'})]
    assert (reply.stop_reason, reply.usage.output_tokens) == ("max_tokens", count)


def test_a_call_that_is_cut_short_before_its_arguments(client, asking):
    """Its input is empty as that of a complete one may be; why it ended says that it is none."""
    written = FORMATS["qwen"].write(("get_weather", PARIS))
    count = len(written[: written.index(PARIS)].replace("<tool_call>", "*"))
    wish = asking(written, max_tokens=count)
    reply = client.messages.create(**wish, tools=TOOLS)
    assert (calls(reply), reply.stop_reason) == ([("get_weather", {})], "max_tokens")
    with client.messages.stream(**wish, tools=TOOLS) as stream:
        final = stream.get_final_message()
    assert (shapes(final), final.stop_reason) == (shapes(reply), "max_tokens")


def test_a_call_whose_arguments_are_no_json_is_text(client, asking):
    """A stream has told the call by then, whose input is for the client to judge."""
    written = FORMATS["qwen"].write(("get_weather", '{"city": Paris}'))
    reply = client.messages.create(**asking(written), tools=TOOLS)
    assert (text_of(reply), reply.stop_reason) == (written, "end_turn")
    deltas = [event.delta.partial_json for event in client.messages.create(**asking(written), tools=TOOLS, stream=True)
              if event.type == "content_block_delta"]
    assert "".join(deltas) == '{"city": Paris}'


# ------------------------------------------------------------------------------------------------------------- streams


def test_a_stream_of_blocks(client, asking):
    """One after another, each begun and ended once; its pieces are what the whole has."""
    whole = client.messages.create(**asking(WRITTEN), tools=TOOLS)
    blocks, over = [], None
    for event in client.messages.create(**asking(WRITTEN), tools=TOOLS, stream=True):
        assert over is None or event.type == "message_stop"
        if event.type == "content_block_start":
            assert event.index == len(blocks)
            blocks.append([event.content_block, [], False])
        elif event.type == "content_block_delta":
            assert event.index == len(blocks) - 1 and not blocks[-1][2]
            blocks[-1][1].append(event.delta)
        elif event.type == "content_block_stop":
            assert event.index == len(blocks) - 1 and not blocks[-1][2]
            blocks[-1][2] = True
        elif event.type == "message_delta":
            over = event
    thinking, text, *called = blocks
    assert (thinking[0].thinking, text[0].text) == ("", "")
    assert {delta.type for delta in thinking[1]} == {"thinking_delta"}
    assert "".join(delta.thinking for delta in thinking[1]) == THOUGHT
    assert "".join(delta.text for delta in text[1]) == WORDS
    for (begun, deltas, _), (name, arguments) in zip(called, CALLS, strict=True):
        assert (begun.type, begun.name, begun.input) == ("tool_use", name, {})
        assert {delta.type for delta in deltas} == {"input_json_delta"} and len(deltas) > 3
        assert json.loads("".join(delta.partial_json for delta in deltas)) == arguments
    assert (over.delta.stop_reason, over.usage.output_tokens) == ("tool_use", whole.usage.output_tokens)


def test_the_helper_puts_a_stream_together(client, asking):
    whole = client.messages.create(**asking(WRITTEN), tools=TOOLS)
    with client.messages.stream(**asking(WRITTEN), tools=TOOLS) as stream:
        snapshots = [event.snapshot for event in stream if event.type == "input_json"]
        final = stream.get_final_message()
    assert CALLS[0][1] in snapshots and snapshots[-1] == CALLS[1][1]
    assert shapes(final) == shapes(whole)
    assert final.stop_reason == whole.stop_reason


# ------------------------------------------------------------------------------------------------------------- results


def turns(result, blocks=(), **more):
    """A question, a call of `toolu_1` and its result."""
    called = {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"city": "Paris", "days": 2}}
    told = {"type": "tool_result", "tool_use_id": "toolu_1", **({} if result is None else {"content": result}), **more}
    return [
        {"role": "user", "content": "How is it?"},
        {"role": "assistant", "content": [{"type": "text", "text": WORDS}, called]},
        {"role": "user", "content": [told, *blocks]},
    ]


RESULTS = {
    "text": (turns("sunny"), ["sunny"]),
    "blocks": (turns([{"type": "text", "text": "sunny"}, {"type": "text", "text": "and dry"}]), ["sunny\nand dry"]),
    "nothing": (turns(None), [""]),
    "error": (turns("no such city", is_error=True), ["Error: no such city"]),
    "and words": (turns("sunny", [{"type": "text", "text": "Is that good?"}]), ["sunny", "Is that good?"]),
}


@pytest.mark.parametrize("case", RESULTS)
def test_results_go_back(parrots, client, case):
    """The prompt is that of the same conversation in OpenAI's terms."""
    messages, (result, *words) = RESULTS[case]
    function = {"name": "get_weather", "arguments": PARIS}
    plain = [
        {"role": "user", "content": "How is it?"},
        {"role": "assistant", "content": WORDS, "tool_calls": [
            {"id": "toolu_1", "type": "function", "function": function}]},
        {"role": "tool", "tool_call_id": "toolu_1", "content": result},
        *({"role": "user", "content": each} for each in words),
    ]
    counted = client.messages.count_tokens(model="qwen", messages=messages, tools=TOOLS).input_tokens
    assert counted == tokens(parrots, plain, tools=list(map(of_openai, TOOLS)))
    wish = {"model": "qwen", "max_tokens": 1, "messages": messages, "tools": TOOLS}
    assert read(client.messages.create(**wish).usage) == counted
    assert counted > client.messages.count_tokens(model="qwen", messages=messages).input_tokens


def test_what_a_message_says_goes_back_as_it_is(client, asking):
    """As clients do it: the blocks of a reply are the content of the next request."""
    first = client.messages.create(**asking(WRITTEN), tools=TOOLS)
    results = [{"type": "tool_result", "tool_use_id": block.id, "content": "yes"}
               for block in first.content if block.type == "tool_use"]
    before = [*asking(WRITTEN)["messages"], {"role": "assistant", "content": first.content},
              {"role": "user", "content": results}, {"role": "assistant", "content": "Fine."}]
    again = client.messages.create(**asking("It is.", before), tools=TOOLS)
    assert (text_of(again), again.stop_reason) == ("It is.", "end_turn")


def test_tools_that_are_not_offered_are_not_counted(client, asking):
    for choice in ({"type": "auto"}, {"type": "none"}):
        wish = {"model": "qwen", "messages": asking("No.")["messages"], "tools": TOOLS, "tool_choice": choice}
        reply = client.messages.create(**wish, max_tokens=1)
        assert client.messages.count_tokens(**wish).input_tokens == read(reply.usage), choice


def test_the_helper_runs_tools(parrots, client, asking):
    """It calls a function of Python, and sends its result, which here dictates the last answer."""
    asked = []

    @anthropic.beta_tool
    def get_weather(city: str, days: int) -> str:
        """What the sky does.

        Args:
            city: where
            days: how many
        """
        asked.append((city, days))
        return lines(parrots, "qwen", "It is sunny.")

    wish = asking(FORMATS["qwen"].write(("get_weather", PARIS)))
    last = client.beta.messages.tool_runner(**wish, tools=[get_weather]).until_done()
    assert asked == [("Paris", 2)]
    assert (text_of(last), last.stop_reason) == ("It is sunny.", "end_turn")


# ------------------------------------------------------------------------------------------------------------ thoughts


def test_thoughts(client, asking):
    reply = client.messages.create(**asking(f"<think>{THOUGHT}</think>Yes."))
    thinking, said = reply.content
    assert (thinking.type, thinking.thinking, said.type, said.text) == ("thinking", THOUGHT, "text", "Yes.")
    assert reply.stop_reason == "end_turn"


def test_thoughts_that_are_cut_short(client, asking):
    reply = client.messages.create(**asking(f"<think>{THOUGHT}</think>Yes.", max_tokens=4))
    (thinking,) = reply.content
    assert (thinking.type, thinking.thinking, reply.stop_reason) == ("thinking", THOUGHT[:3].strip(), "max_tokens")


THINKING = {
    "adaptive": ({"type": "adaptive"}, 0),
    "enabled": ({"type": "enabled", "budget_tokens": 1024}, 0),
    # Two marks that are tokens, and four line ends.
    "disabled": ({"type": "disabled"}, 6),
}


@pytest.mark.parametrize("case", THINKING)
def test_whether_it_is_to_think(client, asking, case):
    """Told by the chat template, which closes thoughts that are not wanted: marks that come then are text."""
    thinking, more = THINKING[case]
    wish = asking("<think>Hm.</think>Yes.", after=CLOSED if more else None, max_tokens=2000)
    reply = client.messages.create(**wish, thinking=thinking)
    kinds = ["text"] if more else ["thinking", "text"]
    assert [block.type for block in reply.content] == kinds
    assert reply.content[-1].text == ("<think>Hm.</think>Yes." if more else "Yes.")
    counted = [client.messages.count_tokens(model="qwen", messages=wish["messages"], **told).input_tokens
               for told in ({"thinking": thinking}, {})]
    assert counted[0] == read(reply.usage) == counted[1] + more


def test_thoughts_go_back_as_thoughts(parrots, client):
    """And what is redacted says nothing."""
    said = [{"type": "thinking", "thinking": THOUGHT, "signature": "abc"}, {"type": "redacted_thinking", "data": "x"},
            {"type": "text", "text": "Yes."}]
    user = {"role": "user", "content": "Well?"}
    messages = [user, {"role": "assistant", "content": said}, user]
    counted = client.messages.count_tokens(model="qwen", messages=messages).input_tokens
    assistant = {"role": "assistant", "content": "Yes.", "reasoning_content": THOUGHT}
    assert counted == tokens(parrots, [user, assistant, user])


# --------------------------------------------------------------------------------------------------------------- forms


class Legs(pydantic.BaseModel):
    legs: int = pydantic.Field(ge=4, le=4)
    kind: str = pydantic.Field(pattern="^(cat|dog)$")


FORM = {"type": "json_schema", "schema": of({"kind": {"enum": ["cat"]}, "wild": {"const": False}})}


@pytest.mark.parametrize("model", ["qwen", "plain"])
def test_a_schema_is_kept_to(client, asking, model):
    wish = asking("No.", model=model, output_config={"format": FORM})
    whole = client.messages.create(**wish)
    assert json.loads(whole.content[-1].text) == {"kind": "cat", "wild": False}
    assert whole.stop_reason == "end_turn"
    with client.messages.stream(**wish) as stream:
        assert shapes(stream.get_final_message()) == shapes(whole)


def test_a_schema_is_kept_to_after_thoughts(client, asking):
    reply = client.messages.create(**asking("<think>Hm.</think>No."), output_config={"format": FORM})
    assert [block.type for block in reply.content] == ["thinking", "text"]
    assert json.loads(reply.content[1].text) == {"kind": "cat", "wild": False}


def test_models_of_pydantic(client, asking):
    reply = client.messages.parse(**asking('{"legs": 4, "kind": "dog"}'), output_format=Legs)
    assert reply.parsed_output == Legs(legs=4, kind="dog")


def test_a_form_and_a_call_that_must_be(client, asking):
    more = {"tools": TOOLS, "tool_choice": {"type": "any"}, "output_config": {"format": FORM}}
    with pytest.raises(anthropic.BadRequestError, match="output_config"):
        client.messages.create(**asking("No."), **more)
