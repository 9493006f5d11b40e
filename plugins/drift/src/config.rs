//! The config, as `plugin.toml` describes it, and its checks beyond what a schema can say.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use millgate_sdk::StageError;
use serde::Deserialize;

use crate::alarm::Thresholds;
use crate::comparison::Baseline;
use crate::history::Shape;

/// Slices that a window is cut into.
const WINDOW_SLICES: u64 = 12;

/// The config.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", default, deny_unknown_fields)]
pub struct Config {
    pub(crate) numbers: Vec<Pattern>,
    pub(crate) categories: Vec<Pattern>,
    pub(crate) only: BTreeMap<String, String>,
    reference_events: u64,
    window_minutes: f64,
    pub(crate) baseline: BTreeMap<String, Baseline>,
    pub(crate) min_samples: u64,
    pub(crate) bins: usize,
    pub(crate) statistics: Vec<Statistic>,
    pub(crate) thresholds: AllThresholds,
    pub(crate) false_discovery_rate: f64,
    pub(crate) clear: f64,
}

/// A measure of difference that alerts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Statistic {
    /// Population stability index.
    Psi,
    /// Jensen-Shannon distance.
    Js,
    /// Kolmogorov-Smirnov distance.
    Ks,
}

impl Statistic {
    /// As rules and metrics name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Psi => "psi",
            Self::Js => "js",
            Self::Ks => "ks",
        }
    }
}

/// The thresholds of each statistic.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct AllThresholds {
    psi: Thresholds,
    js: Thresholds,
    ks: Thresholds,
}

impl AllThresholds {
    pub(crate) fn of(&self, statistic: Statistic) -> Thresholds {
        match statistic {
            Statistic::Psi => self.psi,
            Statistic::Js => self.js,
            Statistic::Ks => self.ks,
        }
    }
}

impl Default for AllThresholds {
    fn default() -> Self {
        Self {
            psi: Thresholds {
                warning: 0.1,
                critical: 0.25,
            },
            js: Thresholds {
                warning: 0.1,
                critical: 0.2,
            },
            ks: Thresholds {
                warning: 0.1,
                critical: 0.2,
            },
        }
    }
}

/// A column's name, or the beginning of one and a `*`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub(crate) struct Pattern(String);

impl Pattern {
    pub(crate) fn fits(&self, name: &str) -> bool {
        match self.0.strip_suffix('*') {
            Some(beginning) => name.starts_with(beginning),
            None => self.0 == name,
        }
    }

    /// The name, if it is a whole one: then its absence is worth a word.
    pub(crate) fn whole(&self) -> Option<&str> {
        (!self.0.ends_with('*')).then_some(self.0.as_str())
    }
}

impl Default for Config {
    fn default() -> Self {
        let patterns = |names: &[&str]| names.iter().map(|&name| Pattern(name.into())).collect();
        Self {
            numbers: patterns(&[
                "prompt-tokens",
                "completion-tokens",
                "latency-ms",
                "entropy",
            ]),
            categories: patterns(&["finish-reason", "verdict.*"]),
            only: BTreeMap::new(),
            reference_events: 1000,
            window_minutes: 60.0,
            baseline: BTreeMap::new(),
            min_samples: 100,
            bins: 10,
            statistics: [Statistic::Psi, Statistic::Js, Statistic::Ks].to_vec(),
            thresholds: AllThresholds::default(),
            false_discovery_rate: 0.05,
            clear: 0.8,
        }
    }
}

impl Config {
    /// How the history is kept.
    pub(crate) fn shape(&self) -> Shape {
        Shape {
            slice_ms: ((self.window_minutes * 60_000.0) as u64 / WINDOW_SLICES).max(1),
            window_slices: WINDOW_SLICES,
            reference_events: if self.baseline.is_empty() {
                self.reference_events
            } else {
                0
            },
        }
    }

    pub(crate) fn check(&self) -> Result<(), StageError> {
        if self.numbers.is_empty() && self.categories.is_empty() {
            return Err(invalid(
                "numbers",
                "`numbers` and `categories` are both empty: there is nothing to watch".into(),
            ));
        }
        if !(self.window_minutes > 0.0 && self.window_minutes <= 60.0 * 24.0 * 366.0) {
            return Err(invalid(
                "window-minutes",
                "`window-minutes` must be above 0 and at most a year".into(),
            ));
        }
        if self.min_samples < 2
            || (self.baseline.is_empty() && self.reference_events < self.min_samples)
        {
            let text = "`min-samples` must be at least 2 and no more than `reference-events`: a smaller reference never says anything";
            return Err(invalid("min-samples", text.into()));
        }
        if !(2..=100).contains(&self.bins) {
            return Err(invalid("bins", "`bins` must be from 2 to 100".into()));
        }
        if self.statistics.is_empty() {
            return Err(invalid(
                "statistics",
                "`statistics` is empty: name at least one of psi, js, ks".into(),
            ));
        }
        if !(self.false_discovery_rate > 0.0 && self.false_discovery_rate <= 1.0) {
            return Err(invalid(
                "false-discovery-rate",
                "`false-discovery-rate` must be above 0 and at most 1".into(),
            ));
        }
        if !(self.clear > 0.0 && self.clear <= 1.0) {
            return Err(invalid(
                "clear",
                "`clear` must be above 0 and at most 1".into(),
            ));
        }
        for statistic in [Statistic::Psi, Statistic::Js, Statistic::Ks] {
            let checked = self.thresholds.of(statistic).check(statistic.name());
            checked.map_err(|message| invalid("thresholds", message))?;
        }
        self.baseline
            .iter()
            .try_for_each(|(column, baseline)| check_baseline(column, baseline))
    }
}

fn check_baseline(column: &str, baseline: &Baseline) -> Result<(), StageError> {
    let counts: u64 = match baseline {
        Baseline::Numbers { edges, counts } => {
            if counts.len() != edges.len() + 1 || !edges.windows(2).all(|pair| pair[0] < pair[1]) {
                let text = format!(
                    "`baseline.{column}`: `edges` must ascend, and `counts` has one more entry than `edges`"
                );
                return Err(invalid("baseline", text));
            }
            counts.iter().sum()
        }
        Baseline::Categories { counts } => counts.values().sum(),
    };
    match counts {
        0 => Err(invalid(
            "baseline",
            format!("`baseline.{column}`: all `counts` are 0"),
        )),
        _ => Ok(()),
    }
}

fn invalid(key: &str, message: String) -> StageError {
    StageError::invalid_config(key, message)
}
