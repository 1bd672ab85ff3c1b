"""scikit-learn's models, converted by `skl2onnx` as people do. Everything is seeded."""

import numpy as np
import pandas as pd
from onnx import helper
from onnx_models import IR_VERSION, Model, floats
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType, StringTensorType
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import GradientBoostingRegressor, RandomForestClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

# skl2onnx writes for its newest onnx unless it is told; opsets by domain.
OPSETS = {"": 18, "ai.onnx.ml": 3}
SPECIES = ("setosa", "versicolor", "virginica")


def converted(name, model, inputs, ask, *, options=None, classes=()):
    made = to_onnx(model, initial_types=inputs, options=options, target_opset=OPSETS)
    made.ir_version = min(made.ir_version, IR_VERSION)
    return Model(name, made, ask, classes=tuple(classes))


# ----------------------------------------------------------------------------------------------------- text and numbers

GOOD = ["a fine dry wine", "very fine fruit", "great with cheese", "soft and round", "great fruit, great wine"]
BAD = ["thin and sour", "too sweet by far", "smells of cork", "sour, sweet and thin", "far too dry"]
COLOURS = ["red", "white", "rosé"]


def wines(random, rows):
    """Reviews of wines, and whether they were liked."""
    liked = random.integers(0, 2, rows)
    frame = {
        "review": [str(random.choice(GOOD if each else BAD)) for each in liked],
        "colour": [str(each) for each in random.choice(COLOURS, rows)],
        "price": (5 + 10 * liked + random.random(rows)).astype(np.float32),
        "age": random.integers(1, 20, rows).astype(np.float32),
    }
    return pd.DataFrame(frame), np.where(liked, "liked", "not liked")


def ask_wines(random, rows):
    frame, _ = wines(random, rows)
    # A colour that the encoder does not know, and a review of words that it has not seen.
    frame.loc[0, ["review", "colour"]] = ["nothing known here: übel", "green"]
    return {
        name: frame[[name]].to_numpy(object if name in ("review", "colour") else np.float32) for name in frame.columns
    }


def pipeline():
    """Four inputs, two of text, and labels of text."""
    columns = ColumnTransformer(
        [
            ("words", TfidfVectorizer(token_pattern="[a-zA-Z]+"), "review"),
            ("colours", OneHotEncoder(handle_unknown="ignore"), ["colour"]),
            ("numbers", StandardScaler(), ["price", "age"]),
        ]
    )
    frame, liked = wines(np.random.default_rng(5), 200)
    model = make_pipeline(columns, LogisticRegression()).fit(frame, liked)
    text, number = StringTensorType([None, 1]), FloatTensorType([None, 1])
    inputs = [("review", text), ("colour", text), ("price", number), ("age", number)]
    made = converted("pipeline", model, inputs, ask_wines, classes=model.classes_)
    # ONNX Runtime makes small letters by the machine's locales, and not every machine has its default, en_US.UTF-8.
    for node in made.proto.graph.node:
        if node.op_type == "StringNormalizer":
            node.attribute.append(helper.make_attribute("locale", "C.UTF-8"))
    return made


# ---------------------------------------------------------------------------------------------------------- classifiers


def flowers():
    random = np.random.default_rng(6)
    kinds = np.repeat(np.arange(3), 60)
    return (random.standard_normal((180, 4)) + kinds[:, None]).astype(np.float32), kinds


def ask_flowers(random, rows):
    return {"X": 1 + floats(random, rows, 4)}


INPUT = [("X", FloatTensorType([None, 4]))]


def classifiers():
    """With a ZipMap, over whole numbers and over text; without one; and in columns, as skl2onnx offers, too."""
    rows, kinds = flowers()
    # Not in order and not from 0, so that a class is not its own index.
    numbers = np.array([30, 10, 20])[kinds]
    names = np.array(SPECIES)[kinds]
    by_number = LogisticRegression().fit(rows, numbers)
    by_name = LogisticRegression().fit(rows, names)
    # Leaves that are not pure: of classes that are equal but for rounding, the order of sums would choose one.
    forest = RandomForestClassifier(20, max_depth=3, random_state=0).fit(rows, names)

    def plain(model, zipmap=False):
        return {id(model): {"zipmap": zipmap}}

    return [
        converted("zipmap-numbers", by_number, INPUT, ask_flowers, classes=by_number.classes_),
        converted("zipmap-names", by_name, INPUT, ask_flowers, classes=by_name.classes_),
        converted("plain", by_number, INPUT, ask_flowers, options=plain(by_number)),
        converted("columns", by_name, INPUT, ask_flowers, options=plain(by_name, "columns")),
        converted("forest", forest, INPUT, ask_flowers, classes=forest.classes_),
    ]


def regressor():
    rows, kinds = flowers()
    model = GradientBoostingRegressor(n_estimators=20, random_state=0).fit(rows, kinds * 10 + rows[:, 0])
    return converted("regressor", model, INPUT, ask_flowers)


def all_models():
    return [pipeline(), *classifiers(), regressor()]
