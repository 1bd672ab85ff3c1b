"""Trains the XGBoost cases and writes their models and expected outputs."""

import json
import os
import re
import zlib

import numpy as np
import xgboost as xgb

import xgb_cases
from common import CaseWriter, Skip
from xgb_cases import MULTI_CLASS, RANKING, VECTOR_ALPHA
from xgb_data import (
    categorical_features,
    features,
    hard_inputs,
    labels,
    make_missing,
    outputs_of,
    signal,
)

VERSION = xgb.__version__
RELEASE = tuple(int(part) for part in VERSION.split(".")[:2])
FRAME_COLORS = ["red", "green", "blue", "grün", "", "a b", "x" * 40, "7", "nan", "Red",
                "zz", "ä"]
NAMES = ["length", "größe", "x y", 'quo"te', "back\\slash", "日本", "f6", "π/2"]


def generate(out, reduced):
    """Writes every case; returns the names made and those skipped with reasons."""
    made, skipped = [], []
    for number, (name, case) in enumerate(xgb_cases.cases(reduced)):
        name = f"{number:03d}-{name}"
        try:
            make_case(out, name, case, reduced)
            made.append(name)
        except Exception as error:  # noqa: BLE001 - the library's own refusals have many types
            skipped.append({"name": name, "reason": reason_of(error)})
    return made, skipped


def reason_of(error):
    """One line of an error, without the time and place it starts with."""
    text = re.sub(r"^\[[0-9:]+\] \S+: ", "", str(error).strip())
    return type(error).__name__ + ": " + (text.splitlines() or [""])[0]


def make_case(out, name, case, reduced):
    """Trains one case and writes its folder. Raises when the library refuses."""
    if RELEASE < (1, 0) and case["booster"] == "dart":
        raise Skip("predict of this version applies the dropout of training")
    if RELEASE < (1, 0) and case["objective"] == "binary:hinge":
        raise Skip("later versions read another base_score from this version's file")
    rng = np.random.RandomState(zlib.crc32(name.encode()) & 0x7FFFFFFF)
    rows = 80 if reduced else case["train_rows"]
    x = features(case, rng, rows)
    y = signal(x, rng)
    if case["nan"]:
        x = make_missing(x, rng)
    if case["special"] == "frame":
        booster = train_frame(case, x, y)
    else:
        booster = train(case, x, y)
    written = write_case(out, name, case, booster, x, rng, reduced)
    written.close(description(case))


def parameters(case):
    """The library's parameters for a case."""
    objective = case["objective"]
    result = {
        "objective": objective,
        "booster": case["booster"],
        "eta": 0.4,
        "seed": 7,
        "nthread": 1,
        "verbosity": 0,
    }
    if RELEASE < (1, 0):
        result["silent"] = 1
    if case["booster"] != "gblinear":
        result.update(tree_parameters(case))
    if objective in MULTI_CLASS:
        result["num_class"] = outputs_of(case)
    if objective == "reg:quantileerror":
        result["quantile_alpha"] = [0.5] if case["output"] == "single" else [0.2, 0.5, 0.9]
    if objective == "reg:expectileerror":
        result["expectile_alpha"] = [0.5] if case["output"] == "single" else [0.2, 0.5, 0.9]
    if case["base"] == "fixed":
        result["base_score"] = 0.3
    if case["base"] == "vector":
        if RELEASE < (3, 1):
            raise Skip("base_score is one number in this version")
        result["base_score"] = [0.2 + 0.15 * k for k in range(outputs_of(case))]
    if case["special"] == "custom":
        del result["objective"]
        result["disable_default_eval_metric"] = 1
    result.update(case["params"])
    return result


def tree_parameters(case):
    """Parameters of the tree boosters."""
    result = {
        "max_depth": case["depth"],
        "tree_method": case["method"],
        "num_parallel_tree": case["parallel"],
    }
    if case["method"] != "exact":
        result["grow_policy"] = case["grow"]
        result["max_bin"] = 64
    if case["parallel"] > 1:
        result["subsample"] = 0.7
    if case["booster"] == "dart":
        result.update(rate_drop=0.3, one_drop=1)
    if case["cat"] != "none":
        if RELEASE < (1, 7):
            raise Skip("no categorical features in this version")
        result["max_cat_to_onehot"] = 1 if case["cat"] == "partition" else 10000
    if case["output"] == "vector":
        if RELEASE < (2, 0):
            raise Skip("no vector leaves in this version")
        result["multi_strategy"] = "multi_output_tree"
    return result


def matrix(case, x, label=None, names=None):
    """A DMatrix with the case's feature types and its way to mark missing values."""
    keys = {}
    categorical = categorical_features(case)
    if categorical:
        keys["enable_categorical"] = True
        keys["feature_types"] = [
            "c" if f in categorical else "q" for f in range(x.shape[1])]
    if case.get("missing") is not None:
        x = np.where(np.isnan(x), np.float32(case["missing"]), x)
        keys["missing"] = case["missing"]
    if case["special"] == "names":
        keys["feature_names"] = NAMES
    if names is not None:
        keys["feature_names"] = names
    return xgb.DMatrix(x, label=label, **keys)


