"""Score the checkpoints of a finished or running run again, on any number of ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from trainer.config import Config
from trainer.errors import ConfigError
from trainer.evaluate.report import SCORES, table
from trainer.runtime import Comm, on_root
from trainer.train.checkpoint import load_checkpoint, load_scored_weights
from trainer.train.checkpoints import checkpoint_path, latest_checkpoint
from trainer.train.console import Console
from trainer.train.run_dir import read_events, write_atomically
from trainer.train.session import Session, open_session


def evaluate_run(
    config: Config,
    run: Path,
    comm: Comm,
    threads: int,
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
    stores = config.stores.model_copy(update={"stage_to": None})  # only training reads patches more than once
    training = config.training.model_copy(update={"ema_decay": 0.0})  # the scored weights take the network's place
    config = config.model_copy(update={"output": run, "stores": stores, "training": training})
    session = open_session(config, comm, console, threads, read_weights=False)
    pairs = on_root(comm, lambda: _choose(session, run, checkpoint, patch_size))
    load = load_checkpoint if trained_weights else load_scored_weights
    rows = []
    for path, size in pairs:
        progress = load(path, session.model)
        console.line(f"scoring {path.name} at {size} px")
        per_size = session.evaluator.score_size(session.predict, size)
        common = session.evaluator.score_footprint(session.predict, size)
        row = {"checkpoint": path.name, "step": progress.position.step, "patch_size": size}
        row["trained_weights"] = trained_weights
        rows.append(row | {f"val_{k}": v for k, v in per_size.items()} | {f"common_{k}": v for k, v in common.items()})
    on_root(comm, lambda: _write(run, rows))
    return rows


def _choose(session: Session, run: Path, checkpoint: Path | None, patch_size: int | None) -> list[tuple[Path, int]]:
    """(checkpoint, patch size) pairs: the end of every stage that is there, or the one that was asked for."""
    sizes = session.config.patch_sizes
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
    write_atomically(run / "evaluation.json", json.dumps(rows, indent=1) + "\n")
    print(table(SCORES, rows))
    print(f"\nevaluation: {run / 'evaluation.json'}")
