//! JSON schemas for a compiler that does not read all of them as they are meant: what it would not keep to is said so
//! that it does, or refused. And where in a schema a keyword stands that the compiler complains about: errors of the
//! library name the keyword alone.

use serde_json::{Map, Number, Value};

/// What `type` may say.
const TYPES: [&str; 7] = ["array", "boolean", "integer", "null", "number", "object", "string"];
/// Keywords whose value is a schema, or, of `items` in older drafts, a list of them.
const ONE: [&str; 12] = [
    "additionalItems",
    "additionalProperties",
    "contains",
    "contentSchema",
    "else",
    "if",
    "items",
    "not",
    "propertyNames",
    "then",
    "unevaluatedItems",
    "unevaluatedProperties",
];
/// Those whose value is a list of schemas.
const LISTS: [&str; 4] = ["allOf", "anyOf", "oneOf", "prefixItems"];
/// Those whose value has a schema under each name.
const NAMED: [&str; 5] = ["$defs", "definitions", "dependentSchemas", "patternProperties", "properties"];

/// Keywords whose value is no schema, and is not searched for one.
const ASIDE: [&str; 5] = ["const", "default", "enum", "example", "examples"];
/// Formats that the compiler holds texts to. All others say what a text is for: it would refuse them.
const FORMATS: [&str; 11] =
    ["date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "unknown", "uri", "uuid"];
/// A bound, and the one that leaves itself out.
const LOWER: [&str; 2] = ["minimum", "exclusiveMinimum"];
const UPPER: [&str; 2] = ["maximum", "exclusiveMaximum"];
/// The compiler reads all numbers as `f64`: whole ones are kept to the digit up to here, and from here on by chance.
const EXACT: f64 = (1_u64 << 53) as f64;
/// It writes whole numbers of 64 bits.
const WIDEST: f64 = (1_u64 << 63) as f64;
/// The least whole number that a range may begin with: of the one before it the compiler takes the negative.
const LEAST: i64 = i64::MIN + 1024;
/// What a number is at least that is to be more than 0: its patterns have room for few more digits.
const TINY: f64 = 1e-60;

/// The schema that has the compiler keep to this one.
///
/// # Errors
/// Something of it cannot be kept to: says where it stands, and what would be right.
pub(super) fn prepared(schema: &Value) -> Result<Value, String> {
    let mut prepared = schema.clone();
    mend(&mut prepared, schema).map_err(Fault::told)?;
    Ok(prepared)
}

/// What cannot be kept to, and the way there from the inside out: it is put together for those alone that have one.
struct Fault {
    way: Vec<String>,
    what: String,
}

impl Fault {
    fn new(what: String) -> Self {
        Fault { way: Vec::new(), what }
    }

    fn inside(mut self, step: impl Into<String>) -> Self {
        self.way.push(step.into());
        self
    }

    fn told(self) -> String {
        let mut path = String::new();
        for step in self.way.iter().rev() {
            if !path.is_empty() && !step.starts_with('[') {
                path.push('.');
            }
            path.push_str(step);
        }
        format!("{path} {}", self.what)
    }
}

/// Mends a schema of `root`, and those inside it. What references lead to may stand under any keyword.
fn mend(schema: &mut Value, root: &Value) -> Result<(), Fault> {
    let Value::Object(fields) = schema else { return Ok(()) };
    fields.retain(|keyword, value| keyword != "format" || value.as_str().is_none_or(|name| FORMATS.contains(&name)));
    mend_bounds(fields);
    for (keyword, value) in fields.iter_mut() {
        mend_keyword(keyword, value, root).map_err(|fault| fault.inside(keyword.as_str()))?;
    }
    Ok(())
}

fn mend_keyword(keyword: &str, value: &mut Value, root: &Value) -> Result<(), Fault> {
    match value {
        value if keyword == "const" || keyword == "enum" => kept(value),
        _ if ASIDE.contains(&keyword) || keyword.starts_with("x-") => Ok(()),
        Value::Number(number) => bounded(keyword, number),
        Value::String(reference) if keyword == "$ref" => {
            if let Some(plain) = without_escapes(reference, root)? {
                *reference = plain;
            }
            Ok(())
        }
        Value::Object(named) if NAMED.contains(&keyword) => {
            for (name, inner) in named.iter_mut() {
                mend(inner, root).map_err(|fault| fault.inside(name.as_str()))?;
            }
            Ok(())
        }
        Value::Array(list) => {
            for (index, inner) in list.iter_mut().enumerate() {
                mend(inner, root).map_err(|fault| fault.inside(format!("[{index}]")))?;
            }
            Ok(())
        }
        value => mend(value, root),
    }
}

/// Are the numbers of a value that is stated written as they are?
fn kept(value: &Value) -> Result<(), Fault> {
    match value {
        Value::Number(number) if !is_kept(number) => {
            let what = "which cannot be kept to the digit; whole numbers can up to 9007199254740992, strings always";
            Err(Fault::new(format!("is {number}, {what}")))
        }
        Value::Array(items) => {
            let mut items = items.iter().enumerate();
            items.try_for_each(|(index, item)| kept(item).map_err(|fault| fault.inside(format!("[{index}]"))))
        }
        Value::Object(fields) => {
            fields.iter().try_for_each(|(name, value)| kept(value).map_err(|fault| fault.inside(name.as_str())))
        }
        _ => Ok(()),
    }
}

/// Has the number the same digits as an `f64`, and as the whole number that becomes of that?
fn is_kept(number: &Number) -> bool {
    match number.as_i64() {
        Some(whole) => whole != i64::MIN && whole as f64 as i64 == whole,
        None => number.as_f64().is_some_and(|number| number.abs() < WIDEST),
    }
}

/// Is a bound kept to the digit?
fn bounded(keyword: &str, number: &Number) -> Result<(), Fault> {
    let value = number.as_f64().unwrap_or(f64::INFINITY);
    let exclusive = keyword == LOWER[1] || keyword == UPPER[1];
    // Nothing is written that is farther out than whole numbers of 64 bits are.
    let is_idle = if UPPER.contains(&keyword) { value >= WIDEST } else { value <= -WIDEST };
    let is_bound = LOWER.contains(&keyword) || UPPER.contains(&keyword);
    let is_right = match keyword {
        "multipleOf" => value.abs() < EXACT,
        _ if is_bound => value.abs() < EXACT || is_idle || (!exclusive && is_kept(number)),
        _ => true,
    };
    if is_right {
        return Ok(());
    }
    let what = "which cannot be kept to the digit; leave it out, or take a number below 9007199254740992 (2^53)";
    Err(Fault::new(format!("is {number}, {what}")))
}

/// Bounds that the compiler reads otherwise. Where a range begins at a whole number, which it leaves out, and has no
/// other one in it, that one would be let in: the next number is said instead, whatever ends the range here, since a nearer
/// end may come from elsewhere.
fn mend_bounds(fields: &mut Map<String, Value>) {
    if is_of_integers(fields) {
        let is_idle = |value: &Value| value.as_f64().is_some_and(|bound| bound <= -WIDEST);
        if fields.get(LOWER[1]).is_some_and(is_idle) {
            fields.shift_remove(LOWER[1]);
            fields.entry(LOWER[0]).or_insert(LEAST.into());
        }
        if fields.get(LOWER[0]).is_some_and(is_idle) {
            fields.insert(LOWER[0].to_owned(), LEAST.into());
        }
        return;
    }
    for (near, far, sign) in [(LOWER, UPPER, 1.0), (UPPER, LOWER, -1.0)] {
        let number = |name: &str| Some(fields.get(name)?.as_f64()? * sign);
        let [inclusive, exclusive] = near;
        // Draft 4 has the number in the one, and in the other whether it is left out.
        let is_flag = fields.get(exclusive) == Some(&Value::Bool(true));
        let bound = number(if is_flag { inclusive } else { exclusive });
        let Some(bound) = bound.filter(|bound| bound.fract() == 0.0 && (0.0..EXACT).contains(bound)) else { continue };
        let far = far.into_iter().filter_map(&number).reduce(f64::min);
        if far.is_some_and(|far| far <= bound) {
            continue;
        }
        let next = if bound == 0.0 { TINY } else { bound.next_up() };
        let least = number(inclusive).map_or(next, |stated| stated.max(next)) * sign;
        fields.shift_remove(exclusive);
        fields.insert(inclusive.to_owned(), least.into());
    }
}

/// Are all numbers whole that the schema allows?
fn is_of_integers(fields: &Map<String, Value>) -> bool {
    match fields.get("type") {
        Some(Value::Array(kinds)) => {
            let has = |name: &str| kinds.iter().any(|kind| kind == name);
            has("integer") && !has("number")
        }
        kind => kind.is_some_and(|kind| kind == "integer"),
    }
}

/// A reference for a compiler that knows no escapes; `None` where it stays as it is.
fn without_escapes(reference: &str, root: &Value) -> Result<Option<String>, Fault> {
    let Some(pointer) = reference.strip_prefix("#/").filter(|pointer| pointer.contains(['~', '%'])) else {
        return Ok(None);
    };
    let meant: Vec<String> = pointer.split('/').map(unescaped).collect();
    if !leads_somewhere(root, &meant) {
        // Some tools write names without escapes, whatever is in them; and of what is nowhere the compiler tells.
        return Ok(None);
    }
    // To the compiler every slash ends a name.
    if meant.iter().any(|name| name.contains('/')) {
        let what = "a name that has a slash in it, which cannot be referred to; call it otherwise";
        return Err(Fault::new(format!("is \"{reference}\", {what}")));
    }
    Ok(Some(format!("#/{}", meant.join("/"))))
}

/// A name of a reference: percent signs are those of URLs, tildes those of JSON Pointer.
fn unescaped(name: &str) -> String {
    let mut bytes = Vec::with_capacity(name.len());
    let mut rest = name.as_bytes();
    while let Some((first, more)) = rest.split_first() {
        let digits = more.get(..2).filter(|_| *first == b'%').and_then(|digits| std::str::from_utf8(digits).ok());
        let byte = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        bytes.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { &more[2..] } else { more };
    }
    String::from_utf8_lossy(&bytes).replace("~1", "/").replace("~0", "~")
}

fn leads_somewhere(root: &Value, names: &[String]) -> bool {
    let end = names.iter().try_fold(root, |place, name| match place {
        Value::Array(list) => list.get(name.parse::<usize>().ok()?),
        place => place.get(name.as_str()),
    });
    end.is_some()
}

/// An error of the compiler, with the place in the schema that it is about, where that can be told.
pub(super) fn located(schema: &Value, error: String) -> String {
    if error.contains("type")
        && let Some(found) = first(schema, &|value| value.get("type").filter(|kind| !is_type(kind)).cloned())
    {
        let (path, kind) = (join(&found.path, "type"), shortened(&found.value));
        return format!("{path} is {kind}; expected one of {}, or a list of these", TYPES.join(", "));
    }
    for name in names(&error) {
        let all = places(schema, name);
        if let [path] = &all[..] {
            return format!("{error}, at {}", join(path, name));
        }
    }
    error
}

fn is_type(kind: &Value) -> bool {
    let known = |kind: &Value| kind.as_str().is_some_and(|kind| TYPES.contains(&kind));
    known(kind) || kind.as_array().is_some_and(|kinds| kinds.iter().all(known))
}

/// The keywords that an error names: in quotes, or as what must be something else.
fn names(error: &str) -> Vec<&str> {
    let quoted = error.split(['"', '\'']).skip(1).step_by(2);
    let first = error.split_once(" must be ").map(|(name, _)| name);
    quoted.chain(first).filter(|name| !name.is_empty()).collect()
}

/// Something found in a schema.
struct Found {
    path: String,
    value: Value,
}

/// The first schema inside this one, or itself, in which there is what is looked for.
fn first(schema: &Value, look: &dyn Fn(&Value) -> Option<Value>) -> Option<Found> {
    let mut found = None;
    walk(schema, "", &mut |path, schema| {
        if found.is_none() {
            found = look(schema).map(|value| Found { path: path.to_owned(), value });
        }
    });
    found
}

/// Every schema inside this one, or itself, that has this keyword.
fn places(schema: &Value, keyword: &str) -> Vec<String> {
    let mut found = Vec::new();
    walk(schema, "", &mut |path, schema| {
        if schema.get(keyword).is_some() {
            found.push(path.to_owned());
        }
    });
    found
}

/// Visits a schema and those inside it. Requests are nested no deeper than their readers allow.
fn walk(schema: &Value, path: &str, visit: &mut dyn FnMut(&str, &Value)) {
    let Value::Object(fields) = schema else { return };
    visit(path, schema);
    for (keyword, value) in fields {
        let path = join(path, keyword);
        match value {
            Value::Array(list) if LISTS.contains(&keyword.as_str()) || keyword == "items" => {
                for (index, inner) in list.iter().enumerate() {
                    walk(inner, &format!("{path}[{index}]"), visit);
                }
            }
            Value::Object(named) if NAMED.contains(&keyword.as_str()) => {
                for (name, inner) in named {
                    walk(inner, &join(&path, name), visit);
                }
            }
            Value::Object(_) if ONE.contains(&keyword.as_str()) => walk(value, &path, visit),
            _ => {}
        }
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// The beginning of a value as JSON.
fn shortened(value: &Value) -> String {
    const MOST: usize = 64;
    let text = value.to_string();
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn place(schema: &Value, error: &str) -> String {
        located(schema, error.to_owned())
    }

    #[test]
    fn a_type_that_is_none_is_found() {
        let inner = |kind: Value| json!({"type": "object", "properties": {"a": {"items": {"type": kind}}}});
        let error = place(&inner(json!("florp")), "Invalid type: florp");
        assert!(error.starts_with("properties.a.items.type is \"florp\"; expected one of array, boolean"), "{error}");
        let error = place(&inner(json!(["string", 5])), "type must be a string or array of strings");
        assert!(error.starts_with("properties.a.items.type is [\"string\",5]; expected"), "{error}");
        let error = place(&json!({"anyOf": [{"type": "null"}, {"type": "x".repeat(100)}]}), "Invalid type");
        assert!(error.starts_with("anyOf[1].type is \"xxx") && error.contains("...; expected"), "{error}");
    }

    #[test]
    fn what_is_called_like_a_keyword_is_none() {
        let schema =
            json!({"properties": {"type": {"type": "string"}}, "enum": [{"type": "florp"}], "default": {"type": 1}});
        assert_eq!(place(&schema, "Invalid type: x"), "Invalid type: x");
    }

    #[test]
    fn numbers_that_the_compiler_would_change_are_refused_with_their_place() {
        let refused = |schema: Value, place: &str| {
            let told = prepared(&schema).unwrap_err();
            assert!(told.starts_with(place) && told.contains("cannot be kept to the digit"), "{told}");
        };
        let inside = |schema: Value| json!({"type": "object", "properties": {"a": {"items": schema}}});
        refused(
            inside(json!({"const": 1_234_567_890_123_456_789_i64})),
            "properties.a.items.const is 1234567890123456789",
        );
        refused(
            inside(json!({"enum": [1, [{"b": u64::MAX}]]})),
            "properties.a.items.enum[1][0].b is 184467440737095516",
        );
        refused(json!({"const": 123_456_789_012_345_678_901.0}), "const is ");
        refused(json!({"const": i64::MIN}), "const is -9223372036854775808,");
        for keyword in ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"] {
            let place = format!("properties.a.items.{keyword} is 9007199254740993");
            refused(inside(json!({keyword: 9_007_199_254_740_993_i64})), &place);
        }
        refused(json!({"type": "integer", "exclusiveMinimum": 9_007_199_254_740_992_i64}), "exclusiveMinimum is ");
        refused(json!({"type": "integer", "minimum": 1e30}), "minimum is ");
        refused(json!({"$ref": "#/far/a", "far": {"a": {"const": u64::MAX}}}), "far.a.const is ");
    }

    #[test]
    fn numbers_that_the_compiler_keeps_stay() {
        let same = |schema: Value| assert_eq!(prepared(&schema).unwrap(), schema);
        same(json!({"const": [0.1, 9_007_199_254_740_992_i64, -5, 1_u64 << 60, i64::MAX], "default": u64::MAX}));
        same(json!({"type": "integer", "minimum": -9_007_199_254_740_991_i64, "maximum": 9_007_199_254_740_991_i64}));
        same(json!({"type": "integer", "minimum": 0, "exclusiveMaximum": 18_446_744_073_709_551_616.0}));
        same(json!({"properties": {"const": {"type": "string"}, "minimum": {"enum": ["a"]}}, "x-id": u64::MAX}));
        let of_64_bits = prepared(&json!({"type": "integer", "minimum": i64::MIN, "maximum": i64::MAX})).unwrap();
        assert_eq!(of_64_bits, json!({"type": "integer", "minimum": LEAST, "maximum": i64::MAX}));
    }

    #[test]
    fn the_whole_number_that_a_range_leaves_out_is_left_out() {
        let number = |more: Value| {
            let mut schema = json!({"type": "number"});
            schema.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            prepared(&schema).unwrap()
        };
        let mended = |from: Value, to: Value| assert_eq!(number(from), number(to));
        mended(json!({"exclusiveMinimum": 0, "maximum": 0.5}), json!({"maximum": 0.5, "minimum": TINY}));
        let of_draft_4 = json!({"minimum": 1, "exclusiveMinimum": true, "maximum": 1.5});
        mended(of_draft_4, json!({"minimum": 1.0_f64.next_up(), "maximum": 1.5}));
        mended(json!({"minimum": -0.5, "exclusiveMaximum": 0}), json!({"minimum": -0.5, "maximum": -TINY}));
        mended(json!({"exclusiveMinimum": 3}), json!({"minimum": 3.0_f64.next_up()}));
        mended(json!({"exclusiveMinimum": 0, "maximum": 1}), json!({"maximum": 1, "minimum": TINY}));
        for as_it_was in [
            json!({"exclusiveMinimum": 0.25, "exclusiveMaximum": 0.5}),
            json!({"exclusiveMinimum": -1, "maximum": -0.5}),
            json!({"exclusiveMinimum": 0, "maximum": 0}),
            json!({"type": "integer", "exclusiveMinimum": 0}),
        ] {
            assert_eq!(number(as_it_was.clone())["exclusiveMinimum"], as_it_was["exclusiveMinimum"]);
        }
    }

    #[test]
    fn formats_that_bind_nobody_are_left_out() {
        let schema = json!({"properties": {"format": {"type": "string", "format": "path"}, "b": {"format": "uuid"}}});
        let bare = json!({"properties": {"format": {"type": "string"}, "b": {"format": "uuid"}}});
        assert_eq!(prepared(&schema).unwrap(), bare);
    }

    #[test]
    fn references_lose_their_escapes() {
        let defs = json!({"a/b": {}, "a~b": {}, "a~0b": {}, "a b": {}, "ä": {}, "c%20d": {}});
        for (written, plain) in [
            ("#/$defs/a~0b", "#/$defs/a~b"),
            ("#/$defs/a%20b", "#/$defs/a b"),
            ("#/%24defs/%C3%A4", "#/$defs/ä"),
            ("#/$defs/c%20d", "#/$defs/c%20d"),
            ("#/$defs/no%20where", "#/$defs/no%20where"),
        ] {
            let schema = prepared(&json!({"$ref": written, "$defs": defs})).unwrap();
            assert_eq!((&schema["$ref"], &schema["$defs"]), (&json!(plain), &defs));
        }
        for slash in ["~1", "%2F"] {
            let reference = format!("#/$defs/a{slash}b");
            let told = prepared(&json!({"items": {"$ref": reference}, "$defs": defs})).unwrap_err();
            assert!(told.starts_with(&format!("items.$ref is \"{reference}\", a name that has a slash")), "{told}");
        }
    }

    #[test]
    fn a_keyword_is_found_where_it_stands_once() {
        let schema = json!({"properties": {"a": {"minimum": "x"}, "b": {"not": {}}, "c": {"enum": 1}}, "enum": []});
        assert_eq!(
            place(&schema, "Expected f64 for 'minimum', got x"),
            "Expected f64 for 'minimum', got x, at properties.a.minimum"
        );
        assert_eq!(
            place(&schema, "Unimplemented keys: [\"not\"]"),
            "Unimplemented keys: [\"not\"], at properties.b.not"
        );
        assert_eq!(place(&schema, "enum must be an array"), "enum must be an array");
        assert_eq!(place(&schema, "too large"), "too large");
    }
}
