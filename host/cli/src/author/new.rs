//! `millgate plugin new`: a project from the templates in the binary, with the SDK and the contract
//! beside it, so that it builds with nothing but the language's own registry.

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};

use super::args::{Language, NewArgs};

/// Files of the repository: (path, text).
pub const FILES: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/sdk.rs"));

pub fn run(args: NewArgs) -> Result<ExitCode> {
    let name = &args.name;
    let sound = |character: char| {
        character.is_ascii_lowercase() || character.is_ascii_digit() || character == '-'
    };
    if !name.chars().all(sound)
        || !name.starts_with(|first: char| first.is_ascii_lowercase())
        || name.ends_with('-')
        || name.len() > 64
    {
        bail!(
            "NAME must be 1 to 64 lower-case letters, digits and hyphens and begin with a letter, not {name:?}"
        );
    }
    let dir = Path::new(name);
    if dir.exists() {
        bail!("{name} is already there; take another name, or remove it");
    }
    let (lang, kind) = (word(args.lang), word(args.kind));
    for (path, text) in files(args.lang, &kind) {
        write(&dir.join(path), &filled(text, name))?;
    }
    println!("made {name} in {} (kind: {kind}):", title(args.lang));
    let check = match args.lang {
        Language::Rust => "src/lib.rs",
        Language::Js => "src/plugin.js",
        Language::Python => "plugin.py",
    };
    println!("  {check:<24}the check");
    println!(
        "  {:<24}what it says about itself, and its config",
        "plugin.toml"
    );
    println!(
        "  {:<24}inputs with the verdicts that they must get",
        "fixtures/"
    );
    println!(
        "next:\n  cd {name}\n  millgate plugin build\n  millgate plugin test\n  millgate plugin bench"
    );
    println!(
        "The guide: {}/blob/main/docs/plugins/{}.md",
        env!("CARGO_PKG_REPOSITORY"),
        if lang == "js" { "javascript" } else { &lang }
    );
    Ok(ExitCode::SUCCESS)
}

/// The files of a project and where each goes.
fn files(lang: Language, kind: &str) -> Vec<(String, &'static str)> {
    let lang_word = word(lang);
    let mut moves = vec![
        (format!("sdk/templates/kinds/{kind}/"), String::new()),
        (format!("sdk/templates/{lang_word}/common/"), String::new()),
        (format!("sdk/templates/{lang_word}/{kind}/"), String::new()),
        ("wit/".into(), "vendor/wit/".into()),
    ];
    match lang {
        Language::Rust => moves.push(("sdk/rust/src/".into(), "vendor/sdk/rust/src/".into())),
        Language::Js => moves.push(("sdk/js/".into(), "vendor/millgate/".into())),
        Language::Python => moves.push(("sdk/python/".into(), "vendor/".into())),
    }
    let mut files = Vec::new();
    for (from, to) in moves {
        for (path, text) in FILES {
            // The build writes a world of the plugin's own.
            let skip = *path == "wit/worlds.wit" && lang != Language::Rust;
            if let (Some(rest), false) = (path.strip_prefix(&from), skip) {
                // A dot file or a manifest would mean something where the template lies.
                let rest = rest
                    .replace("dot-", ".")
                    .replace("Cargo.toml.in", "Cargo.toml");
                files.push((format!("{to}{rest}"), *text));
            }
        }
    }
    files
}

fn filled(text: &str, name: &str) -> String {
    text.replace("{{name}}", name)
        .replace("{{crate}}", &name.replace('-', "_"))
}

fn write(path: &Path, text: &str) -> Result<()> {
    let doing = || format!("cannot write {}", path.display());
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).with_context(doing)?;
    }
    std::fs::write(path, text).with_context(doing)
}

fn word(value: impl clap::ValueEnum) -> String {
    value
        .to_possible_value()
        .map(|value| value.get_name().to_owned())
        .unwrap_or_default()
}

fn title(lang: Language) -> &'static str {
    match lang {
        Language::Rust => "Rust",
        Language::Js => "JavaScript",
        Language::Python => "Python",
    }
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum as _;

    use super::*;

    #[test]
    fn every_language_has_every_kind_with_a_manifest_and_fixtures() {
        for lang in Language::value_variants() {
            for kind in super::super::args::Kind::value_variants() {
                let kind = word(*kind);
                let files = files(*lang, &kind);
                let text = |name: &str| {
                    files
                        .iter()
                        .find(|(path, _)| path == name)
                        .map(|file| file.1)
                };
                let manifest = filled(text("plugin.toml").unwrap(), "mine");
                let manifest = millgate_sandbox::Manifest::parse(manifest.as_bytes()).unwrap();
                assert_eq!(manifest.interfaces[0].name(), kind);
                assert!(text("fixtures/basic.toml").is_some(), "{kind}");
                assert!(text("vendor/wit/types.wit").is_some());
                assert!(text(".gitignore").is_some(), "{lang:?}");
                let sources = ["src/lib.rs", "src/plugin.js", "plugin.py"];
                assert_eq!(
                    sources.iter().filter(|path| text(path).is_some()).count(),
                    1,
                    "{lang:?} {kind}"
                );
            }
        }
    }
}
