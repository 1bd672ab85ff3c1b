"""Trains the LightGBM cases and writes their models and expected outputs."""

import json
import zlib

import lightgbm as lgb
import numpy as np

import lgb_cases
from common import CaseWriter, Skip, hard_rows, neighbours, spread

VERSION = lgb.__version__
RELEASE = tuple(int(part) for part in VERSION.split(".")[:2])
CLASSES = 4
RANKING = ("lambdarank", "rank_xendcg")
POSITIVE = ("poisson", "gamma", "tweedie", "mape")
COLORS = ["red", "green", "blue", "grün", "", "a b", "7", "Red", "zz", "ä", "x" * 30, "q"]

# Values with |x| up to this number count as zero.
ZERO = float(np.float32(1e-35))
HARD_NUMBERS = np.array(
    [0.0, -0.0, 5e-324, -5e-324, 2.3e-308, 1e-36, -1e-36, 1e-35, -1e-35, ZERO, -ZERO,
     np.nextafter(ZERO, 0), np.nextafter(ZERO, 1), -np.nextafter(ZERO, 0),
     -np.nextafter(ZERO, 1), 1.1e-35, -1.1e-35, 1.0, -1.0, 0.1, 1e38, -1e38, 1e300,
     1.7976931348623157e308, -1.7976931348623157e308, np.inf, -np.inf, np.nan])
HARD_CATEGORIES = np.array(
    [-1.0, -0.5, -0.0, 0.0, 1e-36, 0.5, 0.9999999999999999, 1.0, 1.5, 31.0, 32.0, 33.0,
     63.0, 64.0, 1000.0, 16777215.0, 16777216.0, 2147483646.5, 2147483647.0,
     2147483648.0, -2147483648.0, -2147483649.0, 4294967296.0, 1e10, 1e300, np.inf,
     -np.inf, np.nan])


def generate(out, reduced):
    """Writes every case; returns the names made and those skipped with reasons."""
    made, skipped = [], []
    for number, (name, case) in enumerate(lgb_cases.cases(reduced)):
        name = f"{number:03d}-{name}"
        try:
            make_case(out, name, case, reduced)
            made.append(name)
        except Exception as error:  # noqa: BLE001 - the library's own refusals have many types
            reason = (str(error).strip().splitlines() or [""])[0]
            skipped.append({"name": name, "reason": type(error).__name__ + ": " + reason})
    return made, skipped


def make_case(out, name, case, reduced):
    """Trains one case and writes its folder. Raises when the library refuses."""
    rng = np.random.RandomState(zlib.crc32(name.encode()) & 0x7FFFFFFF)
    x = features(case, rng)
    y = signal(x, rng)
    if case["special"] not in ("dense", "constant"):
        x[rng.rand(*x.shape) < 0.1] = np.nan
    booster = train(case, x, y)
    write_case(out, name, case, booster, x, rng, reduced)


def features(case, rng):
    """A feature matrix: six numeric columns and two with category codes."""
    rows, special = case["train_rows"], case["special"]
    if special == "single_feature":
        return rng.randn(rows, 1)
    x = rng.randn(rows, 200 if special == "wide" else 8)
    x[:, 2] = rng.randint(-2, 3, rows)
    x[:, 5] = rng.randint(0, 3, rows)
    x[:, 6] = rng.randint(0, 12, rows)
    x[:, 7] = rng.randint(0, 1500 if special == "many_categories" else 60, rows)
    if special == "only_categories":
        x[:, :6] = rng.randint(0, 30, (rows, 6))
    if special == "huge":
        x[:, :6] *= 1e300
    if special == "tiny":
        x[:, :6] *= 1e-34
    if special == "around_zero":
        pool = HARD_NUMBERS[np.abs(HARD_NUMBERS) < 2e-35]
        x = np.where(rng.rand(*x.shape) < 0.5, pool[rng.randint(0, len(pool), x.shape)], x)
    if special == "sparse":
        x = np.where(rng.rand(*x.shape) < 0.7, 0.0, x)
    return x


def categorical_features(case):
    """Indices of the features that are declared categorical."""
    if not case["categorical"]:
        return []
    return list(range(8)) if case["special"] == "only_categories" else [6, 7]


