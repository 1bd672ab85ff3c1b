//! The sampler against the exact distribution of what its filters leave, by chi-squared; and its rules one by one.

use backends::llm::executor::Mask;
use backends::llm::plan::Fill;
use backends::llm::sampler::{History, Sampler, Wish};
use backends::llm::sampling::{Parameters, Sampling, SamplingError};
use backends::llm::sequence::Unanswered;

const LOGITS: [f32; 8] = [1.0, 0.2, -0.5, 2.1, 0.9, -3.0, 1.7, f32::NEG_INFINITY];
const DRAWS: u32 = 40_000;

fn choose(parameters: &Parameters, history: &History, mask: Option<&Mask>) -> Result<u32, Unanswered> {
    let sampling = Sampling::new(parameters.clone()).unwrap();
    let wish = Wish { sampling: &sampling, history, mask, ends: &[3], copy: 0 };
    Sampler::default().choose(&mut LOGITS.to_vec(), &wish).map(|(token, _)| token)
}

/// Probabilities after the filters, written down as their definitions say.
fn expected(parameters: &Parameters) -> Vec<f64> {
    let mut order: Vec<(usize, f64)> =
        LOGITS.iter().map(|logit| (f64::from(*logit) / f64::from(parameters.temperature)).exp()).enumerate().collect();
    order.sort_by(|a, b| b.1.total_cmp(&a.1));
    let normalise = |order: &mut Vec<(usize, f64)>| {
        let total: f64 = order.iter().map(|(_, weight)| weight).sum();
        order.iter_mut().for_each(|(_, weight)| *weight /= total);
    };
    if parameters.top_k > 0 {
        order.truncate(parameters.top_k as usize);
    }
    normalise(&mut order);
    let nucleus = |order: &[(usize, f64)], share: f64| {
        let mut sum = 0.0;
        1 + order
            .iter()
            .take_while(|(_, weight)| {
                sum += weight;
                sum < share
            })
            .count()
    };
    order.truncate(nucleus(&order, f64::from(parameters.top_p)));
    let least = order[0].1 * f64::from(parameters.min_p);
    order.retain(|(_, weight)| *weight >= least);
    normalise(&mut order);
    if parameters.typical_p < 1.0 {
        let entropy: f64 = order.iter().filter(|(_, p)| *p > 0.0).map(|(_, p)| -p * p.ln()).sum();
        order.sort_by(|a, b| (-a.1.ln() - entropy).abs().total_cmp(&(-b.1.ln() - entropy).abs()));
        order.truncate(nucleus(&order, f64::from(parameters.typical_p)));
        normalise(&mut order);
    }
    let mut probabilities = vec![0.0; LOGITS.len()];
    order.into_iter().for_each(|(token, p)| probabilities[token] = p);
    probabilities
}

#[test]
fn draws_follow_the_distribution_that_the_filters_leave() {
    let base = Parameters { temperature: 0.8, ..Parameters::default() };
    let cases = [
        base.clone(),
        Parameters { temperature: 2.0, ..base.clone() },
        Parameters { top_k: 3, ..base.clone() },
        Parameters { top_p: 0.7, ..base.clone() },
        Parameters { min_p: 0.2, ..base.clone() },
        Parameters { typical_p: 0.6, ..base.clone() },
        Parameters { top_k: 5, top_p: 0.9, min_p: 0.05, ..base },
    ];
    for (case, parameters) in cases.into_iter().enumerate() {
        let probabilities = expected(&parameters);
        let (mut counts, history) = (vec![0u32; LOGITS.len()], History::default());
        for seed in 0..DRAWS {
            let parameters = Parameters { seed: u64::from(seed), ..parameters.clone() };
            counts[choose(&parameters, &history, None).unwrap() as usize] += 1;
        }
        let mut chi = 0.0;
        for (count, p) in counts.iter().zip(&probabilities) {
            if *p == 0.0 {
                assert_eq!(*count, 0, "case {case}: a token that is filtered out was drawn");
            } else {
                let mean = p * f64::from(DRAWS);
                chi += (f64::from(*count) - mean).powi(2) / mean;
            }
        }
        // Beyond this with a chance of one in a million for 7 degrees of freedom, and fewer for less; seeds are fixed.
        assert!(chi < 40.0, "case {case}: chi-squared is {chi}: {counts:?} against {probabilities:?}");
    }
}

#[test]
fn chance_depends_on_seed_copy_and_position_alone() {
    let parameters = Parameters { temperature: 1.0, seed: 9, ..Parameters::default() };
    let mut history = History::default();
    let first: Vec<u32> = (0..20)
        .map(|_| {
            let token = choose(&parameters, &history, None).unwrap();
            history.push(token);
            token
        })
        .collect();
    let mut again = History::default();
    again.fill(&Fill { prompt: vec![1, 2].into(), output: first[..10].to_vec() });
    assert_eq!(choose(&parameters, &again, None).unwrap(), first[10]);
    assert!(first.iter().any(|token| *token != first[0]), "the position changes nothing");
}

