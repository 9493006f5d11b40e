"""The resource `inspection`, made of the check in `plugin.py`."""

import entry
import plugin
from millgate import Segment, Stream, Whole
from wit_world.exports import compliance
from wit_world.imports.types import Finding, Span

DIRECTIONS = ("input", "output", "dataset")


def verdict(said):
    """The contract's verdict."""
    decision = compliance.Decision_Pass()
    if said.refusal:
        refusal = compliance.Refusal(*said.refusal)
        if said.keep is None:
            decision = compliance.Decision_Block(refusal)
        else:
            again = compliance.Regeneration(said.keep, said.ban, refusal)
            decision = compliance.Decision_Regenerate(again)
    return compliance.Verdict(
        said.settled,
        [compliance.Edit(Span(start, end), text) for start, end, text in said.edits],
        [
            Finding(
                note.rule,
                None if note.start is None else Span(note.start, note.end),
                note.score,
                note.explanation,
            )
            for note in said.findings
        ],
        decision,
    )


class Inspection(compliance.Inspection):
    def __init__(self, ctx):
        # The context is lent for the constructor only, so what is needed of it is read here.
        segment = Segment(ctx.role(), DIRECTIONS[ctx.direction().value], ctx.language())
        self.stream = Stream(
            lambda segment, text: entry.configured("check", segment, text),
            getattr(plugin, "WINDOW", Whole()),
            segment,
        )

    def push(self, chunks):
        return verdict(entry.guarded(self.stream.push, chunks))

    def finish(self):
        return verdict(entry.guarded(self.stream.finish))
