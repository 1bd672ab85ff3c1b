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
    messages = [{"role": "user", "content": "héllo 🙂"}]
    chats = [client.chat.completions.create(model=model, messages=messages, max_tokens=16, temperature=0)
             for model in ("plain", "packed")]
    assert chats[0].choices[0].message.content == chats[1].choices[0].message.content
    assert chats[0].usage.prompt_tokens == chats[1].usage.prompt_tokens
    stop_all(started)


def test_a_tokenizer_beside_the_file_is_the_one_that_is_used(binary, tmp_path):
    tiny_llm.make(tmp_path / "packed")
    beside = (tmp_path / "packed" / "tokenizer.json").read_bytes()
    tiny_gguf.convert(tmp_path / "packed")
    for content, good in ((beside, True), (b"{}", False)):
        (tmp_path / "packed" / "tokenizer.json").write_bytes(content)
        checked = subprocess.run([binary, "validate", tmp_path], capture_output=True, text=True, timeout=60)
        assert (checked.returncode == 0) == good, checked.stdout
        assert good or "tokenizer" in checked.stdout
