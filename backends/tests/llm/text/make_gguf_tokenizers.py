"""Trains small tokenizers on the lines below and writes each as GGUF metadata and as tokenizer.json, with the tokens that
Hugging Face's libraries make of some texts.

    pip install gguf tokenizers transformers sentencepiece protobuf      # no torch needed
    python make_gguf_tokenizers.py               # rewrites gguf/ beside this file; seeded, so the same every time

gguf/byte_level: a byte-level vocabulary whose merges know no word, so that where text is cut shows in its tokens; it is
cut as each family of `tokenizer.ggml.pre` does. gguf/llama, phi3, gemma: SentencePiece models, converted as llama.cpp and
`transformers` convert theirs, and held against sentencepiece itself here. gguf/golden.json: texts and tokens.
"""

import io
import json
from pathlib import Path

import gguf
import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX as QWEN2
from transformers.models.qwen3_5.tokenization_qwen3_5 import PRETOKENIZE_REGEX as QWEN35
from transformers.tokenization_utils_base import generate_merges

HERE = Path(__file__).parent / "gguf"
LINES = [
    "The server answers on port 8080, and the health check says whether it is ready.\n\n",
    "the the the server server port port ready ready model models loads loaded loading the  server   port\n",
    "def add(left, right):\n    return left + right  // adds\n\n\tHTTPServer.camelCase(x, y);\n",
    "don't can't we're they'll I've he'd it's DON'T CAN'T WE'RE THEY'LL I'VE HE'D IT'S\n",
    "1 12 123 1234 12345 2024 2025 1,000,000 3.14 20242025 v2.0 2x\n",
    "größere Maße, ça va très bien, señor Núñez. Привет, мир! Привет, сервер!\n",
    "你好，世界。 你好世界 こんにちは世界。 안녕하세요. हिन्दी भाषा में हिन्दी है\n",
    "(see http://example.com/a/b/c) -> [x] == {y} != ... --- <b>bold</b> <s>old</s>\n",
] * 4
TEXTS = [
    "", " ", "  ", "    ", "a", " a", "\n", "\n\n", " \n ", "\t\ttabs\r\nCRLF", "the server", " the  server   port     ready ",
    "The server answers\n\non port 8080.", "don't DON'T we're WE'RE they'll THEY'LL I'd", "it's/that's//(it's)\n/next",
    "1 12 123 1234 12345 123456789", "2024 2025年 1,000,000.5 ½ ² Ⅻ ٣٤", "v2.0x 3D", "HTTPServer camelCase snake_case ABCdef",
    "größere Maße", "gro\u0308ßere a\u0301 e\u0301e\u0301", "Привет, мир! ПРИВЕТ", "你好，世界。こんにちは世界", "안녕하세요 안녕", "हिन्दी\n x",
    "emoji 😀😀 👩‍👩‍👧‍👦 🏳️‍🌈 end", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 ß ſ ǅ", "a\u00a0b\u2003c\u200bd\ufeff", "null \x00 bell \x07", "!!! ?? ...\n\n... ---\n--- x",
    "return left + right  // adds\n    next", "  indented\n      more\n\n\n\nfour", " quux quux", "▁ lower ▁▁ block", "<0x41> is not A",
    "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n", "x<tool>y </tool>", "a   b<tool>   c", "<s>literal</s> <unk>",
    "<|user|>\n hi <|end|>\n\n <|assistant|> \u2003x<|endoftext|> y</s> z", "<start_of_turn>user\nhi<end_of_turn>\n", "tab\t\t\tsep  two",
    "x" + " " * 40 + "y" + "\n" * 9 + "z", "loading" * 6, "Ġ byte-level Ċ alphabet",
]


def split(pattern):
    return pre_tokenizers.Split(Regex(pattern), "isolated")


