"""Real traffic through the gateway with `traces.inputs = "on"`, then replays and backtests of it with the real binary:

    python3 tests/bench/replay.py --binary target/release/millgate [--traces 10000] [--replays 1000] [--priority]

1. Sends the requests through `pii` both ways to an upstream of its own, a part of them with planted personal data.
2. Replays the newest ones in the server, newest first, and again in another process, by chance: all must be identical,
   with the same digests.
3. Backtests a candidate that blocks e-mail addresses and leaves IP addresses alone: it must find exactly the planted flips.
4. Sets the backtest's calls a second against those of the stage alone (`millgate bench stage`), in turns.

Ends with 1 where something is not as it must be. `--priority` runs what is timed with real-time priority (`chrt -r 1`)."""

import argparse
import http.client
import http.server
import json
import pathlib
import queue
import random
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

WORDS = (
    "The harbour was quiet when the first boats came in, and the women on the quay counted the crates as they were "
    "lifted out. Each crate held ice and silver fish; each was weighed, chalked and sent up the hill on the narrow "
    "carts before the sun had reached the roofs. "
)
#: What is planted: where, what, and how the candidate's verdict differs from the one of then.
PLANTED = {
    "input mail": ("input", "mail to jane.roe@example.com", ("edit", "block")),
    "input address": ("input", "the host is 203.0.113.77", ("edit", "pass")),
    "output mail": ("output", "mail to jane.roe@example.com", ("edit", "block")),
    "output address": ("output", "the host is 203.0.113.77", ("edit", "pass")),
    # Found by both: no flips.
    "input card": ("input", "card 4111 1111 1111 1111", None),
    "output card": ("output", "card 4111 1111 1111 1111", None),
}

CONFIG = """
[server]
listen = "127.0.0.1:0"
[models.remote]
upstream = {{ url = "{url}/v1" }}
[stages.pii]
plugin = "pii"
config = {{ {pii} }}
[pipelines.default]
serves = ["remote"]
input = ["pii"]
output = ["pii"]
arms = [{{ name = "stable", model = "remote" }}]
[traces]
durability = "after-response"
inputs = "on"
"""
NOW = 'action = "mask"'
CANDIDATE = 'action = "mask", entities = { email = { action = "block" }, ip-address = { enabled = false } }'


