"""The guides in docs/plugins: every command in them, run as they stand in an empty folder; and what
the author's commands say where something is wrong."""

import json
import os
import pathlib
import re
import shutil
import subprocess

import pytest

from conftest import ROOT, binary

NEEDS = {"rust": ["cargo"], "javascript": ["node", "npm"], "python": ["python3"]}


@pytest.fixture
def shell(tmp_path):
    """Runs a command line with `millgate` on the path and a data folder that the runs share, so that
    an image is compiled once."""
    bin_dir = tmp_path / "bin"
    bin_dir.mkdir()
    (bin_dir / "millgate").symlink_to(binary())
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache")) / "millgate"
    data = cache / "test-data"
    data.mkdir(parents=True, exist_ok=True, mode=0o700)
    environment = {
        **os.environ,
        "PATH": f"{bin_dir}:{os.environ['PATH']}",
        "MILLGATE_DATA": str(data),
        "CARGO_TARGET_DIR": str(cache / "test-plugins-target"),
    }

    def run(command, folder=tmp_path, code=0):
        done = subprocess.run(
            command, shell=True, cwd=folder, env=environment, capture_output=True, text=True, timeout=900,
        )
        assert done.returncode == code, f"$ {command}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    return run


def commands(language):
    """The indented lines of a guide, outside of fences."""
    text = (ROOT / f"docs/plugins/{language}.md").read_text()
    text = re.sub(r"```.*?```", "", text, flags=re.S)
    return [line.strip() for line in text.splitlines() if line.startswith("    ")]


@pytest.mark.parametrize("language", NEEDS)
def test_every_command_of_a_guide_works(language, shell, tmp_path):
    missing = [tool for tool in NEEDS[language] if not shutil.which(tool)]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")
    folder, said = tmp_path, {}
    for command in commands(language):
        if command.startswith("cd "):
            folder = folder / command[3:]
        else:
            # As long as a figure is not asked for, a bench need not take long.
            extra = " --seconds 0.1" if command == "millgate plugin bench" else ""
            said[command] = shell(command + extra, folder)
    assert len(said) >= 7
    assert "sha256:" in said["millgate plugin build"]
    assert "\nok" in said["millgate plugin test"]
    assert "pii" in said["millgate plugin bench"]
    run = next(text for command, text in said.items() if command.startswith("millgate plugin run"))
    assert run.startswith("a *** walks in")
    inspected = next(text for command, text in said.items() if command.startswith("millgate plugin inspect"))
    assert "compliance" in inspected

    # A wrong expectation, and a check that depends on where chunks break, are found.
    fixture = folder / "fixtures/basic.toml"
    fixture.write_text(fixture.read_text().replace("a *** walks in", "a ### walks in"))
    failed = shell("millgate plugin test --no-build --cases 2 --seed 1", folder, code=1)
    assert 'output: expected "a ### walks in", got "a *** walks in"' in failed
    assert "(--seed 1)" in failed


def test_a_check_that_depends_on_the_chunks_is_found_and_the_text_shortened(shell, tmp_path):
    shell("millgate plugin new words")
    source = tmp_path / "words/src/lib.rs"
    text = source.read_text()
    text = text[: text.index("impl Windowed")] + """
impl Compliance for Words {
    type Inspection = u32;
    fn begin(&self, _: &Context<'_>) -> u32 { 0 }
    /// Looks at each chunk alone: what a plugin must not do.
    fn push(&self, at: &mut u32, chunks: &[String]) -> Result<Verdict, StageError> {
        let mut findings = Vec::new();
        for chunk in chunks {
            if self.words.iter().any(|word| chunk.contains(word.as_str())) {
                findings.push(Finding::new("word", 1.0, "on the list"));
            }
            *at += chunk.len() as u32;
        }
        let mut verdict = Verdict::pass(*at);
        verdict.findings = findings;
        Ok(verdict)
    }
    fn finish(&self, at: &mut u32) -> Result<Verdict, StageError> { Ok(Verdict::pass(*at)) }
}

millgate_sdk::plugin!(Words: Compliance);
"""
    source.write_text(text)
    said = shell("millgate plugin test --seed 7", tmp_path / "words", code=1)
    assert 'the text "foo" cut at' in said


def test_errors_say_what_to_do(shell, tmp_path):
    assert "lower-case letters" in shell("millgate plugin new Words", code=1)
    shell("millgate plugin new --lang js words")
    assert "words is already there" in shell("millgate plugin new words", code=1)
    assert "`millgate plugin new NAME` makes one" in shell("millgate plugin build .", code=1)
    assert "run `millgate plugin build` first" in shell("millgate plugin test --no-build words", code=1)
    manifest = tmp_path / "words/plugin.toml"
    manifest.write_text(manifest.read_text().replace('license = "Apache-2.0"\n', ""))
    assert "missing field `license`" in shell("millgate plugin build words", code=1)
    fixture = tmp_path / "words/fixtures/basic.toml"
    shell("millgate plugin new --lang python other")
    (tmp_path / "other/fixtures/basic.toml").write_text("[[case]]\nname = 'x'\nexpected = {}\n")
    assert "unknown field `expected`" in shell("millgate plugin test --no-build other", code=1)
    assert fixture.exists()


def test_a_missing_tool_is_named(shell, tmp_path):
    shell("millgate plugin new --lang js words")
    assert "there is no `node`" in shell(f"PATH={tmp_path}/bin millgate plugin build words", code=1)
    shell("millgate plugin new --lang python other")
    assert "there is no `python3`" in shell(f"PATH={tmp_path}/bin millgate plugin build other", code=1)


def test_a_bench_gives_json(shell):
    said = json.loads(shell("millgate plugin bench pii --seconds 0.1 --json"))
    assert said["interface"] == "compliance" and said["plugin"]["fresh_us"] > said["plugin"]["warm_us"] > 0
    assert said["plugin"]["memory"] >= 64 << 10
