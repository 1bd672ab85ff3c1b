//! `inference.GRPCInferenceService`.

use super::counted::Share;
use super::generated::grpc_inference_service_server::GrpcInferenceService;
use super::stream::{self, Stream};
use super::{status, timeout, with_code};
use crate::codec::generate;
use crate::codec::grpc::{self as codec, Form};
use crate::dataplane::{Dataplane, EXTENSIONS, Infer, NAME, VERSION, named_repository};
use crate::error::Error;
use crate::profile::Verb;
use crate::threads::{self, heavy};
use prost::Message;
use protocol::grpc::*;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status, Streaming};
use tracing::Instrument;

/// The service over a data plane.
pub(super) struct Service {
    pub(super) plane: Arc<Dataplane>,
    /// Are values answered in the form in which they came?
    pub(super) mirrors: bool,
}

type Reply<T> = Result<Response<T>, Status>;

/// Responses of a stream that the client has not taken yet.
const STREAM_BUFFER: usize = 16;

impl Service {
    /// The status of an error as the followed server has it.
    fn refuse(&self, error: &Error, verb: Verb, version: &str) -> Status {
        restated(&self.plane, error, verb, version)
    }

    /// KServe's clients put the name into field 1, Triton's into field 2.
    fn model<'a>(repository: &'a str, model: &'a str) -> Result<&'a str, Error> {
        match (repository, model) {
            (name, "") if !name.is_empty() => Ok(name),
            ("", name) if !name.is_empty() => Ok(name),
            ("", _) => Err(Error::Invalid("model_name is empty".into())),
            _ => Err(named_repository()),
        }
    }
}

pub(super) fn restated(plane: &Dataplane, error: &Error, verb: Verb, version: &str) -> Status {
    let (code, message) = plane.profile().status(error, verb, version);
    with_code(error, code, message)
}

/// What an inference request comes with.
pub(super) struct Context<'a> {
    pub(super) plane: &'a Dataplane,
    pub(super) deadline: Option<Instant>,
    pub(super) share: Option<&'a Share>,
    pub(super) mirrors: bool,
}

pub(super) async fn infer(context: &Context<'_>, request: ModelInferRequest) -> Result<ModelInferResponse, Error> {
    let Context { plane, deadline, share, mirrors } = *context;
    let form = if mirrors && request.raw_input_contents.is_empty() { Form::Typed } else { Form::Raw };
    let start = Instant::now();
    let servable = plane.servable(&request.model_name, Some(&request.model_version))?;
    let mut decoded = decode(plane, share, request).await?;
    decoded.deadline = deadline;
    let metrics = servable.metrics.clone();
    let decoding = start.elapsed();
    let inferred = generate::infer(plane, servable, decoded).await?;
    let size = inferred.bytes();
    // Raw tensors are sent as they are.
    let _turn = threads::turn(if form == Form::Typed { size } else { 0 }).await;
    // Who sends it writes all of it down once more.
    share.map_or(Ok(()), |share| share.holds(2 * size))?;
    let encoding = Instant::now();
    let response = heavy(size, || codec::encode(inferred, form));
    let written = response.encoded_len();
    share.map_or(Ok(()), |share| share.holds(2 * written.max(size)))?;
    metrics.framed(decoding, encoding.elapsed());
    Ok(response)
}

/// Takes a request's share of the budget, and reads it.
pub(super) async fn decode(
    plane: &Dataplane,
    share: Option<&Share>,
    request: ModelInferRequest,
) -> Result<Infer, Error> {
    let size = request.encoded_len();
    share.map_or(Ok(()), |share| share.unpacked(size))?;
    // Raw tensors are not read, but kept as they came.
    let typed = request.inputs.iter().filter_map(|input| input.contents.as_ref()).map(Message::encoded_len).sum();
    let _turn = threads::turn(typed).await;
    let decoded = heavy(size, || codec::decode(request, plane.registry().limits()))?;
    share.map_or(Ok(()), |share| share.holds(decoded.bytes().max(size)))?;
    Ok(decoded)
}

/// The deadline of `grpc-timeout`, from the head of the call on.
fn deadline<T>(request: &Request<T>) -> Result<Option<Instant>, Status> {
    let Some(value) = request.metadata().get("grpc-timeout") else { return Ok(None) };
    let value = http::HeaderValue::from_bytes(value.as_encoded_bytes()).ok();
    let since = request.extensions().get::<Share>().map_or_else(Instant::now, Share::since);
    match value.as_ref().and_then(timeout) {
        Some(timeout) => Ok(Some(since + timeout)),
        None => Err(Status::invalid_argument(format!("grpc-timeout is {value:?}, which is no timeout"))),
    }
}

