"""A language model small enough to be made for a test, and what it says, computed independently of the server.

`make` writes a random Qwen3 as Hugging Face lays it out. Its tokens are the 256 bytes, in ids 0 to 255, a few longer
ones, marks where a test asks for them, and ChatML's control tokens. Its output favours printable characters, so that
texts can be searched and compared; otherwise it speaks as random weights do. `Oracle` is the same model in 64-bit
numpy. It is no reader of other models.
"""

import json
import pathlib
import re

import numpy as np

END_OF_TEXT, IM_START, IM_END = SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
# Tokens of several bytes: one of two characters, and characters that are two, three and four bytes of UTF-8. No merge
# leads to them, so that prompts are bytes; only the model writes them.
EXTRAS = (" t", "é", "世", "🙂")
CONTEXT = 512
SEED = 5

TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

# How far apart the two likeliest tokens must be for a 32-bit server to be held to the likelier one.
TIE = 2e-3


def alphabet():
    """How byte-level BPE spells each byte: printable ones as themselves, the others from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


def vocabulary(extras):
    """The bytes of each ordinary token, in the order of their ids."""
    return [bytes([byte]) for byte in range(256)] + [extra.encode() for extra in extras]


def configuration(tokens, context):
    """`config.json`; `tokens` are all, control tokens last."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "vocab_size": tokens,
        "max_position_embeddings": context,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "hidden_act": "silu",
        "attention_bias": False,
        "torch_dtype": "float32",
        "bos_token_id": tokens - 3,
        "eos_token_id": tokens - 1,
    }


def shapes(config):
    """Every tensor's shape, rows before columns."""
    hidden, inner, width = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * width, config["num_key_value_heads"] * width
    found = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}
    for layer in range(config["num_hidden_layers"]):
        found |= {
            f"model.layers.{layer}.{name}.weight": shape
            for name, shape in {
                "input_layernorm": (hidden,),
                "self_attn.q_proj": (queries, hidden),
                "self_attn.k_proj": (keys, hidden),
                "self_attn.v_proj": (keys, hidden),
                "self_attn.o_proj": (hidden, queries),
                "self_attn.q_norm": (width,),
                "self_attn.k_norm": (width,),
                "post_attention_layernorm": (hidden,),
                "mlp.gate_proj": (inner, hidden),
                "mlp.up_proj": (inner, hidden),
                "mlp.down_proj": (hidden, inner),
            }.items()
        }
    return found | {"model.norm.weight": (hidden,), "lm_head.weight": (config["vocab_size"], hidden)}


def weights(config, words, seed):
    """Random tensors whose products keep their size; the head says printable `words` three times as loudly."""
    random = np.random.default_rng(seed)
    made = {}
    for name, shape in shapes(config).items():
        numbers = random.standard_normal(shape)
        if len(shape) == 1:
            numbers = 1 + 0.1 * numbers
        elif name != "model.embed_tokens.weight":
            numbers /= np.sqrt(shape[-1])
        # Sharper attention and louder layers: the model would repeat itself, and hide what got mixed up.
        made[name] = (numbers * (2 if "q_norm" in name or ".mlp." in name else 1)).astype("<f4")
    loud = [token for token, word in enumerate(words) if len(word) > 1 or word == b"\n" or 0x20 <= word[0] < 0x7F]
    made["lm_head.weight"][loud] *= 3
    return made


def write_safetensors(path, tensors):
    """A length of 64 bits, a JSON header with the place of each tensor, and their bytes."""
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, tensor in tensors.items():
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [at, at + tensor.nbytes]}
        at += tensor.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    data = b"".join(tensor.astype("<f4").tobytes() for tensor in tensors.values())
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def read_safetensors(path):
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    found = {}
    for name, entry in header.items():
        begin, end = (start + offset for offset in entry["data_offsets"])
        found[name] = np.frombuffer(data[begin:end], "<f4").reshape(entry["shape"]).astype(np.float64)
    return found


