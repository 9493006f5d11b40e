//! A served platform with an upstream that does what a test tells it, and a small client.
#![allow(dead_code, reason = "each test file uses its own part of this")]

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use futures::channel::mpsc;
use futures::{SinkExt as _, StreamExt as _};
use http::{Method, Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use millgate_ops::{Config, Environment, Platform, PluginSource};
use millgate_server::{Drained, Handle, Server};
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// A sender of the pieces of one streamed answer; the stream ends when it is dropped, and sending
/// fails when the other side is gone.
pub type Pieces = mpsc::Sender<Bytes>;

/// What the upstream saw and what it says.
#[derive(Clone, Default)]
pub struct Upstream {
    /// The bodies that came, oldest first.
    pub bodies: Arc<Mutex<Vec<Value>>>,
    /// Streams that wait for a test to feed them.
    streams: Arc<Mutex<Vec<oneshot::Sender<Pieces>>>>,
    /// The text of a plain answer.
    pub says: Arc<Mutex<String>>,
}

impl Upstream {
    /// Starts it.
    pub async fn start() -> (Self, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let upstream = Self::default();
        *upstream.says.lock().unwrap() = "Hello there.".to_owned();
        let shared = upstream.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let shared = shared.clone();
                tokio::spawn(async move {
                    let service = service_fn(move |request| answer(shared.clone(), request));
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        (upstream, address)
    }

    /// The pieces of the next streamed answer; call it before the request is sent.
    pub fn next_stream(&self) -> oneshot::Receiver<Pieces> {
        let (sender, receiver) = oneshot::channel();
        self.streams.lock().unwrap().push(sender);
        receiver
    }
}

async fn answer(
    upstream: Upstream,
    request: Request<Incoming>,
) -> Result<Response<BoxBody<Bytes, Infallible>>, Infallible> {
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let body: Value = serde_json::from_slice(&body).unwrap();
    upstream.bodies.lock().unwrap().push(body.clone());
    if body["stream"] == true {
        let (sender, receiver) = mpsc::channel(0);
        let waiting = upstream.streams.lock().unwrap().remove(0);
        let _ = waiting.send(sender);
        let frames = receiver.map(|bytes| Ok(Frame::data(bytes)));
        let response = Response::builder()
            .header("content-type", "text/event-stream")
            .body(http_body_util::BodyExt::boxed(StreamBody::new(frames)));
        return Ok(response.unwrap());
    }
    let text = upstream.says.lock().unwrap().clone();
    let answer = serde_json::json!({
        "id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "fixed",
        "choices": [{ "index": 0, "message": { "role": "assistant", "content": text }, "finish_reason": "stop" }],
        "usage": { "prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12 },
    });
    let body = Full::new(Bytes::from(answer.to_string())).boxed();
    let response = Response::builder().header("content-type", "application/json");
    Ok(response.body(body).unwrap())
}

/// One event of an upstream's stream.
pub fn event(text: &str) -> Bytes {
    let event = serde_json::json!({
        "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "fixed",
        "choices": [{ "index": 0, "delta": { "content": text }, "finish_reason": null }],
    });
    format!("data: {event}\n\n").into()
}

/// The end of an upstream's stream.
pub fn last_event() -> Bytes {
    let event = serde_json::json!({
        "id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "fixed",
        "choices": [{ "index": 0, "delta": {}, "finish_reason": "stop" }],
    });
    format!("data: {event}\n\ndata: [DONE]\n\n").into()
}

/// Sends a piece, failing the test when the other side is gone.
pub async fn send(pieces: &mut Pieces, bytes: Bytes) {
    pieces.send(bytes).await.unwrap();
}

/// A served platform. Stop it with [`Served::stop`].
pub struct Served {
    pub address: SocketAddr,
    pub platform: Platform,
    pub upstream: Upstream,
    stop: Option<oneshot::Sender<()>>,
    task: Option<JoinHandle<Drained>>,
    _data: tempfile::TempDir,
}

/// The config of the tests: one pipeline with `pii` on both ways.
pub fn config(upstream: SocketAddr, more: &str) -> Config {
    let text = format!(
        r#"
{more}
[models.fixed]
upstream = {{ url = "http://{upstream}/v1" }}
[stages.pii]
plugin = "pii"
config = {{ action = "mask" }}
[pipelines.default]
serves = ["fixed"]
input = ["pii"]
output = ["pii"]
arms = [{{ name = "stable", model = "fixed" }}]
"#
    );
    match millgate_ops::config::check(&text, "test.toml".as_ref()) {
        Ok(config) => config,
        Err(problems) => panic!("{problems:?}"),
    }
}

/// What the platform needs beside the config.
pub fn environment(data: &std::path::Path) -> Environment {
    let plugins = millgate_plugins::all()
        .iter()
        .map(|plugin| (plugin.name, plugin.wasm));
    Environment {
        data: data.to_owned(),
        plugins: PluginSource::new(plugins, ""),
        models: Arc::new(|name: &str| Err(format!("no {name} in tests"))),
    }
}

impl Served {
    /// With more lines at the top of the config, and so much time to drain.
    pub async fn start(more: &str, drain: Duration) -> Self {
        let (upstream, address) = Upstream::start().await;
        let data = tempfile::tempdir().unwrap();
        let config = config(address, more);
        let environment = environment(data.path());
        let platform = tokio::task::spawn_blocking(move || Platform::start(config, environment))
            .await
            .unwrap()
            .unwrap();
        let (address, handle, stop, task) = serve(drain).await;
        handle.attach(platform.clone());
        Self {
            address,
            platform,
            upstream,
            stop: Some(stop),
            task: Some(task),
            _data: data,
        }
    }

    /// Tells it to stop; the handle resolves when it has.
    pub fn stop(&mut self) -> JoinHandle<Drained> {
        let _ = self.stop.take().unwrap().send(());
        self.task.take().unwrap()
    }

    /// A client on a connection of its own.
    pub async fn client(&self) -> Client {
        Client::connect(self.address).await
    }
}

/// A server without a platform.
pub async fn serve(
    drain: Duration,
) -> (SocketAddr, Handle, oneshot::Sender<()>, JoinHandle<Drained>) {
    let server = Server::bind(([127, 0, 0, 1], 0).into()).await.unwrap();
    let address = server.local_addr().unwrap();
    let handle = server.handle();
    let (stop, stopped) = oneshot::channel::<()>();
    let stopped = async move {
        let _ = stopped.await;
    };
    let task = tokio::spawn(server.run(stopped, move || drain));
    (address, handle, stop, task)
}

/// One connection.
pub struct Client {
    sender: hyper::client::conn::http1::SendRequest<Full<Bytes>>,
    connection: JoinHandle<()>,
}

impl Client {
    /// Connects.
    pub async fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .unwrap();
        let connection = tokio::spawn(async move {
            let _ = connection.await;
        });
        Self { sender, connection }
    }

    /// Goes away without a word.
    pub fn vanish(self) {
        self.connection.abort();
    }

    /// Sends a request and gives the head of the answer.
    pub async fn send(&mut self, request: Request<Full<Bytes>>) -> Response<Incoming> {
        self.sender.ready().await.unwrap();
        self.sender.send_request(request).await.unwrap()
    }

    /// Sends a request and reads the whole answer as JSON.
    pub async fn json(&mut self, request: Request<Full<Bytes>>) -> (Response<()>, Value) {
        let (head, body) = self.send(request).await.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let value = serde_json::from_slice(&body).unwrap_or(Value::Null);
        (Response::from_parts(head, ()), value)
    }
}

/// A request without a body.
pub fn plain(method: Method, path: &str) -> Request<Full<Bytes>> {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "test");
    request.body(Full::default()).unwrap()
}

/// A POST of a body.
pub fn post(path: &str, media_type: &str, body: impl Into<Bytes>) -> Request<Full<Bytes>> {
    Request::builder()
        .method(Method::POST)
        .uri(path)
        .header("host", "test")
        .header("content-type", media_type)
        .body(Full::new(body.into()))
        .unwrap()
}

/// A chat request.
pub fn chat(text: &str, stream: bool) -> Request<Full<Bytes>> {
    let body = serde_json::json!({
        "model": "fixed", "stream": stream, "messages": [{ "role": "user", "content": text }],
    });
    post("/v1/chat/completions", "application/json", body.to_string())
}

/// The next frame of a streamed answer as text; `None` at its end.
pub async fn next_text(body: &mut Incoming) -> Option<String> {
    loop {
        let frame = body.frame().await?.ok()?;
        if let Ok(data) = frame.into_data() {
            return Some(String::from_utf8(data.to_vec()).unwrap());
        }
    }
}

/// The text that a stream of server-sent events carries.
pub fn text_of(stream: &str) -> String {
    stream
        .lines()
        .filter_map(|line| line.strip_prefix("data: "))
        .filter_map(|data| serde_json::from_str::<Value>(data).ok())
        .filter_map(|event| Some(event["choices"][0]["delta"]["content"].as_str()?.to_owned()))
        .collect()
}
