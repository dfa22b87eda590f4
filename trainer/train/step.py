"""One optimiser step on every rank: forward, backward, all-reduce, apply once."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from trainer.config.schema import OptimizerConfig, TrainingConfig
from trainer.models.keras import keras, tf
from trainer.models.losses import segmentation_loss
from trainer.models.noise import noise_seed
from trainer.models.norms import FrozenBatchNorm
from trainer.models.spatial import slab_of, training_forward
from trainer.runtime.comm import Comm
from trainer.runtime.memory import give_back_free_memory
from trainer.train.ema import Averaged

INTER_OP_THREADS = 2
"""One alone may hand a gradient over to the all-reduce only when the whole backward pass has ended: it serves what it
has put off last in, first out. A second takes the oldest."""


@dataclass(frozen=True)
class StepResult:
    """What all ranks know after a step."""

    loss: float
    """Mean over all patches of the step, on all ranks alike: not finite on all where it is not on one."""
    stop_requested: bool
    """Some rank has asked to stop."""
    allreduce_s: float
    """Seconds between this rank's last gradient and the last mean: the all-reduce that no computing hid."""


def make_optimizer(config: OptimizerConfig, precision: str) -> keras.optimizers.Optimizer:
    """Adam, AdamW or SGD with decoupled weight decay; under mixed_float16 with dynamic loss scaling."""
    common: dict[str, Any] = {"learning_rate": config.learning_rate, "jit_compile": False}
    common |= {"global_clipnorm": config.clip_norm}
    decay = config.weight_decay or None
    optimizer = {
        "adam": lambda: keras.optimizers.Adam(epsilon=config.epsilon, weight_decay=decay, **common),
        "adamw": lambda: keras.optimizers.AdamW(epsilon=config.epsilon, weight_decay=config.weight_decay, **common),
        "sgd": lambda: keras.optimizers.SGD(momentum=config.momentum, weight_decay=decay, **common),
    }[config.name]()
    if config.weight_decay:
        optimizer.exclude_from_weight_decay(var_names=["gamma", "beta", "bias"])
    return keras.mixed_precision.LossScaleOptimizer(optimizer) if precision == "mixed_float16" else optimizer


