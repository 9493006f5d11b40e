//! `millgate doctor`: the machine and the installation, line by line. Ends with 1 when something
//! would keep Millgate from serving.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;

use crate::args::DoctorArgs;
use crate::models::{CATALOGUE, Library};
use crate::{folders, open, system};

/// Linux has had the ioctl PAGEMAP_SCAN since this release; with it the pool resets an instance's
/// memory by looking only at the pages that were written.
const PAGEMAP_SCAN: (u32, u32) = (6, 7);

/// How a line ended.
enum Finding {
    /// All is well.
    Fine(String),
    /// It works, but could be better.
    Note(String),
    /// It does not work.
    Wrong(String),
}
use Finding::{Fine, Note, Wrong};

pub fn run(args: DoctorArgs) -> Result<ExitCode> {
    let data = folders::data(args.data.data);
    let mut wrong = 0;
    let mut line = |what: &str, finding: Finding| {
        let (mark, text) = match finding {
            Fine(text) => ("ok  ", text),
            Note(text) => ("note", text),
            Wrong(text) => {
                wrong += 1;
                ("BAD ", text)
            }
        };
        println!("{mark}  {what:<9} {text}");
    };
    line("version", Fine(env!("CARGO_PKG_VERSION").to_owned()));
    line("machine", machine());
    line("simd", simd());
    for (name, finding) in gpus() {
        line(&name, finding);
    }
    line("kernel", kernel());
    line("memory", memory());
    line("port", port(args.listen));
    line("data", data_folder(&data));
    line("model", model(&data));
    for (name, finding) in plugins(&data) {
        line(&name, finding);
    }
    if wrong == 0 {
        println!("\nready: millgate quickstart");
        Ok(ExitCode::SUCCESS)
    } else {
        println!("\n{wrong} of these would keep millgate from serving");
        Ok(ExitCode::FAILURE)
    }
}

fn machine() -> Finding {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let name = read("/proc/cpuinfo")
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
        .map_or_else(String::new, |(_, name)| format!(", {}", name.trim()));
    Fine(format!(
        "{} {}, {cores} cores{name}",
        std::env::consts::OS,
        std::env::consts::ARCH
    ))
}

