//! Sockets: listeners, connections and their timeouts, who may come in. Nothing here knows what is served.

pub mod activity;
mod again;
mod expiry;
mod followed;
mod host;
pub mod keys;
pub mod listener;
mod stream;
pub mod tls;
mod unread;
