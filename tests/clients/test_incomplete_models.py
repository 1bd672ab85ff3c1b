"""Directories that somebody took for a model, and what is missing in them: told by every command that was given one, and by
the file that is at fault.
"""

import subprocess
import time

import pytest
import requests
import tiny_llm
from conftest import starter, stop_all

# What lies in a directory, and what is said of it.
INCOMPLETE = {
    "weights alone": ({"model.safetensors": b"x"}, "model.safetensors is there, but no config.json"),
    "tokenizer alone": ({"tokenizer.json": b"{}"}, "tokenizer.json is there, but no config.json"),
    "no GGUF": ({"m.gguf": b"weights"}, "m.gguf is there, but it does not begin with the letters GGUF"),
    "nothing": ({}, "no model file: expected one XGBoost"),
}


@pytest.fixture(params=INCOMPLETE)
def incomplete(request, tmp_path):
    files, what = INCOMPLETE[request.param]
    directory = tmp_path / "model"
    directory.mkdir()
    for name, data in files.items():
        (directory / name).write_bytes(data)
    return directory, what


def said(binary, *words):
    """The exit code, and all that was written."""
    command = [str(word) for word in (binary, *words)]
    ended = subprocess.run(command, capture_output=True, timeout=60)
    return ended.returncode, (ended.stdout + ended.stderr).decode()


def test_commands_say_what_is_missing(binary, incomplete):
    directory, what = incomplete
    for words in (["validate", directory], ["run", directory, "--prompt", "x"]):
        code, text = said(binary, *words)
        assert code != 0 and what in text and str(directory) in text, text


@pytest.mark.parametrize("words", [
    ["serve", "--http-port", "{http}", "--grpc-port", "{grpc}", "--model-dir"],
    ["vllm", "serve", "--port", "{http}"],
])
def test_servers_say_what_is_missing(binary, incomplete, tmp_path, words):
    """And stay up, as KServe's servers do: models may come later."""
    directory, what = incomplete
    start, started = starter(binary, tmp_path)
    try:
        server = start(*words, directory, ready=False)
        deadline = time.monotonic() + 10
        while "no model serves" not in server.tail():
            assert time.monotonic() < deadline, server.tail()
            time.sleep(0.05)
        (line,) = (line for line in server.log.read_text().splitlines() if what in line)
        assert "WARN" in line and str(directory) in line, line
        assert requests.get(f"{server.url}/v2/health/live", timeout=10).status_code == 200
        stop_all(started)
    finally:
        for each in started:
            each.kill()


# A file, and what is written into it.
BROKEN = {
    "template": ("chat_template.jinja", "{% if %}"),
    "tokenizer": ("tokenizer.json", "{}"),
    "field": ("tokenizer_config.json", '{"chat_template": "{% for %}"}'),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_named(binary, tmp_path, case):
    name, text = BROKEN[case]
    tiny_llm.make(tmp_path / "tiny")
    (tmp_path / "tiny" / name).write_text(text)
    code, told = said(binary, "validate", tmp_path / "tiny")
    assert code != 0 and f"{name}: " in told and "config.json: its tokenizer" not in told, told
