//! The load: clients that send one prepared request over and over, each on a connection of its
//! own, and keep the time of each answer.
//!
//! Written on the bare socket. A general HTTP client would use as much CPU as what is measured.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// What a run of the load saw.
#[derive(Debug)]
pub struct Load {
    /// Answers in the measured time.
    pub answers: u64,
    /// The measured time.
    pub elapsed: Duration,
    /// Time to the end of each answer, ascending, in microseconds.
    latencies_us: Vec<u32>,
}

impl Load {
    /// Answers a second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.answers as f64 / self.elapsed.as_secs_f64()
    }

    /// The latency below which this share (0 to 1) of the answers came, in milliseconds.
    #[must_use]
    pub fn quantile_ms(&self, share: f64) -> f64 {
        let last = self.latencies_us.len().saturating_sub(1);
        let at = (share * last as f64).round() as usize;
        self.latencies_us
            .get(at)
            .map_or(0.0, |&us| f64::from(us) / 1000.0)
    }
}

/// A chat request of about `bytes` bytes of text, ready to be written.
#[must_use]
pub fn request(model: &str, text: &str, stream: bool) -> Vec<u8> {
    let body = serde_json::json!({
        "model": model,
        "stream": stream,
        "messages": [{ "role": "user", "content": text }],
    })
    .to_string();
    format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: bench\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// Sends `request` on `connections` connections for `time`, after a warm-up of a fifth of it.
/// `measure` is called at the measured time's begin and end.
///
/// # Errors
/// A connection failed, or an answer was not 200.
pub fn run(
    address: SocketAddr,
    request: &[u8],
    connections: usize,
    time: Duration,
    mut measure: impl FnMut() -> Result<()>,
) -> Result<Load> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let tasks = tokio::task::LocalSet::new();
    tasks.block_on(&runtime, async {
        let begin = Instant::now() + time / 5;
        let end = begin + time;
        let clients: Vec<_> = (0..connections)
            .map(|_| tokio::task::spawn_local(client(address, request.to_vec(), begin, end)))
            .collect();
        tokio::time::sleep_until(begin.into()).await;
        measure()?;
        tokio::time::sleep_until(end.into()).await;
        measure()?;
        let mut latencies_us = Vec::new();
        for client in clients {
            latencies_us.extend(client.await.context("a client stopped")??);
        }
        latencies_us.sort_unstable();
        Ok(Load {
            answers: latencies_us.len() as u64,
            elapsed: time,
            latencies_us,
        })
    })
}

/// One connection: the latencies of the answers that ended between `begin` and `end`.
async fn client(
    address: SocketAddr,
    request: Vec<u8>,
    begin: Instant,
    end: Instant,
) -> Result<Vec<u32>> {
    let mut stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let mut buffer = Vec::with_capacity(32 << 10);
    let mut latencies = Vec::with_capacity(1 << 14);
    loop {
        let start = Instant::now();
        if start >= end {
            return Ok(latencies);
        }
        stream.write_all(&request).await?;
        read_answer(&mut stream, &mut buffer).await?;
        let now = Instant::now();
        if now >= begin && now < end {
            latencies.push((now - start).as_micros().try_into().unwrap_or(u32::MAX));
        }
    }
}

/// Reads one whole answer. The next request is sent after it, so nothing follows in the buffer.
async fn read_answer(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Result<()> {
    buffer.clear();
    loop {
        if stream.read_buf(buffer).await? == 0 {
            bail!("the server closed the connection");
        }
        if is_whole(buffer) {
            break;
        }
    }
    if !buffer.starts_with(b"HTTP/1.1 200") {
        let text = String::from_utf8_lossy(buffer);
        bail!("an answer was not 200: {}", text.trim());
    }
    Ok(())
}

fn is_whole(buffer: &[u8]) -> bool {
    // The end of a chunked answer is looked at first: it needs no search.
    if buffer.ends_with(b"\r\n0\r\n\r\n") {
        return true;
    }
    let Some(head) = find(buffer, b"\r\n\r\n").map(|at| at + 4) else {
        return false;
    };
    match content_length(buffer.get(..head).unwrap_or_default()) {
        Some(length) => buffer.len() >= head + length,
        None => false,
    }
}

/// Where `needle` first occurs.
pub fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    let first = *needle.first()?;
    let mut from = 0;
    loop {
        let rest = haystack.get(from..)?;
        let at = from + rest.iter().position(|&byte| byte == first)?;
        if haystack.get(at..)?.starts_with(needle) {
            return Some(at);
        }
        from = at + 1;
    }
}

/// The value of `content-length` in a head.
pub fn content_length(head: &[u8]) -> Option<usize> {
    const NAME: &[u8] = b"\r\ncontent-length:";
    let at = head
        .windows(NAME.len())
        .position(|window| window.eq_ignore_ascii_case(NAME))?;
    let rest = head.get(at + NAME.len()..)?;
    let line = rest.split(|&byte| byte == b'\r').next()?;
    std::str::from_utf8(line).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_whole_by_length_or_by_its_last_chunk() {
        assert!(!is_whole(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\na"));
        assert!(is_whole(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab"));
        assert!(!is_whole(
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n"
        ));
        assert!(is_whole(
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n"
        ));
    }

    #[test]
    fn the_load_counts_each_answer_of_the_upstream_once() {
        let address = super::super::upstream::start().unwrap();
        for stream in [false, true] {
            let request = request("fixed", "hello", stream);
            let time = Duration::from_millis(100);
            let load = run(address, &request, 3, time, || Ok(())).unwrap();
            assert!(load.answers > 10, "{load:?}");
            assert!(load.quantile_ms(0.5) <= load.quantile_ms(0.99));
        }
    }
}
