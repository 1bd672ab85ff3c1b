//! Chance that is the same in every run: SplitMix64, and the distributions that are made of it. Not for secrets.

/// A stream of numbers that its seed decides.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

/// SplitMix64's increment.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// The `index`-th number of the stream of a seed, without those before it.
pub(crate) fn mix(seed: u64, index: u64) -> u64 {
    let mut z = seed.wrapping_add(index.wrapping_add(1).wrapping_mul(GOLDEN));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// Between 0 and 1, and neither of them: its logarithm is finite.
    pub(crate) fn uniform(&mut self) -> f64 {
        let bits = mix(self.0, 0);
        self.0 = self.0.wrapping_add(GOLDEN);
        ((bits >> 11) as f64 + 0.5) / (1_u64 << 53) as f64
    }

    /// True so often.
    pub(crate) fn chance(&mut self, share: f64) -> bool {
        self.uniform() < share
    }

    /// What one waits for something that does not know how long one waits.
    pub(crate) fn exponential(&mut self, mean: f64) -> f64 {
        -mean * self.uniform().ln()
    }

    /// Of mean 0 and variance 1, by Box and Muller's method.
    pub(crate) fn normal(&mut self) -> f64 {
        let radius = (-2.0 * self.uniform().ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }

    /// A gap between arrivals: gamma, of mean 1 and with this standard deviation. At 1 arrivals know nothing of each
    /// other; above, they come in bursts.
    pub(crate) fn gap(&mut self, deviation: f64) -> f64 {
        let shape = 1.0 / (deviation * deviation);
        // The method below is for shapes above 1; a power of a uniform number brings the shape down by 1.
        self.gamma(shape + 1.0) * self.uniform().powf(1.0 / shape) / shape
    }

    /// Marsaglia and Tsang's method: the cube of a normal number, and a test that few fail.
    fn gamma(&mut self, shape: f64) -> f64 {
        let d = shape - 1.0 / 3.0;
        loop {
            let x = self.normal();
            let v = (1.0 + x / (9.0 * d).sqrt()).powi(3);
            if v > 0.0 && self.uniform().ln() < 0.5 * x * x + d - d * v + d * v.ln() {
                return d * v;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Random;

    const COUNT: usize = 100_000;

    fn moments(mut draw: impl FnMut(&mut Random) -> f64) -> (f64, f64) {
        let mut random = Random::new(7);
        let values: Vec<f64> = (0..COUNT).map(|_| draw(&mut random)).collect();
        let mean = values.iter().sum::<f64>() / COUNT as f64;
        let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / COUNT as f64;
        (mean, variance.sqrt())
    }

    #[test]
    fn distributions_have_their_mean_and_deviation() {
        let near = |(mean, deviation): (f64, f64), (m, d): (f64, f64)| {
            assert!((mean - m).abs() < 0.05 && (deviation - d).abs() < 0.05 * d, "{mean} {deviation}, not {m} {d}");
        };
        near(moments(Random::uniform), (0.5, 12_f64.sqrt().recip()));
        near(moments(Random::normal), (0.0, 1.0));
        near(moments(|random| random.exponential(2.0)), (2.0, 2.0));
        for deviation in [0.5, 1.0, 3.0] {
            near(moments(|random| random.gap(deviation)), (1.0, deviation));
        }
        let share = moments(|random| f64::from(u8::from(random.chance(0.2)))).0;
        assert!((share - 0.2).abs() < 0.01, "{share}");
    }
}
