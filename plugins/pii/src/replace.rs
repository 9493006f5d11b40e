//! What stands in place of what was found: a mask, or a pseudonym.
//!
//! A pseudonym is a keyed hash (HMAC-SHA-256, cut to 64 bits) of the value without its separators,
//! in a form of the same kind from a range that nobody has: so the same person has the same
//! pseudonym in every text, none can be traced back without the key, and the scanner does not take
//! a pseudonym for personal data.

use hmac::{Hmac, Mac};
use millgate_sdk::prelude::*;
use sha2::Sha256;

use crate::config::Mask;
use crate::entity::Entity;

/// The mask of a value.
#[must_use]
pub fn mask(style: Mask, entity: Entity, value: &str) -> String {
    match style {
        Mask::Label => entity.label().into(),
        Mask::Stars => "*".repeat(8),
        Mask::LastFour => match (entity, value.rsplit_once('@')) {
            (Entity::Email, Some((_, domain))) => format!("****@{domain}"),
            _ => last_four(value),
        },
    }
}

/// Stars for all letters and digits but the last four, or half of a short value.
fn last_four(value: &str) -> String {
    let count = value
        .chars()
        .filter(|character| character.is_alphanumeric())
        .count();
    let mut hidden = count.saturating_sub(4).max(count.div_ceil(2));
    value
        .chars()
        .map(|character| {
            if character.is_alphanumeric() && hidden > 0 {
                hidden -= 1;
                '*'
            } else {
                character
            }
        })
        .collect()
}

/// Makes pseudonyms under a key.
#[derive(Debug)]
pub struct Pseudonyms(Hmac<Sha256>);

/// The shortest key that is accepted, in bytes: 128 bits.
pub const SHORTEST_KEY: usize = 16;

impl Pseudonyms {
    /// Pseudonyms under a key; `None` if it is too short to protect anything.
    #[must_use]
    pub fn new(key: &str) -> Option<Self> {
        if key.len() < SHORTEST_KEY {
            return None;
        }
        Hmac::new_from_slice(key.as_bytes()).ok().map(Pseudonyms)
    }

    /// The pseudonym of a value.
    #[must_use]
    pub fn of(&self, entity: Entity, value: &str) -> String {
        let hash = self.hash(entity, value);
        let digits = |count: u32| hash % 10u64.pow(count);
        match entity {
            Entity::Email => format!("user-{hash:016x}@pseudonym.invalid"),
            // Country code 999 is not assigned, 9xx is no social security number's area.
            Entity::Phone => format!("+999-{:010}", digits(10)),
            Entity::UsSsn => {
                let number = digits(8);
                format!(
                    "9{:02}-{:02}-{:04}",
                    number / 1_000_000,
                    number / 10_000 % 100,
                    number % 10_000
                )
            }
            Entity::PaymentCard => card(digits(14)),
            // No country has the code XX.
            Entity::Iban => format!("XX00{hash:016X}"),
            // 2001:db8::/32 is for documentation, 240.0.0.0/4 is reserved.
            Entity::IpAddress if value.contains(':') => {
                let group = |place: u32| hash >> (16 * place) & 0xffff;
                format!(
                    "2001:db8:{:x}:{:x}:{:x}:{:x}::",
                    group(3),
                    group(2),
                    group(1),
                    group(0)
                )
            }
            Entity::IpAddress => {
                let byte = |place: u32| hash >> (8 * place) & 0xff;
                format!(
                    "{}.{}.{}.{}",
                    240 + (byte(3) & 7),
                    byte(2),
                    byte(1),
                    byte(0)
                )
            }
            Entity::CryptoAddress => format!("wallet-{hash:016x}"),
        }
    }

    fn hash(&self, entity: Entity, value: &str) -> u64 {
        let mut mac = self.0.clone();
        mac.update(entity.name().as_bytes());
        mac.update(&[0]);
        let mut buffer = [0; 4];
        for character in value.chars().flat_map(char::to_lowercase) {
            // However it is written: with separators or without.
            if character.is_alphanumeric() || matches!(entity, Entity::Email | Entity::IpAddress) {
                mac.update(character.encode_utf8(&mut buffer).as_bytes());
            }
        }
        let hash = mac.finalize().into_bytes();
        hash.iter()
            .take(8)
            .fold(0, |value, byte| value << 8 | u64::from(*byte))
    }
}

/// Sixteen digits with an issuer's prefix that is not assigned (9) and a wrong checksum.
fn card(body: u64) -> String {
    let number = format!("9{body:014}");
    let sum: u32 = number
        .bytes()
        .rev()
        .enumerate()
        .map(|(place, digit)| {
            let digit = u32::from(digit - b'0');
            if place % 2 == 1 {
                digit
            } else if digit > 4 {
                digit * 2 - 9
            } else {
                digit * 2
            }
        })
        .sum();
    let right = (10 - sum % 10) % 10;
    format!("{number}{}", (right + 5) % 10)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::scanner::Scanner;

    #[test]
    fn the_last_four_stay() {
        assert_eq!(
            mask(Mask::LastFour, Entity::PaymentCard, "4111 1111 1111 1234"),
            "**** **** **** 1234"
        );
        assert_eq!(
            mask(Mask::LastFour, Entity::Email, "jo@example.com"),
            "****@example.com"
        );
        assert_eq!(mask(Mask::LastFour, Entity::Phone, "785894"), "***894");
        assert_eq!(mask(Mask::Label, Entity::UsSsn, "308-63-0237"), "[US_SSN]");
    }

    #[test]
    fn a_pseudonym_is_stable_and_no_personal_data() {
        let pseudonyms = Pseudonyms::new("a key of at least sixteen bytes").unwrap();
        let other = Pseudonyms::new("another key of that length").unwrap();
        let scanner = Scanner::new(&Config::default());
        for (entity, value) in [
            (Entity::Email, "jo@example.com"),
            (Entity::Phone, "+1 415 555 0123"),
            (Entity::PaymentCard, "4111 1111 1111 1111"),
            (Entity::Iban, "GB29NWBK60161331926819"),
            (Entity::UsSsn, "308-63-0237"),
            (Entity::IpAddress, "86.231.85.193"),
            (Entity::IpAddress, "fe80::1ff:fe23:4567:890a"),
            (Entity::CryptoAddress, "1A1zP1eP5QGefi2DMPTfTL5SLmv7DivfNa"),
        ] {
            let pseudonym = pseudonyms.of(entity, value);
            assert_eq!(pseudonym, pseudonyms.of(entity, &value.replace(' ', "")));
            assert_ne!(pseudonym, other.of(entity, value));
            assert_eq!(
                scanner.scan(&std::format!("card phone ssn ip {pseudonym} office")),
                [],
                "{pseudonym}"
            );
        }
    }
}
