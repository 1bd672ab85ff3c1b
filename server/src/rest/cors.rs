//! Web pages of other origins, which browsers let ask only where the server says that they may.

use axum::Router;
use axum::extract::Request;
use http::HeaderValue;
use http::header::ORIGIN;
use std::time::Duration;
use tower::ServiceExt;
use tower_http::cors::{AllowHeaders, AllowMethods, AllowOrigin, Any, CorsLayer};

/// For how long a browser may remember that it has asked.
const REMEMBERED: Duration = Duration::from_secs(600);

/// Web pages that may ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origins {
    /// Those of any origin.
    All,
    /// Those of these.
    These(Vec<HeaderValue>),
}

impl Origins {
    /// Reads `*`, or origins with commas between them; nothing comes of `none`.
    ///
    /// # Errors
    /// Which one is no origin, and what would be.
    pub fn read(text: &str) -> Result<Option<Self>, String> {
        match text {
            "*" => return Ok(Some(Origins::All)),
            "none" => return Ok(None),
            _ => {}
        }
        text.split(',')
            .map(|each| origin(each.trim()))
            .collect::<Result<_, _>>()
            .map(|these| Some(Origins::These(these)))
    }

    /// `routes` for browsers, too, which ask whether a page may and are told with each answer that it may. Any method and any
    /// header may be asked with: whoever may ask at all may ask everything, with a key where one is wanted. Who names no
    /// origin is no browser, and is answered as ever.
    pub fn before(&self, routes: Router) -> Router {
        let told = routes.clone().layer(self.layer());
        Router::new().fallback(move |request: Request| {
            let router = if request.headers().contains_key(ORIGIN) { told.clone() } else { routes.clone() };
            router.oneshot(request)
        })
    }

    fn layer(&self) -> CorsLayer {
        let origins = match self {
            Origins::All => AllowOrigin::any(),
            Origins::These(these) => AllowOrigin::list(these.iter().cloned()),
        };
        CorsLayer::new()
            .allow_origin(origins)
            .allow_methods(AllowMethods::mirror_request())
            .allow_headers(AllowHeaders::mirror_request())
            .expose_headers(Any)
            .max_age(REMEMBERED)
    }
}

/// An origin as browsers write it: `null`, or scheme, host and port in small letters, without the port that goes without saying.
fn origin(text: &str) -> Result<HeaderValue, String> {
    let wrong = || format!("`{text}` is no origin, such as https://example.com or http://localhost:3000");
    if text == "null" {
        return Ok(HeaderValue::from_static("null"));
    }
    let small = text.strip_suffix('/').unwrap_or(text).to_ascii_lowercase();
    let (scheme, host) = small.split_once("://").ok_or_else(wrong)?;
    let usual = match scheme {
        "http" => ":80",
        "https" => ":443",
        _ => "",
    };
    let host = host.strip_suffix(usual).unwrap_or(host);
    let is_name = |text: &str, more: &str| {
        !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || more.as_bytes().contains(&byte))
    };
    if !is_name(scheme, "+-.") || !is_name(host, "-._:[]") {
        return Err(wrong());
    }
    HeaderValue::try_from(format!("{scheme}://{host}")).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_read() {
        assert_eq!((Origins::read("*"), Origins::read("none")), (Ok(Some(Origins::All)), Ok(None)));
        let two = ["https://a.example", "http://localhost:3000"];
        let expected = Origins::These(two.map(HeaderValue::from_static).to_vec());
        assert_eq!(Origins::read("https://a.example, http://localhost:3000"), Ok(Some(expected.clone())));
        assert_eq!(Origins::read("https://A.example:443,http://localhost:3000/"), Ok(Some(expected)));
        let others = ["null", "app://obsidian.md", "http://[::1]:8080", "chrome-extension://abc"];
        let expected = Origins::These(others.map(HeaderValue::from_static).to_vec());
        assert_eq!(Origins::read(&others.join(",")), Ok(Some(expected)));
        for wrong in [
            "a.example",
            "https://a.example/x",
            "*,https://a",
            "",
            "https://a,",
            "https://*.a",
            "https://u@a",
            "https://a?x",
        ] {
            let error = Origins::read(wrong).unwrap_err();
            assert!(error.contains("is no origin, such as https://example.com"), "{error}");
        }
    }
}
