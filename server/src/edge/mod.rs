//! Sockets: listeners, connections and their timeouts, who may come in. Nothing here knows what is served.

pub mod activity;
pub mod keys;
pub mod listener;
