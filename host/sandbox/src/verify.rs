//! What a plugin answers is checked against the contract before anyone acts on it.

use std::collections::HashSet;

use crate::contract::compliance::{Decision, Verdict};
use crate::contract::deployment::{Action, Arm, Choice, Recommendation};
use crate::contract::evaluation::{Answer, Evaluation, Score};
use crate::contract::monitoring::Report;
use crate::contract::types::Finding;
use crate::contract::validation::{Judgement, Outcome, Sample};
use crate::failure::Failure;
use crate::held::Held;
use crate::spec::Limits;

/// The most bytes of a refusal's code.
const CODE: usize = 128;

/// The most strings that a regeneration may ban.
const BANS: usize = 64;

fn invalid<T>(why: impl Into<String>) -> Result<T, Failure> {
    Err(Failure::Invalid { why: why.into() })
}

fn oversized<T>(what: impl Into<String>) -> Result<T, Failure> {
    Err(Failure::Oversized { what: what.into() })
}

fn at_most(what: &str, count: usize, limit: u32) -> Result<(), Failure> {
    if count > limit as usize {
        return oversized(format!("{count} {what}, at most {limit}"));
    }
    Ok(())
}

/// Checks a verdict. `held` is the text that was not settled before it; `finished` says that it
/// is the last.
pub(crate) fn verdict(
    verdict: &Verdict,
    held: &Held,
    finished: bool,
    limits: &Limits,
) -> Result<(), Failure> {
    let (before, pushed, settled) = (held.start(), held.end(), verdict.settled);
    if settled < before {
        return invalid(format!("settled goes back from {before} to {settled}"));
    }
    if settled > pushed {
        return invalid(format!(
            "settled is {settled}, but only {pushed} bytes were pushed"
        ));
    }
    if !held.is_boundary(settled) {
        return invalid(format!("settled is {settled}, which is inside a character"));
    }
    if finished && settled < pushed && verdict.decision == Decision::Pass {
        return invalid(format!("settled is {settled} of {pushed} after finish"));
    }

    at_most("edits", verdict.edits.len(), limits.edits)?;
    let mut at = before;
    let mut bytes = 0u64;
    for edit in &verdict.edits {
        let (start, end) = (edit.span.start, edit.span.end);
        if start > end {
            return invalid(format!(
                "an edit's span {start}..{end} ends before it starts"
            ));
        }
        if start < at {
            return invalid(format!(
                "an edit at {start}..{end} begins before {at}, where settled text or the edit before it ended"
            ));
        }
        if end > settled {
            return invalid(format!(
                "an edit at {start}..{end} ends beyond settled, {settled}"
            ));
        }
        if !held.is_boundary(start) || !held.is_boundary(end) {
            return invalid(format!("an edit's span {start}..{end} cuts a character"));
        }
        at = end;
        bytes += edit.replacement.len() as u64;
    }
    if bytes > limits.replacement_bytes {
        return oversized(format!(
            "{bytes} bytes of replacements, at most {}",
            limits.replacement_bytes
        ));
    }

    // A finding comes with the text that it is about: text that is settled now or, where the
    // verdict stops the text, text that never will be.
    let last = if verdict.decision == Decision::Pass {
        settled
    } else {
        pushed
    };
    findings(&verdict.findings, limits, |start, end| {
        if start < before || end > last {
            return invalid(format!(
                "a finding at {start}..{end} is outside the text just decided, {before}..{last}"
            ));
        }
        if !held.is_boundary(start) || !held.is_boundary(end) {
            return invalid(format!("a finding's span {start}..{end} cuts a character"));
        }
        Ok(())
    })?;

    match &verdict.decision {
        Decision::Pass => Ok(()),
        Decision::Block(refusal) => code(&refusal.code),
        Decision::Regenerate(regeneration) => {
            let keep = regeneration.keep;
            if keep < settled || keep > pushed || !held.is_boundary(keep) {
                return invalid(format!(
                    "regenerate keeps {keep}, which is not a character boundary in {settled}..{pushed}"
                ));
            }
            if regeneration.ban.len() > BANS {
                return oversized(format!("{} bans, at most {BANS}", regeneration.ban.len()));
            }
            if regeneration.ban.iter().any(String::is_empty) {
                return invalid("regenerate bans the empty string, which every text contains");
            }
            code(&regeneration.reason.code)
        }
    }
}

fn code(code: &str) -> Result<(), Failure> {
    if code.is_empty() || code.len() > CODE {
        return invalid(format!("a refusal's code must have 1 to {CODE} bytes"));
    }
    Ok(())
}

fn findings(
    findings: &[Finding],
    limits: &Limits,
    span: impl Fn(u32, u32) -> Result<(), Failure>,
) -> Result<(), Failure> {
    at_most("findings", findings.len(), limits.findings)?;
    for finding in findings {
        if !(0.0..=1.0).contains(&finding.score) {
            return invalid(format!(
                "a finding's score is {}, not in 0 to 1",
                finding.score
            ));
        }
        if let Some(at) = finding.span {
            if at.start > at.end {
                return invalid(format!(
                    "a finding's span {}..{} ends before it starts",
                    at.start, at.end
                ));
            }
            span(at.start, at.end)?;
        }
    }
    Ok(())
}

