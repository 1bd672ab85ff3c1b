"""The list of LightGBM cases.

A case is a plain dictionary; lgb_make.py turns it into a trained model. Keys
that are left out take the values of DEFAULTS.
"""

DEFAULTS = {
    "objective": "regression",
    "params": {},
    "categorical": True,
    "rounds": 10,
    "train_rows": 300,
    "leaves": 15,
    "special": None,
}

OBJECTIVES = (
    "regression",
    "regression_l1",
    "huber",
    "fair",
    "quantile",
    "mape",
    "poisson",
    "gamma",
    "tweedie",
    "binary",
    "multiclass",
    "multiclassova",
    "cross_entropy",
    "cross_entropy_lambda",
    "lambdarank",
    "rank_xendcg",
)
WITH_SQUARE_ROOT = ("regression", "regression_l1", "huber", "fair", "quantile", "mape")
WITH_SIGMOID = ("binary", "multiclassova")
FOREST = {"boosting": "rf", "bagging_fraction": 0.6, "bagging_freq": 1}

# Name, parameters, the objectives that know the setting (None: all).
VARIANTS = (
    ("gbdt", {}, None),
    ("rf", FOREST, None),
    ("dart", {"boosting": "dart"}, None),
    ("linear", {"linear_tree": True}, None),
    ("zero-as-missing", {"zero_as_missing": True}, None),
    ("no-missing", {"use_missing": False}, None),
    ("square-root", {"reg_sqrt": True}, WITH_SQUARE_ROOT),
    ("numeric", {}, None),
    ("sigmoid", {"sigmoid": 2.5}, WITH_SIGMOID),
)


def combinations():
    """Every objective with every variant that applies to it."""
    cases = []
    for objective in OBJECTIVES:
        for name, params, known in VARIANTS:
            if known is None or objective in known:
                cases.append((objective + "-" + name, {
                    "objective": objective,
                    "params": params,
                    "categorical": name != "numeric",
                }))
    return cases


