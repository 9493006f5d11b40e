//! JSON values as JSON Schema compares them: 1 and 1.0 are equal.

use alloc::collections::BTreeSet;
use alloc::string::{String, ToString};
use core::cmp::Ordering;

use serde_json::{Number, Value};

use super::{TYPE_NAMES, Types};

/// A whole number, whichever way it is written.
fn whole(number: &Number) -> Option<i128> {
    if let Some(value) = number.as_i64() {
        return Some(value.into());
    }
    if let Some(value) = number.as_u64() {
        return Some(value.into());
    }
    let value = number.as_f64()?;
    (libm::trunc(value) == value && value.abs() < 1e30).then_some(value as i128)
}

/// Compares numbers by value.
pub(super) fn compare(a: &Number, b: &Number) -> Ordering {
    match (whole(a), whole(b)) {
        (Some(a), Some(b)) => a.cmp(&b),
        _ => {
            let float = |number: &Number| number.as_f64().unwrap_or_default();
            float(a).total_cmp(&float(b))
        }
    }
}

/// Whether `value` is a whole multiple of `divisor`, in decimal, as people read the two: 0.0075 is
/// a multiple of 0.0001, and 1e20 of 0.1, though neither is so in binary.
pub(super) fn is_multiple(value: &Number, divisor: &Number) -> bool {
    let (Some(value), Some(divisor)) = (Decimal::of(value), Decimal::of(divisor)) else {
        return false;
    };
    if value.digits == 0 || divisor.digits == 0 {
        return value.digits == 0 && divisor.digits != 0;
    }
    // value / divisor = digits * 10^shift / divisor.digits
    let shift = value.exponent - divisor.exponent;
    let modulus = u128::from(divisor.digits);
    if shift >= 0 {
        let mut rest = u128::from(value.digits) % modulus;
        for _ in 0..shift {
            rest = rest * 10 % modulus;
        }
        return rest == 0;
    }
    // The value must be divisible by the powers of ten that the divisor has more.
    let power = u32::try_from(-shift)
        .ok()
        .and_then(|n| 10u128.checked_pow(n));
    power.is_some_and(|power| {
        let digits = u128::from(value.digits);
        digits % power == 0 && digits / power % modulus == 0
    })
}

/// The size of a number as its shortest text says it: `digits * 10^exponent`.
struct Decimal {
    digits: u64,
    exponent: i32,
}

impl Decimal {
    /// `None`: more digits than any double or 64-bit integer has.
    fn of(number: &Number) -> Option<Decimal> {
        let text = number.to_string();
        let text = text.trim_start_matches('-');
        let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let fraction = fraction.trim_end_matches('0');
        let mut digits = 0u64;
        for digit in whole.bytes().chain(fraction.bytes()) {
            digits = digits
                .checked_mul(10)?
                .checked_add(u64::from(digit.wrapping_sub(b'0')))?;
        }
        let exponent: i32 = exponent.parse().ok()?;
        Some(Decimal {
            digits,
            exponent: exponent.checked_sub(i32::try_from(fraction.len()).ok()?)?,
        })
    }
}

/// Deep equality.
pub(super) fn equal(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => compare(a, b) == Ordering::Equal,
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| equal(a, b))
        }
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len()
                && a.iter()
                    .all(|(key, a)| b.get(key).is_some_and(|b| equal(a, b)))
        }
        _ => a == b,
    }
}

/// Whether no two items are equal.
pub(super) fn all_differ(items: &[Value]) -> bool {
    let mut seen = BTreeSet::new();
    items.iter().all(|item| {
        let mut text = String::new();
        write(item, &mut text);
        seen.insert(text)
    })
}

/// Writes a value so that equal values give equal texts.
fn write(value: &Value, text: &mut String) {
    match value {
        Value::Number(number) => match whole(number) {
            Some(number) => text.push_str(&number.to_string()),
            None => text.push_str(&number.to_string()),
        },
        Value::Array(items) => {
            text.push('[');
            for item in items {
                write(item, text);
                text.push(',');
            }
            text.push(']');
        }
        Value::Object(members) => {
            let keys: BTreeSet<&String> = members.keys().collect();
            text.push('{');
            for key in keys {
                text.push_str(&Value::String(key.clone()).to_string());
                text.push(':');
                if let Some(value) = members.get(key) {
                    write(value, text);
                }
                text.push(',');
            }
            text.push('}');
        }
        other => text.push_str(&other.to_string()),
    }
}

impl Types {
    /// The set of one type, by its name.
    pub(super) fn named(name: &str) -> Option<Self> {
        let index = TYPE_NAMES.iter().position(|known| *known == name)?;
        Some(Self(1 << index))
    }

    pub(super) fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(super) const NONE: Self = Self(0);

    /// All types that a value has: a whole number is an `integer` and a `number`.
    pub(super) fn of(value: &Value) -> Self {
        Self(match value {
            Value::Null => 1,
            Value::Bool(_) => 2,
            Value::Number(number) if whole(number).is_some() => 4 | 8,
            Value::Number(_) => 8,
            Value::String(_) => 16,
            Value::Array(_) => 32,
            Value::Object(_) => 64,
        })
    }

    pub(super) fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// "string or null".
    pub(super) fn describe(self) -> String {
        let mut text = String::new();
        for (index, name) in TYPE_NAMES.iter().enumerate() {
            if self.0 & 1 << index != 0 {
                if !text.is_empty() {
                    text.push_str(" or ");
                }
                text.push_str(name);
            }
        }
        text
    }
}
