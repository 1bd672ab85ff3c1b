"""Trains assistant, the demo language model of this folder: two million parameters that know this server alone.

    pip install jax==0.10.2 tokenizers==0.23.3 safetensors==0.8.0
    python models/train_assistant.py                                       # writes models/assistant/1
    python models/train_assistant.py --exchanges http://localhost:8080     # asks the server that serves it

The first command needs two cores, 2 GB and less than an hour. What is learnt comes from assistant/talk.txt,
assistant_words.py and assistant/flags.md; no other text and no other model is read. Everything is seeded: the same
machine with the same libraries writes the same files. Another machine rounds differently, and its model is another one.

The second command writes assistant/exchanges.json: what the server answers, where the computation here agrees, and
where no token was a near thing.
"""

import argparse
import json
import math
import time
import urllib.request
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from safetensors.numpy import load_file, save
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

import assistant_words as words
from assistant_questions import Asker, conversation, exam, unseen

HERE = Path(__file__).resolve().parent
MODEL = HERE / "assistant" / "1"
SEED = 7

CONTEXT = 512          # what the server is told; a training sequence is as long
BATCH = 4              # sequences of a step
STEPS = 1800
PEAK, WARM_UP, DECAY, CLIP, BETAS = 5e-3, 50, 0.1, 1.0, (0.95, 0.98)
# Weights of tokens: what the assistant does not say, how its answers begin, and all else. It is the beginning of an
# answer that tells which one it is.
OTHERS, FIRST, REST = 0.05, 4.0, 1.0

# By how much the logit of each token must be the highest, so that no rounding makes another one of it.
SURE = 1.0

END_OF_TEXT, IM_START, IM_END = SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
CONFIG = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 2048,
    "max_position_embeddings": CONTEXT,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
    "attention_bias": False,
    "torch_dtype": "bfloat16",
    "bos_token_id": 0,
    "eos_token_id": 2,
}

# --------------------------------------------------------------------------------------------------------------- tokens


