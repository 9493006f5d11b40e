//! The inference grant's tokens a minute, as a bucket that fills steadily.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// A bucket of tokens. Full, it holds one minute's worth; a call may begin while it is not empty,
/// and what it used is taken out afterwards, so that one call may overdraw it and the next ones
/// wait until the debt is filled up.
pub(crate) struct Budget {
    per_minute: f64,
    level: Mutex<(f64, Instant)>,
}

impl Budget {
    pub(crate) fn new(per_minute: u64) -> Budget {
        #[allow(clippy::cast_precision_loss, reason = "a rate, not a count")]
        let per_minute = per_minute as f64;
        Budget {
            per_minute,
            level: Mutex::new((per_minute, Instant::now())),
        }
    }

    fn filled(&self, level: &mut (f64, Instant), now: Instant) {
        let minutes = now.saturating_duration_since(level.1).as_secs_f64() / 60.0;
        *level = (
            (level.0 + minutes * self.per_minute).min(self.per_minute),
            now,
        );
    }

    /// Whether a call may begin; if not, how long until it may.
    pub(crate) fn open(&self, now: Instant) -> Result<(), Duration> {
        let mut level = self.level.lock();
        self.filled(&mut level, now);
        if level.0 >= 1.0 {
            return Ok(());
        }
        let wait = (1.0 - level.0) / self.per_minute.max(1e-9) * 60.0;
        Err(Duration::try_from_secs_f64(wait).unwrap_or(Duration::MAX))
    }

    /// Takes what a call has used.
    pub(crate) fn spend(&self, tokens: u64, now: Instant) {
        let mut level = self.level.lock();
        self.filled(&mut level, now);
        #[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
        let tokens = tokens as f64;
        level.0 -= tokens;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_overdraft_is_paid_back_by_waiting() {
        let budget = Budget::new(60);
        let start = Instant::now();
        assert!(budget.open(start).is_ok());
        budget.spend(120, start);
        let wait = budget.open(start).unwrap_err();
        assert!(
            wait >= Duration::from_secs(60) && wait < Duration::from_secs(62),
            "{wait:?}"
        );
        assert!(budget.open(start + Duration::from_secs(30)).is_err());
        assert!(budget.open(start + Duration::from_secs(62)).is_ok());
    }

    #[test]
    fn no_budget_never_opens() {
        assert!(Budget::new(0).open(Instant::now()).is_err());
    }
}
