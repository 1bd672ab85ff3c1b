"""What a browser asks before a page of another origin may ask, and what it then lets the page see."""

import pytest
import requests

PAGE = "http://page.example"
PATHS = ("/v2/models/iris/infer", "/v1/models/iris:predict", "/v1/chat/completions", "/v2/health/ready", "/no/such/route")
ROWS = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": [5.1, 3.5, 1.4, 0.2]}]}


@pytest.fixture
def serving(start, models):
    return lambda *more: start("serve", "--model-repository", models, "--http-port", "{http}", "--grpc-port", "off", *more)


def asked_first(server, path, origin=PAGE):
    head = {"Origin": origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    return requests.options(server.url + path, headers=head, timeout=10)


def allowed(reply):
    return reply.headers.get("access-control-allow-origin")


def test_no_page_may_ask_unless_it_is_said(serving):
    server = serving()
    for path in PATHS:
        assert allowed(asked_first(server, path)) is None
    assert allowed(requests.post(server.url + PATHS[0], json=ROWS, headers={"Origin": PAGE}, timeout=10)) is None


def test_all_pages_may_ask_with_a_key(serving, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("secret\n")
    server = serving("--allowed-origins", "*", "--api-keys-file", keys)
    for path in PATHS:
        reply = asked_first(server, path)
        assert reply.status_code == 200 and allowed(reply) == "*", path
        assert reply.headers["access-control-allow-headers"] == "authorization"
        assert "POST" in reply.headers["access-control-allow-methods"]
    refused = requests.post(server.url + PATHS[0], json=ROWS, headers={"Origin": PAGE}, timeout=10)
    assert (refused.status_code, allowed(refused)) == (401, "*")
    keyed = {"Origin": PAGE, "Authorization": "Bearer secret"}
    answer = requests.post(server.url + PATHS[0], json=ROWS, headers=keyed, timeout=10)
    assert (answer.status_code, allowed(answer)) == (200, "*")
    assert answer.headers["access-control-expose-headers"] == "*"
    # Who is no page is answered as ever.
    plain = requests.post(server.url + PATHS[0], json=ROWS, headers={"x-api-key": "secret"}, timeout=10)
    assert plain.json()["outputs"] == answer.json()["outputs"]


def test_pages_of_some_origins_may_ask(serving):
    server = serving("--allowed-origins", f"https://other.example,{PAGE}")
    assert allowed(asked_first(server, PATHS[0])) == PAGE
    assert allowed(asked_first(server, PATHS[0], "http://page.example:81")) is None
    answer = requests.post(server.url + PATHS[0], json=ROWS, headers={"Origin": PAGE}, timeout=10)
    assert (answer.status_code, allowed(answer)) == (200, PAGE)
