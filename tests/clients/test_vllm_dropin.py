"""Started the way KServe and people start vLLM, and KServe its huggingfaceserver, over a directory with one model.

The first words are those of `deploy/llm`, which KServe's own template has as well; only ports and paths are ours.
"""

import re
import shutil
import subprocess
import time

import openai
import pytest
import requests
import tiny_llm
from openai_service import GREEDY, connect, said
from prometheus_client.parser import text_string_to_metric_families

NAMES = ["qwen", "publishers/default/models/qwen"]
LLM_SERVICE = """
--served-model-name qwen publishers/default/models/qwen --port {http}
--disable-access-log-for-endpoints /health,/metrics,/ping --shutdown-timeout 20
""".split()
PROMPT = "x = 1;"
WAIT_SECONDS = 20
# Tokens that take seconds.
LONG = 60_000


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A model as the storage initializer leaves it."""
    path = tmp_path_factory.mktemp("mnt") / "models"
    tiny_llm.make(path)
    return path


@pytest.fixture(scope="module")
def oracle(directory):
    return tiny_llm.Oracle(directory)


@pytest.fixture
def vllm(binary, tmp_path):
    """The server under the name of the other."""
    link = tmp_path / "bin" / "vllm"
    link.parent.mkdir()
    link.symlink_to(binary)
    return link


def completed(server, name, base="/v1"):
    body = {**GREEDY, "model": name, "prompt": PROMPT, "max_tokens": 8}
    return connect(server, base).completions.create(**body)


def assert_answers(server, oracle, names, base="/v1"):
    """Under each name; answers and metrics say the first."""
    expected = oracle.decode(said(oracle, 8, PROMPT))
    for name in names:
        reply = completed(server, name, base)
        assert (reply.choices[0].text, reply.model) == (expected, names[0]), name
    with pytest.raises(openai.NotFoundError):
        completed(server, "somebody-else", base)
    assert {labels["model_name"] for labels, _ in samples(server, "vllm:num_requests_running")} == {names[0]}


def samples(server, name):
    families = text_string_to_metric_families(requests.get(f"{server.url}/metrics", timeout=10).text)
    return [(each.labels, each.value) for family in families for each in family.samples if each.name == name]


def refused(*words, environment=None):
    """What is said by a server that does not start."""
    command = [str(word) for word in words]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=30, env=environment or {})
    assert ended.returncode == 2, ended.stderr
    return ended.stderr


# --------------------------------------------------------------------------------------------------------- vllm serve


def test_the_line_of_an_llm_service(start, vllm, directory, oracle):
    server = start("serve", directory, *LLM_SERVICE, program=vllm)
    assert_answers(server, oracle, NAMES)
    assert "accepted without effect" not in server.tail()


def test_every_name_is_listed(start, vllm, directory):
    server = start("serve", directory, *LLM_SERVICE, program=vllm)
    cards = requests.get(f"{server.url}/v1/models").json()["data"]
    assert [(card["id"], card["root"]) for card in cards] == [(name, NAMES[0]) for name in NAMES]
    assert {card["max_model_len"] for card in cards} == {tiny_llm.CONTEXT}


def test_the_line_of_the_runtime(start, directory, oracle):
    """`python -m vllm.entrypoints.openai.api_server` has no command."""
    server = start("vllm", "--port={http}", "--served-model-name=qwen", f"--model={directory}")
    assert_answers(server, oracle, ["qwen"])


def test_without_a_name_it_is_called_as_it_was_given(start, directory, oracle):
    server = start("vllm", "serve", directory, "--port", "{http}", "--max-model-len", "auto", "-tp", "2", "-O3")
    assert_answers(server, oracle, [str(directory)])
    assert "accepted without effect: -O3, -tp" in server.tail()


def test_a_configuration_is_enough_for_weights_that_are_made_up(start, directory, tmp_path):
    """Without a tokenizer, tokens are bytes, and words that only the model writes."""
    shutil.copy(directory / "config.json", tmp_path)
    words = ["--served-model-name=qwen", "--load-format=dummy"]
    server = start("vllm", "serve", tmp_path, "--port={http}", *words)
    texts = [
        connect(server).completions.create(**{**GREEDY, "model": "qwen"}, prompt=prompt, max_tokens=8, logprobs=0,
                                           extra_body={"ignore_eos": True}).choices[0]
        for prompt in (PROMPT, list(PROMPT.encode()))
    ]
    assert texts[0].text == texts[1].text and len(texts[0].logprobs.tokens) == 8
    reply = requests.post(f"{server.url}/tokenize", json={"model": "qwen", "prompt": "hé"}, timeout=10)
    assert reply.json()["tokens"] == list("hé".encode())


def test_chats_with_weights_and_tokens_that_are_made_up(start, directory, tmp_path):
    """The configuration of the tokenizer has the template; the tokens that it names are not those of bytes."""
    for name in ("config.json", "tokenizer_config.json", "chat_template.jinja"):
        if (directory / name).exists():
            shutil.copy(directory / name, tmp_path)
    server = start("vllm", "serve", tmp_path, "--port={http}", "--served-model-name=qwen", "--load-format=dummy")
    messages = [{"role": "user", "content": PROMPT}]
    body = {**GREEDY, "model": "qwen", "max_tokens": 4}
    answer = connect(server).chat.completions.create(**body, messages=messages, extra_body={"ignore_eos": True})
    assert answer.usage.completion_tokens == 4


def test_limits_are_those_of_vllms_flags(start, directory):
    words = ["--served-model-name=qwen", "--max-model-len=0.1k", "--max-num-seqs=2", "--gpu-memory-utilization=0.5"]
    server = start("vllm", "serve", directory, "--port={http}", *words)
    assert connect(server).models.retrieve("qwen").max_model_len == 100
    with pytest.raises(openai.BadRequestError, match="100"):
        connect(server).completions.create(**{**GREEDY, "model": "qwen", "prompt": "x" * 200})


def test_every_stream_tells_its_usage(start, directory):
    words = ["--served-model-name=qwen", "--port={http}", "--enable-force-include-usage", "--hf-overrides", "{{}}"]
    server = start("vllm", "serve", directory, *words)
    assert "accepted without effect" not in server.tail()
    client, messages = connect(server), [{"role": "user", "content": PROMPT}]
    # As vLLM has it, even where a request says no.
    for options in ({}, {"stream_options": {"include_usage": False}}):
        body = {**GREEDY, "model": "qwen", "max_tokens": 4, "stream": True, **options}
        for chunks in (
            client.completions.create(**body, prompt=PROMPT),
            client.chat.completions.create(**body, messages=messages),
        ):
            *others, last = chunks
            assert (last.choices, last.usage.completion_tokens) == ([], 4)
            assert all(chunk.usage is None and chunk.choices for chunk in others)


@pytest.mark.parametrize("words", [["vllm", "--version"], ["vllm", "serve", "--version"], ["vllm", "-v"]])
def test_the_version_as_kserve_reads_it(binary, words):
    """KServe's template takes the last word of the last line, and chooses flags by it."""
    printed = subprocess.run([binary, *words], capture_output=True, text=True, timeout=30, check=True).stdout
    assert printed.startswith("tensorgate ")
    release = printed.splitlines()[-1].split()[-1]
    assert re.fullmatch(r"\d+\.\d+\.\d+", release)
    assert tuple(map(int, release.split("."))) >= (0, 18), "else --shutdown-timeout is left out"


