"""100 kills (SIGKILL) at random instants under load: no acknowledged trace is lost, the audit log
verifies."""

import http.client
import json
import random
import threading
import time

from conftest import through_pii

KILLS = 100
CLIENTS = 8


def test_kills_lose_no_acknowledged_trace(millgate, upstream):
    server = millgate(through_pii(upstream))
    source = random.Random(2)
    acknowledged = []
    for number in range(KILLS):
        if number:
            server.start()
        # What was acknowledged before the last kill is there.
        missing = [trace for trace in acknowledged[-400:] if server.get("/api/v1/traces/" + trace)[0] != 200]
        assert missing == [], f"lost by kill {number}"
        stop = threading.Event()
        results = [[] for _ in range(CLIENTS)]
        clients = [
            threading.Thread(target=load, args=(server.port, index, results[index], stop)) for index in range(CLIENTS)
        ]
        for client in clients:
            client.start()
        time.sleep(source.uniform(0.0, 0.4))
        server.kill()
        stop.set()
        for client in clients:
            client.join()
        acknowledged += [trace for result in results for trace in result]
    assert len(acknowledged) > 10 * KILLS, f"there was hardly any load: {len(acknowledged)}"

    server.start()
    missing = [trace for trace in acknowledged if server.get("/api/v1/traces/" + trace)[0] != 200]
    assert missing == []
    assert server.stop() == 0
    verified = server.cli("audit", "verify")
    assert verified.returncode == 0, verified.stdout + verified.stderr


def load(port, index, acknowledged, stop):
    """Plain and streamed requests on one connection, until the server dies. A trace counts when its
    answer came whole."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    number = 0
    while not stop.is_set():
        number += 1
        stream = (index + number) % 2 == 0
        messages = [{"role": "user", "content": f"I am ada{number}@example.com, client {index}."}]
        body = json.dumps({"model": "remote", "messages": messages, "stream": stream})
        try:
            connection.request("POST", "/v1/chat/completions", body, {"content-type": "application/json"})
            response = connection.getresponse()
            answer = response.read()
        except (OSError, http.client.HTTPException):
            break
        whole = answer.rstrip().endswith(b"data: [DONE]") if stream else answer.endswith(b"}")
        if response.status == 200 and whole:
            acknowledged.append(response.headers["x-millgate-trace"])
    connection.close()
