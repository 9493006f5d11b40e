"""Plugins from a real registry (Debian's docker-registry on loopback): published, signed, pulled, locked, updated, carried
as a bundle; and what is refused."""

import json
import os
import pathlib
import pty
import shutil
import signal
import socket
import subprocess
import time

import pytest

from conftest import PATIENCE, Millgate, binary, free_port

MESSAGES = [{"role": "user", "content": "write to ann@example.com"}]


class Registry:
    """One registry; what it stores outlives `stop`."""

    def __init__(self, folder):
        self.storage = folder / "storage"
        self.config = folder / "registry.yml"
        self.port = free_port()
        self.host = f"127.0.0.1:{self.port}"
        self.config.write_text(
            f"version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {self.storage}\n"
            f"http:\n  addr: {self.host}\n"
        )
        self.process = None
        self.start()

    def start(self):
        self.process = subprocess.Popen(
            ["docker-registry", "serve", str(self.config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            assert self.process.poll() is None, "docker-registry ended"
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                time.sleep(0.02)
        raise AssertionError("docker-registry does not answer")

    def stop(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def blob(self, digest):
        digits = digest.removeprefix("sha256:")
        return self.storage / "docker/registry/v2/blobs/sha256" / digits[:2] / digits / "data"


@pytest.fixture
def registry(tmp_path):
    if not shutil.which("docker-registry"):
        pytest.skip("docker-registry is not installed: run tests/run")
    folder = tmp_path / "registry"
    folder.mkdir()
    server = Registry(folder)
    yield server
    server.stop()


class Machine:
    """A folder with a config and a data folder, and the commands in it."""

    def __init__(self, folder):
        self.folder = folder
        self.folder.mkdir()
        self.data = folder / "data"
        self.config = folder / "millgate.toml"
        self.lock = folder / "millgate.lock"

    def run(self, *arguments, stdin=subprocess.DEVNULL):
        environment = {key: value for key, value in os.environ.items() if not key.startswith("MILLGATE_")}
        return subprocess.run(
            [binary(), *map(str, arguments), "--data", str(self.data)],
            capture_output=True, text=True, timeout=PATIENCE, cwd=self.folder, stdin=stdin, env=environment,
        )

    def ok(self, *arguments):
        done = self.run(*arguments)
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout

    def refused(self, *arguments):
        done = self.run(*arguments)
        assert done.returncode != 0, done.stdout
        return done.stderr + done.stdout

    def answer(self, line, *arguments):
        """Runs a command with a terminal as its standard input, and types a line."""
        ours, theirs = pty.openpty()
        try:
            os.write(ours, line.encode() + b"\n")
            return self.run(*arguments, stdin=theirs)
        finally:
            os.close(theirs)
            os.close(ours)

    def pem(self, key):
        return (self.data / "keys" / f"{key}.pub").read_text()


@pytest.fixture
def vendor(tmp_path):
    """A machine with the key `acme`."""
    machine = Machine(tmp_path / "vendor")
    said = machine.ok("keys", "new", "acme")
    assert "[[trust]]" in said and "BEGIN PUBLIC KEY" in said
    return machine


@pytest.fixture
def operator(tmp_path):
    return Machine(tmp_path / "operator")


@pytest.fixture
def serve():
    """A function that starts `millgate serve` on a machine; stopped after the test."""
    started = []

    def start(machine, *options):
        server = Served(machine, options)
        started.append(server)
        return server.start()

    yield start
    for server in started:
        server.stop()


class Served(Millgate):
    def __init__(self, machine, options):
        self.folder, self.data, self.config = machine.folder, machine.data, machine.config
        self.log = machine.folder / "log.txt"
        self.port, self.process, self.options = free_port(), None, options

    def command(self):
        return super().command() + list(self.options)


def unsigned_number(value):
    out = bytearray()
    while True:
        byte = value & 0x7F
        value >>= 7
        out.append(byte | (0x80 if value else 0))
        if not value:
            return bytes(out)


@pytest.fixture(scope="session")
def pii(tmp_path_factory):
    """The first-party `pii` as bytes."""
    if not shutil.which("docker-registry"):
        pytest.skip("docker-registry is not installed: run tests/run")
    folder = tmp_path_factory.mktemp("pii")
    server = Registry(folder)
    machine = Machine(folder / "machine")
    try:
        machine.ok("keys", "new", "own")
        version = json.loads(machine.ok("plugin", "inspect", "pii", "--json"))["manifest"]["version"]
        reference = f"{server.host}/own/pii:{version}"
        machine.ok("plugin", "publish", "pii", reference, "--key", "own")
        public = machine.data / "keys" / "own.pub"
        machine.ok("plugin", "pull", reference, "--key", public, "--output", folder / "pii.wasm")
    finally:
        server.stop()
    return (folder / "pii.wasm").read_bytes()


def variant(pii, version, requests=(), name="acme-pii"):
    """`pii` under another name and version: a manifest of the component's own counts before that of a module in it."""
    manifest = f"""
name = "{name}"
version = "{version}"
license = "Apache-2.0"
help = "Masks personal data, by Acme."
contract = "0.1"
interfaces = ["compliance"]
requests = {json.dumps(list(requests))}
""".encode()
    title = b"millgate:manifest"
    section = unsigned_number(len(title)) + title + manifest
    return pii + b"\0" + unsigned_number(len(section)) + section


def publish(vendor, registry, component, version, *options, name="pii"):
    file = vendor.folder / "plugin.wasm"
    file.write_bytes(component)
    reference = f"{registry.host}/acme/{name}:{version}"
    vendor.ok("plugin", "publish", file, reference, *(options or ("--key", "acme")))
    return reference


def trust(vendor, plugins="acme-*", key="acme"):
    return f'[[trust]]\nname = "Acme"\nkey = """\n{vendor.pem(key)}"""\nplugins = ["{plugins}"]\n'


def config(upstream, reference, more=""):
    return f"""# Ours.
[models.remote]
upstream = {{ url = "{upstream.url}/v1" }}

[stages.schema]
plugin = "schema"

[stages.mask]
plugin = "{reference}" # from Acme

[pipelines.default]
serves = ["remote"]
input = ["schema", "mask"]
arms = [{{ name = "stable", model = "remote" }}]

{more}"""


def ask(server):
    return server.client().chat.completions.create(model="remote", messages=MESSAGES)


def wait_for(what, condition):
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"{what} did not happen in {PATIENCE} s"
        time.sleep(0.02)


def test_from_a_key_to_a_masked_request_and_then_offline(registry, vendor, operator, serve, upstream, pii):
    reference = publish(vendor, registry, variant(pii, "1.2.0"), "1.2.0")
    assert "acme" in vendor.ok("keys", "list") and "signs" in vendor.ok("keys", "list")

    operator.config.write_text(config(upstream, reference, trust(vendor)))
    said = json.loads(operator.ok("plugin", "pull", reference, "--json"))
    assert (said["name"], said["version"], said["signer"], said["requests"]) == ("acme-pii", "1.2.0", "Acme", [])
    looked = operator.ok("plugin", "inspect", reference)
    for part in ["acme-pii 1.2.0", "Apache-2.0", "compliance", "signed by   Acme", said["digest"], said["component"]]:
        assert part in looked, looked

    # Nothing is locked yet: the server pulls and locks.
    assert "is not locked" in operator.refused("check", operator.config)
    server = serve(operator)
    ask(server)
    assert "[EMAIL]" in upstream.requests[-1] and "ann@" not in upstream.requests[-1]
    assert said["digest"] in operator.lock.read_text()
    server.stop()
    operator.ok("check", operator.config)

    # The server has locked the plugin; `--locked` is strict about everything else, too.
    assert "schema" in operator.refused("serve", "--locked", "--config", operator.config)
    operator.ok("plugin", "lock")
    registry.stop()
    server = serve(operator, "--locked")
    ask(server)
    assert "[EMAIL]" in upstream.requests[-1]
    server.stop()

    # What is not locked is not used, and nobody is asked for it.
    operator.config.write_text(config(upstream, reference.replace("1.2.0", "1.2.1"), trust(vendor)))
    assert "not locked" in operator.refused("serve", "--locked", "--config", operator.config)
    # Nor is a plugin whose signer is no longer trusted.
    operator.config.write_text(config(upstream, reference))
    said = operator.refused("serve", "--locked", "--config", operator.config)
    assert "acme-pii" in said and "trusted" in said


def test_what_is_not_signed_by_whom_we_trust_is_refused_by_name(registry, vendor, operator, upstream, pii):
    unsigned = publish(vendor, registry, variant(pii, "1.0.0"), "1.0.0", "--unsigned")
    signed = publish(vendor, registry, variant(pii, "1.1.0"), "1.1.0")
    vendor.ok("keys", "new", "other")

    def refused(reference, more):
        operator.config.write_text(config(upstream, reference, more))
        said = operator.refused("plugin", "pull", reference)
        served = operator.refused("serve", "--config", operator.config)
        for text in (said, served):
            assert "acme-pii" in text, text
        assert "millgate.toml:9" in served, "the line of the stage is named"
        assert not operator.lock.exists()
        return said

    assert "is not signed" in refused(unsigned, trust(vendor))
    assert "[[trust]]" in refused(signed, "")
    assert "no key that is trusted" in refused(signed, trust(vendor, key="other"))
    assert "trusted only for other-*" in refused(signed, trust(vendor, "other-*"))

    # The same content signed later is fine.
    publish(vendor, registry, variant(pii, "1.0.0"), "1.0.0")
    operator.config.write_text(config(upstream, unsigned, trust(vendor)))
    operator.ok("plugin", "pull", unsigned)

    # A component that was changed in the registry is not what its digest says.
    said = json.loads(operator.ok("plugin", "pull", signed, "--json"))
    blob = registry.blob(said["component"])
    blob.write_bytes(blob.read_bytes()[:-1] + b"!")
    shutil.rmtree(operator.data / "registry")
    text = operator.refused("plugin", "pull", signed)
    assert said["component"] in text and "do not use it" in text, text
    # A tag that does not say what the plugin does.
    file = vendor.folder / "plugin.wasm"
    text = vendor.refused("plugin", "publish", file, f"{registry.host}/acme/pii:9.0.0", "--key", "acme")
    assert "manifest says version 1.0.0" in text, text
    # Other content under a tag that is taken.
    file.write_bytes(variant(pii, "1.1.0", ["state"]))
    assert "--overwrite" in vendor.refused("plugin", "publish", file, signed, "--key", "acme")


def test_an_update_shows_what_is_newly_asked_for_and_asks(registry, vendor, operator, serve, upstream, pii):
    old = publish(vendor, registry, variant(pii, "1.2.0"), "1.2.0")
    operator.config.write_text(config(upstream, old, trust(vendor)))
    assert "say --yes" in operator.refused("plugin", "lock")
    assert not operator.lock.exists()
    assert "acme-pii 1.2.0 is new" in operator.ok("plugin", "lock", "--yes")
    assert "up to date" in operator.ok("plugin", "update")

    new = publish(vendor, registry, variant(pii, "1.3.0", ["state"]), "1.3.0")
    before = (operator.config.read_text(), operator.lock.read_text())
    said = operator.refused("plugin", "update")
    assert "acme-pii 1.2.0 -> 1.3.0" in said and "1.3.0 newly asks for state" in said and "--yes" in said, said
    assert operator.answer("n", "plugin", "update", "mask").returncode != 0
    assert before == (operator.config.read_text(), operator.lock.read_text())
    # A hand that moves the tag is asked the same: a server does not say yes for the operator.
    operator.config.write_text(before[0].replace(old, new))
    assert "newly asks for state" in operator.refused("serve", "--config", operator.config)
    operator.config.write_text(before[0])

    done = operator.answer("y", "plugin", "update", "acme-pii")
    assert done.returncode == 0, done.stderr
    assert operator.config.read_text() == before[0].replace(old, new)
    assert 'version = "1.3.0"' in operator.lock.read_text()
    # What it asks for is not given by accepting the update.
    assert "does not grant" in operator.refused("check", operator.config)

    said = operator.refused("plugin", "update", "mask", "--to", "1.2.0", "--yes")
    assert "back from 1.3.0 to 1.2.0" in said and "--allow-downgrade" in said, said
    operator.ok("plugin", "update", "mask", "--to", "1.2.0", "--yes", "--allow-downgrade")
    assert (operator.config.read_text(), operator.lock.read_text()) == before
    assert "no stage" in operator.refused("plugin", "update", "nobody")

    # The same version with other bytes is no update.
    publish(vendor, registry, variant(pii, "1.2.0") + b"\0\x02\x01x", "1.2.0", "--key", "acme", "--overwrite")
    said = operator.refused("plugin", "lock", "--yes")
    assert "a published version must never change" in said, said
    # What is locked is still had, by its digest.
    shutil.rmtree(operator.data / "registry")
    server = serve(operator)
    ask(server)
    assert "[EMAIL]" in upstream.requests[-1]
    assert operator.lock.read_text() == before[1]


def test_a_reload_takes_a_new_version_and_a_failed_pull_changes_nothing(
    registry, vendor, operator, serve, upstream, pii
):
    old = publish(vendor, registry, variant(pii, "1.2.0"), "1.2.0")
    new = publish(vendor, registry, variant(pii, "1.3.0"), "1.3.0")
    operator.config.write_text(config(upstream, old, trust(vendor)))
    server = serve(operator)
    ask(server)

    def hang_up(reference, says):
        at = len(server.log.read_text())
        operator.config.write_text(config(upstream, reference, trust(vendor)))
        server.process.send_signal(signal.SIGHUP)
        wait_for(says, lambda: says in server.log.read_text()[at:])
        return server.log.read_text()[at:]

    hang_up(new, "the new config is served")
    wait_for("the lock", lambda: 'version = "1.3.0"' in operator.lock.read_text())
    assert "1.2.0" not in operator.lock.read_text()
    ask(server)
    assert "[EMAIL]" in upstream.requests[-1]

    locked = operator.lock.read_text()
    assert "is not in the registry" in hang_up(new.replace("1.3.0", "1.4.0"), "the last good config stays")
    registry.stop()
    assert "cannot be reached" in hang_up(new.replace("1.3.0", "1.5.0"), "the last good config stays")
    assert operator.lock.read_text() == locked
    ask(server)
    assert "[EMAIL]" in upstream.requests[-1]
    # What is locked and here needs no registry; and it is what is served already.
    hang_up(new, "nothing changed in the config")
    ask(server)


@pytest.mark.parametrize("form", ["bundle", "bundle.tar"])
def test_a_bundle_serves_on_a_machine_without_a_network(
    form, registry, vendor, operator, serve, upstream, pii, tmp_path
):
    reference = publish(vendor, registry, variant(pii, "1.2.0"), "1.2.0")
    (operator.folder / "own.wasm").write_bytes(variant(pii, "0.9.0", name="own-pii"))
    (operator.folder / "weights.gguf").write_bytes(b"GGUF, or as good as")
    # The key in a file, a plugin in a file, a model that nobody loads: all of it has to come along.
    (operator.folder / "acme.pub").write_text(vendor.pem("acme"))
    more = '[[trust]]\nname = "Acme"\nkey = "acme.pub"\nplugins = ["acme-*"]\n'
    more += '[stages.own]\npath = "own.wasm"\n[models.small]\npath = "weights.gguf"\nload = "on-use"\n'
    operator.config.write_text(config(upstream, reference, more).replace('"mask"]', '"mask", "own"]'))
    bundle = tmp_path / form
    operator.ok("plugin", "lock", "--yes")
    assert "1 signed" in operator.ok("bundle", "create", bundle)
    registry.stop()

    other = Machine(tmp_path / "other")
    # Nobody has said that this machine trusts Acme.
    said = other.refused("bundle", "load", bundle, "place")
    assert "the bundle trusts Acme" in said and "acme-pii" in said and "--trust" in said, said
    place = other.folder / "place"
    assert not place.exists()
    other.ok("bundle", "load", bundle, "place", "--trust")
    assert (place / "models/small.gguf").read_bytes() == b"GGUF, or as good as"
    assert (place / "plugins/own.wasm").exists()
    other.config = place / "millgate.toml"
    server = serve(other, "--locked")
    ask(server)
    assert "[EMAIL]" in upstream.requests[-1]
    server.stop()

    # What is there is not replaced unasked, and neither is whom it trusts.
    assert "--overwrite" in other.refused("bundle", "load", bundle, "place")
    other.ok("bundle", "load", bundle, "place", "--overwrite")
    vendor.ok("keys", "new", "other")
    text = other.config.read_text()
    acme, theirs = (vendor.pem(key).splitlines()[1] for key in ("acme", "other"))
    assert acme in text
    other.config.write_text(text.replace(acme, theirs))
    said = other.refused("bundle", "load", bundle, "place", "--overwrite")
    assert "nothing was written" in said and "trusted" in said, said
    assert theirs in other.config.read_text()
    # A locked model that was changed is not served.
    other.config.write_text(text)
    (place / "models/small.gguf").unlink()
    (place / "models/small.gguf").write_bytes(b"other")
    assert "small" in other.refused("serve", "--locked", "--config", other.config)


def test_a_bundle_with_a_missing_part_loads_nothing(registry, vendor, operator, upstream, pii, tmp_path):
    reference = publish(vendor, registry, variant(pii, "1.2.0"), "1.2.0")
    operator.config.write_text(config(upstream, reference, trust(vendor)))
    operator.ok("plugin", "lock", "--yes")
    bundle = tmp_path / "bundle"
    operator.ok("bundle", "create", bundle)
    component = json.loads(operator.ok("plugin", "inspect", reference, "--json"))["digest"]
    (bundle / "blobs/sha256" / component.removeprefix("sha256:")).unlink()
    other = Machine(tmp_path / "other")
    said = other.refused("bundle", "load", bundle, "place", "--trust")
    assert component in said and "nothing was loaded" in said, said
    assert not (other.folder / "place").exists()
    assert not list(pathlib.Path(other.data).rglob("blobs/sha256/*"))
