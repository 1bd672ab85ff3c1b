"""Training data, labels and hard inputs for the XGBoost sweep."""

import numpy as np

from common import hard_rows, neighbours, spread
from xgb_cases import MULTI_CLASS, RANKING, VECTOR_ALPHA

CLASSES = 3
TARGETS = 3
SMALL_CATEGORIES = 12
LARGE_CATEGORIES = 40
ZERO_ONE = (
    "reg:logistic", "binary:logistic", "binary:logitraw", "binary:hinge", "rank:map")
POSITIVE = ("count:poisson", "reg:gamma", "reg:tweedie", "reg:squaredlogerror", "survival:cox")

# Around zero, the denormal range, and the ends of f32. Infinities are refused by
# DMatrix and therefore not here.
HARD_NUMBERS = np.array(
    [0.0, -0.0, 1e-45, -1e-45, 1e-39, -1e-39, 1.17549435e-38, -1.17549435e-38,
     1e-35, -1e-35, 1.0, -1.0, 0.1, 16777216.0, 1e38, -1e38, 3.4028235e38,
     -3.4028235e38, np.nan], dtype=np.float32)
HARD_CATEGORIES = np.array(
    [-1.0, -0.5, -0.0, 0.0, 0.5, 0.99999994, 1.0, 1.5, 31.0, 32.0, 33.0, 63.0,
     64.0, 1000.0, 16777214.0, 16777215.0, 16777216.0, 1e10, 3e38, np.nan],
    dtype=np.float32)


def outputs_of(case):
    """How many numbers a row's margin has."""
    if case["objective"] in MULTI_CLASS:
        return case["params"].get("num_class", CLASSES)
    return 1 if case["output"] == "single" else TARGETS


def categorical_features(case):
    """Indices of the features that are declared categorical."""
    return [] if case["cat"] == "none" else [6, 7]


def features(case, rng, rows):
    """A feature matrix: six numeric columns and two with category codes."""
    special = case["special"]
    if special in ("one_feature", "single_feature"):
        return rng.randn(rows, 1 if special == "single_feature" else 2).astype(np.float32)
    count = 300 if special == "wide" else 8
    x = rng.randn(rows, count).astype(np.float32)
    x[:, 2] = rng.randint(-2, 3, rows)
    x[:, 5] *= 1000
    large = 600 if special == "many_categories" else LARGE_CATEGORIES
    x[:, 6] = rng.randint(0, SMALL_CATEGORIES, rows)
    x[:, 7] = rng.randint(0, large, rows)
    numeric = [f for f in range(count) if f not in (6, 7)]
    if special == "huge":
        x[:, numeric] *= np.float32(1e34)
    if special == "tiny":
        x[:, numeric] *= np.float32(1e-38) * np.float32(1e-3)
    return x


def make_missing(x, rng, share=0.12):
    """A copy with some values replaced by NaN."""
    x = x.copy()
    x[rng.rand(*x.shape) < share] = np.nan
    return x


def signal(x, rng):
    """A noisy function of the features, on the scale of a few units."""
    scaled = x / np.maximum(np.abs(x).max(axis=0), np.float32(1e-44))
    y = 3 * scaled[:, 0] + rng.randn(len(x)) * 0.6
    if x.shape[1] > 7:
        y = y + (x[:, 6] % 3) - 1 + (x[:, 7] % 5 == 2) * 2 + 2 * scaled[:, 1] * scaled[:, 2]
    return y


def labels(case, y):
    """Labels that the objective accepts, one column for each target."""
    objective = case["objective"]
    if objective in MULTI_CLASS:
        count = outputs_of(case)
        inner = np.quantile(y, np.linspace(0, 1, count + 1)[1:-1])
        return np.digitize(y, inner)
    if objective in RANKING and objective not in ZERO_ONE:
        return np.digitize(y, [0, 1, 2])
    if objective in ZERO_ONE:
        y = (y > 0.5).astype(np.float32)
    elif objective in POSITIVE:
        y = np.abs(y) + 0.1
    if objective in VECTOR_ALPHA or case["output"] == "single":
        return y.astype(np.float32)
    shifted = [np.roll(y, k) for k in range(TARGETS)]
    return np.stack(shifted, axis=1).astype(np.float32)


def hard_inputs(case, train, thresholds, rng, small):
    """The matrix to predict: ordinary rows, then rows with hard values.

    `thresholds` maps a feature to the split values that the model uses.
    """
    plain = train[: 16 if small else 100]
    plain = make_missing(plain, rng)
    categorical = categorical_features(case)
    limit = 4 if small else 16
    pools = []
    for feature in range(train.shape[1]):
        if feature in categorical:
            top = np.nanmax(train[:, feature])
            ends = np.array([top - 1, top, top + 0.5, top + 1], dtype=np.float32)
            pools.append(np.concatenate([HARD_CATEGORIES, ends]))
        else:
            used = spread(np.asarray(thresholds.get(feature, []), dtype=np.float32), limit)
            pools.append(np.concatenate([HARD_NUMBERS, neighbours(used, np.float32)]))
        pools[-1] = pools[-1][~np.isinf(pools[-1])]
    single, joint = (13, 7) if small else (110, 60)
    hard = hard_rows(train, pools, rng, single, joint)
    return np.concatenate([plain, hard]).astype(np.float32)
