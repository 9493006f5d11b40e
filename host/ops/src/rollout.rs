//! Rollouts.
/// Where a rollout stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RolloutPhase {
    /// Reviews go on.
    Running,
    /// Nothing moves until a person decides.
    Paused,
    /// The candidate became the stable arm.
    Promoted,
    /// All traffic went back to the stable arm.
    RolledBack,
}

/// A rollout as an operator sees it.
#[derive(Clone, Debug, serde::Serialize)]
pub struct RolloutStatus {
    /// The pipeline.
    pub pipeline: String,
    /// Its id: changes when the arms change.
    pub id: String,
    /// Where it stands.
    pub phase: RolloutPhase,
    /// The candidates' share of the traffic, 0 to 1.
    pub candidate_weight: f64,
    /// Why it stands there.
    pub reason: String,
    /// The arms' records.
    pub arms: Vec<millgate_sandbox::ArmSummary>,
}
