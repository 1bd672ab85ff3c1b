//! Where KServe and Triton answer the same request differently, which of the two is followed.

use backends::Conventions;
use protocol::write::NotFinite;

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
}
