//! The config, as `plugin.toml` describes it.

use alloc::string::String;
use alloc::vec::Vec;

use serde::Deserialize;
use serde_json::Value;

use crate::chat::{Roles, Sizes};
use crate::unicode::{Flaw, Policy};

/// The config.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", default, deny_unknown_fields)]
pub struct Config {
    pub(crate) request_schema: Option<Value>,
    pub(crate) row_schema: Option<Value>,
    pub(crate) text_schema: Option<Value>,
    pub(crate) text_roles: Vec<String>,
    pub(crate) sizes: Sizes,
    pub(crate) roles: Roles,
    pub(crate) duplicate_names: bool,
    pub(crate) unicode: Unicode,
    repair: Repairs,
    normalise: Normalise,
}

/// Whether texts are repaired.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Repairs {
    Off,
    #[default]
    Safe,
}

/// The form that texts are brought to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Normalise {
    #[default]
    None,
    Nfc,
}

/// What to do about each kind of flaw.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case", default, deny_unknown_fields)]
pub(crate) struct Unicode {
    control_characters: Policy,
    byte_order_mark: Policy,
    replacement_characters: Policy,
    bidi_overrides: Policy,
    zero_width: Policy,
    tag_characters: Policy,
    variation_selectors: Policy,
    non_characters: Policy,
}

impl Default for Unicode {
    fn default() -> Self {
        Self {
            control_characters: Policy::Repair,
            byte_order_mark: Policy::Repair,
            // What was there is lost: taking the mark out would only hide that.
            replacement_characters: Policy::Flag,
            bidi_overrides: Policy::Repair,
            zero_width: Policy::Repair,
            tag_characters: Policy::Repair,
            variation_selectors: Policy::Repair,
            non_characters: Policy::Repair,
        }
    }
}

impl Unicode {
    pub(crate) fn of(&self, flaw: Flaw) -> Policy {
        match flaw {
            Flaw::Control => self.control_characters,
            Flaw::ByteOrderMark => self.byte_order_mark,
            Flaw::Replacement => self.replacement_characters,
            Flaw::Bidi => self.bidi_overrides,
            Flaw::ZeroWidth => self.zero_width,
            Flaw::Tag => self.tag_characters,
            Flaw::VariationSelector => self.variation_selectors,
            Flaw::NonCharacter => self.non_characters,
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            request_schema: None,
            row_schema: None,
            text_schema: None,
            text_roles: [String::from("user")].to_vec(),
            sizes: Sizes::default(),
            roles: Roles::default(),
            duplicate_names: false,
            unicode: Unicode::default(),
            repair: Repairs::Safe,
            normalise: Normalise::None,
        }
    }
}

impl Config {
    pub(crate) fn repairs(&self) -> bool {
        self.repair == Repairs::Safe
    }

    pub(crate) fn normalises(&self) -> bool {
        self.repairs() && self.normalise == Normalise::Nfc
    }
}
