"""The training run, read from top to bottom: stages of steps, each stage saved, scored and reported."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from trainer.batches.loader import prefetched, training_jobs
from trainer.config import Config
from trainer.curriculum import Stage
from trainer.errors import CheckpointError, WidefieldError
from trainer.evaluate.pictures import save_stage_pictures
from trainer.evaluate.report import write_report
from trainer.models.keras import tf
from trainer.runtime import Comm, on_root
from trainer.train.checkpoint import Progress, load_checkpoint, save_checkpoint
from trainer.train.clock import StageClock, peak_memory_bytes, reset_peak_memory
from trainer.train.console import Console, eta
from trainer.train.record import Recorder
from trainer.train.run_dir import (
    checkpoint_path,
    checkpoints,
    claim_run,
    latest_checkpoint,
    read_events,
    write_atomically,
)
from trainer.train.schedule import learning_rate
from trainer.train.session import Session, check_replicas, open_session, resolved_yaml
from trainer.train.step import Step, allreduce_bytes, make_train_step


def train(config: Config, comm: Comm, threads: int, *, resume: bool = False, overwrite: bool = False) -> Path:
    """Train through the whole curriculum; returns the run directory with its report."""
    run = config.output
    lock = on_root(comm, lambda: claim_run(run, resume=resume, overwrite=overwrite))
    console = Console(comm.rank == 0, run / "run.log", live=comm.world_size == 1)
    session = open_session(config, comm, console, threads, read_weights=not resume)
    done = resume_from(session) if resume else 0
    on_root(comm, lambda: write_atomically(run / "config.yaml", resolved_yaml(config, comm.world_size)))
    recorder = Recorder(session, done)
    step_function = make_train_step(session.model, session.optimizer, config.training, comm)
    for stage in session.plan.stages:
        if recorder.has_result(stage):
            continue
        reset_peak_memory()
        clock = train_stage(session, stage, max(done, stage.first_step), step_function, recorder)
        on_root(comm, partial(save, session, stage.end_step))
        check_replicas(comm, session.model, session.optimizer, f"after stage {stage.number}")
        recorder.stage(stage, score_stage(session, stage, clock))
        on_root(comm, lambda: write_report(run, recorder.report(), read_events(run / "metrics.jsonl")))
    console.line(f"report: {run / 'report.md'}")
    recorder.close()
    console.close()
    del lock  # held until here by rank 0; the kernel frees it with the process
    return run


def train_stage(session: Session, stage: Stage, first_step: int, step_function: Step, recorder: Recorder) -> StageClock:
    """All steps of one stage from `first_step` on. Every rank takes the same number of them."""
    config, comm, console = session.config, session.comm, session.console
    console.line(
        f"stage {stage.number}: patch {stage.patch_size} px, {stage.num_steps} steps, "
        f"global batch {stage.local_batch_size} x {comm.world_size} ranks = {stage.global_batch_size}"
    )
    console.start_bar(f"stage {stage.number} ({stage.patch_size} px)", first_step, session.plan.total_steps)
    clock, losses = StageClock(), []
    batches = stage_batches(session, stage, first_step)
    for step in range(first_step, stage.end_step):
        with clock.step():
            with clock.waiting():
                images, labels = next(batches)
            rate = learning_rate(
                config.training.optimizer, step, session.plan.total_steps, comm.world_size, stage.learning_rate_factor
            )
            session.optimizer.learning_rate = rate
            losses.append(float(step_function(tf.constant(images), tf.constant(labels))))
        console.advance()
        if (step + 1 - stage.first_step) % config.training.log_every_steps == 0 or step + 1 == stage.end_step:
            loss = mean_over_ranks(comm, losses)
            recorder.step(stage, step + 1, loss, rate, clock)
            seconds_left = eta(clock.median_step_s(), stage.end_step - step - 1)
            console.line(
                f"step {step + 1}/{session.plan.total_steps}  loss {loss:.4f}  rate {rate:.2e}  "
                f"{stage.megapixels_per_step / clock.median_step_s():.2f} Mpx/s  "
                f"wait {clock.wait_fraction():.1%}  stage ends in {seconds_left}"
            )
            require_finite(loss, step + 1)
            losses = []
        every = config.training.checkpoint_every_steps
        if every and (step + 1) % every == 0 and step + 1 < stage.end_step:
            on_root(comm, partial(save, session, step + 1))
    console.stop_bar()
    return clock


def stage_batches(session: Session, stage: Stage, first_step: int) -> Any:
    config, comm = session.config, session.comm
    steps = range(first_step - stage.first_step, stage.num_steps)
    jobs = training_jobs(
        session.store.read,
        session.orders[stage.number],
        steps,
        stage.local_batch_size,
        comm.rank,
        comm.world_size,
        config.augment,
        config.seed,
    )
    return prefetched(jobs, config.runtime.read_threads, config.runtime.prefetch_batches)


def score_stage(session: Session, stage: Stage, clock: StageClock) -> dict[str, Any]:
    """What the report says of one stage: speed and memory over all ranks, and the scores at its patch size."""
    comm, size = session.comm, stage.patch_size
    wait_s, step_s, steps = comm.allreduce(clock.totals()) / comm.world_size
    peaks = comm.gather(peak_memory_bytes())
    session.console.line(f"stage {stage.number}: scoring at {size} px, and on the common footprint")
    per_size = session.evaluator.score_size(session.predict, size)
    common = session.evaluator.score_footprint(session.predict, size)
    if comm.rank == 0:
        save_stage_pictures(session.config.output, session.evaluator, session.predict, stage.number, size)
    last = stage is session.plan.stages[-1]
    return {
        "patch_size": size,
        "megapixels_per_second": stage.megapixels_per_step * steps / step_s if steps else None,
        "data_wait_fraction": wait_s / step_s if steps else None,
        "peak_memory_gb": max(peaks) / 1e9,
        "seconds": clock.elapsed_s,
        "steps": stage.num_steps,
        "global_batch_size": stage.global_batch_size,
        "allreduce_bytes_per_step": allreduce_bytes(session.model, session.config.training.compression),
        **{f"val_{k}": v for k, v in per_size.items()},
        **{f"common_{k}": v for k, v in common.items()},
        "final_network": _score_every_size(session, size, common) if last else None,
    }


def _score_every_size(session: Session, size: int, common: dict[str, Any]) -> dict[str, Any]:
    """The last network on the common footprint through every size: field of view alone, training held fixed."""
    others = [s for s in session.config.patch_sizes if s != size]
    scores = {s: session.evaluator.score_footprint(session.predict, s) for s in others} | {size: common}
    return {str(s): {k: scores[s][k] for k in ("accuracy", "miou", "dice", "auc")} for s in sorted(scores)}


def mean_over_ranks(comm: Comm, losses: list[float]) -> float:
    total, count = comm.allreduce(np.array([sum(losses), len(losses)], np.float64))
    return float(total / count)


def require_finite(loss: float, step: int) -> None:
    if not math.isfinite(loss):
        raise WidefieldError(
            f"the loss is {loss} at step {step}, on all ranks alike",
            where="training",
            fix="lower training.optimizer.learning_rate or use training.precision=float32; checkpoints are untouched",
        )


def save(session: Session, step: int) -> None:
    """Write a checkpoint and drop old ones; the last of every stage stays."""
    run = session.config.output
    path = checkpoint_path(run, step)
    path.parent.mkdir(exist_ok=True)
    save_checkpoint(path, session.model, session.optimizer, Progress(step, session.comm.world_size))
    kept = {checkpoint_path(run, s.end_step) for s in session.plan.stages}
    old = [c for c in checkpoints(run) if c not in kept]
    for checkpoint in old[: -session.config.training.keep_checkpoints]:
        checkpoint.unlink()


def resume_from(session: Session) -> int:
    """Restore the newest checkpoint on every rank; returns the global steps done."""
    path = on_root(session.comm, lambda: latest_checkpoint(session.config.output))
    progress = load_checkpoint(path, session.model, session.optimizer)
    if progress.world_size != session.comm.world_size:
        raise CheckpointError(
            f"was written by {progress.world_size} rank(s); this run has {session.comm.world_size}",
            where=str(path),
            fix=f"resume on {progress.world_size} rank(s)",
        )
    check_replicas(session.comm, session.model, session.optimizer, f"after reading {path}")
    session.console.line(f"resuming after step {progress.step} from {path}")
    return progress.step
