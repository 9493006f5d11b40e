//! Cryptocurrency addresses, each with its checksum: Bitcoin's Base58Check (double SHA-256) and
//! Bech32/Bech32m (BIP 173, BIP 350), Ethereum's mixed case (EIP-55).

use sha2::{Digest, Sha256};
use sha3::Keccak256;

use super::Candidate;
use crate::cursor::{ALNUM, Cursor, HEX, is};
use crate::entity::Entity;

/// The longest address: Bech32's limit.
const LONGEST: usize = 90;

/// The address that is the whole run of letters and digits around `at`.
pub fn find(cursor: &Cursor<'_>, at: usize, floor: usize) -> Option<Candidate> {
    // All begin with a digit, or with `bc1`: no need to look farther back.
    let start = cursor.run_back(at, ALNUM, floor.max(at.saturating_sub(3)));
    let first = cursor.at(start);
    let possible = (start == at && matches!(first, b'0' | b'1' | b'3'))
        || (start + 2 == at && is_bech32(cursor, start));
    if !possible || cursor.before(start, 1) == b'_' {
        return None;
    }
    let end = cursor.run(start, ALNUM, LONGEST + 1);
    if end - start < 26 || end - start > LONGEST || cursor.at(end) == b'_' {
        return None;
    }
    let text = cursor.slice(start, end);
    let (score, evidence) = match text {
        [b'0', b'x' | b'X', hex @ ..] => ethereum(hex)?,
        [b'1' | b'3', ..] => base58_check(text)?,
        _ => bech32(text)?,
    };
    Some(Candidate {
        entity: Entity::CryptoAddress,
        start,
        end,
        score,
        evidence,
    })
}

fn is_bech32(cursor: &Cursor<'_>, start: usize) -> bool {
    cursor.slice(start, start + 3).eq_ignore_ascii_case(b"bc1")
}

/// Forty hexadecimal digits. Mixed case is a checksum, one case is none.
fn ethereum(hex: &[u8]) -> Option<(f32, &'static str)> {
    if hex.len() != 40 || !hex.iter().all(|&byte| is(byte, HEX)) {
        return None;
    }
    let upper = hex.iter().any(u8::is_ascii_uppercase);
    let lower = hex.iter().any(u8::is_ascii_lowercase);
    if !(upper && lower) {
        return Some((0.5, "forty hexadecimal digits behind 0x"));
    }
    let hash = Keccak256::digest(hex.to_ascii_lowercase());
    let passes = hex.iter().enumerate().all(|(place, byte)| {
        let byte_of_hash = hash.get(place / 2).copied().unwrap_or(0);
        let nibble = if place % 2 == 0 {
            byte_of_hash >> 4
        } else {
            byte_of_hash & 15
        };
        byte.is_ascii_digit() || byte.is_ascii_uppercase() == (nibble >= 8)
    });
    passes.then_some((1.0, "the checksum in its case (EIP-55) passes"))
}

/// A version byte, twenty bytes of hash, four of checksum.
fn base58_check(text: &[u8]) -> Option<(f32, &'static str)> {
    const ALPHABET: &[u8; 58] = b"123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz";
    if text.len() > 35 {
        return None;
    }
    let mut bytes = [0u8; 25];
    for byte in text {
        let mut carry = ALPHABET.iter().position(|letter| letter == byte)?;
        for slot in bytes.iter_mut().rev() {
            carry += usize::from(*slot) * 58;
            *slot = (carry & 0xff) as u8;
            carry >>= 8;
        }
        if carry != 0 {
            return None;
        }
    }
    let (body, checksum) = bytes.split_at(21);
    let twice = Sha256::digest(Sha256::digest(body));
    (twice.get(..4) == Some(checksum)).then_some((1.0, "the Base58Check checksum passes"))
}

/// `bc1`, data, six characters of checksum.
fn bech32(text: &[u8]) -> Option<(f32, &'static str)> {
    const ALPHABET: &[u8; 32] = b"qpzry9x8gf2tvdw0s3jn54khce6mua7l";
    const GENERATOR: [u32; 5] = [
        0x3b6a_57b2,
        0x2650_8e6d,
        0x1ea1_19fa,
        0x3d42_33dd,
        0x2a14_62b3,
    ];
    if text.iter().any(u8::is_ascii_uppercase) && text.iter().any(u8::is_ascii_lowercase) {
        return None;
    }
    let mut polymod = 1u32;
    let mut add = |value: u32| {
        let top = polymod >> 25;
        polymod = (polymod & 0x01ff_ffff) << 5 ^ value;
        for (place, generator) in GENERATOR.iter().enumerate() {
            if top >> place & 1 == 1 {
                polymod ^= generator;
            }
        }
    };
    // The human-readable part `bc`, expanded.
    for value in [3, 3, 0, u32::from(b'b' & 31), u32::from(b'c' & 31)] {
        add(value);
    }
    for byte in text.get(3..)? {
        add(u32::try_from(
            ALPHABET
                .iter()
                .position(|letter| *letter == byte.to_ascii_lowercase())?,
        )
        .ok()?);
    }
    // Version 0 ends in Bech32's constant, later versions in Bech32m's.
    let expected = if text
        .get(3)
        .is_some_and(|byte| byte.eq_ignore_ascii_case(&b'q'))
    {
        1
    } else {
        0x2bc8_30a3
    };
    (polymod == expected).then_some((1.0, "the Bech32 checksum passes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn score(text: &str) -> Option<f32> {
        let at = text.find(|c: char| c.is_ascii_digit())?;
        find(&Cursor::new(text.as_bytes(), true), at, 0).map(|found| found.score)
    }

    /// Addresses of BIP 173, BIP 350, EIP-55 and the genesis block.
    const VALID: [&str; 9] = [
        "1A1zP1eP5QGefi2DMPTfTL5SLmv7DivfNa",
        "3J98t1WpEZ73CNmQviecrnyiWrnqRhWNLy",
        "bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t4",
        "BC1QW508D6QEJXTDG4Y5R3ZARVARY0C5XW7KV8F3T4",
        "bc1p0xlxvlhemja6c4dqv22uapctqupfhlxm9h8z3k2e72q4k9hcz7vqzk5jj0",
        "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed",
        "0xfB6916095ca1df60bB79Ce92cE3Ea74c37c5d359",
        "0xdbF03B407c01E7cD3CBea99509d93f8DDDC8C6FB",
        "0xD1220A0cf47c7B9Be7A2E6BA89F429762e7b9aDb",
    ];

    #[test]
    fn published_addresses_are_certain() {
        for address in VALID {
            assert_eq!(score(address), Some(1.0), "{address}");
        }
    }

    #[test]
    fn a_changed_character_is_no_address() {
        for address in VALID {
            let last = address.len() - 1;
            let other = if address.ends_with('a') { "b" } else { "a" };
            let changed = std::format!("{}{other}", &address[..last]);
            assert_eq!(score(&changed), None, "{changed}");
        }
    }

    #[test]
    fn ethereum_in_one_case_has_no_checksum() {
        assert_eq!(
            score("0xde709f2102306220921060314715629080e2fb77"),
            Some(0.5)
        );
    }
}
