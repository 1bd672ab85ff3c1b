//! What metrics tell of models that come and go.

use super::*;
use backends::llm::scheduler::Counters;
use metrics::with_local_recorder;

/// What the lines add up to that begin so and have this label.
pub(super) fn told(start: &str, label: &str) -> f64 {
    let text = series::text(help);
    let lines = text.lines().filter(|line| line.starts_with(start) && line.contains(label));
    lines.map(|line| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap()).sum()
}

#[test]
fn a_model_that_is_loaded_again_counts_on_and_one_that_is_gone_leaves_nothing() {
    const MODEL: &str = "loaded again";
    let answered = || told("nv_inference_request_success{", &format!("\"{MODEL}\",version=\"1\""));
    let lines = || series::text(help).lines().filter(|line| line.contains(MODEL)).count();
    let old = ModelMetrics::register(MODEL, 1, "cpu");
    old.answered(1, Duration::from_millis(1), &Timing::default());
    let new = ModelMetrics::register(MODEL, 1, "cpu");
    drop(old);
    new.answered(1, Duration::from_millis(1), &Timing::default());
    assert_eq!(answered(), 2.0);
    let process = ProcessMetrics::register(MODEL);
    let ends = format!("tensorgate_model_process_ends_total{{model=\"{MODEL}\"}}");
    assert!(series::text(help).contains(&format!("{ends} 0\n")));
    process.ended();
    assert!(series::text(help).contains(&format!("{ends} 1\n")));
    let before = lines();
    let next = ModelMetrics::register(MODEL, 2, "cpu");
    assert!(lines() > before);
    drop(new);
    assert_eq!(lines(), before, "as many for the second version as there were for the first");
    assert_eq!(told("request_predict_seconds_count{", MODEL), 2.0, "versions share histograms");
    drop(process);
    next.clone().retire();
    drop(next);
    assert_eq!(lines(), 0);
}

#[test]
fn every_metric_of_models_says_what_it_tells() {
    let _model = (ModelMetrics::register("explained", 1, "cpu"), ProcessMetrics::register("explained"));
    let _engine = (EngineMetrics::register("explained", Counters::default), AnswerMetrics::register("explained"));
    engine::refresh();
    for line in series::text(help).lines().filter_map(|line| line.strip_prefix("# HELP ")) {
        let (metric, what) = line.split_once(' ').unwrap();
        let own = ["request", "nv", "tensorgate", "vllm"].iter().any(|prefix| metric.starts_with(prefix));
        assert!(!own || !what.is_empty(), "{metric}");
    }
}

#[test]
fn fractions_of_cpu_seconds_are_a_counter() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let text = with_local_recorder(&recorder, || render(&recorder.handle()));
    if crate::process::Process::read().is_some() {
        let (_, last) = text.split_once("# TYPE process_cpu_seconds_total counter\n").unwrap();
        let value = last.strip_prefix("process_cpu_seconds_total ").unwrap().trim_end();
        assert!(value.parse::<f64>().unwrap() >= 0.0, "{last}");
    }
}
