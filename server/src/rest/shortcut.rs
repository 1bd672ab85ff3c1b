//! Inference past the router. Nearly every request is `POST /v2/models/{model}/infer` of a model that serves, with a key
//! that fits; such a one goes straight to its handler. Everything else is answered by the routes, so that what a
//! refusal says, and which paths there are, is decided in one place.

use super::{Rest, reply, v2};
use crate::dataplane::Servable;
use crate::edge::keys::Keys;
use axum::response::Response;
use bytes::Bytes;
use http::header::ORIGIN;
use http::{Method, Request};
use hyper::body::Body;
use std::sync::Arc;

/// The way past the router.
#[derive(Clone)]
pub struct Shortcut {
    rest: Rest,
    keys: Option<Arc<Keys>>,
    /// Are web pages of other origins told that they may ask? That is the routes' to do.
    pages: bool,
}

impl Shortcut {
    /// Past the router of `rest`, for those who have one of the keys; `pages` says whether web pages of other origins may ask.
    pub fn new(rest: Rest, keys: Option<Arc<Keys>>, pages: bool) -> Self {
        Shortcut { rest, keys, pages }
    }

    /// The model that a request may go to straight away.
    pub fn find<B>(&self, request: &Request<B>) -> Option<Arc<Servable>> {
        if *request.method() != Method::POST {
            return None;
        }
        let model = request.uri().path().strip_prefix("/v2/models/")?.strip_suffix("/infer")?;
        // Escapes and versions are the router's.
        if model.bytes().any(|byte| matches!(byte, b'/' | b'%')) {
            return None;
        }
        if self.pages && request.headers().contains_key(ORIGIN) {
            return None;
        }
        if let Some(keys) = &self.keys {
            keys.check(request.headers()).ok()?;
        }
        self.rest.plane.servable(model, None).ok()
    }

    /// Answers a request for `servable`.
    pub async fn infer<B>(&self, servable: Arc<Servable>, request: Request<B>) -> Response
    where
        B: Body<Data = Bytes, Error: std::error::Error + 'static> + Unpin,
    {
        let (parts, body) = request.into_parts();
        reply::or_error(v2::infer_on(&self.rest, servable, &parts.headers, body).await)
    }
}
