"""XGBoost and LightGBM regression models as one TreeEnsembleRegressor node.

Written by hand, not by a converter, so that it follows neither the converter's
version nor the library's: the same trees, thresholds and missing directions.
LightGBM's thresholds are doubles; each becomes the largest f32 not above it, which
decides every f32 input as the double does. Leaf values are rounded to f32, and ONNX
Runtime sums in f32, so LightGBM's answers differ in the last digits.
"""

import json

import numpy as np
import onnx
from onnx import TensorProto, helper


MAX = float(np.finfo(np.float32).max)


class Nodes:
    """The attributes of the node, one list each."""

    def __init__(self, mode):
        self.mode = mode
        self.attributes = {
            "nodes_treeids": [], "nodes_nodeids": [], "nodes_featureids": [],
            "nodes_values": [], "nodes_hitrates": [], "nodes_modes": [],
            "nodes_truenodeids": [], "nodes_falsenodeids": [],
            "nodes_missing_value_tracks_true": [],
            "target_treeids": [], "target_nodeids": [], "target_ids": [],
            "target_weights": [],
        }

    def _node(self, tree, node, values):
        names = list(self.attributes)[:9]
        for name, value in zip(names, (tree, node, *values), strict=True):
            self.attributes[name].append(value)

    def split(self, tree, node, feature, threshold, children, default_left):
        """A decision: true goes left."""
        left, right = children
        self._node(tree, node, (
            feature, float(threshold), 1.0, self.mode, left, right, int(default_left)))

    def leaf(self, tree, node, value):
        """An answer."""
        self._node(tree, node, (0, 0.0, 1.0, "LEAF", 0, 0, 0))
        weights = (tree, node, 0, float(value))
        for name, item in zip(list(self.attributes)[9:], weights, strict=True):
            self.attributes[name].append(item)

    def model(self, features, base):
        """The model of one node."""
        node = helper.make_node(
            "TreeEnsembleRegressor", ["x"], ["y"], domain="ai.onnx.ml",
            n_targets=1, aggregate_function="SUM", post_transform="NONE",
            base_values=[base], **self.attributes)
        graph = helper.make_graph(
            [node], "trees",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, features])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 1])])
        imports = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 3)]
        return helper.make_model(graph, opset_imports=imports, ir_version=9)


def from_xgboost(path):
    """Reads model.json."""
    learner = json.loads(path.read_text(encoding="utf-8"))["learner"]
    nodes = Nodes("BRANCH_LT")
    for index, tree in enumerate(learner["gradient_booster"]["model"]["trees"]):
        columns = zip(
            tree["left_children"], tree["right_children"], tree["split_indices"],
            tree["split_conditions"], tree["default_left"], strict=True)
        for node, (left, right, feature, value, default_left) in enumerate(columns):
            if left == -1:
                nodes.leaf(index, node, value)
            else:
                nodes.split(index, node, feature, value, (left, right), default_left)
    parameters = learner["learner_model_param"]
    base = float(parameters["base_score"].strip("[]"))
    return nodes.model(int(parameters["num_feature"]), base)


def round_down(threshold):
    """The largest f32 that is not above a double."""
    rounded = np.float32(np.clip(threshold, -MAX, MAX))
    if float(rounded) > threshold:
        rounded = np.nextafter(rounded, np.float32(-np.inf))
    return rounded


def from_lightgbm(booster):
    """Reads a booster."""
    dump = booster.dump_model()
    nodes = Nodes("BRANCH_LEQ")

    def number(tree, node):
        """Leaves are numbered behind all splits."""
        if "leaf_value" in node:
            return tree["num_leaves"] + node.get("leaf_index", 0)
        return node["split_index"]

    def add(tree, node):
        """Adds a subtree, its root first: ONNX Runtime starts at a tree's first node."""
        index = tree["tree_index"]
        if "leaf_value" in node:
            nodes.leaf(index, number(tree, node), node["leaf_value"])
            return
        if node["missing_type"] != "NaN" or node["decision_type"] != "<=":
            raise ValueError(f"not expressed here: {node['missing_type']}")
        children = node["left_child"], node["right_child"]
        nodes.split(
            index, number(tree, node), node["split_feature"], round_down(node["threshold"]),
            [number(tree, child) for child in children], node["default_left"])
        for child in children:
            add(tree, child)

    for tree in dump["tree_info"]:
        add(tree, tree["tree_structure"])
    return nodes.model(dump["max_feature_idx"] + 1, 0.0)


def save(model, path):
    """Checks and writes a model."""
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
