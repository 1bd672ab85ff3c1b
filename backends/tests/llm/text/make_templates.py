"""Renders the chat templates of families.py with transformers and writes templates.json.

    pip install transformers jinja2      # no torch needed
    python make_templates.py             # rewrites templates.json beside this file

The templates are ours: each has the shape of what a public model family ships (its loops, filters, whitespace control and
special tokens), not its text. Conversations that a template refuses are kept with its message.
"""

import datetime
import json
from pathlib import Path

import jinja2
from transformers.utils import chat_template_utils

from families import FAMILIES, PROBES

NOW = 1_785_589_445  # 2026-08-01 13:04:05 UTC


class Clock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls.fromtimestamp(NOW, datetime.timezone.utc).replace(tzinfo=None)


chat_template_utils.datetime = Clock

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather at a place, \"now\" or <later> & tomorrow's.\nSecond line.",
        "parameters": {
            "type": "object",
            "properties": {
                "location": {"type": "string", "description": "City, e.g. Zürich 東京"},
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"], "default": "celsius"},
                "days": {"type": "array", "items": {"type": "integer"}, "description": "offsets"},
                "limits": {"type": "object", "properties": {"low": {"type": "number"}, "high": {"type": "number", "default": 1e16}}, "required": ["low"]},
            },
            "required": ["location"],
        },
        "return": {"type": "string"},
    },
}
SEARCH = {
    "type": "function",
    "function": {"name": "search", "description": "Looks things up.", "parameters": {"type": "object", "properties": {}}},
}


def call(name, arguments, id="call00001"):
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


S = {"role": "system", "content": "You are terse.\n"}
U = {"role": "user", "content": "Hello, who are \"you\"? <|x|> it's {{ me }}"}
A = {"role": "assistant", "content": " A server. \n"}
U2 = {"role": "user", "content": "Grüße 🙂 — 你好\n\tdone\\ "}
TOOL_TURNS = [
    {"role": "user", "content": "Weather in Zürich and 東京?"},
    {"role": "assistant", "content": "", "tool_calls": [call("get_weather", {"location": "Zürich \"ZH\"", "days": [0, 1], "deep": {"a": None, "b": True, "c": 1.5}}), call("search", {}, "call00002")]},
    {"role": "tool", "name": "get_weather", "tool_call_id": "call00001", "content": "{\"temp\": 21.5}"},
    {"role": "tool", "name": "search", "tool_call_id": "call00002", "content": "nothing <found>"},
    {"role": "assistant", "content": "21.5 degrees."},
    {"role": "user", "content": "Thanks"},
]
PARTS = {"role": "user", "content": [{"type": "text", "text": "part one "}, {"type": "image"}, {"type": "text", "text": "part two"}]}
THOUGHT = {"role": "assistant", "content": "<think>\nshould I?\n</think>\n\nYes."}
REASONED = {"role": "assistant", "reasoning_content": "let me see\n", "content": "42", "tool_calls": None, "name": None}

CHATS = {
    "user": [U],
    "system": [S, U],
    "turns": [U, A, U2],
    "system_turns": [S, U, A, U2, A],
    "tools": TOOL_TURNS[:1],
    "tool_call": [S, *TOOL_TURNS[:2]],
    "tool_result": TOOL_TURNS[:4],
    "tool_turns": [S, *TOOL_TURNS],
    "parts": [S, PARTS, A, U2],
    "thought": [U, THOUGHT, U2, THOUGHT],
    "reasoned": [S, U, REASONED, U2, REASONED],
    "wrong_order": [U, U2],
    "odd_role": [{"role": "critic", "content": "x"}],
}
TOOLS = {"tools": [WEATHER, SEARCH], "tool_call": [WEATHER, SEARCH], "tool_result": [WEATHER], "tool_turns": [WEATHER, SEARCH]}


WITHOUT_GENERATION = ("turns", "system_turns", "tool_turns", "reasoned")


def render(template, chat, tools, generate, tokens, settings):
    try:
        if isinstance(template, dict):
            template = template["tool_use"] if tools is not None and "tool_use" in template else template["default"]
        chats = [chat_template_utils._normalize_chat_messages(chat)]
        kwargs = {**tokens, **settings}
        out, _ = chat_template_utils.render_jinja_template(
            conversations=chats, tools=tools, chat_template=template, add_generation_prompt=generate, **kwargs
        )
        return {"out": out[0]}
    except jinja2.exceptions.TemplateError as error:
        if type(error) is jinja2.exceptions.TemplateError:
            return {"raised": error.message}
        return {"error": f"{type(error).__name__}: {error}"}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


def main():
    cases, templates, outputs = [], {}, 0
    for family, (template, tokens, settings) in FAMILIES.items():
        templates[family] = {"template": template, "tokens": tokens}
        for name, chat in CHATS.items():
            for generate in (False, True):
                plain = render(template, chat, TOOLS.get(name), generate, tokens, {})
                for setting in [{}, *settings]:
                    result = render(template, chat, TOOLS.get(name), generate, tokens, setting)
                    # Kept small: what says nothing new is left out.
                    if (setting and result == plain) or (not generate and name not in WITHOUT_GENERATION):
                        continue
                    case = {"family": family, "chat": name, "generate": generate, **result}
                    outputs += "out" in result
                    cases.append({**case, "settings": setting} if setting else case)
    probes = []
    for probe in PROBES:
        result = render(probe, CHATS["system_turns"], [WEATHER], True, {"bos_token": "<s>"}, PROBE_SETTINGS)
        probes.append({"source": probe, **result})
    data = {"now": NOW, "chats": CHATS, "tools": TOOLS, "probe_settings": PROBE_SETTINGS}
    with open(Path(__file__).parent / "templates.json", "w") as file:
        file.write(json.dumps(data, ensure_ascii=False)[:-1] + ',\n"templates": {\n')
        file.write(",\n".join(f"{json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}" for k, v in templates.items()))
        for key, rows in (("cases", cases), ("probes", probes)):
            end = "}" if key == "cases" else "]"
            file.write(f'\n{end},\n"{key}": [\n' + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
        file.write("\n]}\n")
    print(len(templates), "families", len(cases), "cases", outputs, "rendered", len(probes), "probes")
    print(*(f"{p['source']!r}: {p['error']}" for p in probes if "error" in p), sep="\n")


PROBE_SETTINGS = {
    "xs": [3, 1, 2], "words": ["b", "a", "C"], "d": {"z": 1, "a": [1, 2.0, None, True, "q'uo\"te"], "items": "shadow"}, "n": 7, "f": 0.1,
    "big": 12345678901234567890, "floats": [1e16, 1e-5, 0.0001, 123456789.125, -0.0, 1e22, 3.0, 1.5e300], "t": True, "none": None,
    "text": "  some Text, with\ttabs\n and lines\u2028here \x1c", "uni": "Zürich 東京 🙂 \u00e9\u0301", "empty": "", "html": "<a href='x'>&amp;</a>", "ctl": "a\x00b\x1f\x7f\u0085c\b\f",
    "objs": [{"k": "x", "v": 1}, {"k": "y", "v": 2}, {"k": "x", "v": 3}],
}

if __name__ == "__main__":
    main()
