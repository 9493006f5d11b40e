"""Masks the words on a list."""

from millgate import Checked, Lines

# Judged line by line, however the text comes in.
WINDOW = Lines(4096)


def configure(config):
    """Called once; every request starts from what it leaves behind."""
    return config["words"]


def check(words, segment, line):
    checked = Checked()
    for word in words:
        at = line.find(word)
        while at >= 0:
            checked.replace(at, at + len(word), "***", "word", "on the list")
            at = line.find(word, at + len(word))
    return checked
