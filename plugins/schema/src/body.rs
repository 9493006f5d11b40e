//! What can be wrong with a body as JSON text, before anybody looks at its values: broken escapes,
//! names given twice, nesting without end.

use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::String;
use core::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// The offset of the first `\u` escape of half a surrogate pair, which is no character.
pub fn lone_surrogate(json: &str) -> Option<usize> {
    let bytes = json.as_bytes();
    let mut at = 0;
    while let Some(found) = bytes[at..].iter().position(|&byte| byte == b'\\') {
        let start = at + found;
        match surrogate(bytes, start) {
            Some(0xd800..=0xdbff)
                if matches!(surrogate(bytes, start + 6), Some(0xdc00..=0xdfff)) =>
            {
                at = start + 12
            }
            Some(0xd800..=0xdfff) => return Some(start),
            // Whatever is escaped is one byte at least; `\\` is skipped as a whole.
            _ => at = (start + 2).min(bytes.len()),
        }
    }
    None
}

/// The code unit of a `\uXXXX` escape that begins here.
fn surrogate(bytes: &[u8], at: usize) -> Option<u32> {
    let digits = bytes.get(at..at + 6)?.strip_prefix(b"\\u")?;
    digits.iter().try_fold(0, |unit, &digit| {
        Some(unit << 4 | char::from(digit).to_digit(16)?)
    })
}

/// Checks that the text is JSON and that no object has a name twice. Two readers of such a body may
/// see two different requests.
pub fn check_names(json: &str) -> Result<(), String> {
    let mut reader = serde_json::Deserializer::from_str(json);
    Names
        .deserialize(&mut reader)
        .and_then(|()| reader.end())
        .map_err(|error| format!("{error}"))
}

/// Walks over a value without keeping it.
struct Names;

impl<'de> DeserializeSeed<'de> for Names {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Names {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        while items.next_element_seed(Names)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        let mut names = BTreeSet::new();
        while let Some(name) = members.next_key::<String>()? {
            if !names.insert(name) {
                return Err(A::Error::custom("an object has the same name twice"));
            }
            members.next_value_seed(Names)?;
        }
        Ok(())
    }
}

/// The parts of a chat request that the rules of roles look at.
#[derive(Debug, Deserialize)]
pub struct Chat {
    /// Absent in other requests.
    pub messages: Option<alloc::vec::Vec<Message>>,
}

/// A message without its content.
#[derive(Debug, Deserialize)]
pub struct Message {
    /// Empty where there is none.
    #[serde(default)]
    pub role: String,
    #[serde(default, rename = "content")]
    _content: IgnoredAny,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_a_pair_is_found_and_a_whole_one_passes() {
        assert_eq!(lone_surrogate(r#"{"a":"\ud83d\ude00 \\ud83d \n"}"#), None);
        assert_eq!(lone_surrogate(r#"{"a":"\ud83d"}"#), Some(6));
        assert_eq!(lone_surrogate(r#"{"a":"\ude00\ud83d"}"#), Some(6));
        assert_eq!(lone_surrogate(r#"\\\uD800x"#), Some(2));
        assert_eq!(lone_surrogate("\\"), None);
        assert_eq!(lone_surrogate("\\u00"), None);
    }

    #[test]
    fn a_name_given_twice_is_found_at_any_depth() {
        assert!(check_names(r#"{"a":[{"b":1,"c":{"b":null}},true,1.5,-1,"x"],"b":2}"#).is_ok());
        assert!(
            check_names(r#"[{"a":{"b":1,"b":2}}]"#)
                .unwrap_err()
                .contains("twice")
        );
        // Escapes do not hide it.
        assert!(
            check_names(r#"{"ab":1,"\u0061b":2}"#)
                .unwrap_err()
                .contains("twice")
        );
        assert!(check_names("{} x").is_err());
        assert!(
            check_names(&"[".repeat(100_000))
                .unwrap_err()
                .contains("recursion")
        );
    }
}
