//! Templates that mean harm: each must end soon, within little memory, on a thread with an ordinary stack.

mod allocator;

use backends::llm::text::{Chat, ChatTemplates, MAX_TEMPLATE_BYTES};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

#[global_allocator]
static ALLOCATOR: allocator::Counting = allocator::Counting;

/// Prompts are at most so long here.
const PROMPT: usize = 1 << 20;

fn compile(source: &str) -> Result<ChatTemplates, String> {
    ChatTemplates::compile(&[("default".to_owned(), source.to_owned())], &[], PROMPT)
}

fn attempt(source: &str, messages: &[Value]) -> Result<String, String> {
    compile(source)?.render(&Chat::new(messages)).map_err(|e| e.to_string())
}

/// A statement a million times over.
fn again(body: &str) -> String {
    let start = "{% set ns = namespace(x=[], s='ab') %}";
    format!(
        "{start}{{% for j in range(1000) %}}{{% for i in range(1000) %}}{body}{{% endfor %}}{{% endfor %}}{{{{ ns.x }}}}"
    )
}

fn nest(open: &str, middle: &str, close: &str, times: usize) -> String {
    [open.repeat(times), middle.to_owned(), close.repeat(times)].concat()
}

/// Loops, and much out of little.
fn of_size() -> Vec<(&'static str, String)> {
    let loops = |n: usize| nest("{% for i in range(99999) %}", "x", "{% endfor %}", n);
    let twice = |op: &str| again(&format!("{{% set ns.s = {op} %}}"));
    let own = |text: &str| text.to_owned();
    vec![
        ("nested loops", loops(5)),
        ("many loops", loops(400)),
        ("silent loops", nest("{% for i in range(99999) %}", "", "{% endfor %}", 4)),
        ("huge range", own("{% for i in range(10 ** 15) %}x{% endfor %}")),
        ("range to list", own("{{ range(99999999)|list }}")),
        (
            "ranges joined",
            own(
                "{% set a = range(90000)|list %}{% set a = a+a+a+a+a+a+a+a %}{% set a = a+a+a+a+a+a+a+a %}{{ a|join }}",
            ),
        ),
        ("string times", own("{{ 'x' * 100000000 }}")),
        ("string times times", own("{{ 'x' * 10000 * 10000 * 10000 }}")),
        ("list times", own("{{ [1] * 100000000 }}")),
        ("list times printed", own("{{ ([[1] * 10000] * 10000) * 10 }}")),
        // minijinja charges nothing for `==`: the product of such numbers is bounded by nothing but patience.
        ("list times compared", own("{{ [[1] * 1000] * 1000 == [[1] * 1000] * 1000 }}{{ [[[1] * 900] * 900] * 900 }}")),
        ("list times dumped", own("{{ ([[1] * 10000] * 10000)|tojson }}")),
        ("text doubled", twice("ns.s ~ ns.s")),
        ("text added", twice("ns.s + ns.s")),
        ("text formatted", twice("'{0}{0}'.format(ns.s)")),
        ("text formatted wide", own("{{ '{:>999999999}'.format(1) }}")),
        ("text formatted many times", own("{% set x = 'a' * 100000 %}{{ ('{0}' * 100000).format(x) }}")),
        ("text formatted by name", own("{% set x = 'a' * 100000 %}{{ ('{a}' * 100000).format(a=[x]) }}")),
        ("text percent wide", own("{{ '%999999999d'|format(1) }}")),
        ("text replaced", twice("ns.s.replace('a', ns.s)")),
        ("text filter replaced", twice("ns.s|replace('b', ns.s)")),
        ("text joined", twice("ns.s.join([ns.s, ns.s, ns.s])")),
        ("text indented", own("{{ ('a\\n' * 100000)|indent(250) }}")),
        ("text indented by itself", twice("(ns.s ~ '\\n')|indent(ns.s)")),
        ("text split", own("{% for i in range(99999) %}{{ ('a ' * 100000).split(' ')|length }}{% endfor %}")),
        ("text escaped", twice("ns.s|escape ~ ns.s|tojson")),
        ("json indented", own("{{ range(50000)|list|tojson(indent='x' * 60000) }}")),
        ("json deep indent", own("{{ ([[[[[[[[[[1]]]]]]]]]] * 90000)|tojson(indent=64) }}")),
    ]
}