def signal(x, rng):
    """A noisy function of the features, on the scale of a few units."""
    finite = np.where(np.isfinite(x), x, 0.0)
    scaled = finite / np.maximum(np.abs(finite).max(axis=0), 1e-300)
    y = 3 * scaled[:, 0] + rng.randn(len(x)) * 0.6
    if x.shape[1] > 7:
        y = y + (finite[:, 6] % 3) - 1 + (finite[:, 7] % 5 == 2) * 2
        y = y + 2 * scaled[:, 1] * scaled[:, 2]
    return y


def classes_of(case):
    """How many numbers a row's raw score has."""
    if not case["objective"].startswith("multiclass"):
        return 1
    return case["params"].get("num_class", CLASSES)


def labels(case, y):
    """Labels that the objective accepts."""
    objective = case["objective"]
    if case["special"] == "constant":
        return np.ones(len(y))
    if case["special"] == "rare_class":
        return np.where(y > 0, 1, 3)
    if objective.startswith("multiclass"):
        count = classes_of(case)
        return np.digitize(y, np.quantile(y, np.linspace(0, 1, count + 1)[1:-1]))
    if objective in RANKING:
        return np.digitize(y, [0, 1, 2])
    if objective == "binary":
        return (y > 0.5).astype(float)
    if objective.startswith("cross_entropy"):
        return 1 / (1 + np.exp(-y))
    return np.abs(y) + 0.1 if objective in POSITIVE else y


def parameters(case):
    """The library's parameters for a case."""
    result = {
        "objective": case["objective"],
        "num_leaves": case["leaves"],
        "min_data_in_leaf": 5,
        "learning_rate": 0.2,
        "seed": 7,
        "num_threads": 1,
        "deterministic": True,
        "force_row_wise": True,
        "verbose": -1,
    }
    if case["params"].get("linear_tree") and RELEASE < (3, 2):
        raise Skip("no linear trees in this version")
    if case["objective"].startswith("multiclass"):
        result["num_class"] = classes_of(case)
    result.update(case["params"])
    return result


