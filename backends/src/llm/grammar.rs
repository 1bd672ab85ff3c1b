//! Text that keeps to a form: a JSON schema, a regular expression, a list of choices, or a grammar. `llguidance` says which
//! tokens may come next; the executor leaves the others out.
//!
//! Compiling takes what the form asks for, up to fixed bounds, and belongs off the request path; a mask takes
//! microseconds to a few milliseconds, bounded by the same fuel.

use super::engine;
use super::executor::Mask;
use super::schema;
use super::text::Vocabulary;
use llguidance::api::{GrammarWithLexer, ParserLimits, TopLevelGrammar};
use llguidance::toktrie::{ApproximateTokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory, regex_to_lark};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::sync::Arc;

/// What a text must be like.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub enum Form {
    /// Any JSON object.
    Object,
    /// JSON that a schema describes.
    Schema(#[serde(with = "as_text")] Value),
    /// Text that a regular expression matches as a whole.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// Text of a grammar in Lark's notation.
    Grammar(String),
}

/// Bytes of a list of choices that nobody need be afraid of.
const FEW: usize = 4 << 10;

impl Form {
    /// Is it so small and so flat that compiling it is quick, whatever it says?
    #[must_use]
    pub fn is_harmless(&self) -> bool {
        match self {
            Form::Object => true,
            Form::Choice(texts) => texts.iter().map(|text| text.len() + 1).sum::<usize>() <= FEW,
            Form::Schema(_) | Form::Regex(_) | Form::Grammar(_) => false,
        }
    }
}

