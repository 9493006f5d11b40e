//! Writes the table of the files that `millgate plugin new` copies into a project: the contract,
//! the SDKs and the templates, so that the binary alone makes a project that builds.

use std::path::{Path, PathBuf};
use std::{env, fs, io};

/// Folders of the repository, and what they are called in the table.
const FOLDERS: [&str; 5] = [
    "wit",
    "sdk/rust/src",
    "sdk/js",
    "sdk/python",
    "sdk/templates",
];

fn main() -> io::Result<()> {
    let root = PathBuf::from("../..").canonicalize()?;
    let mut files = Vec::new();
    for folder in FOLDERS {
        println!("cargo::rerun-if-changed=../../{folder}");
        list(&root.join(folder), &mut files)?;
    }
    files.sort();
    let entries: String = files
        .iter()
        .map(|path| {
            let name = path.strip_prefix(&root).unwrap_or(path).to_string_lossy();
            format!("    ({name:?}, include_str!({path:?})),\n")
        })
        .collect();
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default()).join("sdk.rs");
    fs::write(out, format!("&[\n{entries}]\n"))
}

fn list(folder: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_dir() && name != "__pycache__" && name != "node_modules" {
            list(&path, files)?;
        } else if path.is_file() && !name.ends_with(".pyc") {
            files.push(path);
        }
    }
    Ok(())
}
