//! The stages that are served, as an operator sees them: where they stand, whether their verdict
//! counts, and how it compares where it does not.

use serde::Serialize;

use crate::{
    canary::CanaryStatus, config::StageMode, platform::Platform, shadow::ShadowStatus,
    stage::LoadedStage, trace::Place,
};

/// A stage as an operator sees it.
#[derive(Clone, Debug, Serialize)]
pub struct StageStatus {
    /// Its name.
    pub stage: String,
    /// Its plugin and version.
    pub plugin: String,
    /// The plugin's digest.
    pub digest: String,
    /// Whether its verdict counts by its config.
    pub mode: StageMode,
    /// Where it stands on requests and answers.
    pub places: Vec<StagePlace>,
    /// How its verdicts compare where they do not count.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shadow: Option<ShadowStatus>,
    /// Where it stands as a canary.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub canary: Option<CanaryStatus>,
}

/// A place of a stage.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StagePlace {
    /// The pipeline.
    pub pipeline: String,
    /// On its requests or on its answers.
    pub place: Place,
}

impl Platform {
    /// The stages on requests and answers of the generation that is served, by name.
    #[must_use]
    pub fn stages(&self) -> Vec<StageStatus> {
        let generation = self.inner.core.generation.load();
        let mut stages: Vec<StageStatus> = Vec::new();
        for pipeline in &generation.pipelines {
            let input = pipeline.input.iter().map(|stage| (stage, Place::Input));
            let output = pipeline.output.iter().map(|stage| (stage, Place::Output));
            for (stage, place) in input.chain(output) {
                let place = StagePlace {
                    pipeline: pipeline.name.to_string(),
                    place,
                };
                match stages.iter_mut().find(|known| *known.stage == *stage.name) {
                    Some(known) => known.places.push(place),
                    None => stages.push(status(stage, place)),
                }
            }
        }
        stages.sort_by(|a, b| a.stage.cmp(&b.stage));
        stages
    }
}

fn status(stage: &LoadedStage, place: StagePlace) -> StageStatus {
    StageStatus {
        stage: stage.name.to_string(),
        plugin: stage.plugin.to_string(),
        digest: stage.digest.to_string(),
        mode: stage.mode,
        places: vec![place],
        shadow: stage.shadow.as_ref().map(|shadow| shadow.status()),
        canary: stage.canary.as_ref().map(|canary| canary.status()),
    }
}
