"""The component's exports, made of the functions in `plugin.py`. `millgate plugin build` uses this
file; plugin authors never do."""

import json

import plugin
from componentize_py_types import Err
from millgate import PluginError
from wit_world.imports import types

STATE = None


def guarded(run, *args):
    """Calls the plugin; its `PluginError` becomes the contract's error."""
    try:
        return run(*args)
    except PluginError as error:
        kind = types.ErrorKind[error.kind.upper().replace("-", "_")]
        raise Err(types.StageError(kind, error.code, error.message)) from error


def configured(name, *args):
    """Calls a function of the plugin with its state."""
    return guarded(getattr(plugin, name), STATE, *args)


class Lifecycle:
    def configure(self, config):
        global STATE
        STATE = guarded(plugin.configure, json.loads(config.strip() or "{}"))


class Validation:
    def validate(self, ctx, samples):
        return configured("validate", ctx, samples)


class Evaluation:
    def evaluate(self, ctx, answers):
        return configured("evaluate", ctx, answers)


class Keeps:
    def save(self):
        return configured("save")

    def restore(self, state):
        return configured("restore", state)


class Monitoring(Keeps):
    def observe(self, events):
        return configured("observe", events)

    def tick(self, now_ms):
        return configured("tick", now_ms)

    def merge(self, state):
        return configured("merge", state)


class Deployment(Keeps):
    def route(self, ctx, features, arms):
        return configured("route", ctx, features, arms)

    def review(self, rollout):
        return configured("review", rollout)
