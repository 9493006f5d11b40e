//! What the host does for its plugins: the one trait through which a stage's calls leave the
//! sandbox.

use futures::future::BoxFuture;

use crate::contract::inference::{Completion, CompletionRequest, Level};
use crate::contract::monitoring::Report;
use crate::contract::types::StageError;

/// One vector of unit length for each text, and how many tokens were read.
pub type Embedded = (Vec<Vec<f32>>, u32);

/// The effects that stages may have. `stage` is always the stage's name: an implementation keeps
/// the data of one stage apart from that of another by it.
///
/// The sandbox has checked the grant before it calls any of these: what a stage was not given is
/// not linked into it. Log lines and metric names are bounded per call before they come here.
///
/// The plain methods are called on the thread that runs the guest, between two of its
/// instructions, so they must be quick; the asynchronous ones are awaited under the stage's
/// `call_timeout`.
pub trait Services: Send + Sync + 'static {
    /// A log line.
    fn log(&self, stage: &str, trace_id: &str, level: Level, message: &str);

    /// Adds to the counter `millgate_plugin_counter{stage,name}`.
    fn count(&self, stage: &str, name: &str, add: u64);

    /// Sets the gauge `millgate_plugin_gauge{stage,name}`.
    fn gauge(&self, stage: &str, name: &str, value: f64);

    /// The value of `key` in the stage's space.
    fn state_get(&self, stage: &str, key: &str) -> Result<Option<Vec<u8>>, StageError>;

    /// Sets a value. `limit` is the granted size of the whole space in bytes, keys and values;
    /// beyond it the answer is `denied` with code `state-full`.
    fn state_set(&self, stage: &str, key: &str, value: &[u8], limit: u64)
    -> Result<(), StageError>;

    /// Sets a value if the present one is `expected`; says whether it was.
    fn state_compare_and_swap(
        &self,
        stage: &str,
        key: &str,
        expected: Option<&[u8]>,
        value: &[u8],
        limit: u64,
    ) -> Result<bool, StageError>;

    /// Removes a value, if it is there.
    fn state_delete(&self, stage: &str, key: &str) -> Result<(), StageError>;

    /// The keys that begin with `prefix`, in byte order, at most `limit`.
    fn state_keys(&self, stage: &str, prefix: &str, limit: u32) -> Result<Vec<String>, StageError>;

    /// Completes a prompt for a tenant: the one whose request the stage was called for. The sandbox has checked the
    /// model against the grant and the budget.
    fn complete(
        &self,
        stage: &str,
        tenant: &str,
        request: CompletionRequest,
    ) -> BoxFuture<'_, Result<Completion, StageError>>;

    /// Embeds texts.
    fn embed(
        &self,
        stage: &str,
        tenant: &str,
        model: &str,
        texts: Vec<String>,
    ) -> BoxFuture<'_, Result<Embedded, StageError>>;

    /// The natural log-probability of each token of `text` but the first.
    fn score(
        &self,
        stage: &str,
        tenant: &str,
        model: &str,
        text: String,
    ) -> BoxFuture<'_, Result<Vec<f64>, StageError>>;

    /// Keeps an actor's state in place of the last one kept.
    fn save_actor(&self, stage: &str, state: &[u8]) -> Result<(), StageError>;

    /// The state last kept, if any.
    fn load_actor(&self, stage: &str) -> Result<Option<Vec<u8>>, StageError>;

    /// What a monitor reported after a batch or a tick. Its metrics have been passed to
    /// [`gauge`](Services::gauge) already.
    fn report(&self, stage: &str, report: Report);
}
