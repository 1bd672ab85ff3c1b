//! The list of models, and what is said of each. Which models there are is not known here.

use serde::Serialize;

/// A list of models.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ModelList<'a> {
    /// `"list"`
    pub object: List,
    /// The models.
    pub data: Vec<ModelCard<'a>>,
    /// Their names once more, for clients of the v1 protocol, which asks at the same path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub models: Option<Vec<&'a str>>,
}

impl<'a> ModelList<'a> {
    /// For a path that the v1 protocol has too (`/v1/models`) or not (`/openai/v1/models`).
    pub fn new(data: Vec<ModelCard<'a>>, shared: bool) -> Self {
        let models = shared.then(|| data.iter().map(|card| card.id).collect());
        ModelList { object: List::List, data, models }
    }
}

/// `"list"`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum List {
    /// `"list"`
    #[serde(rename = "list")]
    List,
}

/// What is said of a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ModelCard<'a> {
    /// Its name.
    pub id: &'a str,
    /// `"model"`
    pub object: &'static str,
    /// When it was loaded, in seconds since 1970.
    pub created: u64,
    /// Whose it is.
    pub owned_by: &'a str,
    /// Where it came from; its name, if nothing else is to be told.
    pub root: Option<&'a str>,
    /// The model that it adapts.
    pub parent: Option<&'a str>,
    /// Tokens that its context has room for; none of a model that reads no text.
    pub max_model_len: Option<u32>,
    /// What may be done with it.
    pub permission: Vec<Permission>,
}

impl<'a> ModelCard<'a> {
    /// A model that stands for itself.
    pub fn new(id: &'a str, created: u64, owned_by: &'a str) -> Self {
        let permission = vec![Permission::new(id, created)];
        let (root, parent, max_model_len) = (Some(id), None, None);
        ModelCard { id, object: "model", created, owned_by, root, parent, max_model_len, permission }
    }
}

/// What may be done with a model. OpenAI has dropped it; clients of vLLM may look for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct Permission {
    pub id: String,
    pub object: &'static str,
    pub created: u64,
    pub allow_create_engine: bool,
    pub allow_sampling: bool,
    pub allow_logprobs: bool,
    pub allow_search_indices: bool,
    pub allow_view: bool,
    pub allow_fine_tuning: bool,
    pub organization: &'static str,
    pub group: Option<&'static str>,
    pub is_blocking: bool,
}

impl Permission {
    /// Everybody may ask and look.
    pub fn new(model: &str, created: u64) -> Self {
        Permission {
            id: format!("modelperm-{model}"),
            object: "model_permission",
            created,
            allow_create_engine: false,
            allow_sampling: true,
            allow_logprobs: true,
            allow_search_indices: false,
            allow_view: true,
            allow_fine_tuning: false,
            organization: "*",
            group: None,
            is_blocking: false,
        }
    }
}
