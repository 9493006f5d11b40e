//! A registry: pull from it and publish to it.

use crate::cache::Cache;
use crate::credentials::Credentials;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::fetch::{self, Answer, Bounds, Session};
use crate::package::{Contents, Part, check_parts, read_manifest};
use crate::plugin::Plugin;
use crate::reference::Reference;
use crate::signature::{self, Signature};
use crate::version;
use bytes::Bytes;
use oci_client::manifest::{
    IMAGE_MANIFEST_LIST_MEDIA_TYPE, IMAGE_MANIFEST_MEDIA_TYPE, OCI_IMAGE_INDEX_MEDIA_TYPE,
    OCI_IMAGE_MEDIA_TYPE,
};
use reqwest::Certificate;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::time::Duration;

/// The largest manifest and config that is read, in bytes.
const MAX_MANIFEST: u64 = 1 << 20;
/// The largest page of tags, in bytes, and the most pages.
const MAX_TAGS: u64 = 1 << 20;
const MAX_PAGES: usize = 32;

/// The `[registry]` section of the config.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct RegistryConfig {
    /// Registries (`HOST` or `HOST:PORT`) that are spoken to without TLS. This machine's own always
    /// are.
    pub insecure: Vec<String>,
    /// A PEM file of further CA certificates, for registries of one's own.
    pub ca: Option<PathBuf>,
    /// How long one request may take, in seconds.
    pub timeout: u64,
    /// The largest component that is read, in bytes.
    pub max_component: u64,
}

impl Default for RegistryConfig {
    fn default() -> Self {
        RegistryConfig {
            insecure: Vec::new(),
            ca: None,
            timeout: 300,
            max_component: 256 << 20,
        }
    }
}

/// A client of registries.
#[derive(Clone, Debug)]
pub struct Registry {
    pub(crate) config: RegistryConfig,
    pub(crate) credentials: Credentials,
    roots: Vec<Certificate>,
    pub(crate) ca: Option<Vec<u8>>,
}

impl Registry {
    /// A client as the operator wants it.
    pub fn new(config: RegistryConfig, credentials: Credentials) -> Result<Registry> {
        let (mut roots, mut ca) = (Vec::new(), None);
        if let Some(path) = &config.ca {
            let bad = |why: String| Error::Tls {
                why: format!("registry.ca = {path:?}: {why}"),
            };
            let pem = crate::files::read(path, 4 << 20)?
                .ok_or_else(|| bad("there is no such file".into()))?;
            roots =
                Certificate::from_pem_bundle(&pem).map_err(|error| bad(fetch::reasons(&error)))?;
            if roots.is_empty() {
                return Err(bad("it holds no certificate in PEM".into()));
            }
            ca = Some(pem);
        }
        Ok(Registry {
            config,
            credentials,
            roots,
            ca,
        })
    }

    pub(crate) fn bounds(&self) -> Bounds {
        let total = Duration::from_secs(self.config.timeout.max(1));
        Bounds {
            connect: total.min(Duration::from_secs(10)),
            idle: total.min(Duration::from_secs(30)),
            total,
        }
    }

    pub(crate) fn is_plain(&self, reference: &Reference) -> bool {
        let registry = reference.registry();
        reference.is_loopback() || self.config.insecure.iter().any(|host| host == registry)
    }

    pub(crate) async fn session(&self, reference: &Reference, push: bool) -> Result<Session> {
        Session::new(
            reference,
            self.is_plain(reference),
            self.credentials.login(reference).await?,
            push,
            self.bounds(),
            &self.roots,
        )
    }

    /// The digest of the manifest that `reference` stands for now.
    pub async fn resolve(&self, reference: &Reference) -> Result<Digest> {
        let session = self.session(reference, false).await?;
        let (_, digest) = manifest(&session, reference)
            .await?
            .ok_or_else(|| not_found(reference))?;
        Ok(digest)
    }

    /// The reference to the highest version that the repository has; no pre-release, unless
    /// `reference` is one. `None` where no tag is a version. What it stands for may be older than
    /// what is locked: [`Lock::compare`](crate::Lock::compare) says so.
    pub async fn newest(&self, reference: &Reference) -> Result<Option<Reference>> {
        let early = reference.tag().and_then(version::of_tag);
        let early = early.is_some_and(|version| !version.pre.is_empty());
        let versions = self.versions(reference).await?;
        let newest = versions
            .iter()
            .find(|(version, _)| early || version.pre.is_empty());
        newest.map(|(_, tag)| reference.with_tag(tag)).transpose()
    }

