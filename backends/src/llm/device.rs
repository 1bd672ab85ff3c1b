//! Where language models are computed: on a GPU where there is one that can, else on the CPU.

use super::cpu::CacheType;
#[cfg(feature = "cuda")]
use super::cuda;
use super::spec::{DecoderSpec, FloatType};

/// What is wished for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// A GPU where there is one, for the models that its kernels know; else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// A GPU, or nothing.
    Cuda,
}

/// How keys and values are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CacheFormat {
    /// What suits the device: bfloat16 on a GPU, float16 on a CPU.
    #[default]
    Auto,
    /// The upper half of 32 bits. On GPUs.
    Bf16,
    /// Eight bits, e4m3. On GPUs.
    Fp8,
}

impl CacheFormat {
    /// Bytes of a number.
    ///
    /// # Errors
    /// The place has no such format.
    pub(super) fn bytes(self, place: &Place) -> Result<usize, String> {
        let name = match (self, place) {
            #[cfg(feature = "cuda")]
            (format, Place::Gpu) => return Ok(format.on_gpus().bytes()),
            (CacheFormat::Auto, Place::Cpu(_)) => return Ok(CacheType::F16.bytes()),
            (CacheFormat::Bf16, Place::Cpu(_)) => "bfloat16",
            (CacheFormat::Fp8, Place::Cpu(_)) => "fp8",
        };
        Err(format!(
            "--kv-cache-dtype {name}: GPUs alone store keys and values so; on a CPU they are float16, which is \
             --kv-cache-dtype auto"
        ))
    }

    /// What it is on a GPU.
    #[cfg(feature = "cuda")]
    pub(super) fn on_gpus(self) -> cuda::CacheType {
        match self {
            CacheFormat::Auto | CacheFormat::Bf16 => cuda::CacheType::Bf16,
            CacheFormat::Fp8 => cuda::CacheType::Fp8,
        }
    }
}

/// Where a model goes.
pub(super) enum Place {
    /// The CPU; and why, where a GPU was thinkable.
    Cpu(Option<String>),
    /// A GPU: the first of those that CUDA_VISIBLE_DEVICES leaves.
    #[cfg(feature = "cuda")]
    Gpu,
}

/// Where language models will be computed, in one line; `None` where that goes without saying.
///
/// # Errors
/// A GPU is wished for, and cannot be used: why, and what would help.
pub fn announce(choice: Choice) -> Result<Option<String>, String> {
    if choice == Choice::Cpu {
        return Ok(None);
    }
    match gpus() {
        Ok(names) => Ok(Some(computed_on(&names))),
        // A binary without kernels says nothing of what it lacks.
        Err(_) if choice == Choice::Auto && !cfg!(feature = "cuda") => Ok(None),
        Err(absent) if choice == Choice::Auto => {
            Ok(Some(format!("language models are computed on the CPU: {}", absent.reason())))
        }
        Err(absent) => Err(format!("--device cuda: {}; {}", absent.reason(), absent.remedy())),
    }
}

/// The line about GPUs, of which the first serves.
fn computed_on(names: &[String]) -> String {
    let first = names.first().map_or("", String::as_str);
    match names.len() {
        0 | 1 => format!("language models are computed on a GPU: {first}"),
        all => format!(
            "language models are computed on the first of {all} GPUs: {first}; the others stay idle. Start a process for \
             each, with CUDA_VISIBLE_DEVICES=0, 1 ..."
        ),
    }
}

/// Why there is no GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Absent {
    /// The binary has no kernels.
    #[cfg(not(feature = "cuda"))]
    NotBuilt,
    /// The machine has no driver.
    #[cfg(feature = "cuda")]
    NoDriver,
    /// The driver says no.
    #[cfg(feature = "cuda")]
    Driver(String),
    /// The driver knows of none.
    #[cfg(feature = "cuda")]
    NoGpu,
    /// It knows of none but these, for which there are no kernels.
    #[cfg(feature = "cuda")]
    TooOld(Vec<String>),
}

impl Absent {
    fn reason(&self) -> String {
        match self {
            #[cfg(not(feature = "cuda"))]
            Absent::NotBuilt => "this binary has no kernels for GPUs".into(),
            #[cfg(feature = "cuda")]
            Absent::NoDriver => "NVIDIA's driver (libcuda.so.1) is not on this machine".into(),
            #[cfg(feature = "cuda")]
            Absent::Driver(why) => format!("NVIDIA's driver cannot be used: {why}"),
            #[cfg(feature = "cuda")]
            Absent::NoGpu => "NVIDIA's driver finds no GPU".into(),
            #[cfg(feature = "cuda")]
            Absent::TooOld(names) => format!("there are no kernels for {}", names.join(", ")),
        }
    }

