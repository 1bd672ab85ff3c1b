"""The list of XGBoost cases: a pairwise cover plus cases made on purpose.

A case is a plain dictionary; xgb_make.py turns it into a trained model. Keys
that are left out take the values of DEFAULTS.
"""

from common import pairwise

DEFAULTS = {
    "objective": "reg:squarederror",
    "booster": "gbtree",
    "grow": "depthwise",
    "method": "hist",
    "nan": True,
    "cat": "none",
    "output": "single",
    "parallel": 1,
    "base": "auto",
    "depth": 3,
    "rounds": 6,
    "train_rows": 150,
    "params": {},
    "special": None,
}

MULTI_CLASS = ("multi:softprob", "multi:softmax")
VECTOR_ALPHA = ("reg:quantileerror", "reg:expectileerror")
RANKING = ("rank:pairwise", "rank:ndcg", "rank:map")
SURVIVAL = ("survival:cox", "survival:aft")
OBJECTIVES = (
    "reg:squarederror",
    "reg:absoluteerror",
    "reg:pseudohubererror",
    "reg:squaredlogerror",
    "reg:logistic",
    "binary:logistic",
    "binary:logitraw",
    "binary:hinge",
    "count:poisson",
    "reg:gamma",
    "reg:tweedie",
) + SURVIVAL + MULTI_CLASS + RANKING + VECTOR_ALPHA

MULTI = {"objective": "multi:softprob", "output": "per_tree"}

AXES = {
    "objective": OBJECTIVES,
    "booster": ("gbtree", "dart", "gblinear"),
    "grow": ("depthwise", "lossguide"),
    "method": ("hist", "approx", "exact"),
    "nan": (False, True),
    "cat": ("none", "onehot", "partition"),
    # single; several outputs, a tree each; several outputs in vector leaves
    "output": ("single", "per_tree", "vector"),
    "parallel": (1, 3),
    "base": ("auto", "fixed", "vector"),
    "depth": (1, 3, 6, 8),
}


def settle(combo):
    """Makes a random combination sensible; None where the library has no such model."""
    case = dict(combo)
    objective = case["objective"]
    if objective in MULTI_CLASS and case["output"] == "single":
        case["output"] = "per_tree"
    if objective in RANKING + SURVIVAL:
        case["output"] = "single"
    if case["base"] == "vector" and case["output"] == "single":
        case["base"] = "fixed"
    if case["booster"] == "gblinear":
        if objective in ("reg:absoluteerror", "reg:quantileerror"):
            return None
        # A linear model has none of the tree settings: keep one value of each.
        case.update(grow="depthwise", method="hist", cat="none", parallel=1, depth=3)
        if case["output"] == "vector":
            case["output"] = "per_tree"
    if case["method"] == "exact":
        if objective in VECTOR_ALPHA:
            return None
        case.update(cat="none", grow="depthwise")
    if case["output"] == "vector" and case["method"] != "hist":
        case["method"] = "hist"
    return case


def case_name(case):
    """A readable, unique part of the folder name."""
    parts = [case["objective"].replace(":", "-"), case["booster"]]
    if case["booster"] != "gblinear":
        parts += [case["grow"], case["method"], "cat_" + case["cat"]]
        parts += [f"d{case['depth']}", f"p{case['parallel']}"]
    parts += [case["output"], "base_" + case["base"], "nan" if case["nan"] else "dense"]
    return "-".join(parts)