    /// The versions of a plugin that its repository has, with their tags, the highest first. Tags
    /// that are no versions are left out.
    pub async fn versions(&self, reference: &Reference) -> Result<Vec<(semver::Version, String)>> {
        #[derive(Deserialize)]
        struct Page {
            tags: Option<Vec<String>>,
        }
        let session = self.session(reference, false).await?;
        let what = format!(
            "the tags of {}/{}",
            reference.registry(),
            reference.repository()
        );
        let mut versions = Vec::new();
        let mut last = String::new();
        for _ in 0..MAX_PAGES {
            let path = match last.as_str() {
                "" => "tags/list?n=1000".to_owned(),
                last => format!("tags/list?n=1000&last={last}"),
            };
            let answer = session
                .get(&path, "application/json", MAX_TAGS, &what)
                .await?
                .ok_or_else(|| not_found(reference))?;
            let page: Page = serde_json::from_slice(&answer.body).map_err(|_| Error::Protocol {
                registry: reference.registry().to_owned(),
                why: "its list of tags is not the JSON of one".into(),
            })?;
            let tags = page.tags.unwrap_or_default();
            versions.extend(
                tags.iter()
                    .filter_map(|tag| Some((version::of_tag(tag)?, tag.clone()))),
            );
            // Only whether there is a next page is believed, not where it is.
            let next = answer.headers.contains_key("link");
            match tags.into_iter().next_back() {
                Some(tag) if next && tag != last && reference.with_tag(&tag).is_ok() => last = tag,
                _ => break,
            }
        }
        versions.sort_unstable_by(|a, b| b.cmp(a));
        versions.dedup();
        Ok(versions)
    }

    /// Pulls a plugin and its signatures into `cache`. Every byte is checked against its digest,
    /// and what the cache has is not read again. Who signed it is the caller's next question
    /// ([`Plugin::verify`]).
    pub async fn pull(&self, reference: &Reference, cache: &Cache) -> Result<Plugin> {
        let session = self.session(reference, false).await?;
        let (bytes, digest) = manifest(&session, reference)
            .await?
            .ok_or_else(|| not_found(reference))?;
        let name = reference.to_string();
        let contents = read_manifest(&name, &bytes)?;
        let config = self
            .part(&session, reference, cache, &contents, Which::Config)
            .await?;
        let component = self
            .part(&session, reference, cache, &contents, Which::Component)
            .await?;
        check_parts(&name, &contents, &config, &component)?;
        let signatures = signatures(&session, reference, &digest).await?;
        let cache = cache.clone();
        let stored = blocking(move || {
            cache.put(&config)?;
            cache.put(&component)?;
            cache.put(&bytes)?;
            let list = match &signatures {
                None => None,
                Some(beside) => {
                    for signature in &beside.signatures {
                        cache.put(&signature.payload)?;
                    }
                    if let Some(config) = &beside.config {
                        cache.put(config)?;
                    }
                    Some(cache.put(&beside.list)?)
                }
            };
            // Last: it makes the plugin one with these signatures.
            cache.set_signatures(&digest, list.as_ref())?;
            Ok((component, signatures))
        });
        let (component, signatures) = stored.await?;
        Ok(Plugin {
            digest,
            component_digest: contents.component.digest,
            component,
            annotations: contents.annotations,
            signatures: signatures
                .map(|beside| beside.signatures)
                .unwrap_or_default(),
        })
    }

    async fn part(
        &self,
        session: &Session,
        reference: &Reference,
        cache: &Cache,
        contents: &Contents,
        which: Which,
    ) -> Result<Bytes> {
        let (what, part, limit, how) = match which {
            Which::Config => ("config", contents.config, MAX_MANIFEST, ""),
            Which::Component => (
                "component",
                contents.component,
                self.config.max_component,
                "; `registry.max-component` raises the limit",
            ),
        };
        if part.size > limit {
            return Err(Error::TooLarge {
                what: format!("the {what} of {reference}"),
                limit,
                how,
            });
        }
        let local = cache.clone();
        let cached = blocking(move || match local.get(&part.digest, what) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(Error::Absent { .. }) => Ok(None),
            Err(error @ Error::Damaged { .. }) => {
                tracing::warn!("{error}; pulling it again");
                Ok(None)
            }
            Err(error) => Err(error),
        });
        if let Some(bytes) = cached.await? {
            return Ok(bytes);
        }
        blob(session, reference, what, part).await
    }
}

enum Which {
    Config,
    Component,
}

