//! Builds plugins to Wasm from a build script: a nested `cargo build` for the guests' target, in a
//! target folder of its own below the outer one (cargo locks a target folder while it builds) and
//! in an environment that the outer build has left no trace in.
//!
//! ```no_run
//! // In `build.rs`:
//! match millgate_plugin_build::build_guests(&["../pii"]) {
//!     Ok(components) => println!("cargo::rustc-env=PII_WASM={}", components[0].display()),
//!     Err(error) => println!("cargo::error={error}"),
//! }
//! ```

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::{env, fs, io};

/// The target that plugins are built for.
const TARGET: &str = "wasm32-wasip2";

/// The cargo profile that plugins are built with; it stands in the workspace's `Cargo.toml`.
const PROFILE: &str = "plugin";

/// SIMD, because guests that search text are twice as fast with it. And a stack of 256 KiB instead
/// of 1 MiB: whoever throws an instance away has the kernel look at every page of its memory, used
/// or not. (It lies at the bottom of the memory, so its overflow is a trap.)
const RUSTFLAGS: &str = "-C target-feature=+simd128 -C link-arg=-zstack-size=262144";

/// Why a guest could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// Not called from a build script.
    #[error("{0} is not set: call this from a build script")]
    NotABuildScript(&'static str),
    /// A manifest that cannot be read, or has no package name.
    #[error("{path}: {why}")]
    Manifest {
        /// The manifest.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A program that cannot be started.
    #[error("cannot start `{program}`: {source}")]
    Start {
        /// The program.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// The target is missing and could not be installed.
    #[error("the target {TARGET} is not installed; install it with `rustup target add {TARGET}`")]
    Target,
    /// Cargo failed; its own message stands above.
    #[error("building the plugin in {path} failed:\n{message}")]
    Cargo {
        /// The plugin's folder.
        path: PathBuf,
        /// What cargo said.
        message: String,
    },
}

/// Builds the plugins in the given folders (relative to the calling crate's) and returns the paths
/// of their components, in the same order. Tells cargo to run the build script again when one of
/// their sources changes.
///
/// # Errors
/// When the target cannot be installed, or a plugin does not compile: the build stops there.
pub fn build_guests(manifest_dirs: &[impl AsRef<Path>]) -> Result<Vec<PathBuf>, BuildError> {
    let base = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
    // <target>/<profile>/build/<package>/out
    let out = PathBuf::from(variable("OUT_DIR")?);
    let target_dir = out.ancestors().nth(4).unwrap_or(&out).join("guests");
    ensure_target()?;
    manifest_dirs
        .iter()
        .map(|dir| build(&base.join(dir), &target_dir))
        .collect()
}

fn variable(name: &'static str) -> Result<String, BuildError> {
    env::var(name).map_err(|_| BuildError::NotABuildScript(name))
}

/// Builds one plugin. One at a time: cargo would otherwise unite the features of all.
fn build(dir: &Path, target_dir: &Path) -> Result<PathBuf, BuildError> {
    let manifest = dir.join("Cargo.toml");
    let name = package_name(&manifest)?.replace('-', "_");
    let mut cargo = clean(Command::new(
        env::var_os("CARGO").unwrap_or_else(|| "cargo".into()),
    ));
    cargo
        .args([
            "build",
            "--lib",
            "--profile",
            PROFILE,
            "--target",
            TARGET,
            "--color",
            "never",
            "--manifest-path",
        ])
        .arg(&manifest)
        .arg("--target-dir")
        .arg(target_dir)
        .env("RUSTFLAGS", RUSTFLAGS);
    let output = run(&mut cargo)?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(BuildError::Cargo {
            path: dir.into(),
            message,
        });
    }
    let artifacts = target_dir.join(TARGET).join(PROFILE);
    watch(dir, &artifacts.join(format!("{name}.d")));
    Ok(artifacts.join(format!("{name}.wasm")))
}

/// Names every file that the component was made of: those of cargo's own dependency file (sources
/// of the plugin and of the crates in the tree that it uses, files that macros include), and the
/// manifests.
fn watch(dir: &Path, dependencies: &Path) {
    let rule = fs::read_to_string(dependencies).unwrap_or_default();
    let rule = rule.replace("\\\n", " ");
    for line in rule.lines() {
        let files = line
            .split_once(": ")
            .map_or("", |(_, files)| files)
            .replace("\\ ", "\0");
        for file in files.split_whitespace() {
            println!("cargo::rerun-if-changed={}", file.replace('\0', " "));
        }
    }
    for file in ["src", "Cargo.toml", "plugin.toml"] {
        println!("cargo::rerun-if-changed={}", dir.join(file).display());
    }
    for ancestor in dir.ancestors().skip(1) {
        let lock = ancestor.join("Cargo.lock");
        if lock.exists() {
            println!("cargo::rerun-if-changed={}", lock.display());
            println!(
                "cargo::rerun-if-changed={}",
                ancestor.join("Cargo.toml").display()
            );
            break;
        }
    }
}

/// The `name` in `[package]`.
fn package_name(manifest: &Path) -> Result<String, BuildError> {
    let error = |why: String| BuildError::Manifest {
        path: manifest.into(),
        why,
    };
    let text = fs::read_to_string(manifest).map_err(|source| error(source.to_string()))?;
    text.lines()
        .skip_while(|line| line.trim() != "[package]")
        .find_map(|line| {
            line.strip_prefix("name")?
                .trim_start()
                .strip_prefix('=')?
                .trim()
                .split('"')
                .nth(1)
        })
        .map(str::to_owned)
        .ok_or_else(|| error("no `name` in [package]".into()))
}

/// Installs the guests' target where it is missing and rustup is there.
fn ensure_target() -> Result<(), BuildError> {
    let installed = || {
        let mut rustc = clean(Command::new(
            env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()),
        ));
        let output = run(rustc.args(["--print", "target-libdir", "--target", TARGET]))?;
        Ok(output.status.success()
            && Path::new(String::from_utf8_lossy(&output.stdout).trim()).is_dir())
    };
    if installed()? {
        return Ok(());
    }
    let added = run(clean(Command::new("rustup")).args(["target", "add", TARGET]));
    match added {
        Ok(_) if installed()? => Ok(()),
        _ => Err(BuildError::Target),
    }
}

