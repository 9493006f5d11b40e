"""Warns when too many answers are empty."""

import json
from dataclasses import dataclass

from wit_world.exports.monitoring import Alert, Report, Severity
from wit_world.imports.types import Measure


@dataclass
class State:
    share: float
    at_least: int
    answers: int = 0
    empty: int = 0


def configure(config):
    return State(config["share"], config["at-least"])


def observe(state, events):
    for event in events:
        tokens = [measure.value for measure in event.measures if measure.name == "completion-tokens"]
        if tokens:
            state.answers += 1
            state.empty += tokens[0] == 0
    return report(state)


def tick(state, now_ms):
    return report(state)


def report(state):
    value = state.empty / state.answers if state.answers else 0.0
    severity = Severity.OK
    if state.answers < state.at_least:
        severity = Severity.NO_DATA
    elif value >= state.share:
        severity = Severity.CRITICAL
    message = f"{state.empty} of {state.answers} answers were empty"
    alert = Alert("empty-answers", severity, value, state.share, message)
    return Report([alert], [Measure("empty-share", value)])


def save(state):
    """What survives a restart."""
    return json.dumps([state.answers, state.empty]).encode()


def restore(state, saved):
    state.answers, state.empty = json.loads(saved)


def merge(state, saved):
    answers, empty = json.loads(saved)
    state.answers += answers
    state.empty += empty
