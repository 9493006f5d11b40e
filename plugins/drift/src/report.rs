//! What the monitor has to say: every column compared, p-values corrected for their number, levels
//! moved, alerts and gauges written.

use millgate_sdk::prelude::*;

use crate::Drift;
use crate::alarm::Level;
use crate::comparison::{self, Baseline, Comparison};
use crate::config::Statistic;
use crate::history::Slice;
use crate::sketch::{Sketch, edge};
use crate::statistics::benjamini_hochberg;
use crate::tally::Tally;

/// Columns that are reported, the first in the order of their names.
const MOST_COLUMNS: usize = 64;

/// A column under comparison.
struct Column {
    name: String,
    compared: Comparison,
    /// The p-value, corrected for the number of columns. `None`: too few values.
    q_value: Option<f64>,
}

impl Drift {
    /// Compares and reports. Moves the levels, so it is not a mere look.
    pub(crate) fn report(&mut self) -> Report {
        self.unreported = 0;
        self.reported_slice = self.state.history.latest_slice();
        let mut report = Report {
            alerts: Vec::new(),
            metrics: Vec::new(),
        };
        let given = !self.config.baseline.is_empty();
        let Some(reference) = self
            .state
            .history
            .reference()
            .or(given.then(Slice::default))
        else {
            self.learning(&mut report);
            return report;
        };
        if !given {
            let text = format!("the reference is complete: {} events", reference.events);
            report.alerts.push(alert(
                "reference",
                Severity::Ok,
                reference.events,
                reference.events,
                text,
            ));
            self.announce(&reference);
        }
        let window = self.state.history.window();
        report
            .metrics
            .push(Measure::new("reference-events", reference.events as f64));
        report
            .metrics
            .push(Measure::new("window-events", window.events as f64));
        for column in self.compare(&reference, &window) {
            gauges(&column, &mut report.metrics);
            for index in 0..self.config.statistics.len() {
                let statistic = self.config.statistics[index];
                if let Some(value) = column.value(statistic) {
                    report.alerts.push(self.judge(&column, statistic, value));
                }
            }
        }
        report
    }

    /// The reference is not complete: nothing can be said.
    fn learning(&self, report: &mut Report) {
        let wanted = self.config.shape().reference_events;
        let seen = self.state.history.reference_progress();
        let text = match seen < wanted {
            true => format!("still learning the reference: {seen} of {wanted} events"),
            false => "the reference has its events and is complete with the next slice of time"
                .to_string(),
        };
        report
            .alerts
            .push(alert("reference", Severity::NoData, seen, wanted, text));
        report
            .metrics
            .push(Measure::new("reference-events", seen as f64));
    }

    /// Compares all columns that the reference, the window or the config names.
    fn compare(&self, reference: &Slice, window: &Slice) -> Vec<Column> {
        let config = &self.config;
        let mut columns = Vec::new();
        let whole = config.numbers.iter().filter_map(|pattern| pattern.whole());
        let seen = reference.numbers.keys().chain(window.numbers.keys());
        let names: BTreeSet<&str> = whole.chain(seen.map(String::as_str)).collect();
        let empty = Sketch::default();
        for name in names {
            let of = |slice: &'_ Slice| slice.numbers.get(name).cloned();
            let current = of(window).unwrap_or_default();
            let compared = match config.baseline.get(name) {
                Some(Baseline::Numbers { edges, counts }) => {
                    comparison::numbers_with_baseline(edges, counts, &current)
                }
                _ => comparison::numbers(
                    of(reference).as_ref().unwrap_or(&empty),
                    &current,
                    config.bins,
                ),
            };
            columns.push(Column {
                name: name.into(),
                compared,
                q_value: None,
            });
        }
        let whole = config
            .categories
            .iter()
            .filter_map(|pattern| pattern.whole());
        let seen = reference.categories.keys().chain(window.categories.keys());
        let names: BTreeSet<&str> = whole.chain(seen.map(String::as_str)).collect();
        for name in names {
            let mut known = reference.categories.get(name).cloned().unwrap_or_default();
            if let Some(Baseline::Categories { counts }) = config.baseline.get(name) {
                known = Tally::default();
                for (category, &count) in counts {
                    known.add(category, count);
                }
            }
            let current = window.categories.get(name).cloned().unwrap_or_default();
            let compared = comparison::categories(&known, &current);
            columns.push(Column {
                name: name.into(),
                compared,
                q_value: None,
            });
        }
        columns.truncate(MOST_COLUMNS);
        let enough = |column: &&mut Column| {
            column.compared.reference.min(column.compared.current) >= config.min_samples
        };
        let tested: Vec<&mut Column> = columns.iter_mut().filter(enough).collect();
        let p_values: Vec<f64> = tested
            .iter()
            .map(|column| column.compared.p_value)
            .collect();
        for (column, q_value) in tested.into_iter().zip(benjamini_hochberg(&p_values)) {
            column.q_value = Some(q_value);
        }
        columns
    }

