//! The config, as `plugin.toml` describes it.

use millgate_sdk::prelude::*;

use crate::entity::Entity;

/// What to do with what is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Replace it by a mask.
    #[default]
    Mask,
    /// Replace it by something of the same kind that is the same for the same value.
    Pseudonym,
    /// Refuse the text.
    Block,
}

/// What a mask looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mask {
    /// The entity's name: `[EMAIL]`.
    #[default]
    Label,
    /// Stars, with the last four letters or digits and all separators kept, or an e-mail's domain.
    LastFour,
    /// Eight stars, whatever the length.
    Stars,
}

/// What holds for one entity in place of the general settings.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct EntityConfig {
    /// Whether to look for it at all. Unset: yes.
    pub enabled: Option<bool>,
    /// What to do with it.
    pub action: Option<Action>,
    /// The least score.
    pub threshold: Option<f32>,
    /// More words that announce it.
    pub context: Vec<String>,
}

/// A stage's config. Every key has a default.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct Config {
    /// What to do with what is found.
    pub action: Action,
    /// What a mask looks like.
    pub mask: Mask,
    /// The least score, 0 to 1.
    pub threshold: f32,
    /// The key of pseudonyms: the same key gives the same pseudonyms.
    pub pseudonym_key: Option<String>,
    /// Values that are let through; `@example.com` lets a domain's e-mail addresses through.
    pub allow: Vec<String>,
    /// Settings by entity.
    pub entities: BTreeMap<Entity, EntityConfig>,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            action: Action::default(),
            mask: Mask::default(),
            threshold: 0.4,
            pseudonym_key: None,
            allow: Vec::new(),
            entities: BTreeMap::new(),
        }
    }
}

impl Config {
    /// What is to be done with an entity; `None` if it is not looked for.
    #[must_use]
    pub fn action(&self, entity: Entity) -> Option<Action> {
        let own = self.entities.get(&entity);
        let enabled = own.and_then(|own| own.enabled).unwrap_or(true);
        enabled.then(|| own.and_then(|own| own.action).unwrap_or(self.action))
    }

    /// The least score of an entity.
    #[must_use]
    pub fn threshold(&self, entity: Entity) -> f32 {
        self.entities
            .get(&entity)
            .and_then(|own| own.threshold)
            .unwrap_or(self.threshold)
    }
}
