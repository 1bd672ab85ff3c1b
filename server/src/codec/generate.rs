//! Requests for text in Triton's terms: what they ask of a model, out of JSON or tensors, and its answer as either.

use super::openai::asking::{Asking, put};
use super::openai::{Refusal, ask, finish_reason, noticed};
use crate::check::check_parameters;
use crate::dataplane::{Dataplane, Infer, Inferred, Language, Servable, Work};
use crate::error::{self, Error};
use crate::llm::answer::Piece;
use crate::llm::gather::News;
use backends::llm::text::output::Part;
use backends::{DataType, Parameter, Tensor};
use protocol::generate::{GenerateRequest, Tells};
use protocol::openai::{FieldError, Prompt};
use serde_json::{Map, Value, json};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

/// What is asked, and how the answer is told.
#[derive(Debug)]
pub struct Generation {
    /// Of the model.
    pub ask: ask::Ask,
    /// The client's name for the request.
    pub id: Option<String>,
    /// Piece by piece, where that was said.
    pub stream: Option<bool>,
    /// What the answer begins with.
    prompt: String,
    tells: Tells,
    /// After so long it is of no use.
    timeout: Option<Duration>,
    /// The model that the request names besides the path.
    model: Option<String>,
}

/// What the field at fault is, said to clients whose errors are text.
fn said(refusal: Refusal) -> Error {
    match refusal {
        Refusal::Field(FieldError { message, .. }) => Error::Invalid(message),
        Refusal::Server(error) => error,
    }
}

impl Generation {
    /// Out of the body of `/generate`.
    ///
    /// # Errors
    /// Names the field that is at fault.
    pub fn of_json(body: &[u8], language: &Language) -> Result<Self, Error> {
        let request = GenerateRequest::parse(body).map_err(|error| Error::Invalid(error.message))?;
        Self::new(&request, language)
    }

    /// Out of an inference request: tensors by their names, and its parameters.
    ///
    /// # Errors
    /// Names the tensor or the field that is at fault.
    pub fn of_infer(request: &Infer, servable: &Servable) -> Result<Self, Error> {
        check_parameters(&request.parameters)?;
        let mut map = Map::new();
        for input in &request.inputs {
            if map.insert(input.name().to_owned(), value(input)?).is_some() {
                return Err(error::repeated("input", input.name()));
            }
        }
        let mut parameters = Map::new();
        for (name, parameter) in &request.parameters {
            // Those are about the protocol, which reads them.
            if name.starts_with("triton_") || name == "binary_data_output" {
                continue;
            }
            let parameter = match parameter {
                Parameter::Bool(flag) => json!(flag),
                Parameter::Int(number) => json!(number),
                Parameter::Uint(number) => json!(number),
                Parameter::String(text) => json!(text),
                Parameter::Double(number) => json!(number),
            };
            parameters.insert(name.clone(), parameter);
        }
        map.entry("parameters").or_insert(parameters.into());
        let tells = |output: &str| OUTPUTS.iter().find(|(name, _)| *name == output).map(|(_, field)| *field);
        for wanted in &request.outputs {
            match tells(&wanted.name) {
                Some(_) if wanted.classes.is_some() => {
                    return Err(Error::Invalid(format!("output '{}' is text, which has no classes", wanted.name)));
                }
                Some(field) => {
                    if !field.is_empty() {
                        map.insert(field.to_owned(), Value::Bool(true));
                    }
                }
                _ => {
                    let known: Vec<_> = OUTPUTS.iter().map(|(name, _)| *name).collect();
                    return Err(error::unknown_output(&wanted.name, &servable.name, &known));
                }
            }
        }
        let parsed = GenerateRequest::from_fields(map).map_err(|error| Error::Invalid(error.message))?;
        let unknown = &parsed.completion.common.notices.unknown;
        if let Some(input) = request.inputs.iter().find(|input| unknown.iter().any(|name| name == input.name())) {
            let name = input.name();
            return Err(Error::Invalid(format!("unexpected inference input '{name}' for model '{}'", servable.name)));
        }
        let generation = Self::new(&parsed, servable.language()?)?;
        Ok(Generation { id: request.id.clone().or(generation.id.clone()), ..generation })
    }

