"""Scores of the network as it stands: at the end of a stage, and while a stage waits for its plateau."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from trainer.curriculum import Stage
from trainer.evaluate.pictures import save_stage_pictures
from trainer.train.checkpoint import Progress
from trainer.train.clock import StageClock, peak_memory_bytes, shares_of
from trainer.train.not_finite import require_finite
from trainer.train.run import Run
from trainer.train.step import allreduce_bytes, wire_bytes


def score_stage(run: Run, stage: Stage, progress: Progress, clock: StageClock) -> dict[str, Any]:
    """What the report says of one stage: speed and memory over all ranks, and the scores at its largest size.

    Raises:
      StoppedBySignal: on all ranks, see `_uninterrupted`.
      LossNotFinite: on all ranks, as the weights are not finite.
    """
    session, size = run.session, stage.largest_size
    comm = session.comm
    require_finite(session.model, stage, progress)
    cost = shares_of(comm.allreduce(clock.totals()) / comm.world_size)
    peaks, seconds, batch = comm.gather(peak_memory_bytes()), clock.elapsed_s, stage.batches[size]
    halos = comm.gather(run.step.halo_bytes.get((batch.local_batch_size, size, stage.spatial), 0))
    session.console.line(f"stage {stage.number}: scoring at {size} px, and on the common footprint")
    with session.scored_weights():
        per_size = _uninterrupted(run, progress, session.evaluator.score_size, size)
        common = _uninterrupted(run, progress, session.evaluator.score_footprint, size)
        pictures = session.evaluator.pictures(session.predict, size)
        run.attempt("a picture", lambda: save_stage_pictures(run.path, session.evaluator, pictures, stage.number))
        last = stage.number == len(session.config.curriculum) - 1
        every_size = _score_every_size(run, progress, size, common) if last else None
    payload = allreduce_bytes(session.model, session.config.training.compression)
    return {
        "patch_size": size,
        "sizes": {str(s): share for s, share in stage.size_shares.items()},
        **cost,
        "peak_memory_gb": max(peaks) / 1e9,
        "seconds": seconds,
        "steps": progress.position.step - stage.first_step,
        "first_step": stage.first_step,
        "global_batch_size": stage.global_batch(size),
        "spatial": stage.spatial,
        "halo_bytes_per_step": max(halos) * batch.accumulate,
        "allreduce_bytes_per_step": payload,
        "wire_bytes_per_step": wire_bytes(payload, comm.world_size),
        **{f"val_{k}": v for k, v in per_size.items()},
        **{f"common_{k}": v for k, v in common.items()},
        "final_network": every_size,
    }


def _uninterrupted(run: Run, progress: Progress, score: Callable[..., dict[str, Any]], size: int) -> dict[str, Any]:
    """Scores of the position that was saved last; a rank that is asked to stop ends them on all."""
    scores = score(run.session.predict, size, lambda: run.stop_request.requested)
    run.stop_if_requested(progress)
    return scores


def _score_every_size(run: Run, progress: Progress, size: int, common: dict[str, Any]) -> dict[str, Any]:
    """The last network on the common footprint through every size: field of view alone, training held fixed."""
    others = [s for s in run.session.config.patch_sizes if s != size]
    footprint = run.session.evaluator.score_footprint
    scores = {s: _uninterrupted(run, progress, footprint, s) for s in others} | {size: common}
    return {str(s): {k: scores[s][k] for k in ("accuracy", "miou", "dice", "auc")} for s in sorted(scores)}


def plateau_score_is_due(stage: Stage, progress: Progress) -> bool:
    """At every so many steps of the stage, once: also where the run was stopped between the step and its score."""
    step = progress.position.step
    done = step - stage.first_step
    return bool(stage.plateau and done and done % stage.plateau.every_steps == 0 and progress.scored_step != step)


def score_plateau(run: Run, stage: Stage, progress: Progress) -> Progress:
    """Score the common footprint, and count how long it has not risen. All ranks come to the same answer."""
    assert stage.plateau is not None
    session = run.session
    require_finite(session.model, stage, progress)
    run.save(progress)
    with session.scored_weights():
        common = _uninterrupted(run, progress, session.evaluator.score_footprint, stage.largest_size)
    scores = {f"common_{k}": v for k, v in common.items()}
    score, best = scores[run.metric], progress.plateau_best
    is_better = score is not None and (best is None or score > best + stage.plateau.min_delta)
    waited = 0 if is_better else progress.plateau_waited + 1
    best = score if is_better else best
    progress = replace(progress, plateau_best=best, plateau_waited=waited, scored_step=progress.position.step)
    run.recorder.score(stage, progress.position.step, scores)
    session.console.line(
        f"step {progress.position.step}: {run.metric} {score if score is None else round(score, 4)}"
        + (", a new best" if is_better else f", no new best for {waited} of {stage.plateau.patience} scorings")
    )
    run.mark_best(progress.position.step, scores)  # before it counts as scored: a run killed here marks it again
    run.save(progress)
    return progress
