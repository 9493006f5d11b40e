#![allow(
    unsafe_code,
    reason = "event tracking of the driver's bindings is turned off: each executor has one stream, and waits for it"
)]
//! The operations on an NVIDIA GPU.
//!
//! Nothing of CUDA is needed to build. At run time the driver's library is looked for (`probe`); the kernels are
//! in the binary as PTX, which the driver compiles for the GPU that it finds (`kernels`). Weights stay quantised
//! on the device, in the order in which a warp reads them (`matrix`). `executor` runs a step; `step` is what it
//! sends to the device at its beginning; `record` replays a step of decoding as one graph.
//!
//! One order of sums serves every batch size, so a row's numbers do not depend on the batch; see `kernels/matmul.cu`.

mod attention;
mod executor;
mod kernels;
mod matrix;
mod probe;
mod record;
mod step;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaSlice, CudaStream, DriverError};

use crate::model::Precision;
use crate::ops::{Device, Weights};
use crate::{Error, Result};
use executor::CudaExecutor;
use kernels::Kernels;
use matrix::Matrix;
pub(crate) use probe::{first_usable, report};

/// A GPU with the kernels loaded.
pub(crate) struct Cuda {
    gpu: Arc<Gpu>,
    stream: Arc<CudaStream>,
    precision: Precision,
}

/// What a device and its executors share.
pub(crate) struct Gpu {
    context: Arc<CudaContext>,
    kernels: Kernels,
}

impl Cuda {
    /// Opens the GPU of this number.
    pub(crate) fn open(index: usize, precision: Precision) -> Result<Self> {
        probe::check(index)?;
        let open = || -> Result<Self> {
            let failed = |error| Error::Device(format!("cuda:{index}: {}", describe(error)));
            let context = CudaContext::new(index).map_err(failed)?;
            // SAFETY: every buffer is used by the one stream that it was made on, except weights, which are waited for
            // when they are loaded, and freed after `drop` has waited for all streams.
            unsafe { context.disable_event_tracking() };
            let kernels = Kernels::load(&context)?;
            let stream = context.new_stream().map_err(failed)?;
            Ok(Self {
                gpu: Arc::new(Gpu { context, kernels }),
                stream,
                precision,
            })
        };
        // A driver that lacks a function makes the bindings panic when it is first called.
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(open)).unwrap_or_else(|_| {
            Err(Error::Device(format!(
                "cuda:{index}: the driver lacks a function; update it, or set device = \"cpu\""
            )))
        })
    }
}

impl Cuda {
    /// Waits until weights are there: executors have streams of their own.
    fn wait(&self) -> Result<()> {
        self.stream
            .synchronize()
            .map_err(|error| Error::Device(format!("loading weights: {}", describe(error))))
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        // The weights, which are dropped after their device, may still be read by what a failed step left behind.
        if let Err(error) = self.gpu.context.synchronize() {
            tracing::debug!(error = describe(error), "a GPU ended in an error");
        }
    }
}

impl Device for Cuda {
    type Matrix = Matrix;
    type Vector = CudaSlice<f32>;
    type Executor = CudaExecutor;

    fn matrix(&self, parts: &[Weights<'_>]) -> Result<Matrix> {
        let matrix = Matrix::load(parts, self.precision, &self.gpu, &self.stream)?;
        self.wait()?;
        Ok(matrix)
    }

    fn vector(&self, values: &[f32]) -> Result<CudaSlice<f32>> {
        let vector = self.gpu.upload(&self.stream, "weights", values)?;
        self.wait()?;
        Ok(vector)
    }

    fn executor(&self, _threads: usize) -> Result<CudaExecutor> {
        CudaExecutor::new(Arc::clone(&self.gpu), self.precision)
    }
}

impl Gpu {
    /// Device memory with these values.
    fn upload<T: cudarc::driver::DeviceRepr>(
        &self,
        stream: &Arc<CudaStream>,
        what: &str,
        values: &[T],
    ) -> Result<CudaSlice<T>> {
        stream
            .clone_htod(values)
            .map_err(|error| self.no_memory(error, what, size_of_val(values)))
    }

    /// Zeroed device memory.
    fn zeroed<T: cudarc::driver::DeviceRepr + cudarc::driver::ValidAsZeroBits>(
        &self,
        stream: &Arc<CudaStream>,
        what: &str,
        len: usize,
    ) -> Result<CudaSlice<T>> {
        stream
            .alloc_zeros(len.max(1))
            .map_err(|error| self.no_memory(error, what, len * size_of::<T>()))
    }

    /// An error of an allocation, with what there is.
    fn no_memory(&self, error: DriverError, what: &str, bytes: usize) -> Error {
        if error.0 != cudarc::driver::sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY {
            return Error::Device(format!("{what}: {}", describe(error)));
        }
        let there = match self.context.mem_get_info() {
            Ok((free, total)) => format!("{} MiB of {} MiB are free", free >> 20, total >> 20),
            Err(_) => "the driver does not say how much is free".into(),
        };
        Error::Device(format!(
            "the GPU has no memory for {what} ({} MiB; {there}); lower `kv-cache`, free some of it, or set device = \"cpu\"",
            bytes.div_ceil(1 << 20)
        ))
    }
}

/// An error of the driver, and what it means for the process.
fn describe(error: DriverError) -> String {
    use cudarc::driver::sys::CUresult as Code;
    let name = match error.error_name() {
        Ok(name) => name.to_string_lossy().into_owned(),
        Err(_) => format!("CUDA error {}", error.0 as u32),
    };
    let advice = match error.0 {
        Code::CUDA_ERROR_OUT_OF_MEMORY => "the GPU's memory is full",
        Code::CUDA_ERROR_NO_DEVICE => "the driver sees no GPU",
        Code::CUDA_ERROR_INVALID_PTX
        | Code::CUDA_ERROR_INVALID_IMAGE
        | Code::CUDA_ERROR_UNSUPPORTED_PTX_VERSION
        | Code::CUDA_ERROR_NO_BINARY_FOR_GPU => {
            "the driver does not take the kernels; update it to one for CUDA 12 or later"
        }
        Code::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH => {
            "the driver's library and kernel module are of different versions; restart the machine"
        }
        Code::CUDA_ERROR_ILLEGAL_ADDRESS
        | Code::CUDA_ERROR_LAUNCH_FAILED
        | Code::CUDA_ERROR_LAUNCH_TIMEOUT
        | Code::CUDA_ERROR_ECC_UNCORRECTABLE
        | Code::CUDA_ERROR_HARDWARE_STACK_ERROR
        | Code::CUDA_ERROR_MISALIGNED_ADDRESS
        | Code::CUDA_ERROR_INVALID_PC
        | Code::CUDA_ERROR_ASSERT
        | Code::CUDA_ERROR_DEVICE_UNAVAILABLE
        | Code::CUDA_ERROR_UNKNOWN => {
            "the GPU cannot go on in this process; restart millgate, or set device = \"cpu\""
        }
        _ => return name,
    };
    format!("{name}: {advice}")
}
