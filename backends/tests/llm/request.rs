//! Requests and sampling parameters that must be refused, with the numbers; and the ones at the limits that must not.

use backends::llm::request::{Draft, Limits, Request, RequestError};
use backends::llm::sampling::{Parameters, Sampling, SamplingError};
use std::sync::Arc;

const LIMITS: Limits = Limits { prompt_tokens: 100, copies: 4, output_tokens: 60, vocabulary: 50 };

type Change = fn(&mut Parameters);
type Spoil = fn(&mut Draft);

fn refused(change: Change) -> String {
    let mut parameters = Parameters::default();
    change(&mut parameters);
    Sampling::new(parameters).unwrap_err().to_string()
}

#[test]
fn parameters_out_of_range_are_refused_by_name() {
    let cases: &[(Change, &str)] = &[
        (|p| p.temperature = 5.1, "temperature is 5.1; expected a number from 0 to 5"),
        (|p| p.temperature = -0.1, "temperature is -0.1; expected a number from 0 to 5"),
        (|p| p.top_p = 0.0, "top_p is 0; expected a number above 0, at most 1"),
        (|p| p.min_p = 1.5, "min_p is 1.5; expected a number from 0 to 1"),
        (|p| p.typical_p = 0.0, "typical_p is 0; expected a number above 0, at most 1"),
        (|p| p.repetition_penalty = 0.0, "repetition_penalty is 0; expected a number above 0, at most 100"),
        (|p| p.presence_penalty = 2.5, "presence_penalty is 2.5; expected a number from -2 to 2"),
        (|p| p.frequency_penalty = -3.0, "frequency_penalty is -3; expected a number from -2 to 2"),
        (|p| p.logit_bias = vec![(1, 101.0)], "logit_bias is 101; expected a number from -100 to 100"),
        (|p| p.logit_bias = vec![(1, 1.0); 1025], "logit_bias: 1025; at most 1024 are possible"),
        (|p| p.allowed = Some(vec![1; 16_385]), "allowed_token_ids: 16385; at most 16384 are possible"),
        (|p| p.banned = vec![1; 16_385], "bad_words: 16385; at most 16384 are possible"),
        (|p| p.stop_tokens = vec![1; 129], "stop_token_ids: 129; at most 128 are possible"),
        (|p| p.logprobs = Some(21), "logprobs: 21; at most 20 are possible"),
        (|p| p.prompt_logprobs = Some(21), "prompt_logprobs: 21; at most 20 are possible"),
        (|p| p.allowed = Some(vec![]), "allowed_token_ids is an empty list; expected at least one token, or no list"),
    ];
    for (change, text) in cases {
        assert_eq!(refused(*change), *text);
    }
}

#[test]
fn no_number_may_be_nan_or_infinite() {
    let fields: [fn(&mut Parameters, f32); 8] = [
        |p, x| p.temperature = x,
        |p, x| p.top_p = x,
        |p, x| p.min_p = x,
        |p, x| p.typical_p = x,
        |p, x| p.repetition_penalty = x,
        |p, x| p.presence_penalty = x,
        |p, x| p.frequency_penalty = x,
        |p, x| p.logit_bias = vec![(0, x)],
    ];
    for set in fields {
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut parameters = Parameters::default();
            set(&mut parameters, value);
            assert!(matches!(Sampling::new(parameters), Err(SamplingError::OutOfRange { .. })));
        }
    }
}

#[test]
fn parameters_at_their_limits_are_taken() {
    let parameters = Parameters {
        temperature: 2.0,
        top_p: f32::MIN_POSITIVE,
        min_p: 1.0,
        repetition_penalty: 100.0,
        presence_penalty: -2.0,
        logit_bias: (0..1024).map(|token| (token, -100.0)).collect(),
        logprobs: Some(20),
        ..Parameters::default()
    };
    assert_eq!(*Sampling::new(parameters.clone()).unwrap(), parameters);
}

fn refused_request(change: Spoil) -> (RequestError, String) {
    let mut draft = Draft::new(vec![1; 100], 60, Arc::default());
    Request::new(draft.clone(), &LIMITS).unwrap();
    change(&mut draft);
    let error = Request::new(draft, &LIMITS).unwrap_err();
    (error, error.to_string())
}

fn with(parameters: Parameters) -> Arc<Sampling> {
    Arc::new(Sampling::new(parameters).unwrap())
}

#[test]
fn requests_beyond_the_limits_are_refused_with_the_numbers() {
    let cases: &[(Spoil, &str)] = &[
        (|d| d.prompt = Arc::from([]), "the prompt has no tokens; expected at least 1"),
        (|d| d.prompt = vec![1; 101].into(), "the prompt has 101 tokens; the model's context has room for 100"),
        (|d| d.prompt = vec![1, 50].into(), "token 50 of the prompt is not one of the model's 50"),
        (|d| d.max_tokens = 0, "max_tokens is 0; expected at least 1"),
        (|d| d.max_tokens = 61, "1 copies of 61 tokens are 61; one request may generate 60"),
        (|d| d.copies = 2, "2 copies of 60 tokens are 120; one request may generate 60"),
        (
            |d| (d.copies, d.max_tokens) = (4, u32::MAX),
            "4 copies of 4294967295 tokens are 17179869180; one request may generate 60",
        ),
        (|d| d.copies = 0, "0 copies are asked for; expected 1 to 4"),
        (|d| d.copies = 5, "5 copies are asked for; expected 1 to 4"),
        (
            |d| d.sampling = with(Parameters { min_tokens: 61, ..Parameters::default() }),
            "min_tokens is 61, but max_tokens is 60",
        ),
        (
            |d| d.sampling = with(Parameters { stop_tokens: vec![1, 51], ..Parameters::default() }),
            "token 51 of stop_token_ids is not one of the model's 50",
        ),
        (
            |d| d.sampling = with(Parameters { allowed: Some(vec![99]), ..Parameters::default() }),
            "token 99 of allowed_token_ids is not one of the model's 50",
        ),
        (
            |d| d.sampling = with(Parameters { logit_bias: vec![(50, 1.0)], ..Parameters::default() }),
            "token 50 of logit_bias is not one of the model's 50",
        ),
    ];
    for (change, text) in cases {
        let (error, said) = refused_request(*change);
        assert_eq!(said, *text);
        let field = error.field();
        // Products are of two fields, whose names would make them longer.
        assert!(matches!(field, "n" | "max_tokens") || said.contains(field), "{field}: {said}");
    }
}
