//! The tools that make components of JavaScript and Python: installed once, in a version that is
//! fixed here, into a folder that all projects share.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

/// <https://www.npmjs.com/package/@bytecodealliance/componentize-js>
pub const COMPONENTIZE_JS: &str = "0.23.0";
/// <https://pypi.org/project/componentize-py/>
pub const COMPONENTIZE_PY: &str = "0.25.1";

/// Runs componentize-js; arguments: source, WIT folder, output. What a sandbox does not have
/// (clocks, sockets, files) is left out, so that the component imports no WASI.
const DRIVER: &str = r#"import { componentize } from "@bytecodealliance/componentize-js";
import { writeFile } from "node:fs/promises";
const [sourcePath, witPath, output] = process.argv.slice(2);
const { component } = await componentize({
  sourcePath,
  witPath,
  worldName: "plugin",
  disableFeatures: ["random", "stdio", "clocks", "http", "fetch-event"],
});
await writeFile(output, component);
"#;

/// The Node script that componentizes, its packages beside it.
pub fn javascript() -> Result<PathBuf> {
    let node = first_line("node", &["--version"])
        .context("JavaScript plugins are built with Node.js 20 or later, and there is no `node`: install it from https://nodejs.org or your distribution")?;
    let major = node
        .trim_start_matches('v')
        .split('.')
        .next()
        .and_then(|major| major.parse().ok());
    if major.is_none_or(|major: u32| major < 20) {
        bail!("JavaScript plugins are built with Node.js 20 or later; `node` is {node}");
    }
    let dir = installed("componentize-js", COMPONENTIZE_JS, |dir| {
        std::fs::write(dir.join("package.json"), "{\"private\":true}")?;
        run(
            Command::new("npm").current_dir(dir).args([
                "install",
                "--no-audit",
                "--no-fund",
                "--loglevel=error",
                &format!("@bytecodealliance/componentize-js@{COMPONENTIZE_JS}"),
            ]),
            "npm could not install componentize-js; is the registry within reach?",
        )
    })?;
    let driver = dir.join("componentize.mjs");
    std::fs::write(&driver, DRIVER)?;
    Ok(driver)
}

/// The folder of a Python environment with componentize-py.
pub fn python() -> Result<PathBuf> {
    let version = first_line("python3", &["--version"])
        .context("Python plugins are built with Python 3.10 or later, and there is no `python3`: install it from https://python.org or your distribution")?;
    let minor = version
        .split('.')
        .nth(1)
        .and_then(|minor| minor.parse().ok());
    if minor.is_none_or(|minor: u32| minor < 10) {
        bail!("Python plugins are built with Python 3.10 or later; `python3` is {version}");
    }
    installed("componentize-py", COMPONENTIZE_PY, |dir| {
        run(
            Command::new("python3").args(["-m", "venv"]).arg(dir),
            "python3 could not make a virtual environment; on Debian install python3-venv",
        )?;
        run(
            Command::new(dir.join("bin/python")).args([
                "-m",
                "pip",
                "install",
                "--quiet",
                "--disable-pip-version-check",
                &format!("componentize-py=={COMPONENTIZE_PY}"),
            ]),
            "pip could not install componentize-py; is the index within reach?",
        )
    })
}

/// Where tools are kept: `$MILLGATE_TOOLS`, else `~/.cache/millgate/tools`.
fn folder() -> Result<PathBuf> {
    if let Some(folder) = std::env::var_os("MILLGATE_TOOLS") {
        return Ok(folder.into());
    }
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let cache = cache
        .or_else(home)
        .context("neither HOME nor MILLGATE_TOOLS is set, so there is no place for build tools")?;
    Ok(cache.join("millgate/tools"))
}

/// The folder of a tool. It is filled in place (a Python environment cannot be moved) under a
/// lock, and is whole when its mark is there.
fn installed(
    name: &str,
    version: &str,
    install: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    let dir = folder()?.join(format!("{name}-{version}"));
    let mark = dir.join("installed");
    // Not `with_extension`: the version ends in what looks like one.
    let lock_path = folder()?.join(format!("{name}-{version}.lock"));
    std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let lock = std::fs::File::create(&lock_path)?;
    lock.lock()
        .with_context(|| format!("cannot lock {}", lock_path.display()))?;
    if !mark.exists() {
        eprintln!("installing {name} {version} into {} (once)", dir.display());
        install(&dir)?;
        std::fs::write(&mark, "")?;
    }
    Ok(dir)
}

/// Runs a tool; where it fails, what it said goes into the error.
pub fn run(command: &mut Command, failed: &str) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start `{program}`: is it installed?"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    bail!("{failed}\n{}", said.trim_end())
}

/// The first line that a program prints; none where it cannot be run.
fn first_line(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output
        .status
        .success()
        .then(|| text.lines().next().unwrap_or_default().to_owned())
}
