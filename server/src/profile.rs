//! Where KServe and Triton answer the same request differently, which of the two is followed. What they differ in of
//! errors is a table each, `kserve` and `triton`: REST passes through it on the way out ([`Manner::restate`]), gRPC where
//! a status is made ([`Profile::status`]). What an error is called otherwise is in `error.rs`.

use crate::error::Error;
use crate::repository::{Version, parse_version};
use axum::body::Body;
use axum::response::Response;
use backends::Conventions;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderValue, StatusCode};
use protocol::write::NotFinite;
use serde_json::{Value, json};

/// The followed server. Without a choice, the answers that suit the clients of both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Profile {
    /// KServe's names, and answers that clients of either take.
    #[default]
    Merged,
    /// As KServe's Python server.
    Kserve,
    /// As Triton.
    Triton,
}

impl Profile {
    /// Tensor names and strictness of models that name none.
    pub fn conventions(self) -> Conventions {
        if self == Profile::Triton { Conventions::Triton } else { Conventions::Kserve }
    }

    /// How outputs that are no numbers are written.
    pub fn not_finite(self) -> NotFinite {
        if self == Profile::Triton { NotFinite::Token } else { NotFinite::Null }
    }

    /// Is a request without an id given one?
    pub fn invents_id(self) -> bool {
        self != Profile::Triton
    }

    /// Is unloading a model that nobody knows an error?
    pub fn unload_unknown_is_error(self) -> bool {
        self != Profile::Triton
    }

    /// Does the reply to a load or unload have a body?
    pub fn load_replies_json(self) -> bool {
        self != Profile::Triton
    }

    /// Does `/v1/models` hold OpenAI's list beside KServe's?
    pub fn lists_for_openai(self) -> bool {
        self != Profile::Kserve
    }

    /// Are versions of a model told apart in REST's paths?
    pub fn has_versions(self) -> bool {
        self != Profile::Kserve
    }

    /// How a REST request of this path is answered; `None`: as the routes answer it.
    pub fn manner(self, path: &str) -> Option<Manner> {
        // Neither server has these routes, whose errors have a form of their own.
        let followed = self != Profile::Merged && !is_of_anthropic(path);
        followed.then(|| Manner { profile: self, asked: Asked::of_path(path) })
    }

    /// The gRPC code and text of an error; `version` as the request has it, empty for none.
    pub fn status(self, error: &Error, verb: Verb, version: &str) -> (i32, String) {
        let told = self.told(error, Asked { verb, version: parse_version(version) }).unwrap_or_default();
        (told.grpc.unwrap_or(error.row().1), told.text.unwrap_or_else(|| error.message()))
    }

    fn told(self, error: &Error, asked: Asked) -> Option<Told> {
        match self {
            Profile::Merged => None,
            Profile::Kserve => kserve(error, asked),
            Profile::Triton => triton(error, asked),
        }
    }
}

/// What is asked, as far as answers differ by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// Is the server up?
    Live,
    /// Does it take requests?
    Ready,
    /// Does a model?
    ModelReady,
    /// Statistics.
    Statistics,
    /// Anything of protocol V1.
    V1,
    /// Anything else of V2.
    Other,
}

/// A verb, and the version of the model where one is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Asked {
    verb: Verb,
    version: Option<Version>,
}

impl Asked {
    fn of_path(path: &str) -> Self {
        let plain = |verb| Asked { verb, version: None };
        match path {
            "/v2/health/live" => return plain(Verb::Live),
            "/v2/health/ready" => return plain(Verb::Ready),
            _ if path.starts_with("/v1/") => return plain(Verb::V1),
            _ => {}
        }
        let mut parts = path.strip_prefix("/v2/models/").unwrap_or_default().split('/').skip(1).peekable();
        let version = parts.next_if_eq(&"versions").and_then(|_| parts.next()).and_then(parse_version);
        let verb = match parts.next() {
            Some("ready") => Verb::ModelReady,
            Some("stats") => Verb::Statistics,
            _ => Verb::Other,
        };
        Asked { verb, version }
    }
}

/// How a server words an error; what it leaves open is as in `error.rs`.
#[derive(Debug, Default)]
struct Told {
    http: Option<u16>,
    grpc: Option<i32>,
    text: Option<String>,
    /// As FastAPI reports what it refuses by itself.
    detail: bool,
}

