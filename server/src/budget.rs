//! The process's budget of request bytes: REST bodies and gRPC messages draw on the same one. Not a limit of a single
//! request; those are the skins' and `backends::Limits`.

use crate::error::Error;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes of request bodies that the process holds at a time.
#[derive(Clone, Debug)]
pub struct Budget {
    pages: Arc<Semaphore>,
}

/// The budget is counted in pages, so that small requests cost one operation.
pub const PAGE: usize = 4096;

impl Budget {
    /// At most `bytes` at a time.
    pub fn new(bytes: u64) -> Self {
        let pages = usize::try_from(bytes / PAGE as u64).unwrap_or(usize::MAX);
        Budget { pages: Arc::new(Semaphore::new(pages.clamp(1, Semaphore::MAX_PERMITS))) }
    }

    fn take(&self, pages: usize) -> Result<OwnedSemaphorePermit, Error> {
        let pages = u32::try_from(pages).unwrap_or(u32::MAX);
        self.pages.clone().try_acquire_many_owned(pages).map_err(|_| {
            Error::Overloaded(
                "the server holds as many bytes of requests as it may (--inflight-bytes); try again later".into(),
            )
        })
    }
}

/// A share of the budget that grows with a body.
#[derive(Debug, Default)]
pub struct Room {
    pages: usize,
    permit: Option<OwnedSemaphorePermit>,
}

impl Room {
    /// Makes it room for `bytes` in all.
    ///
    /// # Errors
    /// [`Error::Overloaded`].
    pub fn grow(&mut self, budget: &Budget, bytes: usize) -> Result<(), Error> {
        let pages = bytes.div_ceil(PAGE);
        if pages > self.pages {
            let more = budget.take(pages - self.pages)?;
            self.pages = pages;
            match &mut self.permit {
                Some(permit) => permit.merge(more),
                None => self.permit = Some(more),
            }
        }
        Ok(())
    }

    /// Gives all of it back: what it stood for has been dealt with.
    pub fn clear(&mut self) {
        *self = Room::default();
    }
}
