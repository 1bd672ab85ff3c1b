"""Many callers of ONNX models at a time: everyone gets the answer to what they asked, whatever is computed together.

One session serves all callers of a model. ONNX Runtime documents that it may, and `ort` does not trust it: it is tested
here.
"""

import itertools
import threading

import numpy as np
import onnx_models
import onnx_odd
import onnx_service
import pytest
import requests
from onnx import helper
from onnx_models import NODE, PORT, T, constant, floats
from onnx_service import described, same, serving, stats, write

# And so many rows that a request of them queues: what takes less time is computed where it stands.
TOGETHER = {"convolutional": 8, "transformer": 1, "large": 1} | dict.fromkeys(
    ["trees", "zipmap", "mixed", "pipeline", "zipmap-numbers", "forest", "regressor", "same-bytes", "same-fp64"], 100
)
# Batches wait long enough for sixteen callers, and have room for them.
# Longer than clients of a busy machine are apart.
GATHER = ["--max-batch-delay", "200ms", "--max-batch-rows", 10_000]
APART = [*onnx_service.ALONE, "scalar"]


@pytest.fixture(scope="module")
def nets():
    return onnx_service.models()


@pytest.fixture(scope="module")
def gathering(binary, tmp_path_factory, nets):
    folder = tmp_path_factory.mktemp("gathering")
    for name in [*TOGETHER, *APART, "optional"]:
        write(nets[name], folder / "models", "folder" if nets[name].external else "version")
    with serving(binary, folder, *GATHER) as server:
        yield server


def outputs_of(reply):
    """Outputs by name of a V2 answer in JSON."""
    assert reply.status_code == 200, reply.text
    found = {}
    for each in reply.json()["outputs"]:
        data = np.array(each["data"], onnx_service.TYPES[each["datatype"]])
        found[each["name"]] = data.reshape(each["shape"])
    return found