def english(size):
    return (WORDS * (size // len(WORDS) + 1))[:size]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Answers(http.server.BaseHTTPRequestHandler):
    """Answers with 1 KB of English, and with what the request's last line says after `SAY`."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_):
        pass

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        text = english(1000)
        planted = re.search(r"SAY ([a-z ]+)$", asked["messages"][-1]["content"])
        if planted:
            text += PLANTED[planted[1]][1]
        head = {"id": "chatcmpl-1", "created": 1700000000, "model": "remote"}
        if asked.get("stream"):
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.send_header("connection", "close")
            self.end_headers()
            for start in range(0, len(text), 64):
                choice = {"index": 0, "delta": {"content": text[start:start + 64]}, "finish_reason": None}
                self.wfile.write(b"data: " + json.dumps({**head, "choices": [choice]}).encode() + b"\n\n")
            choice = {"index": 0, "delta": {}, "finish_reason": "stop"}
            self.wfile.write(b"data: " + json.dumps({**head, "choices": [choice]}).encode() + b"\n\ndata: [DONE]\n\n")
            self.close_connection = True
            return
        message = {"role": "assistant", "content": text}
        body = json.dumps({**head, "choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


def send(port, plan, streamed):
    """Sends the planned requests on 8 connections; gives the plant by trace."""
    work, traces, lock = queue.Queue(), {}, threading.Lock()
    for number, plant in enumerate(plan):
        work.put((number, plant))

    def run():
        connection = http.client.HTTPConnection("127.0.0.1", port)
        while True:
            try:
                number, plant = work.get_nowait()
            except queue.Empty:
                return
            text = f"{number}: " + english(1000)
            if plant and PLANTED[plant][0] == "input":
                text += PLANTED[plant][1]
            elif plant:
                text += f"SAY {plant}"
            body = {"model": "remote", "messages": [{"role": "user", "content": text}],
                    "stream": number % 100 < streamed}
            connection.request("POST", "/v1/chat/completions", json.dumps(body), {"content-type": "application/json"})
            answer = connection.getresponse()
            answer.read()
            if answer.status != 200:
                raise SystemExit(f"request {number}: {answer.status}")
            with lock:
                traces[answer.headers["x-millgate-trace"]] = plant

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return traces


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--binary", required=True)
    parser.add_argument("--traces", type=int, default=10_000)
    parser.add_argument("--replays", type=int, default=1_000)
    parser.add_argument("--streamed", type=int, default=5, help="per cent of the requests that are streamed")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--priority", action="store_true")
    args = parser.parse_args()
    first = ["chrt", "-r", "1"] if args.priority else []
    wrong = []

    upstream = Server(("127.0.0.1", 0), Answers)
    threading.Thread(target=upstream.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{upstream.server_address[1]}"
    folder = pathlib.Path(tempfile.mkdtemp(prefix="millgate-replay-"))
    data, config, candidate = folder / "data", folder / "millgate.toml", folder / "candidate.toml"
    config.write_text(CONFIG.format(url=url, pii=NOW))
    candidate.write_text(CONFIG.format(url=url, pii=CANDIDATE))
    port = free_port()

    def cli(*arguments, timed=False, server="http://127.0.0.1:9"):
        command = [*(first if timed else []), args.binary, *arguments]
        if arguments[0] != "bench":
            command += ["--data", str(data), "--server", server]
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
        if not done.stdout:
            raise SystemExit(done.stderr)
        return json.loads(done.stdout)

    def serve():
        log = open(folder / "log.txt", "ab")
        command = [args.binary, "serve", "--config", str(config), "--data", str(data), "--listen", f"127.0.0.1:{port}"]
        process = subprocess.Popen(command, stdout=log, stderr=log)
        while True:
            try:
                connection = http.client.HTTPConnection("127.0.0.1", port)
                connection.request("GET", "/readyz")
                if connection.getresponse().status == 200:
                    return process
            except OSError:
                pass
            if process.poll() is not None:
                raise SystemExit((folder / "log.txt").read_text())
            time.sleep(0.05)

    rng = random.Random(7)
    plan = [None] * args.traces
    places = rng.sample(range(args.traces), args.traces // 10)
    for index, place in enumerate(places):
        plan[place] = list(PLANTED)[index % len(PLANTED)]
    process = serve()
    begun = time.monotonic()
    traces = send(port, plan, args.streamed)
    print(f"{len(traces)} requests in {time.monotonic() - begun:.1f} s")

    # Replays in the server that served them.
    replays = ("replay", "--all", "--limit", args.replays, "--json")
    here = cli(*replays, "--order", "newest", server=f"http://127.0.0.1:{port}")
    process.terminate()
    process.wait()
    inputs = sum(path.stat().st_size for path in data.rglob("*") if path.is_file())
    print(f"{inputs / 1e6:.1f} MB in the data folder")

    begun = time.monotonic()
    there = cli(*replays, "--order", "random")
    digests = [{one["trace"]: one["digest_now"] for one in found["replays"]} for found in (here, there)]
    order = [[one["trace"] for one in found["replays"]] for found in (here, there)]
    print(f"replay, in the server:        {here['identical']} identical, {here['differ']} differ, {here['impossible']} impossible")
    print(f"replay, in another process:   {there['identical']} identical, {there['differ']} differ, {there['impossible']} impossible"
          f" ({time.monotonic() - begun:.1f} s)")
    if not here["identical"] == there["identical"] == min(args.replays, args.traces) or digests[0] != digests[1]:
        wrong.append("the replays are not identical")
    if order[0] == order[1]:
        wrong.append("the order of the replays is the same")

    # The backtest, and the stage alone, in turns.
    expected = set()
    for trace, plant in traces.items():
        if plant and PLANTED[plant][2]:
            expected.add((trace, "pii", PLANTED[plant][0], *PLANTED[plant][2]))
    shares, rates, alone = [], [], []
    for _ in range(args.rounds):
        stage = cli("bench", "stage", "--plugin", "pii", "--bytes", "1024", "--seconds", "1", "--json", timed=True)
        report = cli("backtest", "--config", candidate, "--json", timed=True)
        found = {tuple(flip[key] for key in ("trace", "stage", "place", "then", "now")) for flip in report["flips"]}
        if found != expected or report["flips_total"] != len(expected) or report["traces"] != args.traces:
            wrong.append(f"{len(found - expected)} flips too many, {len(expected - found)} missing")
        calls = sum(stage["now"]["ran"] for stage in report["stages"]) / report["seconds"]
        rates.append(report["traces"] / report["seconds"])
        alone.append(stage["two_threads"])
        shares.append(calls / stage["two_threads"])
    same = cli("backtest", "--config", config, "--json", timed=True)
    if same["flips_total"] or same["requests_changed"] or same["answers_changed"]:
        wrong.append("the same config changes something")
    print(f"backtest: {report['traces']} traces, {len(expected)} planted flips, {report['flips_total']} found, all of them the planted ones: "
          f"{found == expected}")
    print(f"backtest: {statistics.median(rates):.0f} requests/s on {report['threads']} threads, two texts of 1 KB each; the stage alone "
          f"{statistics.median(alone):.0f} texts/s on two threads")
    print(f"backtest over the stage alone, median of {args.rounds}: {statistics.median(shares):.2f} "
          f"({min(shares):.2f} to {max(shares):.2f})")
    for line in wrong:
        print(f"WRONG: {line}")
    print(f"data: {data}")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
