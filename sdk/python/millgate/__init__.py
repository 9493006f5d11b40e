"""Write a Millgate plugin in Python: a `configure` and one check.

Spans are indices of the Python string that the check was given; the SDK turns them into the
contract's byte offsets (UTF-8, counted from the segment's first byte).
"""

from dataclasses import dataclass, field


class PluginError(Exception):
    """An error of the contract; the host shows its message.

    `kind` is one of `invalid-config`, `invalid-input`, `denied`, `unavailable` and `internal`,
    `code` a short stable word in kebab case.
    """

    def __init__(self, kind: str, code: str, message: str):
        super().__init__(message)
        self.kind, self.code, self.message = kind, code, message


@dataclass
class Segment:
    """What a check may know of the text's place."""

    role: str = "user"
    """`system`, `user`, `assistant`, `tool`, or empty."""
    direction: str = "input"
    """`input`, `output` or `dataset`."""
    language: str = ""


@dataclass(frozen=True)
class Whole:
    """The segment is one window: everything is held back until it is complete."""

    def length(self, text: str) -> int | None:
        return None


@dataclass(frozen=True)
class Lines:
    """Line by line, with the newline; a line of more than `max` characters is cut there."""

    max: int = 4096

    def length(self, text: str) -> int | None:
        """The length of the first window, if its end is there. It depends on the text alone."""
        newline = text.find("\n", 0, max(self.max, 1))
        if newline >= 0:
            return newline + 1
        return max(self.max, 1) if len(text) > max(self.max, 1) else None


@dataclass
class Note:
    """A finding, in characters of the window."""

    rule: str
    explanation: str
    score: float = 1.0
    start: int | None = None
    end: int | None = None


@dataclass
class Checked:
    """What a check found in its window."""

    edits: list[tuple[int, int, str]] = field(default_factory=list)
    findings: list[Note] = field(default_factory=list)
    refusal: tuple[str, str] | None = None
    """Code and message of a block or a regeneration."""
    keep: int | None = None
    ban: list[str] = field(default_factory=list)

    def note(self, rule, explanation, score=1.0, start=None, end=None):
        """Reports without changing anything. `start` and `end` may be left out."""
        self.findings.append(Note(rule, explanation, score, start, end))
        return self

    def replace(self, start, end, replacement, rule, explanation, score=1.0):
        """Replaces a part of the text and says why. Where two overlap, the first wins."""
        self.edits.append((start, end, replacement))
        return self.note(rule, explanation, score, start, end)

    def block(self, code, message):
        """Refuses the text. The message goes to the client and must not repeat what was refused."""
        self.refusal = (code, message)
        return self

    def regenerate(self, keep, ban, code, message):
        """Has the model say it again from `keep` on, without the banned strings."""
        self.keep, self.ban, self.refusal = keep, ban, (code, message)
        return self


@dataclass
class Verdict:
    """What one push decided, in bytes of the segment."""

    settled: int
    edits: list[tuple[int, int, str]] = field(default_factory=list)
    findings: list[Note] = field(default_factory=list)
    refusal: tuple[str, str] | None = None
    keep: int | None = None
    ban: list[str] = field(default_factory=list)


class Stream:
    """A streaming inspection made of a check of windows.

    The windows depend on the text alone and a window is judged only when all of it is there, so
    the result never depends on where the chunks break, whatever the check does.
    """

    def __init__(self, check, window, segment: Segment):
        self.check, self.window, self.segment = check, window, segment
        self.text = ""
        self.settled = 0
        self.judged = not isinstance(window, Whole)
        self.refused: Verdict | None = None

    def push(self, chunks) -> Verdict:
        self.text += "".join(chunks)
        return self._advance(False)

    def finish(self) -> Verdict:
        return self._advance(True)

    def _advance(self, complete: bool) -> Verdict:
        verdict = Verdict(self.settled)
        if self.refused:
            verdict.refusal = self.refused.refusal
            return verdict
        while True:
            length = self.window.length(self.text)
            if length is None:
                if not complete or (not self.text and self.judged):
                    return verdict
                length = len(self.text)
            self.judged = True
            text = self.text[:length]
            if self._judge(text, verdict):
                return verdict
            self.text = self.text[length:]
            self.settled += len(text.encode())
            verdict.settled = self.settled

    def _judge(self, text: str, verdict: Verdict) -> bool:
        """Judges one window; true where that ends the segment."""
        checked = self.check(self.segment, text)

        def span(start, end):
            if not 0 <= start <= end <= len(text):
                raise PluginError(
                    "internal",
                    "span-out-of-range",
                    f"the check returned the span {start}..{end}, which is no range of its window",
                )
            first = self.settled + len(text[:start].encode())
            return first, first + len(text[start:end].encode())

        for note in checked.findings:
            start = end = None
            if note.start is not None:
                start, end = span(note.start, note.end)
            verdict.findings.append(Note(note.rule, note.explanation, note.score, start, end))
        if checked.refusal:
            verdict.refusal = checked.refusal
            if checked.keep is None:
                self.refused = verdict
            else:
                verdict.keep, _ = span(checked.keep, checked.keep)
                verdict.ban = checked.ban
                self.text = text[: checked.keep]
            return True
        behind = 0
        for start, end, replacement in sorted(checked.edits, key=lambda edit: edit[:2]):
            first, last = span(start, end)
            if start >= behind:
                behind = end
                verdict.edits.append((first, last, replacement))
        return False