def test_models_are_not_fetched(binary):
    for model in ("Qwen/Qwen3-0.6B", "hf://Qwen/Qwen3-0.6B", "s3://bucket/model"):
        assert "are read from disk" in refused(binary, "vllm", "serve", model)
    assert "is not a directory of models" in refused(binary, "vllm", "serve", "/nowhere/at/all")


def test_what_would_be_unsafe_to_pass_over_is_refused(binary, directory):
    for words, environment in ((["--api-key", "s3cret"], {}), ([], {"VLLM_API_KEY": "s3cret"})):
        told = refused(binary, "vllm", "serve", directory, *words, environment=environment)
        assert "--api-keys-file" in told and "s3cret" not in told
    assert "--chat-template" in refused(binary, "vllm", "serve", directory, "--chat-template", "/template.jinja")
    assert "vllm bench" in refused(binary, "vllm", "bench")
    assert "--hf-overrides" in refused(binary, "vllm", "serve", directory, "--hf-overrides", '{"rope_theta": 1}')


def test_without_a_model_an_example_is_given(binary):
    assert "no model is named" in refused(binary, "vllm", "serve")
    assert "`tensorgate vllm serve ./models/qwen" in refused(binary, "vllm", "serve", "--port", "8000")


# -------------------------------------------------------------------------------------------------------------- routes


@pytest.fixture
def server(start, directory):
    return start("vllm", "serve", directory, "--served-model-name=qwen", "--port={http}")


def test_health(server):
    for method, path in (("GET", "/health"), ("GET", "/ping"), ("POST", "/ping")):
        reply = requests.request(method, server.url + path, timeout=10)
        assert (reply.status_code, reply.content) == (200, b""), (method, path)
    assert requests.post(f"{server.url}/health", timeout=10).status_code == 405


