"""A GGUF file says what the safetensors it was made from say."""

import shutil
import subprocess

import openai
import tiny_gguf
import tiny_llm
from conftest import starter, stop_all


def test_the_same_model_in_either_file(binary, tmp_path):
    repository = tmp_path / "models"
    oracle = tiny_llm.make(repository / "plain")
    shutil.copytree(repository / "plain", repository / "packed")
    tiny_gguf.convert(repository / "packed")
    start, started = starter(binary, tmp_path)
    server = start("serve", "--model-repository", repository, "--http-port", "{http}", "--grpc-port", "{grpc}")
    client = openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=60)
    for prompt in ("x = 1;", "Once upon a time"):
        expected = oracle.decode(oracle.greedy(oracle.encode(prompt), 24))
        for model in ("plain", "packed"):
            reply = client.completions.create(model=model, prompt=prompt, max_tokens=24, temperature=0)
            assert reply.choices[0].text == expected, model
    stop_all(started)


def test_a_file_without_a_tokenizer_is_refused(binary, tmp_path):
    tiny_llm.make(tmp_path / "packed")
    tiny_gguf.convert(tmp_path / "packed")
    (tmp_path / "packed" / "tokenizer.json").unlink()
    checked = subprocess.run([binary, "validate", tmp_path], capture_output=True, text=True, timeout=60)
    assert checked.returncode == 1
    assert "lay the model's tokenizer.json beside it" in checked.stdout