/// Values inside each other.
fn of_depth() -> Vec<(&'static str, String)> {
    let own = |text: &str| text.to_owned();
    vec![
        ("deep list", again("{% set ns.x = [ns.x] %}")),
        ("deep list four at once", again("{% set ns.x = [[[[ns.x]]]] %}")),
        ("deep map", again("{% set ns.x = {'a': ns.x} %}")),
        ("deep tuple", again("{% set ns.x = (ns.x,) %}")),
        ("deep dict call", again("{% set ns.x = dict(a=ns.x) %}")),
        ("deep batch", again("{% set ns.x = ns.x|batch(1)|list %}{% set ns.x = [ns.x] %}")),
        ("deep slices", again("{% set ns.x = (ns.x or [1, 2])[0:] %}")),
        ("deep reverse", again("{% set ns.x = (ns.x or [1, 2])|reverse %}")),
        ("deep in a list of slices", again("{% set ns.x = [(ns.x or [1])[0:]] %}")),
        ("deep through names", again("{% set a = [ns.x] %}{% set b = [a] %}{% set ns.x = b %}")),
        ("deep through a loop name", again("{% for y in [[ns.x]] %}{% set ns.x = y %}{% endfor %}")),
        ("deep by several targets", again("{% set ns.x, ns.s = [ns.x], [ns.s] %}")),
        ("deep with hidden equals", again("{%- set  ns . x=[ns.x]-%}")),
        ("deep in a straight line", format!("{{% set x = 1 %}}{}", "{% set x=[x] %}".repeat(30_000))),
        (
            "deep in one with",
            format!(
                "{{% with x0 = 1{} %}}{{% endwith %}}",
                (1..9000).map(|i| format!(", x{i} = [x{}]", i - 1)).collect::<String>()
            ),
        ),
        ("deep in a chain of filters", format!("{{% set y = [1]{} %}}", "|batch(1)|list".repeat(20_000))),
        ("deep in a chain of slices", format!("{{{{ [1]{} }}}}", "[0:]".repeat(50_000))),
        ("deep by recursion", own("{% macro f(x) %}{{ f([[[[[[[[[[x]]]]]]]]]]) }}{% endmacro %}{{ f(1) }}")),
        ("deep by loop recursion", own("{% for x in [1] recursive %}{{ loop([[[[[[[[x]]]]]]]]) }}{% endfor %}")),
        ("shared list", again("{% set ns.x = [ns.x, ns.x] %}")),
        (
            "shared list by recursion",
            own(
                "{% macro f(x, n) %}{% if n %}{{ f([x, x, x, x, x, x, x, x], n - 1) }}{% else %}{{ x == x }}{{ x }}{% endif %}{% endmacro %}{{ f([1], 20) }}",
            ),
        ),
        ("shared list compared", again("{% set ns.x = [ns.x, ns.x] %}{{ 1 if ns.x == [ns.x, ns.x] }}")),
        ("namespace in itself", own("{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}")),
        (
            "namespace in itself in a list",
            own("{% set ns = namespace() %}{% set l = [[ns]] %}{% set ns.x = l %}{{ ns|tojson }}"),
        ),
        (
            "loop in a namespace",
            own("{% set ns = namespace() %}{% for i in [1] %}{% set ns.x = loop %}{{ loop }}{% endfor %}{{ ns }}"),
        ),
        (
            "macro in a namespace",
            own("{% set ns = namespace() %}{% macro m() %}{{ ns.x() }}{% endmacro %}{% set ns.x = m %}{{ ns.x() }}"),
        ),
    ]
}

/// Code inside itself.
fn of_recursion() -> Vec<(&'static str, String)> {
    let own = |text: &str| text.to_owned();
    vec![
        ("macro recursion", own("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}")),
        ("macro recursion two ways", own("{% macro f(n) %}{{ f(n + 1) }}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}")),
        (
            "macro recursion capped",
            own(
                "{% macro f(n) %}{% if n < 24 %}{{ f(n + 1) }}{{ f(n + 1) }}{% else %}x{% endif %}{% endmacro %}{{ f(0) }}",
            ),
        ),
        (
            "mutual recursion",
            own("{% macro f() %}{{ g() }}{% endmacro %}{% macro g() %}{{ f() }}{% endmacro %}{{ f() }}"),
        ),
        ("caller recursion", own("{% macro f() %}{% call f() %}{{ caller() }}{% endcall %}{% endmacro %}{{ f() }}")),
        ("loop recursion", own("{% for x in [[1]] recursive %}{{ loop([x]) }}{% endfor %}")),
        ("nested ifs", nest("{% if true %}", "x", "{% endif %}", 20_000)),
        ("nested parentheses", format!("{{{{ {} }}}}", nest("(", "1", ")", 100_000))),
        ("nested lists", format!("{{{{ {} }}}}", nest("[", "1", "]", 100_000))),
        ("nested nots", format!("{{{{ {}1 }}}}", "not ".repeat(50_000))),
        ("nested minus", format!("{{{{ {}1 }}}}", "-".repeat(50_000))),
        ("nested ternaries", format!("{{{{ {}1 }}}}", "1 if 0 else ".repeat(20_000))),
        ("elif after elif", format!("{{% if 0 %}}{}{{% endif %}}", "{% elif 0 %}".repeat(40_000))),
        ("chained comparisons", format!("{{{{ 1{} }}}}", " == 1".repeat(50_000))),
        ("chained calls", format!("{{{{ x{} }}}}", "()".repeat(50_000))),
        ("chained tests", format!("{{{{ x{} }}}}", " is string".repeat(50_000))),
        ("chained adjacent strings", format!("{{{{ 'x'{} }}}}", " 'x'".repeat(50_000))),
        ("long literal", format!("{{% set x = [{}] %}}{{{{ x|length }}}}", "1,".repeat(100_000))),
        (
            "operators just allowed",
            format!(
                "{{{{ 1{} }}}}{{{{ {}1 }}}}{{{{ {}1 }}}}{{{{ {}1 }}}}",
                " + 1".repeat(390),
                "not ".repeat(390),
                "-".repeat(390),
                "1 if 0 else ".repeat(190)
            ),
        ),
        (
            "chains just allowed",
            format!(
                "{{{{ x{} }}}}{{{{ ''{} }}}}{{{{ x{} }}}}",
                ".a".repeat(390),
                "|upper".repeat(390),
                "[0]".repeat(390)
            ),
        ),
        ("nesting just allowed", format!("{{{{ {} }}}}{{{{ {} }}}}", nest("[", "1", "]", 63), nest("(", "1", ")", 63))),
    ]
}