def test_health_waits_for_the_model(start, directory, tmp_path):
    later = tmp_path / "later"
    words = ["vllm", "serve", later, "--served-model-name=qwen", "--port={http}"]
    server = start(*words, environment={"MODEL_INIT_MODE": "async"}, ready=False)
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        try:
            reply = requests.get(f"{server.url}/health", timeout=2)
            break
        except requests.ConnectionError:
            assert time.monotonic() < deadline and server.child.poll() is None, server.tail()
            time.sleep(0.05)
    assert (reply.status_code, reply.content) == (503, b"")
    # A directory that is moved here is not the one that the other tests use.
    tiny_llm.make(tmp_path / "staged")
    (tmp_path / "staged").rename(later)
    server.wait_ready()
    assert requests.get(f"{server.url}/health", timeout=2).status_code == 200


def test_version(server):
    version = requests.get(f"{server.url}/version", timeout=10).json()
    assert list(version) == ["version"] and re.match(r"\d+\.\d+", version["version"])


def test_load(start, tmp_path):
    # An answer that takes a while.
    tiny_llm.make(tmp_path / "mnt", context=LONG + 64)
    server = start("vllm", "serve", tmp_path / "mnt", "--served-model-name=qwen", "--port={http}")

    def wait_for(load):
        deadline = time.monotonic() + WAIT_SECONDS
        while (found := requests.get(f"{server.url}/load", timeout=10).json()) != {"server_load": load}:
            assert time.monotonic() < deadline, f"{found}, not {load}"
            time.sleep(0.02)

    wait_for(0)
    body = {**GREEDY, "model": "qwen", "prompt": PROMPT, "max_tokens": LONG, "extra_body": {"ignore_eos": True}}
    with connect(server).completions.create(**body, stream=True) as stream:
        next(stream)
        wait_for(1)
    wait_for(0)


def test_metrics_that_kserves_scheduler_reads(server):
    """Those of the Gateway API's inference extension, on the port that serves."""
    completed(server, "qwen")
    for name in ("vllm:num_requests_waiting", "vllm:num_requests_running"):
        assert [labels for labels, _ in samples(server, name)] == [{"model_name": "qwen", "engine": "0"}]
    ((_, usage),) = samples(server, "vllm:kv_cache_usage_perc")
    assert 0 <= usage <= 1
    ((cache, one),) = samples(server, "vllm:cache_config_info")
    assert one == 1 and cache["engine"] == "0" and int(cache["block_size"]) > 0 and int(cache["num_gpu_blocks"]) > 0
    ((adapters, when),) = samples(server, "vllm:lora_requests_info")
    assert adapters == {"max_lora": "0", "running_lora_adapters": "", "waiting_lora_adapters": ""}
    assert abs(when - time.time()) < 60


def test_keys_close_all_but_health_and_metrics(start, directory, tmp_path):
    (tmp_path / "keys").write_text("key\n")
    words = ["--served-model-name=qwen", "--port={http}", "--api-keys-file", tmp_path / "keys"]
    server = start("vllm", "serve", directory, *words)
    for path, status in (("/health", 200), ("/ping", 200), ("/metrics", 200), ("/version", 401), ("/load", 401)):
        assert requests.get(server.url + path, timeout=10).status_code == status, path
    assert requests.get(f"{server.url}/load", headers={"x-api-key": "key"}, timeout=10).status_code == 200


# --------------------------------------------------------------------------------------------------- huggingfaceserver


HUGGINGFACE = ["--model_name=qwen", "--model_dir={dir}", "--http_port={{http}}", "--grpc_port={{grpc}}"]


def huggingface(directory, *more):
    return [*(word.format(dir=directory) for word in HUGGINGFACE), *more]


def test_huggingfaceserver(start, directory, oracle):
    flags = ["--task=text_generation", "--backend=huggingface", "--dtype=float32", "--max_model_len=256"]
    server = start(*huggingface(directory, *flags, "--trust_remote_code", "--disable_log_requests"))
    assert_answers(server, oracle, ["qwen"], base="/openai/v1")
    assert "accepted without effect: --backend, --trust_remote_code" in server.tail()


def test_model_id_of_a_directory(start, directory, oracle):
    words = ["--model_name=qwen", f"--model_id={directory}", "--http_port={http}", "--grpc_port={grpc}"]
    assert_answers(start(*words, "--gpu-memory-utilization=0.9"), oracle, ["qwen"], base="/openai/v1")


def test_what_huggingfaceserver_does_that_is_not_built(binary, directory):
    for task in ("fill_mask", "text_embedding", "sequence_classification"):
        told = refused(binary, "--model_name=m", f"--model_dir={directory}", f"--task={task}")
        assert task in told and "not built yet" in told
    assert "are read from disk" in refused(binary, "--model_name=m", "--model_id=Qwen/Qwen3-0.6B")
