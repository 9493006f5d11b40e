//! JSON objects read field by field and left raw: what a request and an upstream's answer are read with.

use std::{borrow::Cow, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{Error as _, MapAccess, Visitor},
};
use serde_json::value::RawValue;

/// The fields of an object in order, unread. A name that comes twice is an error: two readers
/// could take different ones, and what a stage checked would not be what the model gets.
pub(crate) struct Fields<'a>(pub Vec<(Cow<'a, str>, &'a RawValue)>);

/// A key, borrowed where it has no escapes.
#[derive(Deserialize)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

fn push_field<'a, E: serde::de::Error>(
    fields: &mut Vec<(Cow<'a, str>, &'a RawValue)>,
    key: Cow<'a, str>,
    value: &'a RawValue,
) -> Result<(), E> {
    if fields.iter().any(|(known, _)| *known == key) {
        return Err(E::custom(format!("the field `{key}` comes twice")));
    }
    fields.push((key, value));
    Ok(())
}

impl<'de: 'a, 'a> Deserialize<'de> for Fields<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct FieldsVisitor;
        impl<'de> Visitor<'de> for FieldsVisitor {
            type Value = Fields<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields = Vec::with_capacity(8);
                while let Some(Key(key)) = map.next_key()? {
                    push_field(&mut fields, key, map.next_value()?)?;
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(FieldsVisitor)
    }
}

/// The top level: messages read, everything else left raw.
pub(crate) struct RawRequest<'a> {
    pub fields: Vec<(Cow<'a, str>, &'a RawValue)>,
    pub messages: Option<Vec<RawMessage<'a>>>,
}

impl<'de: 'a, 'a> Deserialize<'de> for RawRequest<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct RequestVisitor;
        impl<'de> Visitor<'de> for RequestVisitor {
            type Value = RawRequest<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut fields = Vec::with_capacity(12);
                let mut messages = None;
                while let Some(Key(key)) = map.next_key()? {
                    if key == "messages" {
                        if messages
                            .replace(map.next_value::<Vec<RawMessage<'de>>>()?)
                            .is_some()
                        {
                            return Err(A::Error::custom("the field `messages` comes twice"));
                        }
                    } else {
                        push_field(&mut fields, key, map.next_value()?)?;
                    }
                }
                Ok(RawRequest { fields, messages })
            }
        }
        deserializer.deserialize_map(RequestVisitor)
    }
}

/// A message, its texts left raw.
#[derive(Default)]
pub(crate) struct RawMessage<'a> {
    pub role: Option<Cow<'a, str>>,
    pub content: Option<&'a RawValue>,
    pub refusal: Option<&'a RawValue>,
    pub tool_calls: Option<&'a RawValue>,
    /// Bytes of its other fields.
    pub uncovered: u64,
}

impl<'de: 'a, 'a> Deserialize<'de> for RawMessage<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct MessageVisitor;
        impl<'de> Visitor<'de> for MessageVisitor {
            type Value = RawMessage<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a message: an object with `role` and `content`")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut message = RawMessage::default();
                let twice = |key: &str| A::Error::custom(format!("the field `{key}` comes twice"));
                while let Some(Key(key)) = map.next_key()? {
                    let slot = match key.as_ref() {
                        "role" => {
                            let Key(role) = map.next_value()?;
                            if message.role.replace(role).is_some() {
                                return Err(twice("role"));
                            }
                            continue;
                        }
                        "content" => &mut message.content,
                        "refusal" => &mut message.refusal,
                        "tool_calls" => &mut message.tool_calls,
                        "tool_call_id" => {
                            map.next_value::<&RawValue>()?;
                            continue;
                        }
                        _ => {
                            message.uncovered += map.next_value::<&RawValue>()?.get().len() as u64;
                            continue;
                        }
                    };
                    if slot.replace(map.next_value()?).is_some() {
                        return Err(twice(&key));
                    }
                }
                Ok(message)
            }
        }
        deserializer.deserialize_map(MessageVisitor)
    }
}
