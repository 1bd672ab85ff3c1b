//! Stop strings, and what chat templates do besides rendering: choice, settings, continuation, errors, fuel.

use backends::llm::text::{Chat, ChatTemplates, MAX_STOP_BYTES, StopScanner, StopStrings, TokenizerConfig};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::path::Path;
use std::sync::LazyLock;

/// All text that may be sent, and the stop string.
fn scan(strings: &[&str], include: bool, pieces: &[&str]) -> (String, Option<usize>) {
    let mut scanner = StopScanner::new(StopStrings::new(strings).unwrap(), include);
    let (mut sent, mut stopped) = (String::new(), None);
    for piece in pieces {
        let scan = scanner.push(piece);
        sent.push_str(scan.text);
        stopped = stopped.or(scan.stopped);
        assert!(scanner.held() < strings.iter().map(|s| s.len()).max().unwrap_or(1));
    }
    sent.push_str(scanner.finish());
    (sent, stopped)
}

#[test]
fn stops_across_pieces() {
    assert_eq!(scan(&["END", "\n\n"], false, &["a\n", "b", "E", "N", "Dc"]), ("a\nb".into(), Some(0)));
    assert_eq!(scan(&["END", "\n\n"], true, &["a\n", "\nb"]), ("a\n\n".into(), Some(1)));
    assert_eq!(scan(&["END"], false, &["E", "NE", "N"]), ("ENEN".into(), None));
    assert_eq!(scan(&["aab"], false, &["aaaab"]), ("aa".into(), Some(0)));
    assert_eq!(scan(&["she", "he"], false, &["us", "hers"]), ("u".into(), Some(0)));
    assert_eq!(scan(&["hers", "he"], false, &["ushers"]), ("us".into(), Some(1)));
    assert_eq!(scan(&["x", "x"], false, &["x"]), ("".into(), Some(0)));
    assert_eq!(scan(&["停"], false, &["请停下"]), ("请".into(), Some(0)));
    assert_eq!(scan(&[], false, &["any", "thing"]), ("anything".into(), None));
}

#[test]
fn only_beginnings_are_held_back() {
    let mut scanner = StopScanner::new(StopStrings::new(&["</tool>"]).unwrap(), false);
    for (piece, sent, held) in [("a <b", "a <b", 0), (" </to", " ", 4), ("ast>", "</toast>", 0)] {
        assert_eq!(scanner.push(piece).text, sent);
        assert_eq!(scanner.held(), held);
    }
    assert_eq!(scanner.push("</").text, "");
    assert_eq!(scanner.pass("tool>"), "</tool>");
    assert_eq!(scanner.push("x</tool>y").stopped, Some(0));
    assert_eq!(scanner.push("z").text, "");
    assert_eq!(scanner.pass("z"), "");
    assert_eq!(scanner.finish(), "");
}