def all_at_once(server, jobs, callers=16):
    """Asks every `(model, inputs, answer)` of `jobs`, many at a time, and compares."""
    remaining, lock, failures = iter(jobs), threading.Lock(), []

    def work():
        with requests.Session() as session:
            while True:
                with lock:
                    job = next(remaining, None)
                if job is None or failures:
                    return
                name, inputs, expected = job
                try:
                    url = f"{server.url}/v2/models/{name}/infer"
                    same(outputs_of(session.post(url, json={"inputs": inputs}, timeout=60)), expected, 1e-5)
                except Exception as error:  # noqa: BLE001  (reported below, in the test's own thread)
                    failures.append(f"{name}: {error}")

    threads = [threading.Thread(target=work) for _ in range(callers)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert not failures, failures[0]


def jobs_of(model, count, rows=(1,), seed=0, oracle=None):
    """Requests of so many rows in turn, and their answers, each computed alone."""
    oracle = oracle or onnx_service.oracle(model.name)
    made = []
    for number, size in zip(range(count), itertools.cycle(rows)):
        (feeds,) = model.asks(1, size, seed=seed + number)
        made.append((model.name, described(feeds), oracle.answer(feeds)))
    return made


def counted(server, name, jobs):
    """How many rows and runs the statistics have for these."""
    before = stats(server, name)
    all_at_once(server, jobs)
    after = stats(server, name)
    return [after[key] - before[key] for key in ("inference_count", "execution_count")]


@pytest.mark.parametrize("name", TOGETHER)
def test_rows_are_computed_together(gathering, nets, name):
    """And answered as if they had been alone."""
    rows = TOGETHER[name]
    inferences, executions = counted(gathering, name, jobs_of(nets[name], 48, [rows]))
    assert inferences == 48 * rows
    assert executions < 48


@pytest.mark.parametrize("name", ["transformer", "pipeline", "mixed"])
def test_requests_of_various_rows_are_computed_together(gathering, nets, name):
    rows = [each * TOGETHER[name] for each in (1, 3, 2)]
    inferences, executions = counted(gathering, name, jobs_of(nets[name], 48, rows))
    assert inferences == 16 * sum(rows)
    assert executions < 48


@pytest.mark.parametrize("name", APART)
def test_what_is_no_batch_is_computed_alone(gathering, nets, name):
    for rows in ((1, 3, 2), (100, 101)):
        _, executions = counted(gathering, name, jobs_of(nets[name], 40, rows))
        assert executions == 40


def test_only_what_may_be_left_out_is_computed_alone(gathering, nets):
    """Requests that leave it out are put together; those that have a value for it have it for themselves."""
    random, oracle = np.random.default_rng(14), onnx_service.oracle("optional")
    scaled = []
    for number in range(40):
        # Of fewer rows than it has numbers, of as many, and of more.
        (feeds,) = nets["optional"].asks(1, 1 + number % 3, seed=number)
        given = {**feeds, "scale": floats(random, 2)}
        scaled.append(("optional", described(given), {"y": given["x"] * given["scale"]}))
    plain = jobs_of(nets["optional"], 40, (1, 3, 2), oracle=oracle)
    _, executions = counted(gathering, "optional", plain)
    assert executions < 40
    _, executions = counted(gathering, "optional", scaled)
    assert executions == 40
    _, executions = counted(gathering, "optional", [job for turn in zip(plain, scaled) for job in turn])
    assert executions >= 40
    # Whatever the order of inputs.
    backwards = [(name, inputs[::-1], answer) for name, inputs, answer in scaled]
    _, executions = counted(gathering, "optional", backwards)
    assert executions == 40


@pytest.mark.parametrize("make", onnx_odd.MEETING)
def test_rows_that_meet_are_computed_alone(binary, tmp_path, make):
    """Behind a Slice to the greatest number, a Split of the rows, or as steps or the first state of a recurrent net: of
    each a trial has to show that rows are not apart; or the graph, where they meet for numbers that no trial has."""
    model = make()
    write(model, tmp_path / "models")
    oracle = onnx_service.Oracle(model)
    with serving(binary, tmp_path, *GATHER) as server:
        for rows in ((1,), (1, 3, 2, 4)):
            _, executions = counted(server, model.name, jobs_of(model, 40, rows, oracle=oracle))
            assert executions == 40
        assert requests.get(f"{server.url}/v2/models/{model.name}/config").json()["max_batch_size"] == 0


@pytest.mark.parametrize("gathers", [False, True])
def test_a_batch_size_alone_puts_no_requests_together(binary, tmp_path, gathers):
    """As in Triton, where that takes `dynamic_batching`. The rows of this graph meet for numbers that no trial has."""
    text = 'backend: "onnxruntime" max_batch_size: 64' + gathers * " dynamic_batching { }"
    write(onnx_odd.peaks(), tmp_path / "models", config={"config.pbtxt": text})
    with serving(binary, tmp_path, *GATHER) as server:
        log = server.log.read_text()
    told = "computes across rows" in log and "state dynamic_batching" in log
    assert told != gathers, log


def test_rows_of_two_names(binary, tmp_path):
    """Those that are as many are put together; one row on many is the graph's to spread."""
    model = onnx_odd.spread()
    write(model, tmp_path / "models")
    oracle, random = onnx_service.Oracle(model), np.random.default_rng(15)
    even = jobs_of(model, 40, (1, 3, 2), oracle=oracle)
    uneven = []
    for rows in (2, 3, 4, 5) * 10:
        feeds = model.ask(random, rows, 1)
        uneven.append((model.name, described(feeds), oracle.answer(feeds)))
    with serving(binary, tmp_path, *GATHER) as server:
        _, executions = counted(server, model.name, even)
        assert executions < 40
        _, executions = counted(server, model.name, uneven)
        assert executions == 40
        all_at_once(server, [job for turn in zip(even, uneven) for job in turn])


@pytest.mark.parametrize("text", ["max_batch_size: 8", "max_batch_size: 0"])
def test_rows_of_two_names_that_settings_call_one_batch(binary, tmp_path, text):
    """Then they are as many, or the request is refused; and where there is no batch, they are what they are."""
    model = onnx_odd.spread()
    write(model, tmp_path / "models", config={"config.pbtxt": f'backend: "onnxruntime" {text}'})
    feeds = model.ask(np.random.default_rng(16), 3, 1)
    with serving(binary, tmp_path) as server:
        reply = onnx_service.post(server, model.name, described(feeds))
        if text.endswith("8"):
            assert reply.status_code == 400, reply.text
            assert "input 'b' has 1 rows" in reply.json()["error"]
        else:
            same(outputs_of(reply), onnx_service.Oracle(model).answer(feeds))


def test_texts_of_several_lengths(gathering, nets):
    """Only those of one length make a batch."""
    random = np.random.default_rng(10)
    oracle, jobs = onnx_service.oracle("transformer"), []
    for number in range(96):
        feeds = onnx_models.ask_transformer(random, 1 + number % 2, 2 + number % 5)
        jobs.append(("transformer", described(feeds), oracle.answer(feeds)))
    _, executions = counted(gathering, "transformer", jobs)
    assert executions < 96


def test_several_models_at_a_time(gathering, nets):
    """Everything at once, in turn."""
    lists = [jobs_of(nets[name], 24, rows=(1, 2, 5), seed=100) for name in [*TOGETHER, *APART]]
    all_at_once(gathering, [job for turn in zip(*lists) for job in turn])


def test_a_bad_request_spoils_no_batch(gathering, nets):
    """One that ONNX Runtime refuses is in a batch with good ones, which are answered."""
    good = jobs_of(nets["transformer"], 1)[0]
    (_, inputs, _) = good
    length = inputs[0]["shape"][1]
    random = np.random.default_rng(11)
    jobs = []
    for _ in range(40):
        feeds = onnx_models.ask_transformer(random, 1, length)
        jobs.append(("transformer", described(feeds), onnx_service.oracle("transformer").answer(feeds)))
    bad = onnx_models.ask_transformer(random, 1, length)
    bad["ids"][0, 0] = 10 * onnx_models.VOCABULARY
    statuses, stop = [], threading.Event()

    def spoil():
        while not stop.is_set():
            statuses.append(onnx_service.post(gathering, "transformer", described(bad)).status_code)

    spoiling = threading.Thread(target=spoil)
    spoiling.start()
    try:
        all_at_once(gathering, jobs)
    finally:
        stop.set()
        spoiling.join()
    assert set(statuses) <= {400, 500}, set(statuses)


def meeting():
    """Rows whose sum is large meet, and others do not."""
    nodes = [
        NODE("ReduceSum", ["x", "axis"], ["sum"], keepdims=1),
        NODE("Sub", ["sum", "limit"], ["over"]),
        NODE("Relu", ["over"], ["rest"]),
        NODE("Add", ["x", "rest"], ["y"]),
    ]
    constants = [constant("axis", [0], np.int64), constant("limit", [[1e4, 1e4]], np.float32)]
    return nodes, constants, lambda random, rows: floats(random, rows, 2) + 20


def quantised():
    """As ONNX Runtime's own tool quantises what it does not know beforehand: one scale for all rows that come together.
    Those that are small lose their digits beside those that are large."""
    weights = np.random.default_rng(12).integers(-100, 100, (2, 2)).astype(np.int8)
    nodes = [
        NODE("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"]),
        NODE("MatMulInteger", ["q", "w", "zero"], ["product"]),
        NODE("Cast", ["product"], ["number"], to=T.FLOAT),
        NODE("Mul", ["number", "scale"], ["y"]),
    ]
    return (
        nodes,
        [constant("w", weights)],
        lambda random, rows: floats(random, rows, 2) * 10.0 ** random.integers(-3, 4),
    )


