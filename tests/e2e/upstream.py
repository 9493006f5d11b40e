"""A small server that speaks the OpenAI API: it records each request and says what it is told to,
in the pieces it is told to."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Upstream:
    def __init__(self):
        #: The bodies of all requests, as text.
        self.requests = []
        #: What the next answers stream or say, as a list of pieces.
        self.pieces = ["ok"]
        #: Seconds between the pieces of a stream.
        self.pause = 0.0
        #: Set when a client of ours went away in the middle of a stream.
        self.cancelled = threading.Event()
        #: Set when a stream has begun.
        self.begun = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def log_message(self, *_):
                pass

            def do_POST(self):
                text = self.rfile.read(int(self.headers.get("content-length", 0))).decode()
                outer.requests.append(text)
                if json.loads(text).get("stream"):
                    self.stream()
                else:
                    self.whole()

            def whole(self):
                message = {"role": "assistant", "content": "".join(outer.pieces)}
                choice = {"index": 0, "message": message, "finish_reason": "stop"}
                body = json.dumps({**HEAD, "object": "chat.completion", "choices": [choice], "usage": USAGE}).encode()
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def stream(self):
                self.send_response(200)
                self.send_header("content-type", "text/event-stream")
                self.send_header("transfer-encoding", "chunked")
                self.end_headers()
                try:
                    self.event(delta({"role": "assistant", "content": ""}))
                    for piece in outer.pieces:
                        self.event(delta({"content": piece}))
                        outer.begun.set()
                        time.sleep(outer.pause)
                    self.event(delta({}, "stop"))
                    self.event({**HEAD, "object": "chat.completion.chunk", "choices": [], "usage": USAGE})
                    self.chunk(b"data: [DONE]\n\n")
                    self.chunk(b"")
                except OSError:
                    outer.cancelled.set()
                    self.close_connection = True

            def event(self, value):
                self.chunk(b"data: " + json.dumps(value).encode() + b"\n\n")

            def chunk(self, data):
                self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
                self.wfile.flush()

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()


HEAD = {"id": "chatcmpl-1", "created": 1700000000, "model": "remote"}
USAGE = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}


def delta(content, finish=None):
    choice = {"index": 0, "delta": content, "finish_reason": finish}
    return {**HEAD, "object": "chat.completion.chunk", "choices": [choice]}
