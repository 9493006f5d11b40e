"""Splits users by a hash, and rolls back a candidate that fails more often."""

import zlib

from wit_world.exports.deployment import (
    Action_Hold,
    Action_RollBack,
    ArmRole,
    Choice,
    Recommendation,
)
from wit_world.imports.types import Measure


def configure(config):
    return config


def route(config, ctx, features, arms):
    user = next((feature.value for feature in features if feature.name == "user"), "")
    bucket = zlib.crc32(user.encode()) / 2**32
    below = 0.0
    for arm in arms:
        below += arm.weight
        if bucket < below or arm is arms[-1]:
            return Choice(arm.name, arm.weight or 1.0, f"sticky by user, bucket {bucket:.2f}")


def review(config, rollout):
    stable, candidate = (errors(rollout, role) for role in (ArmRole.STABLE, ArmRole.CANDIDATE))
    evidence = [Measure("effect", candidate[1] - stable[1])]
    if min(stable[0], candidate[0]) < config["at-least"]:
        return Recommendation(Action_Hold(), "too few requests", evidence)
    reason = f"the candidate's error rate is {candidate[1]:.3f}, the stable arm's {stable[1]:.3f}"
    worse = candidate[1] > stable[1] + config["margin"]
    return Recommendation(Action_RollBack() if worse else Action_Hold(), reason, evidence)


def errors(rollout, role):
    """Requests and error rate of an arm."""
    for summary in rollout.arms:
        if summary.arm.role == role:
            rates = [metric.mean for metric in summary.metrics if metric.name == "error"]
            return summary.requests, rates[0] if rates else 0.0
    return 0, 0.0


def save(config):
    """Nothing is remembered."""
    return b""


def restore(config, saved):
    pass
