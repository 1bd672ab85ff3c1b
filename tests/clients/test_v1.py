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


def keyed(columns):
    """A frame as pandas' `to_dict` has it, and KServe's samples for LightGBM: columns keyed by row."""
    return {name: {str(row): value for row, value in enumerate(values)} for name, values in columns.items()}


def test_columns_keyed_by_row(server, example):
    columns = named_columns(example)
    assert predict(server, example, {"inputs": [keyed(columns)]}).json() == example.predictions
    first = {name: {"0": values[0]} for name, values in columns.items()}
    twice = predict(server, example, {"instances": [first, first]}).json()["predictions"]
    assert twice == [example.predictions["predictions"][0]] * 2


@pytest.fixture
def wine(models):
    return Example.read(models, "wine")


def over_v2(server, example, rows):
    """The library's answer for 64-bit floats, NaN and all."""
    tensor = {"name": "x", "datatype": "FP64", "shape": [len(rows), len(rows[0])], "data": rows}
    reply = requests.post(f"{server.url}/v2/models/{example.name}/infer", json={"inputs": [tensor]})
    output = reply.json()["outputs"][0]
    width = output["shape"][1]
    return [output["data"][at : at + width] for at in range(0, len(output["data"]), width)]


@pytest.mark.lightgbm
@pytest.mark.parametrize("form", ["rows", "columns", "keyed"])
def test_lightgbm_frames_lack_columns_and_have_others(server, wine, form):
    """What is lacking is missing, and what the model does not have is not looked at."""
    columns = named_columns(wine)
    lacking = sorted(columns)[::3]
    rows = [[None if name in lacking else value for name, value in zip(columns, row)] for row in wine.json_rows]
    kept = {name: values for name, values in columns.items() if name not in lacking}
    kept["note"] = ["a", None, {"b": [1]}, 4, []][: len(wine.json_rows)]
    frames = {
        "rows": [dict(zip(kept, row)) for row in zip(*kept.values())],
        "columns": [kept],
        "keyed": [keyed(kept)],
    }
    reply = predict(server, wine, {"inputs": frames[form]})
    assert reply.status_code == 200, reply.text
    assert reply.json()["predictions"] == over_v2(server, wine, rows)


@pytest.mark.lightgbm
def test_lightgbm_frames_of_nothing_known_are_refused(server, wine):
    reply = predict(server, wine, {"inputs": [{"note": 1}]})
    assert reply.status_code == 400
    assert "alcohol" in reply.json()["error"]


def test_xgboost_frames_are_taken_as_they_are(server, iris):
    """KServe hands XGBoost the frame, and XGBoost asks for the columns that it knows."""
    columns = named_columns(iris)
    first = next(iter(columns))
    for frame in ({name: columns[name] for name in columns if name != first}, columns | {"note": columns[first]}):
        assert predict(server, iris, {"inputs": [frame]}).status_code == 400


# Two leaves, and the split between two whole numbers that 32-bit floats cannot tell apart.
SPLIT = """tree
version=v4
num_class=1
num_tree_per_iteration=1
label_index=0
max_feature_idx=0
objective=regression
feature_names=x
feature_infos=[16777216:16777220]
tree_sizes=200

Tree=0
num_leaves=2
num_cat=0
split_feature=0
split_gain=1
threshold=16777216.5
decision_type=2
left_child=-1
right_child=-2
leaf_value=0 1
leaf_weight=1 1
leaf_count=1 1
internal_value=0
internal_weight=0
internal_count=2
is_linear=0
shrinkage=1


end of trees

feature_importances:
x=1

parameters:
end of parameters

pandas_categorical:null
"""


@pytest.mark.lightgbm
def test_lightgbm_rounds_whole_numbers_and_lists_with_null(start, tmp_path):
    """The library takes arrays of 64-bit floats as they are, and makes 32-bit floats of all other ones."""
    (tmp_path / "models" / "split" / "1").mkdir(parents=True)
    (tmp_path / "models" / "split" / "1" / "model.txt").write_text(SPLIT)
    server = start("serve", "--model-repository", tmp_path / "models", "--http-port", "{http}", "--grpc-port", "{grpc}")

    def answers(rows):
        return requests.post(f"{server.url}/v1/models/split:predict", json={"instances": rows}).json()["predictions"]

    # What lgb.Booster.predict(np.array(rows)) says, LightGBM 4.7.
    assert answers([[16777217], [16777219]]) == [0, 1]
    assert answers([[16777217.0], [16777219]]) == [1, 1]
    assert answers([[16777217], [True]]) == [0, 0]
    assert answers([[16777217.0], [None]]) == [0, 0]
    # And of pd.DataFrame(rows), which becomes one of 64-bit floats.
    assert answers([{"x": 16777217}, {"x": 16777219}]) == [1, 1]
    tensor = {"name": "x", "datatype": "INT64", "shape": [2, 1], "data": [16777217, 16777219]}
    reply = requests.post(f"{server.url}/v2/models/split/infer", json={"inputs": [tensor]})
    assert reply.json()["outputs"][0]["data"] == [0, 1]


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


@pytest.mark.parametrize("kind", ["Application/CloudEvents+JSON", "application/cloudevents+json; charset=utf-8"])
def test_structured_cloud_event_under_other_spellings(server, iris, kind):
    _, body = to_structured(CloudEvent(attributes(), {"instances": iris.json_rows}))
    reply = requests.post(f"{server.url}/v1/models/iris:predict", data=body, headers={"Content-Type": kind})
    assert reply.headers["Content-Type"].startswith("application/cloudevents+json")
    assert reply.json()["data"] == iris.predictions


def test_structured_cloud_event_in_base64(server, iris):
    body = json.dumps({"instances": iris.json_rows}).encode()
    headers, event = to_structured(CloudEvent(attributes(), body))
    assert "data_base64" in json.loads(event)
    reply = requests.post(f"{server.url}/v1/models/iris:predict", data=event, headers=headers)
    assert reply.json()["data"] == iris.predictions


@pytest.mark.parametrize("structured", [True, False])
def test_cloud_event_of_an_unknown_version(server, iris, structured):
    event = CloudEvent(attributes(), {"instances": iris.json_rows})
    headers, body = (to_structured if structured else to_binary)(event)
    body = body.replace(b'"specversion": "1.0"', b'"specversion": "7.0"')
    headers = {name: "7.0" if name == "ce-specversion" else value for name, value in headers.items()}
    reply = requests.post(f"{server.url}/v1/models/iris:predict", data=body, headers=headers)
    assert reply.status_code == 400
    assert "7.0" in reply.json()["error"]


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
