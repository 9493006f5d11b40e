//! Sizes, times and devices as people write them in a config: `"16MiB"`, `"50ms"`, `"cuda:0"`. They are parsed once, at
//! the edge, so that the rest of the code cannot hold a bad one.

use std::{borrow::Cow, fmt, str::FromStr, time::Duration};

use millgate_infer::DeviceChoice;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// The JSON Schema `format` of a [`ByteSize`].
pub const BYTE_SIZE_FORMAT: &str = "byte-size";
/// The JSON Schema `format` of a [`Time`].
pub const TIME_FORMAT: &str = "duration";

/// The JSON Schema `format` of a [`Device`].
pub const DEVICE_FORMAT: &str = "device";

/// A number of bytes: `"16MiB"`, `"64KiB"`, `"2GiB"`, `"4MB"` or a plain integer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

/// A length of time: `"50ms"`, `"2s"`, `"10m"`, `"12h"`, `"30d"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time(pub Duration);

/// Which device a model runs on: `"auto"`, `"cpu"` or `"cuda:0"`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Device(pub DeviceChoice);

/// Why a text is no size, no time or no device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not {wanted}")]
pub struct UnitError {
    text: String,
    wanted: &'static str,
}

const SIZE_UNITS: [(&str, u64); 9] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("kB", 1_000),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("B", 1),
];

const TIME_UNITS: [(&str, u64); 6] = [
    ("us", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
    ("d", 86_400_000_000_000),
];

/// Splits `"16MiB"` into its number and the factor of its unit.
fn number_and_unit(text: &str, units: &[(&str, u64)]) -> Option<(u64, u64)> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let factor = units.iter().find(|(name, _)| *name == unit.trim())?.1;
    Some((number.parse().ok()?, factor))
}

impl FromStr for ByteSize {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let bytes = match text.trim().parse::<u64>() {
            Ok(bytes) => Some(bytes),
            Err(_) => number_and_unit(text, &SIZE_UNITS).and_then(|(n, f)| n.checked_mul(f)),
        };
        bytes.map(ByteSize).ok_or_else(|| UnitError {
            text: text.to_owned(),
            wanted: "a size such as \"64KiB\" or \"16MiB\"",
        })
    }
}

impl FromStr for Time {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        number_and_unit(text, &TIME_UNITS)
            .and_then(|(n, f)| n.checked_mul(f))
            .map(|nanos| Time(Duration::from_nanos(nanos)))
            .ok_or_else(|| UnitError {
                text: text.to_owned(),
                wanted: "a time such as \"50ms\", \"2s\" or \"30d\"",
            })
    }
}

impl FromStr for Device {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        text.parse().map(Device).map_err(|_| UnitError {
            text: text.to_owned(),
            wanted: "\"auto\", \"cpu\" or \"cuda:0\"",
        })
    }
}

/// The largest unit that divides the number, so that what is printed parses back to the same.
fn largest_unit<'a>(number: u64, units: &[(&'a str, u64)]) -> Option<(u64, &'a str)> {
    units
        .iter()
        .filter(|(_, factor)| number != 0 && number.is_multiple_of(*factor))
        .max_by_key(|(_, factor)| *factor)
        .map(|(unit, factor)| (number / factor, *unit))
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match largest_unit(self.0, &SIZE_UNITS[..4]) {
            Some((number, unit)) => write!(f, "{number}{unit}"),
            None => write!(f, "{}B", self.0),
        }
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = u64::try_from(self.0.as_nanos()).unwrap_or(u64::MAX);
        match largest_unit(nanos, &TIME_UNITS) {
            Some((number, unit)) => write!(f, "{number}{unit}"),
            None => write!(f, "{}us", nanos / 1_000),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Bytes(u64),
            Text(String),
        }
        match Form::deserialize(deserializer)? {
            Form::Bytes(bytes) => Ok(ByteSize(bytes)),
            Form::Text(text) => text.parse().map_err(D::Error::custom),
        }
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(D::Error::custom)
    }
}

impl<'de> Deserialize<'de> for Device {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(D::Error::custom)
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Serialize for Device {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl JsonSchema for ByteSize {
    fn schema_name() -> Cow<'static, str> {
        "ByteSize".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": ["string", "integer"],
            "format": BYTE_SIZE_FORMAT,
            "minimum": 0,
            "pattern": r"^\s*[0-9]+\s*(B|[kK]B|MB|GB|KiB|MiB|GiB|TiB)?\s*$",
            "examples": ["64KiB", "16MiB"],
        })
    }
}

impl JsonSchema for Time {
    fn schema_name() -> Cow<'static, str> {
        "Time".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "format": TIME_FORMAT,
            "pattern": r"^\s*[0-9]+\s*(us|ms|s|m|h|d)\s*$",
            "examples": ["50ms", "30s", "7d"],
        })
    }
}

impl JsonSchema for Device {
    fn schema_name() -> Cow<'static, str> {
        "Device".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "format": DEVICE_FORMAT,
            "pattern": r"^(auto|cpu|cuda(:[0-9]+)?)$",
            "examples": ["auto", "cpu", "cuda:0"],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_and_times_are_read_as_people_write_them() {
        assert_eq!("16MiB".parse(), Ok(ByteSize(16 << 20)));
        assert_eq!("65536".parse(), Ok(ByteSize(65536)));
        assert_eq!("4 MB".parse(), Ok(ByteSize(4_000_000)));
        assert_eq!("50ms".parse(), Ok(Time(Duration::from_millis(50))));
        assert_eq!("30d".parse(), Ok(Time(Duration::from_secs(30 * 86_400))));
    }

    #[test]
    fn nonsense_is_refused_with_an_example() {
        for bad in ["", "MiB", "-1MiB", "16 bananas", "99999999999999999999TiB"] {
            assert!(bad.parse::<ByteSize>().is_err(), "{bad}");
        }
        for bad in ["", "50", "ms", "1.5s", "99999999999999d"] {
            assert!(bad.parse::<Time>().is_err(), "{bad}");
        }
        for bad in ["", "gpu", "cuda:", "cuda:x"] {
            assert!(bad.parse::<Device>().is_err(), "{bad}");
        }
        assert_eq!("cuda:1".parse(), Ok(Device(DeviceChoice::Cuda(1))));
        let said = "x".parse::<Time>().unwrap_err().to_string();
        assert!(said.contains("\"50ms\""), "{said}");
    }

    proptest! {
        #[test]
        fn what_is_printed_parses_back(bytes in any::<u64>(), micros in 0u64..1 << 50) {
            prop_assert_eq!(ByteSize(bytes).to_string().parse(), Ok(ByteSize(bytes)));
            let time = Time(Duration::from_micros(micros));
            prop_assert_eq!(time.to_string().parse(), Ok(time));
        }
    }
}
