"""The session in docs/operate.md: every command in it against a running server, and what each one prints."""

import os
import re
import subprocess

from conftest import PATIENCE, ROOT, binary


def session():
    """Pairs of a command and the lines that it prints, in the order of the page."""
    text = (ROOT / "docs/operate.md").read_text()
    steps = []
    for block in re.findall(r"```console\n(.*?)```", text, flags=re.S):
        for line in block.splitlines():
            if line.startswith("$ "):
                steps.append((line[2:], []))
            else:
                steps[-1][1].append(line)
    return steps


def fits(expected, line):
    """Whether a printed line is the expected one: … stands for anything, and widths of columns do not count."""
    squeeze = re.compile(r" {2,}").sub
    pattern = ".*".join(re.escape(part) for part in squeeze(" ", expected).strip().split("…"))
    return re.fullmatch(pattern, squeeze(" ", line).strip())


def test_the_session_in_the_docs_runs_as_it_stands(millgate, upstream, tmp_path):
    server = millgate(f"""
[models.remote]
upstream = {{ url = "{upstream.url}/v1" }}
[stages.mask]
plugin = "pii"
config = {{ action = "mask" }}
[pipelines.default]
serves = ["remote"]
input = ["mask"]
arms = [{{ name = "stable", model = "remote" }}]
""")
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "millgate").symlink_to(binary())
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "MILLGATE_SERVER": server.url}
    steps = session()
    assert len(steps) >= 15
    for command, expected in steps:
        done = subprocess.run(
            command, shell=True, cwd=server.folder, env=environment, capture_output=True, text=True, timeout=PATIENCE
        )
        said = done.stdout.splitlines()
        where = f"$ {command}\n{done.stdout}{done.stderr}"
        changes = command == "millgate plan" and expected != ["nothing would change: generation 1 goes on"]
        assert done.returncode == (2 if changes else 0), where
        assert len(said) == len(expected) and all(map(fits, expected, said)), where
