//! Where in a JSON schema a keyword stands that its compiler complains about: errors of the library name the keyword
//! alone. Nothing is compiled or checked here that the compiler has not refused.

use serde_json::Value;

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