fn told(http: u16) -> Told {
    Told { http: Some(http), ..Told::default() }
}

impl Told {
    fn code(self, grpc: i32) -> Self {
        Told { grpc: Some(grpc), ..self }
    }

    fn text(self, text: impl Into<String>) -> Self {
        Told { text: Some(text.into()), ..self }
    }

    fn detail(self) -> Self {
        Told { detail: true, ..self }
    }
}

mod code {
    pub(super) const INVALID_ARGUMENT: i32 = 3;
    pub(super) const NOT_FOUND: i32 = 5;
    pub(super) const INTERNAL: i32 = 13;
    pub(super) const UNAVAILABLE: i32 = 14;
}

/// KServe's Python server: FastAPI refuses bodies of V2 that are no requests, and whatever a framework raises is 500.
fn kserve(error: &Error, asked: Asked) -> Option<Told> {
    Some(match (error, asked.verb) {
        (Error::Malformed(_), Verb::V1) => return None,
        (Error::Members(_), Verb::V1) => told(500),
        (Error::Malformed(_) | Error::Members(_), _) => told(422).detail(),
        (Error::Values(_) | Error::Refused(_), _) => told(500),
        (Error::NothingToLoad(name), _) => {
            told(503).code(code::UNAVAILABLE).text(format!("Model with name {name} is not ready."))
        }
        (Error::NoRoute, _) => told(404).detail(),
        _ => return None,
    })
}

/// Triton: what its JSON reader refuses is 500; a model without a version that serves is as good as unknown.
fn triton(error: &Error, asked: Asked) -> Option<Told> {
    let unknown = |model: &str, why: &str| format!("Request for unknown model: '{model}' {why}");
    Some(match (error, asked.verb, asked.version) {
        (Error::Malformed(_) | Error::Members(_) | Error::Values(_), Verb::V1, _) => return None,
        (Error::Malformed(_) | Error::Members(_) | Error::Values(_), ..) => told(500),
        (Error::UnknownModel(name), Verb::Statistics, _) => {
            told(400).code(code::INVALID_ARGUMENT).text(format!("requested model '{name}' is not available"))
        }
        (Error::UnknownModel(name), ..) => told(404).text(unknown(name, "is not found")),
        (Error::NotReady(_), Verb::ModelReady, _) => told(400).text("Model version not ready"),
        (Error::NotReady(name), _, None) => {
            told(404).code(code::NOT_FOUND).text(unknown(name, "has no available versions"))
        }
        (Error::NotReady(name), _, Some(version)) => {
            told(503).text(unknown(name, &format!("version {version} is not at ready state")))
        }
        (Error::NothingToLoad(name), ..) => told(500)
            .code(code::INTERNAL)
            .text(format!("failed to load '{name}', failed to poll from model repository")),
        (Error::LoadFailed(_), ..) => told(400).code(code::INVALID_ARGUMENT),
        (Error::Halves(what), ..) => told(400).text(format!("receiving {what}")),
        (Error::TooLarge(_), ..) => told(400),
        (Error::Overloaded(_), ..) => told(503).code(code::UNAVAILABLE),
        (Error::Deadline, ..) => told(503).code(code::UNAVAILABLE).text("Request timeout expired"),
        _ => return None,
    })
}

