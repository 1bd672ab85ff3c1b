//! Chat templates in the shapes of 31 public model families, and probes of single habits of Jinja, against what
//! `transformers` rendered (`text/make_templates.py`).

use backends::InferError;
use backends::llm::text::{Chat, ChatTemplates};
use serde_json::{Map, Value};
use std::path::Path;

fn golden() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/llm/text/templates.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn compile(template: &Value, tokens: &Value) -> Result<ChatTemplates, String> {
    let templates: Vec<(String, String)> = match template {
        Value::Object(named) => {
            named.iter().map(|(name, source)| (name.clone(), source.as_str().unwrap().to_owned())).collect()
        }
        source => vec![("default".to_owned(), source.as_str().unwrap().to_owned())],
    };
    let tokens = tokens.as_object().unwrap().iter();
    let tokens: Vec<_> = tokens.map(|(name, token)| (name.clone(), token.as_str().unwrap().to_owned())).collect();
    ChatTemplates::compile(&templates, &tokens, 1 << 20)
}

/// What the golden file says about a rendering, and what came out of ours; None where they agree.
fn difference(golden: &Value, ours: Result<String, InferError>) -> Option<String> {
    let (out, raised) = (golden["out"].as_str(), golden["raised"].as_str());
    match (out, raised, ours) {
        (Some(expected), _, Ok(found)) if found == expected => None,
        (None, Some(expected), Err(InferError::Invalid(found))) if found == expected => None,
        (None, None, Err(_)) => None,
        // minijinja iterates over none as over an empty list.
        (None, None, Ok(_)) if golden["error"] == "TypeError: 'NoneType' object is not iterable" => None,
        (_, _, found) => {
            Some(format!("expected {:?}\n   found {found:?}", out.or(raised).or(golden["error"].as_str())))
        }
    }
}

fn report(differences: &[String], of: usize) {
    assert!(differences.is_empty(), "{} of {of} differ:\n{}", differences.len(), differences.join("\n"));
}

#[test]
fn families_render_as_transformers_does() {
    let golden = golden();
    let mut differences = Vec::new();
    let cases = golden["cases"].as_array().unwrap();
    let mut families = Map::new();
    for case in cases {
        let family = case["family"].as_str().unwrap();
        families.insert(family.to_owned(), Value::Null);
        let entry = &golden["templates"][family];
        let templates = compile(&entry["template"], &entry["tokens"]).unwrap_or_else(|e| panic!("{family}: {e}"));
        let name = case["chat"].as_str().unwrap();
        let chat = Chat {
            tools: golden["tools"][name].as_array().map(Vec::as_slice),
            add_generation_prompt: case["generate"].as_bool().unwrap(),
            settings: case["settings"].as_object(),
            unix_seconds: golden["now"].as_i64().unwrap(),
            ..Chat::new(golden["chats"][name].as_array().unwrap())
        };
        if let Some(difference) = difference(case, templates.render(&chat)) {
            differences.push(format!("{family}/{name}: {difference}"));
        }
    }
    assert!(families.len() >= 20);
    report(&differences, cases.len());
}

/// What minijinja cannot do, or does otherwise where no chat template is known to care: `%` between strings, `\U` in
/// literals, `varargs`, `self`, and how the view that `dict.items()` gives is printed.
const OTHERWISE: [&str; 7] = [
    "{{ '%s-%d-%05.2f' % ('a', 3, 2.5) }}",
    "{{ '%s' % 'x' }}",
    "{{ d.items() }}",
    "{{ 'tab\\tnl\\nq\\'q\\\"b\\\\ u\\u00e9 x\\x41 z\\U0001F642' }}",
    "{% macro f(a, b=2, c='(,)') %}{{ a }}{{ b }}{{ c }}{{ varargs }}{{ kwargs }}{% endmacro %}{{ f(1) }}|{{ f(1, c=3) }}|{{ f(b=1, a=0) }}",
    "{{ 'one two'|wordcount }}",
    "{{ self is defined }}",
];

#[test]
fn habits_of_jinja() {
    let golden = golden();
    let mut differences = Vec::new();
    let probes = golden["probes"].as_array().unwrap();
    for probe in probes {
        let source = probe["source"].as_str().unwrap();
        let name = "system_turns";
        let tools = vec![golden["tools"]["tools"][0].clone()];
        let chat = Chat {
            tools: Some(&tools),
            settings: golden["probe_settings"].as_object(),
            unix_seconds: golden["now"].as_i64().unwrap(),
            ..Chat::new(golden["chats"][name].as_array().unwrap())
        };
        let ours = compile(&probe["source"], &serde_json::json!({"bos_token": "<s>"}))
            .map_err(InferError::Invalid)
            .and_then(|templates| templates.render(&chat));
        if let Some(difference) = difference(probe, ours)
            && !OTHERWISE.contains(&source)
        {
            differences.push(format!("{source:?}: {difference}"));
        }
    }
    report(&differences, probes.len());
}

#[test]
fn what_a_template_reads() {
    let plain = "{% for message in messages %}{{ message.documents }}{% endfor %}";
    let tools = "{{ tools }}{% for document in documents %}{{ document }}{% endfor %}";
    let named = [("default", plain), ("tool_use", tools)].map(|(name, source)| (name.to_owned(), source.to_owned()));
    let templates = ChatTemplates::compile(&named, &[], 1 << 20).unwrap();
    let chat = Chat::new(&[]);
    assert!(templates.reads(&chat, "messages"));
    assert!(!templates.reads(&chat, "documents") && !templates.reads(&chat, "tools"));
    let with_tools = Chat { tools: Some(&[]), ..chat };
    assert!(templates.reads(&with_tools, "documents") && !templates.reads(&with_tools, "messages"));
    // Which template is meant is said when it is to be rendered.
    assert!(templates.reads(&Chat { template: Some("other"), ..chat }, "anything"));
}