#[cfg(target_arch = "x86_64")]
fn simd() -> Finding {
    let features = [
        ("AVX2", is_x86_feature_detected!("avx2")),
        ("FMA", is_x86_feature_detected!("fma")),
        ("F16C", is_x86_feature_detected!("f16c")),
        ("AVX-512F", is_x86_feature_detected!("avx512f")),
        ("AVX-512 VNNI", is_x86_feature_detected!("avx512vnni")),
    ];
    let has = features
        .iter()
        .filter(|(_, there)| *there)
        .map(|(name, _)| *name);
    let has: Vec<&str> = has.collect();
    if has.contains(&"AVX2") && has.contains(&"FMA") {
        Fine(has.join(", "))
    } else {
        Note("no AVX2 and FMA: local models will be slow".to_owned())
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn simd() -> Finding {
    if cfg!(target_arch = "aarch64") {
        Fine("NEON".to_owned())
    } else {
        Note("no SIMD kernels for this machine: local models will be slow".to_owned())
    }
}

/// The GPUs, and what would stop one from being used. A machine without one is well.
fn gpus() -> Vec<(String, Finding)> {
    let report = millgate_infer::gpus();
    let driver = report.driver.map_or_else(String::new, |(major, minor)| {
        format!(", driver for CUDA {major}.{minor}")
    });
    let mut lines = Vec::new();
    for gpu in &report.gpus {
        let text = format!(
            "{}, {} MiB, compute capability {}.{}{driver}",
            gpu.name,
            gpu.memory_bytes >> 20,
            gpu.capability.0,
            gpu.capability.1
        );
        let finding = match &gpu.unusable {
            None => Fine(text),
            Some(reason) => Note(format!("{text}; not used: {reason}")),
        };
        lines.push((format!("cuda:{}", gpu.index), finding));
    }
    if let Some(problem) = report.problem {
        let missing = report.driver.is_none() && report.gpus.is_empty();
        let finding = if missing {
            Fine(problem)
        } else {
            Note(problem)
        };
        lines.push(("gpu".to_owned(), finding));
    }
    lines
}

fn kernel() -> Finding {
    let release = read("/proc/sys/kernel/osrelease");
    let release = release.trim();
    let mut numbers = release
        .split(['.', '-'])
        .map_while(|part| part.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version >= PAGEMAP_SCAN {
        Fine(format!(
            "{release}, with pagemap scan: fresh sandboxes are reset at their cheapest"
        ))
    } else {
        Note(format!(
            "{release} has no pagemap scan (6.7 and later do): fresh sandboxes cost some microseconds more"
        ))
    }
}

fn memory() -> Finding {
    let info = read("/proc/meminfo");
    let mib = |name: &str| {
        let line = info.lines().find_map(|line| line.strip_prefix(name))?;
        let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
        Some(kib / 1024)
    };
    match (mib("MemAvailable"), mib("MemTotal")) {
        (Some(available), Some(total)) if available < 512 => Note(format!(
            "{available} MiB available of {total}: a local model may not fit"
        )),
        (Some(available), Some(total)) => Fine(format!("{available} MiB available of {total}")),
        _ => Note("the system does not tell".to_owned()),
    }
}

fn port(listen: SocketAddr) -> Finding {
    match TcpListener::bind(listen) {
        Ok(_) => Fine(format!("{listen} is free")),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => Note(format!(
            "{listen} is taken; quickstart takes the next free port, serve wants --listen"
        )),
        Err(error) => Wrong(format!("{listen}: {error}")),
    }
}

fn data_folder(data: &Path) -> Finding {
    if let Err(error) = std::fs::create_dir_all(data) {
        return Wrong(format!(
            "{}: {error}; choose another with --data",
            data.display()
        ));
    }
    if let Err(error) = tempfile::tempfile_in(data) {
        return Wrong(format!(
            "{}: cannot write: {error}; choose another with --data",
            data.display()
        ));
    }
    match system::free_bytes(data) {
        Some(free) if free < 1 << 30 => {
            Note(format!("{}: only {} MiB free", data.display(), free >> 20))
        }
        Some(free) => Fine(format!(
            "{}: writable, {} GiB free",
            data.display(),
            free >> 30
        )),
        None => Fine(format!("{}: writable", data.display())),
    }
}

fn model(data: &Path) -> Finding {
    let library = Library::of(data);
    let mut here = Vec::new();
    for model in CATALOGUE {
        if let Some(path) = library.find(model) {
            here.push(format!("{} at {}", model.name, path.display()));
        }
    }
    if here.is_empty() {
        Note("none yet; quickstart pulls one, and so does: millgate model pull".to_owned())
    } else {
        Fine(here.join(", "))
    }
}

/// Each first-party plugin, inspected.
fn plugins(data: &Path) -> Vec<(String, Finding)> {
    let sandbox = match open::sandbox(data) {
        Ok(sandbox) => sandbox,
        Err(error) => return vec![("sandbox".to_owned(), Wrong(format!("{error:#}")))],
    };
    let inspect = |plugin: &millgate_plugins::FirstParty| {
        let begin = Instant::now();
        let finding = match sandbox.inspect(plugin.wasm) {
            Ok(info) => Fine(format!(
                "{} {}, {} KiB, read in {:.1} ms",
                info.interfaces
                    .iter()
                    .map(|i| i.name())
                    .collect::<Vec<_>>()
                    .join(", "),
                info.manifest.version,
                info.size >> 10,
                begin.elapsed().as_secs_f64() * 1e3
            )),
            Err(error) => Wrong(error.to_string()),
        };
        (plugin.name.to_owned(), finding)
    };
    millgate_plugins::all().iter().map(inspect).collect()
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}
