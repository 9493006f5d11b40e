"""Several local models: loaded by use, unloaded to make room."""

import os
import threading

import pytest

from conftest import PATIENCE


def metric(server, name):
    text = server.get("/metrics")[2].decode()
    return float(next(line.split()[1] for line in text.splitlines() if line.startswith(name + " ")))


def test_two_models_take_turns_in_the_memory_of_one(millgate):
    model = os.environ.get("MILLGATE_TEST_MODEL")
    if not model:
        pytest.skip("MILLGATE_TEST_MODEL names no model: run tests/run")
    config = '[server]\nmodel-memory = "200MiB"\n'
    for name in ["one", "two"]:
        config += f"""
[models.{name}]
path = "{model}"
kv-cache = "64MiB"
load = "on-use"
[pipelines.{name}]
serves = ["{name}"]
arms = [{{ name = "stable", model = "{name}" }}]
"""
    server = millgate(config)
    gauge = "millgate_models_loaded_by_use_bytes"
    assert metric(server, gauge) == 0

    def ask(name, out):
        answer = server.client().chat.completions.create(
            model=name, messages=[{"role": "user", "content": "Say hi."}], temperature=0, max_tokens=8
        )
        out.append(answer.choices[0].message.content)

    first = []
    ask("one", first)
    loaded = metric(server, gauge)
    assert 0 < loaded < 200 << 20
    # Both at once: each waits for the other, and both are answered, always the same.
    answers = []
    threads = [threading.Thread(target=ask, args=(name, answers)) for name in ["one", "two"] * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert answers == first * 6
    assert metric(server, gauge) == loaded, "one of them at a time"