DIGITS = pre_tokenizers.Digits(individual_digits=True)
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
WORDS = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
SPLITS = GGUF_PRE_TOKENIZER_SPLITS
LLAMA_CPP = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"  # GPT-2's, as llama.cpp has it
# name of the family: composed first?, steps, are words that are tokens taken whole?
FAMILIES = {
    "default": (False, [split(r"[\p{P}\$\+<=>\^~\|]+"), split(LLAMA_CPP), split(r"\p{N}+"), split("[0-9][0-9][0-9]"), BYTES], False),
    "gpt-2": (False, [WORDS], False),
    "olmo": (True, [WORDS], False),
    "smollm": (False, [DIGITS, WORDS], False),
    "command-r": (True, [DIGITS, WORDS], False),
    "llama-bpe": (False, [split(SPLITS["llama-bpe"]), BYTES], True),
    "dbrx": (False, [split(SPLITS["dbrx"]), BYTES], False),
    "qwen2": (True, [split(QWEN2), BYTES], False),
    "qwen35": (True, [split(QWEN35), BYTES], False),
    "tekken": (False, [split(SPLITS["tekken"]), BYTES], True),
    "gpt-4o": (False, [split(SPLITS["gpt-4o"]), BYTES], False),
    "deepseek-coder": (
        False,
        [split("[\r\n]"), split(r"\s?\p{L}+"), split(r"\s?\p{P}+"), split("[一-龥ࠀ-一가-퟿]+"), DIGITS, BYTES],
        False,
    ),
}


def write(name, model, tokens, kinds, **metadata):
    """A GGUF file without tensors."""
    writer = gguf.GGUFWriter(HERE / f"{name}.gguf", {"gemma": "gemma3", "phi3": "phi3"}.get(name, "llama"))
    writer.add_tokenizer_model(model)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    for key, value in metadata.items():
        getattr(writer, f"add_{key}")(value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def compact(data):
    return json.dumps(data, ensure_ascii=False, separators=(",", ":"))


def goldens(tok):
    """Tokens of each text, and what they write where that is not the text."""
    ids = [tok.encode(text, add_special_tokens=False).ids for text in TEXTS]
    written = [tok.decode(one, skip_special_tokens=False) for one in ids]
    return {"ids": ids, "written": {at: text for at, text in enumerate(written) if text != TEXTS[at]}}


def byte_level():
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer, tok.decoder = BYTES, decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=640, initial_alphabet=alphabet, max_token_length=10, show_progress=False)
    tok.train_from_iterator(LINES, trainer)
    data = json.loads(tok.to_str())
    data["model"]["vocab"]["Ġquux"] = len(data["model"]["vocab"])  # a word that no merges lead to
    tok = Tokenizer.from_str(json.dumps(data))
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tok.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in specials])
    plain = ["<tool>", "   "]
    tok.add_tokens([AddedToken(token, special=False, normalized=False) for token in plain])
    (HERE / "byte_level.json").write_text(compact(json.loads(tok.to_str())) + "\n")
    kind = gguf.TokenType
    size = tok.get_vocab_size()
    tokens = [tok.id_to_token(id) for id in range(size)] + [f"[PAD{size}]", f"[PAD{size + 1}]", "", ""]
    kinds = [kind.CONTROL if t in specials else kind.USER_DEFINED if t in plain else kind.NORMAL for t in tokens[:size]]
    write("byte_level", "gpt2", tokens, kinds + [kind.UNUSED] * 4, tokenizer_pre="gpt-2",
          token_merges=[" ".join(pair) for pair in data["model"]["merges"]],
          eos_token_id=tok.token_to_id("<|im_end|>"), bos_token_id=tok.token_to_id("<|endoftext|>"), pad_token_id=0,
          chat_template=[{"name": "default", "template": "{{ messages }}"}, {"name": "tool_use", "template": "{{ tools }}"}])
    found = {}
    for name, (composed, steps, whole) in FAMILIES.items():
        tok.normalizer = normalizers.NFC() if composed else None
        tok.pre_tokenizer = pre_tokenizers.Sequence(steps)
        data = json.loads(tok.to_str())
        data["model"]["ignore_merges"] = whole
        kept = {key: data[key] for key in ("normalizer", "pre_tokenizer")}
        found[name] = {**kept, "ignore_merges": whole, **goldens(Tokenizer.from_str(json.dumps(data)))}
    return found


def train(lines, **options):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(line.rstrip("\n") for line in lines), model_writer=model, model_type="bpe", byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, split_digits=True, hard_vocab_limit=False,
        character_coverage=0.98, minloglevel=2, allow_whitespace_only_pieces=True, num_threads=1, **options)
    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(model.getvalue())
    return proto, sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def pieces(proto, prefix):
    """A SentencePiece model as LlamaConverter and GemmaConverter of `transformers` convert it."""
    vocab = {piece.piece: id for id, piece in enumerate(proto.pieces)}
    scores = {piece.piece: piece.score for piece in proto.pieces}
    tok = Tokenizer(models.BPE(vocab, generate_merges(vocab, scores), unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    replace = normalizers.Replace(" ", "▁")
    tok.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replace]) if prefix else replace
    start = [decoders.Strip(" ", 1, 0)] if prefix else []
    tok.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *start])
    return tok


