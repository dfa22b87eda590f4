"""An experiment before its first run: every configuration read, checked against the data and written to its folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from trainer.config import Config, check_groups, check_rules, dump_config, load_config
from trainer.errors import ConfigError, RunError
from trainer.experiments.grid import NamedRun, as_text
from trainer.files import replace_content
from trainer.patches.build import parts_folder
from trainer.patches.split import assign_splits
from trainer.slides.dataset import SPLITS, load_dataset
from trainer.train.run_dir import MARK, holds_run

Kind = Literal["sweep", "crossval"]


@dataclass(frozen=True)
class Experiment:
    """Runs that are carried out and reported together, each in `folder/name`."""

    kind: Kind
    folder: Path
    command: str
    """What carries it out, or the rest of it."""
    runs: tuple[NamedRun, ...]


def configs_of(
    config_file: str, runs: Sequence[NamedRun], kind: Kind, folder: Path | None
) -> tuple[Path, list[Config]]:
    """The experiment's folder, by default beside the configuration's output, and the configuration of each run.

    Each run has its index in its own folder, made from slides' patches that all runs share: those beside the index that
    the configuration names, so that what was indexed before is used.

    Raises:
      ConfigError: a configuration is not valid; names its run.
    """
    configs = []
    for run in runs:
        try:
            config = load_config(config_file, run.overrides)
        except ConfigError as error:
            raise ConfigError(error.what, where=f"run {run.name}: {error.where}", fix=error.fix) from None
        folder = folder or config.output.with_name(f"{config.output.name}-{kind}")
        parts = parts_folder(config, config.index_file or folder / "index")
        places = {"output": folder / run.name, "index_file": None, "index_parts": parts}
        configs.append(config.model_copy(update=places))
    assert folder
    return folder, configs


def check(runs: Sequence[NamedRun], configs: Sequence[Config], world_size: int) -> tuple[list[str], list[str]]:
    """Check the rules across sections, and that the slides are there and can be split.

    Returns:
      (one line for each run that says how many slides are on which side, warnings without repetition).
    Raises:
      ConfigError, DataError: see `check_rules`, `check_groups`, `load_dataset` and `assign_splits`.
    """
    datasets = {config.data: load_dataset(config.data) for config in configs}
    lines, warnings = [], []
    for run, config in zip(runs, configs, strict=True):
        warnings += check_rules(config, world_size)
        check_groups(config, world_size)
        sides = Counter(assign_splits(datasets[config.data], config.split, config.seed))
        lines.append(f"{run.name}: " + ", ".join(f"{sides[s]} {s}" for s in SPLITS if sides[s]) + " slides")
    return lines, list(dict.fromkeys(warnings))


def write_configs(configs: Sequence[Config]) -> None:
    """Write every run's config.yaml into its folder, so that `widefield train FOLDER/config.yaml --continue` trains it.

    Raises:
      RunError: a run was begun with other settings (none is touched then), or a folder cannot be written to.
    """
    begun = {config.output: holds_run(config.output) for config in configs}
    for config in configs:
        path = config.output / "config.yaml"
        if begun[config.output] and (different := differences(load_config(path), config)):
            raise RunError(
                f"was begun with other settings: {'; '.join(different)}",
                where=str(config.output),
                fix="-o ANOTHER/DIR, or take that run away",
            )
    for config in configs:
        if not begun[config.output]:
            _write_config(config)


def _write_config(config: Config) -> None:
    try:
        config.output.mkdir(parents=True, exist_ok=True)
        replace_content(config.output / "config.yaml", f"{MARK}; not begun\n{dump_config(config)}")
    except OSError as error:
        raise RunError(f"cannot be written: {error}", where=str(config.output), fix="-o ANOTHER/DIR") from None


def differences(then: Config, now: Config) -> list[str]:
    """The settings that differ, as 'training.precision = float32, now mixed_bfloat16'."""
    before, after = (_flat(config.model_dump(mode="json")) for config in (then, now))
    keys = dict.fromkeys([*before, *after])
    shown = ((key, *(as_text(side.get(key)) for side in (before, after))) for key in keys)
    return [f"{key} = {old}, now {new}" for key, old, new in shown if old != new]


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    """{key path: value} of everything below."""
    if not isinstance(value, (dict, list)) or not value:
        return {path: value}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return {p: v for key, inner in items for p, v in _flat(inner, f"{path}.{key}".lstrip(".")).items()}
