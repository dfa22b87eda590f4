"""One checkpoint: every variable by name, and how far the run was, in a safetensors file.

Reading one executes nothing. Taking a copy of the variables (`snapshot`) and writing it (`write_checkpoint`) are two
steps, so that training waits only for the first. No TensorFlow is imported here: who only asks how far a run is
(`read_progress`) need not start it.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from safetensors import SafetensorError, safe_open

from trainer.curriculum import Position
from trainer.errors import CheckpointError
from trainer.files import replace_file

if TYPE_CHECKING:
    from trainer.models.keras import keras, tf
    from trainer.train.ema import Averaged

FORMAT = "widefield-checkpoint-3"


@dataclass(frozen=True)
class Progress:
    """How far a run has come: all of its state that is not a variable."""

    position: Position
    world_size: int
    """Ranks that it was saved on."""
    hashes: Mapping[str, str] = field(default_factory=dict)
    """What it was trained with: settings, patch index."""
    plateau_best: float | None = None
    plateau_waited: int = 0
    """Scorings since the stage's best one."""
    scored_step: int | None = None
    """Step of the stage's last scoring."""
    stage_seconds: float = 0.0
    """That the stage's steps have taken so far, in all sittings."""
    rate_factor: float = 1.0
    """Product of all rollbacks' factors."""
    rollbacks: int = 0

    def at(self, step: int, samples: Mapping[int, int], stage_seconds: float) -> Progress:
        """After `step` steps, with these positions of the stage's streams used up."""
        return replace(self, position=replace(self.position, step=step, samples=samples), stage_seconds=stage_seconds)

    def after_stage(self) -> Progress:
        """At the beginning of the next stage."""
        step, ends = self.position.step, self.position.stage_ends
        position = Position(step, stage_ends=(*ends, step))
        return replace(
            self, position=position, plateau_best=None, plateau_waited=0, scored_step=None, stage_seconds=0.0
        )


def named_variables(
    model: keras.Model, optimizer: keras.optimizers.Optimizer | None = None, averaged: Averaged | None = None
) -> dict[str, tf.Variable]:
    """Every variable of the parts given, under a unique name that depends on architecture and settings alone."""
    return {
        **_named("model", model.variables),
        **_named("optimizer", [] if optimizer is None else _optimizer_variables(optimizer)),
        **_named("ema", [] if averaged is None else averaged.variables),
    }


def _named(part: str, variables: Sequence[tf.Variable]) -> dict[str, tf.Variable]:
    return {f"{part}/{i:04d}/{v.name}": v for i, v in enumerate(variables)}


def _optimizer_variables(optimizer: keras.optimizers.Optimizer) -> list[tf.Variable]:
    variables = optimizer.variables  # a property in some of Keras' optimisers, a method in others
    scale = getattr(optimizer, "_loss_scale", None)  # Keras leaves it out of a LossScaleOptimizer's variables
    state = [] if scale is None else [scale.current_loss_scale, scale.counter]
    return [*(variables() if callable(variables) else variables), *state]


def snapshot(
    model: keras.Model, optimizer: keras.optimizers.Optimizer, averaged: Averaged | None = None
) -> dict[str, np.ndarray]:
    """A copy of every variable that no later step changes."""
    # `numpy()` of an eager tensor copies (tensorflow/python/framework/ops.py: "this method has to copy")
    return {name: np.asarray(v.numpy()) for name, v in named_variables(model, optimizer, averaged).items()}


def digest(
    model: keras.Model, optimizer: keras.optimizers.Optimizer | None = None, averaged: Averaged | None = None
) -> str:
    """A hash of every variable's name and bits, to compare replicas. A checksum each, for speed: what is looked for is
    faults and bugs, not forgeries."""
    checksums = {name: _checksum(v.numpy()) for name, v in named_variables(model, optimizer, averaged).items()}
    return hashlib.sha256(json.dumps(checksums).encode()).hexdigest()


def _checksum(array: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(array).data)


def write_checkpoint(path: Path, arrays: dict[str, np.ndarray], progress: Progress) -> None:
    """Write a snapshot: a checkpoint that can be seen is whole.

    Raises:
      OSError: the disk is full or fails; whatever was at `path` is still there.
    """
    checksums = {name: _checksum(array) for name, array in arrays.items()}
    metadata = {"format": FORMAT, "progress": json.dumps(asdict(progress)), "crc32": json.dumps(checksums)}
    replace_file(path, lambda file: _write_safetensors(file, arrays, metadata))


