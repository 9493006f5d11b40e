//! Monitors.
/// The state of one rule of one monitor.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct AlertState {
    /// The monitor's stage.
    pub stage: String,
    /// The rule.
    pub rule: String,
    /// How bad it is.
    pub severity: millgate_sandbox::Severity,
    /// The statistic as measured.
    pub value: f64,
    /// The limit that it was held against.
    pub threshold: f64,
    /// One sentence.
    pub message: String,
    /// Milliseconds since 1970 at which it came to this severity.
    pub since_ms: u64,
}
