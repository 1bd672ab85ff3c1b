//! The log as it is written.

use super::*;
use serde_json::Value;
use std::io::Read;

fn options(level: LevelFilter, format: Format) -> Options {
    Options { level, format, otlp_endpoint: None, endpoint_of_cluster: false }
}

/// What `log` writes, line by line.
fn logged(options: &Options, terminal: bool, log: impl FnOnce()) -> Vec<String> {
    let (mut reader, pipe) = std::io::pipe().unwrap();
    let (dispatch, guard) = build(options, &Environment::new(), pipe, terminal).unwrap();
    tracing::dispatcher::with_default(&dispatch, log);
    drop((dispatch, guard));
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    text.lines().map(str::to_owned).collect()
}

const HOSTILE: &str = "a\nFAKE line\r\n\x1b[31mred\u{9b}31m";

fn hostile() {
    tracing::info!(value = HOSTILE, shown = %HOSTILE, "message {HOSTILE}");
}

#[test]
fn one_event_is_one_line_whatever_is_in_it() {
    for (format, terminal) in
        [(Format::Json, false), (Format::Json, true), (Format::Text, false), (Format::Text, true), (Format::Auto, true)]
    {
        let lines = logged(&options(LevelFilter::INFO, format), terminal, hostile);
        assert_eq!(lines.len(), 1, "{lines:?}");
        // JSON has the character as it is where it can do no harm, and escapes the others.
        assert!(
            !lines[0].contains("\x1b[31m") && (format == Format::Json || !lines[0].contains('\u{9b}')),
            "{lines:?}"
        );
        let coloured = lines[0].contains('\x1b');
        assert_eq!(coloured, terminal && format != Format::Json, "{lines:?}");
    }
}

#[test]
fn json_keeps_values() {
    let lines = logged(&options(LevelFilter::INFO, Format::Auto), false, hostile);
    let event: Value = serde_json::from_str(&lines[0]).unwrap();
    assert_eq!((&event["value"], &event["shown"]), (&HOSTILE.into(), &HOSTILE.into()));
    assert_eq!((&event["level"], &event["message"]), (&"INFO".into(), &format!("message {HOSTILE}").into()));
}

#[test]
fn levels() {
    let log = || {
        tracing::error!("error");
        tracing::info!("info");
        tracing::debug!("debug");
        tracing::info!(target: "hyper", "foreign info");
        tracing::warn!(target: "hyper", "foreign warning");
        tracing::info_span!(target: SPANS, "request").in_scope(|| tracing::error!("inside"));
    };
    let count = |level| logged(&options(level, Format::Json), false, log).len();
    assert_eq!(count(LevelFilter::OFF), 0);
    assert_eq!(count(LevelFilter::ERROR), 2);
    assert_eq!(count(LevelFilter::INFO), 4);
    assert_eq!(count(LevelFilter::DEBUG), 5);
    let spanned = |level| logged(&options(level, Format::Json), false, log).iter().any(|line| line.contains("span"));
    assert!(!spanned(LevelFilter::INFO), "spans cost something, and nobody asked for them");
    assert!(spanned(LevelFilter::DEBUG));
}

/// Are traces sent to this endpoint in this environment, and what does the log say of it?
fn traced(endpoint: &str, of_cluster: bool, variables: &[(&str, &str)]) -> Result<(bool, String), String> {
    let options = options(LevelFilter::INFO, Format::Json);
    let options = Options { otlp_endpoint: Some(endpoint.to_owned()), endpoint_of_cluster: of_cluster, ..options };
    let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let (mut reader, pipe) = std::io::pipe().unwrap();
    let (dispatch, guard) = build(&options, &variables, pipe, false)?;
    let sends = guard.exporter.is_some();
    drop((dispatch, guard));
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    Ok((sends, text))
}

#[test]
fn what_is_set_for_a_cluster_stops_nobody() {
    let missing = ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/no/such/file");
    let wrong = traced("https://collector", false, &[missing]).unwrap_err();
    assert!(wrong.contains("OTEL_EXPORTER_OTLP_CERTIFICATE: /no/such/file: "), "{wrong}");
    let (sends, log) = traced("https://collector", true, &[missing]).unwrap();
    assert!(!sends && log.contains("no traces are sent") && log.lines().count() == 1, "{log}");
    let (sends, log) = traced("http://collector:1", true, &[missing]).unwrap();
    assert!(sends && log.is_empty(), "{log}");
    let (sends, log) = traced("http://collector:1", false, &[("OTEL_TRACES_SAMPLER", "often")]).unwrap();
    assert!(sends && log.contains("OTEL_TRACES_SAMPLER: `often` is not one of"), "{log}");
}

#[test]
fn traces_can_be_switched_off() {
    for off in [("OTEL_SDK_DISABLED", "true"), ("OTEL_TRACES_EXPORTER", "none")] {
        let (sends, log) = traced("http://collector:1", true, &[off]).unwrap();
        assert!(!sends && log.is_empty(), "{log}");
        let (sends, log) = traced("http://collector:1", false, &[off]).unwrap();
        assert!(!sends && log.contains(off.0) && log.lines().count() == 1, "{log}");
    }
}
