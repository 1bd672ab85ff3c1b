"""Writes goldens/packed/*: small checkpoints whose matrices are packed integers, and the numbers that they stand for.

    pip install numpy
    python make_packed.py

Each CASE.safetensors has a few matrices in one format, integer by integer as its writers describe it: GPTQ (AutoGPTQ,
GPTQModel), AWQ (AutoAWQ, version gemm), compressed-tensors. cases.json has the `quantization_config` of each. The
numbers, rounded to bf16, are in numbers.safetensors as CASE.NAME.weight. llama_gptq.safetensors is a tiny Llama whose
projections are packed, llama_bf16.safetensors the same model with them widened, llama.json its configuration.
"""

import json, os, struct
import numpy as np

FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "goldens", "packed")
random = np.random.default_rng(11)


def save(name, tensors):
    """tensors: name -> (type, array of the bits)."""
    header, data = {}, b""
    for tensor, (dtype, array) in sorted(tensors.items()):
        raw = np.ascontiguousarray(array).tobytes()
        header[tensor] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header, separators=(",", ":")).encode()
    with open(f"{FOLDER}/{name}.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + data)


def bf16(numbers):
    """Bits of the nearest bf16 numbers, ties to even."""
    bits = np.asarray(numbers, np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def floats(dtype, numbers):
    """(type, bits), and the numbers that these bits are."""
    if dtype == "BF16":
        bits = bf16(numbers)
        return (dtype, bits), (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    stored = np.asarray(numbers).astype({"F16": np.float16, "F32": np.float32}[dtype])
    return (dtype, stored), stored.astype(np.float64)


def pack(integers, bits, order=None):
    """[..., n] to int32 words of [..., n * bits / 32]; place i of a word holds integer order[i]."""
    each = 32 // bits
    rows = integers.reshape(-1, integers.shape[-1])
    width = -(-rows.shape[1] // each)
    words = np.zeros((rows.shape[0], width), np.uint64)
    for row in range(rows.shape[0]):
        for word in range(width):
            for place in range(each):
                at = word * each + (order[place] if order else place)
                if at < rows.shape[1]:
                    words[row, word] |= np.uint64(int(rows[row, at]) << (bits * place))
    return words.astype(np.uint32).view(np.int32).reshape(*integers.shape[:-1], width)


def matrix(outputs, inputs, group, bits, zeros, dtype, shuffled=False, size=0.05):
    """Integers [outputs, inputs], scales and zeros [outputs, groups], the group of each input, and the numbers."""
    groups = -(-inputs // group)
    integers = random.integers(0, 1 << bits, (outputs, inputs))
    scales, exact = floats(dtype, size * random.uniform(0.5, 1.5, (outputs, groups)) / (1 << (bits - 1)))
    zeros = random.integers(*zeros, (outputs, groups)) if isinstance(zeros, tuple) else np.full((outputs, groups), zeros)
    which = np.arange(inputs) // group
    if shuffled:
        random.shuffle(which)
    numbers = np.zeros((outputs, inputs))
    for column in range(inputs):
        numbers[:, column] = exact[:, which[column]] * (integers[:, column] - zeros[:, which[column]])
    return integers, scales, zeros, which.astype(np.int32), numbers


def across(scales):
    """Scales as [groups, outputs]."""
    dtype, array = scales
    return dtype, np.ascontiguousarray(array.T)


def gptq(name, made, bits, version, listed=True):
    integers, scales, zeros, which, numbers = made
    packed = pack(zeros.T, bits)
    if version == 1:  # one less: words are subtracted, so a zero of 0 borrows from its neighbour
        packed = packed.view(np.uint32) - np.uint32({4: 0x11111111, 8: 0x01010101}[bits])
    tensors = {
        f"{name}.qweight": ("I32", np.ascontiguousarray(pack(integers, bits).T)),
        f"{name}.qzeros": ("I32", packed.view(np.int32)),
        f"{name}.scales": across(scales),
    }
    if listed:
        tensors[f"{name}.g_idx"] = ("I32", which)
    return tensors, {f"{name}.weight": numbers}


def awq(name, made):
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    integers, scales, zeros, _, numbers = made
    tensors = {
        f"{name}.qweight": ("I32", pack(integers.T, 4, order)),
        f"{name}.qzeros": ("I32", pack(zeros.T, 4, order)),
        f"{name}.scales": across(scales),
    }
    return tensors, {f"{name}.weight": numbers}


def compressed(name, made, bits, zeros=None, listed=False):
    """`zeros`: None, "I32" (packed along outputs), or "I8". There, integers and zeros are around 0, and packed with half
    of their range added: what `matrix` makes are those sums."""
    integers, scales, stored, which, numbers = made
    tensors = {
        f"{name}.weight_packed": ("I32", pack(integers, bits)),
        f"{name}.weight_scale": scales,
        f"{name}.weight_shape": ("I64", np.array(integers.shape, np.int64)),
    }
    if zeros == "I32":
        tensors[f"{name}.weight_zero_point"] = ("I32", np.ascontiguousarray(pack(stored.T, bits).T))
    if zeros == "I8":
        tensors[f"{name}.weight_zero_point"] = ("I8", (stored - (1 << (bits - 1))).astype(np.int8))
    if listed:
        tensors[f"{name}.weight_g_idx"] = ("I32", which)
    return tensors, {f"{name}.weight": numbers}


def of_bytes(name, made, zeros=False):
    integers, scales, stored, _, numbers = made
    tensors = {
        f"{name}.weight": ("I8", (integers - 128).astype(np.int8)),
        f"{name}.weight_scale": scales,
        f"{name}.input_scale": ("F32", np.ones(1, np.float32)),
    }
    if zeros:
        tensors[f"{name}.weight_zero_point"] = ("I8", (stored - 128).astype(np.int8))
    return tensors, {f"{name}.weight": numbers}


def of_floats(name, outputs, inputs):
    """Eight-bit floats: a sign, four bits of exponent, three of mantissa; 0x7f and 0xff are no numbers."""
    bits = random.integers(0, 256, (outputs, inputs))
    bits[(bits & 0x7F) == 0x7F] = 0
    exponent, mantissa = (bits >> 3) & 15, (bits & 7) / 8
    numbers = np.where(exponent > 0, (1 + mantissa) * 2.0 ** (exponent - 7), mantissa * 2.0**-6)
    numbers = np.where(bits > 127, -numbers, numbers)
    scales, exact = floats("BF16", random.uniform(0.001, 0.002, (outputs, 1)))
    tensors = {f"{name}.weight": ("F8_E4M3", bits.astype(np.uint8)), f"{name}.weight_scale": scales}
    return tensors, {f"{name}.weight": numbers * exact}


def one_scale(made):
    """The same matrix with the scale of its first output for all."""
    integers, (dtype, scales), stored, which, _ = made
    _, exact = floats(dtype, (scales.astype(np.uint32) << 16).view(np.float32) if dtype == "BF16" else scales)
    numbers = exact[0, 0] * (integers - 128)
    return integers, (dtype, scales[:1, 0]), stored, which, numbers


def joined(*parts):
    tensors, numbers = {}, {}
    for part in parts:
        tensors.update(part[0])
        numbers.update(part[1])
    return tensors, numbers


def tensors_config(kind, bits, strategy, form, **more):
    weights = {"num_bits": bits, "type": kind, "strategy": strategy, "dynamic": False, "block_structure": None, **more}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None, "output_activations": None}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": {"group_0": group},
            "ignore": ["lm_head"], "sparsity_config": {}, "transform_config": {}, "kv_cache_scheme": None,
            "quantization_status": "compressed"}  # fmt: skip


def gptq_config(bits, group, form, **more):
    return {"quant_method": "gptq", "bits": bits, "group_size": group, "checkpoint_format": form, **more}


def cases():
    m = matrix
    yield "gptq_4", gptq_config(4, 32, "gptq", sym=True, desc_act=False), joined(
        gptq("a.q", m(24, 64, 32, 4, 8, "F16"), 4, 1),
        gptq("a.bare", m(8, 80, 32, 4, 8, "F16"), 4, 1, listed=False),
        gptq("a.uneven", m(24, 64, 32, 4, (0, 16), "F16"), 4, 1),
    )
    yield "gptq_4_ordered", gptq_config(4, 16, "gptq_v2", sym=False, desc_act=True), joined(
        gptq("a.q", m(24, 64, 16, 4, (0, 16), "F16", shuffled=True), 4, 2),
        gptq("a.plain", m(16, 48, 16, 4, 8, "BF16", shuffled=True), 4, 2),
    )
    yield "gptq_8", gptq_config(8, 32, "gptq", sym=True, desc_act=True), joined(
        gptq("a.q", m(12, 64, 32, 8, 128, "BF16", shuffled=True), 8, 1),
        gptq("a.plain", m(8, 64, 32, 8, 128, "F16"), 8, 1),
        gptq("a.uneven", m(8, 64, 32, 8, (0, 256), "F16"), 8, 1),
    )
    yield "gptq_4_whole", gptq_config(4, -1, "gptq"), gptq("a.q", m(16, 64, 64, 4, 8, "F32"), 4, 1)
    config = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}
    yield "awq", config, joined(awq("a.q", m(24, 64, 32, 4, (0, 16), "F16")), awq("a.even", m(8, 32, 32, 4, 8, "F16")))
    yield "packed_4", tensors_config("int", 4, "group", "pack-quantized", group_size=32, symmetric=True), joined(
        compressed("a.q", m(20, 64, 32, 4, 8, "BF16"), 4),
        compressed("a.ordered", m(9, 64, 32, 4, 8, "BF16", shuffled=True), 4, listed=True),
    )
    yield "packed_4_zeros", tensors_config("int", 4, "group", "pack-quantized", group_size=16, symmetric=False), joined(
        compressed("a.q", m(20, 48, 16, 4, (0, 16), "BF16"), 4, zeros="I32"),
        compressed("a.bytes", m(9, 48, 16, 4, (0, 16), "F16"), 4, zeros="I8"),
        compressed("a.ordered", m(9, 48, 16, 4, (0, 16), "BF16", shuffled=True), 4, zeros="I32", listed=True),
    )
    yield "packed_8", tensors_config("int", 8, "channel", "pack-quantized", symmetric=False), joined(
        compressed("a.q", m(10, 62, 62, 8, 128, "BF16"), 8),
        compressed("a.zeros", m(10, 62, 62, 8, (0, 256), "BF16"), 8, zeros="I32"),
    )
    yield "bytes", tensors_config("int", 8, "channel", "int-quantized", symmetric=True), joined(
        of_bytes("a.q", m(10, 50, 50, 8, 128, "BF16")),
        of_bytes("a.zeros", m(6, 48, 16, 8, (0, 256), "F32"), zeros=True),
        of_bytes("a.one", one_scale(m(6, 50, 50, 8, 128, "BF16"))),
    )
    yield "floats", tensors_config("float", 8, "channel", "float-quantized", symmetric=True), of_floats("a.q", 10, 50)


def llama():
    hidden, kv, inner, vocab = 32, 16, 64, 48
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": vocab, "hidden_size": hidden,
              "intermediate_size": inner, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
              "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "torch_dtype": "bfloat16",
              "quantization_config": gptq_config(4, 16, "gptq", sym=False, desc_act=True)}  # fmt: skip
    plain = {"model.embed_tokens.weight": (vocab, hidden), "lm_head.weight": (vocab, hidden)}
    plain = {name: ("BF16", bf16(random.standard_normal(shape))) for name, shape in plain.items()}
    norms = ["model.norm", "model.layers.0.input_layernorm", "model.layers.0.post_attention_layernorm"]
    plain.update({f"{name}.weight": ("BF16", bf16(random.uniform(0.5, 1.5, hidden))) for name in norms})
    packed, widened = {}, {}
    shapes = {"self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (kv, hidden), "self_attn.v_proj": (kv, hidden),
              "self_attn.o_proj": (hidden, hidden), "mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden),
              "mlp.down_proj": (hidden, inner)}  # fmt: skip
    for index, (name, shape) in enumerate(shapes.items()):
        made = matrix(*shape, 16, 4, (1, 15), "F16", shuffled=index % 2 == 1, size=0.5)
        tensors, numbers = gptq(f"model.layers.0.{name}", made, 4, 1)
        packed.update(tensors)
        widened.update({name: ("BF16", bf16(array)) for name, array in numbers.items()})
    save("llama_gptq", {**plain, **packed})
    save("llama_bf16", {**plain, **widened})
    with open(f"{FOLDER}/llama.json", "w") as file:
        json.dump(config, file, indent=1)
        file.write("\n")


if __name__ == "__main__":
    os.makedirs(FOLDER, exist_ok=True)
    configs, all_numbers = {}, {}
    for case, config, (tensors, numbers) in cases():
        tensors["norm.weight"] = ("BF16", bf16(np.ones(3)))
        save(case, tensors)
        configs[case] = config
        all_numbers.update({f"{case}.{name}": ("BF16", bf16(array)) for name, array in numbers.items()})
    save("numbers", all_numbers)
    with open(f"{FOLDER}/cases.json", "w") as file:
        json.dump(configs, file, indent=1)
        file.write("\n")
    llama()
