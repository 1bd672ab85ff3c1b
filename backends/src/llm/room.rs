//! How much there is room for: tokens of a sequence, sequences at a time, and blocks of keys and values for them.

use super::device::Place;
use super::model::LanguageOptions;
use super::spec::DecoderSpec;

/// Positions of a block of keys and values.
pub(super) const BLOCK: u32 = 32;
/// Sequences at a time, and rows of a step, that suit a CPU: more of them take longer and are not more per second.
const CPU_STEP: (u32, u32) = (64, 256);
/// The same for a GPU, which computes hundreds of rows in the time of one, and a prompt's thousands at its best rate.
#[cfg(feature = "cuda")]
const GPU_STEP: (u32, u32) = (256, 4096);

/// How much there is room for.
#[derive(Debug)]
pub(super) struct Room {
    pub(super) context: u32,
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
        if let Some(wanted) = wishes.context {
            if wanted > made_for {
                return Err(format!("max-model-len is {wanted}; the model was made for {made_for} tokens"));
            }
            if wanted > most {
                let needed = u64::from(wanted.div_ceil(BLOCK)) * block;
                return Err(format!(
                    "max-model-len is {wanted}; kv-cache-bytes has room for {most} tokens, and would have to be {needed}"
                ));
            }
        }
        let context = wishes.context.unwrap_or(made_for.min(most));
        if context < 2 {
            return Err(format!("kv-cache-bytes has no room for a block of {BLOCK} tokens: {block} bytes"));
        }
        // More than all sequences that may run can fill is never touched.
        let needed = u64::from(context.div_ceil(BLOCK)) * u64::from(running);
        let blocks = affordable.min(needed).min(u32::MAX.into());
        Ok(Room { context, running, step_tokens, blocks: blocks as u32, bytes: (blocks * block) as usize })
    }
}
