"""SIGHUP while traffic flows: a good config is swapped in without a failed request, a bad one changes nothing."""

import signal
import threading
import time

import pytest

from conftest import PATIENCE, through_pii

MESSAGES = [{"role": "user", "content": "write to ann@example.com"}]


def ask(server):
    return server.client().chat.completions.create(model="remote", messages=MESSAGES)


def wait_for(what, condition):
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"{what} did not happen in {PATIENCE} s"
        time.sleep(0.02)


def hang_up(server, config):
    server.config.write_text(config)
    server.process.send_signal(signal.SIGHUP)


def test_a_new_config_is_served_without_a_failed_request(millgate, upstream):
    server = millgate(through_pii(upstream))
    stop, failures, answers = threading.Event(), [], []

    def load():
        client = server.client()
        while not stop.is_set():
            try:
                client.chat.completions.create(model="remote", messages=MESSAGES)
                answers.append(1)
            except Exception as error:  # noqa: BLE001: any failure counts
                failures.append(error)

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        wait_for("traffic", lambda: len(answers) > 20)
        assert "[EMAIL]" in upstream.requests[-1]
        stars = through_pii(upstream).replace('action = "mask"', 'mask = "stars"')
        for turn in range(6):
            new, sign = (stars, "********") if turn % 2 == 0 else (through_pii(upstream), "[EMAIL]")
            hang_up(server, new)
            wait_for("the reload", lambda: sign in upstream.requests[-1])
            # The counters are readable at any time.
            status, _, metrics = server.get("/metrics")
            assert status == 200 and b"millgate_" in metrics
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not failures, failures[:3]
    assert all("ann@example.com" not in request for request in upstream.requests)


def test_a_stream_ends_on_the_config_it_began_with(millgate, upstream):
    server = millgate(through_pii(upstream))
    upstream.pieces = ["mail bob@", "example.com now "] + ["and on "] * 30 + ["to eve@example.com now"]
    upstream.pause = 0.05
    text = []
    stream = server.client().chat.completions.create(model="remote", messages=MESSAGES, stream=True)
    for chunk in stream:
        text.append(chunk.choices[0].delta.content or "" if chunk.choices else "")
        if len("".join(text)) > 20 and not upstream.requests[-1].startswith("*"):
            hang_up(server, through_pii(upstream).replace('action = "mask"', 'mask = "stars"'))
            upstream.requests.append("*")
    whole = "".join(text)
    assert whole.count("[EMAIL]") == 2 and "example.com" not in whole, whole
    upstream.pause = 0.0
    wait_for("the reload", lambda: "********" in ask(server).choices[0].message.content)


@pytest.mark.parametrize(
    "broken, word",
    [
        ("[models.remote\n", "millgate.toml:1:"),
        ('[stages.x]\nplugin = "no-such-plugin"\n', "no-such-plugin"),
        ('[pipelines.default]\nserves = ["remote"]\narms = [{ name = "a", model = "nowhere" }]\n', "nowhere"),
    ],
)
def test_a_broken_config_changes_nothing(millgate, upstream, broken, word):
    server = millgate(through_pii(upstream))
    hang_up(server, broken)
    wait_for("a word in the log", lambda: "the last good config stays" in server.log_text())
    assert word in server.log_text()
    ask(server)
    assert "[EMAIL]" in upstream.requests[-1]
    # And a good one is still taken after it.
    hang_up(server, through_pii(upstream).replace('action = "mask"', 'mask = "stars"'))
    wait_for("the reload", lambda: ask(server) and "********" in upstream.requests[-1])