@pytest.mark.parametrize("make", [meeting, quantised])
def test_rows_that_meet_only_now_and_then(binary, tmp_path, make):
    """Small numbers do not tell, for which a trial has large ones, too. Unless settings say that rows are a batch, answers
    are those of each request alone."""
    nodes, constants, numbers = make()
    ports = [PORT("x", T.FLOAT, ["rows", 2])], [PORT("y", T.FLOAT, ["rows", 2])]
    made = onnx_models.proto(nodes, *ports, constants)
    model = onnx_models.Model("subject", made, lambda random, rows: {"x": numbers(random, rows).astype(np.float32)})
    write(model, tmp_path / "models")
    oracle = onnx_service.Oracle(model)
    jobs = [("subject", described(feeds), oracle.answer(feeds)) for feeds in model.asks(64, 300)]
    with serving(binary, tmp_path, *GATHER) as server:
        all_at_once(server, jobs)


def test_a_slow_model_is_no_exception(binary, tmp_path):
    """Its dimension is called batch, and its rows meet all the same: that a trial takes long is no reason to believe a
    name. On a busy machine it takes long for every model."""
    body = helper.make_graph(
        [
            NODE("Identity", ["go"], ["on"]),
            NODE("MatMul", ["state", "w"], ["product"]),
            NODE("Tanh", ["product"], ["next"]),
        ],
        "body",
        [PORT("step", T.INT64, []), PORT("go", T.BOOL, []), PORT("state", T.FLOAT, None)],
        [PORT("on", T.BOOL, []), PORT("next", T.FLOAT, None)],
        [constant("w", onnx_models.weights(np.random.default_rng(13), 256, 256))],
    )
    nodes = [
        NODE("Loop", ["count", "", "x"], ["z"], body=body),
        NODE("ReduceMean", ["z", "axis"], ["mean"], keepdims=1),
        NODE("Sub", ["z", "mean"], ["y"]),
    ]
    ports = [PORT("x", T.FLOAT, ["batch", 256])], [PORT("y", T.FLOAT, ["batch", 256])]
    constants = [constant("count", 2000, np.int64), constant("axis", [0], np.int64)]
    made = onnx_models.proto(nodes, *ports, constants)
    model = onnx_models.Model("subject", made, lambda random, rows: {"x": 10 * floats(random, rows, 256)})
    write(model, tmp_path / "models")
    with serving(binary, tmp_path, *GATHER) as server:
        _, executions = counted(server, "subject", jobs_of(model, 16, oracle=onnx_service.Oracle(model)))
        assert executions == 16


