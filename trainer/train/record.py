"""What a run writes down for machines: metrics.jsonl, TensorBoard, and the content of report.json. Rank 0 only."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from trainer import __version__
from trainer.curriculum import Plan, Stage
from trainer.evaluate.figures import stage_pictures
from trainer.models.keras import tf
from trainer.runtime.affinity import Placement
from trainer.train.clock import peak_memory_bytes
from trainer.train.run_dir import MetricsFile, read_events
from trainer.train.session import Session


class Recorder:
    """Writes events on rank 0 and remembers the finished stages on all ranks."""

    def __init__(self, session: Session, placements: Sequence[Placement]) -> None:
        self._session, self._placements = session, placements
        self._path = session.config.output / "metrics.jsonl"
        self._file: MetricsFile | None = None
        self._board = tf.summary.create_noop_writer()
        if session.comm.rank == 0:
            self._board = tf.summary.create_file_writer(str(session.config.output / "tensorboard"))
        self._results: dict[int, tuple[int, dict[str, Any]]] = {}

    def begin(self, plan: Plan, step: int) -> None:
        """Start, or start again, after `step`: what was written of later steps is dropped. All ranks."""
        if self._session.comm.rank == 0:
            self.close_file()
            self._file = MetricsFile(self._path, step)
        events = self._session.comm.broadcast(read_events(self._path) if self._file else [])
        self._results = {e["stage"]: (e["step"], e["result"]) for e in events if e["event"] == "stage"}
        stages = [{"sizes": {str(k): v for k, v in s.size_shares.items()}, "steps": s.num_steps} for s in plan.stages]
        self._write(
            "start", step, total_steps=plan.total_steps, stages=stages, world_size=self._session.comm.world_size
        )

    def result_of(self, stage: int, end_step: int) -> dict[str, Any] | None:
        """What a stage that ended at this step was found to be; None: it has not been scored there."""
        step, result = self._results.get(stage, (None, None))
        return result if step == end_step else None

    def step(self, stage: Stage, step: int, loss: float, rate: float, shares: dict[str, float | None]) -> None:
        fields = {"loss": loss, "learning_rate": rate, "patch_size": stage.size_at(step - 1), **shares}
        fields["peak_memory_gb"] = peak_memory_bytes() / 1e9 if self._file else None
        self._write("step", step, stage=stage.number, **fields)
        self._scalars("train", fields, step)

    def score(self, stage: Stage, step: int, scores: dict[str, Any]) -> None:
        """The common footprint, scored within a stage."""
        scores = {k: v for k, v in scores.items() if isinstance(v, float)}
        self._write("score", step, stage=stage.number, patch_size=stage.largest_size, **scores)
        self._scalars("evaluate", scores, step)

    def stage(self, number: int, step: int, result: dict[str, Any]) -> None:
        self._results[number] = (step, result)
        self._write("stage", step, stage=number, result=result)
        scores = {k: v for k, v in result.items() if isinstance(v, float)}
        self._scalars("evaluate", scores, step)
        self._scalars(f"evaluate_{result['patch_size']}px", scores, step)
        self._predictions(number, step)

    def end(self, step: int) -> None:
        """The curriculum is through, and its weights are on the disk."""
        self._write("end", step)

    def _write(self, event: str, step: int, **fields: Any) -> None:
        if self._file:
            self._file.write(event, step=step, **fields)

    def _scalars(self, group: str, fields: dict[str, Any], step: int) -> None:
        with self._on_board():
            for key, value in fields.items():
                if value is not None:
                    tf.summary.scalar(f"{group}/{key}", value, step=step)

    def _predictions(self, number: int, step: int) -> None:
        """The report's region pictures, for TensorBoard."""
        folder = self._session.config.output / "figures" / "regions"
        with self._on_board():
            for region, picture in stage_pictures(folder, number) if self._file else []:
                tf.summary.image(f"predictions/region{region}", picture[None], step=step)

    @contextmanager
    def _on_board(self) -> Iterator[None]:
        """Inside it summaries go to TensorBoard's file. Where the disk is full, the run goes on without it."""
        try:
            with self._board.as_default():
                yield
            self._board.flush()
        except tf.errors.OpError as error:
            self._session.console.line(
                f"warning: TensorBoard's file ends here: {error.message.splitlines()[0].split('}} ')[-1]}"
            )
            self._board = tf.summary.create_noop_writer()

    def report(self) -> dict[str, Any]:
        """The content of report.json so far."""
        config, comm = self._session.config, self._session.comm
        results = [result for _, (_, result) in sorted(self._results.items())]
        return {
            "name": config.name,
            "widefield": __version__,
            "tensorflow": tf.__version__,
            "machine": platform.platform(),
            "world_size": comm.world_size,
            "backend": config.runtime.backend if comm.world_size > 1 else "single",
            "compression": config.training.compression,
            "precision": config.training.precision,
            "recompute": config.training.recompute,
            "deterministic": config.runtime.deterministic,
            "model": config.model.model_dump(mode="json"),
            "parameters": int(self._session.model.count_params()),
            "classes": list(config.data.class_names),
            "seed": config.seed,
            "stages_planned": len(config.curriculum),
            "stages": results,
            "final_network": results[-1]["final_network"] if results else None,
            "ranks": [_place(p) for p in self._placements],
        }

    def close_file(self) -> None:
        if self._file:
            self._file.close()

    def close(self) -> None:
        self.close_file()
        with self._on_board():
            pass
        self._board.close()


def _place(p: Placement) -> dict[str, Any]:
    return {"rank": p.rank, "host": p.host, "cpus": p.cpus, "threads": p.intra_op_threads}