/// Is it a path of the Messages API?
pub fn is_of_anthropic(path: &str) -> bool {
    path.strip_prefix("/v1/messages").is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// How one REST request is answered where a server is followed.
#[derive(Clone, Copy, Debug)]
pub struct Manner {
    profile: Profile,
    asked: Asked,
}

impl Manner {
    /// The answer of the routes as the followed server would give it. Errors are told by what `reply::error` leaves in
    /// the response's extensions.
    pub fn restate(self, mut response: Response) -> Response {
        if let Some(error) = response.extensions_mut().remove::<Error>() {
            return match self.profile.told(&error, self.asked) {
                None => response,
                Some(told) => with_error(response, &error, told),
            };
        }
        match (self.profile, self.asked.verb, response.status()) {
            (Profile::Triton, Verb::Live | Verb::Ready | Verb::ModelReady, StatusCode::OK) => {
                without_body(response, StatusCode::OK)
            }
            (Profile::Triton, Verb::Ready, StatusCode::SERVICE_UNAVAILABLE) => {
                without_body(response, StatusCode::BAD_REQUEST)
            }
            (Profile::Kserve, _, StatusCode::METHOD_NOT_ALLOWED) => {
                with_body(response, &json!({"detail": "Method Not Allowed"}))
            }
            _ => response,
        }
    }
}

fn with_error(mut response: Response, error: &Error, told: Told) -> Response {
    let text = told.text.unwrap_or_else(|| error.message());
    if let Some(status) = told.http.and_then(|status| StatusCode::from_u16(status).ok()) {
        *response.status_mut() = status;
    }
    let kind = match error {
        Error::Malformed(_) => "json_invalid",
        _ => "value_error",
    };
    let body = match error {
        Error::NoRoute if told.detail => json!({"detail": text}),
        _ if told.detail => json!({"detail": [{"type": kind, "loc": ["body"], "msg": text, "input": {}}]}),
        _ => json!({"error": text}),
    };
    with_body(response, &body)
}

fn with_body(mut response: Response, body: &Value) -> Response {
    // It was that of the body before.
    response.headers_mut().remove(CONTENT_LENGTH);
    *response.body_mut() = Body::from(body.to_string());
    response
}

/// As Triton answers who asks for health: the status says it all.
fn without_body(mut response: Response, status: StatusCode) -> Response {
    response.headers_mut().remove(CONTENT_LENGTH);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    *response.body_mut() = Body::empty();
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rest::refuse;

    /// Status and text of an error on a path: merged, KServe's, Triton's.
    fn answers(path: &str, error: &Error) -> [(u16, Value); 3] {
        [Profile::Merged, Profile::Kserve, Profile::Triton].map(|profile| {
            let response = refuse(error);
            let response = match profile.manner(path) {
                Some(manner) => manner.restate(response),
                None => response,
            };
            (response.status().as_u16(), read(response))
        })
    }

    fn read(response: Response) -> Value {
        let body = axum::body::to_bytes(response.into_body(), 1 << 20);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let bytes = runtime.block_on(body).unwrap();
        if bytes.is_empty() { Value::Null } else { serde_json::from_slice(&bytes).unwrap() }
    }

    const INFER: &str = "/v2/models/m/infer";

    #[test]
    fn anthropics_routes_answer_in_their_own_manner() {
        for profile in [Profile::Kserve, Profile::Triton] {
            assert!(profile.manner("/v1/messages").is_none() && profile.manner("/v1/messages/count_tokens").is_none());
            assert!(profile.manner("/v1/models/messages").is_some());
        }
    }

    #[test]
    fn statuses_of_the_three() {
        let text = || "t".to_owned();
        for (path, error, statuses) in [
            (INFER, Error::Malformed(text()), [400, 422, 500]),
            (INFER, Error::Members(text()), [400, 422, 500]),
            (INFER, Error::Values(text()), [400, 500, 500]),
            (INFER, Error::Refused(text()), [400, 500, 400]),
            (INFER, Error::Invalid(text()), [400, 400, 400]),
            (INFER, Error::TooLarge(text()), [413, 413, 400]),
            (INFER, Error::Overloaded(text()), [429, 429, 503]),
            (INFER, Error::Deadline, [504, 504, 503]),
            (INFER, Error::UnknownModel(text()), [404, 404, 404]),
            (INFER, Error::NotReady(text()), [503, 503, 404]),
            ("/v2/models/m/versions/3/infer", Error::NotReady(text()), [503, 503, 503]),
            ("/v2/models/m/ready", Error::NotReady(text()), [503, 503, 400]),
            ("/v2/models/m/versions/3/ready", Error::NotReady(text()), [503, 503, 400]),
            ("/v2/models/m/stats", Error::UnknownModel(text()), [404, 404, 400]),
            ("/v2/repository/models/m/load", Error::NothingToLoad(text()), [404, 503, 500]),
            ("/v2/repository/models/m/load", Error::LoadFailed(text()), [503, 503, 400]),
            ("/v1/models/m:predict", Error::Malformed(text()), [400, 400, 400]),
            ("/v1/models/m:predict", Error::Members(text()), [400, 500, 400]),
            ("/v1/models/m:predict", Error::Values(text()), [400, 500, 400]),
            ("/v1/models/m:predict", Error::Invalid(text()), [400, 400, 400]),
            ("/nothing", Error::NoRoute, [404, 404, 404]),
        ] {
            assert_eq!(answers(path, &error).map(|(status, _)| status), statuses, "{path} {error:?}");
        }
    }

    #[test]
    fn texts_of_the_three() {
        let error = |text: &str| json!({"error": text});
        let [merged, kserve, triton] = answers(INFER, &Error::Malformed("no JSON".into())).map(|(_, body)| body);
        assert_eq!((merged, triton), (error("no JSON"), error("no JSON")));
        assert_eq!(kserve["detail"][0]["msg"], "no JSON");
        let [.., (_, triton)] = answers(INFER, &Error::UnknownModel("zz".into()));
        assert_eq!(triton, error("Request for unknown model: 'zz' is not found"));
        let [.., (_, triton)] = answers(INFER, &Error::NotReady("m".into()));
        assert_eq!(triton, error("Request for unknown model: 'm' has no available versions"));
        let [.., (_, triton)] = answers("/v2/models/m/versions/2", &Error::NotReady("m".into()));
        assert_eq!(triton, error("Request for unknown model: 'm' version 2 is not at ready state"));
        let [_, (_, kserve), (_, triton)] =
            answers("/v2/repository/models/zz/load", &Error::NothingToLoad("zz".into()));
        assert_eq!(kserve, error("Model with name zz is not ready."));
        assert_eq!(triton, error("failed to load 'zz', failed to poll from model repository"));
        let [_, (_, kserve), (_, triton)] = answers("/x", &Error::NoRoute);
        assert_eq!((kserve, triton), (json!({"detail": "Not Found"}), error("Not Found")));
    }

    #[test]
    fn health_of_triton_has_no_body() {
        let restated = |path: &str, status: u16| {
            let mut response = Response::new(Body::from("{\"ready\":true}"));
            *response.status_mut() = StatusCode::from_u16(status).unwrap();
            response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(14));
            Profile::Triton.manner(path).unwrap().restate(response)
        };
        for (path, before, after) in [
            ("/v2/health/live", 200, 200),
            ("/v2/health/ready", 200, 200),
            ("/v2/health/ready", 503, 400),
            ("/v2/models/m/ready", 200, 200),
        ] {
            let response = restated(path, before);
            assert_eq!(response.status(), after, "{path}");
            assert!(!response.headers().contains_key(CONTENT_LENGTH), "{path}");
            assert_eq!(read(response), Value::Null, "{path}");
        }
        assert_eq!(read(restated("/v2/models/m", 200)), json!({"ready": true}));
        assert!(Profile::Merged.manner("/v2/health/ready").is_none());
    }

    #[test]
    fn grpc_codes() {
        let code = |profile: Profile, verb, error: &Error| profile.status(error, verb, "").0;
        let unknown = Error::UnknownModel("zz".into());
        assert_eq!(code(Profile::Triton, Verb::Statistics, &unknown), code::INVALID_ARGUMENT);
        assert_eq!(code(Profile::Triton, Verb::Other, &unknown), code::NOT_FOUND);
        assert_eq!(code(Profile::Merged, Verb::Statistics, &unknown), code::NOT_FOUND);
        let load = Error::NothingToLoad("zz".into());
        assert_eq!(code(Profile::Triton, Verb::Other, &load), code::INTERNAL);
        assert_eq!(code(Profile::Kserve, Verb::Other, &load), code::UNAVAILABLE);
        let waiting = Error::NotReady("m".into());
        assert_eq!(Profile::Triton.status(&waiting, Verb::Other, "").0, code::NOT_FOUND);
        assert_eq!(Profile::Triton.status(&waiting, Verb::Other, "3").0, code::UNAVAILABLE);
        for profile in [Profile::Merged, Profile::Kserve, Profile::Triton] {
            assert_eq!(code(profile, Verb::Other, &Error::Malformed("t".into())), code::INVALID_ARGUMENT);
        }
    }
}