def tokenizer(words, marks):
    """`tokenizer.json`: bytes, without merges. `marks` are tokens of their own, control tokens where they say so."""
    spelling = alphabet()
    spelt = {"".join(spelling[byte] for byte in word): token for token, word in enumerate(words)}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [*marks.items(), *((control, True) for control in SPECIAL)]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None}
    model |= {"end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": len(words) + i, "content": content, **flags, "special": special}
            for i, (content, special) in enumerate(added)
        ],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": model | {"vocab": spelt, "merges": []},
    }


def make(
    directory,
    *,
    extras=EXTRAS,
    context=CONTEXT,
    seed=SEED,
    template=TEMPLATE,
    marks=None,
    ends=(),
    shape=None,
    weigh=weights,
):
    """Writes the model into `directory`, which must not be there, and returns its oracle.

    `marks` are further tokens, and whether they are control tokens; `ends` are those of them that end an answer,
    besides ChatML's. `shape` takes the place of parts of the configuration, and `weigh` of `weights`.
    """
    marks = marks or {}
    directory = pathlib.Path(directory)
    directory.mkdir(parents=True)
    words = vocabulary(extras)
    config = configuration(len(words) + len(marks) + len(SPECIAL), context) | (shape or {})
    end_of_text, im_end = config["bos_token_id"], config["eos_token_id"]
    others = [len(words) + list(marks).index(end) for end in ends]
    documents = {
        "config": config,
        "tokenizer": tokenizer(words, marks),
        "tokenizer_config": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": context,
            "eos_token": IM_END,
            "pad_token": END_OF_TEXT,
            "chat_template": template,
        },
        "generation_config": {"eos_token_id": [im_end, end_of_text, *others], "temperature": 0.7, "top_p": 0.9},
    }
    for name, document in documents.items():
        (directory / f"{name}.json").write_text(json.dumps(document, ensure_ascii=False, indent=1), "utf-8")
    write_safetensors(directory / "model.safetensors", weigh(config, words, seed))
    return Oracle(directory)