    /// One rule: moves its level and says where it stands.
    fn judge(&mut self, column: &Column, statistic: Statistic, value: f64) -> Alert {
        let rule = format!("{}.{}", statistic.name(), column.name);
        let Comparison {
            reference, current, ..
        } = column.compared;
        let Some(q_value) = column.q_value else {
            let least = self.config.min_samples;
            let name = &column.name;
            let text = format!(
                "`{name}` has {reference} reference and {current} current values, it takes {least} of each"
            );
            // The level stays as it was: when data comes back, so does the alarm.
            return alert(&rule, Severity::NoData, reference.min(current), least, text);
        };
        let thresholds = self.config.thresholds.of(statistic);
        let significant = q_value <= self.config.false_discovery_rate;
        let before = self.state.levels.get(&rule).copied().unwrap_or_default();
        let level = before.after(value, thresholds, self.config.clear, significant);
        self.state.levels.insert(rule.clone(), level);
        let (severity, verb) = match level {
            Level::Ok => (Severity::Ok, "is as in the reference"),
            Level::Warning => (Severity::Warning, "has changed"),
            Level::Critical => (Severity::Critical, "has changed much"),
        };
        let threshold = thresholds.of(level);
        let mut message = format!(
            "`{}` {verb}: {} {value:.3}, threshold {threshold:.3}, q {q_value:.1e}; {reference} reference and {current} current values",
            column.name,
            statistic.name().to_uppercase(),
        );
        if let Some((then, now)) = column.compared.medians {
            message.push_str(&format!(", median {then} then, {now} now"));
        }
        Alert {
            rule,
            severity,
            value,
            threshold,
            message,
        }
    }

    /// Logs the reference once, in the words of the config's `baseline`.
    fn announce(&mut self, reference: &Slice) {
        if core::mem::replace(&mut self.state.announced, true) {
            return;
        }
        for (name, sketch) in &reference.numbers {
            let edges = comparison::quantile_edges(sketch, self.config.bins);
            let counts = comparison::binned(sketch, &edges);
            let edges: Vec<f64> = edges.into_iter().map(edge).collect();
            log::info(&format!(
                "baseline \"{name}\" = {{ edges = {edges:?}, counts = {counts:?} }}"
            ));
        }
        for (name, tally) in &reference.categories {
            let counts: Vec<String> = tally
                .categories()
                .map(|category| format!("{category:?} = {}", tally.of(Some(category))))
                .collect();
            log::info(&format!(
                "baseline \"{name}\" = {{ counts = {{ {} }} }}",
                counts.join(", ")
            ));
        }
    }
}

impl Column {
    fn value(&self, statistic: Statistic) -> Option<f64> {
        match statistic {
            Statistic::Psi => Some(self.compared.psi),
            Statistic::Js => Some(self.compared.js),
            Statistic::Ks => self.compared.ks,
        }
    }
}

fn gauges(column: &Column, metrics: &mut Vec<Measure>) {
    let name = &column.name;
    metrics.push(Measure::new(
        format!("values.{name}"),
        column.compared.current as f64,
    ));
    let Some(q_value) = column.q_value else {
        return;
    };
    for statistic in [Statistic::Psi, Statistic::Js, Statistic::Ks] {
        if let Some(value) = column.value(statistic) {
            metrics.push(Measure::new(format!("{}.{name}", statistic.name()), value));
        }
    }
    metrics.push(Measure::new(format!("q.{name}"), q_value));
}

fn alert(rule: &str, severity: Severity, value: u64, threshold: u64, message: String) -> Alert {
    Alert {
        rule: rule.into(),
        severity,
        value: value as f64,
        threshold: threshold as f64,
        message,
    }
}
