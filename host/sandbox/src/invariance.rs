//! Split invariance: what a compliance plugin decides must not depend on where the chunks of a
//! text break. This runs a stage over a text cut in different ways, and compares.

use std::fmt;

use crate::call::CallContext;
use crate::contract::compliance::{Decision, Edit};
use crate::contract::types::Finding;
use crate::failure::Failure;
use crate::held::Held;
use crate::stage::Stage;

/// All that a stage made of one text.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// The text that left, edits applied. Where the stage blocked, what had left before: that
    /// depends on how long the text was held back, so it is not compared.
    pub text: String,
    /// The edits, in order.
    pub edits: Vec<Edit>,
    /// The findings, ordered by place and rule.
    pub findings: Vec<Finding>,
    /// The decision that ended it, or `pass`.
    pub decision: Decision,
}

/// Two ways to cut one text that a stage does not treat alike.
#[derive(Clone, Debug)]
pub struct Difference {
    /// The text.
    pub text: String,
    /// Where it was cut, in bytes.
    pub cuts: Vec<usize>,
    /// What the stage makes of the whole.
    pub whole: Outcome,
    /// What it makes of the pieces.
    pub pieces: Outcome,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "the text {:?} cut at {:?} gives", self.text, self.cuts)?;
        writeln!(f, "  {:?}", self.pieces)?;
        writeln!(f, "but whole it gives")?;
        write!(f, "  {:?}", self.whole)
    }
}

/// Why a check found the stage wanting.
#[derive(Debug, thiserror::Error)]
pub enum Broken {
    /// A call failed.
    #[error("a call failed on {text:?} cut at {cuts:?}: {failure}")]
    Failed {
        /// The text.
        text: String,
        /// Where it was cut, in bytes.
        cuts: Vec<usize>,
        /// How it failed.
        failure: Failure,
    },
    /// The result depends on the cuts.
    #[error("{0}")]
    Differs(Box<Difference>),
}

/// Runs a stage over a text cut at `cuts` (byte offsets; those inside a character are moved back
/// to its start).
pub async fn run(
    stage: &Stage,
    context: &CallContext,
    text: &str,
    cuts: &[usize],
) -> Result<Outcome, Failure> {
    let mut inspection = stage.inspection(context);
    let mut held = Held::default();
    let mut outcome = Outcome {
        text: String::new(),
        edits: Vec::new(),
        findings: Vec::new(),
        decision: Decision::Pass,
    };
    let mut pieces: Vec<Option<&str>> = pieces(text, cuts).into_iter().map(Some).collect();
    pieces.push(None);
    for piece in pieces {
        let verdict = match piece {
            Some(piece) => {
                held.push(piece);
                inspection.push_async(&[piece]).await?
            }
            None => inspection.finish_async().await?,
        };
        outcome.text.push_str(&held.settle(&verdict));
        outcome.edits.extend(verdict.edits);
        outcome.findings.extend(verdict.findings);
        if verdict.decision != Decision::Pass {
            outcome.decision = verdict.decision;
            break;
        }
    }
    let place = |finding: &Finding| finding.span.map_or((0, 0), |span| (span.start, span.end));
    outcome
        .findings
        .sort_by(|a, b| place(a).cmp(&place(b)).then_with(|| a.rule.cmp(&b.rule)));
    Ok(outcome)
}

/// Compares the whole text with each of the `cuttings`.
pub async fn check(
    stage: &Stage,
    context: &CallContext,
    text: &str,
    cuttings: &[Vec<usize>],
) -> Result<(), Broken> {
    let failed = |cuts: &[usize], failure| Broken::Failed {
        text: text.into(),
        cuts: cuts.into(),
        failure,
    };
    let whole = run(stage, context, text, &[])
        .await
        .map_err(|failure| failed(&[], failure))?;
    for cuts in cuttings {
        let pieces = run(stage, context, text, cuts)
            .await
            .map_err(|failure| failed(cuts, failure))?;
        if !same(&whole, &pieces) {
            return Err(Broken::Differs(Box::new(Difference {
                text: text.into(),
                cuts: cuts.clone(),
                whole,
                pieces,
            })));
        }
    }
    Ok(())
}

/// Ways to cut a text that find most mistakes: every character alone, halves, and steps of a few
/// sizes, on and beside powers of two.
#[must_use]
pub fn cuttings(text: &str) -> Vec<Vec<usize>> {
    let characters: Vec<usize> = text.char_indices().map(|(at, _)| at).skip(1).collect();
    let mut all = vec![characters, vec![text.len() / 2]];
    for step in [2, 3, 5, 7, 8, 13, 16, 31, 64] {
        all.push(
            (1..)
                .map(|i| i * step)
                .take_while(|&at| at < text.len())
                .collect(),
        );
    }
    // Each single cut, for short texts.
    if text.len() <= 64 {
        all.extend((1..text.len()).map(|at| vec![at]));
    }
    all
}

/// Whether two outcomes are the same. Where the text was blocked, how much of it had left and been
/// found before depends on the cuts, and only the decision counts.
fn same(whole: &Outcome, pieces: &Outcome) -> bool {
    match &whole.decision {
        Decision::Pass => whole == pieces,
        decision => *decision == pieces.decision,
    }
}

fn pieces<'a>(text: &'a str, cuts: &[usize]) -> Vec<&'a str> {
    let mut cuts: Vec<usize> = cuts
        .iter()
        .map(|&cut| text.floor_char_boundary(cut))
        .collect();
    cuts.sort_unstable();
    cuts.dedup();
    cuts.push(text.len());
    let mut from = 0;
    let mut pieces = Vec::with_capacity(cuts.len());
    for cut in cuts {
        if let Some(piece) = text.get(from..cut).filter(|piece| !piece.is_empty()) {
            pieces.push(piece);
            from = cut;
        }
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_make_up_the_text() {
        assert_eq!(pieces("aéb", &[2, 1, 9, 0]), ["a", "éb"]);
        assert!(pieces("", &[0, 1]).is_empty());
        let text = "zwölf Boxkämpfer";
        for cuts in cuttings(text) {
            assert_eq!(pieces(text, &cuts).concat(), text);
        }
    }
}