class Oracle:
    """What the model in a directory says."""

    def __init__(self, directory, kept=np.float16):
        """`kept` is how the server keeps keys and values between steps: rounding them is the one thing that shows."""
        directory = pathlib.Path(directory)
        self.config = json.loads((directory / "config.json").read_text("utf-8"))
        self.weights = read_safetensors(directory / "model.safetensors")
        self.kept = kept
        read = json.loads((directory / "tokenizer.json").read_text("utf-8"))
        byte_of = {character: byte for byte, character in enumerate(alphabet())}
        self.words = {token: bytes(map(byte_of.get, spelt)) for spelt, token in read["model"]["vocab"].items()}
        self.special = {added["content"]: added["id"] for added in read["added_tokens"]}
        self.ends = (self.special[IM_END], self.special[END_OF_TEXT])

    # ------------------------------------------------------------------------------------------------------- numbers

    def logits(self, tokens):
        """What the model says after each of `tokens`: `[tokens, vocabulary]`."""
        return self._forward(tokens, self._empty())

    def logprobs(self, tokens):
        """The logarithms of the probabilities of what comes after each of `tokens`."""
        return log_softmax(self.logits(tokens))

    def greedy(self, tokens, count, stop=(), allowed=None, ties="fail"):
        """The likeliest continuation of `count` tokens, or up to one of `stop`, which is not part of it.

        Where two are as likely, it fails; or it ends there, if `ties` says so: what a test cannot choose may have them.
        """
        cache, chosen, new = self._empty(), [], list(tokens)
        barred = np.zeros(self.config["vocab_size"])
        if allowed is not None:
            barred += -np.inf
            barred[list(allowed)] = 0
        while len(chosen) < count:
            logits = self._forward(new, cache)[-1] + barred
            second, best = np.sort(logits)[-2:]
            if best - second <= TIE:
                assert ties == "end", f"too close to call after {chosen}: choose another prompt or seed"
                break
            new = [int(logits.argmax())]
            if new[0] in stop:
                break
            chosen += new
        return chosen

    def _empty(self):
        none = np.zeros((0, self.config["num_key_value_heads"], self.config["head_dim"]))
        return [(none, none)] * self.config["num_hidden_layers"]

    def _forward(self, tokens, cache):
        """Logits of `tokens`, which come after `cache`: of each layer keys and values, `[position, head, width]`."""
        x = self.weights["model.embed_tokens.weight"][list(tokens)]
        for layer in range(len(cache)):
            matrix = {
                name.split(".", 3)[3].removesuffix(".weight"): tensor
                for name, tensor in self.weights.items()
                if name.startswith(f"model.layers.{layer}.")
            }
            x = x + self._attention(self._norm(x, matrix["input_layernorm"]), matrix, cache, layer)
            x = x + feed_forward(self._norm(x, matrix["post_attention_layernorm"]), matrix)
        return self._norm(x, self.weights["model.norm.weight"]) @ self.weights["lm_head.weight"].T

    def _attention(self, x, matrix, cache, layer):
        heads, width, count = self.config["num_attention_heads"], self.config["head_dim"], len(x)
        start = len(cache[layer][0])
        q, k, v = ((x @ matrix[f"self_attn.{name}_proj"].T).reshape(count, -1, width) for name in "qkv")
        positions = np.arange(start, start + count)
        q = self._rotate(self._norm(q, matrix["self_attn.q_norm"]), positions)
        k = self._rotate(self._norm(k, matrix["self_attn.k_norm"]), positions)
        keys, values = (
            np.concatenate([before, new.astype(self.kept).astype(np.float64)])
            for before, new in zip(cache[layer], (k, v))
        )
        cache[layer] = keys, values
        # Neighbouring heads of queries share a head of keys and values.
        group = heads // keys.shape[1]
        scores = np.einsum("qhd,khd->hqk", q, keys.repeat(group, axis=1)) * width**-0.5
        scores[:, np.arange(len(keys)) > positions[:, None]] = -np.inf
        mixed = np.einsum("hqk,khd->qhd", np.exp(log_softmax(scores)), values.repeat(group, axis=1))
        return mixed.reshape(count, -1) @ matrix["self_attn.o_proj"].T

    def _norm(self, x, weight):
        return weight * x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + self.config["rms_norm_eps"])

    def _rotate(self, x, positions):
        """Turns pairs of numbers that are half a head apart."""
        half = x.shape[-1] // 2
        theta = self.config["rope_theta"]
        angles = positions[:, None, None] * theta ** (-np.arange(half) / half)
        first, second = x[..., :half], x[..., half:]
        cos, sin = np.cos(angles), np.sin(angles)
        return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)

    # ---------------------------------------------------------------------------------------------------------- text

    def encode(self, text):
        """A token for each byte; control tokens are recognised."""
        parts = re.split("(" + "|".join(map(re.escape, self.special)) + ")", text)
        return [token for part in parts for token in ([self.special[part]] if part in self.special else part.encode())]

    def decode(self, tokens):
        """Without control tokens; what is no UTF-8 is replaced, as Python replaces it."""
        return b"".join(self.words.get(token, b"") for token in tokens).decode("utf-8", "replace")

    def token_bytes(self, token):
        """What the token writes; control tokens write their names."""
        names = {token: name.encode() for name, token in self.special.items()}
        return self.words.get(token, names.get(token))

    def token_text(self, token):
        return self.token_bytes(token).decode("utf-8", "replace")

    def chat_prompt(self, messages, add_generation_prompt=True):
        """ChatML, without the help of a template."""
        turns = [f"{IM_START}{each['role']}\n{each['content']}{IM_END}\n" for each in messages]
        return "".join(turns) + (f"{IM_START}assistant\n" if add_generation_prompt else "")


def feed_forward(x, matrix):
    gate, up = (x @ matrix[f"mlp.{name}_proj"].T for name in ("gate", "up"))
    return (gate / (1 + np.exp(-gate)) * up) @ matrix["mlp.down_proj"].T


def log_softmax(x):
    x = x - x.max(axis=-1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))
