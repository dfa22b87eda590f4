"""A study on disk: results/<system>/<study>/<run>/{config.yaml, run.json, steps.csv, affinity.json}."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from trainer.errors import StudyError
from trainer.files import replace_content
from trainer.scaling.inputs import MODEL
from trainer.scaling.records import Run, RunRecord, Study
from trainer.scaling.steps import Steps, as_csv, read_steps

FIGURES = "figures"
"""Folder of a study that is no run, as `model/` and those whose name begins with a dot are none."""
_RECORD = TypeAdapter(RunRecord)


def write_run(study_dir: Path, record: RunRecord, steps: Steps | None, config_yaml: str, affinity_json: str) -> Path:
    """Write a run into its study, in the place of an older run of the same point. Returns its folder.

    Killed half-way, it leaves the older run, or for an instant between two renames none, but never a mixture.

    Args:
      steps: what was timed; None for a failed run.
    Raises:
      StudyError: the study cannot be written to.
    """
    expected = (record.repeats, record.steps_per_repeat, record.point.world_size)
    assert (steps is None) == (record.status == "failed"), "a done run has steps, a failed one has none"
    assert steps is None or steps.shape == expected, f"{steps.shape} steps, the record says {expected}"
    files = {
        "config.yaml": config_yaml,
        "run.json": json.dumps(asdict(record), indent=1) + "\n",
        "affinity.json": affinity_json,
    }
    if steps is not None:
        files["steps.csv"] = as_csv(steps)
    folder = study_dir / record.point.name
    try:
        _replace_folder(folder, files)
    except OSError as error:
        raise StudyError(f"cannot be written: {error}", where=str(folder), fix="choose another folder") from error
    return folder


def _replace_folder(folder: Path, files: dict[str, str]) -> None:
    new, old = (folder.with_name(f".{folder.name}.{end}") for end in ("part", "old"))
    for left_behind in (new, old):
        shutil.rmtree(left_behind, ignore_errors=True)
    new.mkdir(parents=True)
    for name, content in files.items():
        replace_content(new / name, content)
    if folder.exists():
        folder.rename(old)  # a folder cannot be renamed onto one that has files
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def read_study(folder: Path) -> Study:
    """All runs of a study: every folder in it is one.

    Raises:
      StudyError: there is none, a run's files are not whole, or runs were made with different settings.
    """
    if not folder.is_dir():
        raise StudyError("no such folder", where=str(folder), fix="give the folder of a study: results/SYSTEM/STUDY")
    folders = [
        p for p in folder.iterdir() if p.is_dir() and p.name not in (FIGURES, MODEL) and not p.name.startswith(".")
    ]
    if not folders:
        raise StudyError("holds no runs", where=str(folder), fix="widefield scaling run or submit measures them")
    runs = sorted((_read_run(p) for p in folders), key=lambda r: r.point.order)
    _check_settings(runs, folder)
    absolute = folder.resolve()
    return Study(name=absolute.name, system=absolute.parent.name, runs=tuple(runs))


def _read_run(folder: Path) -> Run:
    record = _read_record(folder / "run.json")
    point = record.point
    if point.name != folder.name:
        raise StudyError(
            f"holds the run of {point.name}", where=str(folder), fix=f"mv {folder} {folder.with_name(point.name)}"
        )
    shape = (record.repeats, record.steps_per_repeat, point.world_size)
    return Run(record, read_steps(folder / "steps.csv", shape) if record.status == "done" else None)


def _read_record(path: Path) -> RunRecord:
    fix = f"measure the point again, or remove {path.parent}"
    try:
        return _RECORD.validate_json(path.read_bytes(), strict=True)
    except OSError as error:
        raise StudyError(f"cannot be read: {error.strerror}", where=str(path), fix=fix) from None
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise StudyError(f"{key}: {first['msg']}" if key else first["msg"], where=str(path), fix=fix) from None


def _check_settings(runs: Sequence[Run], folder: Path) -> None:
    """Points may be compared only when they share all other settings."""
    cores = {run.record.cores_per_rank: run.point.name for run in runs}
    if len(cores) > 1:
        raise StudyError(
            "its ranks have not all as many cores: " + ", ".join(f"{n} in {name}" for n, name in cores.items()),
            where=str(folder),
            fix="measure again with --cores-per-rank, or under another study name",
        )
    names = defaultdict(list)
    for run in runs:
        names[run.record.config_hash].append(run.point.name)
    if len(names) > 1:
        listed = "".join(f"\n  {hashed}: {', '.join(points)}" for hashed, points in names.items())
        raise StudyError(
            f"its runs were made with {len(names)} different configurations and cannot be compared:{listed}",
            where=str(folder),
            fix="measure with the other configuration under another study name, and move its runs there",
        )