def agrees(tok, processor, marks):
    """Where a text has no control tokens and no ▁ (which sentencepiece takes for a space), the original agrees."""
    plain = [text for text in TEXTS if not any(mark in text for mark in marks)]
    for text in plain:
        assert tok.encode(text, add_special_tokens=False).ids == processor.encode(text), text
    assert len(plain) > 35


def save(name, tok):
    (HERE / f"{name}.json").write_text(compact(json.loads(tok.to_str())) + "\n")
    return goldens(tok)


def llama():
    proto, processor = train(LINES, vocab_size=480, add_dummy_prefix=True)
    tok = pieces(proto, True)
    tok.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in ("<unk>", "<s>", "</s>")])
    agrees(tok, processor, ["<s>", "</s>", "▁"])
    write("llama", "llama", [p.piece for p in proto.pieces], [p.type for p in proto.pieces],
          token_scores=[p.score for p in proto.pieces], tokenizer_pre="default", bos_token_id=1, eos_token_id=2, unk_token_id=0)
    return proto, save("llama", tok)


def phi3(proto):
    """As Phi-3: Llama's pieces, further control tokens after them; most take the white space that follows."""
    tok = pieces(proto, True)
    added = ["<|endoftext|>", "<|assistant|>", "<|end|>", "<|user|>"]
    tok.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in ("<unk>", "<s>")])
    tok.add_tokens([AddedToken("</s>", special=False, normalized=False, rstrip=True)])
    tok.add_special_tokens([AddedToken(t, special=True, normalized=False, rstrip=t != "<|endoftext|>") for t in added])
    kind = gguf.TokenType
    kinds = [{1: kind.CONTROL, 2: kind.USER_DEFINED}.get(id, piece.type) for id, piece in enumerate(proto.pieces)]
    scores = [-1000.0] * 3 + [piece.score for piece in proto.pieces[3:]]
    write("phi3", "llama", [p.piece for p in proto.pieces] + added + ["[PAD0]"], kinds + [kind.CONTROL] * 4 + [kind.UNUSED],
          token_scores=scores + [-1000.0] * 4 + [-10000.0], tokenizer_pre="default", bos_token_id=1,
          eos_token_id=tok.token_to_id("<|endoftext|>"), unk_token_id=0, add_bos_token=False)
    return save("phi3", tok)


def gemma():
    """As Gemma: no space is put before; runs of white space and HTML are user-defined symbols of the model itself."""
    runs = [c * n for c in "\n▁\t" for n in range(2, 9)]
    turns = ["<start_of_turn>", "<end_of_turn>"]
    symbols = turns + runs + ["<b>", "</b>", "<s>", "</s>"]
    proto, processor = train(LINES, vocab_size=520, add_dummy_prefix=False, user_defined_symbols=symbols, pad_id=0, eos_id=1,
                             bos_id=2, unk_id=3, pad_piece="<pad>", eos_piece="<eos>", bos_piece="<bos>")
    tok = pieces(proto, False)
    special = ["<pad>", "<eos>", "<bos>", "<unk>", *turns]
    tok.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tok.add_tokens([AddedToken(token, special=False, normalized=False) for token in symbols[2:]])
    agrees(tok, processor, ["<unk>", "▁"])
    kind = gguf.TokenType
    # The converter's table of added tokens: spaces as spaces, and a score of its own.
    tokens = [p.piece.replace("▁", " ") if p.piece in symbols else p.piece for p in proto.pieces]
    kinds = [kind.CONTROL if p.piece in special else p.type for p in proto.pieces]
    scores = [-1000.0 if p.piece in special + symbols else p.score for p in proto.pieces]
    write("gemma", "llama", tokens, kinds, token_scores=scores, tokenizer_pre="default", add_space_prefix=False, bos_token_id=2,
          eos_token_id=1, unk_token_id=3, pad_token_id=0, add_bos_token=True, add_eos_token=False)
    return save("gemma", tok)


def main():
    HERE.mkdir(exist_ok=True)
    found = {"families": byte_level()}
    proto, found["llama"] = llama()
    found["phi3"] = phi3(proto)
    found["gemma"] = gemma()
    lines = [f"{compact(key)}:{compact(value)}" for key, value in [("texts", TEXTS), *found.items()]]
    (HERE / "golden.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


main()
