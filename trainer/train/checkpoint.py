"""One checkpoint: every variable by name in a safetensors file. Reading it executes nothing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from trainer.errors import CheckpointError
from trainer.models.keras import keras, tf

FORMAT = "widefield-checkpoint-1"


@dataclass(frozen=True)
class Progress:
    """How far a run had come: global steps done, on how many ranks."""

    step: int
    world_size: int


def named_variables(model: keras.Model, optimizer: keras.optimizers.Optimizer | None) -> dict[str, tf.Variable]:
    """Every variable of model and optimiser under a unique name that depends on the architecture alone."""
    groups = {"model": model.variables, "optimizer": [] if optimizer is None else optimizer_variables(optimizer)}
    return {f"{group}/{i:04d}/{v.name}": v for group, vs in groups.items() for i, v in enumerate(vs)}


def optimizer_variables(optimizer: keras.optimizers.Optimizer) -> Sequence[tf.Variable]:
    """All variables of an optimiser; a property in some of Keras' optimisers, a method in others."""
    variables = optimizer.variables
    return variables() if callable(variables) else variables


def save_checkpoint(path: Path, model: keras.Model, optimizer: keras.optimizers.Optimizer, progress: Progress) -> None:
    """Save the state of a run. Written to a temporary name, then renamed: a checkpoint
    that can be seen is whole."""
    arrays = {name: np.asarray(v.numpy()) for name, v in named_variables(model, optimizer).items()}
    metadata = {"format": FORMAT, "progress": json.dumps(asdict(progress))}
    temporary = path.with_name(f".{path.name}.part")
    save_file(arrays, temporary, metadata)
    temporary.rename(path)


def load_checkpoint(path: Path, model: keras.Model, optimizer: keras.optimizers.Optimizer | None = None) -> Progress:
    """Restore variables in place, without an optimiser only the network's; returns how far the run was.

    Raises:
      CheckpointError: not a checkpoint, cut short, or of another architecture (naming the first difference).
    """
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise CheckpointError("is not a Widefield checkpoint", where=str(path))
            wanted = named_variables(model, optimizer)
            stored = {k for k in file.keys() if optimizer is not None or k.startswith("model/")}  # noqa: SIM118
            _check_same(path, file, wanted, stored)
            for name, variable in wanted.items():
                variable.assign(file.get_tensor(name))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"cannot be read: {error}", where=str(path), fix="use an older checkpoint of the run"
        ) from None
    return Progress(**json.loads(metadata["progress"]))


def _check_same(path: Path, file: safe_open, wanted: dict[str, tf.Variable], stored: set[str]) -> None:
    differing = sorted(stored ^ wanted.keys())
    if differing:
        side = "only in the checkpoint" if differing[0] in stored else "only in the configured network"
        problem = f"{len(differing)} variables differ; the first, {differing[0]}, is {side}"
    else:
        shapes = {n: tuple(file.get_slice(n).get_shape()) for n in wanted}
        wrong = next((n for n, v in wanted.items() if shapes[n] != tuple(v.shape)), None)
        if wrong is None:
            return
        problem = f"{wrong} has shape {shapes[wrong]}, the network's is {tuple(wanted[wrong].shape)}"
    raise CheckpointError(
        f"is of another architecture: {problem}",
        where=str(path),
        fix="give the model and training.optimizer sections that it was trained with (config.yaml beside it)",
    )


def digest(model: keras.Model, optimizer: keras.optimizers.Optimizer | None = None) -> str:
    """SHA-256 over every variable's bits, to compare replicas."""
    sha = hashlib.sha256()
    for name, variable in named_variables(model, optimizer).items():
        sha.update(name.encode())
        sha.update(np.ascontiguousarray(variable.numpy()).tobytes())
    return sha.hexdigest()
