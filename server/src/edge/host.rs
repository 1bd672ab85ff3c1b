//! The `Host` of a request. HTTP/1.1 has one, and an absolute target is of the same host (RFC 9112, 3.2): what stands
//! before this server may decide by one and this server by the other.

use crate::error::Error;
use http::header::HOST;
use http::uri::{Authority, Scheme};
use http::{Request, Version};

/// Is there one host, and the target's?
///
/// # Errors
/// There is none, or several, or one that cannot be a host, or another than the target's.
pub(super) fn check<B>(request: &Request<B>) -> Result<(), Error> {
    if request.version() != Version::HTTP_11 {
        return Ok(());
    }
    let mut hosts = request.headers().get_all(HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else {
        return Err(Error::Invalid("HTTP/1.1 asks for exactly one Host header".into()));
    };
    let uri = request.uri();
    let target = uri.authority().filter(|_| uri.scheme().is_some());
    if host.is_empty() && target.is_none() {
        // What a client sends whose target has no host.
        return Ok(());
    }
    let default = if uri.scheme() == Some(&Scheme::HTTPS) { 443 } else { 80 };
    let authority = Authority::try_from(host.as_bytes()).ok();
    let Some((name, port)) = authority.as_ref().and_then(|authority| place(authority, default)) else {
        return Err(Error::Invalid("the Host header is no host, with or without a port".into()));
    };
    match target.map(|target| place(target, default)) {
        None => Ok(()),
        Some(Some((meant, at))) if name.eq_ignore_ascii_case(meant) && port == at => Ok(()),
        Some(_) => Err(Error::Invalid("the Host header and the host of the request's target differ".into())),
    }
}

/// Host and port, the latter filled in; `None` where a user's name stands before them, or what follows is no port.
fn place(authority: &Authority, default: u16) -> Option<(&str, u16)> {
    let host = authority.host();
    let digits = match authority.as_str().strip_prefix(host)? {
        "" => "",
        rest => rest.strip_prefix(':')?,
    };
    let port = match digits {
        "" => default,
        digits if digits.bytes().all(|byte| byte.is_ascii_digit()) => digits.parse().ok()?,
        _ => return None,
    };
    (!host.is_empty()).then_some((host, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(target: &str, host: &str) -> Result<(), String> {
        let request = Request::get(target).version(Version::HTTP_11).header(HOST, host).body(()).unwrap();
        check(&request).map_err(|error| error.message())
    }

    #[test]
    fn what_may_be_a_host() {
        for host in ["a", "a:80", "a:", "A.example", "my_service:8080", "127.0.0.1:1", "[::1]", "[::1]:8080", ""] {
            assert_eq!(checked("/v2", host), Ok(()), "{host}");
        }
        for host in
            ["a b", "a, b", "u@a", "a@a", "a/b", "a?", ":80", "a:b", "a:+80", "a:65536", "a:1:2", "[::1", "a%20"]
        {
            assert!(checked("/v2", host).unwrap_err().contains("is no host"), "{host}");
        }
    }

    #[test]
    fn the_port_of_the_scheme_need_not_be_said() {
        for (target, host) in [
            ("http://a/v2", "a"),
            ("http://a/v2", "A:80"),
            ("http://a:80/v2", "a"),
            ("https://a/v2", "a:443"),
            ("http://[::1]:80/v2", "[::1]"),
        ] {
            assert_eq!(checked(target, host), Ok(()), "{target} {host}");
        }
        for (target, host) in [
            ("http://a/v2", "b"),
            ("http://a/v2", "a:443"),
            ("https://a/v2", "a:80"),
            ("http://a:81/v2", "a"),
            ("http://u@a/v2", "a"),
        ] {
            assert!(checked(target, host).unwrap_err().contains("differ"), "{target} {host}");
        }
    }
}