#[test]
fn what_must_not_come_does_not() {
    let greedy = Parameters::default();
    let none = History::default();
    assert_eq!(choose(&greedy, &none, None), Ok(3));
    assert_eq!(choose(&Parameters { banned: vec![3], ..greedy.clone() }, &none, None), Ok(6));
    assert_eq!(choose(&Parameters { allowed: Some(vec![5, 1]), ..greedy.clone() }, &none, None), Ok(1));
    assert_eq!(choose(&Parameters { min_tokens: 1, ..greedy.clone() }, &none, None), Ok(6), "3 ends the text");
    let stop = Parameters { min_tokens: 1, stop_tokens: vec![6], ..greedy.clone() };
    assert_eq!(choose(&stop, &none, None), Ok(0));
    assert_eq!(choose(&Parameters { logit_bias: vec![(5, 100.0)], ..greedy.clone() }, &none, None), Ok(5));
    assert_eq!(choose(&greedy, &none, Some(&Mask::of(&[2, 4], 8))), Ok(4));
    assert!(choose(&greedy, &none, Some(&Mask::of(&[7], 8))).is_err(), "its logit is minus infinity");
    let mut said = History::default();
    said.fill(&Fill { prompt: vec![6].into(), output: vec![3, 3, 3] });
    assert_eq!(choose(&Parameters { presence_penalty: 0.5, ..greedy.clone() }, &said, None), Ok(6));
    assert_eq!(choose(&Parameters { frequency_penalty: 0.2, ..greedy.clone() }, &said, None), Ok(6));
    assert_eq!(choose(&Parameters { repetition_penalty: 3.0, ..greedy }, &said, None), Ok(0));
}

#[test]
fn wishes_that_exclude_each_other_are_named() {
    let (none, form) = (History::default(), Mask::of(&[0, 1], 8));
    let allowed = |tokens: &[u32]| Parameters { allowed: Some(tokens.to_vec()), ..Parameters::default() };
    let cases = [
        (allowed(&[3]), Some(&form), "the form of the answer and allowed_token_ids exclude each other"),
        (Parameters { banned: vec![1, 0], ..allowed(&[0, 1, 2]) }, Some(&form), "allowed_token_ids and bad_words"),
        (Parameters { min_tokens: 2, ..allowed(&[3]) }, None, "allowed_token_ids and min_tokens exclude each other"),
    ];
    for (parameters, mask, what) in cases {
        for temperature in [0.0, 1.0] {
            let error = choose(&Parameters { temperature, ..parameters.clone() }, &none, mask).unwrap_err();
            assert!(matches!(&error, Unanswered::Request(told) if told.contains(what)), "{error:?}");
        }
    }
    // Token 7 is allowed; that it is impossible is the model's doing.
    assert!(matches!(choose(&allowed(&[7]), &none, None), Err(Unanswered::Step(_))));
    let both = Parameters { banned: vec![5, 4], ..allowed(&[4, 5]) };
    assert_eq!(Sampling::new(both), Err(SamplingError::AllBanned));
}

#[test]
fn a_form_that_is_complete_ends_whatever_else_is_wished() {
    let parameters = Parameters { min_tokens: 9, allowed: Some(vec![1]), banned: vec![3], ..Parameters::default() };
    assert_eq!(choose(&parameters, &History::default(), Some(&Mask::of(&[3], 8))), Ok(3));
    assert!(choose(&parameters, &History::default(), Some(&Mask::of(&[3, 4], 8))).is_err(), "it may go on");
}

#[test]
fn probabilities_are_the_models_own() {
    let sampling = Parameters { logprobs: Some(2), banned: vec![3], ..Parameters::default() };
    let sampling = Sampling::new(sampling).unwrap();
    let history = History::default();
    let wish = Wish { sampling: &sampling, history: &history, mask: None, ends: &[], copy: 0 };
    let (token, told) = Sampler::default().choose(&mut LOGITS.to_vec(), &wish).unwrap();
    let told = told.unwrap();
    let sum: f64 = LOGITS.iter().map(|logit| f64::from(*logit).exp()).sum();
    assert_eq!((token, told.rank), (6, 2));
    assert!((f64::from(told.logprob) - (1.7 - sum.ln())).abs() < 1e-6);
    assert_eq!(told.top.iter().map(|(token, _)| *token).collect::<Vec<_>>(), [3, 6]);
    let mut broken = LOGITS.to_vec();
    broken[0] = f32::NAN;
    assert!(Sampler::default().choose(&mut broken, &wish).is_err());
}
