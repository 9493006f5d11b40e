//! Tests that kill: a child process commits, is killed by SIGKILL at a random instant, and the store
//! it leaves behind is opened. Whatever the child was told is durable must be there.
//!
//! The child is this test program again, with an environment variable that turns one test into it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests: a failure is a panic"
)]

use millgate_store::{AuditLog, Batch, Error, Order, SledOptions, SledStore, Store};
use serde_json::json;
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use std::{env, fs, thread};

const CHILD: &str = "MILLGATE_STORE_CRASH_CHILD";
const ROUNDS: u64 = 25;
const THREADS: u64 = 8;

fn options() -> SledOptions {
    // Small, so that kills hit rotations and checkpoints, too.
    SledOptions {
        journal_bytes: 128 << 10,
        cache_bytes: 4 << 20,
        ..SledOptions::default()
    }
}

fn spawn_child(dir: &Path, round: u64) -> Child {
    Command::new(env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture"])
        .env(CHILD, dir)
        .env("MILLGATE_STORE_CRASH_ROUND", round.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Not a test of its own: the child's body. Says `ack KEY` for every commit that was acknowledged,
/// `audit N` for every entry.
#[test]
fn child() {
    let Ok(dir) = env::var(CHILD) else { return };
    let round = env::var("MILLGATE_STORE_CRASH_ROUND").unwrap();
    let dir = Path::new(&dir);
    let store: Arc<dyn Store> = Arc::new(SledStore::open(dir.join("store"), options()).unwrap());
    let log = AuditLog::open(Arc::clone(&store), dir.join("key")).unwrap();
    say("open");
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let (store, log, round) = (&store, &log, &round);
            scope.spawn(move || {
                for number in 0.. {
                    let name = format!("{round}-{thread}-{number}");
                    let mut batch = Batch::new();
                    batch
                        .put(format!("record/{name}"), value_of(&name))
                        .put(format!("index/{name}"), "");
                    batch.put(format!("last/{thread}"), name.clone());
                    store.commit(batch).wait().unwrap();
                    say(&format!("ack {name}"));
                    if number % 16 == 0 {
                        let entry = log
                            .append("child", "kill.me", &name, json!({"round": round}))
                            .unwrap();
                        say(&format!("audit {}", entry.seq));
                    }
                }
            });
        }
    });
}

/// One write, so that a kill leaves whole lines.
fn say(line: &str) {
    std::io::stdout()
        .lock()
        .write_all(format!("{line}\n").as_bytes())
        .unwrap();
}

fn value_of(name: &str) -> Vec<u8> {
    // Sizes from 0 to some thousand bytes, told by the name alone.
    let size = name
        .bytes()
        .fold(7u64, |hash, byte| hash.wrapping_mul(31) ^ u64::from(byte))
        % 3000;
    name.bytes().cycle().take(size as usize).collect()
}

#[test]
fn no_acknowledged_commit_is_lost_to_kills_at_random_instants() {
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged: Vec<String> = Vec::new();
    let mut audited = 0;
    let mut random = 0x9e37_79b9_7f4a_7c15 ^ u64::from(std::process::id());
    for round in 0..ROUNDS {
        let mut child = spawn_child(dir.path(), round);
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        while !line.contains("open") {
            line.clear();
            assert!(
                lines.read_line(&mut line).unwrap() > 0,
                "the child could not open the store"
            );
        }
        let reader = thread::spawn(move || {
            let mut text = String::new();
            lines.read_to_string(&mut text).unwrap();
            text
        });
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        thread::sleep(Duration::from_micros(random % 150_000));
        child.kill().unwrap();
        child.wait().unwrap();
        for line in reader.join().unwrap().lines() {
            match line.split_once(' ') {
                Some(("ack", name)) => acknowledged.push(name.to_owned()),
                Some(("audit", seq)) => audited = audited.max(seq.parse::<u64>().unwrap() + 1),
                _ => {}
            }
        }
        check(dir.path(), &acknowledged, audited);
    }
    assert!(
        acknowledged.len() > 100,
        "the children did not get far: {}",
        acknowledged.len()
    );
}

/// Opens what is left and looks for everything that was acknowledged.
fn check(dir: &Path, acknowledged: &[String], audited: u64) {
    let store: Arc<dyn Store> = Arc::new(SledStore::open(dir.join("store"), options()).unwrap());
    let records: HashMap<Vec<u8>, Vec<u8>> = store
        .scan_prefix(b"record/", Order::Ascending, usize::MAX)
        .unwrap()
        .into_iter()
        .collect();
    for name in acknowledged {
        assert_eq!(
            records.get(format!("record/{name}").as_bytes()),
            Some(&value_of(name)),
            "{name} is lost"
        );
    }
    // Batches are whole: no record without its index, no index without its record.
    let index = store
        .scan_prefix(b"index/", Order::Ascending, usize::MAX)
        .unwrap();
    assert_eq!(index.len(), records.len());
    for (key, _) in index {
        let name = String::from_utf8(key).unwrap().replace("index/", "");
        assert_eq!(
            records.get(format!("record/{name}").as_bytes()),
            Some(&value_of(&name))
        );
    }
    let log = AuditLog::open(Arc::clone(&store), dir.join("key")).unwrap();
    assert!(log.verify().unwrap().entries >= audited);
}

