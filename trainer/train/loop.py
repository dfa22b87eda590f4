"""The training run, read from top to bottom: stages of steps, each stage saved, scored and reported."""

from __future__ import annotations

import math
from pathlib import Path

from trainer.config import Config
from trainer.curriculum import START, Stage
from trainer.evaluate.report import write_report
from trainer.runtime import Comm, on_root
from trainer.train.checkpoint import Progress
from trainer.train.clock import StageClock, reset_peak_memory, shares_of
from trainer.train.console import Console, eta
from trainer.train.data import stage_batches
from trainer.train.not_finite import LossNotFinite, roll_back
from trainer.train.placement import check_groups_on_nodes, check_placement, record_placement
from trainer.train.restore import find_checkpoint, resumed
from trainer.train.run import Run
from trainer.train.run_dir import claim_run, read_events
from trainer.train.schedule import learning_rate
from trainer.train.scoring import plateau_score_is_due, score_plateau, score_stage
from trainer.train.session import open_session, write_settings
from trainer.train.signals import StopRequest


def train(config: Config, comm: Comm, stop: StopRequest, *, resume: bool = False, overwrite: bool = False) -> Path:
    """Train through the whole curriculum; returns the run directory with its report.

    Args:
      stop: what has asked this rank to stop; it listens since before TensorFlow was loaded.
    Raises:
      StoppedBySignal: SIGTERM or SIGUSR1 came; the state is saved and the run can be resumed.
    """
    placements = check_placement(config.runtime, comm)
    check_groups_on_nodes(config, placements)
    lock = on_root(comm, lambda: _claim(config, comm, resume=resume, overwrite=overwrite))
    console = Console(comm.rank == 0, config.output / "run.log", live=comm.world_size == 1)
    record_placement(placements, comm, console, config.output)
    found = find_checkpoint(comm, config.output, console) if resume else None
    progress = found.progress if found else Progress(START, comm.world_size)
    session = open_session(config, comm, console, read_weights=not found, done=progress.position)
    if found:
        progress = resumed(session, found)
    elif resume:
        console.line("no checkpoint was saved yet: starting from the beginning")
    with Run(session, stop, placements) as run:
        if not found:
            run.save(progress)
            run.flush()  # from here on there is something to resume
        run.begin(progress)
        while progress.position.stage < len(config.curriculum):
            try:
                progress = run_stage(run, progress)
            except LossNotFinite as bad:
                progress = roll_back(run, bad)
                run.begin(progress)
        run.require_saved(progress)
        run.recorder.end(progress.position.step)
    console.line(f"report: {config.output / 'report.md'}")
    console.close()
    del lock  # held until here by rank 0; the kernel frees it with the process
    return config.output


def _claim(config: Config, comm: Comm, *, resume: bool, overwrite: bool) -> int:
    """The run directory's lock; its settings are there from now on, so that a run that is killed can be resumed."""
    lock = claim_run(config.output, resume=resume, overwrite=overwrite)
    if not resume:
        write_settings(config, comm.world_size)
    return lock


def run_stage(run: Run, progress: Progress) -> Progress:
    """One stage, or what is left of it: steps, a checkpoint, scores, the report. Returns where the next one begins."""
    session, number = run.session, progress.position.stage
    plan, started_at = session.plan(progress.position), progress.position.step
    run.total_steps = plan.total_steps  # less than it was where a plateau has come early
    stage = plan.stages[number]
    reset_peak_memory()
    clock = StageClock(progress.stage_seconds)
    progress = train_stage(run, stage, progress, clock)
    run.save(progress)
    run.require_agreement(progress, f"after stage {number}")
    run.stop_if_requested(progress)
    end = progress.position.step
    result = run.recorder.result_of(number, end)
    if result is None:
        result = score_stage(run, stage, progress, clock) | {"measured_from_step": started_at}
        run.recorder.stage(number, end, result)
    run.mark_best(end, result)
    run.attempt("the report", lambda: write_report(run.path, run.recorder.report(), read_events(run.metrics_path)))
    return progress.after_stage()


def train_stage(run: Run, stage: Stage, progress: Progress, clock: StageClock) -> Progress:
    """The steps of one stage from `progress` on. Every rank takes the same number of them."""
    session, config, console = run.session, run.session.config, run.session.console
    console.line(f"stage {stage.number}: {describe(stage)}")
    console.start_bar(f"stage {stage.number} ({stage.label})", stage.start_step, run.total_steps)
    batches = stage_batches(session, stage)
    losses: list[float] = []
    for step in range(stage.start_step, stage.end_step):
        if plateau_score_is_due(stage, progress):
            progress = score_plateau(run, stage, progress)
        if stage.plateau and progress.plateau_waited >= stage.plateau.patience:
            break
        size, is_last = stage.size_at(step), step + 1 == stage.end_step
        rate = progress.rate_factor * learning_rate(
            config.training.optimizer, step, run.total_steps, stage.num_groups, stage.learning_rate_factor
        )
        with clock.step(size, stage.megapixels_at(step)):
            with clock.phase("wait"):
                images, labels = next(batches)
            session.optimizer.learning_rate = rate
            with clock.phase("compute"):
                passes, stop = stage.batches[size].accumulate, run.stop_request.requested
                result = run.step(images, labels, step, passes=passes, stop=stop, spatial=stage.spatial)
            clock.move("compute", "allreduce", result.allreduce_s)
            if not math.isfinite(result.loss):
                raise LossNotFinite(result.loss, stage, step, progress)
            losses.append(result.loss)
            progress = progress.at(step + 1, stage.samples_at(step + 1), clock.elapsed_s)
            with clock.phase("save"):
                run.save_if_due(progress)
        with clock.between():
            console.advance()
            if is_last or (step + 1 - stage.first_step) % config.training.log_every_steps == 0:
                log_step(run, stage, step, sum(losses) / len(losses), rate, clock)
                losses = []
            if config.training.check_every_steps and (step + 1) % config.training.check_every_steps == 0:
                run.require_agreement(progress, f"after step {step + 1}")
        if result.stop_requested:
            run.save(progress)
            run.stop(progress)
    console.stop_bar()
    return progress


def describe(stage: Stage) -> str:
    """A stage in one line for people."""
    parts = [
        f"{size} px: batch {batch.local_batch_size}"
        + (f" x {batch.accumulate} passes" if batch.accumulate > 1 else "")
        + f" x {_sharing(stage)} = {stage.global_batch(size)}"
        for size, batch in sorted(stage.batches.items())
    ]
    length = f"at most {stage.num_steps}" if stage.plateau else f"{stage.num_steps}"
    return f"patch {stage.label}, {length} steps; {'; '.join(parts)}"


def _sharing(stage: Stage) -> str:
    return f"{stage.num_groups} ranks" if stage.spatial == 1 else f"{stage.num_groups} groups of {stage.spatial} ranks"


def log_step(run: Run, stage: Stage, step: int, loss: float, rate: float, clock: StageClock) -> None:
    """A line for people and an event for machines, every few steps."""
    shares = shares_of(clock.totals())
    run.recorder.step(stage, step + 1, loss, rate, shares)
    left = eta(shares["seconds_per_step"] or 0.0, stage.end_step - step - 1)
    run.session.console.line(
        f"step {step + 1}/{run.total_steps}  loss {loss:.4f}  rate {rate:.2e}  "
        f"{shares['megapixels_per_second']:.2f} Mpx/s  wait {shares['data_wait_fraction']:.1%}  "
        f"all-reduce {shares['allreduce_fraction']:.1%}  stage ends in {left}"
    )
    run.show_warnings()
