//! What the tests share: a component, a real registry (Debian's `docker-registry`), and a lying one.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use millgate_registry::{Cache, Credentials, Registry, RegistryConfig};
use std::fs;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

pub mod liar;

/// A name and its password at the registry that asks for one.
pub const LOGIN: &str = "ann:secret";
/// `htpasswd -nbB ann secret`.
const HTPASSWD: &str = "ann:$2y$05$FTicYmYnTDZWX/yLt3FM8ORGbex2cAcXde8zP5.m4Jbzz7IkBMW2m\n";

/// A component of `seed`: valid, with a custom section and nothing to run.
pub fn component(seed: &[u8]) -> Vec<u8> {
    let mut component = wasm_encoder::Component::new();
    component.section(&wasm_encoder::CustomSection {
        name: "seed".into(),
        data: seed.into(),
    });
    component.finish()
}

/// A cache in a folder that goes with it.
pub fn cache() -> (TempDir, Cache) {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::open(dir.path().join("cache"));
    (dir, cache)
}

/// A client without credentials.
pub fn anonymous() -> Registry {
    Registry::new(RegistryConfig::default(), Credentials::Anonymous).unwrap()
}

/// Debian's registry, on a port of its own, until it is dropped.
pub struct Real {
    child: Child,
    dir: TempDir,
    further: Option<TempDir>,
    /// `127.0.0.1:PORT`.
    pub host: String,
}

impl Real {
    /// Starts it; `None`, with a line that says so, where it is not installed.
    pub fn start(with_login: bool) -> Option<Real> {
        let file = tempfile::tempdir().unwrap();
        let auth = file.path().join("htpasswd");
        fs::write(&auth, HTPASSWD).unwrap();
        let auth = format!(
            "auth:\n  htpasswd:\n    realm: test\n    path: {}\n",
            auth.display()
        );
        let further = if with_login { auth.as_str() } else { "" };
        let mut real = Real::start_with("127.0.0.1", "", further)?;
        real.further = Some(file);
        Some(real)
    }

    /// Starts it on an address, with lines for its `http:` section and after it.
    pub fn start_with(ip: &str, http: &str, further: &str) -> Option<Real> {
        if Command::new("docker-registry")
            .arg("--version")
            .output()
            .is_err()
        {
            eprintln!(
                "left out: docker-registry is not installed (apt-get install docker-registry)"
            );
            return None;
        }
        // Another process may take the port in between: then there is another try.
        let real = (0..5).find_map(|_| Real::try_start(ip, http, further));
        Some(real.expect("docker-registry does not start"))
    }

    fn try_start(ip: &str, http: &str, further: &str) -> Option<Real> {
        let dir = tempfile::tempdir().unwrap();
        let listener = TcpListener::bind((ip, 0)).unwrap();
        let host = listener.local_addr().unwrap().to_string();
        drop(listener);
        let storage = dir.path().join("storage");
        let config = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\n\
             http:\n  addr: {host}\n{http}{further}",
            storage.display()
        );
        let path = dir.path().join("config.yml");
        fs::write(&path, config).unwrap();
        let mut child = Command::new("docker-registry")
            .arg("serve")
            .arg(&path)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let until = Instant::now() + Duration::from_secs(30);
        while Instant::now() < until {
            if child.try_wait().unwrap().is_some() {
                break;
            }
            if TcpStream::connect(&host).is_ok() {
                return Some(Real {
                    child,
                    dir,
                    host,
                    further: None,
                });
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = child.kill();
        let _ = child.wait();
        None
    }

    /// The file of one of its blobs.
    pub fn blob(&self, hex: &str) -> PathBuf {
        let blobs = "storage/docker/registry/v2/blobs/sha256";
        self.dir
            .path()
            .join(blobs)
            .join(&hex[..2])
            .join(hex)
            .join("data")
    }
}

impl Drop for Real {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A Docker config with a login for `host`, in a folder that goes with it.
pub fn docker_config(host: &str, login: &str) -> (TempDir, Credentials) {
    use base64::Engine;
    let dir = tempfile::tempdir().unwrap();
    let auth = base64::engine::general_purpose::STANDARD.encode(login);
    let config = format!(r#"{{"auths": {{"{host}": {{"auth": "{auth}"}}}}}}"#);
    let mut file = fs::File::create(dir.path().join("config.json")).unwrap();
    file.write_all(config.as_bytes()).unwrap();
    let credentials = Credentials::Folder(dir.path().to_path_buf());
    (dir, credentials)
}

/// This machine's address towards others, if it has one. No packet is sent for it.
pub fn outer_address() -> Option<std::net::IpAddr> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("203.0.113.1:9").ok()?;
    let address = socket.local_addr().ok()?.ip();
    (!address.is_loopback() && !address.is_unspecified()).then_some(address)
}