def special_cases():
    """Cases for single properties."""
    large = {"train_rows": 3000, "rounds": 4}
    leaves = {"num_leaves": 255, "min_data_in_leaf": 2}
    multi = {"objective": "multiclass"}
    return [
        ("leaves-255", dict(large, params=leaves)),
        ("leaves-255-numeric", dict(large, params=leaves, categorical=False)),
        ("leaves-255-linear", dict(large, rounds=2, params=dict(leaves, linear_tree=True))),
        ("leaves-600-deep", dict(large, rounds=2, params={
            "num_leaves": 600, "min_data_in_leaf": 1, "min_sum_hessian_in_leaf": 0})),
        ("stumps", {"params": {"num_leaves": 2}}),
        ("depth-limit", {"params": {"max_depth": 3}}),
        ("constant", {"special": "constant"}),
        ("constant-binary", {"special": "constant", "objective": "binary"}),
        ("constant-multiclass", dict(multi, special="constant")),
        ("one-leaf", {"params": {"min_data_in_leaf": 10000}}),
        ("one-leaf-multiclass", dict(multi, params={"min_data_in_leaf": 10000})),
        ("one-leaf-rf", {"params": dict(FOREST, min_data_in_leaf=10000)}),
        ("rare-class", dict(multi, special="rare_class")),
        ("many-classes", dict(multi, rounds=3, params={"num_class": 17})),
        ("many-categories", {"special": "many_categories", "train_rows": 4000, "rounds": 4}),
        ("many-categories-zero", {"special": "many_categories", "train_rows": 4000,
                                  "rounds": 4, "params": {"zero_as_missing": True}}),
        ("onehot-categories", {"params": {"max_cat_to_onehot": 100}}),
        ("only-categories", {"special": "only_categories"}),
        ("huge-values", {"special": "huge"}),
        ("tiny-values", {"special": "tiny"}),
        ("around-zero", {"special": "around_zero", "categorical": False}),
        ("around-zero-missing", {"special": "around_zero", "categorical": False,
                                 "params": {"zero_as_missing": True}}),
        ("around-zero-linear", {"special": "around_zero", "categorical": False,
                                "params": {"linear_tree": True}}),
        ("dense-training", {"special": "dense"}),
        ("sparse-training", {"special": "sparse"}),
        ("single-feature", {"special": "single_feature", "categorical": False}),
        ("wide", {"special": "wide", "categorical": False}),
        ("names", {"special": "names"}),
        ("custom-objective", {"special": "custom"}),
        ("early-stopping", {"special": "early_stopping", "rounds": 80,
                            "params": {"learning_rate": 0.5}}),
        ("early-stopping-multiclass", dict(multi, special="early_stopping", rounds=60,
                                           params={"learning_rate": 0.5})),
        ("ranges", {"special": "ranges", "objective": "binary"}),
        ("ranges-multiclass", dict(multi, special="ranges")),
        ("ranges-rf", {"special": "ranges", "params": FOREST}),
        ("crlf", {"special": "crlf"}),
        ("frame-categories", {"special": "frame"}),
        ("continued", {"special": "continued"}),
        ("goss", {"params": {"data_sample_strategy": "goss"}}),
        ("extra-trees", {"params": {"extra_trees": True}}),
        ("quantized-gradients", {"params": {"use_quantized_grad": True}}),
        ("no-average", {"objective": "binary", "params": {"boost_from_average": False}}),
        ("path-smooth", {"params": {"path_smooth": 3.0}}),
        ("extreme-margins", {"objective": "binary", "rounds": 40,
                             "params": {"learning_rate": 5.0, "min_data_in_leaf": 1}}),
        ("extreme-margins-multiclass", dict(multi, rounds=20, params={
            "learning_rate": 5.0, "min_data_in_leaf": 1})),
        ("dart-multiclass-rate", dict(multi, params={"boosting": "dart", "drop_rate": 0.5})),
        ("rf-sigmoid", {"objective": "binary", "params": dict(FOREST, sigmoid=2.5)}),
        ("rf-square-root", {"params": dict(FOREST, reg_sqrt=True)}),
        ("unbalanced", {"objective": "binary", "params": {"is_unbalance": True}}),
    ]


def reduced_cases():
    """A small set for files that are kept in the repository."""
    small = {"rounds": 3, "train_rows": 200, "leaves": 7}
    multi = dict(small, objective="multiclass", rounds=2)
    return [
        ("regression", dict(small)),
        ("square-root", dict(small, params={"reg_sqrt": True})),
        ("binary-numeric", dict(small, objective="binary", categorical=False)),
        ("binary-sigmoid", dict(small, objective="binary", params={"sigmoid": 2.5})),
        ("multiclass", multi),
        ("multiclassova", dict(multi, objective="multiclassova", rounds=1)),
        ("cross-entropy-lambda", dict(small, objective="cross_entropy_lambda")),
        ("poisson", dict(small, objective="poisson")),
        ("lambdarank", dict(small, objective="lambdarank")),
        ("rf", dict(small, params=FOREST)),
        ("dart", dict(small, params={"boosting": "dart"})),
        ("linear", dict(small, params={"linear_tree": True})),
        ("zero-as-missing", dict(small, params={"zero_as_missing": True})),
        ("no-missing", dict(small, params={"use_missing": False})),
        ("constant", dict(small, special="constant")),
        ("one-leaf", dict(small, params={"min_data_in_leaf": 10000})),
        ("custom-objective", dict(small, special="custom")),
        ("early-stopping", dict(small, special="early_stopping", rounds=20, leaves=3)),
        ("frame-categories", dict(small, special="frame")),
        ("crlf", dict(small, special="crlf")),
    ]


def cases(reduced):
    """(name, case) with every key present, names in a stable order."""
    listed = reduced_cases() if reduced else combinations() + special_cases()
    return [(name, dict(DEFAULTS, **case)) for name, case in listed]
