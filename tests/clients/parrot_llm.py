"""A language model that says what it is told to: its tokens are those that stood `DISTANCE` tokens before them.

Its weights are made for that, not drawn. The one head looks back by the rotation of positions alone: what it looks for
does not depend on tokens, and is found at one distance. What it finds there is the code of a token, which the output
reads. A last message that begins so many tokens before the answer therefore settles the answer, token by token, control
tokens and the end of the text among them, and no form tells the server what comes.
"""

import numpy as np
import tiny_llm

DISTANCE = 384
CONTEXT = 8192
CODE = 64
# A number that is always the same, the code of the token itself, and the code of the one found.
HIDDEN = 3 * CODE
SHAPE = {
    "hidden_size": HIDDEN,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "head_dim": CODE,
}
# How much more it looks there than elsewhere, in powers of e: about ten times this for the places beside it.
SHARPNESS = 12
FILL = "."


def weights(config, words, seed):
    """For `tiny_llm.make`; neither the words nor chance matter."""
    codes = np.random.default_rng(seed).choice([-1.0, 1.0], (config["vocab_size"], CODE))
    made = {
        name: np.ones(shape) if len(shape) == 1 else np.zeros(shape) for name, shape in tiny_llm.shapes(config).items()
    }
    layer = "model.layers.0."
    found = np.eye(CODE)
    made["model.embed_tokens.weight"][:, 0] = 1
    made["model.embed_tokens.weight"][:, CODE : 2 * CODE] = codes
    # Pairs of numbers that are half a head apart turn with positions. Those of a key begin where they are after the
    # distance, so that they are those of a query as many tokens later.
    angles = (DISTANCE - 1) * config["rope_theta"] ** (-np.arange(CODE // 2) / (CODE // 2))
    made[layer + "self_attn.q_proj.weight"][:, 0] = [1] * (CODE // 2) + [0] * (CODE // 2)
    made[layer + "self_attn.k_proj.weight"][:, 0] = [*np.cos(angles), *np.sin(angles)]
    for name in ("q", "k"):
        made[f"{layer}self_attn.{name}_norm.weight"] *= SHARPNESS
    made[layer + "self_attn.v_proj.weight"][:, CODE : 2 * CODE] = found
    made[layer + "self_attn.o_proj.weight"][2 * CODE :] = found
    made["lm_head.weight"][:, 2 * CODE :] = codes
    return {name: tensor.astype("<f4") for name, tensor in made.items()}


def make(directory, **wishes):
    """Writes the model into `directory`, and returns it as `tiny_llm.Oracle`."""
    return tiny_llm.make(directory, extras=(), context=CONTEXT, shape=SHAPE, weigh=weights, **wishes)


def script(oracle, text, after=tiny_llm.IM_END + "\n" + tiny_llm.IM_START + "assistant\n", end=tiny_llm.IM_END):
    """The content of a last message whose answer is `text`; `after` is what the prompt has between the two."""
    tokens = len(oracle.encode(text + end)) + len(oracle.encode(after))
    assert tokens <= DISTANCE, f"{tokens} tokens are too many"
    return text + end + FILL * (DISTANCE - tokens)
