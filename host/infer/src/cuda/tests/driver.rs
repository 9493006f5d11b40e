//! Runs a test on the test driver: builds it once, and starts the test again as a process that finds it.
//!
//! A process of its own, because the driver's library is looked for once in a process, and because an injected fault
//! breaks the device for the rest of it, as it does on a real one.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Set in the process that the test runs in.
const INSIDE: &str = "MILLGATE_TEST_DRIVER_PROCESS";

/// Whether the tests are to use the machine's own GPU. Faults cannot be injected into it.
pub(super) fn real_gpu() -> bool {
    std::env::var_os("MILLGATE_GPU").is_some_and(|value| value == "1")
}

/// Runs a test's body in a process with the test driver and these settings of it (`tests/cuda-driver/driver.cpp`); on a GPU
/// in this process, without them.
pub(super) fn on_driver(settings: &[(&str, &str)], body: impl Fn()) {
    if real_gpu() && !inside() {
        body();
    } else {
        for_each_setting(&[settings], body);
    }
}

/// Runs a test's body in a process for each of these settings, and gives what each printed. Not for a GPU, which has no such
/// settings.
pub(super) fn for_each_setting<F: Fn()>(all: &[&[(&str, &str)]], body: F) -> Vec<String> {
    if inside() {
        body();
        return Vec::new();
    }
    if real_gpu() {
        eprintln!("left out: it needs the test driver");
        return Vec::new();
    }
    // A closure's type is named after the function that it is in: `millgate_infer::cuda::tests::x::test::{{closure}}`.
    let name = std::any::type_name::<F>();
    let name = name.trim_end_matches("::{{closure}}");
    let (_, name) = name.split_once("::").unwrap();
    all.iter().map(|settings| child(name, settings)).collect()
}

fn inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

fn child(name: &str, settings: &[(&str, &str)]) -> String {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child
        .args([name, "--exact", "--nocapture", "--test-threads=1"])
        .env(INSIDE, "1")
        .env("RUST_BACKTRACE", "0")
        .env("LD_LIBRARY_PATH", library().parent().unwrap());
    for (key, value) in settings {
        child.env(format!("MILLGATE_DRIVER_{key}"), value);
    }
    let output = child.output().unwrap();
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(
        output.status.success(),
        "on the test driver with {settings:?}: {}\n{text}",
        output.status
    );
    assert!(
        text.contains("1 passed"),
        "the test driver's process did not run {name}:\n{text}"
    );
    text
}

/// The repository.
pub(super) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .unwrap()
}

/// The test driver's library, built where its sources are newer. Tests of several processes may build it at once: each builds
/// under a name of its own, and the last one to rename wins.
fn library() -> &'static PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let driver = root().join("tests/cuda-driver");
        let kernels = root().join("host/infer/src/cuda/kernels");
        let mut sources: Vec<PathBuf> = [&driver, &kernels]
            .into_iter()
            .flat_map(|folder| std::fs::read_dir(folder).unwrap())
            .map(|entry| entry.unwrap().path())
            .collect();
        sources.sort();
        let mut hash = DefaultHasher::new();
        for source in &sources {
            std::fs::read(source).unwrap().hash(&mut hash);
        }
        let folder = std::env::current_exe().unwrap();
        let folder = folder
            .parent()
            .unwrap()
            .join(format!("cuda-driver-{:016x}", hash.finish()));
        // The first name that the bindings look for.
        let library = folder.join("libcuda.so");
        if library.exists() {
            return library;
        }
        std::fs::create_dir_all(&folder).unwrap();
        let fresh = folder.join(format!("libcuda.{}.part", std::process::id()));
        let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
        let output = Command::new(&compiler)
            .args(["-std=c++17", "-O2", "-fPIC", "-shared", "-pthread"])
            .args(["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"])
            .arg("-I")
            .arg(&driver)
            .arg("-I")
            .arg(&kernels)
            .args(["driver.cpp", "fibers.cpp", "kernels.cpp"].map(|file| driver.join(file)))
            .arg("-o")
            .arg(&fresh)
            .arg("-ldl")
            .output()
            .unwrap_or_else(|error| {
                panic!(
                    "{compiler}: {error}; the test driver needs a C++ compiler (apt install g++)"
                )
            });
        assert!(
            output.status.success(),
            "the test driver does not compile:\n{}",
            String::from_utf8_lossy(&output.stderr)
        );
        std::fs::rename(fresh, &library).unwrap();
        library
    })
}
