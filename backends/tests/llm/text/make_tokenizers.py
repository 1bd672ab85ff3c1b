"""Trains the small tokenizers of the tests on the lines below and writes what transformers makes of them.

    pip install transformers tokenizers      # no torch needed
    python make_tokenizers.py                # rewrites tokenizers/*/ beside this file; seeded, so the same every time

Each directory holds tokenizer.json, tokenizer_config.json and golden.json: texts with their ids (with and without control
tokens at the edges) and id sequences with their texts (with and without control tokens).
"""

import json
import random
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

HERE = Path(__file__).parent / "tokenizers"
LINES = [
    "The server answers on port 8080 and the health check says whether it is ready.",
    "the the the server server port port ready ready model models loads loaded loading",
    "def add(left, right):\n    return left + right\n",
    "Überraschung: größere Maße, ça va très bien, señor Núñez.",
    "Привет, мир. 你好，世界。 こんにちは世界。 안녕하세요",
    "numbers 1 12 123 1234 12345 and   spaces    of     several      widths\t\ttabs",
    "don't can't we're they'll I've he'd it's",
] * 4
TEXTS = [
    "", " ", "  ", "a", " a", "the server", " the server ", "The  server   answers\n\n on port 8080.", "don't WE'RE",
    "größere Maße", "Привет, мир", "你好，世界", "안녕", "👩‍👩‍👧‍👦 family 🏳️‍🌈", "a\u0301 combining", "\t\ttabs\r\nCRLF", "null \x00 byte",
    "<s>literal control</s>", "<|im_start|>user\nhi<|im_end|>", "x<tool>y", "▁ lower one eighth block ▁▁", "<0x41> is not A",
    "emoji😀😀😀end", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢", "123456789 1,234.5", "\u00a0nbsp\u2003em space", "loading" * 20, "\ufeffbom", "Ġ byte-level alphabet Ċ",
]


def byte_level():
    """As Qwen, Llama 3, gpt-oss: bytes as characters, a splitting pattern of its own, no control tokens at the edges."""
    tok = Tokenizer(models.BPE())
    pattern = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    tok.normalizer = normalizers.NFC()
    tok.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(pattern), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tok.decoder = decoders.ByteLevel()
    tok.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(vocab_size=420, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tok.train_from_iterator(LINES, trainer)
    tok.add_special_tokens(["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tok.add_tokens([AddedToken("<tool>", special=False, normalized=False), AddedToken("größe Ġ", special=False)])
    return tok, {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "additional_special_tokens": ["<|im_start|>"]}


def byte_level_bos():
    """As Llama 3 and DeepSeek: the same with a post-processor that begins a text, and truncation left in the file."""
    tok, config = byte_level()
    tok.add_special_tokens(["<|begin|>"])
    template = processors.TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", tok.token_to_id("<|begin|>"))])
    tok.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    tok.enable_truncation(8)
    tok.enable_padding(length=4)
    return tok, {**config, "bos_token": {"__type": "AddedToken", "content": "<|begin|>", "lstrip": False, "rstrip": False, "special": True}}


def sentencepiece(strip, prepend):
    tok = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    steps = ([normalizers.Prepend("▁")] if prepend else []) + [normalizers.Replace(" ", "▁")]
    tok.normalizer = normalizers.Sequence(steps)
    start = [decoders.Strip(" ", 1, 0)] if strip else []
    tok.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *start])
    specials = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)]
    lines = [" " + line.replace("你", "").replace("世", "") for line in LINES]
    trainer = trainers.BpeTrainer(vocab_size=520, special_tokens=specials, show_progress=False, max_token_length=12)
    tok.train_from_iterator([word for line in lines for word in line.split(" ")] + lines, trainer)
    # Byte tokens are trained as control tokens to give them their places, but are ordinary ones.
    data = json.loads(tok.to_str())
    data["added_tokens"] = [t for t in data["added_tokens"] if not t["content"].startswith("<0x")]
    return Tokenizer.from_str(json.dumps(data))


def llama():
    """As Llama 2 and Mistral: a space is prepended and taken away again; bytes where the vocabulary ends; bos."""
    config = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True, "add_eos_token": False}
    tok = sentencepiece(True, True)
    tok.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tok, config


def gemma():
    """As Gemma: no space is prepended or taken away; both edges are marked; a token that only the configuration knows."""
    tok = sentencepiece(False, False)
    edges = [("<s>", 1), ("</s>", 2)]
    tok.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=edges)
    extra = {"content": "<|im_start|>", "lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    config = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True, "add_eos_token": True}
    return tok, {**config, "added_tokens_decoder": {str(tok.get_vocab_size()): extra}}


def metaspace():
    """As T5 and early Llama conversions: the decoder Metaspace, which drops the spaces of the first token."""
    tok = Tokenizer(models.Unigram([("<unk>", 0.0), ("▁", -3.0)] + [(c, -5.0) for c in "abcdefghijklmnopqrstuvwxyzü.,"]
                                   + [("▁the", -2.0), ("▁server", -2.0), ("ing", -2.5), ("▁▁▁", -3.0)], 0))
    tok.pre_tokenizer = pre_tokenizers.Metaspace()
    tok.decoder = decoders.Metaspace()
    tok.add_special_tokens(["<unk>", "</s>"])
    return tok, {"eos_token": "</s>", "unk_token": "<unk>"}


def sequences(tok, rng):
    size = tok.get_vocab_size()
    for _ in range(40):
        yield [rng.randrange(size) for _ in range(rng.randrange(1, 12))]
    for text in TEXTS:
        yield tok.encode(text, add_special_tokens=False).ids
    yield [size + 5, 0, size, 1]
    for raw in ["👩‍👩‍👧‍👦", "é", "你"]:
        data = raw.encode()
        ids = [tok.token_to_id(f"<0x{b:02X}>") for b in data]
        if None in ids:
            alphabet = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
            ids = [tok.token_to_id(c) for c in alphabet.pre_tokenize_str(raw)[0][0]]
        if None not in ids:
            yield ids
            yield ids[:-1]
            yield ids[1:]
            yield ids[:1] + ids


def main():
    for build in (byte_level, byte_level_bos, llama, gemma, metaspace):
        rng = random.Random(7)
        directory = HERE / build.__name__
        directory.mkdir(parents=True, exist_ok=True)
        tok, config = build()
        tok.save(str(directory / "tokenizer.json"), pretty=False)
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 1000, **config}
        (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=1, ensure_ascii=False) + "\n")
        hf = PreTrainedTokenizerFast.from_pretrained(str(directory))
        golden = {
            "encode": [
                {"text": t, "plain": hf(t, add_special_tokens=False)["input_ids"], "special": hf(t)["input_ids"]} for t in TEXTS
            ],
            "decode": [
                {"ids": ids, "all": hf.decode(ids, skip_special_tokens=False), "skip": hf.decode(ids, skip_special_tokens=True)}
                for ids in sequences(tok, rng)
            ],
        }
        lines = [f'"{k}": [\n' + ",\n".join(json.dumps(e, ensure_ascii=False) for e in v) + "\n]" for k, v in golden.items()]
        (directory / "golden.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
        print(build.__name__, tok.get_vocab_size())


main()
