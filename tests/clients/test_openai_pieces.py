"""Where tokens begin in texts, with a tokenizer as SentencePiece makes them: words begin with a space, and that of a
text's first word is not written. Half a character is a token of its own.

The tokens that are generated are the letter a, unless a test says otherwise.
"""

import json

import pytest
import requests
import tiny_llm
from conftest import starter, stop_all

PIECES = ("▁", "a", "b", "▁a", "é", "🙂")
SPACE, A, B, SPACE_A, *_ = range(256, 256 + len(PIECES))
MARK = 256 + len(PIECES)
HALF = 0xC3


def rewritten(tokenizer):
    """The same tokens, by other names."""
    mark = tokenizer["added_tokens"][0]["content"]
    words = {f"<0x{byte:02X}>": byte for byte in range(256)} | {piece: 256 + i for i, piece in enumerate(PIECES)}
    steps = [{"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]
    back = [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ]
    text = {"Sequence": {"id": "A", "type_id": 0}}
    first = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": mark, "type_id": 0}}, text],
        "pair": [text, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {mark: {"id": mark, "ids": [MARK], "tokens": [mark]}},
    }
    return tokenizer | {
        "normalizer": {"type": "Sequence", "normalizers": steps},
        "pre_tokenizer": None,
        "post_processor": first,
        "decoder": {"type": "Sequence", "decoders": back},
        "model": tokenizer["model"] | {"byte_fallback": True, "vocab": words, "merges": [["▁", "a"]]},
    }


@pytest.fixture(scope="module")
def pieces(binary, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pieces")
    tiny_llm.make(folder / "models" / "tiny", extras=PIECES)
    path = folder / "models" / "tiny" / "tokenizer.json"
    path.write_text(json.dumps(rewritten(json.loads(path.read_text("utf-8")))), "utf-8")
    start, started = starter(binary, folder)
    try:
        yield start("serve", "--model-repository", folder / "models", "--http-port", "{http}")
        stop_all(started)
    finally:
        for each in started:
            each.kill()


def told(server, **more):
    """A text, and where its tokens begin."""
    asked = {"model": "tiny", "max_tokens": 2, "temperature": 0, "logprobs": 0, "allowed_token_ids": [A], **more}
    reply = requests.post(f"{server.url}/v1/completions", json=asked, timeout=60)
    assert reply.status_code == 200, reply.text
    (choice,) = reply.json()["choices"]
    return choice["text"], choice["logprobs"]["text_offset"]


SHOWN = {"skip_special_tokens": False}
# A prompt, how it is asked for, its text, and where its tokens begin. A text has a control token before it.
PROMPTS = {
    "a word": ("ab", {}, "ab", [0, 0, 1]),
    "words": ("ab ab", {}, "ab ab", [0, 0, 1, 2, 4]),
    "a space": (" ab", {}, " ab", [0, 0, 0, 2]),
    "characters": ("é🙂", {}, "é🙂", [0, 0, 0, 1]),
    "control tokens": ([SPACE_A, MARK, SPACE_A], SHOWN, "a<|endoftext|> a", [0, 1, 14]),
    "none": ([SPACE_A, MARK, SPACE_A], {}, "a a", [0, 1, 1]),
    "first": ([MARK, A, B], SHOWN, "<|endoftext|>ab", [0, 13, 14]),
    "halves": ([A, HALF, 0xA9, B], {}, "aéb", [0, 1, 1, 2]),
    "half at the end": ([A, HALF], {}, "a\ufffd", [0, 1]),
}


@pytest.mark.parametrize("case", PROMPTS)
def test_echoed(pieces, case):
    prompt, more, text, begins = PROMPTS[case]
    assert told(pieces, prompt=prompt, echo=True, **more) == (text + "aa", [*begins, len(text), len(text) + 1])


# Of bytes that make no character each is told as one, and a character that several make with the last of them.
ANSWERS = {
    "a word": ([SPACE_A], " a a a", [0, 2, 4]),
    "none": ([0x80], "\ufffd" * 3, [0, 1, 2]),
    "mark": ([MARK], "<|endoftext|>" * 3, [0, 13, 26]),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_generated(pieces, case):
    allowed, text, begins = ANSWERS[case]
    more = {"max_tokens": 3, "allowed_token_ids": allowed, "ignore_eos": True, **SHOWN}
    assert told(pieces, prompt="ab", **more) == (text, begins)