#[test]
fn a_second_process_is_told_that_the_folder_is_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = spawn_child(dir.path(), 0);
    let mut lines = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    while !line.contains("open") && lines.read_line(&mut line).unwrap() > 0 {}
    let error = SledStore::open(dir.path().join("store"), options())
        .err()
        .unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(matches!(error, Error::Locked { .. }));
    assert!(
        error.to_string().contains("stop that `millgate serve`"),
        "{error}"
    );
    // The lock dies with its holder.
    SledStore::open(dir.path().join("store"), options()).unwrap();
}

#[test]
fn a_second_store_in_one_process_is_refused_too() {
    let dir = tempfile::tempdir().unwrap();
    let store = SledStore::open(dir.path(), options()).unwrap();
    assert!(matches!(
        SledStore::open(dir.path(), options()),
        Err(Error::Locked { .. })
    ));
    drop(store);
    SledStore::open(dir.path(), options()).unwrap();
}

#[test]
fn a_folder_of_another_format_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    drop(SledStore::open(dir.path(), options()).unwrap());
    fs::write(dir.path().join("format"), "millgate store 2\n").unwrap();
    let error = SledStore::open(dir.path(), options()).err().unwrap();
    assert!(error.to_string().contains("millgate store 2"), "{error}");
}

#[test]
fn a_flipped_bit_in_acknowledged_writes_is_an_error_that_names_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let store = SledStore::open(dir.path(), SledOptions::default()).unwrap();
    for number in 0..20 {
        let mut batch = Batch::new();
        batch.put(format!("k{number}"), vec![number; 100]);
        store.commit(batch).wait().unwrap();
    }
    drop(store);
    let journal = journal_of(dir.path());
    let mut bytes = fs::read(&journal).unwrap();
    bytes[1000] ^= 0x04;
    fs::write(&journal, bytes).unwrap();
    let error = SledStore::open(dir.path(), SledOptions::default())
        .err()
        .unwrap();
    assert!(error.to_string().contains(".log is damaged"), "{error}");
}

#[test]
fn a_journal_cut_short_keeps_what_is_whole() {
    let dir = tempfile::tempdir().unwrap();
    let store = SledStore::open(dir.path(), SledOptions::default()).unwrap();
    for number in 0..20u8 {
        let mut batch = Batch::new();
        batch.put([number], vec![number; 100]);
        store.commit(batch).wait().unwrap();
    }
    drop(store);
    let journal = journal_of(dir.path());
    let frame = 24 + 4 + 8 + 101;
    fs::File::options()
        .write(true)
        .open(&journal)
        .unwrap()
        .set_len(10 * frame + 50)
        .unwrap();
    let store = SledStore::open(dir.path(), SledOptions::default()).unwrap();
    assert_eq!(
        store.scan_prefix(b"", Order::Ascending, 99).unwrap().len(),
        10
    );
}

fn journal_of(dir: &Path) -> std::path::PathBuf {
    let mut files: Vec<_> = fs::read_dir(dir.join("journal"))
        .unwrap()
        .map(|file| file.unwrap().path())
        .collect();
    files.sort();
    files.pop().unwrap()
}

/// A small file system in memory; needs root, and is left out where that is missing.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount(size: &str) -> Option<SmallDisk> {
        let dir = tempfile::tempdir().unwrap();
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(dir.path())
            .stderr(Stdio::null())
            .status();
        mount
            .is_ok_and(|status| status.success())
            .then(|| SmallDisk(dir))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[test]
fn a_full_disk_is_an_error_that_passes_and_loses_nothing() {
    let Some(disk) = SmallDisk::mount("12m") else {
        println!("left out: mounting a small file system needs root");
        return;
    };
    let dir = disk.0.path();
    let ballast = dir.join("ballast");
    fs::write(&ballast, vec![1; 6 << 20]).unwrap();
    let options = || SledOptions {
        journal_bytes: 256 << 10,
        cache_bytes: 1 << 20,
        ..SledOptions::default()
    };
    let store = SledStore::open(dir.join("store"), options()).unwrap();
    let acknowledged = AtomicU64::new(0);
    let write = |number: u64| {
        let mut batch = Batch::new();
        batch.put(number.to_be_bytes(), number.to_be_bytes().repeat(512));
        store.commit(batch).wait()
    };
    let error = loop {
        let number = acknowledged.load(Ordering::Relaxed);
        match write(number) {
            Ok(()) => acknowledged.fetch_add(1, Ordering::Relaxed),
            Err(error) => break error,
        };
        assert!(number < 10_000, "the disk is never full");
    };
    assert!(matches!(error, Error::DiskFull { .. }), "{error}");
    assert!(error.to_string().contains("free some space"), "{error}");
    // Reads go on; so do writes, once there is room.
    assert!(store.get(&0u64.to_be_bytes()).unwrap().is_some());
    fs::remove_file(&ballast).unwrap();
    let count = acknowledged.load(Ordering::Relaxed) + 1;
    write(count).unwrap();
    drop(store);
    let store = SledStore::open(dir.join("store"), options()).unwrap();
    for number in (0..count - 1).chain([count]) {
        let value = store.get(&number.to_be_bytes()).unwrap();
        assert_eq!(
            value,
            Some(number.to_be_bytes().repeat(512)),
            "{number} of {count}"
        );
    }
}

#[test]
fn a_full_disk_at_the_start_says_so() {
    let Some(disk) = SmallDisk::mount("1m") else {
        return;
    };
    let error = SledStore::open(disk.0.path().join("store"), SledOptions::default())
        .err()
        .unwrap();
    assert!(matches!(error, Error::DiskFull { .. }), "{error}");
}