    fn remedy(&self) -> &'static str {
        match self {
            #[cfg(not(feature = "cuda"))]
            Absent::NotBuilt => "use the image of Dockerfile.cuda, or build with `make cuda`",
            #[cfg(feature = "cuda")]
            Absent::NoDriver => {
                "install it (580 or later), or give the container a GPU: `--gpus all`, or in Kubernetes the limit \
                 nvidia.com/gpu: 1"
            }
            #[cfg(feature = "cuda")]
            Absent::Driver(_) => "it has to be 580 or later, and fit the GPU",
            #[cfg(feature = "cuda")]
            Absent::NoGpu => "give the container one, and look at CUDA_VISIBLE_DEVICES",
            #[cfg(feature = "cuda")]
            Absent::TooOld(_) => "they want a GPU of compute capability 8.0 or later",
        }
    }
}

#[cfg(not(feature = "cuda"))]
fn gpus() -> Result<Vec<String>, Absent> {
    Err(Absent::NotBuilt)
}

#[cfg(feature = "cuda")]
fn gpus() -> Result<Vec<String>, Absent> {
    match kernels::cuda::driver() {
        kernels::cuda::Driver::Missing => Err(Absent::NoDriver),
        kernels::cuda::Driver::Unusable(why) => Err(Absent::Driver(why)),
        kernels::cuda::Driver::TooOld(names) => Err(Absent::TooOld(names)),
        kernels::cuda::Driver::Gpus(names) if names.is_empty() => Err(Absent::NoGpu),
        kernels::cuda::Driver::Gpus(names) => Ok(names),
    }
}

/// Why a model is not for GPUs; `None` where it is.
fn unfit(spec: &DecoderSpec, dtype: Option<FloatType>) -> Option<String> {
    let lacks = super::cuda::lacks(spec).map(str::to_owned);
    lacks.or_else(|| match dtype {
        Some(FloatType::F32 | FloatType::F16) => {
            Some("GPUs compute with bfloat16: --dtype auto or bfloat16, or --device cpu".into())
        }
        Some(FloatType::Bf16) | None => None,
    })
}

/// Finds the place of a model.
///
/// # Errors
/// A GPU is wished for, and there is none, or none that can compute the model.
pub(super) fn place(choice: Choice, spec: &DecoderSpec, dtype: Option<FloatType>) -> Result<Place, String> {
    if choice == Choice::Cpu {
        return Ok(Place::Cpu(None));
    }
    if let Err(absent) = gpus() {
        return match choice {
            Choice::Cuda => Err(format!("--device cuda: {}; {}", absent.reason(), absent.remedy())),
            _ => Ok(Place::Cpu(None)),
        };
    }
    match (unfit(spec, dtype), choice) {
        (Some(reason), Choice::Cuda) => Err(format!("--device cuda: {reason}")),
        (Some(reason), _) => Ok(Place::Cpu(Some(reason))),
        #[cfg(feature = "cuda")]
        (None, _) => Ok(Place::Gpu),
        #[cfg(not(feature = "cuda"))]
        (None, _) => Ok(Place::Cpu(None)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cpu_has_one_format_of_keys_and_values() {
        let place = Place::Cpu(None);
        assert_eq!(CacheFormat::Auto.bytes(&place), Ok(2));
        for (format, name) in [(CacheFormat::Bf16, "bfloat16"), (CacheFormat::Fp8, "fp8")] {
            let error = format.bytes(&place).unwrap_err();
            assert!(error.contains(name) && error.contains("--kv-cache-dtype auto"), "{error}");
        }
    }

    #[test]
    fn gpus_that_stay_idle_are_told() {
        let names = ["NVIDIA H200".to_owned(), "NVIDIA H200".to_owned()];
        assert_eq!(computed_on(&names[..1]), "language models are computed on a GPU: NVIDIA H200");
        let line = computed_on(&names);
        assert!(
            line.contains("first of 2") && line.contains("idle") && line.contains("CUDA_VISIBLE_DEVICES"),
            "{line}"
        );
    }

    #[test]
    fn a_gpu_that_is_not_there_is_an_error_only_where_it_was_wished_for() {
        assert_eq!(announce(Choice::Cpu), Ok(None));
        let Err(absent) = gpus() else { return };
        let error = announce(Choice::Cuda).unwrap_err();
        assert!(error.starts_with("--device cuda: ") && error.contains(absent.remedy()), "{error}");
        let line = announce(Choice::Auto).unwrap();
        assert_eq!(line.is_some(), cfg!(feature = "cuda"), "{line:?}");
    }
}