/// Version is optional everywhere; protobuf spells that as empty.
fn given(version: &str) -> Option<&str> {
    Some(version).filter(|version| !version.is_empty())
}

#[tonic::async_trait]
impl GrpcInferenceService for Service {
    async fn server_live(&self, _: Request<ServerLiveRequest>) -> Reply<ServerLiveResponse> {
        Ok(Response::new(ServerLiveResponse { live: self.plane.live() }))
    }

    async fn server_ready(&self, _: Request<ServerReadyRequest>) -> Reply<ServerReadyResponse> {
        Ok(Response::new(ServerReadyResponse { ready: self.plane.ready() }))
    }

    async fn model_ready(&self, request: Request<ModelReadyRequest>) -> Reply<ModelReadyResponse> {
        let request = request.into_inner();
        match self.plane.servable(&request.name, given(&request.version)) {
            Ok(_) => Ok(Response::new(ModelReadyResponse { ready: true })),
            Err(Error::NotReady(_)) => Ok(Response::new(ModelReadyResponse { ready: false })),
            Err(error) => Err(self.refuse(&error, Verb::ModelReady, &request.version)),
        }
    }

    async fn server_metadata(&self, _: Request<ServerMetadataRequest>) -> Reply<ServerMetadataResponse> {
        let extensions = EXTENSIONS.map(str::to_owned).to_vec();
        Ok(Response::new(ServerMetadataResponse { name: NAME.into(), version: VERSION.into(), extensions }))
    }

    async fn model_metadata(&self, request: Request<ModelMetadataRequest>) -> Reply<ModelMetadataResponse> {
        let request = request.into_inner();
        let refuse = |e| self.refuse(&e, Verb::Other, &request.version);
        let servable = self.plane.servable(&request.name, given(&request.version)).map_err(refuse)?;
        let versions = self.plane.registry().ready_versions(&request.name);
        Ok(Response::new(codec::metadata(&servable, &versions)))
    }

    async fn model_infer(&self, request: Request<ModelInferRequest>) -> Reply<ModelInferResponse> {
        let (deadline, share) = (deadline(&request)?, request.extensions().get::<Share>().cloned());
        let request = request.into_inner();
        let version = request.model_version.clone();
        let context = Context { plane: &self.plane, deadline, share: share.as_ref(), mirrors: self.mirrors };
        let response = infer(&context, request).await;
        if let Some(share) = &share {
            share.sends(share.take());
        }
        response.map(Response::new).map_err(|error| self.refuse(&error, Verb::Other, &version))
    }

    type ModelStreamInferStream =
        Pin<Box<dyn tokio_stream::Stream<Item = Result<ModelStreamInferResponse, Status>> + Send>>;

