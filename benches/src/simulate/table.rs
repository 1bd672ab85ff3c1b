//! The report as Markdown: a table for each case, a line for each setting.

use super::sweep::{Case, Objective};
use super::tally::Row;

/// What a case is, and the head of its table.
pub(crate) fn head(case: &Case, requests: u64, load: f64) -> String {
    let Case { workload, device, rate, objective, streams, .. } = case;
    let Objective { first, between } = objective;
    let names: Vec<&str> = streams.iter().map(|stream| stream.name).collect();
    let slowdown = format!("slowdown: {}", names.join(" / "));
    let columns = [
        "setting",
        "asked/s",
        "good/s",
        "good",
        "tokens/s",
        "first token, ms: p50",
        "p95",
        "p99",
        "next token, ms: p50",
        "p99",
        "refused",
        "left",
        "late",
        "preempted",
        "cache hits",
        "Jain",
        "worst",
        slowdown.as_str(),
        "batch",
        "busy",
    ];
    let rule = columns.map(|column| if column == "setting" { "---" } else { "---:" });
    format!(
        "### {workload} on {device}\n\n{requests} requests for each setting, about {rate} a second; good: the first \
         token after {first} s at most, the others {between} s after each other at most on average.\n\n{}\n{}",
        line(&columns),
        line(&rule),
        device = device.name,
        rate = number(rate * load),
    )
}

/// A setting's line.
pub(crate) fn row(row: &Row) -> String {
    let percent = |share: f64| format!("{:.1}%", share * 100.0);
    let some = |value: Option<f64>| value.map_or_else(|| "-".into(), number);
    let slowdowns: Vec<String> = row.slowdowns.iter().copied().map(some).collect();
    let [first_p50, first_p95, first_p99] = row.first_ms.map(number);
    let [between_p50, between_p99] = row.between_ms.map(number);
    line(&[
        row.setting.clone(),
        number(row.asked_per_second),
        number(row.good_per_second),
        percent(row.good_share),
        number(row.tokens_per_second),
        first_p50,
        first_p95,
        first_p99,
        between_p50,
        between_p99,
        row.refused.to_string(),
        row.left.to_string(),
        row.late.to_string(),
        row.preemptions.to_string(),
        percent(row.cached_share),
        row.jain.map_or_else(|| "-".into(), |jain| format!("{jain:.3}")),
        some(row.worst),
        slowdowns.join(" / "),
        number(row.batch),
        percent(row.busy_share),
    ])
}

fn line<T: AsRef<str>>(cells: &[T]) -> String {
    let cells: Vec<&str> = cells.iter().map(AsRef::as_ref).collect();
    format!("| {} |", cells.join(" | "))
}

/// Three digits or more.
fn number(value: f64) -> String {
    match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}
