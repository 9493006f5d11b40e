//! Replay and backtest: what requests brought is kept, sealed (`traces.inputs`), so that their stages
//! can be run again: the very ones that ran then, to show that they decide the same, or those of
//! another config, to see what it would change.

mod backtest;
mod candidate;
mod frames;
mod player;
mod record;
mod recorder;
mod store;
mod tally;

pub use backtest::{BacktestOptions, InputSource, Opened, RawPage, StoredInputs, backtest};
pub use candidate::Candidate;
pub use frames::{MEDIA_TYPE, open_frame, read_frames, write_frame};
pub use player::{Difference, Player, ReplayOutcome, ReplayReport, StageReplay};
pub(crate) use recorder::Recorder;
pub use store::{InputRange, InputStore, SealedPage};
pub use tally::{BacktestReport, Did, End, Example, Flip, Spread, StageChange, Transition};
