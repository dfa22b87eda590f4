"""Errors for people: what happened, where, and how to fix it.

The command line prints a `WidefieldError` as one message without a traceback and exits with status 2. A mistake of
ours (a bug) is any other exception and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class WidefieldError(Exception):
    """A user's problem that the program can name.

    Args:
      what: what is wrong, with the values that show it.
      where: the file, config key, slide or rank it was found in.
      fix: something the reader can do or type.
    """

    kind = "Error"

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        super().__init__(what, where, fix)
        self.what, self.where, self.fix = what, where, fix

    def __str__(self) -> str:
        text = f"{self.kind}: {self.where}: {self.what}" if self.where else f"{self.kind}: {self.what}"
        return f"{text}\n  fix: {self.fix}" if self.fix else text

    def __reduce__(self):  # keyword-only arguments: pickled across ranks by comm.gather and on_root
        return (_rebuild, (type(self), self.what, self.where, self.fix))


def _rebuild(cls: type[WidefieldError], what: str, where: str, fix: str) -> WidefieldError:
    return cls(what, where=where, fix=fix)


class ConfigError(WidefieldError):
    kind = "ConfigError"


class DataError(WidefieldError):
    """The manifest, a data directory, the split of a data set, or scores of its slides cannot be used."""

    kind = "DataError"


class SlideError(WidefieldError):
    kind = "SlideError"


class AnnotationError(WidefieldError):
    kind = "AnnotationError"


class StoreError(WidefieldError):
    """Extracted patches cannot be used."""

    kind = "StoreError"


class ModelError(WidefieldError):
    kind = "ModelError"


class CommError(WidefieldError):
    kind = "CommError"


class LaunchError(WidefieldError):
    """Ranks cannot be placed on a node, or a job cannot be started."""

    kind = "LaunchError"


class AffinityError(WidefieldError):
    """Ranks run where they slow each other down."""

    kind = "AffinityError"


class CheckpointError(WidefieldError):
    kind = "CheckpointError"


class TrainingError(WidefieldError):
    """Training cannot go on."""

    kind = "TrainingError"


class RunError(WidefieldError):
    """The run directory is held, not empty, or not a run directory."""

    kind = "RunError"


class PredictionError(WidefieldError):
    """A folder cannot take a slide's prediction."""

    kind = "PredictionError"


class ExportError(WidefieldError):
    """A run cannot be exported, or a folder is not an export that can be used."""

    kind = "ExportError"


class StudyError(WidefieldError):
    """A scaling study's folder cannot be read or written, or its runs cannot be compared."""

    kind = "StudyError"


class StoppedBySignal(Exception):
    """Not an error: the run was asked to stop, has saved its state, and wants to be started again."""

    EXIT_CODE = 75
    """EX_TEMPFAIL of sysexits.h: "the user is invited to retry". Job scripts requeue on it."""


def nearest(word: str, known: Iterable[str]) -> str:
    """The known name nearest to a misspelt one, as a hint (`did you mean 'x'?`), or the list of all known names."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.5)
    return f"did you mean '{close[0]}'?" if close else f"known names: {', '.join(names)}"
