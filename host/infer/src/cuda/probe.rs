#![allow(
    unsafe_code,
    reason = "calls into the driver's library that need no context"
)]
//! Finding GPUs. The driver's library may be missing, older than the bindings, or without a device: each of these
//! is a sentence, never a panic.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

use cudarc::driver::sys::CUdevice_attribute as Attribute;
use cudarc::driver::{result, sys};

use super::describe;
use crate::device::{Gpu, GpuReport};
use crate::{Error, Result};

/// The oldest compute capability whose tensor cores the kernels use.
const OLDEST_CAPABILITY: (u32, u32) = (8, 0);
/// The oldest CUDA version whose drivers read the kernels' PTX.
const OLDEST_DRIVER: (u32, u32) = (12, 0);

/// What there is.
pub(crate) fn report() -> GpuReport {
    // The bindings panic where the library is missing, and where it lacks a function. The first is asked before anything
    // else; the second, a very old driver, is caught.
    // SAFETY: loads the library and nothing more.
    if !unsafe { sys::is_culib_present() } {
        return GpuReport {
            problem: Some(
                "no NVIDIA driver (libcuda.so.1) on this machine; the processor computes".into(),
            ),
            ..GpuReport::default()
        };
    }
    catch_unwind(AssertUnwindSafe(ask_driver)).unwrap_or_else(|_| GpuReport {
        problem: Some("the NVIDIA driver lacks a function that is needed; update it".into()),
        ..GpuReport::default()
    })
}

fn ask_driver() -> GpuReport {
    let mut report = GpuReport::default();
    let mut version = 0;
    // SAFETY: writes one integer; needs no context.
    if unsafe { sys::cuDriverGetVersion(&raw mut version) }
        .result()
        .is_ok()
    {
        let version = version.unsigned_abs();
        report.driver = Some((version / 1000, version % 1000 / 10));
    }
    let count = match result::init().and_then(|()| result::device::get_count()) {
        Ok(count) => count,
        Err(error) => {
            report.problem = Some(format!(
                "the NVIDIA driver does not start: {}",
                describe(error)
            ));
            return report;
        }
    };
    for index in 0..count.unsigned_abs() as usize {
        report.gpus.push(match gpu(index) {
            Ok(gpu) => gpu,
            Err(error) => Gpu {
                index,
                name: "unknown".into(),
                memory_bytes: 0,
                capability: (0, 0),
                unusable: Some(describe(error)),
            },
        });
    }
    if report.gpus.is_empty() {
        report.problem = Some("the NVIDIA driver sees no GPU".into());
    } else if report.driver.is_some_and(|driver| driver < OLDEST_DRIVER) {
        report.problem = Some(format!(
            "the NVIDIA driver is for CUDA {}.{}; update it to one for CUDA {}.{} or later",
            report.driver.map_or(0, |d| d.0),
            report.driver.map_or(0, |d| d.1),
            OLDEST_DRIVER.0,
            OLDEST_DRIVER.1
        ));
    } else if report.gpus.iter().all(|gpu| gpu.unusable.is_some()) {
        report.problem = Some("none of the GPUs can be used".into());
    }
    report
}

fn gpu(index: usize) -> std::result::Result<Gpu, cudarc::driver::DriverError> {
    let device = result::device::get(index as i32)?;
    // SAFETY: the device comes from the driver, and these need no context.
    let (memory_bytes, major, minor) = unsafe {
        let ask = |attribute| result::device::get_attribute(device, attribute);
        (
            result::device::total_mem(device)?,
            ask(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            ask(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        )
    };
    let capability = (major.unsigned_abs(), minor.unsigned_abs());
    let unusable = (capability < OLDEST_CAPABILITY).then(|| {
        format!(
            "compute capability {major}.{minor}; {}.{} or later is needed (Ampere, Ada, Hopper, Blackwell)",
            OLDEST_CAPABILITY.0, OLDEST_CAPABILITY.1
        )
    });
    Ok(Gpu {
        index,
        name: result::device::get_name(device)?,
        memory_bytes,
        capability,
        unusable,
    })
}

/// Fails with a reason where the GPU of this number cannot be used.
pub(super) fn check(index: usize) -> Result<()> {
    let report = report();
    if let Some(problem) = report.problem {
        return Err(Error::Device(format!("cuda:{index}: {problem}")));
    }
    match report.gpus.get(index) {
        None => Err(Error::Device(format!(
            "cuda:{index}: there are {} GPUs, numbered from 0",
            report.gpus.len()
        ))),
        Some(Gpu {
            unusable: Some(reason),
            name,
            ..
        }) => Err(Error::Device(format!("cuda:{index} ({name}): {reason}"))),
        Some(_) => Ok(()),
    }
}

/// The first GPU that can be used. What is chosen, and why, is logged once.
pub(crate) fn first_usable() -> Option<usize> {
    static TOLD: Once = Once::new();
    let report = report();
    let usable = match &report.problem {
        Some(_) => None,
        None => report.gpus.iter().find(|gpu| gpu.unusable.is_none()),
    };
    TOLD.call_once(|| match (usable, &report.problem) {
        (Some(gpu), _) => tracing::info!(
            device = format!("cuda:{}", gpu.index),
            name = gpu.name,
            memory_mib = gpu.memory_bytes >> 20,
            "models run on the GPU"
        ),
        // A machine without a GPU is no news to its owner; a GPU that is there and not used is.
        (None, Some(problem)) if !report.gpus.is_empty() => {
            tracing::warn!(problem, "models run on the processor");
        }
        (None, problem) => tracing::info!(problem, "models run on the processor"),
    });
    usable.map(|gpu| gpu.index)
}
