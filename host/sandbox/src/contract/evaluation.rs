//! `evaluation.wit`: is this answer good?

use serde::{Deserialize, Serialize};
use wasmtime::component::{ComponentType, Lift, Lower};

/// One answer to judge.
#[derive(ComponentType, Lift, Lower, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[component(record)]
pub struct Answer {
    /// The case's id, unique in the batch.
    pub id: String,
    /// What the model was asked.
    pub input: String,
    /// What it said.
    pub output: String,
    /// What it should have said: none, one, or several that are equally right.
    pub references: Vec<String>,
}

/// A named score.
#[derive(ComponentType, Lift, Lower, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[component(record)]
pub struct Score {
    /// Such as `exact-match`, `rouge-l`.
    pub name: String,
    /// The score.
    pub value: f64,
    /// Why, in a few words; empty when the name says it all.
    pub explanation: String,
}

/// The scores of one answer.
#[derive(ComponentType, Lift, Lower, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[component(record)]
pub struct CaseScores {
    /// The case's id.
    pub id: String,
    /// Its scores.
    pub scores: Vec<Score>,
}

/// The scores of a batch.
#[derive(ComponentType, Lift, Lower, Serialize, Deserialize, Clone, Debug, PartialEq, Default)]
#[component(record)]
pub struct Evaluation {
    /// For each answer, in the order given.
    pub cases: Vec<CaseScores>,
    /// Scores that only the whole set has.
    pub aggregate: Vec<Score>,
}
