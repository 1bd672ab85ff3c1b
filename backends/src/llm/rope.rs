//! Rotary position embedding: the angles, without the rotation itself. Plain arithmetic that every executor shares.
//!
//! The first `dims` numbers of a head are `dims / 2` pairs; pair `i` at position `p` turns by `p * frequency[i]`.
//!
//! ```text
//! halves       x0 x1 x2 x3 | y0 y1 y2 y3   pair i is (x_i, y_i)          Hugging Face checkpoints
//! interleaved  x0 y0 x1 y1 x2 y2 x3 y3     pair i is neighbours          GGUF files of llama's kind, whose rows of
//!                                                                        q and k the converter has reordered to suit
//! ```
//!
//! Frequencies are computed in 64 bits and rounded once; angles are products of 32-bit numbers because that is how the
//! models were trained (at position 100,000 the two differ by 0.006 radians).

/// One rotation of queries and keys.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// The base: pair `i` turns by `theta^(-2i / dims)` per position before scaling.
    pub theta: f64,
    /// Numbers of a head that are rotated; even, at most the head's width. The rest pass through.
    pub dims: usize,
    /// Are pairs neighbours, rather than halves apart?
    pub interleaved: bool,
    /// How the angles were stretched to a longer context.
    pub scaling: Scaling,
}

/// How angles were stretched to a longer context.
#[derive(Clone, Debug, PartialEq)]
pub enum Scaling {
    /// Not at all.
    None,
    /// All frequencies divided by `factor`.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// Llama 3.1: low frequencies divided by `factor`, high ones kept, a ramp between.
    Llama3 {
        /// The divisor of low frequencies.
        factor: f64,
        /// Wavelengths above `original / low` are divided.
        low: f64,
        /// Wavelengths below `original / high` are kept.
        high: f64,
        /// The context before stretching.
        original: f64,
    },
    /// YaRN: as `Llama3` with a ramp over pair indices, and a factor on sine and cosine.
    Yarn {
        /// The divisor of low frequencies.
        factor: f64,
        /// Turns within the original context above which a frequency is kept.
        beta_fast: f64,
        /// Turns below which it is divided.
        beta_slow: f64,
        /// The context before stretching.
        original: f64,
        /// Multiplies sine and cosine.
        attention: f64,
        /// Are the ends of the ramp whole numbers?
        truncate: bool,
    },
    /// A divisor for each pair (LongRoPE; also the `rope_freqs` tensor of a GGUF file).
    PerPair {
        /// Divisors while the served context is at most `original`.
        short: Vec<f64>,
        /// Divisors beyond.
        long: Vec<f64>,
        /// The context before stretching.
        original: usize,
        /// Multiplies sine and cosine.
        attention: f64,
    },
}

impl Scaling {
    /// Positions that angles are stretched to. Files of models that YaRN stretches state, in `max_position_embeddings`, the
    /// context before or after; where other methods are used, the one after.
    pub(super) fn context(&self, stated: usize) -> usize {
        match self {
            Scaling::Yarn { factor, original, .. } => stated.max((original * factor) as usize),
            _ => stated,
        }
    }
}

impl Rope {
    /// What each pair turns by per position: `dims / 2` numbers.
    ///
    /// `context` is the longest sequence that will be served. It chooses LongRoPE's divisors once and for all: they
    /// may not change while keys rotated by others lie in the cache (vLLM and llama.cpp choose in the same way;
    /// transformers chooses by the length so far and forgets its cache when it changes its mind).
    pub fn frequencies(&self, context: usize) -> Vec<f32> {
        let pairs = self.dims / 2;
        (0..pairs)
            .map(|pair| {
                let exponent = 2.0 * pair as f64 / self.dims as f64;
                self.stretch(pair, self.theta.powf(-exponent), context) as f32
            })
            .collect()
    }

    /// What sine and cosine are multiplied by.
    pub fn attention_factor(&self) -> f32 {
        match self.scaling {
            Scaling::Yarn { attention, .. } | Scaling::PerPair { attention, .. } => attention as f32,
            _ => 1.0,
        }
    }

    /// The frequency of `pair` after scaling.
    fn stretch(&self, pair: usize, frequency: f64, context: usize) -> f64 {
        match &self.scaling {
            Scaling::None => frequency,
            Scaling::Linear { factor } => frequency / factor,
            Scaling::Llama3 { factor, low, high, original } => {
                let wavelength = std::f64::consts::TAU / frequency;
                let kept = ((original / wavelength - low) / (high - low)).clamp(0.0, 1.0);
                mix(frequency, factor, kept)
            }
            Scaling::Yarn { factor, beta_fast, beta_slow, original, truncate, .. } => {
                let mut low = self.pair_turning(*beta_fast, *original);
                let mut high = self.pair_turning(*beta_slow, *original);
                if *truncate {
                    (low, high) = (low.floor(), high.ceil());
                }
                low = low.max(0.0);
                high = high.min(self.dims as f64 - 1.0);
                if low == high {
                    high += 0.001; // as the paper's code does, against a division by zero
                }
                let kept = 1.0 - ((pair as f64 - low) / (high - low)).clamp(0.0, 1.0);
                mix(frequency, factor, kept)
            }
            Scaling::PerPair { short, long, original, .. } => {
                let divisors = if context > *original { long } else { short };
                frequency / divisors.get(pair).copied().unwrap_or(1.0)
            }
        }
    }

    /// The (fractional) pair that makes `turns` turns within `original` positions.
    fn pair_turning(&self, turns: f64, original: f64) -> f64 {
        self.dims as f64 * (original / (turns * std::f64::consts::TAU)).ln() / (2.0 * self.theta.ln())
    }
}

/// `frequency`, of which the share `kept` is not divided by `factor`.
fn mix(frequency: f64, factor: &f64, kept: f64) -> f64 {
    frequency * kept + frequency / factor * (1.0 - kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rope(scaling: Scaling) -> Rope {
        Rope { theta: 10_000.0, dims: 8, interleaved: false, scaling }
    }

    #[test]
    fn unscaled_frequencies_are_powers_of_the_base() {
        assert_eq!(rope(Scaling::None).frequencies(10), [1.0, 0.1, 0.01, 0.001]);
    }

    #[test]
    fn llama3_keeps_fast_pairs_and_divides_slow_ones() {
        let scaled = rope(Scaling::Llama3 { factor: 8.0, low: 1.0, high: 4.0, original: 512.0 }).frequencies(10);
        assert_eq!(scaled[0], 1.0);
        assert_eq!(scaled[3], 0.001 / 8.0);
        assert!(scaled[1] == 0.1 && scaled[2] < 0.01 && scaled[2] >= 0.01 / 8.0);
    }

    #[test]
    fn long_divisors_begin_beyond_the_original_context() {
        let scaling = Scaling::PerPair { short: vec![1.0; 4], long: vec![2.0; 4], original: 16, attention: 1.5 };
        let rope = rope(scaling);
        assert_eq!(rope.frequencies(16)[0], 1.0);
        assert_eq!(rope.frequencies(17)[0], 0.5);
        assert_eq!(rope.attention_factor(), 1.5);
    }
}
