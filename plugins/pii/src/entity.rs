//! The kinds of personal data, their names and the words that announce them.

use millgate_sdk::prelude::*;

/// A kind of personal data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, PartialOrd, Ord)]
#[serde(rename_all = "kebab-case")]
pub enum Entity {
    /// An e-mail address.
    Email,
    /// A telephone number, international or national.
    Phone,
    /// A payment card's number.
    PaymentCard,
    /// An International Bank Account Number.
    Iban,
    /// A United States Social Security Number.
    UsSsn,
    /// An IPv4 or IPv6 address.
    IpAddress,
    /// A Bitcoin or Ethereum address.
    CryptoAddress,
}

impl Entity {
    /// All of them. An entity's place here is its number.
    pub const ALL: [Entity; 7] = [
        Entity::Email,
        Entity::Phone,
        Entity::PaymentCard,
        Entity::Iban,
        Entity::UsSsn,
        Entity::IpAddress,
        Entity::CryptoAddress,
    ];

    /// Its name in the config, and the rule of its findings.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Entity::Email => "email",
            Entity::Phone => "phone",
            Entity::PaymentCard => "payment-card",
            Entity::Iban => "iban",
            Entity::UsSsn => "us-ssn",
            Entity::IpAddress => "ip-address",
            Entity::CryptoAddress => "crypto-address",
        }
    }

    /// What stands in its place in a masked text.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Entity::Email => "[EMAIL]",
            Entity::Phone => "[PHONE]",
            Entity::PaymentCard => "[PAYMENT_CARD]",
            Entity::Iban => "[IBAN]",
            Entity::UsSsn => "[US_SSN]",
            Entity::IpAddress => "[IP_ADDRESS]",
            Entity::CryptoAddress => "[CRYPTO_ADDRESS]",
        }
    }

    /// How a refusal names it, with its article.
    #[must_use]
    pub fn phrase(self) -> &'static str {
        match self {
            Entity::Email => "an e-mail address",
            Entity::Phone => "a phone number",
            Entity::PaymentCard => "a payment card number",
            Entity::Iban => "a bank account number",
            Entity::UsSsn => "a social security number",
            Entity::IpAddress => "an IP address",
            Entity::CryptoAddress => "a cryptocurrency address",
        }
    }

    /// Words that make a match more likely when one of them stands among the five tokens before it.
    #[must_use]
    pub fn context_words(self) -> &'static [&'static str] {
        match self {
            Entity::Email => &["email", "e-mail", "mail", "mailto", "address", "contact"],
            Entity::Phone => &[
                "phone",
                "phones",
                "telephone",
                "tel",
                "mobile",
                "cell",
                "cellphone",
                "call",
                "calling",
                "called",
                "fax",
                "dial",
                "ring",
                "reach",
                "answering",
                "sms",
                "whatsapp",
                "hotline",
                "landline",
                "contact",
                "telefon",
                "handy",
                "mobil",
                "rufnummer",
                "téléphone",
                "telephone",
                "portable",
                "appeler",
                "teléfono",
                "telefono",
                "móvil",
                "movil",
                "celular",
                "llamar",
                "cellulare",
                "telefone",
                "ligar",
                "telefoon",
                "bellen",
                "puhelin",
                "numéro",
            ],
            Entity::PaymentCard => &[
                "card",
                "cards",
                "credit",
                "debit",
                "visa",
                "mastercard",
                "amex",
                "discover",
                "jcb",
                "maestro",
                "payment",
                "cc",
                "pan",
                "kreditkarte",
                "karte",
                "carte",
                "tarjeta",
                "carta",
                "cartão",
            ],
            Entity::Iban => &[
                "iban",
                "bank",
                "account",
                "transfer",
                "transaction",
                "konto",
                "compte",
                "cuenta",
            ],
            Entity::UsSsn => &[
                "ssn", "ssns", "ss#", "social", "security", "ssid", "taxpayer",
            ],
            Entity::IpAddress => &["ip", "ipv4", "ipv6", "address", "host", "server", "client"],
            Entity::CryptoAddress => &[
                "wallet", "btc", "bitcoin", "eth", "ethereum", "crypto", "address",
            ],
        }
    }
}