/// Checks the judgements of a batch.
pub(crate) fn judgements(
    judgements: &[Judgement],
    samples: &[Sample],
    limits: &Limits,
) -> Result<(), Failure> {
    if judgements.len() != samples.len() {
        return invalid(format!(
            "{} judgements for {} samples",
            judgements.len(),
            samples.len()
        ));
    }
    for (judgement, sample) in judgements.iter().zip(samples) {
        // The contract leaves it to the rule which text of the sample a span is about.
        let longest = sample
            .segments
            .iter()
            .map(|segment| segment.text.len())
            .fold(sample.body.len(), usize::max);
        findings(&judgement.findings, limits, |start, end| {
            if end as usize > longest {
                return invalid(format!(
                    "a finding at {start}..{end} is outside the sample, whose longest text has {longest} bytes"
                ));
            }
            Ok(())
        })?;
        if let Outcome::Repair(repairs) = &judgement.outcome {
            at_most("repairs", repairs.len(), limits.edits)?;
            let bytes: u64 = repairs.iter().map(|repair| repair.text.len() as u64).sum();
            if bytes > limits.replacement_bytes.max(2 * longest as u64) {
                return oversized(format!(
                    "{bytes} bytes of repairs, at most {}",
                    limits.replacement_bytes.max(2 * longest as u64)
                ));
            }
            let mut seen = HashSet::new();
            for repair in repairs {
                let path = repair.path.as_str();
                if !sample.segments.iter().any(|segment| segment.path == path) {
                    return invalid(format!("a repair of {path:.100}, which is no segment"));
                }
                if !seen.insert(path) {
                    return invalid(format!("two repairs of {path:.100}"));
                }
            }
        }
    }
    Ok(())
}

/// Checks the scores of a batch.
pub(crate) fn evaluation(evaluation: &Evaluation, answers: &[Answer]) -> Result<(), Failure> {
    if evaluation.cases.len() != answers.len() {
        return invalid(format!(
            "{} cases for {} answers",
            evaluation.cases.len(),
            answers.len()
        ));
    }
    for (case, answer) in evaluation.cases.iter().zip(answers) {
        if case.id != answer.id {
            return invalid(format!(
                "the scores of {:.100} stand where those of {:.100} belong",
                case.id, answer.id
            ));
        }
        scores(&case.scores)?;
    }
    scores(&evaluation.aggregate)
}

fn scores(scores: &[Score]) -> Result<(), Failure> {
    match scores
        .iter()
        .find(|score| !score.value.is_finite() || score.name.is_empty())
    {
        Some(score) => invalid(format!(
            "the score {:?} is {}, not a number",
            score.name, score.value
        )),
        None => Ok(()),
    }
}

/// Checks where a request was sent.
pub(crate) fn choice(choice: &Choice, arms: &[Arm]) -> Result<(), Failure> {
    if !arms.iter().any(|arm| arm.name == choice.arm) {
        return invalid(format!(
            "it chose {:.100}, which is none of the arms",
            choice.arm
        ));
    }
    if !(choice.propensity > 0.0 && choice.propensity <= 1.0) {
        return invalid(format!(
            "a propensity of {}, not in 0 to 1",
            choice.propensity
        ));
    }
    Ok(())
}

/// Checks a decision about a rollout.
pub(crate) fn recommendation(recommendation: &Recommendation) -> Result<(), Failure> {
    match recommendation.action {
        Action::Shift(share) if !(0.0..=1.0).contains(&share) => {
            invalid(format!("a shift to {share}, not in 0 to 1"))
        }
        _ => Ok(()),
    }
}