pub(crate) fn not_found(reference: &Reference) -> Error {
    Error::NotFound {
        reference: reference.to_string(),
        registry: reference.registry().to_owned(),
    }
}

/// The manifest that `reference` stands for, and its digest; checked against the reference's pin
/// and against what the registry itself says it is.
pub(crate) async fn manifest(
    session: &Session,
    reference: &Reference,
) -> Result<Option<(Bytes, Digest)>> {
    // Other kinds are asked for too, to say what they are in place of "not found".
    let accept = [
        OCI_IMAGE_MEDIA_TYPE,
        OCI_IMAGE_INDEX_MEDIA_TYPE,
        IMAGE_MANIFEST_MEDIA_TYPE,
        IMAGE_MANIFEST_LIST_MEDIA_TYPE,
    ]
    .join(", ");
    let name = match (reference.digest(), reference.tag()) {
        (Some(digest), _) => digest.to_string(),
        (None, Some(tag)) => tag.to_owned(),
        // No reference is without both.
        (None, None) => return Ok(None),
    };
    let what = format!("the manifest of {reference}");
    let path = format!("./manifests/{name}");
    let Some(Answer {
        body,
        content_type,
        headers,
    }) = session.get(&path, &accept, MAX_MANIFEST, &what).await?
    else {
        return Ok(None);
    };
    let got = Digest::of(&body);
    let said = headers
        .get("docker-content-digest")
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.parse::<Digest>().ok());
    if let Some(want) = reference.digest().or(said)
        && want != got
    {
        return Err(Error::Mismatch { what, want, got });
    }
    let kind = content_type.split(';').next().unwrap_or_default().trim();
    if kind == "text/html" {
        return Err(Error::Protocol {
            registry: reference.registry().to_owned(),
            why: format!("it answers a web page to {what}"),
        });
    }
    Ok(Some((body, got)))
}

/// One blob, of exactly the size and digest that the manifest says.
pub(crate) async fn blob(
    session: &Session,
    reference: &Reference,
    part_name: &'static str,
    part: Part,
) -> Result<Bytes> {
    let what = format!("the {part_name} of {reference}");
    let path = format!("./blobs/{}", part.digest);
    let answer = match session.get(&path, "*/*", part.size, &what).await {
        // More than the manifest says is no matter of limits.
        Err(Error::TooLarge { .. }) => {
            return Err(Error::Size {
                what,
                want: part.size,
                got: "there are more".into(),
            });
        }
        other => other?,
    };
    let bytes = answer
        .ok_or_else(|| Error::BlobMissing {
            reference: reference.to_string(),
            what: part_name,
            digest: part.digest,
        })?
        .body;
    if bytes.len() as u64 != part.size {
        return Err(Error::Size {
            what,
            want: part.size,
            got: format!("there are {}", bytes.len()),
        });
    }
    let got = Digest::of(&bytes);
    if got != part.digest {
        return Err(Error::Mismatch {
            what,
            want: part.digest,
            got,
        });
    }
    Ok(bytes)
}

/// What is beside a plugin's manifest.
struct Beside {
    /// The manifest that lists the signatures.
    list: Bytes,
    /// Its config, if the registry has it.
    config: Option<Bytes>,
    signatures: Vec<Signature>,
}

/// The signatures beside a manifest; `None` without any.
async fn signatures(
    session: &Session,
    reference: &Reference,
    digest: &Digest,
) -> Result<Option<Beside>> {
    let place = reference.signatures_of(digest);
    let Some((list, _)) = manifest(session, &place).await? else {
        return Ok(None);
    };
    let stored = signature::read_signatures(&list).map_err(|why| Error::Tampered {
        plugin: reference.to_string(),
        digest: *digest,
        why,
    })?;
    let mut found = Vec::with_capacity(stored.len());
    for stored in stored {
        let part = Part {
            digest: stored.payload,
            size: stored.size,
        };
        let payload = blob(session, reference, "signature", part).await?;
        found.push(stored.with(payload));
    }
    let config = match signature::config_of(&list) {
        None => None,
        Some(part) => match blob(session, reference, "config of the signatures", part).await {
            Err(Error::BlobMissing { .. }) => None,
            other => Some(other?),
        },
    };
    Ok(Some(Beside {
        list,
        config,
        signatures: found,
    }))
}

/// Runs file work off the runtime's threads.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::Io {
            action: "work on files for",
            path: PathBuf::from("the registry"),
            source: std::io::Error::other(error),
        }),
    }
}
