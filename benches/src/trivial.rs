//! A predictor that does next to nothing, and a servable around it: what is left to time is the server's own code.

use backends::{Call, DataType, InferError, Parameters, Port, Predictor, Profile, Settings, Signature, Tensor};
use server::batcher::{Batcher, Job, Options};
use server::dataplane::{Servable, Work};
use server::metrics::ModelMetrics;
use server::stats::Stats;
use std::sync::Arc;
use std::time::Duration;

/// Columns of a row, as many as the models of the other benchmarks have.
pub(crate) const COLUMNS: usize = 50;

/// The only input of [`Trivial`].
pub(crate) const INPUT: &str = "input-0";

/// Answers each row with its first value.
#[derive(Debug)]
pub(crate) struct Trivial {
    signature: Signature,
}

impl Trivial {
    pub(crate) fn new() -> Trivial {
        let port = |name: &str, shape| Port {
            name: name.into(),
            datatype: DataType::Fp32,
            also: Vec::new(),
            shape,
            any_shape: false,
            optional: false,
            labels: Vec::new(),
        };
        Trivial {
            signature: Signature {
                inputs: vec![port(INPUT, vec![-1, COLUMNS as i64])],
                outputs: vec![port("output-0", vec![-1])],
                strict: false,
                feature_names: Vec::new(),
                platform: backends::Platform::Xgboost,
            },
        }
    }
}

impl Predictor for Trivial {
    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn profile(&self) -> Profile {
        Profile {
            batchable: true,
            instances: 1,
            single_call: Duration::from_nanos(50),
            steady: true,
            computes: false,
            preferred_batch: 64,
            device: "cpu".into(),
            notes: Vec::new(),
            bytes: 0,
        }
    }

    fn predict(&self, call: &Call<'_>) -> Result<Vec<Tensor>, InferError> {
        let values = call.inputs.first().and_then(Tensor::values::<f32>).unwrap_or_default();
        let first: Vec<f32> = values.chunks_exact(COLUMNS).map(|row| row[0]).collect();
        let output = Tensor::from_vec("output-0", vec![first.len()], first);
        Ok(vec![output.map_err(|misfit| InferError::invalid(misfit.to_string()))?])
    }
}

/// A request for [`Trivial`], as the data plane would hand it to the batcher.
pub(crate) fn job(input: Tensor) -> Job {
    Job { inputs: vec![input], outputs: Vec::new(), parameters: Parameters::new(), deadline: None, priority: 1 }
}

/// A loaded [`Trivial`].
pub(crate) fn servable() -> Servable {
    let predictor = Trivial::new();
    let (signature, stats) = (predictor.signature.clone(), Arc::new(Stats::default()));
    Servable {
        name: "bench".into(),
        version: 1,
        work: Work::Predictor(Batcher::new(Box::new(predictor), Options::default(), stats.clone())),
        signature,
        stats,
        metrics: ModelMetrics::register("bench", 1, "cpu"),
        settings: Settings::default(),
        bytes: 0,
    }
}

/// Rows of numbers that look like standardized features, the same ones in every run.
#[derive(Debug)]
pub(crate) struct Numbers(u64);

impl Numbers {
    pub(crate) fn new() -> Numbers {
        Numbers(0x9e37_79b9_7f4a_7c15)
    }

    /// The next `count` numbers, nearly normal: the sum of four uniform ones (by xorshift64*).
    pub(crate) fn take(&mut self, count: usize) -> Vec<f32> {
        let mut uniform = || {
            self.0 ^= self.0 >> 12;
            self.0 ^= self.0 << 25;
            self.0 ^= self.0 >> 27;
            (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 40) as f32 / (1u32 << 24) as f32 - 0.5
        };
        (0..count).map(|_| (uniform() + uniform() + uniform() + uniform()) * 3f32.sqrt()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::{COLUMNS, Numbers};

    #[test]
    fn numbers_are_standardized_and_always_the_same() {
        let numbers = Numbers::new().take(1000 * COLUMNS);
        let mean = numbers.iter().sum::<f32>() / numbers.len() as f32;
        let variance = numbers.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / numbers.len() as f32;
        assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.02, "{mean} {variance}");
        assert_eq!(numbers, Numbers::new().take(1000 * COLUMNS));
    }
}
