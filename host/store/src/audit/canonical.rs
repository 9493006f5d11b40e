//! Canonical JSON after RFC 8785: one spelling for one value, so that it can be hashed. Members are
//! sorted by their UTF-16 units, strings escape only what they must, numbers are written as
//! ECMAScript writes them. An integer that a double
//! cannot hold (from 2^53 on, most) is refused.

use super::AuditError;
use serde_json::{Number, Value};

/// The canonical bytes of `value`.
pub fn canonical(value: &Value) -> Result<Vec<u8>, AuditError> {
    let mut out = Vec::with_capacity(256);
    write(value, &mut out)?;
    Ok(out)
}

fn write(value: &Value, out: &mut Vec<u8>) -> Result<(), AuditError> {
    match value {
        Value::Null => out.extend_from_slice(b"null"),
        Value::Bool(true) => out.extend_from_slice(b"true"),
        Value::Bool(false) => out.extend_from_slice(b"false"),
        Value::Number(value) => write_number(value, out)?,
        Value::String(text) => write_string(text, out),
        Value::Array(items) => {
            out.push(b'[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                write(item, out)?;
            }
            out.push(b']');
        }
        Value::Object(members) => {
            let mut members: Vec<_> = members.iter().collect();
            members.sort_by(|(a, _), (b, _)| a.encode_utf16().cmp(b.encode_utf16()));
            out.push(b'{');
            for (index, (name, member)) in members.into_iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                write_string(name, out);
                out.push(b':');
                write(member, out)?;
            }
            out.push(b'}');
        }
    }
    Ok(())
}

fn write_string(text: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    for byte in text.bytes() {
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            0x08 => out.extend_from_slice(b"\\b"),
            0x09 => out.extend_from_slice(b"\\t"),
            0x0a => out.extend_from_slice(b"\\n"),
            0x0c => out.extend_from_slice(b"\\f"),
            0x0d => out.extend_from_slice(b"\\r"),
            0x00..0x20 => out.extend_from_slice(format!("\\u{byte:04x}").as_bytes()),
            _ => out.push(byte),
        }
    }
    out.push(b'"');
}

fn write_number(number: &Number, out: &mut Vec<u8>) -> Result<(), AuditError> {
    let plain = number.to_string();
    let text = match number.as_f64() {
        Some(double) if double.is_finite() => ecmascript(double),
        _ => return Err(AuditError::Number { number: plain }),
    };
    // An integer must come out as it went in. (One beyond 2^53 may: it is how a double is spelled.)
    if !number.is_f64() && text != plain {
        return Err(AuditError::Number { number: plain });
    }
    out.extend_from_slice(text.as_bytes());
    Ok(())
}

