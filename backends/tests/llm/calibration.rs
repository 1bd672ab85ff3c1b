//! Scales of keys and values that lie beside weights: found by either name, and used where the cache has eight bits.

use crate::parity::goldens;
use backends::LoadError;
use backends::llm::calibration::scales;
use backends::llm::layout;
use backends::llm::weights::Format;
use backends::llm::weights::dummy::Dummy;
use backends::llm::weights::{Info, Weights};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

/// Weights, and what was measured of keys and values.
struct Calibrated {
    weights: Dummy,
    measured: BTreeMap<String, (Info, Vec<u8>)>,
}

impl Calibrated {
    fn new(weights: Dummy) -> Self {
        Calibrated { weights, measured: BTreeMap::new() }
    }

    fn with(mut self, name: &str, shape: &[usize], scale: f32) -> Self {
        let info = Info { format: Format::F32, shape: shape.to_vec() };
        self.measured.insert(format!("model.layers.{name}"), (info, scale.to_le_bytes().repeat(2)));
        self
    }
}

impl Weights for Calibrated {
    fn file(&self) -> &Path {
        self.weights.file()
    }

    fn names(&self) -> Vec<&str> {
        self.weights.names().into_iter().chain(self.measured.keys().map(String::as_str)).collect()
    }

    fn info(&self, name: &str) -> Option<&Info> {
        self.measured.get(name).map(|(info, _)| info).or_else(|| self.weights.info(name))
    }

    fn read(&self, name: &str, range: Range<usize>) -> Result<Vec<u8>, LoadError> {
        match self.measured.get(name) {
            Some((_, bytes)) => Ok(bytes[range].to_vec()),
            None => self.weights.read(name, range),
        }
    }
}

#[test]
fn scales_have_two_names_and_are_numbers_above_zero() {
    // Keys and values have a projection each, or one with the queries.
    for case in ["llama3", "phi3"] {
        let golden = goldens(case).remove(0);
        let spec = golden.spec();
        let weights = || Calibrated::new(golden.weights(&spec));
        let none = vec![[1.0; 2]; spec.layers.len()];
        assert_eq!(scales(&spec, &weights()).unwrap(), none, "{case}");

        let some = weights().with("0.self_attn.k_scale", &[], 0.25).with("1.self_attn.v_proj.v_scale", &[1], 3.0);
        layout::check(&spec, &some).unwrap();
        let mut want = none;
        (want[0][0], want[1][1]) = (0.25, 3.0);
        assert_eq!(scales(&spec, &some).unwrap(), want, "{case}");

        for (shape, scale, reason) in [
            (&[1][..], 0.0, "is 0;"),
            (&[], -1.0, "is -1;"),
            (&[], f32::NAN, "is NaN;"),
            (&[2], 1.0, "has shape [2];"),
            (&[0], 1.0, "has shape [0];"),
        ] {
            let error = scales(&spec, &weights().with("1.self_attn.k_scale", shape, scale)).unwrap_err().to_string();
            assert!(error.contains("layers.1.self_attn.k_scale") && error.contains(reason), "{error}");
        }
        let strange = weights().with("0.self_attn.q_scale", &[], 1.0);
        assert!(layout::check(&spec, &strange).unwrap_err().to_string().contains("unexpected"), "{case}");
    }
}

/// Powers of two change no bit but of the smallest numbers; where scales are much too small, all is cut.
#[cfg(any(feature = "cuda", feature = "emulator"))]
#[test]
fn a_cache_of_eight_bits_is_scaled_and_one_of_sixteen_is_not() {
    use crate::cuda::{device, options, prompt_logprobs};
    use backends::llm::cuda::{CacheType, CudaExecutor, Options};

    let golden = goldens("llama3").remove(0);
    let spec = golden.spec();
    let told = |cache, [key, value]: [f32; 2]| {
        let layers = 0..spec.layers.len();
        let weights = layers.fold(Calibrated::new(golden.weights(&spec)), |weights, layer| {
            let keys = weights.with(&format!("{layer}.self_attn.k_scale"), &[1], key);
            keys.with(&format!("{layer}.self_attn.v_scale"), &[1], value)
        });
        let options = Options { cache, ..options(64, golden.context) };
        let mut executor = CudaExecutor::load(spec.clone(), &weights, device(), options).unwrap();
        // In chunks: what was stored is read by both kernels.
        let told = [7, 1].map(|chunk| prompt_logprobs(&mut executor, &golden.tokens, chunk));
        told.concat().iter().map(|told| told.logprob).collect::<Vec<f32>>()
    };
    let distance = |a: &[f32], b: &[f32]| {
        let squares: f32 = a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum();
        (squares / a.len() as f32).sqrt()
    };
    let (wide, plain) = (told(CacheType::Bf16, [1.0; 2]), told(CacheType::Fp8, [1.0; 2]));
    assert_eq!(told(CacheType::Bf16, [8.0, 0.125]), wide);
    let rounding = distance(&plain, &wide);
    let (moved, cut) = (told(CacheType::Fp8, [0.5, 0.125]), told(CacheType::Fp8, [1.0 / 4096.0; 2]));
    let (moved, cut) = (distance(&moved, &plain), distance(&cut, &plain));
    println!("rounding {rounding}, other powers of two {moved}, cut {cut}");
    assert!(moved < rounding / 2.0 && cut > 3.0 * rounding, "{rounding} {moved} {cut}");
}
