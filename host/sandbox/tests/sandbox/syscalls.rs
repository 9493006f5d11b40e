//! In the steady state a fresh call changes no memory mapping: no mmap, mprotect, madvise or
//! munmap. Everything that is fast about fresh sandboxes follows from it, and unlike a time it
//! can be tested. The test traces this very program with `strace` while it runs the hidden test
//! below, which marks where its counted calls begin and end: what setting up and going down map
//! differs from run to run with the threads that take part, and is not the matter here.

use std::process::Command;

use millgate_hostile::{PLAIN, SCAN};
use millgate_sandbox::{Stage, StageSpec};
use serde_json::json;

use crate::common::{inspect, load, sandbox};

const N: usize = 1000;

/// Files that do not exist; asking for them leaves a line in the trace.
const BEGIN: &str = "/millgate-counted-calls-begin";
const END: &str = "/millgate-counted-calls-end";

fn stage(guest: &str) -> Stage {
    let wasm = if guest == "plain" { PLAIN } else { SCAN };
    load(&sandbox(), wasm, StageSpec::new(guest, json!({}))).0
}

fn mark(name: &str) {
    assert!(std::fs::metadata(name).is_err(), "{name} is there");
}

#[test]
#[ignore = "run by the tests below, under strace"]
fn make_fresh_calls() {
    let stage = stage(&std::env::var("MILLGATE_GUEST").unwrap());
    let text = "The quick brown fox writes to jane@example.com. ".repeat(20);
    let call = || inspect(&stage, &text).unwrap();
    for _ in 0..N {
        call();
    }
    mark(BEGIN);
    for _ in 0..N {
        call();
    }
    mark(END);
}

fn steady(guest: &str) {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("calls");
    let output = Command::new("strace")
        .args(["-f", "-qq", "-e"])
        .arg("trace=mmap,mprotect,madvise,munmap,mremap,process_madvise,%%stat")
        .arg("-o")
        .arg(&log)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "syscalls::make_fresh_calls", "--ignored"])
        .env("MILLGATE_GUEST", guest)
        .output()
        .unwrap_or_else(|error| {
            panic!("this test needs strace ({error}); install it with `apt-get install strace`")
        });
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let log = std::fs::read_to_string(log).unwrap();
    let counted: Vec<&str> = log
        .lines()
        .skip_while(|line| !line.contains(BEGIN))
        .skip(1)
        .take_while(|line| !line.contains(END))
        .filter(|line| !line.contains("stat"))
        .collect();
    assert!(
        log.contains(END) && log.contains("mmap("),
        "strace saw nothing:\n{log}"
    );
    // A stray call of the C library's allocator is no pattern; one in a hundred calls would be.
    assert!(
        counted.len() < N / 100,
        "{} mapping calls in {N} fresh calls:\n{}",
        counted.len(),
        counted.join("\n")
    );
}

#[test]
fn a_fresh_call_changes_no_mapping() {
    steady("scan");
}

#[test]
fn nor_does_one_with_the_standard_library() {
    steady("plain");
}
