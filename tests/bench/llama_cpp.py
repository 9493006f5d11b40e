#!/usr/bin/env python3
"""Millgate's core beside llama.cpp on the same GGUF file, in turns, medians of some rounds.

    pip install xllamacpp        # llama.cpp as a wheel
    tests/bench/llama_cpp.py MODEL.gguf [--rounds 5] [--threads 2] [--millgate target/release/millgate]

llama.cpp runs in a process of its own, through its server's code: tokens a second as it reports them (`timings`) for
one request; for 16 at once, tokens of all over the time from the first token of the last to start to the end of the
first to end. Millgate is `millgate bench model --quick --json`. Both use as many threads.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import threading
import time


def serve(model, threads):
    """The other process: answers a line of JSON with a line of JSON."""
    out = os.fdopen(os.dup(1), "w")
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    import xllamacpp as llama

    params = llama.CommonParams()
    params.model.path = model
    params.n_ctx = 16 * 768
    params.n_parallel = 16
    params.cpuparams.n_threads = threads
    params.cpuparams_batch.n_threads = threads
    params.warmup = True
    server = llama.Server(params)

    def complete(prompt, tokens):
        return server.handle_completions({
            "prompt": prompt, "max_tokens": tokens, "temperature": 0, "cache_prompt": False, "ignore_eos": True,
        })

    def prompt(seed, length):
        return [1000 + (seed * 131 + i * 7919) % 40000 for i in range(length)]

    print("ready", file=out, flush=True)
    for line in sys.stdin:
        seed = int(line)
        figures = {}
        for length in (128, 512):
            timings = complete(prompt(seed, length), 2)["timings"]
            figures[f"prefill_{length}"] = timings["prompt_per_second"]
        figures["decode_1"] = complete(prompt(seed, 32), 128)["timings"]["predicted_per_second"]
        spans, lock = [], threading.Lock()

        def one(index):
            begun = time.monotonic()
            timings = complete(prompt(seed + index, 85), 128)["timings"]
            ended = time.monotonic()
            with lock:
                spans.append((begun, ended, timings["prompt_ms"], timings["predicted_ms"], timings["predicted_n"]))

        threads_ = [threading.Thread(target=one, args=(index,)) for index in range(16)]
        for thread in threads_:
            thread.start()
        for thread in threads_:
            thread.join()
        # The requests' own rates, as Millgate's bench adds them up.
        figures["decode_16"] = sum(n * 1000 / ms for _, _, _, ms, n in spans)
        first = sorted(end - predicted / 1000 - begin for begin, end, _, predicted, _ in spans)
        figures["ttft_16_ms"] = 1000 * statistics.median(first)
        print(json.dumps(figures), file=out, flush=True)


def ours(binary, model, threads):
    run = [binary, "bench", "model", model, "--quick", "--json", "--threads", str(threads)]
    report = json.loads(subprocess.run(run, check=True, capture_output=True, text=True).stdout)
    return {
        "prefill_128": report["prefill_tok_s"]["128"], "prefill_512": report["prefill_tok_s"]["512"],
        "decode_1": report["decode_tok_s"]["1"], "decode_16": report["decode_tok_s"]["16"],
        "ttft_16_ms": report["ttft_16_ms"],
    }, report


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("model")
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--millgate", default="target/release/millgate")
    arguments.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.serve:
        serve(options.model, options.threads)
        return
    command = [sys.executable, __file__, options.model, "--threads", str(options.threads), "--serve"]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout.readline().strip() == "ready", "xllamacpp did not start: pip install xllamacpp"
    rounds = []
    for index in range(options.rounds):
        other.stdin.write(f"{index * 100}\n")
        other.stdin.flush()
        theirs = json.loads(other.stdout.readline())
        mine, report = ours(options.millgate, options.model, options.threads)
        rounds.append((mine, theirs))
        print(f"round {index + 1}: " + ", ".join(
            f"{name} {mine[name]:.0f} / {theirs[name]:.0f}" for name in mine), file=sys.stderr)
    other.stdin.close()
    other.wait()
    print(f"{os.path.basename(options.model)}, {options.threads} threads, medians of {options.rounds} rounds")
    print(f"{'':14}{'millgate':>10}{'llama.cpp':>11}{'ratio':>8}")
    for name in rounds[0][0]:
        mine, theirs = (statistics.median(r[side][name] for r in rounds) for side in (0, 1))
        ratio = statistics.median(r[0][name] / r[1][name] for r in rounds)
        print(f"{name:14}{mine:10.1f}{theirs:11.1f}{ratio:8.2f}")
    print(f"limits: memory {report['memory_limit_tok_s']:.0f}, int8 {report['int8_limit_tok_s']:.0f} tokens/s")


if __name__ == "__main__":
    main()