#[test]
fn stop_string_limits() {
    let error = |strings: &[String]| StopStrings::new(strings).unwrap_err().to_string();
    let long = "x".repeat(MAX_STOP_BYTES + 1);
    assert_eq!(error(&vec!["x".into(); 17]), "stop: 17 strings; at most 16 are allowed");
    assert_eq!(error(&["a".into(), "".into()]), "stop[1]: 0 bytes; 1 to 256 are allowed");
    assert_eq!(error(std::slice::from_ref(&long)), "stop[0]: 257 bytes; 1 to 256 are allowed");
    let largest: Vec<String> = (0..16).map(|i| format!("{i:x}{}", &long[2..])).collect();
    assert!(StopStrings::new(&largest).is_ok() && !StopStrings::new(&largest).unwrap().is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// However the text is cut: the stop string that ends first, and of those the longest.
    #[test]
    fn any_cut_is_the_same(
        strings in prop::collection::vec("[abé]{1,4}", 0..5), pieces in prop::collection::vec("[abcé]{0,5}", 0..12), include: bool,
    ) {
        let text = pieces.concat();
        let strings: Vec<&str> = strings.iter().map(String::as_str).collect();
        let ends = |end: &usize| strings.iter().any(|s| text.as_bytes()[..*end].ends_with(s.as_bytes()));
        let expected = match (0..=text.len()).find(ends) {
            None => (text.clone(), None),
            Some(end) => {
                let found = strings.iter().filter(|s| text.as_bytes()[..end].ends_with(s.as_bytes())).max_by_key(|s| s.len()).unwrap();
                let index = strings.iter().position(|s| s == found);
                (text[..if include { end } else { end - found.len() }].to_owned(), index)
            }
        };
        let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
        prop_assert_eq!(scan(&strings, include, &pieces), expected);
    }
}

fn compile(templates: &[(&str, &str)]) -> Result<ChatTemplates, String> {
    let templates: Vec<_> = templates.iter().map(|(n, s)| ((*n).to_owned(), (*s).to_owned())).collect();
    ChatTemplates::compile(&templates, &[("bos_token".into(), "<s>".into())], 1000)
}

fn render<'a>(source: &str, change: impl FnOnce(&mut Chat<'a>)) -> Result<String, String> {
    static MESSAGES: LazyLock<[Value; 2]> =
        LazyLock::new(|| [json!({"role": "user", "content": "hi"}), json!({"role": "assistant", "content": "well "})]);
    let mut chat = Chat::new(&*MESSAGES);
    change(&mut chat);
    compile(&[("default", source)])?.render(&chat).map_err(|e| e.to_string())
}

#[test]
fn templates_are_chosen_by_name() {
    let templates = compile(&[("default", "D"), ("tool_use", "T"), ("rag", "R")]).unwrap();
    let tools = [json!({})];
    let of = |tools, template| templates.render(&Chat { tools, template, ..Chat::new(&[]) }).map_err(|e| e.to_string());
    assert_eq!(of(None, None).unwrap(), "D");
    assert_eq!(of(Some(&tools[..]), None).unwrap(), "T");
    assert_eq!(of(Some(&tools[..]), Some("rag")).unwrap(), "R");
    assert_eq!(of(None, Some("x")).unwrap_err(), "no chat template is named 'x'; there are: default, tool_use, rag");
    assert_eq!(templates.names(), ["default", "tool_use", "rag"]);
    let only = compile(&[("rag", "R")]).unwrap().render(&Chat::new(&[])).unwrap_err();
    assert_eq!(only.to_string(), "no chat template is named 'default'; there are: rag");
    assert!(ChatTemplates::from_config(&TokenizerConfig::default(), Path::new("a"), 1000).unwrap().is_none());
}

#[test]
fn settings_are_bounded() {
    let with = |settings: Value| {
        render("{{ bos_token }}{{ flag }}", |c| c.settings = Box::leak(Box::new(settings)).as_object())
    };
    assert_eq!(with(json!({"flag": true, "bos_token": "B"})).unwrap(), "BTrue");
    assert_eq!(with(json!({"messages": []})).unwrap_err(), "chat_template_kwargs: 'messages' cannot be set there");
    assert!(with(json!({"__keep": 1})).unwrap_err().contains("cannot be set there"));
    let error = with(json!({"flag": "x".repeat(5000)})).unwrap_err();
    assert_eq!(error, "chat_template_kwargs: 'flag' has 5002 bytes; at most 4096 are allowed");
}

#[test]
fn the_last_message_is_continued() {
    let continued =
        |source: &str| render(source, |c| (c.continue_final_message, c.add_generation_prompt) = (true, false));
    let plain = "{% for m in messages %}[{{ m.role }}] {{ m.content }}</s>{% endfor %}";
    assert_eq!(continued(plain).unwrap(), "[user] hi</s>[assistant] well ");
    assert_eq!(continued(&plain.replace("m.content", "m.content|trim")).unwrap(), "[user] hi</s>[assistant] well");
    assert!(continued("nothing").unwrap_err().contains("leaves out or changes the last message"));
    assert!(render(plain, |c| c.continue_final_message = true).unwrap_err().contains("exclude each other"));
}

