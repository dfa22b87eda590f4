"""Which runs an experiment has, and what each is called. Pure."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import yaml

from trainer.errors import ConfigError

_LONGEST_NAME = 80
"""Characters. File systems take 255 bytes, people fewer."""


@dataclass(frozen=True)
class NamedRun:
    """One run: the name of its folder, the settings in which it differs from the others, and all its overrides."""

    name: str
    settings: dict[str, Any]
    overrides: tuple[str, ...]


def sweep_runs(overrides: Sequence[str]) -> list[NamedRun]:
    """A run for each combination of the values of all `key=[value, value]`; the first key varies slowest.

    A list's elements are the values, so a setting that is a list itself takes a list of lists. What has no list holds
    for all runs. Names depend on a run's own settings alone: a sweep can be extended.

    Raises:
      ConfigError: nothing varies, a list is empty, or a setting or value is given twice.
    """
    pairs = [(key, _list_of(text)) for key, _, text in (item.partition("=") for item in overrides)]
    choices = {key: values for key, values in pairs if values is not None}
    fixed = [item for item, (_, values) in zip(overrides, pairs, strict=True) if values is None]
    if not choices:
        raise ConfigError("no setting has several values", where="command line", fix="key.path=[value,value]")
    for key, values in choices.items():
        _check_values(key, values, times_given=[k for k, _ in pairs].count(key))
    short, runs = short_names(list(choices)), []
    for combination in product(*choices.values()):
        settings = dict(zip(choices, combination, strict=True))
        own = [f"{key}={json.dumps(value, default=str)}" for key, value in settings.items()]
        name = folder_name({short[key]: value for key, value in settings.items()})
        runs.append(NamedRun(name, settings, (*fixed, *own)))
    return runs


def fold_runs(folds: int, overrides: Sequence[str]) -> list[NamedRun]:
    """A run for each fold.

    Raises:
      ConfigError: a single fold leaves nothing to train on.
    """
    if folds < 2:
        raise ConfigError(f"{folds} folds leave nothing to train on", where="--folds", fix="2 or more")
    return [
        NamedRun(f"fold-{k}", {"split.fold": k}, (*overrides, f"split.folds={folds}", f"split.fold={k}"))
        for k in range(1, folds + 1)
    ]


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """The end of each key path that no other has, `learning_rate` for `training.optimizer.learning_rate`."""

    def end(key: str, length: int) -> str:
        return ".".join(key.split(".")[-length:])

    def shortest(key: str) -> str:
        lengths = range(1, key.count(".") + 1)
        return next((end(key, n) for n in lengths if [end(k, n) for k in keys].count(end(key, n)) == 1), key)

    return {key: shortest(key) for key in keys}


def folder_name(settings: dict[str, Any]) -> str:
    """`learning_rate=0.001,norm=group`; what a file system may not like becomes '-', and a hash then tells it apart."""
    text = ",".join(f"{key}={as_text(value)}" for key, value in settings.items())
    safe = re.sub(r"[^A-Za-z0-9_.+=,-]+", "-", text)
    if safe == text and len(text) <= _LONGEST_NAME:
        return text
    return f"{safe[: _LONGEST_NAME - 9]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def as_text(value: Any) -> str:
    """A setting's value for people: words without quotes, all else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _list_of(text: str) -> list[Any] | None:
    """None for what is no list, bad YAML included, which reading the configuration then tells."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return None
    return value if isinstance(value, list) else None


def _check_values(key: str, values: Sequence[Any], times_given: int) -> None:
    if times_given > 1:
        raise ConfigError("is given twice", where=f"override {key}", fix=f"one list: {key}=[a,b,c]")
    texts = [as_text(value) for value in values]
    if not texts:
        raise ConfigError("has no values", where=f"override {key}", fix=f"{key}=[a,b], or {key}=[[]] for an empty list")
    if twice := sorted({text for text in texts if texts.count(text) > 1}):
        raise ConfigError(f"has the value {', '.join(twice)} twice", where=f"override {key}", fix="name it once")
