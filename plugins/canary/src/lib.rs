//! Splits traffic between arms, and moves a rollout step by step: on while the candidate does no
//! harm, back as soon as an always-valid test says that it does.
//!
//! [`split`] picks the arm of a request. [`review`] is the rollout's way through its steps;
//! [`sequential`] holds the tests that it decides by, and [`moments`] the statistics under them:
//! the host decides canary stages by the same ones.
#![cfg_attr(target_family = "wasm", no_std)]

extern crate alloc;

mod config;
pub mod review;

pub use millgate_trial::{moments, sequential, split};

use millgate_sdk::prelude::*;

pub use config::Config;
use millgate_trial::split::Share;
use review::{Memory, Rules};

/// The first byte of a saved state; another layout gets another number.
const STATE_VERSION: u8 = 1;

/// The plugin.
#[derive(Debug)]
pub struct Canary {
    config: Config,
    rules: Rules,
    memory: Memory,
}

impl Plugin for Canary {
    type Config = Config;

    fn configure(config: Config) -> Result<Self, StageError> {
        let rules = config.rules()?;
        Ok(Self {
            config,
            rules,
            memory: Memory::default(),
        })
    }
}

impl Deployment for Canary {
    fn route(
        &mut self,
        ctx: &Context<'_>,
        features: &[Label],
        arms: &[Arm],
    ) -> Result<Choice, StageError> {
        let feature = |name: &str| {
            let label = features
                .iter()
                .find(|label| label.name == name && !label.value.is_empty());
            label.map(|label| label.value.as_str())
        };
        for pin in &self.config.pins {
            if feature(&pin.feature) == Some(pin.value.as_str())
                && let Some(arm) = arms.iter().find(|arm| arm.role == pin.arm.role())
            {
                return Ok(Choice {
                    arm: arm.name.clone(),
                    propensity: 1.0,
                    reason: format!("pinned by {}", pin.feature),
                });
            }
        }
        let trace;
        let sticky = self
            .config
            .sticky_by
            .iter()
            .find_map(|name| Some((name.as_str(), feature(name)?)));
        let (name, value) = match sticky {
            Some(found) => found,
            None => {
                trace = ctx.trace_id();
                ("trace", trace.as_str())
            }
        };
        let shares: Vec<Share<'_>> = arms
            .iter()
            .map(|arm| Share {
                name: &arm.name,
                candidate: arm.role == ArmRole::Candidate,
                weight: arm.weight,
            })
            .collect();
        let Some(placed) = split::place(&self.config.salt, &[name, value], &shares) else {
            return Err(StageError::invalid_input(
                "no-stable-arm",
                "a route needs a stable arm to fall back on",
            ));
        };
        let reason = match sticky {
            Some(_) => format!("sticky by {name}, bucket {:.4}", placed.bucket),
            None => format!("by trace, bucket {:.4}", placed.bucket),
        };
        Ok(Choice {
            arm: arms[placed.arm].name.clone(),
            propensity: placed.propensity,
            reason,
        })
    }

    fn review(&mut self, rollout: &Rollout) -> Result<Recommendation, StageError> {
        Ok(review::review(&self.rules, &mut self.memory, rollout))
    }

    fn save(&self) -> Result<Vec<u8>, StageError> {
        let bytes = postcard::to_allocvec(&(STATE_VERSION, &self.memory));
        bytes.map_err(|error| {
            StageError::internal("save", format!("the state cannot be written: {error}"))
        })
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), StageError> {
        match postcard::take_from_bytes::<(u8, Memory)>(state) {
            Ok(((STATE_VERSION, memory), [])) => {
                self.memory = memory;
                Ok(())
            }
            _ => Err(StageError::invalid_input(
                "state",
                "these bytes are not a state of this version of `canary`; start without one",
            )),
        }
    }
}

millgate_sdk::plugin!(Canary: Deployment);