#[test]
fn errors_say_where() {
    let error = |source: &str| render(source, |_| ()).unwrap_err();
    assert_eq!(error("a\n{% if %}"), "chat template 'default', line 2: syntax error: unexpected end of block");
    assert_eq!(error("a\n\n{{ (1] }}"), "chat template 'default', line 3: ']' closes nothing");
    assert_eq!(error("\n{{ nope.x }}"), "the chat template fails: undefined value: `nope` is undefined at line 2");
    assert_eq!(error("{% macro m() %}\n{{ raise_exception('only users') }}{% endmacro %}{{ m() }}"), "only users");
    assert_eq!(
        error("\n{{ 'x' * 1001 }}"),
        "the prompt has more than 1000 bytes; one that fits into the model's context has at most 1000"
    );
    assert_eq!(
        error("{% for m in messages %}\r\n{% set x = m.y.z %}{% endfor %}").split(" at ").last(),
        Some("line 2")
    );
    assert_eq!(render("", |c| c.messages = &[Value::Null]).unwrap_err(), "messages[0] is not an object");
}

#[test]
fn fuel_grows_with_the_input() {
    // 200,000 rounds are too many for a short conversation, and allowed to a long one.
    let source = "{% set ns = namespace(n=0) %}{% for i in range(2000) %}{% for j in range(100) %}{% set ns.n = ns.n + 1 %}{% endfor %}{% endfor %}{{ ns.n }}";
    assert!(render(source, |_| ()).unwrap_err().contains("takes too much work"));
    let messages = [json!({"role": "user", "content": "x".repeat(2_000_000)})];
    assert_eq!(render(source, |c| c.messages = &messages).unwrap(), "200000");
}

#[test]
fn reasoning_is_found_under_every_name() {
    let source = "{% for m in messages %}{{ m.thinking }}/{{ m.reasoning_content }}/{{ 'name' in m }} {% endfor %}";
    let messages = ["reasoning", "thinking", "reasoning_content"]
        .map(|name| json!({"role": "assistant", name: "t", "name": null}));
    assert_eq!(render(source, |c| c.messages = &messages).unwrap(), "t/t/False t/t/False t/t/False ");
}

#[test]
fn a_message_may_lack_content() {
    let calls = [json!({"role": "assistant", "content": null}), json!({"role": "assistant"})];
    let rendered = |said: &str| {
        let source = format!("{{% for m in messages %}}{said}{{% endfor %}}");
        render(&source, |c| c.messages = &calls)
    };
    assert_eq!(rendered("{{ m['role'] + ': ' + m['content'] + ';' }}").unwrap(), "assistant: ;assistant: ;");
    // Templates that ask are told.
    for name in ["m['content']", "m.content", "m[\"content\"]"] {
        let asking = format!("{{% if {name} is not none %}}{{{{ 'x' + {name} }}}}{{% else %}}-{{% endif %}}");
        assert_eq!(rendered(&asking).unwrap(), "--", "{name}");
    }
    assert_eq!(rendered("{{ m.reasoning_content is not none }}{{ 'content' in m }} ").unwrap(), "TrueFalse TrueFalse ");
    assert_eq!(rendered("{{ raise_exception('no content') }}").unwrap_err(), "no content");
}

#[test]
fn time_is_an_argument() {
    let at = |seconds: i64| render("{{ strftime_now('%F %T %a %j') }}", |c| c.unix_seconds = seconds).unwrap();
    assert_eq!(at(0), "1970-01-01 00:00:00 Thu 001");
    assert_eq!(at(951_782_400), "2000-02-29 00:00:00 Tue 060");
    assert_eq!(at(1_798_761_599), "2026-12-31 23:59:59 Thu 365");
    assert_eq!(at(-1), "1969-12-31 23:59:59 Wed 365");
    assert_eq!(at(i64::MAX), "9999-12-31 23:59:59 Fri 365");
}