def _write_safetensors(file: BinaryIO, arrays: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    """The format of https://github.com/huggingface/safetensors, large types first so that all lie aligned.

    Not the library's `save_file`: version 0.8 writes to a temporary name of its own, which a kill leaves behind, and
    lets nobody else read the file.
    """
    names = sorted(arrays, key=lambda name: -arrays[name].itemsize)
    ends = np.cumsum([arrays[name].nbytes for name in names], dtype=np.int64).tolist()
    header: dict[str, object] = {"__metadata__": metadata}
    for name, end in zip(names, ends, strict=True):
        array = arrays[name]
        dtype = "BOOL" if array.dtype.kind == "b" else f"{array.dtype.kind.upper()}{8 * array.itemsize}"
        header[name] = {"dtype": dtype, "shape": array.shape, "data_offsets": [end - array.nbytes, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for name in names:
        file.write(np.ascontiguousarray(arrays[name]).data)


def load_checkpoint(
    path: Path,
    model: keras.Model,
    optimizer: keras.optimizers.Optimizer | None = None,
    averaged: Averaged | None = None,
) -> Progress:
    """Restore the variables of the parts given, in place; the checkpoint's other parts are passed over.

    Raises:
      CheckpointError: not a checkpoint, damaged, or of another architecture (naming the first difference); no variable
        has been changed.
    """
    with _opened(path) as stored:
        stored.restore(named_variables(model, optimizer, averaged))
        return stored.progress


def load_scored_weights(path: Path, model: keras.Model) -> Progress:
    """Fill the network with the weights that its scores are of: the averaged ones where the run kept them.

    Raises:
      CheckpointError: see `load_checkpoint`.
    """
    with _opened(path) as stored:
        has_averages = any(name.startswith("ema/") for name in stored.names)
        averages = _named("ema", model.trainable_variables) if has_averages else {}
        stored.restore(named_variables(model) | averages)  # in this order: averages replace trained weights
        return stored.progress


def read_progress(path: Path) -> Progress:
    """How far the run was, without reading any variable."""
    with _opened(path) as stored:
        return stored.progress


def weights_bytes(path: Path) -> int:
    """Bytes of the network's weights in a checkpoint, which holds the optimiser's variables as well."""
    with _opened(path) as stored:
        return sum(stored.array(name).nbytes for name in stored.names if name.startswith("model/"))


def check_checkpoint(path: Path) -> None:
    """Read all of a checkpoint.

    Raises:
      CheckpointError: it cannot be read, or does not hold what was written.
    """
    with _opened(path) as stored:
        for name in stored.names:
            stored.array(name)


@contextmanager
def _opened(path: Path) -> Iterator[_Stored]:
    try:
        with safe_open(path, framework="numpy") as file:
            yield _Stored(path, file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"cannot be read: {error}", where=str(path), fix="delete it: the run then goes on from the one before"
        ) from None


class _Stored:
    """An open checkpoint."""

    def __init__(self, path: Path, file: safe_open) -> None:
        metadata = file.metadata() or {}
        if metadata.get("format") != FORMAT:
            raise CheckpointError(
                f"is not a checkpoint that this version reads: its format is {metadata.get('format')}, not {FORMAT}",
                where=str(path),
                fix="give a file of a run's checkpoints folder; train again what an older version has trained",
            )
        self._path, self._file = path, file
        try:
            self._checksums: dict[str, int] = json.loads(metadata["crc32"])
            self.progress = _progress(json.loads(metadata["progress"]))
        except (ValueError, LookupError, TypeError) as error:
            raise CheckpointError(
                f"is damaged: its header does not say how far the run was ({error})",
                where=str(path),
                fix="delete it: the run then goes on from the one before",
            ) from None
        self.names = frozenset(file.keys())

    def array(self, name: str) -> np.ndarray:
        array = self._file.get_tensor(name)
        if _checksum(array) != self._checksums[name]:
            raise CheckpointError(
                f"is damaged: {name} is not what was written",
                where=str(self._path),
                fix="delete it: the run then goes on from the one before",
            )
        return array

    def restore(self, wanted: dict[str, tf.Variable]) -> None:
        """Assign all variables, or none."""
        problem = self._difference({name: tuple(v.shape) for name, v in wanted.items()})
        if problem:
            raise CheckpointError(
                f"is of another architecture: {problem}",
                where=str(self._path),
                fix="give the model, training.optimizer, training.precision and training.ema_decay that it was "
                "trained with (config.yaml in the run directory)",
            )
        arrays = [self.array(name) for name in wanted]
        for variable, array in zip(wanted.values(), arrays, strict=True):
            variable.assign(array)

    def _difference(self, wanted: dict[str, tuple[int, ...]]) -> str:
        parts = {name.split("/")[0] for name in wanted}
        stored = {name for name in self.names if name.split("/")[0] in parts}
        if stored != wanted.keys():
            differing = sorted(stored ^ wanted.keys())
            side = "only in the checkpoint" if differing[0] in stored else "only in the configured network"
            return f"{len(differing)} variables differ; the first, {differing[0]}, is {side}"
        for name, shape in wanted.items():
            theirs = tuple(self._file.get_slice(name).get_shape())
            if theirs != shape:
                return f"{name} has shape {theirs}, the network's is {shape}"
        return ""


def _progress(fields: dict) -> Progress:
    """What JSON made of a Progress: its keys are strings, its tuples lists."""
    position = fields.pop("position")
    position["samples"] = {int(size): used for size, used in position["samples"].items()}
    position["stage_ends"] = tuple(position["stage_ends"])
    return Progress(Position(**position), **fields)