def dataset(case, x, y):
    """A training set with groups, categories and names as the case needs."""
    keys = {"params": dict(case["params"], verbose=-1, num_threads=1)}
    keys["categorical_feature"] = categorical_features(case) or "auto"
    if case["objective"] in RANKING:
        keys["group"] = [20] * (len(y) // 20)
    if case["special"] == "names":
        keys["feature_name"] = ["größe", "a b", "c=d", "Tree=3", "日本", "e", "f", "g"]
    if case["special"] == "frame":
        x = to_frame(x)
        keys["categorical_feature"] = ["color", "code"]
    return lgb.Dataset(x, labels(case, y), **keys)


def to_frame(x):
    """The matrix as a data frame whose categories are strings and integers."""
    import pandas

    frame = pandas.DataFrame({f"n{f}": x[:, f] for f in range(6)})
    for column, feature, values in (
            ("color", 6, COLORS), ("code", 7, [100 - 3 * k for k in range(60)])):
        codes = np.where(np.isnan(x[:, feature]), -1, x[:, feature]).astype(int)
        frame[column] = pandas.Categorical.from_codes(codes, categories=values)
    return frame


def squared_error(predictions, data):
    """A custom objective: squared error through gradients."""
    return predictions - data.get_label(), np.ones_like(predictions)


def train(case, x, y):
    """The trained booster."""
    params, rounds, special = parameters(case), case["rounds"], case["special"]
    if special == "early_stopping":
        return train_stopping(case, params, x, y)
    data = dataset(case, x, y)
    keys = {}
    if special == "custom":
        if RELEASE >= (4, 0):
            params["objective"] = squared_error
        else:
            params["objective"] = "none"
            keys["fobj"] = squared_error
    booster = lgb.train(params, data, rounds, **keys)
    if special == "continued":
        booster = lgb.train(params, dataset(case, x, y), rounds, init_model=booster)
    return booster


def train_stopping(case, params, x, y):
    """Training that stops early, so that the file holds fewer trees."""
    half = len(y) // 2
    data = dataset(case, x[:half], y[:half])
    held = lgb.Dataset(x[half:], labels(case, y)[half:], reference=data)
    keys = {"valid_sets": [held]}
    if RELEASE >= (3, 3):
        keys["callbacks"] = [lgb.early_stopping(5, verbose=False)]
    else:
        keys.update(early_stopping_rounds=5, verbose_eval=False)
    return lgb.train(params, data, case["rounds"], **keys)


def split_values(text):
    """The thresholds of each feature, from the model file."""
    found, splits, kinds = {}, [], []
    for line in text.splitlines():
        key, _, value = line.partition("=")
        if key == "split_feature":
            splits = [int(part) for part in value.split()]
        elif key == "threshold":
            numbers = [float(part) for part in value.split()]
        elif key == "decision_type":
            kinds = [int(part) for part in value.split()]
            for feature, number, kind in zip(splits, numbers, kinds):
                if not kind & 1:
                    found.setdefault(feature, []).append(number)
    return found


def hard_inputs(case, train_rows, text, rng, small):
    """The matrix to predict: ordinary rows, then rows with hard values."""
    thresholds = split_values(text)
    categorical = categorical_features(case)
    pools = []
    for feature in range(train_rows.shape[1]):
        if feature in categorical:
            top = np.nanmax(train_rows[:, feature])
            ends = [top - 1, top, top + 0.5, top + 1]
            pools.append(np.concatenate([HARD_CATEGORIES, ends]))
        else:
            used = spread(np.asarray(thresholds.get(feature, [])), 3 if small else 16)
            pools.append(np.concatenate([HARD_NUMBERS, neighbours(used, np.float64)]))
    plain = train_rows[: 16 if small else 90].copy()
    single, joint = (13, 7) if small else (100, 60)
    return np.concatenate([plain, hard_rows(train_rows, pools, rng, single, joint)])


def write_case(out, name, case, booster, x, rng, reduced):
    """Writes the model, inputs and expected outputs."""
    writer = CaseWriter(out, name, "lightgbm", VERSION)
    path = writer.path("model.txt")
    booster.save_model(path)
    writer.add_model("model.txt")
    with open(path, encoding="utf-8", newline="") as file:
        text = file.read()
    if case["special"] == "crlf":
        # As a checkout on Windows leaves it. The library itself cannot read this,
        # because tree_sizes is off then; the answers are those for model.txt.
        with open(writer.path("model.crlf.txt"), "w", encoding="utf-8", newline="") as file:
            file.write(text.replace("\n", "\r\n"))
        writer.add_model("model.crlf.txt")
    # Predict with what is in the file: that is what a server has.
    booster = lgb.Booster(model_file=path)
    test = hard_inputs(case, x, text, rng, reduced)
    writer.inputs(test)
    writer.output("value", booster.predict(test))
    writer.output("margin", booster.predict(test, raw_score=True))
    write_extras(writer, case, booster, test)
    writer.close(description(case))


def write_extras(writer, case, booster, test):
    """Outputs of other calls: iteration ranges and data frames."""
    if case["special"] == "ranges":
        for begin, count in ((0, 1), (0, 4), (2, 3), (5, -1)):
            for kind, raw in (("range_value", False), ("range_margin", True)):
                values = booster.predict(
                    test, raw_score=raw, start_iteration=begin, num_iteration=count)
                writer.extra(kind, values, begin=begin, count=count)
    if case["special"] == "frame":
        rows = test[:30].copy()
        for feature, top in ((6, 11), (7, 59)):
            rows[:, feature] = np.clip(np.floor(rows[:, feature]), 0, top)
        frame = to_frame(rows)
        frame["color"] = frame["color"].cat.remove_unused_categories()
        text = frame.astype({"color": object, "code": object}).to_json(
            orient="split", index=False, double_precision=15)
        # What the JSON says, not what was rounded to write it.
        rows[:, :6] = np.array(
            [row[:6] for row in json.loads(text)["data"]], dtype=float)
        fresh = to_frame(rows)
        fresh["color"] = frame["color"]
        with open(writer.path("frame.json"), "w", encoding="utf-8") as file:
            file.write(text + "\n")
        writer.extra("frame_value", booster.predict(fresh), frame="frame.json")


def description(case):
    """The descriptive keys of case.json."""
    return {
        "objective": None if case["special"] == "custom" else case["objective"],
        "missing": None,
        "categorical": categorical_features(case),
        "classes": classes_of(case),
        "rounds": case["rounds"],
        "special": case["special"],
        "params": case["params"],
    }