    async fn model_stream_infer(
        &self,
        request: Request<Streaming<ModelInferRequest>>,
    ) -> Reply<Self::ModelStreamInferStream> {
        let (send, receive) = tokio::sync::mpsc::channel(STREAM_BUFFER);
        let share = request.extensions().get::<Share>().cloned();
        let stream = Stream {
            plane: self.plane.clone(),
            deadline: deadline(&request)?,
            share: share.clone(),
            mirrors: self.mirrors,
            ends_on_error: request.metadata().get("triton_grpc_error").is_some_and(|v| v.as_bytes() == b"true"),
            send,
        };
        tokio::spawn(stream.run(request.into_inner()).in_current_span());
        let answers = ReceiverStream::new(receive).map(move |answer: Result<stream::Answer, Status>| {
            let (answer, room) = answer?;
            if let Some(share) = &share {
                share.sends(room);
            }
            Ok(answer)
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn model_config(&self, request: Request<ModelConfigRequest>) -> Reply<ModelConfigResponse> {
        let request = request.into_inner();
        let refuse = |e| self.refuse(&e, Verb::Other, &request.version);
        let servable = self.plane.servable(&request.name, given(&request.version)).map_err(refuse)?;
        Ok(Response::new(ModelConfigResponse { config: Some(codec::config(&servable)) }))
    }

    async fn model_statistics(&self, request: Request<ModelStatisticsRequest>) -> Reply<ModelStatisticsResponse> {
        let request = request.into_inner();
        let servables = if request.name.is_empty() {
            self.plane.registry().servables()
        } else {
            let refuse = |e| self.refuse(&e, Verb::Statistics, &request.version);
            self.plane.versions(&request.name, given(&request.version)).map_err(refuse)?
        };
        let model_stats = servables.iter().map(|servable| codec::statistics(servable)).collect();
        Ok(Response::new(ModelStatisticsResponse { model_stats }))
    }

    async fn repository_index(&self, request: Request<RepositoryIndexRequest>) -> Reply<RepositoryIndexResponse> {
        let request = request.into_inner();
        let index = match request.repository_name.as_str() {
            "" => self.plane.index(request.ready).await,
            _ => Err(named_repository()),
        };
        let entries = index.map_err(|e| self.refuse(&e, Verb::Other, ""))?;
        let models = entries
            .into_iter()
            .map(|entry| repository_index_response::ModelIndex {
                name: entry.name,
                version: entry.version.map(|v| v.to_string()).unwrap_or_default(),
                state: entry.version.map(|_| entry.state.to_owned()).unwrap_or_default(),
                reason: entry.reason,
            })
            .collect();
        Ok(Response::new(RepositoryIndexResponse { models }))
    }

    async fn repository_model_load(
        &self,
        request: Request<RepositoryModelLoadRequest>,
    ) -> Reply<RepositoryModelLoadResponse> {
        let request = request.into_inner();
        let load = async {
            let name = Self::model(&request.repository_name, &request.model_name)?;
            let parameters: Vec<&str> = request.parameters.keys().map(String::as_str).collect();
            self.plane.load(name, &parameters).await?;
            Ok(name.to_owned())
        };
        let name = load.await.map_err(|e| self.refuse(&e, Verb::Other, ""))?;
        Ok(Response::new(RepositoryModelLoadResponse { model_name: name, is_loaded: true }))
    }

    async fn repository_model_unload(
        &self,
        request: Request<RepositoryModelUnloadRequest>,
    ) -> Reply<RepositoryModelUnloadResponse> {
        let request = request.into_inner();
        let unload = async {
            let name = Self::model(&request.repository_name, &request.model_name)?;
            let truth = |value: &ModelRepositoryParameter| {
                matches!(value.parameter_choice, Some(model_repository_parameter::ParameterChoice::BoolParam(_)))
            };
            let named = request.parameters.iter().map(|(name, value)| (name.as_str(), truth(value)));
            let parameters: Vec<(&str, bool)> = named.collect();
            self.plane.unload(name, &parameters).await?;
            Ok(name.to_owned())
        };
        let name = unload.await.map_err(|e| self.refuse(&e, Verb::Other, ""))?;
        Ok(Response::new(RepositoryModelUnloadResponse { model_name: name, is_unloaded: true }))
    }

    async fn system_shared_memory_status(
        &self,
        _: Request<SystemSharedMemoryStatusRequest>,
    ) -> Reply<SystemSharedMemoryStatusResponse> {
        Err(not_served("shared memory"))
    }

    async fn system_shared_memory_register(
        &self,
        _: Request<SystemSharedMemoryRegisterRequest>,
    ) -> Reply<SystemSharedMemoryRegisterResponse> {
        Err(not_served("shared memory"))
    }

    async fn system_shared_memory_unregister(
        &self,
        _: Request<SystemSharedMemoryUnregisterRequest>,
    ) -> Reply<SystemSharedMemoryUnregisterResponse> {
        Err(not_served("shared memory"))
    }

    async fn cuda_shared_memory_status(
        &self,
        _: Request<CudaSharedMemoryStatusRequest>,
    ) -> Reply<CudaSharedMemoryStatusResponse> {
        Err(not_served("shared memory"))
    }

    async fn cuda_shared_memory_register(
        &self,
        _: Request<CudaSharedMemoryRegisterRequest>,
    ) -> Reply<CudaSharedMemoryRegisterResponse> {
        Err(not_served("shared memory"))
    }

    async fn cuda_shared_memory_unregister(
        &self,
        _: Request<CudaSharedMemoryUnregisterRequest>,
    ) -> Reply<CudaSharedMemoryUnregisterResponse> {
        Err(not_served("shared memory"))
    }

    async fn trace_setting(&self, _: Request<TraceSettingRequest>) -> Reply<TraceSettingResponse> {
        Err(not_served("trace settings"))
    }

    async fn log_settings(&self, _: Request<LogSettingsRequest>) -> Reply<LogSettingsResponse> {
        Err(not_served("log settings"))
    }
}

/// A message over the limit is OUT_OF_RANGE to the library, and too large in the table of errors.
pub(super) fn of_the_table(broken: Status) -> Status {
    if broken.code() == Code::OutOfRange {
        return status(&Error::TooLarge(format!("{} (--max-body-size)", broken.message())));
    }
    broken
}

fn not_served(what: &str) -> Status {
    status(&Error::Unsupported(format!("{what}: not served by this server")))
}
