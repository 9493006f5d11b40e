//! Which device a model runs on, and which GPUs there are.

use std::str::FromStr;

use crate::{Error, Result, cuda};

/// Which device a model runs on. Written `auto`, `cpu` or `cuda:N`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeviceChoice {
    /// The first GPU that can be used; the processor where there is none.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// The GPU of this number, as `millgate doctor` lists them; an error where it cannot be used.
    Cuda(usize),
}

impl std::fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(index) => write!(f, "cuda:{index}"),
        }
    }
}

impl FromStr for DeviceChoice {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            _ => text
                .strip_prefix("cuda:")
                .and_then(|index| index.parse().ok())
                .map(Self::Cuda)
                .ok_or_else(|| {
                    Error::Invalid(format!(
                        "the device `{text}`; write `auto`, `cpu`, or `cuda:0` for the first GPU"
                    ))
                }),
        }
    }
}

/// A GPU, as the driver describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gpu {
    /// Its number: `device = "cuda:N"` chooses it.
    pub index: usize,
    /// What the driver calls it.
    pub name: String,
    /// Its memory, in bytes.
    pub memory_bytes: usize,
    /// Its compute capability, as (9, 0).
    pub capability: (u32, u32),
    /// Why it cannot be used, and what to do about it.
    pub unusable: Option<String>,
}

/// What was found out about GPUs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GpuReport {
    /// The newest CUDA version that the driver knows, as (12, 8).
    pub driver: Option<(u32, u32)>,
    /// The GPUs that the driver lists.
    pub gpus: Vec<Gpu>,
    /// Why none of them can be used, and what to do about it.
    pub problem: Option<String>,
}

/// Looks for GPUs. Never fails, and takes no memory of a GPU.
pub fn gpus() -> GpuReport {
    cuda::report()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_are_read_as_they_are_written() {
        for choice in [
            DeviceChoice::Auto,
            DeviceChoice::Cpu,
            DeviceChoice::Cuda(0),
            DeviceChoice::Cuda(13),
        ] {
            assert_eq!(choice.to_string().parse::<DeviceChoice>().unwrap(), choice);
        }
        assert_eq!(
            "cuda".parse::<DeviceChoice>().unwrap(),
            DeviceChoice::Cuda(0)
        );
        for wrong in ["", "gpu", "cuda:", "cuda:-1", "cuda:x", "CPU", "cuda:0 "] {
            let error = wrong.parse::<DeviceChoice>().unwrap_err().to_string();
            assert!(error.contains("`auto`, `cpu`, or `cuda:0`"), "{error}");
        }
    }
}
