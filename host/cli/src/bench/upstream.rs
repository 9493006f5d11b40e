//! An upstream with one fixed answer, for load tests: as little work a request as a server can do,
//! so that what is measured is what stands before it.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Pieces of a streamed answer.
pub const CHUNKS: usize = 32;

const ANSWER: &str = "The quick brown fox jumps over the lazy dog. Pack my box with five dozen liquor jugs. How vexingly quick daft zebras jump at night. Sphinx of black quartz, judge my vow.";

/// Starts the upstream on a thread of its own and gives its address. It runs until the process
/// ends.
///
/// # Errors
/// No port or no thread is to be had.
pub fn start() -> Result<SocketAddr> {
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::Builder::new()
        .name("upstream".into())
        .spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_io()
                .build()?;
            runtime.block_on(async {
                let listener = TcpListener::bind("127.0.0.1:0").await?;
                let _ = sender.send(listener.local_addr()?);
                let answers = Answers::new();
                loop {
                    let (stream, _) = listener.accept().await?;
                    tokio::spawn(answer_all(stream, answers.clone()));
                }
                #[allow(unreachable_code, reason = "gives the block its type")]
                std::io::Result::Ok(())
            })
        })
        .context("cannot start the upstream's thread")?;
    receiver.recv().context("the upstream did not start")
}

/// The two answers, ready to be written.
#[derive(Clone)]
struct Answers {
    whole: std::sync::Arc<[u8]>,
    chunks: std::sync::Arc<[Vec<u8>]>,
}

impl Answers {
    fn new() -> Self {
        let body = format!(
            r#"{{"id":"chatcmpl-1","object":"chat.completion","created":1700000000,"model":"fixed","choices":[{{"index":0,"message":{{"role":"assistant","content":"{ANSWER}"}},"logprobs":null,"finish_reason":"stop"}}],"usage":{{"prompt_tokens":256,"completion_tokens":40,"total_tokens":296}}}}"#
        );
        let whole = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        let mut chunks = vec![
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
                .to_vec(),
        ];
        let words: Vec<&str> = ANSWER.split_inclusive(' ').cycle().take(CHUNKS).collect();
        for word in words {
            chunks.push(chunk(&event(&format!(r#"{{"content":"{word}"}}"#), "null")));
        }
        let mut last = chunk(&event("{}", r#""stop""#));
        last.extend(chunk("data: [DONE]\n\n"));
        last.extend(b"0\r\n\r\n");
        chunks.push(last);
        Self {
            whole: whole.into_bytes().into(),
            chunks: chunks.into(),
        }
    }
}

fn event(delta: &str, finish: &str) -> String {
    format!(
        "data: {{\"id\":\"chatcmpl-1\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,\"model\":\"fixed\",\"choices\":[{{\"index\":0,\"delta\":{delta},\"finish_reason\":{finish}}}]}}\n\n"
    )
}

fn chunk(data: &str) -> Vec<u8> {
    format!("{:x}\r\n{data}\r\n", data.len()).into_bytes()
}

/// Answers requests on one connection until it closes.
async fn answer_all(mut stream: TcpStream, answers: Answers) {
    let _ = stream.set_nodelay(true);
    let mut buffer = Vec::with_capacity(16 << 10);
    loop {
        let (head, body) = loop {
            if let Some(parts) = request_of(&buffer) {
                break parts;
            }
            match stream.read_buf(&mut buffer).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
        };
        let request = buffer.get(head..head + body).unwrap_or_default();
        let written = if wants_stream(request) {
            write_chunks(&mut stream, &answers.chunks).await
        } else {
            stream.write_all(&answers.whole).await
        };
        if written.is_err() {
            return;
        }
        buffer.drain(..head + body);
    }
}

/// Each chunk is a write of its own, as a model's tokens are.
async fn write_chunks(stream: &mut TcpStream, chunks: &[Vec<u8>]) -> std::io::Result<()> {
    for chunk in chunks {
        stream.write_all(chunk).await?;
        tokio::task::yield_now().await;
    }
    Ok(())
}

/// The lengths of the head and the body of the first request, once all of it is there.
fn request_of(buffer: &[u8]) -> Option<(usize, usize)> {
    let head = super::load::find(buffer, b"\r\n\r\n")? + 4;
    let body = super::load::content_length(buffer.get(..head)?).unwrap_or(0);
    (buffer.len() >= head + body).then_some((head, body))
}

fn wants_stream(body: &[u8]) -> bool {
    super::load::find(body, br#""stream":true"#).is_some()
}