class TrainStep:
    """The compiled step of a network.

    Gradients are averaged over passes and ranks while still loss-scaled, so that fp16 on the wire keeps small ones. A
    value that overflows on one rank is infinite on all after the sum, so all ranks skip the same step.
    """

    def __init__(
        self,
        model: keras.Model,
        optimizer: keras.optimizers.Optimizer,
        config: TrainingConfig,
        comm: Comm,
        averaged: Averaged | None = None,
        seed: int = 0,
    ) -> None:
        """`seed`: of dropout and stochastic depth."""
        self._model, self._optimizer, self._config, self._comm = model, optimizer, config, comm
        self._averaged = averaged
        self._noise, self._seed = noise_seed(model), seed
        self._scaled = isinstance(optimizer, keras.mixed_precision.LossScaleOptimizer)
        self._sums: list[tf.Variable] = []
        self.halo_bytes: dict[tuple[int, int, int], int] = {}
        """(patches, patch size, ranks that share them) -> bytes that this rank sends its neighbours in a pass."""
        self._compiled_pass = tf.function(self._pass)
        self._compiled_last = tf.function(self._last)

    def __call__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        step: int,
        *,
        passes: int = 1,
        stop: bool = False,
        spatial: int = 1,
    ) -> StepResult:
        """Take one optimiser step. All ranks.

        Args:
          images: [passes B, P, P, 3] uint8; where patches are split, this rank's rows of them.
          labels: [passes B, P, P] uint8, likewise.
          step: global number of the step; dropout follows it.
          passes: forward passes whose gradients are averaged.
          stop: this rank asks all to stop.
          spatial: ranks that share each patch.
        """
        if passes > 1 and not self._sums:
            self._sums = [tf.Variable(tf.zeros_like(v), trainable=False) for v in self._model.trainable_variables]
        number, batch, losses = tf.constant(step, tf.int64), len(images) // passes, tf.constant(0.0)
        for i in range(passes):
            part = slice(i * batch, (i + 1) * batch)
            data = (tf.constant(images[part]), tf.constant(labels[part]), number * passes + i)
            if i + 1 < passes:
                losses += self._compiled_pass(*data, spatial)
        result = self._compiled_last(*data, losses, tf.constant(float(stop)), passes, spatial).numpy()
        return StepResult(float(result[0]), bool(result[1]), float(result[2]))

    def _gradients(
        self, images: tf.Tensor, labels: tf.Tensor, draw: tf.Tensor, spatial: int
    ) -> tuple[tf.Tensor, list[tf.Tensor]]:
        if self._noise is not None:
            of_patch = tf.random.fold_in([self._seed, self._comm.rank // spatial], tf.cast(draw, tf.int32))
            self._noise.assign(of_patch)
        images = _with_what_is_free_given_back(images)
        slab = slab_of(self._comm, images, spatial)
        forward = training_forward(self._model, slab, recompute=self._config.recompute == "blocks")
        with tf.GradientTape() as tape:
            loss, _ = segmentation_loss(forward(images), labels, self._config.loss, slab.sum if slab else None)
            target = self._optimizer.get_scaled_loss(loss) if self._scaled else loss
        gradients = tape.gradient(target, self._model.trainable_variables)
        if slab:
            self.halo_bytes[images.shape[0], images.shape[2], spatial] = slab.sent_bytes
        return loss, gradients

    def _pass(self, images: tf.Tensor, labels: tf.Tensor, draw: tf.Tensor, spatial: int) -> tf.Tensor:
        """A pass whose gradients are kept for the last one of the step."""
        loss, gradients = self._gradients(images, labels, draw, spatial)
        for total, gradient in zip(self._sums, gradients, strict=True):
            total.assign_add(gradient)
        _in_order(gradients)
        return loss

    def _last(
        self,
        images: tf.Tensor,
        labels: tf.Tensor,
        draw: tf.Tensor,
        losses: tf.Tensor,
        stop: tf.Tensor,
        passes: int,
        spatial: int,
    ) -> tf.Tensor:
        """[3] float32: mean loss, ranks that ask to stop, exposed all-reduce seconds."""
        loss, own = self._gradients(images, labels, draw, spatial)
        gradients = own
        if passes > 1:
            gradients = [(s + g) / passes for s, g in zip(self._sums, own, strict=True)]
        told = self._comm.allreduce_tensor(tf.stack([(losses + loss) / passes / self._comm.world_size, stop]))
        gradients, seconds = self._mean_over_ranks(gradients)
        _in_order(own)
        if self._scaled:
            gradients = self._optimizer.get_unscaled_gradients(gradients)
        self._optimizer.apply_gradients(zip(gradients, self._model.trainable_variables, strict=True))
        if passes > 1:
            for total in self._sums:
                total.assign(tf.zeros_like(total))
        self._average_statistics()
        if self._averaged is not None:
            self._averaged.update(self._optimizer.iterations)
        return tf.concat([told, [seconds]], 0)

    def _mean_over_ranks(self, gradients: Sequence[tf.Tensor]) -> tuple[list[tf.Tensor], tf.Tensor]:
        if self._comm.world_size == 1:
            return list(gradients), tf.constant(0.0)
        computed = _now_after(gradients)  # first: TensorFlow keeps Python functions, as backend=mpi has, in this order
        means = self._comm.allreduce_gradients(gradients, self._config.compression)
        return means, tf.cast(_now_after(means) - computed, tf.float32)

    def _average_statistics(self) -> None:
        """Moving averages of batch norm: the one state that is not a gradient's."""
        statistics = moving_statistics(self._model)
        if self._comm.world_size > 1 and statistics:
            means = self._comm.allreduce_gradients(statistics, "none", name="statistics")
            for variable, mean in zip(statistics, means, strict=True):
                variable.assign(mean)


def _with_what_is_free_given_back(images: tf.Tensor) -> tf.Tensor:
    """The images; before a graph runs for the first time, what tracing and optimising it took goes back to the system.

    glibc would keep it, 0.3 to 0.8 GB, until the process ends.
    """
    with tf.control_dependencies([tf.numpy_function(cache(give_back_free_memory), [], [])]):
        return tf.identity(images)


def _in_order(gradients: Sequence[tf.Tensor]) -> None:
    """Let the backward pass enter no convolution before what the layers above send is ready to be sent.

    Nothing but the all-reduce waits for a weight's gradient and for its cast to what travels, and TensorFlow may leave
    them for last: buckets would be ready only at the end of the step, with nothing left to hide their journey behind.
    A convolution waits only for what depends on older operations than itself, so no circle can close.
    """
    operations = gradients[0].graph.get_operations()
    needs = {operation: age for age, operation in enumerate(operations)}  # -> the youngest that it waits for, or itself
    youngest, sent = max(needs[g.op] for g in gradients), {g.op for g in gradients}
    for operation in operations[youngest + 1 :]:  # what is made from gradients, up to the all-reduce
        parents = {t.op for t in operation.inputs} | set(operation.control_inputs)
        if not operation.type.startswith("Horovod"):
            needs[operation] = max((needs[p] for p in parents), default=-1)
            sent |= {operation} if sent & parents else set()
    ready = sorted(sent, key=needs.__getitem__, reverse=True)
    for age, operation in enumerate(operations[:youngest]):
        if operation.type.endswith("BackpropInput"):
            there = []
            while needs[ready[-1]] < age:
                there.append(ready.pop())
            operation._add_control_inputs(there)  # there is no public way to order what exists


def _now_after(tensors: Sequence[tf.Tensor]) -> tf.Tensor:
    """The time in seconds, float64 scalar, at which all tensors are there. (Deterministic operations have no
    tf.timestamp.)"""
    with tf.control_dependencies(tensors):
        return tf.ensure_shape(tf.numpy_function(time.perf_counter, [], tf.float64), [])


def moving_statistics(model: keras.Model) -> list[tf.Variable]:
    """Means and variances of the batch norms that learn them; empty with group norm."""
    frozen = {id(v) for layer in model.submodules if isinstance(layer, FrozenBatchNorm) for v in layer.variables}
    return [v for v in model.non_trainable_variables if v.dtype == tf.float32 and id(v) not in frozen]


def allreduce_bytes(model: keras.Model, compression: str) -> int:
    """Bytes that one rank hands to the all-reduce in one step: gradients, statistics, and the loss with its flag."""
    width = 4 if compression == "none" else 2
    gradients = sum(v.shape.num_elements() for v in model.trainable_variables)
    return width * gradients + 4 * sum(v.shape.num_elements() for v in moving_statistics(model)) + 8


def wire_bytes(payload: int, world_size: int) -> float:
    """Bytes that one rank sends in a ring all-reduce of `payload` bytes (Patarasuk and Yuan 2009)."""
    return 2 * payload * (world_size - 1) / world_size
