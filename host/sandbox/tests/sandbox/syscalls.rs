//! In the steady state a fresh call changes no memory mapping: no mmap, mprotect, madvise or
//! munmap. Everything that is fast about fresh sandboxes follows from it, and unlike a time it
//! can be tested. The test traces this very program with `strace`, running calls in the hidden
//! test below, once N of them and once 2 N: what the difference is, the calls made.

use std::process::Command;

use millgate_hostile::{PLAIN, SCAN};
use millgate_sandbox::{Stage, StageSpec};
use serde_json::json;

use crate::common::{inspect, load, sandbox};

const N: usize = 500;

fn stage(guest: &str) -> Stage {
    let wasm = if guest == "plain" { PLAIN } else { SCAN };
    load(&sandbox(), wasm, StageSpec::new(guest, json!({}))).0
}

#[test]
#[ignore = "run by the tests below, under strace"]
fn make_fresh_calls() {
    let calls: usize = std::env::var("MILLGATE_CALLS").unwrap().parse().unwrap();
    let stage = stage(&std::env::var("MILLGATE_GUEST").unwrap());
    let text = "The quick brown fox writes to jane@example.com. ".repeat(20);
    for _ in 0..200 + calls {
        inspect(&stage, &text).unwrap();
    }
}

/// How many mapping calls a run makes, all in all.
fn count(guest: &str, calls: usize) -> usize {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("calls");
    let output = Command::new("strace")
        .args([
            "-f",
            "-qq",
            "-e",
            "trace=mmap,mprotect,madvise,munmap,mremap,process_madvise",
            "-o",
        ])
        .arg(&log)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "syscalls::make_fresh_calls", "--ignored"])
        .env("MILLGATE_CALLS", calls.to_string())
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
    assert!(log.contains("mmap("), "strace saw nothing:\n{log}");
    log.lines().count()
}

fn steady(guest: &str) {
    // So that the image is in the cache before anything is counted.
    drop(stage(guest));
    let (once, twice) = (count(guest, N), count(guest, 2 * N));
    let more = twice.saturating_sub(once);
    // A stray call of the C library's allocator is no pattern; one in a hundred calls would be.
    assert!(
        more < N / 100,
        "{more} mapping calls in {N} fresh calls ({once}, {twice})"
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