GROUPS = """
[[instance_group]]
count = 2
[[instance_group]]
count = 1
device = "cpu"
[onnx]
intra_op_threads = 1
"""


def test_several_instances(binary, tmp_path, nets):
    """Groups of instances share the work, and each answers for itself."""
    for name in ("convolutional", "pipeline"):
        write(nets[name], tmp_path / "models", config={"model.toml": GROUPS})
    with serving(binary, tmp_path) as server:
        lists = [jobs_of(nets[name], 60, rows=(1, 2, 5)) for name in ("convolutional", "pipeline")]
        all_at_once(server, [job for turn in zip(*lists) for job in turn])


def test_a_batch_has_no_more_rows_than_the_settings_say(binary, tmp_path, nets):
    config = 'backend: "onnxruntime" max_batch_size: 4 dynamic_batching { max_queue_delay_microseconds: 30000 }'
    write(nets["large"], tmp_path / "models", "folder", config={"config.pbtxt": config})
    with serving(binary, tmp_path) as server:
        inferences, executions = counted(server, "large", jobs_of(nets["large"], 64))
        assert inferences == 64
        assert 16 <= executions < 64
        (feeds,) = nets["large"].asks(1, 5)
        reply = onnx_service.post(server, "large", described(feeds))
        assert reply.status_code == 400, reply.text
        assert "4" in reply.json()["error"]


def test_max_batch_size_0_has_no_batches(binary, tmp_path, nets):
    """As Triton reads it: the first dimension is one of the model's own."""
    config = 'backend: "onnxruntime" max_batch_size: 0'
    write(nets["large"], tmp_path / "models", "folder", config={"config.pbtxt": config})
    with serving(binary, tmp_path, *GATHER) as server:
        _, executions = counted(server, "large", jobs_of(nets["large"], 32))
        assert executions == 32
