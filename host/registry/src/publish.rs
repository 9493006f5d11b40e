//! Publishing: a package under a tag, and signatures beside it. The upload itself is
//! `oci-client`'s.

use crate::challenge::Scheme;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::fetch::{reasons, use_ring};
use crate::key::SecretKey;
use crate::package::{Package, read_manifest};
use crate::reference::Reference;
use crate::registry::{Registry, manifest};
use crate::signature::{self, Signature};
use bytes::Bytes;
use oci_client::client::{Certificate, CertificateEncoding, ClientConfig, ClientProtocol};
use oci_client::errors::{OciDistributionError, OciErrorCode};
use oci_client::manifest::OCI_IMAGE_MEDIA_TYPE;
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference as OciReference, RegistryOperation};
use reqwest::header::HeaderValue;

/// What publishing did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// The reference, pinned: what others write into their config.
    pub reference: Reference,
    /// The digest of the manifest.
    pub digest: Digest,
    /// Whether it was there already, with the same content.
    pub unchanged: bool,
}

impl Registry {
    /// Publishes `package` at `reference`, which needs a tag. The same content again is no error
    /// and changes nothing; other content under a tag that is taken is one, unless `overwrite`.
    pub async fn publish(
        &self,
        reference: &Reference,
        package: &Package,
        overwrite: bool,
    ) -> Result<Published> {
        if reference.tag().is_none() {
            return Err(Error::NoTag {
                reference: reference.to_string(),
            });
        }
        let reference = &reference.without_pin();
        let packed = package.pack()?;
        let digest = packed.digest();
        let published = |digest: Digest, unchanged| Published {
            reference: reference.pinned(digest),
            digest,
            unchanged,
        };
        let session = self.session(reference, true).await?;
        if let Some((there, there_digest)) = manifest(&session, reference).await? {
            if there_digest == digest {
                return Ok(published(digest, true));
            }
            // Published at another time, or by `wkg`: the same plugin all the same.
            let component = Digest::of(&packed.component);
            let same = read_manifest(&reference.to_string(), &there)
                .is_ok_and(|contents| contents.component.digest == component);
            if !overwrite {
                if same {
                    return Ok(published(there_digest, true));
                }
                return Err(Error::Exists {
                    reference: reference.to_string(),
                    there: there_digest,
                });
            }
        }
        let blobs = [packed.component, packed.config];
        self.push(reference, &blobs, packed.manifest).await?;
        // What the registry now has under this tag is what was meant.
        let got = self.resolve(reference).await?;
        if got != digest {
            return Err(Error::Mismatch {
                what: format!("{reference}, just published,"),
                want: digest,
                got,
            });
        }
        Ok(published(digest, false))
    }

    /// Signs what `reference` is pinned to and stores the signature beside it. Signatures that are
    /// there stay.
    pub async fn sign(
        &self,
        reference: &Reference,
        digest: &Digest,
        key: &SecretKey,
    ) -> Result<()> {
        let signature = Signature::sign(key, reference, digest)?;
        let place = reference.signatures_of(digest);
        let session = self.session(reference, true).await?;
        let there = manifest(&session, &place).await?;
        let there = there.as_ref().map(|(bytes, _)| bytes.as_ref());
        let (manifest, config) = signature::add_signature(there, &signature)?;
        if there == Some(manifest.as_ref()) {
            return Ok(());
        }
        self.push(&place, &[signature.payload, config], manifest)
            .await
    }

