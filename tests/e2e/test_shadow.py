"""Stages in the shadow and as a canary: the real binary, real plugins, an upstream that says what it is told to."""

import json
import re
import time

from conftest import PATIENCE

OPERATOR = {"content-type": "application/json"}
CLEAN = "the weather is fine"
PERSONAL = "write to ann@example.com"


def config(upstream, mode, canary="", place="input", action="block"):
    """`guard` would block what `mask`, which stands behind it, only masks."""
    at = {"input": 'input = ["guard", "mask"]\noutput = []', "output": 'input = []\noutput = ["mask", "guard"]'}[place]
    return f"""
[models.remote]
upstream = {{ url = "{upstream.url}/v1" }}
[stages.mask]
plugin = "pii"
[stages.guard]
plugin = "pii"
config = {{ action = "{action}" }}
mode = "{mode}"
{canary}
[pipelines.default]
serves = ["remote"]
{at}
arms = [{{ name = "stable", model = "remote" }}]
"""


def ask(server, text=CLEAN, user=None, stream=False):
    """Gives (status, the answer's body, the trace's id)."""
    body = {"model": "remote", "messages": [{"role": "user", "content": text}], "stream": stream}
    if user is not None:
        body["user"] = user
    status, headers, answer = server.request("POST", "/v1/chat/completions", json.dumps(body).encode(), OPERATOR)
    return status, answer, headers["x-millgate-trace"]


def record(server, trace, stage="guard"):
    """What the trace says of a stage, once it has said it."""
    end = time.monotonic() + PATIENCE
    while True:
        found = json.loads(server.get(f"/api/v1/traces/{trace}")[2])
        (stage_record,) = [it for it in found["stages"] if it["stage"] == stage]
        if stage_record.get("compared") or stage_record.get("enforced", True):
            return stage_record
        assert time.monotonic() < end, found
        time.sleep(0.02)


def stage(server, name="guard"):
    (found,) = [it for it in json.loads(server.get("/api/v1/stages")[2]) if it["stage"] == name]
    return found


def metric(server, name, **labels):
    text = server.get("/metrics")[2].decode()
    for line in text.splitlines():
        if line.startswith(name + "{") and all(f'{key}="{value}"' in line for key, value in labels.items()):
            return float(re.search(r" ([0-9.e+-]+)$", line)[1])
    return None


def apply(server, text, **more):
    body = json.dumps({"config": text, **more}).encode()
    status, _, answer = server.request("POST", "/api/v1/apply", body, OPERATOR)
    assert status == 200, answer
    return json.loads(answer)


def test_a_stage_in_the_shadow_is_recorded_and_compared_and_changes_nothing(millgate, upstream):
    server = millgate(config(upstream, "shadow"))
    status, _, trace = ask(server, PERSONAL)
    assert status == 200
    # What the stage behind it made of the request is what the model got.
    assert "[EMAIL]" in upstream.requests[-1] and "ann@example.com" not in upstream.requests[-1]
    found = record(server, trace)
    assert (found["mode"], found["enforced"], found["verdict"]) == ("shadow", False, "block")
    assert found["compared"] == "would-block" and found["findings"]
    # It saw the request as it stood at its place, before the masking.
    assert found["given"] <= found["passed"] == len(PERSONAL)
    assert record(server, ask(server)[2])["compared"] == "agree"
    assert metric(server, "millgate_shadow_requests_total", stage="guard", result="would-block") == 1
    assert metric(server, "millgate_shadow_requests_total", stage="guard", result="agree") == 1
    assert metric(server, "millgate_stage_verdicts_total", stage="guard", verdict="block") == 0
    shadow = stage(server)["shadow"]
    assert (shadow["agreement"], shadow["would-block"], shadow["would-pass"]) == (0.5, 1, 0)
    out = server.cli("traces", "show", trace, "--server", server.url)
    assert "input (shadow: would-block)" in out.stdout, out.stdout + out.stderr


def test_a_stage_in_the_shadow_sees_a_stream_as_the_stages_before_it_let_it_out(millgate, upstream):
    server = millgate(config(upstream, "shadow", place="output"))
    upstream.pieces = ["mail bob@", "example.com", " now"]
    bare = millgate(config(upstream, "shadow", place="output").replace('"mask", "guard"', '"mask"'))
    answers = [ask(it, stream=True)[1] for it in (server, bare)]
    # To the byte what leaves without it.
    assert answers[0] == answers[1] and b"[EMAIL]" in answers[0]
    found = record(server, ask(server, stream=True)[2])
    # The address was masked before it.
    assert (found["verdict"], found["compared"], found["place"]) == ("pass", "agree", "output")
    assert found["given"] == found["passed"] == len("mail [EMAIL] now")


