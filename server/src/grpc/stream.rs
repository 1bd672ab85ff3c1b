//! `ModelStreamInfer`. Requests to models of tensors are answered in their order; those to language models at the same
//! time, each in pieces where `stream` asks for them. An error is an answer, and the stream goes on, unless the client
//! wants it to end. The server's end is the stream's end, once what has arrived is answered.

use super::counted::Share;
use super::service::{Context, decode, infer, of_the_table, restated};
use crate::budget::Room;
use crate::codec::generate::{self, Generation};
use crate::codec::grpc::{self as codec, Form};
use crate::dataplane::{Dataplane, Inferred, Servable, Work};
use crate::error::Error;
use crate::profile::Verb;
use protocol::grpc::*;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::StreamExt;
use tonic::{Status, Streaming};
use tracing::Instrument;

/// Requests of one stream that language models answer at the same time; the next one is read when one of them is done.
const AT_ONCE: usize = 64;

/// One call.
#[derive(Clone)]
pub(super) struct Stream {
    pub(super) plane: Arc<Dataplane>,
    pub(super) deadline: Option<Instant>,
    pub(super) share: Option<Share>,
    pub(super) mirrors: bool,
    pub(super) ends_on_error: bool,
    pub(super) send: mpsc::Sender<Result<Answer, Status>>,
}

/// An answer, and its share of the budget until it was taken.
pub(super) type Answer = (ModelStreamInferResponse, Room);

impl Stream {
    /// Answers until the client has said all, has left, or the server ends.
    pub(super) async fn run(self, mut requests: Streaming<ModelInferRequest>) {
        let places = Arc::new(Semaphore::new(AT_ONCE));
        loop {
            let request = tokio::select! {
                biased;
                request = requests.next() => request,
                () = self.send.closed() => None,
            };
            let request = match request {
                None => return,
                Some(Ok(request)) => request,
                Some(Err(broken)) => {
                    let _ = self.send.send(Err(of_the_table(broken))).await;
                    return;
                }
            };
            let over = match self.language(&request) {
                None => self.predict(request).await,
                Some(servable) => {
                    let Ok(place) = places.clone().acquire_owned().await else { return };
                    let stream = Stream { share: self.share.as_ref().map(Share::apart), ..self.clone() };
                    let generating = async move {
                        let _place = place;
                        stream.generate(servable, request).await;
                    };
                    tokio::spawn(generating.in_current_span());
                    false
                }
            };
            if over {
                return;
            }
        }
    }

    fn language(&self, request: &ModelInferRequest) -> Option<Arc<Servable>> {
        let servable = self.plane.servable(&request.model_name, Some(&request.model_version)).ok()?;
        matches!(servable.work, Work::Language(_)).then_some(servable)
    }

    /// Answers by a model of tensors; is the stream over?
    async fn predict(&self, request: ModelInferRequest) -> bool {
        let (id, version) = (request.id.clone(), request.model_version.clone());
        let Stream { plane, deadline, share, mirrors, .. } = self;
        let context = Context { plane, deadline: *deadline, share: share.as_ref(), mirrors: *mirrors };
        let answer = infer(&context, request).await;
        let room = share.as_ref().map(Share::take).unwrap_or_default();
        match answer {
            Ok(response) => self.send.send(Ok((told(response, true), room))).await.is_err(),
            Err(error) => self.refuse(&error, &id, &version).await,
        }
    }

    /// Tells of an error; is the stream over?
    async fn refuse(&self, error: &Error, id: &str, version: &str) -> bool {
        if self.ends_on_error {
            let _ = self.send.send(Err(restated(&self.plane, error, Verb::Other, version))).await;
            return true;
        }
        let answer = ModelStreamInferResponse {
            error_message: self.plane.profile().status(error, Verb::Other, version).1,
            infer_response: Some(ModelInferResponse { id: id.to_owned(), ..ModelInferResponse::default() }),
        };
        self.send.send(Ok((answer, Room::default()))).await.is_err()
    }

    /// Answers by a language model, until that is done or the client has left.
    async fn generate(&self, servable: Arc<Servable>, request: ModelInferRequest) {
        let (id, version) = (request.id.clone(), request.model_version.clone());
        tokio::select! {
            answered = self.text(servable, request) => {
                if let Err(error) = answered {
                    self.refuse(&error, &id, &version).await;
                }
            }
            () = self.send.closed() => {}
        }
    }

    async fn text(&self, servable: Arc<Servable>, request: ModelInferRequest) -> Result<(), Error> {
        let typed = self.mirrors && request.raw_input_contents.is_empty();
        let form = if typed { Form::Typed } else { Form::Raw };
        let decoded = decode(&self.plane, self.share.as_ref(), request).await;
        // Text is soon tokens: its bytes are given back before the answer begins.
        drop(self.share.as_ref().map(Share::take));
        let generation = Generation::of_infer(&decoded?, &servable)?;
        let pieces = generation.stream == Some(true);
        if pieces {
            generation.require_one_answer()?;
        }
        let mut answering = generate::start(&self.plane, &servable, generation, self.deadline).await?;
        let id = answering.telling.id.clone().or_else(|| self.plane.invented_id());
        let respond = |piece: &generate::Told| {
            let outputs = piece.tensors()?;
            let inferred = Inferred { servable: servable.clone(), id: id.clone(), outputs };
            Ok::<_, Error>((told(codec::encode(inferred, form), piece.last), Room::default()))
        };
        if !pieces {
            let whole = answering.whole().await?;
            let _ = self.send.send(Ok(respond(&whole)?)).await;
            return Ok(());
        }
        while let Some(piece) = answering.next().await {
            if self.send.send(Ok(respond(&piece?)?)).await.is_err() {
                return Ok(());
            }
        }
        Ok(())
    }
}

fn told(mut response: ModelInferResponse, last: bool) -> ModelStreamInferResponse {
    let last = InferParameter { parameter_choice: Some(infer_parameter::ParameterChoice::BoolParam(last)) };
    response.parameters.insert("triton_final_response".into(), last);
    ModelStreamInferResponse { error_message: String::new(), infer_response: Some(response) }
}
