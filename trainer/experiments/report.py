"""The report of an experiment, rebuilt from its runs at any time: KIND.json for machines, KIND.md for people."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from trainer.errors import RunError
from trainer.experiments.crossval import crossval_markdown, summary_of
from trainer.experiments.figures import draw_sweep
from trainer.experiments.grid import NamedRun
from trainer.experiments.plan import Experiment, Kind
from trainer.experiments.results import Result, read_result
from trainer.experiments.sweep import sweep_markdown
from trainer.files import replace_content


def write_report(experiment: Experiment) -> Path:
    """Write the report of the runs as they are now; returns the file for people.

    Raises:
      RunError: the folder cannot be written to.
    """
    folder, kind = experiment.folder, experiment.kind
    results = [read_result(folder / run.name, run) for run in experiment.runs]
    try:
        for name, content in files_of(experiment, results).items():
            replace_content(folder / name, content)
    except OSError as error:
        raise RunError(f"cannot be written: {error}", where=str(folder), fix="-o ANOTHER/DIR") from None
    return folder / f"{kind}.md"


def files_of(experiment: Experiment, results: Sequence[Result]) -> dict[str, str | bytes]:
    """Name -> content of all that the report of these results is made of."""
    name, command = experiment.folder.absolute().name, experiment.command
    record: dict[str, Any] = {"command": command, "runs": [asdict(result) for result in results]}
    if experiment.kind == "sweep":
        figure = {"sweep.png": draw_sweep(results)} if any(r.scores for r in results) else {}
        return {"sweep.json": _json(record), "sweep.md": sweep_markdown(name, command, results), **figure}
    summary = summary_of(results)
    markdown = crossval_markdown(name, command, results, summary)
    return {"crossval.json": _json(record | {"summary": summary}), "crossval.md": markdown}


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, default=str) + "\n"


def read_experiment(folder: Path, kind: Kind) -> Experiment:
    """The experiment that was begun in a folder.

    Raises:
      RunError: there is none.
    """
    path = folder / f"{kind}.json"
    try:
        record = json.loads(path.read_bytes())
        runs = tuple(NamedRun(**entry["run"]) for entry in record["runs"])
        return Experiment(kind, folder, record["command"], runs)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise RunError(
            f"no {kind} was begun here ({error})", where=str(path), fix=f"widefield {kind} CONFIG -o {folder}"
        ) from None
