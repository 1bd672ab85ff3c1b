"""Makes the ONNX models of the benchmarks: python onnx_models.py FOLDER

| name | what |
|---|---|
| resnet50 | ResNet-50 as exporters write it, batch normalisation folded into its convolutions; 102 MB |
| dense | layers of 1,024 times 1,024 one after the other; 100 MB |
| small | 50 numbers, a layer of 32, 3 probabilities |

Weights are random and the same every time: what is measured does not depend on them. Each lies in a folder of its name,
as model.onnx, with rows.f32.bin, which is ROWS rows to ask with, and meta.json.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

ROWS = 8
OPSET = 17
# Blocks of each stage of ResNet-50, and the channels within them.
STAGES = ((3, 64), (4, 128), (6, 256), (3, 512))
EXPANSION = 4


class Graph:
    """Nodes and weights, as they are added."""

    def __init__(self):
        self.nodes, self.weights = [], []
        self.random = np.random.default_rng(3)

    def add(self, kind, inputs, **attributes):
        """A node; gives the name of its output."""
        name = f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def weight(self, shape, fan_in, scale=1.0):
        """Random numbers whose products with `fan_in` others stay as large as those."""
        values = self.random.standard_normal(shape, np.float32) * np.float32(scale * (2 / fan_in) ** 0.5)
        return self.constant(values)

    def constant(self, values):
        """An initializer."""
        name = f"weight_{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(values, name))
        return name

    def convolution(self, x, channels, size, stride=1, scale=1.0, activation=True):
        """Channels in and out, the kernel's size; its bias is what batch normalisation left."""
        before, after = channels
        weight = self.weight((after, before, size, size), before * size * size, scale)
        bias = self.constant(self.random.standard_normal(after, np.float32) * np.float32(0.01))
        x = self.add("Conv", [x, weight, bias], kernel_shape=[size, size], strides=[stride, stride],
                     pads=[size // 2] * 4)  # fmt: skip
        return self.add("Relu", [x]) if activation else x

    def dense(self, x, before, after):
        """A layer without what follows it."""
        bias = self.constant(np.zeros(after, np.float32))
        return self.add("Gemm", [x, self.weight((before, after), before), bias])

    def model(self, shape, outputs):
        """All of it, whose last node is the answer; the number of rows is free."""
        self.nodes[-1].output[0] = "y"
        graph = helper.make_graph(
            self.nodes, "graph",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *shape])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", outputs])], self.weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)


def resnet50():
    """Bottlenecks of three convolutions beside a way around them."""
    graph = Graph()
    x = graph.convolution("x", (3, 64), 7, stride=2)
    x = graph.add("MaxPool", [x], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    before = 64
    for stage, (blocks, channels) in enumerate(STAGES):
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            after = channels * EXPANSION
            way = x if block else graph.convolution(x, (before, after), 1, stride, activation=False)
            inner = graph.convolution(x, (before, channels), 1)
            inner = graph.convolution(inner, (channels, channels), 3, stride)
            # Small, so that sums of many blocks stay small, too.
            inner = graph.convolution(inner, (channels, after), 1, scale=0.3, activation=False)
            x = graph.add("Relu", [graph.add("Add", [inner, way])])
            before = after
    x = graph.add("Flatten", [graph.add("GlobalAveragePool", [x])])
    graph.dense(x, before, 1000)
    return graph.model((3, 224, 224), 1000)


def dense():
    """Nothing but products of matrices."""
    graph, x, width = Graph(), "x", 1024
    for _ in range(24):
        x = graph.add("Relu", [graph.dense(x, width, width)])
    return graph.model((width,), width)


def small():
    """What a call costs beside its computation."""
    graph = Graph()
    x = graph.add("Relu", [graph.dense("x", 50, 32)])
    graph.add("Softmax", [graph.dense(x, 32, 3)], axis=-1)
    return graph.model((50,), 3)


MODELS = {"resnet50": resnet50, "dense": dense, "small": small}


def write(folder, model):
    """The model and rows to ask it with."""
    onnx.checker.check_model(model)
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    shape = [each.dim_value for each in model.graph.input[0].type.tensor_type.shape.dim[1:]]
    rows = np.random.default_rng(5).standard_normal((ROWS, *shape), np.float32)
    (folder / "rows.f32.bin").write_bytes(rows.astype("<f4").tobytes())
    (folder / "meta.json").write_text(json.dumps({"input": "x", "shape": shape, "rows": ROWS}), encoding="utf-8")


def main():
    """Writes all."""
    if len(sys.argv) != 2:
        sys.exit(__doc__.splitlines()[0])
    for name, make in MODELS.items():
        write(Path(sys.argv[1]) / name, make())


if __name__ == "__main__":
    main()