    fn new(request: &GenerateRequest, language: &Language) -> Result<Self, Error> {
        let GenerateRequest { completion, id, timeout, stream, exclude_input, tells } = request;
        if completion.common.delivery.echo || completion.common.sampling.prompt_logprobs.is_some() {
            return Err(Error::Invalid("echo and prompt_logprobs belong to /v1/completions".into()));
        }
        noticed(&completion.common.notices);
        let ask = ask::completion(completion, language).map_err(said)?;
        let prompt = match &completion.prompt {
            Prompt::Texts(texts) if !exclude_input => texts.concat(),
            _ => String::new(),
        };
        let model = completion.common.model.clone().filter(|name| !name.is_empty());
        Ok(Generation { ask, id: id.clone(), stream: *stream, prompt, tells: *tells, timeout: *timeout, model })
    }

    /// Can the answer be told in pieces? Nothing in them says whose they are.
    ///
    /// # Errors
    /// Several answers are asked for: says how many.
    pub fn require_one_answer(&self) -> Result<(), Error> {
        let asked = self.ask.telling.n * self.ask.prompts.len();
        if asked == 1 {
            return Ok(());
        }
        let message = format!(
            "{asked} answers are asked for, and 1 at a time is streamed: n must be 1, or 'stream' false for all at once"
        );
        Err(Error::Invalid(message))
    }

    /// Splits off what is asked of the model.
    pub fn into_parts(self) -> (ask::Ask, Telling) {
        let Generation { ask, id, prompt, tells, .. } = self;
        let n = ask.telling.n;
        (ask, Telling { id, prompt, tells, n })
    }
}

/// How an answer is told.
#[derive(Clone, Debug)]
pub struct Telling {
    /// The client's name for the request.
    pub id: Option<String>,
    prompt: String,
    tells: Tells,
    n: usize,
}

/// Outputs, and the fields that ask for them.
const OUTPUTS: [(&str, &str); 5] = [
    ("text_output", ""),
    ("finish_reason", "return_finish_reason"),
    ("cumulative_logprob", "return_cumulative_logprob"),
    ("num_output_tokens", "return_num_output_tokens"),
    ("num_input_tokens", "return_num_input_tokens"),
];

/// A tensor as JSON: a value where it is one, else a list.
fn value(tensor: &Tensor) -> Result<Value, Error> {
    let text = |bytes: &[u8]| {
        let text = std::str::from_utf8(bytes);
        text.map(Value::from).map_err(|_| Error::Invalid(format!("input '{}' is no UTF-8", tensor.name())))
    };
    let mut values: Vec<Value> = if let Some(strings) = tensor.strings() {
        strings.map(text).collect::<Result<_, _>>()?
    } else if let Some(flags) = tensor.bools() {
        flags.iter().map(|flag| Value::from(*flag != 0)).collect()
    } else if let Some(numbers) = tensor.values::<i64>() {
        numbers.iter().map(|number| json!(number)).collect()
    } else if let Some(numbers) = tensor.values::<u64>() {
        numbers.iter().map(|number| json!(number)).collect()
    } else if let Some(numbers) = tensor.to_f64() {
        if let Some(number) = numbers.iter().find(|number| !number.is_finite()) {
            return Err(Error::Invalid(format!("input '{}' holds {number}, which is no number", tensor.name())));
        }
        let whole = |number: &f64| number.fract() == 0.0 && number.abs() < 9e15;
        // Numbers of 32 bits read back as the same number, and not as one with its error spelled out.
        let wide = tensor.datatype() == DataType::Fp64;
        let short = |number: f64| if wide { number } else { (number as f32).to_string().parse().unwrap_or(number) };
        numbers.iter().map(|n| if whole(n) { json!(*n as i64) } else { json!(short(*n)) }).collect()
    } else {
        return Err(Error::Invalid(format!("input '{}' is of a type that no request for text has", tensor.name())));
    };
    Ok(if values.len() == 1 { values.remove(0) } else { Value::from(values) })
}

/// An answer, or a piece of one.
#[derive(Clone, Debug, Default)]
pub struct Told {
    /// Of each choice.
    texts: Vec<String>,
    finish_reasons: Vec<&'static str>,
    logprobs: Vec<f32>,
    output_tokens: Vec<u32>,
    input_tokens: u32,
    /// Nothing comes after it.
    pub last: bool,
    tells: Tells,
}

