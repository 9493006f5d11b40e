//! The sandbox from outside: real components, loaded and called.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests, which clippy does not take for tests"
)]

mod actors;
mod common;
mod hostile;
mod inference;
mod invariance;
mod isolation;
mod loading;
mod plain;
mod syscalls;
mod tapes;
