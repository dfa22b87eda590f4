"""The report of a sweep for people: settings and scores side by side, best first. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from trainer.evaluate.report import Column, table
from trainer.experiments.grid import as_text, short_names
from trainer.experiments.results import Result
from trainer.experiments.tables import RUN, SCORES, unfinished

_HOW_TO_READ = """\
Scores are those of each run's final network on the common footprint; seconds are of training, without scoring.

- One run for each setting: whether a difference is more than chance, runs with other seeds would tell.
- The best was chosen by these scores, so its own is flattered: test slides or a cross-validation give a fair one.
"""


def best_first(results: Sequence[Result]) -> list[Result]:
    """Those with scores, by mean IoU; without a validation side, as they come."""
    scored = [r for r in results if r.scores]
    return sorted(scored, key=lambda r: -1.0 if r.scores["miou"] is None else r.scores["miou"], reverse=True)


def sweep_markdown(name: str, command: str, results: Sequence[Result]) -> str:
    """The Markdown of sweep.md."""
    rows = best_first(results)
    short = short_names(list(results[0].run.settings))
    settings: list[Column] = [(title, partial(_setting, key)) for key, title in short.items()]
    parts = [f"# Sweep {name}", "", f"Over {', '.join(f'`{key}`' for key in short)}:", ""]
    parts += ["```sh", command, "```", "", *unfinished(results)]
    if rows:
        parts += [table([*settings, *SCORES, RUN], rows), "", "![mean IoU](sweep.png)", ""]
        parts += [*_not_the_same_pixels(rows), _HOW_TO_READ]
    return "\n".join(parts)


def _setting(key: str, result: Result) -> str:
    return as_text(result.run.settings[key])


def _not_the_same_pixels(results: Sequence[Result]) -> list[str]:
    if len({tuple(r.truth_pixels.items()) for r in results}) == 1:
        return []
    return [
        "**The runs were not scored on the same pixels**, since their settings choose the validation slides or regions "
        "(`seed`, `split`, the largest patch size): differences between rows are also those between pixels.",
        "",
    ]
