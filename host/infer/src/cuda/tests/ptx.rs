//! The PTX that the binary carries is what the sources give.

use std::process::Command;

use super::driver::root;
use crate::cuda::kernels::{PTX, entries};

#[test]
fn the_embedded_ptx_was_compiled_from_these_sources() {
    let script = root().join("tests/gpu/compile.py");
    let output = Command::new("python3")
        .arg(script)
        .arg("--hash")
        .output()
        .unwrap_or_else(|error| panic!("python3: {error}"));
    assert!(output.status.success(), "{output:?}");
    let hash = String::from_utf8(output.stdout).unwrap();
    let wanted = format!("// sources: sha256 {}", hash.trim());
    assert!(
        PTX.lines().any(|line| line == wanted),
        "kernels.ptx is older than the kernels: run tests/gpu/compile.py and commit the file"
    );
}

#[test]
fn the_embedded_ptx_has_every_kernel_and_tensor_core_products() {
    let names: Vec<&str> = entries(PTX).collect();
    for name in [
        "rms_norm",
        "matmul_8_Q4_0",
        "matmul_64_BF16",
        "attend_split_128",
        "combine",
    ] {
        assert!(names.contains(&name), "{name} is not in {names:?}");
    }
    assert!(PTX.contains("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32"));
    assert!(PTX.contains(".target sm_80"));
}

#[test]
fn compiled_anew_the_kernels_are_the_embedded_ones_and_spill_nowhere() {
    if std::env::var_os("MILLGATE_NVRTC").is_none() {
        eprintln!(
            "left out: set MILLGATE_NVRTC to a folder that `tests/gpu/compile.py --install FOLDER` filled"
        );
        return;
    }
    let output = Command::new("python3")
        .arg(root().join("tests/gpu/compile.py"))
        .arg("--architectures")
        .output()
        .unwrap_or_else(|error| panic!("python3: {error}"));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    for architecture in ["sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"] {
        assert!(text.contains(architecture), "{text}");
    }
}