def rounds_for(case):
    """Fewer rounds where each makes many trees, so that files stay small."""
    outputs = 3 if case["output"] == "per_tree" else 1
    if case["booster"] == "gblinear":
        return 8
    return max(3, min(12, 24 // (outputs * case["parallel"])))


def cover_cases():
    """Two independent pairwise covers: nearly every pair occurs at least twice."""
    cases, seen = [], set()
    for seed in (11, 12):
        for combo in pairwise(AXES, settle, seed):
            name = case_name(combo)
            if name not in seen:
                seen.add(name)
                cases.append((name, dict(combo, rounds=rounds_for(combo))))
    return cases


def shape_cases():
    """Unusual trees: deep, pruned, of one leaf, or none at all."""
    exact = {"method": "exact", "nan": True}
    deep = {"depth": 14, "rounds": 2, "train_rows": 1500}
    deep_params = {"min_child_weight": 0, "lambda": 0}
    return [
        ("deep-hist-300-leaves", dict(deep, params=dict(deep_params, max_bin=1024))),
        ("deep-lossguide-400-leaves", dict(
            deep, grow="lossguide", depth=0, params=dict(deep_params, max_leaves=400))),
        ("deep-exact-300-thresholds", dict(
            deep, method="exact", special="one_feature", params=deep_params)),
        ("deep-vector-leaf", dict(
            deep, output="vector", depth=10, rounds=2, params=deep_params)),
        ("deep-categories", dict(deep, cat="partition", params=deep_params)),
        ("depth-20-chain", {"depth": 20, "rounds": 3, "special": "one_feature",
                            "train_rows": 300, "params": deep_params}),
        ("one-leaf-trees", {"params": {"gamma": 1e9}}),
        ("one-leaf-multiclass", dict(MULTI, params={"gamma": 1e9})),
        ("no-trees", {"rounds": 0}),
        ("no-trees-multiclass", dict(MULTI, rounds=0)),
        ("pruned-exact", dict(exact, depth=6, params={"gamma": 3.0})),
        ("pruned-hist", {"depth": 6, "params": {"gamma": 3.0}}),
    ]


def call_cases():
    """Models trained, cut, named or called in unusual ways."""
    logistic, poisson = "binary:logistic", "count:poisson"
    return [
        ("early-stopping", {"special": "early_stopping", "rounds": 60, "params": {"eta": 0.9}}),
        ("early-stopping-dart", {
            "special": "early_stopping", "booster": "dart", "rounds": 40,
            "params": {"eta": 0.9, "rate_drop": 0.2}}),
        ("iteration-ranges", {"special": "ranges", "rounds": 10, "objective": logistic}),
        ("iteration-ranges-dart", {
            "special": "ranges", "booster": "dart", "rounds": 10,
            "params": {"rate_drop": 0.5, "one_drop": 1}}),
        ("iteration-ranges-multiclass", dict(MULTI, special="ranges", rounds=6, parallel=3)),
        ("slice", {"special": "slice", "rounds": 10}),
        ("slice-dart", {"special": "slice", "booster": "dart", "rounds": 10,
                        "params": {"rate_drop": 0.5}}),
        ("continued", {"special": "continued", "rounds": 5, "objective": poisson}),
        ("missing-zero", {"special": "missing", "missing": 0.0, "nan": False}),
        ("missing-minus-999", {"special": "missing", "missing": -999.0, "nan": False}),
        ("missing-minus-999-linear", {
            "special": "missing", "missing": -999.0, "nan": False, "booster": "gblinear"}),
        ("base-margin", {"special": "base_margin", "objective": logistic}),
        ("base-margin-multiclass", dict(MULTI, special="base_margin")),
        ("base-margin-linear", {"special": "base_margin", "booster": "gblinear"}),
        ("custom-objective", {"special": "custom"}),
        ("custom-objective-multi", {"special": "custom", "output": "per_tree"}),
        ("feature-names", {"special": "names", "objective": logistic}),
        ("frame-categories", {"special": "frame", "cat": "partition"}),
        ("frame-categories-onehot", {"special": "frame", "cat": "onehot"}),
        ("wrapper-classifier", {"special": "wrapper", "objective": logistic}),
        ("wrapper-classifier-multi", {"special": "wrapper", "objective": "multi:softprob"}),
        ("wrapper-regressor", {"special": "wrapper"}),
    ]


def value_cases():
    """Parameters and data at the edge of what is usual."""
    logistic = "binary:logistic"
    return [
        ("random-forest", {"parallel": 20, "rounds": 1, "depth": 5,
                           "params": {"eta": 1.0, "subsample": 0.6,
                                      "colsample_bynode": 0.5}}),
        ("scale-pos-weight", {"objective": logistic, "params": {"scale_pos_weight": 7}}),
        ("extreme-margins", {"objective": logistic, "depth": 6, "rounds": 40,
                             "params": {"eta": 3.0, "lambda": 0, "min_child_weight": 0}}),
        ("extreme-margins-multi", dict(
            MULTI, depth=4, rounds=20,
            params={"eta": 3.0, "lambda": 0, "min_child_weight": 0})),
        ("base-near-zero", {"objective": logistic, "params": {"base_score": 1e-7}}),
        ("base-near-one", {"objective": logistic, "params": {"base_score": 0.99999999}}),
        ("dart-normalize-forest", {"booster": "dart", "rounds": 12,
                                   "params": {"rate_drop": 0.4, "normalize_type": "forest",
                                              "sample_type": "weighted"}}),
        ("dart-vector-leaf", {"booster": "dart", "output": "vector", "rounds": 8,
                              "params": {"rate_drop": 0.4}}),
        ("linear-shotgun", {"booster": "gblinear", "params": {"updater": "shotgun"}}),
        ("linear-multiclass", dict(MULTI, booster="gblinear")),
        ("linear-multiclass-base", dict(MULTI, booster="gblinear", base="vector")),
        ("linear-targets-base", {"booster": "gblinear", "output": "per_tree",
                                 "base": "vector"}),
        ("many-categories", {"special": "many_categories", "cat": "partition", "depth": 6}),
        ("huge-values", {"special": "huge", "depth": 4}),
        ("tiny-values", {"special": "tiny", "depth": 4}),
        ("single-feature", {"special": "single_feature", "depth": 4}),
        ("wide", {"special": "wide", "depth": 4, "train_rows": 120}),
        ("aft-logistic", {"objective": "survival:aft",
                          "params": {"aft_loss_distribution": "logistic"}}),
        ("tweedie-power", {"objective": "reg:tweedie",
                           "params": {"tweedie_variance_power": 1.9}}),
        ("one-quantile", {"objective": "reg:quantileerror", "depth": 5}),
        ("two-class-softprob", dict(MULTI, params={"num_class": 2})),
        ("many-class-softprob", dict(MULTI, rounds=2, params={"num_class": 17})),
        ("many-class-softmax", {"objective": "multi:softmax", "output": "per_tree",
                                "rounds": 2, "params": {"num_class": 17}}),
    ]


def reduced_cases():
    """A small set for files that are kept in the repository."""
    multi = {"objective": "multi:softprob", "output": "per_tree", "rounds": 2, "depth": 2}
    small = {"rounds": 2, "depth": 2}
    linear = {"booster": "gblinear"}
    dart = {"booster": "dart", "rounds": 5, "depth": 2, "params": {"rate_drop": 0.5, "one_drop": 1}}
    logistic = {"objective": "binary:logistic"}
    return [
        ("squarederror", {"rounds": 2}),
        ("squarederror-base", dict(small, base="fixed")),
        ("logistic", dict(small, **logistic)),
        ("logistic-base", dict(small, base="fixed", **logistic)),
        ("logitraw", dict(small, objective="binary:logitraw")),
        ("hinge", dict(small, objective="binary:hinge")),
        ("poisson", dict(small, objective="count:poisson")),
        ("gamma", dict(small, objective="reg:gamma", base="fixed")),
        ("tweedie", dict(small, objective="reg:tweedie")),
        ("cox", dict(small, objective="survival:cox")),
        ("aft", dict(small, objective="survival:aft")),
        ("pairwise", dict(small, objective="rank:pairwise")),
        ("softprob", multi),
        ("softmax", dict(multi, objective="multi:softmax", rounds=1)),
        ("softprob-parallel", dict(multi, parallel=2, rounds=1)),
        ("pruned", {"rounds": 1, "method": "exact", "depth": 4, "params": {"gamma": 3.0}}),
        ("dart", dart),
        ("dart-softprob", dict(dart, **dict(multi, params=dart["params"]))),
        ("linear", dict(linear)),
        ("linear-softprob", dict(multi, **linear)),
        ("cat-onehot", {"rounds": 2, "cat": "onehot"}),
        ("cat-partition", {"rounds": 2, "cat": "partition"}),
        ("quantile", {"objective": "reg:quantileerror", "output": "per_tree",
                      "rounds": 1, "depth": 2}),
        ("vector-leaf", dict(small, output="vector")),
        ("vector-base", dict(small, output="per_tree", rounds=2, base="vector")),
        ("early-stopping", {"special": "early_stopping", "rounds": 10, "depth": 1,
                            "params": {"eta": 0.9}}),
        ("feature-names", dict(small, special="names", **logistic)),
    ]


def cases(reduced):
    """(name, case) with every key present, names in a stable order."""
    if reduced:
        listed = reduced_cases()
    else:
        listed = cover_cases() + shape_cases() + call_cases() + value_cases()
    return [(name, dict(DEFAULTS, **case)) for name, case in listed]