/// ECMA-262, Number::toString: the shortest digits that read back as `number` (which Rust finds, too),
/// laid out plainly from 1e-7 to below 1e21 and with an exponent elsewhere.
fn ecmascript(number: f64) -> String {
    if number == 0.0 {
        return "0".into(); // and for -0
    }
    let scientific = format!("{:e}", number.abs());
    let (mantissa, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let digits = even_on_tie(
        number.abs(),
        mantissa.chars().filter(char::is_ascii_digit).collect(),
    );
    let count = digits.len() as i32;
    // The decimal point stands behind this many digits.
    let point = exponent.parse::<i32>().unwrap_or(0) + 1;
    let plain = match point {
        _ if point > 21 || point <= -6 => None,
        _ if point >= count => Some(format!("{digits}{}", "0".repeat((point - count) as usize))),
        1.. => {
            let (whole, fraction) = digits.split_at(point as usize);
            Some(format!("{whole}.{fraction}"))
        }
        _ => Some(format!("0.{}{digits}", "0".repeat(-point as usize))),
    };
    let sign = if number < 0.0 { "-" } else { "" };
    let body = plain.unwrap_or_else(|| {
        format!(
            "{mantissa}e{}{}",
            if point > 0 { "+" } else { "" },
            point - 1
        )
    });
    format!("{sign}{body}")
}

/// Where the number lies just between two shortest spellings, ECMAScript takes the even one and Rust
/// the upper one.
fn even_on_tie(number: f64, digits: String) -> String {
    let below = match digits.as_bytes().split_last() {
        Some((last, rest)) if last % 2 == 1 => [rest, &[last - 1, b'5']].concat(),
        _ => return digits,
    };
    // Exact to the end: a double has at most 767 significant digits.
    let exact: Vec<u8> = format!("{number:.800e}")
        .bytes()
        .take_while(|byte| *byte != b'e')
        .filter(u8::is_ascii_digit)
        .collect();
    let tie = exact
        .strip_prefix(below.as_slice())
        .is_some_and(|rest| rest.iter().all(|digit| *digit == b'0'));
    match below.split_last() {
        Some((_, even)) if tie => String::from_utf8_lossy(even).into_owned(),
        _ => digits,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn text(value: &Value) -> String {
        String::from_utf8(canonical(value).unwrap()).unwrap()
    }

    #[test]
    fn the_samples_of_rfc_8785_come_out_as_it_says() {
        let sample = r#"{
            "numbers": [333333333.33333329, 1E30, 4.50, 2e-3, 0.000000000000000000000000001],
            "string": "\u20ac$\u000F\u000aA'\u0042\u0022\u005c\\\"\/",
            "literals": [null, true, false]
        }"#;
        let value: Value = serde_json::from_str(sample).unwrap();
        assert_eq!(
            text(&value),
            "{\"literals\":[null,true,false],\"numbers\":[333333333.3333333,1e+30,4.5,0.002,1e-27],\
             \"string\":\"€$\\u000f\\nA'B\\\"\\\\\\\\\\\"/\"}"
        );
        // Sorted by UTF-16 units: the emoji's surrogates come before U+FB33.
        let value = json!({"\u{20ac}": 1, "\r": 2, "\u{fb33}": 3, "1": 4, "\u{1f600}": 5, "\u{80}": 6, "\u{f6}": 7});
        assert_eq!(
            text(&value),
            "{\"\\r\":2,\"1\":4,\"\u{80}\":6,\"ö\":7,\"€\":1,\"😀\":5,\"\u{fb33}\":3}"
        );
    }

    #[test]
    fn numbers_are_written_as_ecmascript_writes_them() {
        // RFC 8785, appendix B.
        for (bits, expected) in [
            (0x0000000000000000, "0"),
            (0x8000000000000000, "0"),
            (0x0000000000000001, "5e-324"),
            (0x8000000000000001, "-5e-324"),
            (0x7fefffffffffffff, "1.7976931348623157e+308"),
            (0x4340000000000000, "9007199254740992"),
            (0x4430000000000000, "295147905179352830000"),
            (0x44b52d02c7e14af5, "9.999999999999997e+22"),
            (0x44b52d02c7e14af6, "1e+23"),
            (0x444b1ae4d6e2ef4e, "999999999999999700000"),
            (0x444b1ae4d6e2ef50, "1e+21"),
            (0x3eb0c6f7a0b5ed8c, "9.999999999999997e-7"),
            (0x3eb0c6f7a0b5ed8d, "0.000001"),
            (0x41b3de4355555554, "333333333.33333325"),
            (0xbecbf647612f3696, "-0.0000033333333333333333"),
            (0x43143ff3c1cb0959, "1424953923781206.2"),
        ] {
            assert_eq!(ecmascript(f64::from_bits(bits)), expected, "{bits:#x}");
        }
    }

    #[test]
    fn integers_that_a_double_cannot_hold_are_refused() {
        assert_eq!(text(&json!(1u64 << 53)), "9007199254740992");
        assert!(canonical(&json!((1u64 << 53) + 1)).is_err());
        assert!(canonical(&json!(u64::MAX)).is_err());
        assert!(canonical(&json!(-(1i64 << 53) - 1)).is_err());
    }

    proptest! {
        #[test]
        fn canonical_json_reads_back_and_is_its_own_canonical_form(text in ".*", number in any::<f64>(), integer in any::<i32>()) {
            prop_assume!(number.is_finite());
            let value = json!({ text.clone(): [number, integer, text], "": {} });
            let bytes = canonical(&value).unwrap();
            let back: Value = serde_json::from_slice(&bytes).unwrap();
            prop_assert_eq!(canonical(&back).unwrap(), bytes);
        }
    }
}