def make_tokenizer(texts):
    """Byte-level BPE, learnt from the texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=CONFIG["vocab_size"], special_tokens=list(SPECIAL), show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return tokenizer


def chat(messages):
    """ChatML, as TEMPLATE writes it, in pieces of (text, whether the assistant says it)."""
    for message in messages:
        said = message["role"] == "assistant"
        yield f"{IM_START}{message['role']}\n", False
        yield message["content"] + IM_END, said
        yield "\n", False


def encode(tokenizer, messages):
    """Tokens of a conversation, and how much each counts in the loss."""
    tokens, weights = [], []
    for text, said in chat(messages):
        ids = tokenizer.encode(text).ids
        tokens += ids
        weights += ([FIRST] * 3 + [REST] * len(ids))[: len(ids)] if said else [OTHERS] * len(ids)
    return tokens, weights


def batches(conversations):
    """Without end: conversations side by side in rows, as tokens, their weights, and whose they are."""
    waiting = [next(conversations) for _ in range(64)]
    while True:
        tokens, counts, owners = (np.zeros((BATCH, CONTEXT + 1), kind) for kind in (np.int32, np.float32, np.int32))
        for row in range(BATCH):
            at, owner = 0, 0
            while fitting := [i for i, (ids, _) in enumerate(waiting) if at + len(ids) <= CONTEXT + 1]:
                # The oldest first; then what fills the row best.
                chosen = fitting[0] if at < CONTEXT // 2 else max(fitting, key=lambda i: len(waiting[i][0]))
                ids, count = waiting.pop(chosen)
                waiting.append(next(conversations))
                owner += 1
                here = slice(at, at + len(ids))
                tokens[row, here], counts[row, here], owners[row, here] = ids, count, owner
                # Nothing foretells how a conversation begins.
                counts[row, at] = 0
                at += len(ids)
        yield tokens, counts, owners


# ---------------------------------------------------------------------------------------------------------------- model


def initial(seed):
    """Random weights, named as Hugging Face names them; those of layers lie stacked."""
    hidden, inner, width = CONFIG["hidden_size"], CONFIG["intermediate_size"], CONFIG["head_dim"]
    queries, keys = CONFIG["num_attention_heads"] * width, CONFIG["num_key_value_heads"] * width
    layers = CONFIG["num_hidden_layers"]
    rng = np.random.default_rng(seed)
    matrix = lambda *shape, scale=1.0: (rng.standard_normal(shape) * scale / math.sqrt(shape[-1])).astype(np.float32)
    last = 1 / math.sqrt(2 * layers)
    return {
        "embed_tokens": matrix(CONFIG["vocab_size"], hidden),
        "norm": np.ones(hidden, np.float32),
        "layers": {
            "input_layernorm": np.ones((layers, hidden), np.float32),
            "self_attn.q_proj": matrix(layers, queries, hidden),
            "self_attn.k_proj": matrix(layers, keys, hidden),
            "self_attn.v_proj": matrix(layers, keys, hidden),
            "self_attn.o_proj": matrix(layers, hidden, queries, scale=last),
            "self_attn.q_norm": np.ones((layers, width), np.float32),
            "self_attn.k_norm": np.ones((layers, width), np.float32),
            "post_attention_layernorm": np.ones((layers, hidden), np.float32),
            "mlp.gate_proj": matrix(layers, inner, hidden),
            "mlp.up_proj": matrix(layers, inner, hidden),
            "mlp.down_proj": matrix(layers, hidden, inner, scale=last),
        },
    }


def norm(x, weight):
    return weight * x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + CONFIG["rms_norm_eps"])


def rotate(x):
    """Turns pairs of numbers that are half a head apart; `[row, position, head, width]`."""
    half = x.shape[-1] // 2
    angles = jnp.arange(x.shape[1])[:, None, None] * CONFIG["rope_theta"] ** (-jnp.arange(half) / half)
    cos, sin, first, second = jnp.cos(angles), jnp.sin(angles), x[..., :half], x[..., half:]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def attention(x, weight, mask):
    rows, length, width = *x.shape[:2], CONFIG["head_dim"]
    q, k, v = ((x @ weight[f"self_attn.{name}_proj"].T).reshape(rows, length, -1, width) for name in "qkv")
    q, k = rotate(norm(q, weight["self_attn.q_norm"])), rotate(norm(k, weight["self_attn.k_norm"]))
    # Neighbouring heads of queries share a head of keys and values.
    q = q.reshape(rows, length, k.shape[2], -1, width)
    scores = jnp.einsum("bqhgd,bkhd->bhgqk", q, k) * width**-0.5
    scores = jax.nn.softmax(jnp.where(mask[:, None, None], scores, -1e30), axis=-1)
    return jnp.einsum("bhgqk,bkhd->bqhgd", scores, v).reshape(rows, length, -1) @ weight["self_attn.o_proj"].T


def forward(weights, tokens, owners):
    """Logits after each token, which sees those before it in its own conversation."""
    earlier = jnp.tril(jnp.ones((tokens.shape[1],) * 2, bool))
    mask = earlier & (owners[:, :, None] == owners[:, None, :])

    def layer(x, weight):
        x = x + attention(norm(x, weight["input_layernorm"]), weight, mask)
        y = norm(x, weight["post_attention_layernorm"])
        y = jax.nn.silu(y @ weight["mlp.gate_proj"].T) * (y @ weight["mlp.up_proj"].T)
        return x + y @ weight["mlp.down_proj"].T, None

    x, _ = jax.lax.scan(layer, weights["embed_tokens"][tokens], weights["layers"])
    return norm(x, weights["norm"]) @ weights["embed_tokens"].T


# ------------------------------------------------------------------------------------------------------------- training


def loss(weights, tokens, counts, owners):
    """Cross entropy of the tokens that count."""
    logits = forward(weights, tokens[:, :-1], owners[:, :-1])
    chosen = jnp.take_along_axis(logits, tokens[:, 1:, None], axis=-1)[..., 0]
    counts = counts[:, 1:]
    return ((jax.nn.logsumexp(logits, axis=-1) - chosen) * counts).sum() / counts.sum()


def orthogonal(matrix):
    """The nearest matrix that stretches nothing, nearly: five rounds of a quintic Newton-Schulz iteration."""
    wide = matrix.shape[-2] <= matrix.shape[-1]
    x = matrix if wide else matrix.mT
    x = x / (jnp.sqrt((x * x).sum(axis=(-2, -1), keepdims=True)) + 1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (-4.775 * square + 2.0315 * square @ square) @ x
    return x if wide else x.mT


@jax.jit
def step(weights, first, second, at, batch):
    """One step: Muon for the matrices of layers, Adam for the rest; a warm-up, and a rate that falls to nothing."""
    value, gradient = jax.value_and_grad(loss)(weights, *batch)
    size = jnp.sqrt(sum(jnp.sum(part * part) for part in jax.tree.leaves(gradient)))
    gradient = jax.tree.map(lambda part: part * jnp.minimum(1, CLIP / size), gradient)
    rate = PEAK * jnp.minimum((at + 1) / WARM_UP, (STEPS - at) / (STEPS - WARM_UP))
    first = jax.tree.map(lambda old, new: BETAS[0] * old + (1 - BETAS[0]) * new, first, gradient)
    second = jax.tree.map(lambda old, new: BETAS[1] * old + (1 - BETAS[1]) * new * new, second, gradient)

    def moved(weight, mean, square, new):
        if weight.ndim == 3:
            way = orthogonal(BETAS[0] * mean + (1 - BETAS[0]) * new) * 0.2 * math.sqrt(max(weight.shape[1:]))
            return weight - rate * (way + DECAY * weight)
        mean, square = mean / (1 - BETAS[0] ** (at + 1)), square / (1 - BETAS[1] ** (at + 1))
        return weight - rate * mean / (jnp.sqrt(square) + 1e-8)

    return jax.tree.map(moved, weights, first, second, gradient), first, second, value


def train(tokenizer):
    """The weights after STEPS steps."""
    asker = Asker(SEED + 1)
    endless = batches(encode(tokenizer, conversation(asker)) for _ in iter(int, 1))
    weights = initial(SEED)
    first = second = jax.tree.map(jnp.zeros_like, weights)
    begun = time.monotonic()
    for at in range(STEPS):
        weights, first, second, value = step(weights, first, second, at, next(endless))
        if at % 50 == 0 or at == STEPS - 1:
            print(f"step {at}: loss {value:.4f}, {time.monotonic() - begun:.0f} s", flush=True)
    return weights


def rounded(weights):
    """The weights as they are stored."""
    return jax.tree.map(lambda part: np.asarray(part).astype(ml_dtypes.bfloat16), weights)


# --------------------------------------------------------------------------------------------------------- what it says


@jax.jit
def logits_of(weights, tokens):
    return forward(jax.tree.map(lambda part: part.astype(jnp.float32), weights), tokens, jnp.zeros_like(tokens))


def margins(weights, tokenizer, conversations):
    """By how much each conversation's last answer is the likeliest, token by token: below nothing where it is not.

    An answer that is the likeliest at every token after itself is what greedy choice generates.
    """
    found = []
    for begin in range(0, len(conversations), 32):
        rows = [encode(tokenizer, messages)[0] for messages in conversations[begin : begin + 32]]
        tokens = np.zeros((32, CONTEXT // 2 if max(map(len, rows)) <= CONTEXT // 2 else CONTEXT), np.int32)
        for row, ids in zip(tokens, rows):
            row[: len(ids)] = ids
        logits = np.array(logits_of(weights, tokens))
        for row, ids, messages in zip(logits, rows, conversations[begin:]):
            # The last token is a line's end after the answer's.
            said = len(tokenizer.encode(messages[-1]["content"] + IM_END).ids)
            positions, wanted = np.arange(len(ids) - said - 2, len(ids) - 2), ids[-said - 1 : -1]
            chosen = row[positions, wanted]
            row[positions, wanted] = -np.inf
            found.append(float((chosen - row[positions].max(axis=-1)).min()))
    return found


def answers(weights, tokenizer, conversations, limit=96):
    """What greedy choice answers to each of at most 32 conversations that end with a question."""
    prompts = ["".join(text for text, _ in chat(messages)) + f"{IM_START}assistant\n" for messages in conversations]
    rows = [tokenizer.encode(prompt).ids for prompt in prompts]
    begins = [len(row) for row in rows]
    while any(row[-1] != CONFIG["eos_token_id"] and len(row) < begin + limit for row, begin in zip(rows, begins)):
        tokens = np.zeros((32, CONTEXT // 2), np.int32)
        for line, row in zip(tokens, rows):
            line[: len(row)] = row
        logits = logits_of(weights, tokens)
        for i, row in enumerate(rows):
            if row[-1] != CONFIG["eos_token_id"]:
                row.append(int(logits[i, len(row) - 1].argmax()))
    return [tokenizer.decode(row[begin:]) for row, begin in zip(rows, begins)]


def report(weights, tokenizer):
    """How many questions that were not trained on get the one right answer."""
    asker, kept = unseen(SEED + 2, 1000)
    papers = {
        "held out, typed carefully": [(asker.typed(question, True), right) for _, question, right in kept],
        "held out, typed as people do": [(asker.typed(question), right) for _, question, right in kept],
        "exam": [(question, right) for _, question, right in exam()],
    }
    for name, paper in papers.items():
        asked = [[{"role": "user", "content": each[0]}, {"role": "assistant", "content": each[1]}] for each in paper]
        right = [margin > 0 for margin in margins(weights, tokenizer, asked)]
        print(f"{name}: {sum(right)} of {len(right)} right", flush=True)


# ---------------------------------------------------------------------------------------------------------------- files


def write(weights, tokenizer):
    """The model's directory, as Hugging Face lays it out."""
    MODEL.mkdir(parents=True, exist_ok=True)
    tensors = {"model.embed_tokens.weight": weights["embed_tokens"], "model.norm.weight": weights["norm"]}
    for name, stack in weights["layers"].items():
        tensors |= {f"model.layers.{layer}.{name}.weight": part for layer, part in enumerate(stack)}
    tensors = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    (MODEL / "model.safetensors").write_bytes(save(tensors, metadata={"format": "pt"}))
    tokenizer.save(str(MODEL / "tokenizer.json"))
    end_of_text, im_end = tokenizer.token_to_id(END_OF_TEXT), tokenizer.token_to_id(IM_END)
    documents = {
        "config": CONFIG,
        # The likeliest token always: what there is to say is in one form only.
        "generation_config": {"eos_token_id": [im_end, end_of_text], "temperature": 0.0},
        "tokenizer_config": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": CONTEXT,
            "eos_token": IM_END,
            "pad_token": END_OF_TEXT,
            "chat_template": TEMPLATE,
        },
    }
    for name, document in documents.items():
        (MODEL / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n", "utf-8")


def read():
    """The model's directory, as `forward` wants it."""
    tensors = load_file(MODEL / "model.safetensors")
    names = [name.split(".", 3)[3] for name in tensors if name.startswith("model.layers.0.")]
    stack = lambda name: np.stack([tensors[f"model.layers.{i}.{name}"] for i in range(CONFIG["num_hidden_layers"])])
    return {
        "embed_tokens": tensors["model.embed_tokens.weight"],
        "norm": tensors["model.norm.weight"],
        "layers": {name.removesuffix(".weight"): stack(name) for name in names},
    }, Tokenizer.from_file(str(MODEL / "tokenizer.json"))


def ask(server, messages):
    """What a server answers."""
    body = json.dumps({"model": MODEL.parent.name, "messages": messages, "temperature": 0}).encode()
    request = urllib.request.Request(f"{server}/v1/chat/completions", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as reply:
        return json.load(reply)["choices"][0]["message"]["content"]


def write_exchanges(server):
    """exchanges.json: conversations, and what the server answers last."""
    weights, tokenizer = read()
    exchanges = []
    for asked in words.EXCHANGES:
        messages = []
        for question in asked:
            messages.append({"role": "user", "content": question})
            said = {"role": "assistant", "content": ask(server, messages)}
            messages.append(said)
        margin = margins(weights, tokenizer, [messages])[0]
        print(f"{'kept' if margin > SURE else 'left out'}, by {margin:.2f}: {asked[-1]} {said['content']}")
        if margin > SURE:
            exchanges.append({"messages": messages[:-1], "answer": said["content"]})
    text = json.dumps(exchanges, indent=1, ensure_ascii=False) + "\n"
    (MODEL.parent / "exchanges.json").write_text(text, "utf-8")


def main():
    """Trains, or asks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--exchanges", metavar="URL", help="ask the server there, and write exchanges.json")
    server = parser.parse_args().exchanges
    if server:
        return write_exchanges(server)
    asker = Asker(SEED)
    tokenizer = make_tokenizer(text for _ in range(20_000) for text, _ in chat(conversation(asker)))
    weights = rounded(train(tokenizer))
    write(weights, tokenizer)
    report(weights, tokenizer)


if __name__ == "__main__":
    main()
