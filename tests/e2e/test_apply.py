"""Plan, apply and roll back a running server: the real binary under a fixed rate of requests, streams among
them, through ten applies."""

import json
import subprocess
import threading
import time

import pytest

from conftest import binary, through_pii

OPERATOR = {"content-type": "application/json"}
MESSAGES = [{"role": "user", "content": "write to ann@example.com"}]


def operate(server, operation, body=None):
    """Gives (status, body) of one of the operator's POSTs."""
    data = json.dumps(body or {}).encode()
    status, _, answer = server.request("POST", f"/api/v1/{operation}", data, OPERATOR)
    return status, json.loads(answer)


def generations(server):
    return json.loads(server.get("/api/v1/generations")[2])


def command(server, *arguments):
    """Another command of the binary, against the running server."""
    return subprocess.run([binary(), *arguments, "--server", server.url], capture_output=True, text=True, timeout=60)


def trace_of(server, answer):
    return json.loads(server.get(f"/api/v1/traces/{answer}")[2])


def stars(upstream):
    return through_pii(upstream).replace('action = "mask"', 'mask = "stars"')


class Load:
    """Requests at a fixed rate, every fourth one a stream, each on a thread of its own: a slow answer never
    slows the rate down."""

    def __init__(self, server, rate):
        self.server, self.rate = server, rate
        self.failures, self.done, self.threads = [], [], []
        self.stop = threading.Event()
        self.client = server.client()

    def run(self):
        begin, sent = time.monotonic(), 0
        while not self.stop.is_set():
            thread = threading.Thread(target=self.one, args=(sent % 4 == 0,))
            thread.start()
            self.threads.append(thread)
            sent += 1
            time.sleep(max(0.0, begin + sent / self.rate - time.monotonic()))

    def one(self, streams):
        try:
            chat = self.client.chat.completions.with_raw_response
            answer = chat.create(model="remote", messages=MESSAGES, stream=streams)
            trace = answer.headers["x-millgate-trace"]
            if streams:
                chunks = [chunk for chunk in answer.parse() if chunk.choices]
                text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
                end = chunks[-1].choices[0].finish_reason
            else:
                choice = answer.parse().choices[0]
                text, end = choice.message.content, choice.finish_reason
            self.done.append((trace, streams, text, end))
        except Exception as error:  # noqa: BLE001: any failure counts
            self.failures.append(error)

    def __enter__(self):
        self.thread = threading.Thread(target=self.run)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        self.thread.join()
        for thread in self.threads:
            thread.join()


def test_ten_applies_under_load_lose_nothing(millgate, upstream):
    server = millgate(through_pii(upstream))
    # The address is in several pieces, so that a stage holds text back over a swap.
    upstream.pieces = ["reach bob@", "example.com ", "or eve@exam", "ple.com"]
    upstream.pause = 0.05
    first = generations(server)["served"]
    served = [first]
    with Load(server, rate=25) as load:
        while len(load.done) < 5 and not load.failures:
            time.sleep(0.02)
        for turn in range(10):
            config = stars(upstream) if turn % 2 == 0 else through_pii(upstream)
            status, applied = operate(server, "apply", {"config": config, "by": "ann"})
            assert status == 200 and applied["changed"], applied
            assert applied["previous"] == served[-1]
            served.append(applied["generation"])
            # Some requests on each generation.
            seen = len(load.done)
            while len(load.done) < seen + 6 and not load.failures:
                time.sleep(0.02)
    assert not load.failures, load.failures[:3]
    assert served == list(range(first, first + 11))

    # Each trace names the generation that served it, and what left is what that generation makes of it.
    by_generation = {}
    for trace, streams, text, end in load.done:
        record = trace_of(server, trace)
        generation = record["generation"]
        by_generation.setdefault(generation, []).append(streams)
        assert record["finish"] == "stop" and end == "stop", record
        assert record["stream"] is streams
        masked = "[EMAIL]" if served.index(generation) % 2 == 0 else "****"
        assert text.count("example.com") == 0 and masked in text, (generation, text)
        # All of it by one of them: no answer is half of one and half of another.
        assert ("[EMAIL]" in text) != ("****" in text), text
    assert set(by_generation) == set(served)
    assert any(streams for kinds in by_generation.values() for streams in kinds)
    listed = generations(server)
    assert [it["number"] for it in listed["generations"]] == served[::-1]
    assert listed["generations"][0]["by"] == "operator:ann"


def test_a_plan_says_what_an_apply_then_does(millgate, upstream):
    server = millgate(through_pii(upstream))
    before = generations(server)
    status, plan = operate(server, "plan")
    assert status == 200 and not plan["changed"] and plan["changes"] == []
    new = stars(upstream).replace('input = ["schema", "pii"]', 'input = ["pii", "again"]')
    new = new.replace("[stages.schema]", "[stages.again]").replace('plugin = "schema"', 'plugin = "pii"')
    status, plan = operate(server, "plan", {"config": new})
    assert status == 200 and plan["changed"]
    kinds = {(change["kind"], change["subject"]) for change in plan["changes"]}
    assert {
        ("stage-added", "stages.again"),
        ("stage-removed", "stages.schema"),
        ("stage-config", "stages.pii.config.action"),
        ("pipeline-stage-added", "pipelines.default.input"),
        ("pipeline-stage-removed", "pipelines.default.input"),
    } <= kinds
    (cost,) = plan["costs"]
    assert cost["pipeline"] == "default" and cost["now_us"] > 0 and cost["then_us"] > 0
    # Looking changed nothing.
    assert generations(server) == before
    status, applied = operate(server, "apply", {"config": new})
    assert status == 200 and applied["changes"] == plan["changes"]
    # The same again is nothing new, and comments are no change.
    status, applied = operate(server, "apply", {"config": "# a comment\n" + new})
    assert status == 200 and not applied["changed"]
    status, applied = operate(server, "apply", {"config": new, "again": True})
    assert status == 200 and applied["changed"] and applied["changes"] == []