impl Told {
    fn add(&mut self, choice: usize, piece: Piece) {
        for part in piece.parts {
            if let Part::Text(text) = part {
                self.texts[choice].push_str(&text);
            }
        }
        if let Some(token) = piece.token {
            self.output_tokens[choice] += 1;
            self.logprobs[choice] += token.logprobs.map_or(0.0, |logprobs| logprobs.logprob);
        }
        if let Some(end) = piece.end {
            self.finish_reasons[choice] = match finish_reason(&end, false) {
                protocol::openai::response::FinishReason::Length => "length",
                _ => "stop",
            };
        }
    }

    fn new(choices: usize, input_tokens: u32, tells: Tells) -> Self {
        Told {
            texts: vec![String::new(); choices],
            finish_reasons: vec![""; choices],
            logprobs: vec![0.0; choices],
            output_tokens: vec![0; choices],
            input_tokens,
            last: false,
            tells,
        }
    }

    /// As tensors, one value for each choice.
    ///
    /// # Errors
    /// They are too large.
    pub fn tensors(&self) -> Result<Vec<Tensor>, Error> {
        let shape = vec![self.texts.len()];
        let strings = |name: &str, texts: Vec<&str>| Tensor::from_strings(name, shape.clone(), texts);
        let texts: Vec<&str> = self.texts.iter().map(String::as_str).collect();
        let mut tensors = vec![strings("text_output", texts)];
        let Tells { finish_reason, cumulative_logprob, output_tokens, input_tokens } = self.tells;
        if finish_reason {
            tensors.push(strings("finish_reason", self.finish_reasons.clone()));
        }
        if cumulative_logprob {
            tensors.push(Tensor::from_vec("cumulative_logprob", shape.clone(), self.logprobs.clone()));
        }
        if output_tokens {
            tensors.push(Tensor::from_vec("num_output_tokens", shape.clone(), self.output_tokens.clone()));
        }
        if input_tokens {
            tensors.push(Tensor::from_vec("num_input_tokens", vec![1], vec![self.input_tokens]));
        }
        let tensors: Result<Vec<Tensor>, _> = tensors.into_iter().collect();
        tensors.map_err(|error| Error::Internal(format!("an answer is no tensor: {error}")))
    }

    /// As the JSON of the generate extension: of one choice its value, of several a list.
    pub fn json(&self, servable: &Servable, id: Option<&str>) -> Value {
        let mut map = json!({"model_name": servable.name, "model_version": servable.version.to_string()});
        let one = |mut values: Vec<Value>| if values.len() == 1 { values.remove(0) } else { Value::from(values) };
        if let Some(id) = id {
            map["id"] = json!(id);
        }
        map["text_output"] = one(self.texts.iter().map(|text| json!(text)).collect());
        let Tells { finish_reason, cumulative_logprob, output_tokens, input_tokens } = self.tells;
        if finish_reason {
            map["finish_reason"] = one(self.finish_reasons.iter().map(|reason| json!(reason)).collect());
        }
        if cumulative_logprob {
            map["cumulative_logprob"] = one(self.logprobs.iter().map(|logprob| json!(logprob)).collect());
        }
        if output_tokens {
            map["num_output_tokens"] = one(self.output_tokens.iter().map(|count| json!(count)).collect());
        }
        if input_tokens {
            map["num_input_tokens"] = json!(self.input_tokens);
        }
        map
    }
}

/// An answer in Triton's terms, as it comes.
#[derive(Debug)]
pub struct Answering {
    asking: Asking,
    /// How it is told.
    pub telling: Telling,
    /// Of the answer that is streamed so far.
    logprob: f32,
    /// Tokens of it that were not counted: they wrote nothing yet.
    untold: u32,
}

impl Answering {
    fn input_tokens(&self) -> u32 {
        self.asking.prompts.iter().map(|prompt| prompt.tokens.len() as u32).sum()
    }

    /// All of it. As those backends have it, it begins with the prompt unless that was excluded.
    ///
    /// # Errors
    /// The first error of any choice.
    pub async fn whole(mut self) -> Result<Told, Error> {
        let mut told =
            Told::new(self.asking.prompts.len() * self.asking.copies, self.input_tokens(), self.telling.tells);
        told.texts.iter_mut().for_each(|text| text.clone_from(&self.telling.prompt));
        while let Some(News { choice, piece, .. }) = self.asking.gathered.next().await {
            told.add(choice, piece?);
        }
        if told.finish_reasons.contains(&"") {
            return Err(error::broke_off());
        }
        told.best(self.telling.n);
        told.last = true;
        Ok(told)
    }

