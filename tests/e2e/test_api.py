"""What bad requests get, what traces say, how the server stops."""

import http.client
import json
import socket
import threading
import time

import pytest

from conftest import PATIENCE, through_pii

JSON = {"content-type": "application/json"}
GOOD = {"model": "remote", "messages": [{"role": "user", "content": "hello"}]}


def chat(server, body, headers=JSON):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return server.request("POST", "/v1/chat/completions", data, headers)


def error_of(body):
    """The error, in OpenAI's shape."""
    error = json.loads(body)["error"]
    assert set(error) >= {"message", "type", "param", "code"}, error
    assert error["message"] and error["type"]
    return error


@pytest.fixture
def server(millgate, upstream):
    return millgate(through_pii(upstream, more='max-body = "64KiB"'))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"model": "remote", "messages": [{"role": "user", "content": "\xff\xfe"}]}',
        {"messages": GOOD["messages"]},
        {"model": "remote"},
        {"model": 7, "messages": GOOD["messages"]},
        {"model": "remote", "messages": []},
        {"model": "remote", "messages": "hello"},
        {"model": "remote", "messages": [{"role": "user"}]},
        {"model": "remote", "messages": [{"role": 1, "content": "hello"}]},
        {**GOOD, "temperature": "hot"},
        {**GOOD, "temperature": -1},
        {**GOOD, "n": 0},
        {**GOOD, "max_tokens": -5},
        {**GOOD, "stream": "yes"},
        {**GOOD, "stop": 3},
        b'{"model": "remote", "messages": ' + b"[" * 20000 + b"}",
    ],
)
def test_a_malformed_request_is_400_in_openais_shape(server, upstream, body):
    status, _, answer = chat(server, body)
    assert status == 400, answer
    error_of(answer)
    assert upstream.requests == []
    # And the next one is served.
    assert chat(server, GOOD)[0] == 200


def test_a_body_over_the_limit_is_413(server, upstream):
    big = {**GOOD, "messages": [{"role": "user", "content": "x" * 70_000}]}
    status, _, answer = chat(server, big)
    assert status == 413
    error_of(answer)
    assert upstream.requests == []
    fits = {**GOOD, "messages": [{"role": "user", "content": "x" * 60_000}]}
    assert chat(server, fits)[0] == 200


def test_a_body_over_the_limit_that_does_not_say_how_long_it_is_is_413(server):
    def parts():
        for _ in range(20):
            yield b"x" * 8192

    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE)
    try:
        connection.request("POST", "/v1/chat/completions", body=parts(), headers=JSON, encode_chunked=True)
        response = connection.getresponse()
        assert response.status == 413
    except (BrokenPipeError, ConnectionResetError):
        pass  # The server may close before it has read what it will not take.
    finally:
        connection.close()
    assert chat(server, GOOD)[0] == 200


def test_other_paths_and_methods_are_errors_in_openais_shape(server):
    for method, path, expected in [("GET", "/v1/nothing", 404), ("GET", "/v1/chat/completions", 405), ("POST", "/healthz", 405)]:
        status, _, answer = server.request(method, path, b"" if method == "POST" else None)
        assert status == expected, path
        error_of(answer)


def test_health_and_metrics_answer(server):
    assert server.get("/healthz")[0] == 200
    assert server.get("/readyz")[0] == 200
    chat(server, GOOD)
    status, headers, body = server.get("/metrics")
    assert status == 200 and headers["content-type"].startswith("text/plain")
    assert b"millgate_requests_total" in body and b"millgate_stage_duration_seconds" in body


def test_a_trace_says_what_each_stage_was_given_its_verdict_and_its_time(server, upstream):
    text = "My mail is ada.lovelace@example.com, please."
    upstream.pieces = ["Noted: ", "bob@example.org", " it is."]
    status, headers, _ = chat(server, {**GOOD, "messages": [{"role": "user", "content": text}]})
    assert status == 200
    status, _, body = server.get("/api/v1/traces/" + headers["x-millgate-trace"])
    assert status == 200
    trace = json.loads(body)
    stages = {(stage["place"], stage["stage"]): stage for stage in trace["stages"]}
    assert set(stages) == {("input", "schema"), ("input", "pii"), ("output", "pii")}
    for stage in stages.values():
        assert stage["given"] == stage["passed"] > 0, stage
        assert stage["micros"] > 0 and stage["calls"] > 0, stage
    assert stages["input", "schema"]["verdict"] == "pass"
    assert stages["input", "pii"]["verdict"] == "edit"
    assert stages["input", "pii"]["passed"] == len(text)
    assert stages["output", "pii"]["verdict"] == "edit"
    assert stages["output", "pii"]["passed"] == len("Noted: bob@example.org it is.")
    assert len(stages["input", "pii"]["findings"]) == 1
    assert trace["finish"] == "stop" and trace["tokens"]["completion"] == 5
    assert trace["timings"]["total"] >= trace["timings"]["ttft"] > 0
    # Findings say where and why, never what.
    assert b"lovelace" not in body and b"bob@" not in body
    listed = json.loads(server.get("/api/v1/traces?limit=5")[2])
    assert trace["id"] in json.dumps(listed)


