"""Refuses texts that are too long."""

from wit_world.exports.validation import Judgement, Outcome_Accept, Outcome_Reject
from wit_world.imports.types import Finding


def configure(config):
    return config["max-characters"]


def validate(maximum, ctx, samples):
    """As many judgements as samples, in the same order."""
    return [judge(maximum, sample) for sample in samples]


def judge(maximum, sample):
    for segment in sample.segments:
        if len(segment.text) > maximum:
            message = f"{segment.path} has {len(segment.text)} characters, at most {maximum} are allowed"
            return Judgement(Outcome_Reject(message), [Finding("length", None, 1.0, message)])
    return Judgement(Outcome_Accept(), [])
