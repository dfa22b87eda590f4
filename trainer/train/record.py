"""What a run writes down for machines: metrics.jsonl, TensorBoard, and the content of report.json. Rank 0 only."""

from __future__ import annotations

import platform
from typing import Any

from trainer import __version__
from trainer.curriculum import Stage
from trainer.models.keras import tf
from trainer.train.clock import StageClock
from trainer.train.run_dir import MetricsFile, read_events
from trainer.train.session import Session


class Recorder:
    """Writes events on rank 0 and remembers the finished stages on all ranks."""

    def __init__(self, session: Session, steps_done: int) -> None:
        self._session = session
        self._file: MetricsFile | None = None
        self._board = tf.summary.create_noop_writer()
        path = session.config.output / "metrics.jsonl"
        if session.comm.rank == 0:
            self._file = MetricsFile(path, steps_done)
            self._board = tf.summary.create_file_writer(str(session.config.output / "tensorboard"))
        events = session.comm.broadcast(read_events(path) if self._file else [])
        self._results: list[dict[str, Any]] = [e["result"] for e in events if e["event"] == "stage"]

    def has_result(self, stage: Stage) -> bool:
        return stage.number < len(self._results)

    def step(self, stage: Stage, step: int, loss: float, rate: float, clock: StageClock) -> None:
        speed = stage.megapixels_per_step / clock.median_step_s()
        fields = {
            "loss": loss,
            "learning_rate": rate,
            "patch_size": stage.patch_size,
            "megapixels_per_second": speed,
            "data_wait_fraction": clock.wait_fraction(),
        }
        if self._file:
            self._file.write("step", step=step, stage=stage.number, **fields)
        self._scalars("train", fields, step)

    def stage(self, stage: Stage, result: dict[str, Any]) -> None:
        self._results.append(result)
        if self._file:
            self._file.write("stage", step=stage.end_step, stage=stage.number, result=result)
        self._scalars("evaluate", {k: v for k, v in result.items() if isinstance(v, float)}, stage.end_step)

    def _scalars(self, group: str, fields: dict[str, Any], step: int) -> None:
        with self._board.as_default():
            for key, value in fields.items():
                tf.summary.scalar(f"{group}/{key}", value, step=step)
        self._board.flush()

    def report(self) -> dict[str, Any]:
        """The content of report.json so far."""
        config, comm = self._session.config, self._session.comm
        return {
            "name": config.name,
            "widefield": __version__,
            "tensorflow": tf.__version__,
            "machine": platform.platform(),
            "world_size": comm.world_size,
            "backend": config.runtime.backend if comm.world_size > 1 else "single",
            "compression": config.training.compression,
            "precision": config.training.precision,
            "model": config.model.model_dump(mode="json"),
            "parameters": int(self._session.model.count_params()),
            "classes": list(config.data.class_names),
            "seed": config.seed,
            "stages_planned": len(config.curriculum),
            "stages": self._results,
            "final_network": self._results[-1]["final_network"] if self._results else None,
            "ranks": self._session.ranks,
        }

    def close(self) -> None:
        if self._file:
            self._file.close()
        self._board.close()
