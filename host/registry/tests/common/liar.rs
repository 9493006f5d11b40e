//! A registry that answers whatever a test wants, on a port of its own.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// An answer to one path.
#[derive(Clone)]
pub enum Say {
    /// A whole answer: status line, further headers, body.
    Whole(&'static str, String, Vec<u8>),
    /// A body that is announced with this length, and ends after what is given.
    Short(u64, Vec<u8>),
    /// A body without an end.
    Endless,
    /// Nothing at all, for ever.
    Silence,
    /// This, to those who say who they are; to others the question.
    Guarded(Box<Say>),
}

impl Say {
    pub fn ok(body: impl Into<Vec<u8>>) -> Say {
        Say::Whole("200 OK", String::new(), body.into())
    }

    pub fn status(status: &'static str, body: &str) -> Say {
        Say::Whole(status, String::new(), body.into())
    }

    pub fn redirect(to: &str) -> Say {
        Say::Whole(
            "307 Temporary Redirect",
            format!("Location: {to}\r\n"),
            Vec::new(),
        )
    }
}

/// What is answered, by path; all others are not found.
type Answers = Arc<Mutex<HashMap<String, Say>>>;

pub struct Liar {
    pub host: String,
    answers: Answers,
    /// The request lines and authorizations that were seen.
    pub seen: Arc<Mutex<Vec<String>>>,
}

impl Liar {
    pub fn start() -> Liar {
        Liar::start_at([127, 0, 0, 1].into())
    }

    /// On another address of this machine.
    pub fn start_at(ip: IpAddr) -> Liar {
        let listener = TcpListener::bind((ip, 0)).unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let answers = Answers::default();
        let seen = Arc::default();
        let liar = Liar {
            host,
            answers: Arc::clone(&answers),
            seen: Arc::clone(&seen),
        };
        // The thread goes with the process: a test binary is a short one.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (answers, seen) = (Arc::clone(&answers), Arc::clone(&seen));
                std::thread::spawn(move || serve(stream, &answers, &seen));
            }
        });
        liar
    }

    pub fn say(&self, path: &str, say: Say) {
        self.answers.lock().unwrap().insert(path.to_owned(), say);
    }
}

fn serve(mut stream: TcpStream, answers: &Answers, seen: &Mutex<Vec<String>>) -> Option<()> {
    let mut lines = BufReader::new(stream.try_clone().ok()?).lines();
    let request = lines.next()?.ok()?;
    let mut authorization = String::new();
    for line in lines {
        let line = line.ok()?;
        if line.is_empty() {
            break;
        }
        if line.to_ascii_lowercase().starts_with("authorization:") {
            authorization = line;
        }
    }
    seen.lock()
        .unwrap()
        .push(format!("{request} {authorization}"));
    let path = request.split(' ').nth(1)?;
    let path = path.split('?').next()?.to_owned();
    let say = answers.lock().unwrap().get(&path).cloned();
    let say = say.unwrap_or_else(|| Say::status("404 Not Found", ""));
    let say = match say {
        Say::Guarded(_) if authorization.is_empty() => Say::Whole(
            "401 Unauthorized",
            "WWW-Authenticate: Basic realm=\"r\"\r\n".into(),
            Vec::new(),
        ),
        Say::Guarded(say) => *say,
        other => other,
    };
    match say {
        Say::Guarded(_) => {}
        Say::Whole(status, headers, body) => {
            let length = body.len();
            let head = format!(
                "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n{headers}\r\n"
            );
            stream.write_all(head.as_bytes()).ok()?;
            stream.write_all(&body).ok()?;
        }
        Say::Short(length, body) => {
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n");
            stream.write_all(head.as_bytes()).ok()?;
            stream.write_all(&body).ok()?;
        }
        Say::Endless => {
            stream
                .write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
                .ok()?;
            // Ends when the client has had enough.
            while stream.write_all(&[b' '; 16384]).is_ok() {}
        }
        Say::Silence => std::thread::sleep(std::time::Duration::from_secs(600)),
    }
    Some(())
}
