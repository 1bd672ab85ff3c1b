//! How much there is room for: tokens of a sequence, sequences at a time, and blocks of keys and values for them.

use super::blocks::BLOCK;
use super::device::Place;
use super::model::LanguageOptions;
use super::spec::DecoderSpec;
use std::fmt;

/// Sequences at a time, and rows of a step, that suit a CPU: more of them take longer and are not more per second.
const CPU_STEP: (u32, u32) = (64, 256);
/// The same for a GPU, which computes hundreds of rows in the time of one, and a prompt's thousands at its best rate.
#[cfg(feature = "cuda")]
const GPU_STEP: (u32, u32) = (256, 4096);

/// Tokens of prompt and output together, at most, and what they are bounded by. Is written as messages call it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    /// So many.
    pub tokens: u32,
    /// Because of this.
    pub bound: Bound,
}

/// What bounds a context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    /// What the model was made for.
    Model,
    /// What was asked for, as `max-model-len`.
    Wish,
    /// Memory for keys and values: a sequence of the length that the model was made for has no room in it.
    Cache {
        /// That length.
        model: u32,
        /// Bytes that it would take.
        needed: u64,
    },
}

impl fmt::Display for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Context { tokens, bound } = self;
        match bound {
            Bound::Model => write!(f, "this model's context of {tokens} tokens"),
            Bound::Wish => write!(f, "the context of {tokens} tokens (--max-model-len)"),
            Bound::Cache { .. } => write!(f, "the context of {tokens} tokens (all that --kv-cache-bytes has room for)"),
        }
    }
}

impl Context {
    /// What whoever runs the model ought to know of it: that it is shorter than anybody has asked for.
    pub fn warning(&self) -> Option<String> {
        let Bound::Cache { model, needed } = self.bound else { return None };
        Some(format!(
            "a context of {} of the model's {model} tokens: --kv-cache-bytes has room for no more, and {needed} bytes \
             would be needed for all",
            self.tokens
        ))
    }
}

/// How much there is room for.
#[derive(Debug)]
pub(super) struct Room {
    pub(super) context: Context,
    /// Sequences at a time.
    pub(super) running: u32,
    /// Rows of a step.
    pub(super) step_tokens: u32,
    pub(super) blocks: u32,
    /// Of all blocks.
    pub(super) bytes: usize,
}

impl Room {
    /// On a CPU, where weights are in nobody's way.
    ///
    /// # Errors
    /// What is wished for takes more than there is.
    pub(super) fn on_cpu(spec: &DecoderSpec, wishes: &LanguageOptions) -> Result<Self, String> {
        Self::of(spec, wishes, wishes.cache.bytes(&Place::Cpu(None))?, (wishes.cache_bytes, CPU_STEP))
    }

    /// On a GPU with so many bytes free, of which weights take some.
    ///
    /// # Errors
    /// What is wished for takes more than there is.
    #[cfg(feature = "cuda")]
    pub(super) fn on_gpu(
        spec: &DecoderSpec,
        wishes: &LanguageOptions,
        (free, weights): (u64, u64),
    ) -> Result<Self, String> {
        let rest = free
            .checked_sub(weights)
            .ok_or_else(|| format!("its weights take {weights} bytes, and the GPU has {free} left"))?;
        let cache_bytes = wishes.gpu_cache_bytes.unwrap_or(rest / 4);
        Self::of(spec, wishes, wishes.cache.bytes(&Place::Gpu)?, (cache_bytes, GPU_STEP))
    }

    /// Numbers of the cache have `number` bytes.
    fn of(
        spec: &DecoderSpec,
        wishes: &LanguageOptions,
        number: usize,
        (cache_bytes, (running, step_tokens)): (u64, (u32, u32)),
    ) -> Result<Self, String> {
        let (running, step_tokens) = (wishes.running.unwrap_or(running), wishes.step_tokens.unwrap_or(step_tokens));
        let made_for = u32::try_from(spec.context).unwrap_or(u32::MAX);
        let position = 2 * spec.layers.len() * spec.attention.kv_width() * number;
        let block = (position as u64).saturating_mul(BLOCK.into()).max(1);
        let affordable = cache_bytes / block;
        let most = affordable.saturating_mul(BLOCK.into()).min(u32::MAX.into()) as u32;
        let needed = |tokens: u32| u64::from(tokens.div_ceil(BLOCK)) * block;
        if let Some(wanted) = wishes.context {
            if wanted > made_for {
                return Err(format!("max-model-len is {wanted}; the model was made for {made_for} tokens"));
            }
            if wanted > most {
                let needed = needed(wanted);
                return Err(format!(
                    "max-model-len is {wanted}; kv-cache-bytes has room for {most} tokens, and would have to be {needed}"
                ));
            }
        }
        let (tokens, bound) = match wishes.context {
            Some(wanted) => (wanted, Bound::Wish),
            None if most < made_for => (most, Bound::Cache { model: made_for, needed: needed(made_for) }),
            None => (made_for, Bound::Model),
        };
        if tokens < 2 {
            return Err(format!("kv-cache-bytes has no room for a block of {BLOCK} tokens: {block} bytes"));
        }
        // More than all sequences that may run can fill is never touched.
        let filled = u64::from(tokens.div_ceil(BLOCK)) * u64::from(running);
        let blocks = affordable.min(filled).min(u32::MAX.into());
        let context = Context { tokens, bound };
        Ok(Room { context, running, step_tokens, blocks: blocks as u32, bytes: (blocks * block) as usize })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    /// The room of the example, which was made for 512 tokens.
    fn room(context: Option<u32>, cache_bytes: u64) -> Result<Room, String> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/assistant/1/config.json");
        let spec = DecoderSpec::from_config(&path, &std::fs::read(&path).unwrap()).unwrap();
        Room::on_cpu(&spec, &LanguageOptions { context, cache_bytes, ..LanguageOptions::default() })
    }

    #[test]
    fn a_context_says_what_it_is_bounded_by() {
        let context = room(None, 64 << 20).unwrap().context;
        assert_eq!((context.bound, context.warning()), (Bound::Model, None));
        assert_eq!(context.to_string(), format!("this model's context of {} tokens", context.tokens));
        let wished = room(Some(100), 64 << 20).unwrap().context;
        assert_eq!((wished.tokens, wished.warning()), (100, None));
        assert_eq!(wished.to_string(), "the context of 100 tokens (--max-model-len)");
        let whole = context.tokens;
        let small = room(None, 200 << 10).unwrap().context;
        let Bound::Cache { model, needed } = small.bound else { panic!("{small:?}") };
        assert!(small.tokens < whole && model == whole, "{small:?}");
        assert!(small.to_string().contains("--kv-cache-bytes"), "{small}");
        let warning = small.warning().unwrap();
        assert!(
            warning.starts_with(&format!("a context of {} of the model's {whole} tokens", small.tokens)),
            "{warning}"
        );
        assert!(warning.contains(&needed.to_string()), "{warning}");
        // With as much there is room for all.
        assert_eq!(room(None, needed).unwrap().context, context);
        assert_ne!(room(None, needed - 1).unwrap().context, context);
    }
}
