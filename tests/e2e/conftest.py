"""Fixtures of the end-to-end tests: the real `millgate` binary on a loopback port, a config and a
data folder of its own, and an upstream that records what it was given."""

import os
import pathlib
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request

import openai
import pytest

from upstream import Upstream

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Generous: the machines of CI are slow, and nothing here measures time.
PATIENCE = 60


def binary():
    path = os.environ.get("MILLGATE_BIN")
    if not path:
        target = os.environ.get("CARGO_TARGET_DIR", ROOT / "target")
        path = pathlib.Path(target) / "release" / "millgate"
    if not os.access(path, os.X_OK):
        pytest.exit(f"no binary at {path}: run `cargo build --release`, or tests/run", returncode=2)
    return str(path)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Millgate:
    """One `millgate serve`; `start` and `kill` may follow each other on the same data folder."""

    def __init__(self, folder, config):
        self.folder = folder
        self.data = folder / "data"
        self.config = folder / "millgate.toml"
        self.config.write_text(config)
        self.log = folder / "log.txt"
        self.port = free_port()
        self.process = None

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def command(self):
        return [binary(), "serve", "--config", str(self.config), "--data", str(self.data),
                "--listen", f"127.0.0.1:{self.port}"]

    def start(self):
        log = open(self.log, "ab")
        self.process = subprocess.Popen(
            self.command(),
            stdout=log, stderr=subprocess.STDOUT, cwd=self.folder,
        )
        log.close()
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise AssertionError(f"millgate ended with {self.process.returncode}:\n{self.log_text()}")
            try:
                if self.get("/readyz")[0] == 200:
                    return self
            except OSError:
                pass
            time.sleep(0.01)
        raise AssertionError(f"millgate was not ready in {PATIENCE} s:\n{self.log_text()}")

    def log_text(self):
        return self.log.read_text(errors="replace")[-4000:]

    def kill(self):
        self.process.kill()
        self.process.wait()

    def stop(self):
        """SIGTERM; gives the exit code."""
        if self.process is None or self.process.poll() is not None:
            return self.process and self.process.returncode
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"millgate did not stop in {PATIENCE} s:\n{self.log_text()}")

    def get(self, path):
        return self.request("GET", path)

    def request(self, method, path, body=None, headers=None):
        """Gives (status, headers, body)."""
        request = urllib.request.Request(self.url + path, method=method, data=body, headers=headers or {})
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as response:
                return response.status, response.headers, response.read()
        except urllib.error.HTTPError as error:
            return error.code, error.headers, error.read()

    def client(self, **options):
        return openai.OpenAI(base_url=self.url + "/v1", api_key="unused", max_retries=0, timeout=PATIENCE, **options)

    def cli(self, *arguments):
        """Runs another command on the same data folder."""
        return subprocess.run(
            [binary(), *arguments, "--data", str(self.data)], capture_output=True, text=True, timeout=PATIENCE
        )


@pytest.fixture
def upstream():
    server = Upstream()
    yield server
    server.close()


@pytest.fixture
def millgate(tmp_path):
    """A function that starts a server for a config and stops it after the test."""
    started = []

    def start(config):
        folder = tmp_path / str(len(started))
        folder.mkdir()
        server = Millgate(folder, config)
        started.append(server)
        return server.start()

    yield start
    for server in started:
        if server.process is not None and server.process.poll() is None:
            server.kill()


@pytest.fixture(scope="session")
def local(tmp_path_factory):
    """A server with the default model, shared by the tests that only talk to it."""
    model = os.environ.get("MILLGATE_TEST_MODEL") or os.path.expanduser(
        "~/.cache/millgate/models/SmolLM2-135M-Instruct.Q4_1.gguf"
    )
    if not os.path.exists(model):
        pytest.skip(f"no model at {model}: run tests/run")
    config = (ROOT / "examples" / "quickstart" / "millgate.toml").read_text()
    config = config.replace('pull = "smollm2-135m-instruct"', f'path = "{model}"\ndevice = "cpu"')
    config += '\n[traces]\ntexts = "on"\n'
    server = Millgate(tmp_path_factory.mktemp("local"), config).start()
    yield server
    server.stop()


def through_pii(upstream, action="mask", more=""):
    """A config with the upstream behind `schema` and `pii`, both ways."""
    return f"""
[server]
{more}
[models.remote]
upstream = {{ url = "{upstream.url}/v1" }}
[stages.schema]
plugin = "schema"
[stages.pii]
plugin = "pii"
config = {{ action = "{action}" }}
[pipelines.default]
serves = ["remote"]
input = ["schema", "pii"]
output = ["pii"]
arms = [{{ name = "stable", model = "remote" }}]
"""
