//! Millgate's HTTP server: the OpenAI-compatible API in front of the platform, the traces, the
//! metrics and the health checks.
//!
//! Read it in the order of a request's way: [`Server`] accepts the connection, `service` finds the
//! route, `read` takes the body, the platform answers, `render` writes OpenAI's JSON and
//! server-sent events, `answer` and `body` make a response of them.
//!
//! It stands directly on hyper: there are a dozen routes, and each is one line in `service`. What a
//! request costs here is counted in microseconds.

mod answer;
mod body;
mod counters;
mod embeddings;
mod explain;
mod health;
mod inputs;
mod logprobs;
mod operate;
mod read;
mod render;
mod responses;
mod server;
mod service;
mod traces;

pub use server::{Drained, Handle, Server};
