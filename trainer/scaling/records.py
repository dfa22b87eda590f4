"""What a scaling study keeps of each measured point, as values. Files are in `study.py` and `steps.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from trainer.config.schema import Positive
from trainer.scaling.steps import Steps

COMPRESSIONS = ("none", "fp16", "bf16")


@dataclass(frozen=True, kw_only=True)
class Point:
    """Where a study measures. Weak: `local_batch_size` is the same at every size; strong: the global batch is."""

    num_nodes: Positive
    world_size: Positive
    """Ranks on all nodes together, the same number on each node."""
    mode: Literal["weak", "strong"]
    patch_size: Positive
    local_batch_size: Positive
    compression: Literal["none", "fp16", "bf16"]
    data: Literal["memory", "slides"]
    """Where patches come from: the same ones again out of memory, or read from slides as in training."""

    def __post_init__(self) -> None:
        if self.world_size % self.num_nodes:
            raise ValueError(f"{self.world_size} ranks are not the same number on each of {self.num_nodes} nodes")

    @property
    def ranks_per_node(self) -> int:
        return self.world_size // self.num_nodes

    @property
    def global_batch_size(self) -> int:
        return self.local_batch_size * self.world_size

    @property
    def name(self) -> str:
        """Name of the run's folder; no two points share one."""
        size = f"n{self.num_nodes:04}-r{self.world_size:04}-{self.patch_size}px-b{self.local_batch_size}"
        return f"{self.mode}-{size}-{self.compression}-{self.data}"

    @property
    def order(self) -> tuple[Any, ...]:
        """Sort key: what belongs to one line of a figure lies together, small worlds first."""
        series = (self.mode != "weak", self.patch_size, COMPRESSIONS.index(self.compression), self.data)
        return (*series, self.world_size, self.num_nodes, self.local_batch_size)


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """`run.json`: how one point was measured, or why it was not."""

    point: Point
    status: Literal["done", "failed"]
    error: str = ""
    """Why it failed; empty when it did not."""
    machine: str
    hosts: tuple[str, ...]
    cores_per_rank: Positive
    """Physical cores; the same in all runs of a study, or their speeds could not be compared."""
    network: str
    """In words, with its speed where that is known: 'loopback shared memory', 'veth, 1 Gbit/s'."""
    date: str
    """ISO 8601."""
    commit: str
    widefield: str
    """Version."""
    command: str
    """What to type to measure this point again."""
    warmup_steps: int
    """Steps before the first timed one of a repeat; they are not in steps.csv."""
    repeats: Positive
    steps_per_repeat: Positive
    allreduce_bytes_per_step: int
    """What one rank hands over per step, after compression; counted from shapes."""
    wire_bytes_per_step: float
    """What one rank sends of that in a ring all-reduce; counted, not read off the network."""
    config_hash: str
    """Of the settings that all runs of a study share."""

    def __post_init__(self) -> None:
        if (self.status == "failed") != bool(self.error):
            raise ValueError(f"status '{self.status}' with error '{self.error}': a failed run, and only that, has one")


@dataclass(frozen=True)
class Run:
    """One folder of a study. A failed run has no steps."""

    record: RunRecord
    steps: Steps | None

    @property
    def point(self) -> Point:
        return self.record.point


@dataclass(frozen=True)
class Study:
    """The runs of one folder, in the order of `Point.order`."""

    name: str
    system: str
    runs: tuple[Run, ...]

    @property
    def done(self) -> tuple[Run, ...]:
        return tuple(r for r in self.runs if r.steps is not None)

    @property
    def failed(self) -> tuple[Run, ...]:
        return tuple(r for r in self.runs if r.steps is None)
