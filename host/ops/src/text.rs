//! Shared strings in serialised records.

use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serializer};

/// For `#[serde(with = "crate::text")]` on an `Arc<str>`.
pub(crate) fn serialize<S: Serializer>(text: &Arc<str>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(text)
}

/// See [`serialize`].
pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Arc<str>, D::Error> {
    Ok(String::deserialize(deserializer)?.into())
}