def test_only_a_shadow_lets_an_answer_through_as_it_came(millgate, upstream):
    only = config(upstream, "shadow", place="output").replace('"mask", "guard"', '"guard"')
    server = millgate(only)
    upstream.pieces = ["mail bob@", "example.com"]
    bare = millgate(only.replace('output = ["guard"]', "output = []"))
    for stream in (False, True):
        assert ask(server, stream=stream)[1] == ask(bare, stream=stream)[1]
    found = record(server, ask(server, stream=True)[2])
    assert (found["verdict"], found["compared"]) == ("block", "would-block")


def test_what_was_refused_before_it_is_compared_too(millgate, upstream):
    text = config(upstream, "shadow", action="mask")
    text = text.replace('[stages.mask]\nplugin = "pii"', '[stages.mask]\nplugin = "pii"\nconfig = { action = "block" }')
    server = millgate(text)
    status, _, trace = ask(server, PERSONAL)
    assert status == 400
    found = record(server, trace)
    assert (found["verdict"], found["compared"]) == ("edit", "would-pass")


def test_a_canary_enforces_for_its_share_and_falls_when_more_is_refused(millgate, upstream):
    canary = "canary = { share = 0.5, min-requests = 20 }"
    server = millgate(config(upstream, "canary", canary))
    # A user is always on the same side.
    sides = {}
    for turn in range(3):
        for user in range(12):
            status, _, trace = ask(server, CLEAN, user=f"u{user}")
            assert status == 200
            sides.setdefault(user, set()).add(record(server, trace).get("enforced", True))
    assert all(len(seen) == 1 for seen in sides.values())
    assert set.union(*sides.values()) == {True, False}
    assert stage(server)["canary"]["answer"] == "INCONCLUSIVE"

    # It blocks what only ought to be masked: it falls by itself.
    refused = 0
    for turn in range(400):
        refused += ask(server, PERSONAL, user=f"v{turn}")[0] == 400
        if stage(server)["canary"]["phase"] == "fallen":
            break
    status = stage(server)["canary"]
    assert (status["phase"], status["answer"], status["share"]) == ("fallen", "FAIL", 0)
    assert refused > 0 and "more is refused" in status["reason"]
    for turn in range(10):
        assert ask(server, PERSONAL, user=f"v{turn}")[0] == 200
    assert metric(server, "millgate_canary_fallen", stage="guard") == 1
    assert metric(server, "millgate_canary_share", stage="guard") == 0
    end = time.monotonic() + PATIENCE
    while "a canary stage fell back to the shadow" not in server.log_text():
        assert time.monotonic() < end
        time.sleep(0.02)

    # A restart does not forget it, nor does an unrelated change.
    assert server.stop() == 0
    server.start()
    assert stage(server)["canary"]["phase"] == "fallen"
    more = config(upstream, "canary", canary) + "\n[traces]\nmax-count = 5000\n"
    applied = apply(server, more)
    assert applied["changed"] and any("guard" in note for note in applied["notes"])
    assert stage(server)["canary"]["phase"] == "fallen"
    # To begin anew is the operator's decision.
    applied = apply(server, more, again=True)
    assert applied["changed"] and stage(server)["canary"]["phase"] == "running"
    # Another canary is judged by what it does itself.
    apply(server, more.replace("share = 0.5", "share = 0.25"))
    status = stage(server)["canary"]
    assert (status["phase"], status["share"], status["answer"]) == ("running", 0.25, "NO_DATA")
    server.stop()
    audit = server.cli("audit", "verify")
    assert audit.returncode == 0, audit.stdout + audit.stderr


def test_a_canary_that_fails_falls_and_until_then_its_policy_counts(millgate, upstream):
    # A short text has room in its memory, and a long one has not.
    canary = """canary = { share = 0.5, min-requests = 10, latency = 100.0 }
on-failure = "closed"
limits = { memory = "2MiB" }"""
    roomy = '[stages.mask]\nlimits = { memory = "64MiB", deadline = "10s" }'
    server = millgate(config(upstream, "canary", canary).replace("[stages.mask]", roomy))
    long = CLEAN * 100_000
    failed = 0
    for turn in range(200):
        status, answer, _ = ask(server, long, user=f"u{turn}")
        assert status in (200, 503), answer
        failed += status == 503
        if stage(server)["canary"]["phase"] == "fallen":
            break
    assert failed >= 10
    status = stage(server)["canary"]
    assert status["phase"] == "fallen" and "it fails on more requests than 0.01" in status["reason"]
    for turn in range(5):
        assert ask(server, long, user=f"u{turn}")[0] == 200


def test_a_canary_needs_a_share_that_leaves_something_to_compare_with(millgate, upstream):
    server = millgate(config(upstream, "shadow"))
    for canary, word in [("", "canary without a share"), ("canary = { share = 1.0 }", "leaves nothing to compare with")]:
        body = json.dumps({"config": config(upstream, "canary", canary)}).encode()
        status, _, answer = server.request("POST", "/api/v1/plan", body, OPERATOR)
        assert status == 400 and word in json.loads(answer)["error"]["message"], answer
