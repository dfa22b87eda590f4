"""Score the checkpoints of a finished or running run again, on any number of ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from trainer.config import Config
from trainer.curriculum.batches import scoring_batches, scoring_splits
from trainer.errors import ConfigError
from trainer.evaluate.report import SCORES, table
from trainer.evaluate.score import Evaluator, make_predict
from trainer.files import replace_content
from trainer.runtime import Comm, on_root
from trainer.stores import open_store
from trainer.train.checkpoint import load_checkpoint, load_scored_weights
from trainer.train.checkpoints import checkpoint_path, latest_checkpoint
from trainer.train.console import Console
from trainer.train.placement import check_placement
from trainer.train.run_dir import read_events
from trainer.train.session import build_network, prepare_data


def evaluate_run(
    config: Config,
    run: Path,
    comm: Comm,
    *,
    checkpoint: Path | None = None,
    patch_size: int | None = None,
    trained_weights: bool = False,
) -> list[dict[str, Any]]:
    """Score checkpoints, print a table and write `evaluation.json`; returns one row per checkpoint and size.

    Args:
      trained_weights: score the weights as they were trained, where the run also kept their moving average.

    Raises:
      RunError, CheckpointError: no checkpoint, or one of another architecture.
      ConfigError: a size that the run's index does not hold.
    """
    console = Console(comm.rank == 0)
    check_placement(config.runtime, comm)
    index = prepare_data(config, comm, console)
    model = build_network(config, comm, read_weights=False)
    predict = make_predict(model, comm)
    store = open_store(index, config, checks=False)
    splits = scoring_splits(config.curriculum, comm.world_size)
    evaluator = Evaluator(config, index, store, comm, scoring_batches(config.curriculum), splits)
    pairs = on_root(comm, lambda: _choose(config, run, checkpoint, patch_size))
    averaged = config.training.ema_decay > 0 and not trained_weights
    load = load_scored_weights if averaged else load_checkpoint
    rows = []
    for path, size in pairs:
        progress = load(path, model)
        console.line(f"scoring {path.name} at {size} px")
        per_size = evaluator.score_size(predict, size)
        common = evaluator.score_footprint(predict, size)
        row = {"checkpoint": path.name, "step": progress.position.step, "patch_size": size}
        row["weights"] = "averaged" if averaged else "trained"
        rows.append(row | {f"val_{k}": v for k, v in per_size.items()} | {f"common_{k}": v for k, v in common.items()})
    on_root(comm, lambda: _write(run, rows))
    return rows


def _choose(config: Config, run: Path, checkpoint: Path | None, patch_size: int | None) -> list[tuple[Path, int]]:
    """(checkpoint, patch size) pairs: the end of every stage that is there, or the one that was asked for."""
    sizes = config.patch_sizes
    if patch_size is not None and patch_size not in sizes:
        raise ConfigError(f"the run has no patches of {patch_size} px", where="--patch-size", fix=f"one of {sizes}")
    if checkpoint is None and patch_size is None:
        stages = [e for e in read_events(run / "metrics.jsonl") if e["event"] == "stage"]
        ends = [(checkpoint_path(run, e["step"]), e["result"]["patch_size"]) for e in stages]
        found = [(path, size) for path, size in ends if path.exists()]
        if found:
            return found
    return [(checkpoint or latest_checkpoint(run)[0], patch_size or sizes[-1])]


def _write(run: Path, rows: list[dict[str, Any]]) -> None:
    replace_content(run / "evaluation.json", json.dumps(rows, indent=1) + "\n")
    print(table(SCORES, rows))
    print(f"\nevaluation: {run / 'evaluation.json'}")
