"""Predict the time of a step on N nodes from what one rank and one network were measured to do. Pure.

The step of a rank is a time line. The backward pass makes gradients ready bucket by bucket, last layers first; a bucket
travels when it is ready and the one before has arrived; the step ends when all have arrived and the optimiser is done.

Where a rank has no core to spare for Horovod's thread, computing stops while a bucket is cast, copied and added up; the
rest of its journey goes on beside it, since MPI yields the core while it waits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

import numpy as np

Seconds = Callable[[float], float]
"""Bytes of float32 gradients -> seconds."""


@dataclass(frozen=True)
class Profile:
    """One rank's step without communication, measured on as many ranks at once as a node has."""

    patch_size: int
    local_batch_size: int
    ready_s: tuple[float, ...]
    """When each bucket's last gradient is there, after the start of the step; median."""
    bucket_bytes: tuple[float, ...]
    """Of float32 gradients, in the same order."""
    step_s: float
    """The whole step, median."""
    spread: float
    """Standard deviation of the logarithm of step times, over steps and ranks; from quartiles, so that a pause of
    the machine does not count."""


@dataclass(frozen=True)
class Curve:
    """All-reduce alone, measured: float32 bytes -> seconds, for one compression on one network."""

    num_bytes: tuple[float, ...]
    """Ascending."""
    seconds: tuple[float, ...]

    def __call__(self, num_bytes: float) -> float:
        """Between two measured sizes a straight line; beyond the largest its slope, below the smallest its time."""
        x, y = np.array(self.num_bytes), np.array(self.seconds)
        if num_bytes > x[-1] and len(x) > 1:
            return float(y[-1] + (num_bytes - x[-1]) * (y[-1] - y[-2]) / (x[-1] - x[-2]))
        return float(np.interp(num_bytes, x, y))


@dataclass(frozen=True)
class Prediction:
    """One step, in seconds."""

    step_s: float
    compute_s: float
    """Of the slowest rank."""
    exposed_s: float
    """All-reduce that computing does not hide."""


def predict_step(profile: Profile, travel: Seconds, world_size: int, host: Seconds | None = None) -> Prediction:
    """The step of `world_size` ranks, each of which computes as `profile` says.

    Args:
      travel: how long the all-reduce of a bucket takes.
      host: the part of it that the core which computes must do; None: a spare core does that.
    """
    slow = slowest_of(world_size, profile.spread)
    compute, last_ready = profile.step_s * slow, profile.ready_s[-1] * slow
    if world_size == 1:
        return Prediction(compute, compute, 0.0)
    arrived = taken = 0.0
    for ready, size in zip(profile.ready_s, profile.bucket_bytes, strict=True):
        arrived = max(ready * slow + taken, arrived) + travel(size)
        taken += host(size) if host else 0.0
    exposed = arrived - last_ready
    return Prediction(compute + exposed, compute, exposed)


def slowest_of(world_size: int, spread: float) -> float:
    """How much longer than the median the slowest of so many ranks takes, if logarithms of step times are normal.

    The expected largest of n normal numbers by Blom's approximation (1958): the quantile (n - 3/8) / (n + 1/4).
    """
    if world_size == 1:
        return 1.0
    return float(np.exp(spread * NormalDist().inv_cdf((world_size - 0.375) / (world_size + 0.25))))


@dataclass(frozen=True)
class Network:
    """A machine that was not measured, in figures from its data sheet."""

    name: str
    latency_s: float
    """Of one message between two nodes."""
    bytes_per_s: float
    """What a node sends while it receives as much."""
    memory_bytes_per_s: float
    """The same between two ranks of a node."""
    ranks_per_node: int
    compute_speed: float
    """How many times as fast as the measured rank one of its ranks computes."""
    host_speed: float
    """The same for host work."""
    spare_core: bool


def ring_s(network: Network, wire_bytes: float, num_nodes: int) -> float:
    """All ranks in one ring (Patarasuk and Yuan 2009): 2 (p - 1) messages of 1/p of the bytes over the slowest link."""
    ranks = num_nodes * network.ranks_per_node
    if ranks == 1:
        return 0.0
    links = [network.bytes_per_s] * (num_nodes > 1) + [network.memory_bytes_per_s] * (network.ranks_per_node > 1)
    latency = network.latency_s if num_nodes > 1 else 0.0
    return 2 * (ranks - 1) * (latency + wire_bytes / ranks / min(links))


def hierarchical_s(network: Network, wire_bytes: float, num_nodes: int) -> float:
    """Added up within each node, a ring over the nodes, spread within each node."""
    local = network.ranks_per_node
    within = 2 * (local - 1) / local * wire_bytes / network.memory_bytes_per_s
    if num_nodes == 1:
        return within
    return within + 2 * (num_nodes - 1) * (network.latency_s + wire_bytes / num_nodes / network.bytes_per_s)


Algorithm = Literal["ring", "hierarchical"]
ALGORITHMS: dict[Algorithm, Callable[[Network, float, int], float]] = {"ring": ring_s, "hierarchical": hierarchical_s}


def extrapolate(
    profile: Profile, host: Curve, width: float, network: Network, num_nodes: int, algorithm: Algorithm
) -> Prediction:
    """The step on a network that was not measured.

    Args:
      host: all-reduce of two ranks over memory, which is host work alone; with more ranks a rank sends and adds up to
        twice as many bytes.
      width: bytes on the wire per byte of float32: 1 without compression, 0.5 with fp16 and bf16.
    """
    ranks = num_nodes * network.ranks_per_node
    faster = Profile(
        profile.patch_size,
        profile.local_batch_size,
        tuple(t / network.compute_speed for t in profile.ready_s),
        profile.bucket_bytes,
        profile.step_s / network.compute_speed,
        profile.spread,
    )

    def host_s(num_bytes: float) -> float:
        return host(num_bytes) * 2 * (ranks - 1) / ranks / network.host_speed

    def travel_s(num_bytes: float) -> float:
        return host_s(num_bytes) + ALGORITHMS[algorithm](network, num_bytes * width, num_nodes)

    return predict_step(faster, travel_s, ranks, None if network.spare_core else host_s)
