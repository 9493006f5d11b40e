//! The report of a backtest as one HTML file with charts in SVG: it loads nothing, and runs no code.

use millgate_ops::replay::{BacktestReport, StageChange};

use super::backtest::{changes, is_flip, one_line, place, verdict};
use crate::words;

const STYLE: &str = "
:root { color-scheme: light dark; --ink: #1d2430; --paper: #fff; --soft: #6b7686; --line: #d8dee6; --then: #8fa3bd; --now: #c8553d; --same: #b9c4d2; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaf0; --paper: #14181e; --soft: #97a3b3; --line: #2c3440; --then: #6d83a0; --now: #e07a5f; --same: #3d4857; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
.soft { color: var(--soft); } .scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; } th, td { text-align: left; padding: .25rem .6rem .25rem 0; border-bottom: 1px solid var(--line); white-space: nowrap; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
svg { width: 100%; height: auto; } svg text { fill: var(--ink); font: 13px system-ui, sans-serif; }
.then { fill: var(--then); } .now { fill: var(--now); } .same { fill: var(--same); }
pre { white-space: pre-wrap; border-left: 3px solid var(--line); padding-left: .8rem; }
";

/// One bar of a chart.
struct Bar {
    label: String,
    value: u64,
    shown: String,
    class: &'static str,
}

/// The page.
pub(super) fn page(report: &BacktestReport, config: &str) -> String {
    let period = match (report.from_ms, report.until_ms) {
        (Some(from), Some(until)) => format!(", {} to {}", words::utc(from), words::utc(until)),
        _ => String::new(),
    };
    let mut body = format!(
        "<h1>Backtest of {}</h1>\n<p class=soft>{} requests{period}; {:.2} s on {} threads</p>\n",
        escape(config),
        report.traces,
        report.seconds,
        report.threads
    );
    for (why, count) in &report.skipped {
        body.push_str(&format!(
            "<p>{count} could not be run: {}</p>\n",
            escape(why)
        ));
    }

    body.push_str("<h2>How requests end</h2>\n");
    let ends = report.ends.iter().map(|it| Bar {
        label: match changes(it.then, it.now) {
            true => format!("{} → {}", it.then.name(), it.now.name()),
            false => it.then.name().to_owned(),
        },
        value: it.count,
        shown: it.count.to_string(),
        class: if changes(it.then, it.now) {
            "now"
        } else {
            "same"
        },
    });
    body.push_str(&chart("How requests end", &ends.collect::<Vec<_>>()));
    body.push_str(&format!(
        "<p>Other text to the model: {}. Other text to the client: {}.</p>\n",
        report.requests_changed, report.answers_changed
    ));

    body.push_str(&format!(
        "<h2>Verdicts that flip: {}</h2>\n",
        report.flips_total
    ));
    let flips = report.stages.iter().flat_map(|stage| {
        let verdicts = stage.verdicts.iter().filter(|it| is_flip(it.then, it.now));
        verdicts.map(move |it| Bar {
            label: format!(
                "{} ({}): {} → {}",
                stage.stage,
                place(stage),
                verdict(it.then),
                verdict(it.now)
            ),
            value: it.count,
            shown: it.count.to_string(),
            class: "now",
        })
    });
    body.push_str(&chart("Verdicts that flip", &flips.collect::<Vec<_>>()));

    body.push_str("<h2>Time for a request, 99 of 100 take less</h2>\n");
    let times = report.stages.iter().flat_map(|stage| {
        [
            ("then", &stage.then, "then", stage.plugin_then.is_some()),
            ("now", &stage.now, "now", stage.plugin_now.is_some()),
        ]
        .into_iter()
        .filter(|(.., there)| *there)
        .map(move |(when, did, class, _)| Bar {
            label: format!("{} ({}) {when}", stage.stage, place(stage)),
            value: did.micros.p99,
            shown: words::time(did.micros.p99),
            class,
        })
    });
    body.push_str(&chart("Time for a request", &times.collect::<Vec<_>>()));

    body.push_str("<h2>Stages</h2>\n<div class=scroll><table>\n<tr><th>stage<th>place<th>plugin");
    for head in [
        "ran", "findings", "edits", "calls", "bytes", "p50", "p99", "all",
    ] {
        body.push_str(&format!("<th class=number>{head}"));
    }
    body.push_str("</tr>\n");
    for stage in &report.stages {
        body.push_str(&rows(stage));
    }
    body.push_str("</table></div>\n");

    if !report.examples.is_empty() {
        body.push_str("<h2>Examples</h2>\n");
    }
    for example in &report.examples {
        body.push_str(&format!("<p>{}", escape(&one_line(&example.flip))));
        if !example.findings.is_empty() {
            let findings = escape(&example.findings.join(", "));
            body.push_str(&format!(
                "<br><span class=soft>finds now: {findings}</span>"
            ));
        }
        body.push_str("</p>\n");
        if let Some(text) = &example.text {
            body.push_str(&format!("<pre>{}</pre>\n", escape(text)));
        }
    }
    format!(
        "<!doctype html>\n<html lang=en>\n<meta charset=utf-8>\n<meta name=viewport content=\"width=device-width, initial-scale=1\">\n<title>Backtest of {}</title>\n<style>{STYLE}</style>\n<body>\n{body}</body>\n</html>\n",
        escape(config)
    )
}

fn rows(stage: &StageChange) -> String {
    let mut text = String::new();
    for (when, did, plugin) in [
        ("then", &stage.then, &stage.plugin_then),
        ("now", &stage.now, &stage.plugin_now),
    ] {
        let Some(plugin) = plugin else { continue };
        text.push_str(&format!(
            "<tr><td>{} {when}<td>{}<td>{}",
            escape(&stage.stage),
            place(stage),
            escape(plugin)
        ));
        for number in [
            did.ran.to_string(),
            did.findings.to_string(),
            did.edits.to_string(),
            did.calls.to_string(),
            did.given.to_string(),
            words::time(did.micros.p50),
            words::time(did.micros.p99),
            words::time(did.micros.total),
        ] {
            text.push_str(&format!("<td class=number>{number}"));
        }
        text.push_str("</tr>\n");
    }
    text
}

/// Horizontal bars.
fn chart(title: &str, bars: &[Bar]) -> String {
    if bars.is_empty() {
        return "<p class=soft>none</p>\n".to_owned();
    }
    const ROW: usize = 26;
    const LABELS: f64 = 330.0;
    const WIDTH: f64 = 900.0;
    let most = bars.iter().map(|bar| bar.value).max().unwrap_or(1).max(1);
    let height = bars.len() * ROW + 6;
    let mut text = format!(
        "<svg viewBox=\"0 0 {WIDTH} {height}\" role=img aria-label=\"{}\">\n",
        escape(title)
    );
    for (index, bar) in bars.iter().enumerate() {
        let top = index * ROW + 4;
        let length = (bar.value as f64 / most as f64 * (WIDTH - LABELS - 90.0)).max(1.0);
        text.push_str(&format!(
            "<text x=\"0\" y=\"{y}\">{label}</text><rect class={class} x=\"{LABELS}\" y=\"{top}\" width=\"{length:.1}\" height=\"18\" rx=\"2\"/><text x=\"{end:.1}\" y=\"{y}\">{shown}</text>\n",
            y = top + 14,
            label = escape(&bar.label),
            class = bar.class,
            end = LABELS + length + 6.0,
            shown = escape(&bar.shown),
        ));
    }
    text.push_str("</svg>\n");
    text
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            c if c.is_control() && c != '\n' => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_from_traffic_cannot_become_markup() {
        let bars = [Bar {
            label: "<script>\"&".into(),
            value: 3,
            shown: "3".into(),
            class: "now",
        }];
        let text = chart("t", &bars);
        assert!(text.contains("&lt;script&gt;&quot;&amp;"), "{text}");
        assert!(!text.contains("<script"), "{text}");
    }
}