/// Checks what a monitor reported.
pub(crate) fn report(report: &Report, limits: &Limits) -> Result<(), Failure> {
    at_most("alerts", report.alerts.len(), limits.findings)?;
    match report.alerts.iter().find(|alert| alert.rule.is_empty()) {
        Some(_) => invalid("an alert without a rule"),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::contract::compliance::{Edit, Refusal, Regeneration};
    use crate::contract::types::Span;

    /// "aé-" and four more bytes pushed, 1 byte settled: boundaries at 1, 3, 4, 5, 6, 7, 8.
    fn held() -> Held {
        let mut held = Held::default();
        held.push("aé-bcde");
        held.settle(&Verdict {
            settled: 1,
            ..Verdict::default()
        });
        held
    }

    fn check(verdict: Verdict, finished: bool) -> Result<(), Failure> {
        super::verdict(&verdict, &held(), finished, &Limits::default())
    }

    fn edit(start: u32, end: u32) -> Edit {
        Edit {
            span: Span { start, end },
            replacement: "x".into(),
        }
    }

    fn finding(start: u32, end: u32) -> Finding {
        Finding {
            rule: "r".into(),
            span: Some(Span { start, end }),
            score: 0.5,
            explanation: String::new(),
        }
    }

    fn with(settled: u32, edits: Vec<Edit>, findings: Vec<Finding>) -> Verdict {
        Verdict {
            settled,
            edits,
            findings,
            decision: Decision::Pass,
        }
    }

    fn refusal() -> Refusal {
        Refusal {
            code: "no".into(),
            message: "No.".into(),
        }
    }

    #[test]
    fn sound_verdicts_pass() {
        for verdict in [
            with(1, vec![], vec![]),
            with(
                8,
                vec![edit(1, 3), edit(3, 3), edit(3, 4), edit(8, 8)],
                vec![finding(1, 8)],
            ),
            Verdict {
                decision: Decision::Block(refusal()),
                ..with(1, vec![], vec![finding(3, 8)])
            },
            Verdict {
                decision: Decision::Regenerate(Regeneration {
                    keep: 3,
                    ban: vec!["x".into()],
                    reason: refusal(),
                }),
                ..with(1, vec![], vec![])
            },
        ] {
            check(verdict, false).unwrap();
        }
        check(with(8, vec![], vec![]), true).unwrap();
        check(
            Verdict {
                decision: Decision::Block(refusal()),
                ..with(1, vec![], vec![])
            },
            true,
        )
        .unwrap();
    }

    #[test]
    fn each_broken_rule_is_named() {
        let score = |score| Finding {
            score,
            ..finding(1, 3)
        };
        let keep = |keep| {
            Decision::Regenerate(Regeneration {
                keep,
                ban: vec![],
                reason: refusal(),
            })
        };
        for (verdict, why) in [
            (with(0, vec![], vec![]), "goes back"),
            (with(9, vec![], vec![]), "only 8 bytes were pushed"),
            (with(2, vec![], vec![]), "inside a character"),
            (with(4, vec![edit(0, 1)], vec![]), "begins before 1"),
            (
                with(4, vec![edit(3, 4), edit(1, 3)], vec![]),
                "begins before 4",
            ),
            (
                with(8, vec![edit(3, 5), edit(4, 6)], vec![]),
                "begins before 5",
            ),
            (with(4, vec![edit(3, 5)], vec![]), "beyond settled"),
            (with(4, vec![edit(2, 3)], vec![]), "cuts a character"),
            (with(4, vec![edit(4, 3)], vec![]), "ends before it starts"),
            (
                with(4, vec![], vec![finding(0, 1)]),
                "outside the text just decided",
            ),
            (
                with(4, vec![], vec![finding(3, 5)]),
                "outside the text just decided",
            ),
            (with(4, vec![], vec![finding(1, 2)]), "cuts a character"),
            (
                with(4, vec![], vec![finding(4, 3)]),
                "ends before it starts",
            ),
            (with(4, vec![], vec![score(1.5)]), "score"),
            (with(4, vec![], vec![score(f32::NAN)]), "score"),
            (
                Verdict {
                    decision: keep(2),
                    ..with(1, vec![], vec![])
                },
                "keeps 2",
            ),
            (
                Verdict {
                    decision: keep(3),
                    ..with(4, vec![], vec![])
                },
                "keeps 3",
            ),
            (
                Verdict {
                    decision: Decision::Block(Refusal {
                        code: String::new(),
                        message: "".into(),
                    }),
                    ..with(1, vec![], vec![])
                },
                "code",
            ),
        ] {
            match check(verdict.clone(), false) {
                Err(Failure::Invalid { why: told }) => {
                    assert!(told.contains(why), "{told:?} should say {why:?}");
                }
                other => panic!("{verdict:?}: {other:?}"),
            }
        }
        assert!(check(with(7, vec![], vec![]), true).is_err());
    }

    #[test]
    fn too_much_is_oversized() {
        let limits = Limits {
            edits: 1,
            findings: 1,
            replacement_bytes: 3,
            ..Limits::default()
        };
        for verdict in [
            with(8, vec![edit(1, 3), edit(3, 4)], vec![]),
            with(8, vec![], vec![finding(1, 3), finding(3, 4)]),
            with(
                8,
                vec![Edit {
                    replacement: "four".into(),
                    ..edit(1, 3)
                }],
                vec![],
            ),
        ] {
            assert!(matches!(
                super::verdict(&verdict, &held(), false, &limits),
                Err(Failure::Oversized { .. })
            ));
        }
    }

    #[test]
    fn arms_are_chosen_from_those_given() {
        use crate::contract::deployment::ArmRole;
        let arms = [Arm {
            name: "stable".into(),
            role: ArmRole::Stable,
            weight: 1.0,
        }];
        let choose = |arm: &str, propensity| {
            choice(
                &Choice {
                    arm: arm.into(),
                    propensity,
                    reason: String::new(),
                },
                &arms,
            )
        };
        assert!(choose("stable", 1.0).is_ok());
        assert!(choose("other", 1.0).is_err());
        for propensity in [0.0, -0.1, 1.1, f64::NAN] {
            assert!(choose("stable", propensity).is_err());
        }
    }
}
