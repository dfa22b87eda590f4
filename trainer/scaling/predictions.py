"""The model applied: to the measured points of a study, and to a machine that was not measured. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from trainer.scaling.efficiency import spread_of
from trainer.scaling.inputs import Inputs
from trainer.scaling.model import ALGORITHMS, Prediction, Profile, extrapolate, predict_step
from trainer.scaling.network import NetworkFile
from trainer.scaling.records import Point, Study

_WIDTH = {"none": 1.0, "fp16": 0.5, "bf16": 0.5}
"""Bytes on the wire per byte of float32."""


@dataclass(frozen=True)
class Checked:
    """A measured point and what the model says of it."""

    point: Point
    measured_s: float
    """Median step of the rank that took longest for it."""
    prediction: Prediction

    @property
    def error(self) -> float:
        return self.prediction.step_s / self.measured_s - 1


@dataclass(frozen=True)
class Series:
    """Predicted steps over numbers of nodes, of one patch size, compression and algorithm."""

    profile: Profile
    compression: str
    algorithm: str
    nodes: tuple[int, ...]
    ranks: tuple[int, ...]
    predictions: tuple[Prediction, ...]
    alone_s: float
    """A step of one rank that exchanges nothing."""

    @property
    def efficiency(self) -> list[float]:
        """Of weak scaling, against that one rank."""
        return [self.alone_s / p.step_s for p in self.predictions]


def check(study: Study, inputs: Inputs, host: Inputs) -> list[Checked]:
    """Every measured point of the number of ranks that the inputs are of, batches out of memory.

    Args:
      host: of a study of as many ranks over memory, whose curves are casting, copying and adding alone.
    """
    profiles = {(p.patch_size, p.local_batch_size): p for p in inputs.profiles}
    checked = []
    for run in study.done:
        point, profile = run.point, profiles.get((run.point.patch_size, run.point.local_batch_size))
        is_comparable = point.world_size == inputs.world_size > 1 and point.data == "memory"
        travel, on_host = inputs.curves.get(point.compression), host.curves.get(point.compression)
        if run.steps is None or profile is None or travel is None or on_host is None or not is_comparable:
            continue
        prediction = predict_step(profile, travel, point.world_size, None if inputs.spare_core else on_host)
        checked.append(Checked(point, spread_of(run.steps.step_s.max(axis=2).ravel()).median, prediction))
    return checked


def extrapolated(inputs: Inputs, host: Inputs, file: NetworkFile) -> list[Series]:
    """Every profile and compression, with each way to add up, over the file's numbers of nodes.

    Args:
      host: of a study over memory, whose curves are casting, copying and adding alone.
    """
    network = file.network
    return [
        Series(
            profile=profile,
            compression=compression,
            algorithm=algorithm,
            nodes=file.nodes,
            ranks=tuple(n * network.ranks_per_node for n in file.nodes),
            predictions=tuple(
                extrapolate(profile, host.curves[compression], _WIDTH[compression], network, n, algorithm)
                for n in file.nodes
            ),
            alone_s=profile.step_s / network.compute_speed,
        )
        for profile in inputs.profiles
        for compression in inputs.curves
        if compression in host.curves
        for algorithm in ALGORITHMS
    ]