    /// Uploads blobs and the manifest that names them.
    async fn push(&self, reference: &Reference, blobs: &[Bytes], manifest: Bytes) -> Result<()> {
        use_ring();
        let session = self.session(reference, true).await?;
        let auth = match session.scheme().await? {
            Scheme::Open => RegistryAuth::Anonymous,
            Scheme::Bearer(token) => RegistryAuth::Bearer(token),
            Scheme::Basic => match self.credentials.login(reference).await? {
                Some(login) => RegistryAuth::Basic(login.user, login.password),
                None => return Err(session.denied("publishing")),
            },
        };
        let bounds = self.bounds();
        let endpoint = reference.endpoint().to_owned();
        let protocol = if self.is_plain(reference) {
            ClientProtocol::HttpsExcept(vec![endpoint.clone()])
        } else {
            ClientProtocol::Https
        };
        let extra_root_certificates = self
            .ca
            .iter()
            .map(|pem| Certificate {
                encoding: CertificateEncoding::Pem,
                data: pem.clone(),
            })
            .collect();
        let failed = |error| self.push_failed(reference, &session, error);
        let client = Client::try_from(ClientConfig {
            protocol,
            extra_root_certificates,
            connect_timeout: Some(bounds.connect),
            read_timeout: Some(bounds.idle),
            user_agent: concat!("millgate/", env!("CARGO_PKG_VERSION")),
            ..ClientConfig::default()
        })
        .map_err(failed)?;
        let tag = reference.tag().unwrap_or_default().to_owned();
        let place = OciReference::with_tag(endpoint, reference.repository().to_owned(), tag);
        let upload = async {
            client.auth(&place, &auth, RegistryOperation::Push).await?;
            for blob in blobs {
                let digest = Digest::of(blob).to_string();
                if !client.blob_exists(&place, &digest).await? {
                    client.push_blob(&place, blob.clone(), &digest).await?;
                }
            }
            let kind = HeaderValue::from_static(OCI_IMAGE_MEDIA_TYPE);
            client.push_manifest_raw(&place, manifest, kind).await?;
            Ok(())
        };
        match tokio::time::timeout(bounds.total, upload).await {
            Ok(done) => done.map_err(failed),
            Err(_) => Err(Error::Slow {
                registry: reference.registry().to_owned(),
                what: format!("publishing {reference}"),
                seconds: bounds.total.as_secs(),
            }),
        }
    }

    fn push_failed(
        &self,
        reference: &Reference,
        session: &crate::fetch::Session,
        error: OciDistributionError,
    ) -> Error {
        use crate::fetch::one_line;
        let registry = reference.registry().to_owned();
        let what = format!("publishing {reference}");
        match error {
            OciDistributionError::UnauthorizedError { .. }
            | OciDistributionError::AuthenticationFailure(_) => session.denied(&what),
            OciDistributionError::RegistryError { envelope, .. }
                if envelope.errors.iter().any(|error| {
                    matches!(
                        error.code,
                        OciErrorCode::Denied | OciErrorCode::Unauthorized
                    )
                }) =>
            {
                session.denied(&what)
            }
            OciDistributionError::RegistryError { envelope, .. } => {
                let first = envelope.errors.first();
                // The client keeps the code alone; the specification says which status has it.
                let status = match first.map(|error| &error.code) {
                    Some(OciErrorCode::Toomanyrequests) => 429,
                    Some(
                        OciErrorCode::NameUnknown
                        | OciErrorCode::NotFound
                        | OciErrorCode::BlobUnknown
                        | OciErrorCode::BlobUploadUnknown
                        | OciErrorCode::ManifestUnknown,
                    ) => 404,
                    _ => 400,
                };
                let message = first.map(|error| one_line(&error.message));
                Error::Status {
                    registry,
                    what,
                    status,
                    message: message.unwrap_or_default(),
                }
            }
            OciDistributionError::ServerError {
                code: 401 | 403, ..
            } => session.denied(&what),
            OciDistributionError::ServerError { code, message, .. } => Error::Status {
                registry,
                what,
                status: code,
                message: one_line(&message),
            },
            OciDistributionError::RequestError(error) => match error.status() {
                Some(status) if matches!(status.as_u16(), 401 | 403) => session.denied(&what),
                Some(status) => Error::Status {
                    registry,
                    what,
                    status: status.as_u16(),
                    message: String::new(),
                },
                None => Error::Unreachable {
                    registry,
                    why: reasons(&error),
                },
            },
            other => Error::Protocol {
                registry,
                why: one_line(&other.to_string()),
            },
        }
    }
}
