//! The id of a trace: 48 bits of milliseconds since 1970 and 80 random ones, so that ids sort by
//! time and the newest traces stand together in the store.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// A trace's id; written as 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TraceId([u8; 16]);

/// The text is no trace id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a trace id has 32 lower-case hexadecimal digits")]
pub struct BadTraceId;

impl TraceId {
    /// A new id for this moment.
    #[must_use]
    pub fn new(now_ms: u64) -> Self {
        let mut bytes = rand::random::<[u8; 16]>();
        bytes[..6].copy_from_slice(&now_ms.to_be_bytes()[2..]);
        Self(bytes)
    }

    /// The smallest id of a moment: a bound for ranges.
    #[must_use]
    pub fn first_at(ms: u64) -> Self {
        let mut bytes = [0; 16];
        bytes[..6].copy_from_slice(&ms.min((1 << 48) - 1).to_be_bytes()[2..]);
        Self(bytes)
    }

    /// The bytes, in the order of time.
    #[must_use]
    pub fn bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// The id of these bytes.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Milliseconds since 1970 at which it was made.
    #[must_use]
    pub fn at_ms(&self) -> u64 {
        self.0[..6]
            .iter()
            .fold(0, |ms, byte| ms << 8 | u64::from(*byte))
    }

    /// 64 of the random bits: the seed of the request's virtual clock and random numbers, and what
    /// decides whether the request belongs to a sample.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.0[8..]
            .iter()
            .fold(0, |seed, byte| seed << 8 | u64::from(*byte))
    }

    /// Whether the request belongs to a sample of this share, 0 to 1. The same every time.
    #[must_use]
    pub fn in_share(&self, share: f64) -> bool {
        // 53 bits, the precision of a float in [0, 1).
        ((self.seed() >> 11) as f64) / ((1u64 << 53) as f64) < share
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut digits = [0; 32];
        match hex::encode_to_slice(self.0, &mut digits) {
            Ok(()) => f.write_str(std::str::from_utf8(&digits).unwrap_or_default()),
            Err(_) => Err(fmt::Error),
        }
    }
}

impl fmt::Debug for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for TraceId {
    type Err = BadTraceId;

    fn from_str(text: &str) -> Result<Self, BadTraceId> {
        let mut bytes = [0; 16];
        if text.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Err(BadTraceId);
        }
        hex::decode_to_slice(text, &mut bytes).map_err(|_| BadTraceId)?;
        Ok(Self(bytes))
    }
}

impl Serialize for TraceId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for TraceId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(D::Error::custom)
    }
}

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| {
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_sort_by_time_and_read_back() {
        let (a, b) = (TraceId::new(1_000), TraceId::new(1_001));
        assert!(a < b);
        assert_eq!(b.at_ms(), 1_001);
        assert_eq!(a.to_string().parse(), Ok(a));
        assert!(TraceId::first_at(1_000) <= a && a < TraceId::first_at(1_001));
        assert!("xyz".parse::<TraceId>().is_err());
    }

    #[test]
    fn a_share_takes_about_that_share() {
        let hits = (0..10_000)
            .filter(|_| TraceId::new(0).in_share(0.25))
            .count();
        assert!((2_200..2_800).contains(&hits), "{hits}");
        assert!(TraceId::new(0).in_share(1.0) && !TraceId::new(0).in_share(0.0));
    }
}
