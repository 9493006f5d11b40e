//! The kernels and the executor, on the test driver (`tests/cuda-driver`), or on a GPU where `MILLGATE_GPU=1` says so.

mod driver;
mod faults;
mod model;
mod operations;
mod ptx;
