"""Scores 1 where the answer contains a reference."""

from wit_world.exports.evaluation import CaseScores, Evaluation, Score


def configure(config):
    return config["ignore-case"]


def evaluate(ignore_case, ctx, answers):
    return Evaluation([CaseScores(answer.id, scores(ignore_case, answer)) for answer in answers], [])


def scores(ignore_case, answer):
    if not answer.references:
        return []
    output = folded(ignore_case, answer.output)
    found = any(folded(ignore_case, reference) in output for reference in answer.references)
    return [Score("contains", float(found), "")]


def folded(ignore_case, text):
    """Only ASCII letters: `str.lower` changes the length of others."""
    return text.encode().lower().decode() if ignore_case else text