/// A schema as the text that it came as: inside another document it would be nested deeper than readers allow.
mod as_text {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};
    use serde_json::Value;

    pub(super) fn serialize<S: Serializer>(schema: &Value, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(schema)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Value, D::Error> {
        serde_json::from_str(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

/// Between the parts of JSON: nothing, a space, or a new line and its indentation. Without a bound a model may write
/// spaces until it has no tokens left.
const WHITESPACE: &str = r"( |\n[ ]{0,32})?";

/// What forms are compiled for: a vocabulary, and the tokens that end a text.
pub struct Grammars {
    factory: ParserFactory,
    ends: Arc<[u32]>,
}

impl std::fmt::Debug for Grammars {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Grammars").field("ends", &self.ends).finish_non_exhaustive()
    }
}

impl Grammars {
    /// For the tokens of a model whose logits are `size` long. A text which is complete ends with one of `ends`.
    ///
    /// # Errors
    /// There is no end, or the vocabulary cannot be used.
    pub fn new(vocabulary: &Vocabulary, size: u32, ends: &[u32]) -> Result<Self, String> {
        let word = |id: u32| match vocabulary.bytes(id) {
            Some(bytes) if vocabulary.is_special(id) => control(bytes),
            Some(bytes) => bytes.to_vec(),
            None => Vec::new(),
        };
        Self::of(&(0..size).map(word).collect::<Vec<_>>(), ends)
    }

    fn of(words: &[Vec<u8>], ends: &[u32]) -> Result<Self, String> {
        let size = u32::try_from(words.len()).map_err(|error| error.to_string())?;
        let ends: Arc<[u32]> = ends.iter().copied().filter(|end| *end < size).collect();
        let end = *ends.first().ok_or("the model's files name no token that ends a text, so that no form could end")?;
        let trie = TokTrie::from(&TokRxInfo::new(size, end), words).with_eos_tokens(&ends);
        let environment: llguidance::toktrie::TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let mut factory = ParserFactory::new_simple(&environment).map_err(|error| error.to_string())?;
        factory.quiet();
        *factory.limits_mut() = limits();
        Ok(Grammars { factory, ends })
    }

    /// Compiles a form.
    ///
    /// # Errors
    /// It is malformed, asks for something that is not supported, or is too large: says what.
    pub fn compile(&self, form: &Form) -> Result<Guide, String> {
        let grammar = match form {
            Form::Object | Form::Schema(_) => TopLevelGrammar::from_json_schema(json_schema(form)?),
            Form::Regex(regex) => TopLevelGrammar::from_regex(regex),
            Form::Choice(_) => TopLevelGrammar::from_lark(format!("start: {}", expression(form))),
            Form::Grammar(lark) => TopLevelGrammar::from_grammar(GrammarWithLexer::from_lark(lark.clone())),
        };
        let mut matcher = Matcher::new(self.factory.create_parser(grammar));
        match matcher.get_error() {
            Some(error) => Err(located(form, in_one_line(&error))),
            // A form that no text keeps to is told now, and not with the first token.
            None => matcher.compute_mask_or_eos().map_err(|error| in_one_line(&error.to_string())).map(|_| ()),
        }?;
        Ok(Guide { matcher, ends: self.ends.clone(), over: false })
    }
}

/// A control token: it is no text, whatever it is called.
fn control(name: &[u8]) -> Vec<u8> {
    [&[TokTrie::SPECIAL_TOKEN_MARKER], name].concat()
}

/// Of a vocabulary what a form may name, its control tokens; all other text is written byte by byte. A form that compiles
/// for the vocabulary compiles for this as well, by the same steps, and this is made in a millisecond.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Outline {
    size: u32,
    ends: Vec<u32>,
    controls: Vec<(u32, String)>,
}

impl Outline {
    /// Of the same as [`Grammars::new`].
    #[must_use]
    pub fn new(vocabulary: &Vocabulary, size: u32, ends: &[u32]) -> Self {
        let named = |id: u32| Some((id, String::from_utf8_lossy(vocabulary.bytes(id)?).into_owned()));
        let controls = (0..size).filter(|id| vocabulary.is_special(*id)).filter_map(named).collect();
        Outline { size, ends: ends.to_vec(), controls }
    }

    /// What forms are compiled for.
    ///
    /// # Errors
    /// There is no end.
    pub fn grammars(&self) -> Result<Grammars, String> {
        let mut words = vec![Vec::new(); self.size as usize];
        for (id, name) in &self.controls {
            if let Some(word) = words.get_mut(*id as usize) {
                *word = control(name.as_bytes());
            }
        }
        words.extend((0..=u8::MAX).map(|byte| vec![byte]));
        Grammars::of(&words, &self.ends)
    }
}

/// Ways on that may be open at one place: an object has four for each property that may be left out. The library looks
/// through all of them for each that it adds, on the engine's own thread and for each answer: with 2,000 a token costs some
/// 1.4 ms, with 10,000 it is 28.
const WAYS: usize = 2_000;

/// Fuel and memory of one form: what the largest schemas in use need, and a fraction of a second.
fn limits() -> ParserLimits {
    ParserLimits {
        max_items_in_row: WAYS,
        initial_lexer_fuel: 1_000_000,
        step_lexer_fuel: 200_000,
        step_max_items: 50_000,
        max_lexer_states: 50_000,
        max_grammar_size: 200_000,
        verbose_errors: false,
        ..ParserLimits::default()
    }
}

/// The schema of a form, as the library is to read it.
fn json_schema(form: &Form) -> Result<Value, String> {
    match form {
        Form::Schema(schema) => schema::prepared(schema).map(with_whitespace),
        _ => Ok(with_whitespace(json!({"type": "object"}))),
    }
}

/// A form as a part of a grammar in Lark's notation.
pub(super) fn expression(form: &Form) -> String {
    match form {
        Form::Object | Form::Schema(_) => {
            // A schema that cannot be kept to is none to the library, which refuses it in these words.
            let schema = json_schema(form).unwrap_or_else(|fault| json!({"type": fault}));
            format!("%json {schema}")
        }
        Form::Regex(regex) => format!("/{}/", regex_to_lark(regex, "")),
        Form::Choice(texts) => {
            let texts: Vec<String> = texts.iter().map(|text| literal(text)).collect();
            format!("({})", texts.join(" | "))
        }
        // With names of its own for its rules.
        Form::Grammar(lark) => format!("%lark {{\n{lark}\n}}"),
    }
}

/// Text in Lark's notation.
pub(super) fn literal(text: &str) -> String {
    // Where JSON may have this character as it is, this notation may not.
    Value::from(text).to_string().replace('\u{7f}', "\\u007f")
}

/// A schema with this server's habit of writing, unless it states one.
fn with_whitespace(mut schema: Value) -> Value {
    if let Value::Object(fields) = &mut schema {
        fields.entry("x-guidance").or_insert_with(|| json!({"whitespace_pattern": WHITESPACE}));
    }
    schema
}

/// What errors begin with that come while a text is generated: its form leads nowhere, which no compiler sees.
const STUCK: &str = "the form of the answer cannot be followed to its end: ";

/// The library's word for a form that nothing can follow.
const NOTHING_FOLLOWS: &str = "NoExtensionBias";

/// The library's words for too many ways on, at one place and for one token.
const TOO_MANY_WAYS: [&str; 2] = ["Current row has ", "Too many items "];

/// The library's words for alternatives of which it cannot tell that no two fit.
const NOT_APART: &str = "oneOf constraints are not supported";

/// An error of the library in one line. It may go on with the library's state, which is nobody's business.
fn in_one_line(error: &str) -> String {
    if error.contains(NOTHING_FOLLOWS) {
        return "there is a place in it after which no text is allowed".to_owned();
    }
    if TOO_MANY_WAYS.iter().any(|words| error.contains(words)) {
        let many = "it is too large: there is a place in it with too many ways to go on, as objects have with each";
        return format!("{many} optional property; {WAYS} are the most at one place");
    }
    if error.contains(NOT_APART) {
        // It names an option of its own, which nobody here can set.
        let apart = "as by a required property with another const in each; where two may fit, write anyOf";
        return format!("the alternatives of 'oneOf' have to exclude each other, {apart}");
    }
    let error = error.split("<backtrace>").next().unwrap_or_default().replace("<non-verbose/>", "");
    let lines = error.lines().take(6).map(str::trim).filter(|line| !line.is_empty());
    lines.collect::<Vec<_>>().join(" ").chars().take(400).collect()
}

/// What is wrong with a form, with the place where a schema says how to find it.
fn located(form: &Form, error: String) -> String {
    match form {
        Form::Schema(schema) => schema::located(schema, error),
        _ => error,
    }
}

/// A form, and a place in it.
#[derive(Clone)]
pub struct Guide {
    matcher: Matcher,
    ends: Arc<[u32]>,
    /// Is the text complete, and has its end been chosen?
    over: bool,
}

impl std::fmt::Debug for Guide {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guide").field("over", &self.over).finish_non_exhaustive()
    }
}

