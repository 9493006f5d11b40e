"""Requests whose inputs are kept are replayed bit for bit, in the server and in another process, and backtested
against other configs."""

import json
import random
import re
import time

from conftest import PATIENCE, through_pii

KEEP = '\n[traces]\ninputs = "on"\n'
CARD = "my card is 4111 1111 1111 1111, thanks"
MAIL = "write to jane.roe@example.com soon"
JSON = {"content-type": "application/json"}


def ask(server, text, stream=False, **more):
    body = {"model": "remote", "messages": [{"role": "user", "content": text}], "stream": stream, **more}
    status, headers, answer = server.request("POST", "/v1/chat/completions", json.dumps(body).encode(), JSON)
    return headers["x-millgate-trace"], status, answer


def replay(server, *arguments):
    done = server.cli("replay", *arguments, "--json", "--server", server.url)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def kept(server, count):
    """Waits until so many requests are kept: that is done after the answer."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        found = re.search(rb"^millgate_inputs_kept_total(?:\{\})? (\d+)", server.get("/metrics")[2], re.M)
        if found and int(found[1]) >= count:
            return
        time.sleep(0.02)
    raise AssertionError(f"{count} inputs were not kept: {server.log_text()}")


def traffic(server, upstream, count, seed=1):
    """Requests and answers with and without personal data, whole and streamed. Gives the traces."""
    rng = random.Random(seed)
    ids = []
    for number in range(count):
        words = [f"request {number}", "tell me of the weather"]
        words += rng.sample([CARD, MAIL, "ünïcödé 🙂", "call +41 44 668 18 00", ""], 2)
        upstream.pieces = ["It is ", "jane.", "roe@exam", "ple.com", " and fine.", " 4111 1111 1111", " 1111"]
        upstream.pieces = upstream.pieces[: rng.randrange(1, 8)]
        ids.append(ask(server, " ".join(words), stream=number % 2 == 1)[0])
    kept(server, count)
    return ids


def test_replays_are_bit_identical_in_the_server_and_in_another_process_in_any_order(millgate, upstream):
    server = millgate(through_pii(upstream) + KEEP)
    ids = traffic(server, upstream, 30)
    code, found = replay(server, ids[0])
    assert code == 0, found
    report = found["replays"][0]
    assert report["outcome"] == "identical" and report["digest_then"] == report["digest_now"]
    assert [(stage["stage"], stage["place"]) for stage in report["stages"]] == [
        ("schema", "input"), ("pii", "input"), ("pii", "output")]
    trace = json.loads(server.get(f"/api/v1/traces/{ids[0]}")[2])
    assert trace["inputs"] is True
    assert [stage["verdict"] for stage in trace["stages"]] == [stage["verdict"] for stage in report["stages"]]
    code, served = replay(server, "--all", "--order", "random")
    assert (code, served["identical"], served["differ"], served["impossible"]) == (0, 30, 0, 0), served
    # Another process, on the data folder alone: the config is another one by now, and the order too.
    server.stop()
    server.config.unlink()
    code, alone = replay(server, "--all", "--order", "oldest")
    assert (code, alone["identical"]) == (0, 30), alone
    digests = {report["trace"]: report["digest_then"] for report in served["replays"]}
    assert {report["trace"]: report["digest_now"] for report in alone["replays"]} == digests
    assert [report["trace"] for report in alone["replays"]] == sorted(ids)
    # No text lies in the data folder as it is.
    for path in server.data.rglob("*"):
        if path.is_file() and "compiled" not in path.parts:
            content = path.read_bytes()
            assert b"4111 1111" not in content and b"jane.roe" not in content, path


def test_a_trace_keeps_its_plugin_and_config_when_both_have_changed(millgate, upstream):
    server = millgate(through_pii(upstream, action="mask") + KEEP)
    trace, _, answer = ask(server, CARD)
    kept(server, 1)
    assert b"4111" not in upstream.requests[-1].encode()
    server.stop()
    server.config.write_text(through_pii(upstream, action="block") + KEEP)
    server.start()
    code, found = replay(server, trace)
    report = found["replays"][0]
    assert code == 0 and report["stages"][1]["verdict"] == "edit", found
    blocked = ask(server, CARD)[0]
    kept(server, 1)
    code, found = replay(server, trace, blocked)
    assert code == 0, found
    assert [one["stages"][1]["verdict"] for one in found["replays"]] == ["edit", "block"]
    assert found["replays"][0]["config"] != found["replays"][1]["config"]


def test_what_cannot_be_replayed_says_why(millgate, upstream):
    server = millgate(through_pii(upstream) + KEEP)
    keep, lose = ask(server, CARD)[0], ask(server, MAIL, user="ann")[0]
    kept(server, 2)
    # Erased: one end user's, and nobody else's.
    done = server.cli("traces", "erase-inputs", "--tenant", "default", "--user", "ann", "--server", server.url)
    assert done.returncode == 0 and "erased" in done.stdout, done.stderr
    code, found = replay(server, lose)
    assert code == 2 and "erased" in found["replays"][0]["why"], found
    assert replay(server, keep)[0] == 0
    server.stop()
    # The plugin is gone from the store: a first-party one is found in the binary, another is not.
    blobs = [path for path in (server.data / "blobs").rglob("*") if path.is_file()]
    assert blobs
    for path in blobs:
        path.unlink()
    assert replay(server, keep)[0] == 0
    # Another root key opens nothing.
    key = server.data / "seal.key"
    assert key.stat().st_mode & 0o077 == 0
    right = key.read_text()
    key.write_text(right[:-3] + ("00" if right[-3:-1] != "00" else "11") + "\n")
    code, found = replay(server, keep)
    assert code == 2 and "seal.key" in found["replays"][0]["why"], found
    key.write_text(right)
    assert replay(server, keep)[0] == 0
    # Not kept at all.
    server.config.write_text(through_pii(upstream))
    server.start()
    without = ask(server, CARD)[0]
    code, found = replay(server, without)
    assert code == 2 and "traces.inputs" in found["replays"][0]["why"], found
    status, _, answer = server.request("POST", "/api/v1/traces/" + "0" * 32 + "/replay", b"", JSON)
    assert status == 404, answer
    assert server.request("GET", f"/api/v1/traces/{keep}/replay")[0] == 405
    assert server.request("DELETE", "/api/v1/inputs")[0] == 400


def test_what_runs_in_the_shadow_is_no_part_of_what_is_replayed(millgate, upstream):
    enforced = through_pii(upstream, action="block") + KEEP
    shadowed = enforced.replace("[stages.pii]\n", '[stages.pii]\nmode = "shadow"\n')
    assert shadowed != enforced
    server = millgate(shadowed)
    trace, status, _ = ask(server, CARD)
    assert status == 200 and b"4111" in upstream.requests[-1].encode()
    kept(server, 1)
    code, found = replay(server, trace)
    assert code == 0 and found["replays"][0]["outcome"] == "identical", found
    # Enforced, it would have stopped that request; in the shadow it changes nothing.
    assert backtest(server, enforced)["ends"] == [{"then": "passed", "now": "blocked", "count": 1}]
    same = backtest(server, shadowed)
    unchanged = [{"then": "passed", "now": "passed", "count": 1}]
    assert (same["ends"], same["requests_changed"], same["flips_total"]) == (unchanged, 0, 0), same


def test_inputs_go_with_their_age_and_their_size(millgate, upstream):
    server = millgate(through_pii(upstream) + KEEP + 'inputs-max-bytes = "8KiB"\n')
    ids = traffic(server, upstream, 40)
    server.stop()
    server.start()  # the first retention run is at the start
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        page = json.loads(server.get("/api/v1/inputs/ids")[2])["ids"]
        if len(page) < 40:
            break
        time.sleep(0.05)
    assert 0 < len(page) < 40
    assert page == sorted(ids, reverse=True)[: len(page)], "the oldest go first"
    code, found = replay(server, min(ids))
    assert code == 2 and "inputs-max-bytes" in found["replays"][0]["why"], found
    assert replay(server, page[0])[0] == 0


def test_a_crash_leaves_what_was_kept_and_traces_without_inputs_say_so(millgate, upstream):
    server = millgate(through_pii(upstream) + KEEP)
    traffic(server, upstream, 20)
    late = [ask(server, CARD)[0] for _ in range(5)]
    server.kill()
    code, found = replay(server, "--all")
    assert code == 0 and 20 <= found["identical"] <= 25, found
    for trace in late:
        # Answered, so its trace is there, with or without its inputs.
        assert server.cli("traces", "show", trace, "--server", server.url).returncode == 0
        code, found = replay(server, trace)
        assert code in (0, 2) and (code == 0 or "not kept" in found["replays"][0]["why"]), found


def backtest(server, config, *arguments):
    path = server.folder / "candidate.toml"
    path.write_text(config)
    done = server.cli("backtest", "--config", str(path), "--json", "--server", server.url, *arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def flips(report):
    return {(flip["trace"], flip["stage"], flip["place"], flip["then"], flip["now"]) for flip in report["flips"]}


def test_a_backtest_finds_exactly_what_a_candidate_changes(millgate, upstream):
    server = millgate(through_pii(upstream) + KEEP)
    upstream.pieces = ["all ", "fine"]
    plain = [ask(server, f"nothing here {number}", stream=number % 2 == 0)[0] for number in range(10)]
    cards = [ask(server, f"{number}: {CARD}")[0] for number in range(4)]
    upstream.pieces = ["ask jane.", "roe@example", ".com"]
    mails = [ask(server, "whom?", stream=number % 2 == 0)[0] for number in range(3)]
    kept(server, 17)
    # The same config changes nothing.
    same = backtest(server, through_pii(upstream))
    assert (same["traces"], same["flips_total"]) == (17, 0), same
    assert same["requests_changed"] == same["answers_changed"] == 0
    assert {(end["then"], end["now"]) for end in same["ends"]} == {("passed", "passed"), ("changed", "changed")}
    # One that blocks what was masked.
    blocks = through_pii(upstream, action="block")
    expected = {(trace, "pii", "input", "edit", "block") for trace in cards}
    expected |= {(trace, "pii", "output", "edit", "block") for trace in mails}
    found = backtest(server, blocks)
    assert flips(found) == expected and found["flips_total"] == 7
    assert {(end["then"], end["now"]): end["count"] for end in found["ends"]} == {
        ("passed", "passed"): 10, ("changed", "blocked"): 7}
    # From the data folder alone, on one thread: the same.
    server.stop()
    page = server.folder / "report.html"
    again = backtest(server, blocks, "--threads", "1", "--html", str(page))
    assert flips(again) == expected
    html = page.read_text()
    assert html.startswith("<!doctype html>") and "<svg" in html and "edit → block" in html
    assert "src=" not in html and "http" not in html and "4111" not in html
    # Texts are shown where they are asked for, and only there.
    assert "4111" not in json.dumps(again)
    assert "4111" in json.dumps(backtest(server, blocks, "--show-text"))
    # Without stages, and with one that was not there.
    none = blocks.replace('input = ["schema", "pii"]\noutput = ["pii"]', "")
    assert {flip[3:] for flip in flips(backtest(server, none))} == {("edit", None)}
    more = blocks.replace('[pipelines.default]', '[stages.second]\nplugin = "pii"\nconfig = { action = "block" }\n[pipelines.default]')
    more = more.replace('action = "block" }\n[pip', 'action = "mask" }\n[pip').replace('output = ["pii"]', 'output = ["pii", "second"]')
    assert flips(backtest(server, more)) == expected, "what the first stage blocks the second never sees"
    # The newest only; and what nobody serves any more.
    assert backtest(server, blocks, "--limit", "3")["traces"] == 3
    other = backtest(server, blocks.replace('serves = ["remote"]', 'serves = ["other"]'))
    assert other["traces"] == 0 and sum(other["skipped"].values()) == 17 and "remote" in next(iter(other["skipped"]))


def test_an_output_stage_that_was_not_there_sees_the_answers_from_before(millgate, upstream):
    config = through_pii(upstream).replace('output = ["pii"]', "")
    server = millgate(config + KEEP)
    upstream.pieces = ["call jane.", "roe@example.com", " now"]
    ids = [ask(server, "hello", stream=stream)[0] for stream in (False, True)]
    kept(server, 2)
    found = backtest(server, through_pii(upstream))
    assert flips(found) == {(trace, "pii", "output", None, "edit") for trace in ids}
    assert found["answers_changed"] == 2


def test_a_backtest_prints_bars_and_a_bad_candidate_is_refused(millgate, upstream):
    server = millgate(through_pii(upstream) + KEEP)
    ask(server, CARD)
    kept(server, 1)
    path = server.folder / "candidate.toml"
    path.write_text(through_pii(upstream, action="block"))
    done = server.cli("backtest", "--config", str(path), "--server", server.url, "--since", "1h")
    assert done.returncode == 0, done.stderr
    assert "edit -> block" in done.stdout and "###" in done.stdout and "changed -> blocked" in done.stdout
    path.write_text(through_pii(upstream, action="smudge"))
    done = server.cli("backtest", "--config", str(path), "--server", server.url)
    assert done.returncode == 1 and "smudge" in done.stderr
    done = server.cli("backtest", "--config", str(path), "--server", server.url, "--since", "soon")
    assert done.returncode == 1 and "--since" in done.stderr


def test_a_local_models_answers_are_replayed_and_backtested(millgate, local):
    config = local.config.read_text().replace('texts = "on"', 'inputs = "on"')
    server = millgate(config)
    client = server.client()
    model = client.models.list().data[0].id
    ids = []
    for stream in (False, True):
        answer = client.chat.completions.with_raw_response.create(
            model=model, messages=[{"role": "user", "content": "Write: a@example.com and b@example.com"}],
            temperature=0, max_tokens=24, stream=stream, n=2)
        ids.append(answer.headers["x-millgate-trace"])
        if stream:
            for _ in answer.parse():
                pass
    kept(server, 2)
    code, found = replay(server, *ids)
    assert code == 0, found
    assert any(stage["place"] == "output" and stage["calls"] > 10 for stage in found["replays"][0]["stages"])
    same = backtest(server, config)
    assert (same["traces"], same["flips_total"], same["answers_changed"]) == (2, 0, 0), same
