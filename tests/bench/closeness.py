#!/usr/bin/env python3
"""How close two engines come to a model computed in f32: Millgate's fast path and llama.cpp, on the same GGUF file.

    pip install numpy xllamacpp        # llama.cpp as a wheel
    cargo build --release -p millgate-infer --example logits
    tests/bench/closeness.py MODEL.gguf [--logits target/release/examples/logits] [--positions N]

The texts are token ids that tests/golden holds (the default model's, or Gemma's), teacher-forced. The reference is
Millgate's exact path: the file's weights widened to f32, f32 sums and KV cache (tests/golden holds it against
transformers in f32). llama.cpp tells the log-probabilities of the 2,000 likeliest tokens; all others count as one
outcome, and the same outcomes are used for both engines, so that both divergences are measured alike. Positions where
it tells none (its likeliest token is a part of a character) are left out for both. Printed:
the perplexity, the mean and largest Kullback-Leibler divergence from the reference in nats, and how often the
likeliest token is another one.
"""

import argparse
import gzip
import json
import os
import subprocess

import numpy

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
LIKELIEST = 2000


def ours(binary, model, precision, texts):
    run = [binary, model, precision, "128"]
    out = subprocess.run(run, input=json.dumps(texts).encode(), check=True, capture_output=True).stdout
    rows = numpy.frombuffer(out, dtype="<f4").reshape(sum(map(len, texts)), -1).astype(numpy.float64)
    rows = rows - rows.max(axis=1, keepdims=True)
    rows -= numpy.log(numpy.exp(rows).sum(axis=1, keepdims=True))
    return rows


def theirs(model, texts):
    """For each position the ids and log-probabilities of the likeliest tokens."""
    # llama.cpp logs each request.
    told = os.fdopen(os.dup(2), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    import xllamacpp as llama

    params = llama.CommonParams()
    params.model.path = model
    params.n_ctx = 2048
    params.n_parallel = 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = os.cpu_count()
    server = llama.Server(params)
    rows = []
    for index, text in enumerate(texts):
        print(f"\rllama.cpp: text {index + 1} of {len(texts)}", end="", file=told, flush=True)
        for end in range(1, len(text) + 1):
            answer = server.handle_completions({
                "prompt": text[:end], "n_predict": 1, "temperature": 0, "logprobs": True, "n_probs": LIKELIEST,
                "cache_prompt": True,
            })
            told_of = answer["choices"][0]["logprobs"]
            if told_of is None:  # The token that it chose is a part of a character: it tells nothing then.
                rows.append(None)
                continue
            top = told_of["content"][0]["top_logprobs"]
            rows.append((
                numpy.array([entry["id"] for entry in top]), numpy.array([entry["logprob"] for entry in top]),
            ))
    print(file=told)
    return rows


def outcomes(known):
    """The last outcome: any other token."""
    rest = max(1e-12, 1 - numpy.exp(known).sum())
    return numpy.append(known, numpy.log(rest))


def divergence(reference, other):
    return float((numpy.exp(reference) * (reference - other)).sum())


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("model")
    arguments.add_argument("--logits", default=os.path.join(ROOT, "target/release/examples/logits"))
    arguments.add_argument("--texts", default="logits.json.gz", help="a file of tests/golden (gemma.json.gz: Gemma's)")
    arguments.add_argument("--positions", type=int, help="only so many, for a quick look")
    options = arguments.parse_args()
    with gzip.open(os.path.join(ROOT, "tests/golden", options.texts)) as file:
        golden = json.load(file)
    texts = [text["ids"] for text in (golden["texts"] if isinstance(golden, dict) else golden)]
    if options.positions:
        kept, left = [], options.positions
        for text in texts:
            kept.append(text[:left])
            left -= len(kept[-1])
            if left <= 0:
                break
        texts = kept
    reference = ours(options.logits, options.model, "exact", texts)
    fast = ours(options.logits, options.model, "fast", texts)
    other = theirs(options.model, texts)
    # The token that follows each position, where one does.
    following = [token for text in texts for token in [*text[1:], None]]
    figures = {"f32": ([], [], []), "millgate": ([], [], []), "llama.cpp": ([], [], [])}
    for row, (ids, known) in ((row, told) for row, told in enumerate(other) if told is not None):
        exact = outcomes(reference[row][ids])
        best = reference[row].argmax()
        for name, logs, likeliest, next_log in (
            ("f32", exact, best, lambda token: reference[row][token]),
            ("millgate", outcomes(fast[row][ids]), fast[row].argmax(), lambda token: fast[row][token]),
            ("llama.cpp", outcomes(known), ids[known.argmax()],
             lambda token: known[ids == token][0] if (ids == token).any() else None),
        ):
            losses, divergences, changes = figures[name]
            token = following[row]
            if token is not None and (ids == token).any():
                losses.append(next_log(token))
            divergences.append(divergence(exact, logs))
            changes.append(likeliest != best)
    print(f"{os.path.basename(options.model)}: {len(figures['f32'][1])} positions")
    print(f"{'':12}{'perplexity':>12}{'against f32':>13}{'mean KL':>12}{'largest KL':>12}{'other top':>11}")
    base = numpy.exp(-numpy.mean(figures["f32"][0]))
    for name, (losses, divergences, changes) in figures.items():
        perplexity = numpy.exp(-numpy.mean(losses))
        print(f"{name:12}{perplexity:12.4f}{100 * (perplexity / base - 1):12.3f}%{numpy.mean(divergences):12.2e}"
              f"{numpy.max(divergences):12.2e}{100 * numpy.mean(changes):10.2f}%")


if __name__ == "__main__":
    main()