impl engine::Matcher for Guide {
    fn accept(&mut self, token: u32) -> Result<(), String> {
        if self.over || self.ends.contains(&token) {
            self.over = true;
            return Ok(());
        }
        self.matcher.consume_token(token).map_err(|error| format!("{STUCK}{}", in_one_line(&error.to_string())))
    }

    fn mask(&mut self) -> Result<Mask, String> {
        if self.over || self.matcher.is_stopped() {
            let size = self.ends.iter().max().map_or(0, |end| end + 1);
            return Ok(Mask::of(&self.ends, size));
        }
        let mask = self
            .matcher
            .compute_mask_or_eos()
            .map_err(|error| format!("{STUCK}{}", in_one_line(&error.to_string())))?;
        Ok(Mask(mask.as_slice().into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llm::engine::Matcher as _;

    #[test]
    fn a_form_travels_however_deep_it_is() {
        let deep = (0..120).fold(Value::Null, |inner, _| json!([inner]));
        for form in [Form::Schema(deep), Form::Object, Form::Choice(vec!["a".into()]), Form::Regex("\\d".into())] {
            let text = serde_json::to_string(&form).unwrap();
            assert_eq!(serde_json::from_str::<Form>(&text).unwrap(), form);
        }
    }

    #[test]
    fn an_outline_has_what_a_form_may_name() {
        let outline =
            Outline { size: 1000, ends: vec![7], controls: vec![(7, "<|end|>".into()), (900, "<|call|>".into())] };
        let grammars = outline.grammars().unwrap();
        let compile = |lark: &str| grammars.compile(&Form::Grammar(lark.into()));
        assert!(compile("start: <|call|> \"a\"").is_ok());
        assert!(compile("start: <[998-999]> \"a\"").is_ok());
        assert!(compile("start: <|other|> \"a\"").is_err());
    }

    #[test]
    fn a_schema_is_refused_with_the_place() {
        let grammars = Outline { size: 10, ends: vec![7], controls: Vec::new() }.grammars().unwrap();
        let schema = json!({"type": "object", "properties": {"a": {"type": "array", "items": {"type": "florp"}}}});
        let error = grammars.compile(&Form::Schema(schema)).unwrap_err();
        assert!(error.contains("properties.a.items.type is \"florp\"; expected one of array"), "{error}");
        let schema = json!({"properties": {"a": {"type": "integer", "minimum": "x"}}});
        let error = grammars.compile(&Form::Schema(schema)).unwrap_err();
        assert!(error.contains("at properties.a.minimum"), "{error}");
    }

    #[test]
    fn alternatives_that_may_both_fit_are_refused_in_our_words() {
        let grammars = Outline { size: 10, ends: vec![7], controls: Vec::new() }.grammars().unwrap();
        let schema =
            json!({"type": "object", "properties": {"a": {"oneOf": [{"type": "number"}, {"type": "integer"}]}}});
        let error = grammars.compile(&Form::Schema(schema)).unwrap_err();
        assert!(error.starts_with("the alternatives of 'oneOf' have to exclude each other"), "{error}");
        assert!(error.ends_with(", at properties.a.oneOf"), "{error}");
        let kind =
            |name: &str| json!({"type": "object", "properties": {"kind": {"const": name}}, "required": ["kind"]});
        let form = Form::Schema(json!({"oneOf": [kind("cat"), kind("dog"), {"type": "null"}]}));
        assert!(admits(&form, r#"{"kind":"dog"}"#) && !admits(&form, r#"{"kind":"cow"}"#));
    }

    /// Is a text, as a whole, of this form?
    fn admits(form: &Form, text: &str) -> bool {
        let grammars = Outline { size: 10, ends: vec![7], controls: Vec::new() }.grammars().unwrap();
        let mut guide = grammars.compile(form).unwrap();
        let goes_on = text
            .bytes()
            .map(|byte| 10 + u32::from(byte))
            .all(|token| guide.mask().unwrap().allows(token) && guide.accept(token).is_ok());
        goes_on && guide.mask().unwrap().allows(7)
    }

    #[test]
    fn numbers_are_kept_to_the_digit() {
        let admits = |schema: Value, text| admits(&Form::Schema(schema), text);
        for (number, text) in [(i64::MAX, "9223372036854775807"), (1 << 60, "1152921504606846976"), (-7, "-7")] {
            assert!(admits(json!({"enum": ["a", number]}), text), "{number}");
        }
        let of_64_bits = json!({"type": "integer", "minimum": i64::MIN, "maximum": i64::MAX});
        assert!(admits(of_64_bits.clone(), "-9223372036854774784") && admits(of_64_bits, "9223372036854775807"));
        let grammars = Outline { size: 10, ends: vec![7], controls: Vec::new() }.grammars().unwrap();
        let schema = Form::Schema(json!({"properties": {"a": {"const": 1_234_567_890_123_456_789_i64}}}));
        let error = grammars.compile(&schema).unwrap_err();
        assert!(error.starts_with("properties.a.const is 1234567890123456789, which cannot be kept"), "{error}");
        // As a part of a grammar, too.
        let error = grammars.compile(&Form::Grammar(format!("start: {}", expression(&schema)))).unwrap_err();
        assert!(error.contains("properties.a.const is 1234567890123456789"), "{error}");
    }

    #[test]
    fn a_bound_that_is_left_out_is_left_out() {
        for (bounds, out, within) in [
            (json!({"exclusiveMinimum": 0, "maximum": 0.5}), ["0", "0.0", "-0"], "0.5"),
            (json!({"exclusiveMinimum": 0, "exclusiveMaximum": 0.5}), ["0", "0.5", "-0.0"], "0.0000000001"),
            (json!({"minimum": -0.5, "exclusiveMaximum": 0}), ["-0", "0", "-0.0"], "-0.25"),
            (json!({"exclusiveMinimum": 2, "maximum": 2.5}), ["2", "2.0", "2.6"], "2.1"),
            (json!({"allOf": [{"exclusiveMinimum": 0}, {"maximum": 0.5}]}), ["0", "0.0", "0.6"], "0.1"),
            (json!({"exclusiveMinimum": 0}), ["0", "0.0", "-1"], "12.5"),
        ] {
            let form = Form::Schema(json!({"type": "number", "allOf": [bounds]}));
            assert!(admits(&form, within), "{bounds} {within}");
            for text in out {
                assert!(!admits(&form, text), "{bounds} {text}");
            }
        }
    }

    #[test]
    fn references_with_escapes_and_formats_of_others_are_followed() {
        let schema = json!({
            "type": "object",
            "properties": {"a": {"$ref": "#/$defs/x~0y"}, "b": {"type": "string", "format": "path"}},
            "required": ["a", "b"],
            "$defs": {"x~y": {"$ref": "#/$defs/x~0y%20z"}, "x~y z": {"const": 5}},
        });
        assert!(admits(&Form::Schema(schema.clone()), r#"{"a":5,"b":"/tmp"}"#));
        assert!(!admits(&Form::Schema(schema), r#"{"a":6,"b":"/tmp"}"#));
    }

    #[test]
    fn choices_are_of_any_characters() {
        let text = "a\u{7f}\u{80}\n\"\\b";
        assert!(admits(&Form::Choice(vec!["x".into(), text.into()]), text));
    }

    #[test]
    fn an_object_may_have_hundreds_of_properties() {
        let property = |index: usize| (format!("p{index}"), json!({"type": "null"}));
        let properties: serde_json::Map<_, _> = (0..450).map(property).collect();
        let schema = json!({"type": "object", "properties": properties, "additionalProperties": false});
        // The library goes as deep as there are properties.
        let work = move || assert!(admits(&Form::Schema(schema), r#"{"p0":null,"p449":null}"#));
        rayon::ThreadPoolBuilder::new().num_threads(1).stack_size(64 << 20).build().unwrap().install(work);
    }

    #[test]
    fn limits_of_the_library_are_sizes() {
        let told = in_one_line("Current row has 3999 items; max is 2000; consider something\n<non-verbose/>");
        assert!(told.starts_with("it is too large") && told.contains("2000"), "{told}");
        assert_eq!(in_one_line("no such rule\n<non-verbose/>"), "no such rule");
    }

    #[test]
    fn only_what_is_small_and_flat_is_harmless() {
        assert!(Form::Object.is_harmless());
        assert!(Form::Choice(vec!["yes".into(), "no".into()]).is_harmless());
        assert!(!Form::Choice(vec!["x".repeat(FEW)]).is_harmless());
        assert!(!Form::Regex("a".into()).is_harmless());
    }
}
