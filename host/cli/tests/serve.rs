//! The binary as a process: it starts, takes a new config, keeps the last good one, and ends in an
//! orderly way.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

/// A running `millgate serve` in a folder of its own.
struct Process {
    child: Child,
    address: SocketAddr,
    config: PathBuf,
    _folder: tempfile::TempDir,
}

fn millgate(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_millgate"));
    command.args(args).stdin(Stdio::null());
    command
}

fn config(serves: &str) -> String {
    format!(
        r#"
[models.remote]
upstream = {{ url = "http://127.0.0.1:9/v1" }}
[stages.pii]
plugin = "pii"
[pipelines.default]
serves = ["{serves}"]
input = ["pii"]
arms = [{{ name = "stable", model = "remote" }}]
"#
    )
}

impl Process {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("millgate.toml");
        std::fs::write(&path, config("first")).unwrap();
        let mut child = millgate(&["serve", "--listen", "127.0.0.1:0", "--config"])
            .arg(&path)
            .arg("--data")
            .arg(folder.path().join("data"))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let first = lines.next().unwrap().unwrap();
        let (_, address) = first.split_once("listening on http://").unwrap();
        let address = address.trim().parse().unwrap();
        assert!(lines.any(|line| line.unwrap().contains("ready in")));
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        Self {
            child,
            address,
            config: path,
            _folder: folder,
        }
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        assert!(
            Command::new("kill")
                .args([name, &pid])
                .status()
                .unwrap()
                .success()
        );
    }

    fn get(&self, path: &str) -> String {
        let mut stream = TcpStream::connect(self.address).unwrap();
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    fn waits_for(&self, path: &str, text: &str) {
        let end = Instant::now() + Duration::from_secs(60);
        while !self.get(path).contains(text) {
            assert!(Instant::now() < end, "{path} never said {text}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn ended(mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }
}

#[test]
fn a_hang_up_takes_a_new_config_and_a_bad_one_changes_nothing() {
    let process = Process::start();
    assert!(process.get("/v1/models").contains("\"first\""));
    std::fs::write(&process.config, config("second")).unwrap();
    process.signal("-HUP");
    process.waits_for("/v1/models", "\"second\"");
    // The bad one first, a good one after it: when the good one is there, the bad one has been.
    std::fs::write(&process.config, "[pipelines.default]\nserves = 7\n").unwrap();
    process.signal("-HUP");
    std::thread::sleep(Duration::from_millis(300));
    assert!(process.get("/v1/models").contains("\"second\""));
    std::fs::write(&process.config, config("third")).unwrap();
    process.signal("-HUP");
    process.waits_for("/v1/models", "\"third\"");
    process.signal("-TERM");
    assert!(process.ended().success());
}

#[test]
fn a_second_process_on_the_same_data_is_told_why_it_cannot_start() {
    let process = Process::start();
    let data = process.config.with_file_name("data");
    let output = millgate(&["serve", "--listen", "127.0.0.1:0", "--config"])
        .arg(&process.config)
        .arg("--data")
        .arg(&data)
        .output()
        .unwrap();
    assert!(!output.status.success());
    let said = said(&output);
    assert!(said.contains("in use by another process"), "{said}");
    process.signal("-TERM");
    assert!(process.ended().success());
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn check(folder: &Path, text: &str) -> Output {
    let path = folder.join("bad.toml");
    std::fs::write(&path, text).unwrap();
    millgate(&["check"]).arg(path).output().unwrap()
}

#[test]
fn check_prints_every_error_with_its_line_and_ends_with_one() {
    let folder = tempfile::tempdir().unwrap();
    let text = config("x").replace(
        "input = [\"pii\"]",
        "input = [\"pii\", \"pie\"]\noutputs = []",
    );
    let output = check(folder.path(), &text);
    assert_eq!(output.status.code(), Some(1));
    let said = said(&output);
    assert!(said.contains("bad.toml:8:"), "{said}");
    assert!(said.contains("bad.toml:9:"), "{said}");
    assert!(said.contains("2 errors"), "{said}");
    let output = check(folder.path(), &config("x"));
    assert!(output.status.success(), "{}", self::said(&output));
}

#[test]
fn a_config_that_is_not_there_is_an_error_that_says_what_to_do() {
    let output = millgate(&["serve", "--config", "/nowhere/millgate.toml"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("quickstart"), "{}", said(&output));
}

#[test]
fn a_plugin_runs_on_a_text_and_its_verdict_is_json() {
    let output = millgate(&["plugin", "run", "pii", "--json", "write to ann@example.com"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(told["decision"], "pass");
    assert_eq!(told["edits"].as_array().map(Vec::len), Some(1));
    assert!(!told["output"].as_str().unwrap().contains("ann@"), "{told}");
}
