"""A server over models that call tools, one for each way of writing calls, and how tests ask them.

Every model is a `parrot_llm`: it answers what the last message says it should, so that answers are known to the letter.
No test is here. The fixtures are imported by name where they are used.
"""

import contextlib
import json
from dataclasses import dataclass, field

import openai
import parrot_llm
import pytest
import tiny_llm
from conftest import starter, stop_all

# --------------------------------------------------------------------------------------------------------------- models

TURN = "{{ '<|im_start|>' ~ message.role ~ '\\n' ~ (message.content or '') }}"
RESULT = "{{ '<|im_start|>tool ' ~ message.tool_call_id ~ '\\n' ~ message.content }}"
PARTS = "{% for part in message.content %}{{ '[' ~ part.text ~ ']' }}{% endfor %}"
BEGIN = "{{ '<|im_start|>assistant\\n' }}"
# What was thought before is told to the model again, as Qwen's template does within a turn.
REMEMBERING = (
    "{{ '<|im_start|>' ~ message.role ~ '\\n' }}{% if message.reasoning_content %}"
    "{{ '<think>' ~ message.reasoning_content ~ '</think>' }}{% endif %}{{ message.content or '' }}"
)
# As Qwen's: without a word it may think or not, and settings make it not think, or begin in the middle of it.
THINKING = (
    BEGIN + "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
    "{% if opens %}{{ '<think>\\n' }}{% endif %}"
)


def template(calls, begin=BEGIN, turn=TURN, end="<|im_end|>"):
    """`calls` is the part that writes the calls of a message."""
    return (
        "{% if tools %}{{ '<|im_start|>system\\n<tools>\\n' }}{% for tool in tools %}{{ tool | tojson }}{{ '\\n' }}"
        "{% endfor %}{{ '</tools>" + end + "\\n' }}{% endif %}"
        "{% for message in messages %}{% if message.role == 'tool' %}" + RESULT + "{% else %}" + turn + "{% endif %}"
        "{% if message.tool_calls %}" + calls + "{% endif %}{{ '" + end + "\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}" + begin + "{% endif %}"
    )


def each_call(before, between, after, separator=""):
    """A name and its arguments, of each call of a message."""
    call = f"{before!r} ~ call.function.name ~ {between!r} ~ (call.function.arguments | tojson) ~ {after!r}"
    if separator:
        call += f" ~ ('' if loop.last else {separator!r})"
    return f"{{% for call in message.tool_calls %}}{{{{ {call} }}}}{{% endfor %}}"


@dataclass
class Format:
    """How a model writes calls, and what its template and its tokens are."""

    call: str  # with NAME and ARGUMENTS
    template: str
    # Before, between and after all calls of a message.
    around: tuple = ("", "", "")
    # Tokens of their own, and whether they are control tokens.
    marks: dict = field(default_factory=dict)
    ends: tuple = ()

    def write(self, *calls):
        """Calls, each a name and its arguments as JSON."""
        first, between, last = self.around
        texts = (self.call.replace("NAME", name).replace("ARGUMENTS", arguments) for name, arguments in calls)
        return first + between.join(texts) + last


OBJECT = '{"name": "NAME", "arguments": ARGUMENTS}'
HERMES = f"<tool_call>\n{OBJECT}\n</tool_call>"
HERMES_CALLS = each_call('\n<tool_call>\n{"name": "', '", "arguments": ', "}\n</tool_call>")
HARMONY = "<|channel|>commentary to=functions.NAME <|constrain|>json<|message|>ARGUMENTS"
HARMONY_MARKS = ("<|channel|>", "<|message|>", "<|start|>", "<|end|>", "<|constrain|>", "<|call|>", "<|return|>")

FORMATS = {
    "hermes": Format(HERMES, template(HERMES_CALLS), ("", "\n", "")),
    # The same with tokens for the marks, and thoughts.
    "qwen": Format(
        HERMES,
        template(HERMES_CALLS, begin=THINKING, turn=REMEMBERING),
        ("", "\n", ""),
        {"<tool_call>": False, "</tool_call>": False, "<think>": False, "</think>": False},
    ),
    "granite": Format(
        OBJECT,
        template("{{ '<|tool_call|>[' }}" + each_call('{"name": "', '", "arguments": ', "}", separator=", ") + "]"),
        ("<|tool_call|>[", ", ", "]"),
        {"<|tool_call|>": True},
    ),
    "llama": Format(
        '{"name": "NAME", "parameters": ARGUMENTS}',
        template(each_call('<|python_tag|>{"name": "', '", "parameters": ', "}", separator="; ")),
        ("", "; ", ""),
        {"<|python_tag|>": True},
    ),
    # Its template takes content apart, and its ids of calls have nine characters.
    "mistral": Format(
        OBJECT,
        template(
            "{% for call in message.tool_calls %}{% if call.id | length != 9 %}{{ raise_exception('nine characters') }}"
            "{% endif %}{% endfor %}{{ '[TOOL_CALLS][' }}"
            + each_call('{"name": "', '", "arguments": ', "}", separator=", ")
            + "{{ ']' }}",
            turn="{{ '<|im_start|>' ~ message.role ~ '\\n' }}{% if message.content is string %}{{ message.content }}"
            "{% elif message.content %}" + PARTS + "{% endif %}",
        ),
        ("[TOOL_CALLS][", ", ", "]"),
        {"[TOOL_CALLS]": True},
    ),
    # Its later models, which think between brackets.
    "magistral": Format(
        "[TOOL_CALLS]NAME[ARGS]ARGUMENTS",
        template(each_call("[TOOL_CALLS]", "[ARGS]", ""), begin="{# [THINK] #}" + BEGIN),
        marks={"[TOOL_CALLS]": True, "[ARGS]": True, "[THINK]": True, "[/THINK]": True},
    ),
    "harmony": Format(
        HARMONY,
        template(
            each_call("<|channel|>commentary to=functions.", " <|constrain|>json<|message|>", "<|call|>"),
            begin="{{ '<|start|>assistant' }}",
            end="<|end|>",
        ),
        ("", "<|end|><|start|>assistant", ""),
        dict.fromkeys(HARMONY_MARKS, True),
        ("<|call|>", "<|return|>"),
    ),
    # Its template knows nothing of tools.
    "plain": Format('{"name": "NAME", "parameters": ARGUMENTS}', tiny_llm.TEMPLATE),
}
# What a prompt has between its last message and the answer.
AFTER = {name: "<|im_end|>\n<|im_start|>assistant\n" for name in FORMATS} | {"harmony": "<|end|>\n<|start|>assistant"}
# Those that tell a call in an answer that is free.
TELLING = [name for name in FORMATS if name != "plain"]


