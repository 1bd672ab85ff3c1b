//! The time of day, as files and protocols state it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The time since 1970, in UTC; none before that.
pub(crate) fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
