//! When a difference is an alarm, and when it is one no more.

use alloc::string::String;

use serde::{Deserialize, Serialize};

/// What a statistic is held against.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Thresholds {
    /// From here on it is a warning.
    pub warning: f64,
    /// From here on it is critical.
    pub critical: f64,
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub enum Level {
    /// Not beyond a threshold, or not beyond chance.
    #[default]
    Ok,
    /// Beyond the first.
    Warning,
    /// Beyond the second.
    Critical,
}

impl Level {
    /// The level after a look. It rises when the statistic reaches a threshold and chance does not
    /// explain it (`significant`); it falls when the statistic is below `clear` times the threshold
    /// that it rose by. Between the two it stays, so that a value at the edge alerts once.
    pub fn after(self, value: f64, thresholds: Thresholds, clear: f64, significant: bool) -> Self {
        let reached = |factor: f64| {
            if value >= factor * thresholds.critical {
                Self::Critical
            } else if value >= factor * thresholds.warning {
                Self::Warning
            } else {
                Self::Ok
            }
        };
        let kept = self.min(reached(clear));
        if significant {
            kept.max(reached(1.0))
        } else {
            kept
        }
    }
}

impl Thresholds {
    /// What a level was held against.
    pub fn of(&self, level: Level) -> f64 {
        match level {
            Level::Critical => self.critical,
            _ => self.warning,
        }
    }

    /// Whether they can be used.
    pub fn check(&self, name: &str) -> Result<(), String> {
        match self.warning > 0.0 && self.critical >= self.warning && self.critical.is_finite() {
            true => Ok(()),
            false => Err(alloc::format!(
                "`thresholds.{name}`: `warning` must be above 0 and `critical` at least as high"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PSI: Thresholds = Thresholds {
        warning: 0.1,
        critical: 0.25,
    };

    #[test]
    fn a_value_at_the_edge_alerts_once() {
        let mut level = Level::Ok;
        let mut changes = 0;
        for value in [0.05, 0.11, 0.09, 0.101, 0.085, 0.11, 0.079, 0.09, 0.0] {
            let next = level.after(value, PSI, 0.8, true);
            changes += u32::from(next != level);
            level = next;
        }
        assert_eq!((changes, level), (2, Level::Ok));
    }

    #[test]
    fn chance_does_not_raise_but_a_raised_alarm_waits_for_the_value() {
        assert_eq!(Level::Ok.after(0.5, PSI, 0.8, false), Level::Ok);
        assert_eq!(
            Level::Critical.after(0.24, PSI, 0.8, false),
            Level::Critical
        );
        assert_eq!(Level::Critical.after(0.15, PSI, 0.8, false), Level::Warning);
        assert_eq!(Level::Warning.after(0.5, PSI, 0.8, true), Level::Critical);
    }
}
