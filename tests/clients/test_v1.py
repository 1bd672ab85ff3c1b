"""Protocol v1 as curl speaks it: plain JSON over `/v1/models/NAME:predict`, and CloudEvents."""

import json
import uuid

import pytest
import requests
from cloudevents.conversion import to_binary, to_structured
from cloudevents.http import CloudEvent
from harness import Example


def predict(server, example, body, **more):
    return requests.post(f"{server.url}/v1/models/{example.name}:predict", json=body, **more)


@pytest.mark.parametrize("key", ["instances", "inputs"])
def test_lists(server, example, key):
    reply = predict(server, example, {key: example.json_rows})
    assert reply.status_code == 200, reply.text
    assert reply.json() == example.predictions
    assert reply.headers["Content-Type"] == "application/json"


def test_inputs_win_over_instances(server, iris):
    reply = predict(server, iris, {"instances": [[0, 0, 0, 0]] * 9, "inputs": iris.json_rows})
    assert reply.json() == iris.predictions


def test_other_keys_are_ignored(server, iris):
    reply = predict(server, iris, {"signature_name": "x", "instances": iris.json_rows})
    assert reply.json() == iris.predictions


def test_whole_numbers(server, iris):
    whole = predict(server, iris, {"instances": [[5, 3, 1, 0]]})
    assert whole.json() == predict(server, iris, {"instances": [[5.0, 3.0, 1.0, 0.0]]}).json()


@pytest.mark.parametrize("wrap", [False, True], ids=["scalars", "lists-of-one"])
def test_dict_rows(server, example, wrap):
    """KServe itself takes only the lists of one; scalars are what people write."""
    names = example.feature_names()
    rows = [{name: [value] if wrap else value for name, value in zip(names, row)} for row in example.json_rows]
    assert predict(server, example, {"instances": rows}).json() == example.predictions


def test_lists_of_dict_rows(server, example):
    """KServe makes one table of each inner list and then stacks the tables."""
    names = example.feature_names()
    rows = [[dict(zip(names, row))] for row in example.json_rows]
    assert predict(server, example, {"inputs": rows}).json() == example.predictions


def named_columns(example):
    return dict(zip(example.feature_names(), map(list, zip(*example.json_rows))))


def test_columns(server, example):
    """One object whose values are columns."""
    columns = named_columns(example)
    assert predict(server, example, {"inputs": [columns]}).json() == example.predictions


@pytest.mark.lightgbm
def test_lightgbm_takes_columns_by_name(server, models):
    wine = Example.read(models, "wine")
    columns = named_columns(wine)
    shuffled = dict(sorted(columns.items(), reverse=True))
    assert predict(server, wine, {"inputs": [shuffled]}).json() == wine.predictions


@pytest.mark.parametrize("content_type", [None, "application/json", "application/json; charset=utf-8"])
def test_content_types(server, iris, content_type):
    headers = {"Content-Type": content_type} if content_type else {}
    body = json.dumps({"instances": iris.json_rows}).encode()
    reply = requests.post(f"{server.url}/v1/models/iris:predict", data=body, headers=headers)
    assert reply.json() == iris.predictions


def test_keep_alive(server, iris):
    with requests.Session() as session:
        for _ in range(5):
            reply = session.post(f"{server.url}/v1/models/iris:predict", json={"instances": iris.json_rows})
            assert reply.json() == iris.predictions


def test_alive(server):
    assert requests.get(f"{server.url}/").json() == {"status": "alive"}


def test_models_is_a_merged_list(server):
    listed = requests.get(f"{server.url}/v1/models").json()
    assert {"iris", "breast-cancer"} <= set(listed["models"])
    assert listed["object"] == "list"
    assert isinstance(listed["data"], list)


def test_model_is_ready(server):
    reply = requests.get(f"{server.url}/v1/models/iris")
    assert reply.status_code == 200
    assert reply.json() == {"name": "iris", "ready": True}


def attributes():
    return {"type": "org.example.request", "source": "tests", "id": "36077800-0c23-4f38-a0b4-01f4369f670a"}


def test_binary_cloud_event(server, iris):
    headers, body = to_binary(CloudEvent(attributes(), {"instances": iris.json_rows}))
    reply = requests.post(f"{server.url}/v1/models/iris:predict", headers=headers, data=body)
    assert reply.status_code == 200, reply.text
    assert reply.headers["ce-specversion"] == "1.0"
    assert reply.headers["ce-source"] == "io.kserve.inference.iris"
    assert reply.headers["ce-type"] == "io.kserve.inference.response"
    assert reply.headers["ce-time"]
    assert uuid.UUID(reply.headers["ce-id"]) != uuid.UUID(attributes()["id"])
    assert reply.headers["Content-Type"] == "application/json"
    assert reply.json() == iris.predictions


def test_binary_cloud_event_needs_all_four_headers(server, iris):
    """With one missing it is an ordinary request."""
    headers, body = to_binary(CloudEvent(attributes(), {"instances": iris.json_rows}))
    del headers["ce-type"]
    headers["Content-Type"] = "application/json"
    reply = requests.post(f"{server.url}/v1/models/iris:predict", headers=headers, data=body)
    assert reply.json() == iris.predictions
    assert "ce-id" not in reply.headers


def test_structured_cloud_event(server, iris):
    headers, body = to_structured(CloudEvent(attributes(), {"instances": iris.json_rows}))
    assert headers["content-type"] == "application/cloudevents+json"
    reply = requests.post(f"{server.url}/v1/models/iris:predict", headers=headers, data=body)
    assert reply.status_code == 200, reply.text
    assert reply.headers["Content-Type"].startswith("application/cloudevents+json")
    event = reply.json()
    assert {"specversion", "id", "source", "type", "time", "data"} <= set(event)
    assert event["source"] == "io.kserve.inference.iris"
    assert event["type"] == "io.kserve.inference.response"
    assert event["data"] == iris.predictions


def test_structured_cloud_event_as_plain_json(server, iris):
    """The data is unwrapped, and the reply is not an event."""
    _, body = to_structured(CloudEvent(attributes(), {"instances": iris.json_rows}))
    reply = requests.post(
        f"{server.url}/v1/models/iris:predict", data=body, headers={"Content-Type": "application/json"}
    )
    assert reply.json() == iris.predictions


def test_broken_binary_cloud_event(server, iris):
    headers, _ = to_binary(CloudEvent(attributes(), {"instances": iris.json_rows}))
    headers["content-type"] = "application/json"
    reply = requests.post(f"{server.url}/v1/models/iris:predict", headers=headers, data=b'{"instances":')
    assert reply.status_code == 400
    assert reply.json()["error"]
