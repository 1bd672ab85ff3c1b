//! How families of byte-level tokenizers cut text into words before merging: rows of a table, chosen by GGUF's
//! `tokenizer.ggml.pre`. Patterns and normalization are those of the families' own `tokenizer.json`, which llama.cpp's
//! come close to; the names, `whole_words` and `bos` are llama.cpp's. Not the merging itself: `tokenizers` does that.

/// A way to cut text into words.
#[derive(Debug)]
pub(super) struct PreTokenizer {
    /// The values of `tokenizer.ggml.pre` that mean it.
    pub(super) names: &'static [&'static str],
    /// Applied one after the other, each to what the ones before it have cut: matches and what lies between them.
    pub(super) patterns: &'static [&'static str],
    /// Is text composed (NFC) first?
    pub(super) nfc: bool,
    /// Is a word that is a token taken whole, even where merges would not lead to it?
    pub(super) whole_words: bool,
    /// Does a text begin with the first control token, where the file does not say?
    pub(super) bos: bool,
}

const fn row(names: &'static [&'static str], patterns: &'static [&'static str]) -> PreTokenizer {
    PreTokenizer { names, patterns, nfc: false, whole_words: false, bos: false }
}

/// The families. The first is what files without the key mean.
pub(super) static PRE_TOKENIZERS: &[PreTokenizer] = &[
    row(&["default"], &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"]),
    row(&["gpt-2", "phi-2", "exaone4", "gigachat", "mellum", "trillion", "a.x-4.0", "granite-docling"], &[GPT2]),
    PreTokenizer { nfc: true, ..row(&["olmo", "mpt"], &[GPT2]) },
    row(&["smollm", "starcoder", "refact", "codeshell", "exaone", "minerva-7b"], &[r"\p{N}", GPT2]),
    PreTokenizer { nfc: true, ..row(&["command-r"], &[r"\p{N}", GPT2]) },
    PreTokenizer { whole_words: true, bos: true, ..row(LLAMA3_NAMES, &[LLAMA3]) },
    row(&["dbrx", "smaug-bpe", "glm4", "chatglm-bpe"], &[LLAMA3]),
    PreTokenizer { nfc: true, ..row(&["qwen2", "deepseek-r1-qwen", "megrez", "kormo", "f2llmv2"], &[QWEN2]) },
    PreTokenizer { nfc: true, ..row(&["qwen35"], &[QWEN35]) },
    PreTokenizer { whole_words: true, bos: true, ..row(&["tekken"], &[TEKKEN]) },
    row(&["gpt-4o", "llama4", "kanana2"], &[GPT4O]),
    row(&["deepseek-llm"], &["[\r\n]", LETTERS, PUNCTUATION, r"\s+$", CJK, r"\p{N}"]),
    row(&["deepseek-coder"], &["[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", CJK, r"\p{N}"]),
    row(&["seed-coder"], &[SEED_CODER]),
];

const LLAMA3_NAMES: &[&str] =
    &["llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"];

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

const LLAMA3: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);

const QWEN2: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}",
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);

const QWEN35: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}",
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);

const TEKKEN: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);

const GPT4O: &str = concat!(
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
);

const SEED_CODER: &str = concat!(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1}",
    r"| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+",
);

/// DeepSeek's letters with case, listed by hand there: Latin, Greek, Cyrillic, Armenian, Georgian, Cherokee, ...
const LETTERS: &str = concat!(
    r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-\x{1F7D}ᾀ-ᾴᾶ-ᾼ\x{1FBE}ῂ-ῄῆ-ῌῐ-\x{1FD3}ῖ-\x{1FDB}ῠ-Ῥῲ-ῴῶ-ῼ",
    r"ℂℇℊ-ℓℕℙ-ℝℤ\x{2126}ℨ\x{212A}-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+",
);

const PUNCTUATION: &str = r"\s?[!-/:-~！-／：-～‘-‟　-。]+";

/// Not only Chinese, Japanese and Korean: everything from U+0800 up to them, as in DeepSeek's files.
const CJK: &str = "[一-龥ࠀ-一가-퟿]+";