/// Operators, one after the other, and what is no template.
fn of_chains() -> Vec<(&'static str, String)> {
    let own = |text: &str| text.to_owned();
    vec![
        ("chained attributes", format!("{{{{ x{} }}}}", ".a".repeat(100_000))),
        ("chained filters", format!("{{{{ 'a'{} }}}}", "|upper".repeat(50_000))),
        ("chained sums", format!("{{{{ 1{} }}}}", " + 1".repeat(50_000))),
        ("chained concatenations", format!("{{% set x = 'a' * 9000 %}}{{{{ x{} }}}}", " ~ x".repeat(50_000))),
        ("powers", own("{{ 10 ** 10 ** 10 }}{{ 2 ** 126 * 2 ** 126 }}")),
        ("sorting", own("{% for i in range(9999) %}{{ (range(50000)|list)|sort|first }}{% endfor %}")),
        ("unique", own("{{ ([[1] * 1000] * 50000)|unique|list|length }}{{ range(99999)|map('string')|unique|list }}")),
        ("output", own("{% for i in range(99999) %}{{ 'x' * 100 }}{% endfor %}")),
        ("message repeated", own("{% for i in range(99999) %}{{ messages[0].content }}{% endfor %}")),
        ("too long", " ".repeat(MAX_TEMPLATE_BYTES + 1)),
        ("unclosed string", format!("{{{{ '{}", "\\'".repeat(200_000))),
        ("unclosed tags", "{%".repeat(100_000)),
        ("unclosed expressions", "{{ '".repeat(100_000)),
        ("unclosed comments", "{#".repeat(100_000)),
        ("unclosed raw", "{% raw %}{% ".repeat(40_000)),
        ("include", own("{% include '/etc/passwd' %}")),
        ("import", own("{% from 'x' import y %}")),
    ]
}

#[test]
fn every_bomb_is_bounded() {
    let messages = vec![json!({"role": "user", "content": "hello ".repeat(100)})];
    let bombs = [of_size(), of_depth(), of_recursion(), of_chains()].concat();
    assert!(bombs.len() >= 30);
    let mut worst = (Duration::ZERO, 0);
    let harmless = ["chained adjacent strings", "long literal", "operators just allowed", "nesting just allowed"];
    for (name, source) in bombs {
        let start = Instant::now();
        let (result, memory) = allocator::peak(|| attempt(&source, &messages));
        let elapsed = start.elapsed();
        assert_eq!(result.is_ok(), harmless.contains(&name), "{name}: {result:?}");
        let outcome = result.as_ref().map(|text| format!("{} bytes", text.len()));
        println!("{name:30} {:6} ms {:8} KiB  {outcome:?}", elapsed.as_millis(), memory >> 10);
        worst = (worst.0.max(elapsed), worst.1.max(memory));
    }
    // On a quiet machine, optimised, the worst are 0.5 s and 56 MiB; the bounds here are for unoptimised builds.
    assert!(worst.0 < Duration::from_secs(10) && worst.1 < 128 << 20, "{worst:?}");
}

#[test]
fn nothing_is_left_behind() {
    let messages = [json!({"role": "user", "content": "hi"})];
    let source = "{% set ns = namespace(x=[]) %}{% macro m(a) %}{{ a }}{% endmacro %}{% set f = m %}{% for i in messages %}{% set ns.x = ns.x + [i] %}{{ f(ns.x) }}{% endfor %}";
    let templates = compile(source).unwrap();
    let render = || templates.render(&Chat::new(&messages)).unwrap();
    render();
    let ((), memory) = allocator::peak(|| (0..10_000).for_each(|_| drop(render())));
    assert!(memory < 1 << 20, "{memory} bytes");
}

#[test]
fn deep_messages_are_refused() {
    let deep = |depth: usize| (0..depth).fold(json!(1), |inner, _| json!([inner]));
    let message = |depth| vec![json!({"role": "user", "content": deep(depth)})];
    assert!(attempt("{{ messages }}", &message(120)).is_ok());
    assert_eq!(attempt("{{ messages }}", &message(200)).unwrap_err(), "JSON nested more than 128 deep");
}
