//! Who may call: tenants and their API keys, and the operator's key for what is below `/api/v1`.
//!
//! Keys are compared by their SHA-256: a config can hold the hash in place of the key, and how long a comparison
//! takes says nothing of a key.

use std::{collections::HashMap, sync::Arc};

use millgate_store::Digest;

use crate::{
    config::Config,
    error::{ApiError, Error, Result},
};

/// The tenant of requests where a config names none.
pub const DEFAULT_TENANT: &str = "default";

/// The tenants of one generation, by the digest of their keys.
#[derive(Debug)]
pub(crate) struct Tenants {
    by_key: HashMap<Digest, Arc<str>>,
    operator: Option<Digest>,
    default: Arc<str>,
}

impl Tenants {
    /// Reads the keys that a config names.
    ///
    /// # Errors
    /// An environment variable is not set, or two tenants have the same key.
    pub(crate) fn of(config: &Config) -> Result<Self> {
        let mut by_key: HashMap<Digest, Arc<str>> = HashMap::new();
        for (name, tenant) in &config.tenants {
            let of_variable = tenant
                .key_env
                .iter()
                .map(|variable| key_in(variable, &format!("tenants.{name}.key-env")));
            let of_hash = tenant.key_sha256.iter().map(|hash| {
                format!("sha256:{}", hash.to_ascii_lowercase())
                    .parse::<Digest>()
                    .map_err(|_| {
                        Error::Refused(format!(
                            "tenants.{name}.key-sha256: `{hash}` is no SHA-256; make one with: printf %s KEY | sha256sum"
                        ))
                    })
            });
            for digest in of_variable.chain(of_hash) {
                let digest = digest?;
                if let Some(other) = by_key.insert(digest, Arc::from(name.as_str()))
                    && *other != **name
                {
                    return Err(Error::Refused(format!(
                        "the tenants `{other}` and `{name}` have the same key; give each its own"
                    )));
                }
            }
        }
        let operator = config.server.operator_key_env.as_ref();
        Ok(Self {
            by_key,
            operator: operator
                .map(|variable| key_in(variable, "server.operator-key-env"))
                .transpose()?,
            default: Arc::from(DEFAULT_TENANT),
        })
    }

    /// Whose request this is, by its bearer key.
    pub(crate) fn of_key(&self, key: Option<&str>) -> Result<Arc<str>, ApiError> {
        if self.by_key.is_empty() {
            return Ok(self.default.clone());
        }
        let Some(key) = key else {
            return Err(unauthorised(
                "this server asks for an API key; send it as `Authorization: Bearer KEY`",
            ));
        };
        self.by_key
            .get(&Digest::of(key.as_bytes()))
            .cloned()
            .ok_or_else(|| unauthorised("the API key is not one of this server's"))
    }

    /// Whether a key opens what only the operator may see.
    pub(crate) fn check_operator(&self, key: Option<&str>) -> Result<(), ApiError> {
        match (&self.operator, key) {
            (None, _) if self.by_key.is_empty() => Ok(()),
            (None, _) => Err(unauthorised(
                "this server has tenants and no operator's key; name the variable that holds one in server.operator-key-env",
            )),
            (Some(wanted), Some(key)) if Digest::of(key.as_bytes()) == *wanted => Ok(()),
            (Some(_), _) => Err(unauthorised(
                "this is for the operator; send the operator's key as `Authorization: Bearer KEY` (`--key`)",
            )),
        }
    }
}

/// The digest of the key in an environment variable.
fn key_in(variable: &str, place: &str) -> Result<Digest> {
    match std::env::var(variable) {
        Ok(key) if !key.trim().is_empty() => Ok(Digest::of(key.trim().as_bytes())),
        _ => Err(Error::Refused(format!(
            "the environment variable {variable} with the key of {place} is not set"
        ))),
    }
}

fn unauthorised(message: &str) -> ApiError {
    ApiError {
        status: 401,
        kind: "invalid_request_error",
        code: "invalid_api_key".to_owned(),
        message: message.to_owned(),
        param: None,
        retry_after: None,
        trace: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenants(text: &str) -> Result<Tenants> {
        Tenants::of(&toml::from_str(text).unwrap())
    }

    fn hash(key: &str) -> String {
        Digest::of(key.as_bytes())
            .to_string()
            .replace("sha256:", "")
    }

    #[test]
    fn without_tenants_everyone_may_call_and_look() {
        let none = tenants("").unwrap();
        assert_eq!(&*none.of_key(None).unwrap(), DEFAULT_TENANT);
        assert_eq!(&*none.of_key(Some("x")).unwrap(), DEFAULT_TENANT);
        none.check_operator(None).unwrap();
    }

    #[test]
    fn a_key_names_its_tenant_and_no_other_key_does() {
        let text = format!(
            "[tenants.a]\nkey-sha256 = [\"{}\", \"{}\"]\n[tenants.b]\nkey-sha256 = [\"{}\"]",
            hash("one"),
            hash("two").to_uppercase(),
            hash("three")
        );
        let both = tenants(&text).unwrap();
        for (key, name) in [("one", "a"), ("two", "a"), ("three", "b")] {
            assert_eq!(&*both.of_key(Some(key)).unwrap(), name);
        }
        for key in [None, Some(""), Some("One"), Some("one "), Some("four")] {
            assert_eq!(both.of_key(key).unwrap_err().status, 401);
        }
        // No tenant sees what the operator does, and without an operator's key nobody does.
        assert_eq!(both.check_operator(Some("one")).unwrap_err().status, 401);
    }

    #[test]
    fn a_shared_key_a_bad_hash_and_a_missing_variable_are_refused() {
        let same = format!(
            "[tenants.a]\nkey-sha256 = [\"{0}\"]\n[tenants.b]\nkey-sha256 = [\"{0}\"]",
            hash("one")
        );
        assert!(tenants(&same).unwrap_err().to_string().contains("same key"));
        let bad = tenants("[tenants.a]\nkey-sha256 = [\"abc\"]").unwrap_err();
        assert!(bad.to_string().contains("tenants.a.key-sha256"), "{bad}");
        let missing = tenants("[tenants.a]\nkey-env = \"MILLGATE_NO_SUCH_KEY\"").unwrap_err();
        assert!(
            missing.to_string().contains("MILLGATE_NO_SUCH_KEY"),
            "{missing}"
        );
        let missing = tenants("[server]\noperator-key-env = \"MILLGATE_NO_SUCH_KEY\"");
        assert!(
            missing
                .unwrap_err()
                .to_string()
                .contains("server.operator-key-env")
        );
    }
}
