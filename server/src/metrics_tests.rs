//! What metrics tell of models that come and go.

use super::*;
use metrics::with_local_recorder;

fn standing(running: u32, tokens: u64) -> Counters {
    Counters { running, tokens, blocks_used: running, blocks_total: 8, ..Counters::default() }
}

/// What the lines add up to that begin so and have this label.
fn told(start: &str, label: &str) -> f64 {
    let text = series::text(help);
    let lines = text.lines().filter(|line| line.starts_with(start) && line.contains(label));
    lines.map(|line| line.rsplit_once(' ').unwrap().1.parse::<f64>().unwrap()).sum()
}

#[test]
fn engines_of_a_model_are_told_of_together() {
    const MODEL: &str = "of several engines";
    let levels = || {
        let names = ["num_requests_running", "kv_cache_usage_perc", "cache_config_info", "generation_tokens_total"];
        names.map(|name| told(&format!("vllm:{name}{{"), MODEL))
    };
    let mut engines = Engines::default();
    let shared = Arc::new(Mutex::new(standing(2, 10)));
    let now = shared.clone();
    let first = engines.add(MODEL, move || *now.lock().unwrap());
    let second = engines.add(MODEL, || standing(1, 5));
    engines.refresh();
    assert_eq!(levels(), [3.0, 3.0 / 16.0, 1.0, 15.0]);
    *shared.lock().unwrap() = standing(1, 40);
    engines.remove(first);
    assert_eq!(levels(), [1.0, 1.0 / 8.0, 1.0, 45.0], "what nobody had asked for is counted");
    let third = engines.add(MODEL, || standing(0, 7));
    engines.remove(second);
    assert_eq!(levels(), [0.0, 0.0, 1.0, 52.0], "another begins to count where these left off");
    engines.remove(third);
    engines.refresh();
    assert!(!series::text(help).contains(MODEL), "nothing is told of what is gone");
    assert!(engines.blocks.is_empty());
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
    let mut engines = Engines::default();
    engines.add("explained", || standing(1, 1));
    engines.refresh();
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