def test_a_streamed_request_leaves_the_same_record(server, upstream):
    upstream.pieces = list("Mail bob@example.org now")
    status, headers, body = chat(server, {**GOOD, "stream": True})
    assert status == 200 and body.rstrip().endswith(b"data: [DONE]")
    trace = json.loads(server.get("/api/v1/traces/" + headers["x-millgate-trace"])[2])
    output = [stage for stage in trace["stages"] if stage["place"] == "output"]
    assert trace["stream"] is True
    assert [(stage["passed"], stage["given"], stage["verdict"]) for stage in output] == [(24, 24, "edit")]


def test_an_unknown_trace_is_not_found(server):
    assert server.get("/api/v1/traces/nonsense")[0] == 400
    known = chat(server, GOOD)[1]["x-millgate-trace"]
    other = known[:-1] + ("0" if known[-1] != "0" else "1")
    status, _, body = server.get("/api/v1/traces/" + other)
    assert status == 404
    error_of(body)


def test_an_upstream_that_is_down_is_a_502(millgate, upstream):
    server = millgate(through_pii(upstream))
    upstream.close()
    status, _, body = chat(server, GOOD)
    assert status in (502, 503)
    error_of(body)


def in_flight(server):
    text = server.get("/metrics")[2].decode()
    line = next(line for line in text.splitlines() if line.startswith("millgate_http_requests_in_flight "))
    return float(line.split()[1])


def open_stream(server, body):
    """A raw stream after its first bytes."""
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=PATIENCE)
    data = json.dumps({**body, "stream": True}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
    connection.sendall(head.encode() + data)
    assert connection.recv(1)
    return connection


def wait_until(condition, what):
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.02)


def test_a_client_that_goes_away_stops_the_upstreams_stream(server, upstream):
    upstream.pieces, upstream.pause = ["word "] * 100_000, 0.01
    connection = open_stream(server, GOOD)
    assert upstream.begun.wait(PATIENCE)
    connection.close()
    assert upstream.cancelled.wait(PATIENCE), "the upstream still streams"
    # The one that asks counts itself.
    wait_until(lambda: in_flight(server) <= 1, "the request is still in flight")


def test_a_client_that_goes_away_stops_the_default_model(local):
    before = finished(local, "cancelled")
    body = {"model": "smollm2", "messages": [{"role": "user", "content": "Tell a very long story."}], "max_tokens": 1500}
    connection = open_stream(local, body)
    connection.close()
    wait_until(lambda: finished(local, "cancelled") > before, "the generation was not cancelled")
    wait_until(lambda: in_flight(local) <= 1, "the request is still in flight")


def finished(server, finish):
    text = server.get("/metrics")[2].decode()
    lines = [line for line in text.splitlines() if line.startswith("millgate_requests_total{") and f'"{finish}"' in line]
    return sum(float(line.split()[-1]) for line in lines)


def test_sigterm_lets_streams_end_and_takes_no_new_ones(server, upstream):
    upstream.pieces, upstream.pause = ["word "] * 40, 0.05
    result = {}

    def run():
        result["answer"] = chat(server, {**GOOD, "stream": True})

    client = threading.Thread(target=run)
    client.start()
    assert upstream.begun.wait(PATIENCE)
    code = server.stop()
    client.join()
    status, headers, body = result["answer"]
    assert status == 200 and body.count(b"word") == 40 and body.rstrip().endswith(b"data: [DONE]")
    assert code == 0
    with pytest.raises(OSError):
        server.get("/readyz")
    # What it acknowledged is there when it starts again.
    server.start()
    assert server.get("/api/v1/traces/" + headers["x-millgate-trace"])[0] == 200