fn run(command: &mut Command) -> Result<std::process::Output, BuildError> {
    command
        .stdin(Stdio::null())
        .output()
        .map_err(|source| BuildError::Start {
            program: command.get_program().to_string_lossy().into_owned(),
            source,
        })
}

/// Without what the outer cargo, or clippy, set for its own build. What tells cargo where to find
/// things, and the job server that keeps both within one number of processes, stay.
fn clean(mut command: Command) -> Command {
    const KEEP: [&str; 5] = [
        "CARGO_HOME",
        "CARGO_NET_",
        "CARGO_HTTP_",
        "CARGO_REGISTR",
        "CARGO_MAKEFLAGS",
    ];
    const DROP: [&str; 10] = [
        "RUSTFLAGS",
        "RUSTDOCFLAGS",
        "RUSTC_WORKSPACE_WRAPPER",
        "CLIPPY_ARGS",
        "CLIPPY_CONF_DIR",
        "TARGET",
        "HOST",
        "OUT_DIR",
        "PROFILE",
        "OPT_LEVEL",
    ];
    for (name, _) in env::vars_os() {
        let name = name.to_string_lossy();
        let of_cargo = (name.starts_with("CARGO_") || name.starts_with("__CARGO"))
            && !KEEP.iter().any(|keep| name.starts_with(keep));
        if of_cargo || DROP.contains(&&*name) {
            command.env_remove(&*name);
        }
    }
    command
}
