//! What can go wrong between a registry and a pipeline, each with what to do about it.

use crate::digest::Digest;
use std::io;
use std::path::{Path, PathBuf};

/// The result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, and what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    // References and digests.
    /// A reference that is none.
    #[error("{text:?} is no plugin reference: {why}")]
    Reference {
        /// What was given.
        text: String,
        /// What is wrong with it.
        why: String,
    },
    /// A digest that is none.
    #[error("{text:?} is no digest: write sha256: and 64 lower-case hexadecimal digits")]
    Digest {
        /// What was given.
        text: String,
    },
    /// A version that is none.
    #[error("{text:?} is no version: write MAJOR.MINOR.PATCH such as 1.3.0 ({why})")]
    Version {
        /// What was given.
        text: String,
        /// What is wrong with it.
        why: String,
    },

    // Files.
    /// A file or folder that could not be used.
    #[error("could not {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },

    // The registry.
    /// The registry could not be reached, or stopped answering.
    #[error(
        "the registry {registry} cannot be reached: {why}; check the name, the network and that it is running"
    )]
    Unreachable {
        /// Its host.
        registry: String,
        /// What happened.
        why: String,
    },
    /// It took too long.
    #[error(
        "the registry {registry} took longer than {seconds} s for {what}; try again, or raise `registry.timeout`"
    )]
    Slow {
        /// Its host.
        registry: String,
        /// What was asked for.
        what: String,
        /// The limit.
        seconds: u64,
    },
    /// The registry answered, and not as it should.
    #[error("the registry {registry} answered {status} to {what}{}; {}", said(message), status_help(*status))]
    Status {
        /// Its host.
        registry: String,
        /// What was asked for.
        what: String,
        /// The HTTP status.
        status: u16,
        /// What it said, shortened.
        message: String,
    },
    /// The registry does not follow the specification.
    #[error(
        "the registry {registry} does not speak the distribution protocol: {why}; is it a registry?"
    )]
    Protocol {
        /// Its host.
        registry: String,
        /// What is wrong.
        why: String,
    },
    /// A redirect to where no registry sends anybody.
    #[error("the registry {registry} redirects {what}: {why}; nothing was read from there")]
    Redirect {
        /// Its host.
        registry: String,
        /// What was asked for.
        what: String,
        /// Why it was not followed.
        why: String,
    },
    /// TLS could not be set up.
    #[error(
        "TLS cannot be set up: {why}; install the system's CA certificates (package ca-certificates) or name a `registry.ca` file"
    )]
    Tls {
        /// What is missing.
        why: String,
    },
    /// The registry refuses these credentials, or wants some.
    #[error("the registry {registry} refuses {what} {}: {how}", who(user.as_deref()))]
    Denied {
        /// Its host.
        registry: String,
        /// What was asked for.
        what: String,
        /// As whom; `None` without credentials.
        user: Option<String>,
        /// What to do.
        how: String,
    },
    /// The Docker config cannot be used.
    #[error("the credentials for {registry} in {} cannot be used: {why}", path.display())]
    Credentials {
        /// The registry they are for.
        registry: String,
        /// The config file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// Nothing of that name.
    #[error(
        "{reference} is not in the registry: check the name and the version (private registries also say so where credentials are missing: `docker login {registry}`)"
    )]
    NotFound {
        /// What was asked for.
        reference: String,
        /// Its host.
        registry: String,
    },
    /// The manifest names a blob that the registry does not have.
    #[error(
        "{reference} is incomplete: the registry does not have its {what} {digest}; its publisher must publish it again"
    )]
    BlobMissing {
        /// The plugin.
        reference: String,
        /// Which part.
        what: &'static str,
        /// The blob.
        digest: Digest,
    },
    /// More than the limit.
    #[error("{what} is larger than {limit} bytes: this is not read{how}")]
    TooLarge {
        /// What.
        what: String,
        /// The limit, in bytes.
        limit: u64,
        /// What raises the limit, if anything.
        how: &'static str,
    },
    /// It ended early, or went on after its end.
    #[error(
        "{what} should have {want} bytes, and {got}: it was truncated or replaced on its way; try again, and if it stays so tell the registry's operator"
    )]
    Size {
        /// What.
        what: String,
        /// As announced, in bytes.
        want: u64,
        /// What came.
        got: String,
    },
    /// The bytes are not those of the digest.
    #[error(
        "{what} has the digest {got} where {want} was asked for: the registry, or something on the way, changed it; do not use it, and tell the registry's operator"
    )]
    Mismatch {
        /// What.
        what: String,
        /// As asked for.
        want: Digest,
        /// What came.
        got: Digest,
    },
    /// Something else than a plugin.
    #[error(
        "{reference} is no plugin: {why}; publish plugins with `millgate plugin publish` or `wkg`"
    )]
    NotAPlugin {
        /// What was asked for.
        reference: String,
        /// What is wrong.
        why: String,
    },
    /// The bytes to publish are no component.
    #[error("this is no WebAssembly component: {why}; build it with `millgate plugin build`")]
    NotAComponent {
        /// What is wrong.
        why: String,
    },
    /// A published version with other content.
    #[error(
        "{reference} is already published as {there}, with other content: publish another version, since what others have pinned must stay (or say `--overwrite`)"
    )]
    Exists {
        /// What was to be published.
        reference: String,
        /// The manifest that is there.
        there: Digest,
    },
    /// Publishing needs a tag.
    #[error(
        "{reference} has no tag to publish under: write such as {reference}:1.0.0 without a digest"
    )]
    NoTag {
        /// What was given.
        reference: String,
    },

    // Keys and signatures.
    /// A key that cannot be used.
    #[error("the key {name}: {why}")]
    Key {
        /// Its name or file.
        name: String,
        /// What is wrong, and what to do.
        why: String,
    },
    /// A `[[trust]]` section that is wrong.
    #[error("[[trust]] {name:?}: {why}")]
    Trust {
        /// The signer's name.
        name: String,
        /// What is wrong, and what to do.
        why: String,
    },
    /// No signature at all.
    #[error(
        "the plugin {plugin} ({digest}) is not signed: ask its vendor to sign it (`millgate plugin publish --key NAME`)"
    )]
    Unsigned {
        /// The plugin's name.
        plugin: String,
        /// Its manifest's digest.
        digest: Digest,
    },
    /// Signed by nobody who is trusted.
    #[error(
        "the plugin {plugin} ({digest}) is signed by no key that is trusted here{}: if you trust its vendor, add the vendor's public key as [[trust]] in millgate.toml",
        hints(keys)
    )]
    UnknownKey {
        /// The plugin's name.
        plugin: String,
        /// Its manifest's digest.
        digest: Digest,
        /// The ids of the keys that the signatures name, where they do.
        keys: Vec<String>,
    },
    /// Signed by a signer who is trusted for other plugins.
    #[error("the plugin {plugin} is signed by {signer}, who is trusted only for {}: if {signer} may sign it, add {plugin:?} to `plugins` of [[trust]] {signer:?}", patterns.join(", "))]
    NotAllowed {
        /// The plugin's name.
        plugin: String,
        /// The signer's name.
        signer: String,
        /// What the signer may sign.
        patterns: Vec<String>,
    },
    /// A signature that does not fit what it is beside.
    #[error(
        "the plugin {plugin} ({digest}) was tampered with: {why}; do not use it, and tell its vendor"
    )]
    Tampered {
        /// The plugin's name.
        plugin: String,
        /// Its manifest's digest.
        digest: Digest,
        /// What does not fit.
        why: String,
    },

    // The lock.
    /// A lock file that cannot be read.
    #[error("{}: {why}", path.display())]
    Lock {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to do.
        why: String,
    },
    /// A lock file that is not there.
    #[error("there is no {}: run `millgate plugin update` to write it", path.display())]
    NoLock {
        /// The file.
        path: PathBuf,
    },
    /// The lock and the config disagree.
    #[error(
        "millgate.lock disagrees with the config:{}\nrun `millgate plugin update` to bring them together",
        indented(differences)
    )]
    Disagrees {
        /// One line each.
        differences: Vec<String>,
    },
    /// A version that goes backwards.
    #[error(
        "{plugin} would go back from {from} to {to}: an old version may bring back what was fixed; say `--allow-downgrade` if this is meant"
    )]
    Backwards {
        /// The plugin's name.
        plugin: String,
        /// What is locked.
        from: String,
        /// What was to be locked.
        to: String,
    },
    /// The same version with other bytes.
    #[error(
        "{plugin} {version} was {was} and is now {is}: a published version must never change; ask its vendor, and say `--allow-downgrade` only if they confirm it"
    )]
    Republished {
        /// The plugin's name.
        plugin: String,
        /// The version.
        version: String,
        /// What is locked.
        was: Digest,
        /// What was to be locked.
        is: Digest,
    },
    /// Another plugin at the same place.
    #[error(
        "{source_text} was the plugin {was} and is now {is}: this is another plugin; remove its entry from millgate.lock if this is meant"
    )]
    Renamed {
        /// Where it comes from.
        source_text: String,
        /// The locked plugin's name.
        was: String,
        /// The name of what is there now.
        is: String,
    },

    // The cache and bundles.
    /// A blob that is not here.
    #[error(
        "{what} {digest} is not on this machine: run `millgate plugin pull`, or load a bundle that has it"
    )]
    Absent {
        /// What.
        what: String,
        /// The blob.
        digest: Digest,
    },
    /// A blob whose bytes are not its name's.
    #[error("{} is damaged (its bytes have the digest {got}): remove it, and pull or load it again", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What it holds.
        got: Digest,
    },
    /// A bundle with faults.
    #[error("the bundle {} cannot be used:{}\nnothing was loaded; make it again with `millgate bundle create`, or copy it again", path.display(), indented(problems))]
    Bundle {
        /// The folder or file.
        path: PathBuf,
        /// One line each.
        problems: Vec<String>,
    },
}

impl Error {
    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Error {
        Error::Io {
            action,
            path: path.to_path_buf(),
            source,
        }
    }
}

fn said(message: &str) -> String {
    if message.is_empty() {
        String::new()
    } else {
        format!(" ({message})")
    }
}

fn status_help(status: u16) -> &'static str {
    match status {
        429 => "it limits how often one may ask: wait, or use credentials (`docker login`)",
        500.. => "this is a fault of the registry: try again, and if it stays so tell its operator",
        _ => "check the reference, and that this is a registry",
    }
}

fn who(user: Option<&str>) -> String {
    match user {
        Some(user) => format!("to {user}"),
        None => "without credentials".to_owned(),
    }
}

fn hints(keys: &[String]) -> String {
    if keys.is_empty() {
        String::new()
    } else {
        format!(" (its signatures name {})", keys.join(", "))
    }
}

fn indented(lines: &[String]) -> String {
    lines.iter().map(|line| format!("\n  {line}")).collect()
}