@pytest.mark.parametrize(
    "broken, code, word",
    [
        ("[models.remote\n", "invalid_config", "millgate.toml:1:"),
        ('[stages.x]\nplugin = "no-such-plugin"\n', "invalid_config", "no-such-plugin"),
        ('[models.m]\npath = "no-such-file.gguf"\n[pipelines.p]\nserves = ["m"]\narms = [{ name = "a", model = "m" }]\n',
         "config_refused", "no-such-file.gguf"),
    ],
)
def test_a_config_that_cannot_be_served_changes_nothing(millgate, upstream, broken, code, word):
    server = millgate(through_pii(upstream))
    before = generations(server)
    for operation in ["plan", "apply"]:
        status, answer = operate(server, operation, {"config": broken})
        assert status == 400 and answer["error"]["code"] == code, answer
        assert word in answer["error"]["message"]
    assert generations(server) == before
    server.client().chat.completions.create(model="remote", messages=MESSAGES)
    assert "[EMAIL]" in upstream.requests[-1]


def test_a_rollback_brings_back_the_config_and_the_very_plugin(millgate, upstream):
    server = millgate(through_pii(upstream))
    first = generations(server)["served"]
    source = json.loads(server.get(f"/api/v1/generations/{first}")[2])
    assert "[stages.pii]" in source["config"] and source["stages"]["pii"]["plugin"] == "pii"
    status, applied = operate(server, "apply", {"config": stars(upstream)})
    second = applied["generation"]
    out = command(server, "rollback", "--by", "bob")
    assert out.returncode == 0, out.stderr
    assert f"generation {second + 1} is served" in out.stdout
    assert "+ stages.pii.config.action" in out.stdout and "- stages.pii.config.mask" in out.stdout
    server.client().chat.completions.create(model="remote", messages=MESSAGES)
    assert "[EMAIL]" in upstream.requests[-1]
    record = generations(server)["generations"][0]
    assert (record["how"], record["of"], record["by"]) == ("rollback", first, "operator:bob")
    # By its number, forwards too.
    status, applied = operate(server, "rollback", {"generation": second})
    assert status == 200 and applied["generation"] == second + 2
    status, answer = operate(server, "rollback", {"generation": 999})
    assert status == 400 and "millgate generations" in answer["error"]["message"]
    server.stop()
    audit = server.cli("audit", "verify")
    assert audit.returncode == 0, audit.stdout + audit.stderr


def test_a_restart_serves_the_file_and_says_when_it_is_not_what_was_served_last(millgate, upstream):
    server = millgate(through_pii(upstream))
    first = generations(server)["served"]
    # Nothing changed: the generation goes on.
    assert server.stop() == 0
    server.start()
    assert generations(server)["served"] == first
    # An apply without --write is gone with a restart, and that is said.
    next_config = server.folder / "next.toml"
    next_config.write_text(stars(upstream))
    out = command(server, "apply", "--config", str(next_config))
    assert out.returncode == 0 and "a restart, or SIGHUP, serves the file" in out.stdout, out.stdout + out.stderr
    server.stop()
    server.start()
    assert generations(server)["served"] == first + 2
    assert "the config file is not what was served last" in server.log_text()
    assert f"millgate rollback {first + 1}" in server.log_text()
    # With --write it stays.
    out = command(server, "apply", "--config", str(next_config), "--write")
    assert out.returncode == 0 and "note" not in out.stdout, out.stdout + out.stderr
    assert server.config.read_text() == stars(upstream)
    server.stop()
    listed = server.cli("generations", "--server", "http://127.0.0.1:9")
    assert f"{first + 3} " in listed.stdout and "apply" in listed.stdout, listed.stdout + listed.stderr
    server.start()
    assert generations(server)["served"] == first + 3


def test_only_the_operator_changes_what_is_served(millgate, upstream, monkeypatch):
    monkeypatch.setenv("TEST_OPERATOR_KEY", "the-operator")
    server = millgate(through_pii(upstream, more='operator-key-env = "TEST_OPERATOR_KEY"'))
    for operation in ["plan", "apply", "rollback"]:
        assert operate(server, operation)[0] == 401
        status, _, _ = server.request("GET", f"/api/v1/{operation}")
        assert status == 405
    key = {**OPERATOR, "authorization": "Bearer the-operator"}
    assert server.request("POST", "/api/v1/plan", b"{}", key)[0] == 200
    out = command(server, "plan", "--key", "the-operator")
    assert out.returncode == 0 and "nothing would change" in out.stdout, out.stderr


def test_a_web_page_changes_nothing(millgate, upstream):
    server = millgate(through_pii(upstream))
    for headers in [
        {**OPERATOR, "origin": "http://evil.example"},
        {**OPERATOR, "host": "evil.example"},
    ]:
        status, _, body = server.request("POST", "/api/v1/apply", b"{}", headers)
        assert status == 403 and json.loads(body)["error"]["code"] == "operator_key_required"
    status, _, _ = server.request("POST", "/api/v1/apply", b"{}", {"content-type": "text/plain"})
    assert status == 415