# --------------------------------------------------------------------------------------------------------------- server


@contextlib.contextmanager
def parroting(binary, folder, names=tuple(FORMATS), flags=()):
    """A server over the models of these formats, `server.oracles` of theirs, and `server.client`."""
    oracles = {}
    for name in names:
        format = FORMATS[name]
        wishes = {"template": format.template, "marks": format.marks, "ends": format.ends}
        oracles[name] = parrot_llm.make(folder / "models" / name, **wishes)
    start, started = starter(binary, folder)
    try:
        listen = ["--http-port", "{http}", "--grpc-port", "{grpc}", "--kv-cache-bytes", "16MiB"]
        server = start("serve", "--model-repository", folder / "models", *listen, *flags)
        server.oracles = oracles
        with connect(server) as server.client:
            yield server
        stop_all(started)
    finally:
        for each in started:
            each.kill()


@pytest.fixture(scope="module")
def parrots(binary, tmp_path_factory):
    with parroting(binary, tmp_path_factory.mktemp("parrots")) as server:
        yield server


def connect(server, kind=openai.OpenAI):
    return kind(base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=60)


def lines(server, model, text, after=None, end=tiny_llm.IM_END):
    """The content of a last message that `text` will answer."""
    return parrot_llm.script(server.oracles[model], text, AFTER[model] if after is None else after, end)


def asking(server, model, text, **more):
    """What makes a model answer with `text`."""
    script = {name: more.pop(name) for name in ("after", "end") if name in more}
    messages = [*more.pop("before", []), {"role": "user", "content": lines(server, model, text, **script)}]
    return {"model": model, "temperature": 0, "messages": messages, **more}


def say(server, model, text, **more):
    """The one choice of a whole answer, which is `text` unless something stands against it."""
    (choice,) = server.client.chat.completions.create(**asking(server, model, text, **more)).choices
    return choice


# ---------------------------------------------------------------------------------------------------------------- tools


def tool(name, parameters=None, strict=None):
    function = {"name": name, "description": f"This is {name}."}
    if parameters is not None:
        function["parameters"] = parameters
    if strict is not None:
        function["strict"] = strict
    return {"type": "function", "function": function}


def of(properties):
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


WEATHER = tool("get_weather", of({"city": {"type": "string", "maxLength": 12}, "days": {"enum": [1, 2, 3]}}))
CLOCK = tool("get_time", of({"zone": {"enum": ["UTC", "CET"]}}))
TOOLS = [WEATHER, CLOCK]
PARIS = '{"city": "Paris", "days": 2}'
UTC = '{"zone": "UTC"}'


def named(name):
    return {"type": "function", "function": {"name": name}}


def calls_of(message):
    return [(call.function.name, call.function.arguments) for call in message.tool_calls or []]


@dataclass
class Streamed:
    """A choice put together from its chunks, of which each rule is checked."""

    content: str = ""
    reasoning: str = ""
    calls: list = field(default_factory=list)  # of [id, name, arguments]
    finish_reason: str | None = None
    # Kinds of what came, one after another.
    order: list = field(default_factory=list)

    def add(self, choice):
        assert self.finish_reason is None, "something comes after the end"
        self.finish_reason = choice.finish_reason
        delta = choice.delta
        reasoning = getattr(delta, "reasoning", None) or ""
        self.reasoning += reasoning
        self.content += delta.content or ""
        for kind, there in (("reasoning", reasoning), ("content", delta.content), ("call", delta.tool_calls)):
            if there and self.order[-1:] != [kind]:
                self.order.append(kind)
        for call in delta.tool_calls or []:
            if call.index == len(self.calls):
                assert call.id and call.type == "function" and call.function.name
                self.calls.append([call.id, call.function.name, ""])
            else:
                assert call.index == len(self.calls) - 1, "calls come one after another"
                assert (call.id, call.type, call.function.name) == (None, None, None), "these are told once"
            self.calls[-1][2] += call.function.arguments or ""

    @property
    def named(self):
        return [(name, arguments) for _, name, arguments in self.calls]


def streamed(server, model, text, **more):
    """The one choice of a stream."""
    (choice,) = streamed_choices(server, model, text, **more).values()
    return choice


def streamed_choices(server, model, text, **more):
    found = {}
    for chunk in server.client.chat.completions.create(**asking(server, model, text, stream=True, **more)):
        for choice in chunk.choices:
            found.setdefault(choice.index, Streamed()).add(choice)
    return found


def same(whole, pieces):
    """A stream says what the whole answer says."""
    assert (pieces.content, pieces.named) == (whole.message.content or "", calls_of(whole.message))
    assert pieces.reasoning == (getattr(whole.message, "reasoning", None) or "")
    assert pieces.finish_reason == whole.finish_reason
