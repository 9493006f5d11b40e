"""Runs a check without a sandbox, for `python -m unittest`."""

from . import Segment, Stream, Verdict, Whole


def inspect(plugin, config, chunks, segment=None):
    """What leaves when the chunks pass the plugin's check: `(text, findings, refusal)`."""
    state = plugin.configure(config)
    window = getattr(plugin, "WINDOW", Whole())
    stream = Stream(lambda segment, text: plugin.check(state, segment, text), window, segment or Segment())
    source = "".join(chunks).encode()
    left, findings, settled = b"", [], 0

    def take(verdict: Verdict):
        nonlocal left, settled
        for start, end, replacement in verdict.edits:
            left += source[settled:start] + replacement.encode()
            settled = end
        left += source[settled : verdict.settled]
        settled = verdict.settled
        findings.extend(verdict.findings)
        return verdict.refusal

    for chunk in chunks:
        if refusal := take(stream.push([chunk])):
            return left.decode(), findings, refusal
    refusal = take(stream.finish())
    return left.decode(), findings, refusal