def training_matrix(case, x, y):
    """The training DMatrix with labels, bounds or groups as the objective needs."""
    objective = case["objective"]
    if objective == "survival:aft":
        data = matrix(case, x)
        data.set_float_info("label_lower_bound", np.abs(y) + 0.1)
        upper = np.abs(y) + 0.5
        upper[::4] = np.inf
        data.set_float_info("label_upper_bound", upper)
        return data
    label = labels(case, y)
    if objective == "survival:cox":
        label = np.where(np.arange(len(label)) % 4 == 0, -label, label)
    data = matrix(case, x, label)
    if objective in RANKING:
        size = 10
        data.set_group([size] * (len(y) // size))
    if case["special"] == "base_margin":
        data.set_base_margin(margin_base(case, len(y)))
    return data


def margin_base(case, rows):
    """User-given starting margins, different in every row and output."""
    outputs = outputs_of(case)
    values = (np.arange(rows * outputs) % 17 - 8).astype(np.float32) * np.float32(0.13)
    return values if outputs == 1 else values.reshape(rows, outputs)


def squared_error(predictions, data):
    """A custom objective: squared error through gradients."""
    label = data.get_label().reshape(predictions.shape)
    return predictions - label, np.ones_like(predictions)


def train(case, x, y):
    """The trained booster."""
    special, rounds = case["special"], case["rounds"]
    params = parameters(case)
    if special == "wrapper":
        return train_wrapper(case, params, x, y)
    data = training_matrix(case, x, y)
    keys = {}
    if special == "early_stopping":
        half = len(y) // 2
        data = training_matrix(case, x[:half], y[:half])
        held = training_matrix(case, x[half:], y[half:])
        keys = {"evals": [(held, "held")], "early_stopping_rounds": 6, "verbose_eval": False}
    if special == "custom":
        keys["obj"] = squared_error
    booster = xgb.train(params, data, rounds, **keys)
    if special == "continued":
        booster = xgb.train(params, data, rounds, xgb_model=booster)
    if special == "slice":
        booster = booster[3:8]
    return booster


def train_wrapper(case, params, x, y):
    """The same through the scikit-learn interface, which leaves attributes."""
    drop = ("nthread", "num_class", "seed", "verbosity")
    params = {key: value for key, value in params.items() if key not in drop}
    params.update(n_estimators=case["rounds"], n_jobs=1)
    if case["objective"] == "reg:squarederror":
        return xgb.XGBRegressor(**params).fit(x, y).get_booster()
    label = labels(case, y).astype(int)
    return xgb.XGBClassifier(**params).fit(x, label).get_booster()


def to_frame(x):
    """The matrix as a data frame whose categories are strings and integers."""
    import pandas

    frame = pandas.DataFrame({f"n{f}": x[:, f] for f in range(6)})
    for column, feature, values in (
            ("color", 6, FRAME_COLORS),
            ("code", 7, [100 - 3 * k for k in range(40)])):
        codes = np.where(np.isnan(x[:, feature]), -1, x[:, feature]).astype(int)
        frame[column] = pandas.Categorical.from_codes(codes, categories=values)
    return frame


def train_frame(case, x, y):
    """A booster trained on a data frame, so that the file knows its categories."""
    data = xgb.DMatrix(to_frame(x), label=y, enable_categorical=True)
    return xgb.train(parameters(case), data, case["rounds"])


def save_models(booster, writer):
    """Saves in every encoding that this version writes. Legacy binary is model.bst."""
    for name in ("model.json", "model.ubj", "model.deprecated"):
        path = writer.path(name)
        try:
            booster.save_model(path)
        except xgb.core.XGBoostError:
            continue
        with open(path, "rb") as file:
            head = file.read(2)
        wanted = {"model.json": b'{"', "model.ubj": b"{"}.get(name)
        if wanted is None and head[:1] != b"{":
            os.replace(path, writer.path("model.bst"))
            writer.add_model("model.bst")
        elif wanted is not None and head.startswith(wanted) and (
                name == "model.json" or head != b'{"'):
            writer.add_model(name)
        else:
            os.remove(path)
    save_raw(booster, writer)


def save_raw(booster, writer):
    """The in-memory legacy form, kept when its bytes differ from the file's."""
    if "model.bst" not in writer.meta["files"]:
        return
    with open(writer.path("model.bst"), "rb") as file:
        on_disk = file.read()
    try:
        raw = bytes(booster.save_raw(raw_format="deprecated"))
    except TypeError:
        raw = bytes(booster.save_raw())
    if raw != on_disk and raw[:1] != b"{":
        with open(writer.path("model.raw.bst"), "wb") as file:
            file.write(raw)
        writer.add_model("model.raw.bst")


def split_values(booster, writer):
    """The thresholds of each feature: from the saved file, or from a text dump."""
    found = {}
    if "model.json" not in writer.meta["files"]:
        names = booster.feature_names
        for text in booster.get_dump(dump_format="json"):
            visit_dump(json.loads(text), names, found)
        return found
    with open(writer.path("model.json"), encoding="utf-8") as file:
        model = json.load(file)["learner"]["gradient_booster"]
    model = model.get("gbtree", model)["model"]
    for tree in model.get("trees", []):
        for node, left in enumerate(tree["left_children"]):
            if left != -1:
                values = found.setdefault(tree["split_indices"][node], [])
                values.append(tree["split_conditions"][node])
    return found


def visit_dump(node, names, found):
    """Collects the thresholds of one dumped tree."""
    if "children" in node:
        feature = names.index(node["split"])
        found.setdefault(feature, []).append(node["split_condition"])
        for child in node["children"]:
            visit_dump(child, names, found)


def write_case(out, name, case, booster, x, rng, reduced):
    """Writes models, inputs and expected outputs; returns the open writer."""
    writer = CaseWriter(out, name, "xgboost", VERSION)
    save_models(booster, writer)
    thresholds = {}
    if case["booster"] != "gblinear":
        thresholds = split_values(booster, writer)
    test = hard_inputs(case, x, thresholds, rng, reduced)
    if case.get("missing") is not None:
        mark = np.float32(case["missing"])
        test[1::3] = np.where(np.isnan(test[1::3]), mark, test[1::3])
    names = booster.feature_names if case["special"] == "frame" else None
    data = matrix(dict(case, missing=None), test, names=names)
    if case.get("missing") is not None:
        data = xgb.DMatrix(test, missing=case["missing"])
    value = booster.predict(data)
    margin = booster.predict(data, output_margin=True)
    writer.inputs(test)
    writer.output("value", value)
    writer.output("margin", margin)
    if not reduced:
        write_extras(writer, case, booster, test, data)
    return writer


def write_extras(writer, case, booster, test, data):
    """Outputs of other calls: iteration ranges, base margins, frames, infinities."""
    special = case["special"]
    if special == "ranges":
        for begin, end in ((0, 1), (0, 4), (2, 5), (5, 0)):
            for kind, margin in (("range_value", False), ("range_margin", True)):
                values = booster.predict(
                    data, output_margin=margin, iteration_range=(begin, end))
                writer.extra(kind, values, begin=begin, end=end)
    if special == "base_margin":
        start = margin_base(case, len(test))
        file = writer.array("base_margin.bin", start)
        data = matrix(case, test)  # the other one has cached predictions
        data.set_base_margin(start)
        writer.extra("base_margin_value", booster.predict(data), base_margin=file)
        writer.extra("base_margin_margin", booster.predict(data, output_margin=True),
                     base_margin=file)
    if special == "frame":
        write_frame(writer, booster, test)
    if case["booster"] == "gbtree" and case["cat"] == "none" and special is None:
        write_infinite(writer, booster, test)


def write_infinite(writer, booster, test):
    """inplace_predict accepts infinities, which a DMatrix refuses."""
    rows = test[:24].copy()
    for row in range(len(rows)):
        rows[row, row % rows.shape[1]] = np.inf if row % 2 else -np.inf
    file = writer.array("x-infinite.bin", rows)
    writer.extra("infinite_value", booster.inplace_predict(rows), x=file)


def write_frame(writer, booster, test):
    """A data frame as input: values are looked up in the model's categories."""
    rows = test[:40].copy()
    for feature, top in ((6, 11), (7, 39)):
        rows[:, feature] = np.clip(np.floor(rows[:, feature]), 0, top)
    frame = to_frame(rows)
    # Fewer categories in another order: the codes of the frame mean nothing.
    frame["color"] = frame["color"].cat.remove_unused_categories()
    frame["color"] = frame["color"].cat.reorder_categories(
        list(frame["color"].cat.categories)[::-1])
    values = booster.predict(xgb.DMatrix(frame, enable_categorical=True))
    text = frame.astype({"color": object, "code": object}).to_json(
        orient="split", index=False, double_precision=15)
    with open(writer.path("frame.json"), "w", encoding="utf-8") as file:
        file.write(text + "\n")
    writer.extra("frame_value", values, frame="frame.json")


def description(case):
    """The descriptive keys of case.json."""
    return {
        "objective": None if case["special"] == "custom" else case["objective"],
        "booster": case["booster"],
        "missing": case.get("missing"),
        "categorical": categorical_features(case),
        "category_splits": case["cat"],
        "classes": outputs_of(case),
        "output": case["output"],
        "depth": case["depth"],
        "grow": case["grow"],
        "method": case["method"],
        "parallel": case["parallel"],
        "base": case["base"],
        "rounds": case["rounds"],
        "trained_with_nan": case["nan"],
        "special": case["special"],
        "vector_alpha": case["objective"] in VECTOR_ALPHA,
        "params": case["params"],
    }
