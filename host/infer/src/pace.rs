//! How long steps take: how much prefill a step has room for, and when a full queue is worth another try.

use std::time::Duration;

/// Rows of prefill that a step has at least, however slow the machine is.
const LEAST_ROWS: usize = 16;
/// The weight of the newest measurement where it is better than expected, and where it is worse: an estimate that
/// is too low stalls the answers under way, one that is too high only delays a prompt.
const BETTER: f64 = 0.1;
const WORSE: f64 = 0.4;

/// Running estimates, in seconds.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    /// A row of prefill.
    row: Option<f64>,
    /// A row of decoding, by itself: the step's share that grows with the requests in it.
    decode: Option<f64>,
    /// Any step.
    step: Option<f64>,
    /// From one finished request to the next, while there is work.
    request: Option<f64>,
    busy: f64,
}

fn learn(estimate: &mut Option<f64>, seen: f64) {
    *estimate = Some(match *estimate {
        None => seen,
        Some(old) => old + (seen - old) * if seen > old { WORSE } else { BETTER },
    });
}

impl Pace {
    /// Notes a step of so many rows of decoding and of prefill.
    pub(crate) fn note(&mut self, decodes: usize, prefill: usize, took: Duration) {
        let took = took.as_secs_f64();
        self.busy += took;
        learn(&mut self.step, took);
        if prefill == 0 {
            learn(&mut self.decode, took / decodes.max(1) as f64);
            return;
        }
        // Small steps say little of a row: their time is that of reading the weights.
        if prefill >= LEAST_ROWS {
            let rest = took - self.decode.unwrap_or(0.0) * decodes as f64;
            learn(&mut self.row, rest.max(took / 4.0) / prefill as f64);
        }
    }

    /// Rows of prefill for which a step with so many rows of decoding has time.
    pub(crate) fn rows(&self, decodes: usize, limit: Duration) -> usize {
        let Some(row) = self.row else {
            return LEAST_ROWS;
        };
        let left = limit.as_secs_f64() - self.decode.unwrap_or(0.0) * decodes as f64;
        ((left / row.max(1e-9)) as usize).max(LEAST_ROWS)
    }

    /// Notes that a request was finished.
    pub(crate) fn finished(&mut self) {
        // Neither better nor worse: a plain mean over the last few.
        let busy = std::mem::take(&mut self.busy);
        self.request = Some(self.request.map_or(busy, |old| old + (busy - old) * 0.2));
    }

    /// When one more request will have ended, where each needs at least `steps` more steps unless it ends early.
    pub(crate) fn next_place(&self, steps: usize) -> Duration {
        let by_steps = self.step.unwrap_or(0.0) * steps as f64;
        let seconds = self.request.map_or(by_steps, |other| by_steps.min(other));
        Duration::from_secs_f64(seconds.min(3600.0))
    }
}

/// When to try again a queue in which `waiting` requests wait: when half of them have left, from 1 to 60 seconds.
pub(crate) fn retry_after(next_place: Duration, waiting: usize) -> Duration {
    let places = u32::try_from(waiting / 2 + 1).unwrap_or(u32::MAX);
    let (least, most) = (Duration::from_secs(1), Duration::from_secs(60));
    next_place.saturating_mul(places).clamp(least, most)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_millis(50);

    /// Runs a machine on which a row of prefill takes `row` and one of decoding `decode` seconds, and gives the
    /// longest step after the first few.
    fn longest(pace: &mut Pace, decodes: usize, row: f64, decode: f64, most: usize) -> f64 {
        let mut longest = 0f64;
        for step in 0..50 {
            let rows = pace.rows(decodes, LIMIT).min(most);
            let took = row * rows as f64 + decode * decodes as f64;
            pace.note(decodes, rows, Duration::from_secs_f64(took));
            pace.note(decodes, 0, Duration::from_secs_f64(decode * decodes as f64));
            if step > 3 {
                longest = longest.max(took);
            }
        }
        longest
    }

    #[test]
    fn steps_keep_to_the_limit_on_fast_and_slow_machines() {
        for (row, decode) in [(0.0001, 0.001), (0.001, 0.002), (0.002, 0.0005)] {
            let longest = longest(&mut Pace::default(), 8, row, decode, 4096);
            assert!(
                longest <= 0.051 && longest > 0.035,
                "{row} {decode}: {longest}"
            );
        }
    }

    #[test]
    fn there_is_always_some_prefill() {
        let mut pace = Pace::default();
        assert_eq!(pace.rows(4, LIMIT), LEAST_ROWS);
        let longest = longest(&mut pace, 16, 0.02, 0.01, 4096);
        assert_eq!(pace.rows(16, LIMIT), LEAST_ROWS);
        assert!((longest - (0.02 * 16.0 + 0.16)).abs() < 1e-6);
    }

    #[test]
    fn a_machine_that_slows_down_is_noticed_within_a_few_steps() {
        let mut pace = Pace::default();
        longest(&mut pace, 4, 0.0002, 0.001, 4096);
        assert!(longest(&mut pace, 4, 0.001, 0.001, 4096) < 0.09);
    }

    #[test]
    fn a_retry_is_told_by_the_length_of_the_queue() {
        let mut pace = Pace::default();
        pace.note(1, 0, Duration::from_millis(100));
        assert_eq!(pace.next_place(50), Duration::from_secs(5));
        pace.finished();
        assert!(pace.next_place(50) < Duration::from_millis(101));
        let place = Duration::from_millis(500);
        assert_eq!(retry_after(place, 0), Duration::from_secs(1));
        assert_eq!(retry_after(place, 20), Duration::from_millis(5500));
        assert_eq!(retry_after(place, 100_000), Duration::from_secs(60));
    }
}
