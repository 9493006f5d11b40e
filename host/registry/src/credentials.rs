//! Who to be at a registry: the standard Docker config (`$DOCKER_CONFIG/config.json` or
//! `~/.docker/config.json`), as `docker login` and its relatives write it.

use crate::error::{Error, Result};
use crate::files;
use crate::reference::Reference;
use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::Deserialize;
use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// The largest Docker config, and the longest answer of a credential helper, in bytes.
const MAX_CONFIG: u64 = 1 << 20;
/// How long a credential helper may take.
const HELPER_TIMEOUT: Duration = Duration::from_secs(30);

/// A name and its password (or token) at one registry.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    /// The name.
    pub user: String,
    /// The password; never printed.
    pub password: String,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login")
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

/// Where logins come from.
#[derive(Clone, Debug, Default)]
pub enum Credentials {
    /// The Docker config of whoever runs this.
    #[default]
    Docker,
    /// The Docker config in this folder.
    Folder(PathBuf),
    /// This one, at every registry.
    Login(Login),
    /// None.
    Anonymous,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct DockerConfig {
    auths: HashMap<String, AuthEntry>,
    creds_store: Option<String>,
    cred_helpers: HashMap<String, String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct AuthEntry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Helped {
    username: String,
    secret: String,
}

/// Tools write the padding or leave it out.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

impl Credentials {
    /// The login for the registry of `reference`; `None` where there is none, which is no error.
    pub(crate) async fn login(&self, reference: &Reference) -> Result<Option<Login>> {
        let dir = match self {
            Credentials::Anonymous => return Ok(None),
            Credentials::Login(login) => return Ok(Some(login.clone())),
            Credentials::Folder(dir) => dir.clone(),
            Credentials::Docker => match docker_folder() {
                Some(dir) => dir,
                None => return Ok(None),
            },
        };
        let path = dir.join("config.json");
        let registry = reference.registry();
        let bad = |why: String| Error::Credentials {
            registry: registry.to_owned(),
            path: path.clone(),
            why,
        };
        let Some(bytes) = files::read(&path, MAX_CONFIG)? else {
            return Ok(None);
        };
        let config: DockerConfig = serde_json::from_slice(&bytes)
            // The message of the error may quote what it stumbled over, which may be a password.
            .map_err(|error| {
                bad(format!(
                    "it is not the JSON of a Docker config (line {}, column {})",
                    error.line(),
                    error.column()
                ))
            })?;
        let keys = keys_of(registry);
        let helper = keys
            .iter()
            .find_map(|key| config.cred_helpers.get(key))
            .or(config.creds_store.as_ref());
        if let Some(helper) = helper
            && let Some(login) = ask(helper, &keys, &path, registry).await?
        {
            return Ok(Some(login));
        }
        let Some(entry) = keys.iter().find_map(|key| config.auths.get(key)) else {
            return Ok(None);
        };
        read_entry(entry).map_err(bad)
    }
}

fn docker_folder() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    set("DOCKER_CONFIG")
        .map(PathBuf::from)
        .or_else(|| set("HOME").map(|home| Path::new(&home).join(".docker")))
}

/// The keys that tools use for one registry.
fn keys_of(registry: &str) -> Vec<String> {
    let mut keys = Vec::new();
    if matches!(registry, "docker.io" | "index.docker.io") {
        keys.push("https://index.docker.io/v1/".to_owned());
    }
    keys.push(registry.to_owned());
    for rest in ["", "/", "/v1/", "/v2/"] {
        keys.push(format!("https://{registry}{rest}"));
        keys.push(format!("http://{registry}{rest}"));
    }
    keys
}

fn read_entry(entry: &AuthEntry) -> std::result::Result<Option<Login>, String> {
    if entry
        .identitytoken
        .as_ref()
        .is_some_and(|token| !token.is_empty())
    {
        return Err(
            "it holds an identity token, which is not supported: `docker login` with a name and an access token"
                .into(),
        );
    }
    if let (Some(user), Some(password)) = (&entry.username, &entry.password) {
        return Ok(Some(Login {
            user: user.clone(),
            password: password.clone(),
        }));
    }
    let Some(auth) = entry.auth.as_ref().filter(|auth| !auth.is_empty()) else {
        return Ok(None); // `docker login` with a store leaves an empty entry.
    };
    let text = BASE64
        .decode(auth.trim())
        .ok()
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .ok_or("its `auth` is not base64 of text: `docker login` again")?;
    let (user, password) = text
        .split_once(':')
        .ok_or("its `auth` has no colon between name and password: `docker login` again")?;
    Ok(Some(Login {
        user: user.to_owned(),
        // Some old tools end it with a zero byte.
        password: password.trim_end_matches('\0').to_owned(),
    }))
}

/// Asks a credential helper (`docker-credential-NAME get`, the server's name on its input).
async fn ask(helper: &str, keys: &[String], path: &Path, registry: &str) -> Result<Option<Login>> {
    let bad = |why: String| Error::Credentials {
        registry: registry.to_owned(),
        path: path.to_path_buf(),
        why,
    };
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if helper.is_empty() || !helper.bytes().all(plain) {
        return Err(bad(format!("{helper:?} is no name of a credential helper")));
    }
    let program = format!("docker-credential-{helper}");
    let Some(server) = keys.first() else {
        return Ok(None);
    };
    let run = async {
        let mut child = tokio::process::Command::new(&program)
            .arg("get")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        if let Some(mut input) = child.stdin.take() {
            input.write_all(server.as_bytes()).await?;
        }
        let mut answer = Vec::new();
        if let Some(output) = child.stdout.take() {
            output.take(MAX_CONFIG).read_to_end(&mut answer).await?;
        }
        let status = child.wait().await?;
        Ok::<_, std::io::Error>((status, answer))
    };
    let (status, answer) = tokio::time::timeout(HELPER_TIMEOUT, run)
        .await
        .map_err(|_| {
            bad(format!(
                "{program} did not answer in {} s",
                HELPER_TIMEOUT.as_secs()
            ))
        })?
        .map_err(|error| bad(format!("{program} could not be run ({error}): install it")))?;
    if !status.success() {
        let said = String::from_utf8_lossy(&answer);
        if said.contains("credentials not found") {
            return Ok(None);
        }
        return Err(bad(format!("{program} failed ({status})")));
    }
    let helped: Helped = serde_json::from_slice(&answer)
        .map_err(|_| bad(format!("{program} answered no name and secret")))?;
    if helped.username == "<token>" {
        return Err(bad(format!(
            "{program} holds an identity token, which is not supported: `docker login` with a name and an access token"
        )));
    }
    Ok(Some(Login {
        user: helped.username,
        password: helped.secret,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    async fn login(config: &str, reference: &str) -> Result<Option<Login>> {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("config.json"), config).unwrap();
        Credentials::Folder(dir.path().to_path_buf())
            .login(&reference.parse().unwrap())
            .await
    }

    fn pair(user: &str, password: &str) -> Option<Login> {
        Some(Login {
            user: user.into(),
            password: password.into(),
        })
    }

    #[tokio::test]
    async fn a_login_is_found_by_the_registry() {
        let config = r#"{"auths": {
            "r.example": {"auth": "YW5uOnBhOnNz"},
            "https://s.example/v1/": {"auth": "Ym9iOng"},
            "t.example:5000": {"username": "cyd", "password": "y"},
            "https://index.docker.io/v1/": {"auth": "ZGVlOno="}
        }}"#;
        for (reference, want) in [
            ("r.example/a:1", pair("ann", "pa:ss")),
            ("s.example/a:1", pair("bob", "x")),
            ("t.example:5000/a:1", pair("cyd", "y")),
            ("docker.io/ann/a:1", pair("dee", "z")),
            // Another port is another server: its password is not sent there.
            ("t.example:5001/a:1", None),
            ("r.example:5000/a:1", None),
            ("u.example/a:1", None),
        ] {
            assert_eq!(login(config, reference).await.unwrap(), want, "{reference}");
        }
    }

    #[tokio::test]
    async fn no_config_means_no_login() {
        let dir = tempfile::tempdir().unwrap();
        let credentials = Credentials::Folder(dir.path().join("none"));
        let reference = "r.example/a:1".parse().unwrap();
        assert_eq!(credentials.login(&reference).await.unwrap(), None);
    }

    #[tokio::test]
    async fn what_cannot_be_used_is_said_without_the_password() {
        for (config, why) in [
            (r#"{"auths": {"r.example": {"auth": "c2VjcmV0"}}}"#, "colon"),
            (r#"{"auths": {"r.example": {"auth": "!secret"}}}"#, "base64"),
            (
                r#"{"auths": {"r.example": {"identitytoken": "secret"}}}"#,
                "identity token",
            ),
            (r#"{"auths": "secret"}"#, "line 1"),
            (r#"{"credsStore": "../secret/x"}"#, "no name of"),
            (
                r#"{"credHelpers": {"r.example": "millgate-none"}}"#,
                "install it",
            ),
        ] {
            let error = login(config, "r.example/a:1").await.unwrap_err();
            let text = error.to_string();
            assert!(text.contains(why), "{text}");
            assert!(!text.contains("c2VjcmV0") && !text.contains("\"secret\""));
        }
        assert!(!format!("{:?}", pair("ann", "secret")).contains("secret"));
    }
}
