//! Splits users by a hash, and rolls back a candidate that fails more often.
#![cfg_attr(target_family = "wasm", no_std)]
use millgate_sdk::prelude::*;

/// The stage's config.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Sticky {
    margin: f64,
    at_least: u64,
}

impl Plugin for Sticky {
    type Config = Sticky;
    fn configure(config: Sticky) -> Result<Self, StageError> {
        Ok(config)
    }
}

impl Deployment for Sticky {
    fn route(
        &mut self,
        _: &Context<'_>,
        features: &[Label],
        arms: &[Arm],
    ) -> Result<Choice, StageError> {
        let user = features.iter().find(|feature| feature.name == "user");
        let bucket = bucket(user.map_or("", |user| &user.value));
        let mut below = 0.0;
        let chosen = arms.iter().find(|arm| {
            below += arm.weight;
            bucket < below
        });
        let arm = chosen
            .or(arms.last())
            .ok_or_else(|| StageError::internal("no-arms", "there is no arm to choose"))?;
        Ok(Choice {
            arm: arm.name.clone(),
            propensity: if arm.weight > 0.0 { arm.weight } else { 1.0 },
            reason: format!("sticky by user, bucket {bucket:.2}"),
        })
    }

    fn review(&mut self, rollout: &Rollout) -> Result<Recommendation, StageError> {
        let (stable, stable_rate) = errors(rollout, ArmRole::Stable);
        let (candidate, candidate_rate) = errors(rollout, ArmRole::Candidate);
        let evidence = vec![Measure { name: "effect".into(), value: candidate_rate - stable_rate }];
        if stable.min(candidate) < self.at_least {
            let reason = "too few requests".into();
            return Ok(Recommendation { action: Action::Hold, reason, evidence });
        }
        let reason = format!(
            "the candidate's error rate is {candidate_rate:.3}, the stable arm's {stable_rate:.3}"
        );
        let worse = candidate_rate > stable_rate + self.margin;
        let action = if worse { Action::RollBack } else { Action::Hold };
        Ok(Recommendation { action, reason, evidence })
    }

    /// Nothing is remembered.
    fn save(&self) -> Result<Vec<u8>, StageError> {
        Ok(Vec::new())
    }

    fn restore(&mut self, _: &[u8]) -> Result<(), StageError> {
        Ok(())
    }
}

/// Requests and error rate of an arm.
fn errors(rollout: &Rollout, role: ArmRole) -> (u64, f64) {
    let summary = rollout.arms.iter().find(|summary| summary.arm.role == role);
    summary.map_or((0, 0.0), |summary| {
        let error = summary.metric("error");
        (summary.requests, error.map_or(0.0, |error| error.mean))
    })
}

/// Where a user falls between 0 and 1: FNV-1a, then a mix of its bits (MurmurHash3's finalizer).
fn bucket(user: &str) -> f64 {
    let mut hash = user.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    f64::from((hash >> 32) as u32) / 4_294_967_296.0
}

millgate_sdk::plugin!(Sticky: Deployment);