    /// The next piece, of the one choice that is streamed; `None` after the last. The prompt is never part of it.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Told, Error>>> {
        loop {
            let Some(News { piece, .. }) = ready!(self.asking.gathered.poll_next(cx)) else { return Poll::Ready(None) };
            let piece = match piece {
                Ok(piece) => piece,
                Err(error) => return Poll::Ready(Some(Err(error))),
            };
            let token = piece.token.as_ref().and_then(|token| token.logprobs.as_ref());
            self.logprob += token.map_or(0.0, |logprobs| logprobs.logprob);
            if piece.parts.is_empty() && piece.end.is_none() {
                // It counts with the next one.
                self.untold += u32::from(piece.token.is_some());
                continue;
            }
            let mut told = Told::new(1, self.input_tokens(), self.telling.tells);
            told.last = piece.end.is_some();
            told.add(0, piece);
            told.logprobs[0] = self.logprob;
            told.output_tokens[0] += std::mem::take(&mut self.untold);
            return Poll::Ready(Some(Ok(told)));
        }
    }

    /// As [`Answering::poll_next`], for those who wait.
    pub async fn next(&mut self) -> Option<Result<Told, Error>> {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }
}

/// Asks a model for text. Its answer is of no use after `deadline`.
///
/// # Errors
/// A field is at fault, or the model has too much to do.
pub async fn start(
    plane: &Dataplane,
    servable: &Servable,
    generation: Generation,
    deadline: Option<Instant>,
) -> Result<Answering, Error> {
    if let Some(name) = &generation.model
        && !plane.servable(name, None).is_ok_and(|named| named.name == servable.name)
    {
        let message = format!("Invalid 'model': it is '{name}', and the path says '{}'.", servable.name);
        return Err(Error::Invalid(message));
    }
    let now = Instant::now();
    let timeout = generation.timeout.and_then(|timeout| now.checked_add(timeout));
    let limit = now + plane.longest_generation();
    let deadline = [deadline, timeout].into_iter().flatten().fold(limit, Instant::min);
    let (ask, telling) = generation.into_parts();
    let asking = put(plane, servable, ask, deadline).await.map_err(said)?;
    Ok(Answering { asking, telling, logprob: 0.0, untold: 0 })
}

/// Answers an inference request, by whatever kind of model.
///
/// # Errors
/// The request is at fault, the server has too much to do, or the model failed.
pub async fn infer(plane: &Dataplane, servable: Arc<Servable>, request: Infer) -> Result<Inferred, Error> {
    if matches!(servable.work, Work::Predictor(_)) {
        return plane.infer(servable, request).await;
    }
    let generation = Generation::of_infer(&request, &servable)?;
    if generation.stream == Some(true) {
        return Err(Error::Invalid(
            "this request has exactly one response: leave 'stream' out, or use generate_stream or ModelStreamInfer"
                .into(),
        ));
    }
    let answering = start(plane, &servable, generation, request.deadline).await?;
    let id = answering.telling.id.clone().or_else(|| plane.invented_id());
    let told = answering.whole().await?;
    Ok(Inferred { outputs: told.tensors()?, servable, id })
}

impl Told {
    /// Keeps the likeliest so many choices.
    fn best(&mut self, n: usize) {
        if n >= self.texts.len() {
            return;
        }
        let mean = |index: &usize| self.logprobs[*index] / self.output_tokens[*index].max(1) as f32;
        let mut order: Vec<usize> = (0..self.texts.len()).collect();
        order.sort_by(|a, b| mean(b).total_cmp(&mean(a)));
        order.truncate(n);
        self.texts = order.iter().map(|index| std::mem::take(&mut self.texts[*index])).collect();
        self.finish_reasons = order.iter().map(|index| self.finish_reasons[*index]).collect();
        self.logprobs = order.iter().map(|index| self.logprobs[*index]).collect();
        self.output_tokens = order.iter().map(|index| self.output_tokens[*index]).collect();
    }
}
