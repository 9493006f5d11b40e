"""Several local models: loaded by use, unloaded to make room."""

import json
import os
import random
import struct
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


def write_adapter(folder, scale):
    """A LoRA adapter of rank 2 for the default model's v matrices, as PEFT writes one; B is `scale` times noise."""
    folder.mkdir()
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "bias": "none", "target_modules": ["v_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    noise = random.Random(1)
    header, data = {}, b""
    for layer in range(30):
        for part, shape, size in [("A", [2, 576], 0.1), ("B", [192, 2], scale)]:
            values = [size * noise.uniform(-1, 1) for _ in range(shape[0] * shape[1])]
            start = len(data)
            data += struct.pack(f"<{len(values)}f", *values)
            name = f"base_model.model.model.layers.{layer}.self_attn.v_proj.lora_{part}.weight"
            header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [start, len(data)]}
    header = json.dumps(header).encode()
    (folder / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + data)


def test_arms_with_adapters_share_one_model(millgate, tmp_path):
    model = os.environ.get("MILLGATE_TEST_MODEL")
    if not model:
        pytest.skip("MILLGATE_TEST_MODEL names no model: run tests/run")
    write_adapter(tmp_path / "nothing", 0.0)
    write_adapter(tmp_path / "noise", 1.0)
    config = f"""
[models.base]
path = "{model}"
adapters = {{ nothing = "{tmp_path}/nothing", noise = "{tmp_path}/noise" }}
"""
    for name, adapter in [("plain", ""), ("same", ', adapter = "nothing"'), ("other", ', adapter = "noise"')]:
        config += f"""
[pipelines.{name}]
serves = ["{name}"]
arms = [{{ name = "stable", model = "base"{adapter} }}]
"""
    server = millgate(config)
    answers = {}

    def ask(name):
        answer = server.client().chat.completions.with_raw_response.create(
            model=name, messages=[{"role": "user", "content": "Name a colour."}], temperature=0, max_tokens=16
        )
        answers[name] = (answer.parse().choices[0].message.content, answer.headers["x-millgate-trace"])

    threads = [threading.Thread(target=ask, args=(name,)) for name in ["plain", "same", "other"]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert answers["plain"][0] == answers["same"][0] != answers["other"][0]
    trace = json.loads(server.get(f"/api/v1/traces/{answers['other'][1]}")[2])
    assert trace["arm_model"] == "base+noise"
