//! Downloads: one HTTP agent with short time-outs, progress bars, resume, and files that appear
//! under their name only when they are whole.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use sha2::{Digest, Sha256};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig};

/// A hub that does not answer within this time is taken as out of reach.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// From the request to the answer's headers.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(20);

/// Certificate bundles, by the variable that names one or by the place where systems keep it.
/// Machines behind an inspecting proxy add their own authority there.
const BUNDLE_VARIABLES: &[&str] = &["SSL_CERT_FILE", "PIP_CERT", "REQUESTS_CA_BUNDLE"];
const BUNDLE_FILES: &[&str] = &[
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
];

/// An HTTP agent that trusts what the system trusts and honours the proxy variables.
pub fn agent() -> ureq::Agent {
    let tls = TlsConfig::builder().root_certs(root_certificates()).build();
    ureq::Agent::config_builder()
        .tls_config(tls)
        .timeout_connect(Some(CONNECT_TIMEOUT))
        .timeout_recv_response(Some(RESPONSE_TIMEOUT))
        .http_status_as_error(false)
        .user_agent(concat!("millgate/", env!("CARGO_PKG_VERSION")))
        .build()
        .into()
}

/// The system's bundle if there is one, else the one compiled in.
fn root_certificates() -> RootCerts {
    let from_variables = BUNDLE_VARIABLES.iter().filter_map(std::env::var_os);
    let bundles = from_variables
        .map(PathBuf::from)
        .chain(BUNDLE_FILES.iter().map(PathBuf::from));
    for bundle in bundles {
        let Ok(pem) = std::fs::read(&bundle) else {
            continue;
        };
        let certificates: Vec<Certificate<'static>> = ureq::tls::parse_pem(&pem)
            .filter_map(|item| match item {
                Ok(PemItem::Certificate(certificate)) => Some(certificate),
                _ => None,
            })
            .collect();
        if !certificates.is_empty() {
            return RootCerts::Specific(Arc::new(certificates));
        }
    }
    RootCerts::WebPki
}

/// The body of a small answer as text.
pub fn text(agent: &ureq::Agent, url: &str, accept: &str) -> Result<String> {
    let mut response = agent
        .get(url)
        .header("accept", accept)
        .call()
        .with_context(|| format!("no answer from {}", host_of(url)))?;
    if !response.status().is_success() {
        bail!("{} answered {}", host_of(url), response.status());
    }
    let body = response.body_mut().with_config().limit(16 << 20);
    Ok(body.read_to_string()?)
}

/// Downloads to `target`. What an earlier attempt left in `target.part` is continued when the
/// server can; the file takes its name only when `sha256` matches (where one is given).
pub fn download(
    agent: &ureq::Agent,
    url: &str,
    target: &Path,
    label: &str,
    expected_bytes: Option<u64>,
    sha256: Option<&str>,
) -> Result<()> {
    let part = part_of(target);
    let have = std::fs::metadata(&part).map_or(0, |meta| meta.len());
    let mut request = agent.get(url);
    if have > 0 {
        request = request.header("range", format!("bytes={have}-"));
    }
    let response = request
        .call()
        .with_context(|| format!("no answer from {}", host_of(url)))?;
    let status = response.status().as_u16();
    let resumed = status == 206;
    match status {
        200 | 206 => {}
        // The part is already whole, or longer than the file is now: start over.
        416 => {
            std::fs::remove_file(&part)?;
            return download(agent, url, target, label, expected_bytes, sha256);
        }
        _ => bail!("{} answered {}", host_of(url), response.status()),
    }
    let mut file = OpenOptions::new()
        .create(true)
        .write(true)
        .truncate(!resumed)
        .open(&part)
        .with_context(|| format!("cannot write {}", part.display()))?;
    let start = if resumed {
        file.seek(SeekFrom::End(0))?
    } else {
        0
    };
    let length = response.body().content_length().map(|rest| rest + start);
    let bar = bar(length.or(expected_bytes).unwrap_or(0), label);
    bar.set_position(start);
    let mut reader = bar.wrap_read(response.into_body().into_reader());
    std::io::copy(&mut reader, &mut file).with_context(|| {
        format!(
            "the download from {} broke off; run the command again, it goes on where it stopped",
            host_of(url)
        )
    })?;
    file.sync_all()?;
    drop(file);
    bar.finish_and_clear();
    finish(&part, target, sha256)
}

/// Gives a whole file its name, after checking its digest. A wrong one is removed.
pub fn finish(part: &Path, target: &Path, sha256: Option<&str>) -> Result<()> {
    if let Some(expected) = sha256 {
        let actual = sha256_of(part)?;
        if actual != expected {
            std::fs::remove_file(part)?;
            bail!("the file's SHA-256 is {actual}, expected {expected}; it was removed");
        }
    }
    std::fs::rename(part, target)?;
    Ok(())
}

/// Where a file lies until it is whole.
pub fn part_of(target: &Path) -> PathBuf {
    let mut name = target.as_os_str().to_owned();
    name.push(".part");
    PathBuf::from(name)
}

/// SHA-256 of a file in lower-case hex.
pub fn sha256_of(path: &Path) -> Result<String> {
    let mut file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok(hex::encode(hasher.finalize()));
        }
        hasher.update(buffer.get(..read).unwrap_or_default());
    }
}

/// Copies with a progress bar.
pub fn copy(mut from: impl Read, to: &mut impl Write, bytes: u64, label: &str) -> Result<()> {
    let bar = bar(bytes, label);
    std::io::copy(&mut bar.wrap_read(&mut from), to)?;
    bar.finish_and_clear();
    Ok(())
}

fn bar(bytes: u64, label: &str) -> ProgressBar {
    let bar = ProgressBar::new(bytes);
    let template = "  {msg} [{bar:30}] {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.set_message(label.to_owned());
    bar
}

/// The host in a URL, for messages.
fn host_of(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split('/').next().unwrap_or(rest);
    authority.rsplit('@').next().unwrap_or(authority)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_in_a_message_shows_neither_path_nor_credentials() {
        assert_eq!(
            host_of("https://user:secret@example.org:8443/a/b"),
            "example.org:8443"
        );
        assert_eq!(host_of("example.org"), "example.org");
    }

    #[test]
    fn a_file_with_the_wrong_digest_is_removed_and_never_named() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("model");
        let part = part_of(&target);
        std::fs::write(&part, "not the model").unwrap();
        let error = finish(&part, &target, Some("00")).unwrap_err();
        assert!(error.to_string().contains("expected 00"), "{error}");
        assert!(!part.exists() && !target.exists());
    }

    #[test]
    fn a_file_with_the_right_digest_takes_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("model");
        let part = part_of(&target);
        std::fs::write(&part, "abc").unwrap();
        let digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        finish(&part, &target, Some(digest)).unwrap();
        assert_eq!(std::fs::read(&target).unwrap(), b"abc");
    }
}
