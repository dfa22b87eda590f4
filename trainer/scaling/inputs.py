"""model/inputs.json of a study: what was measured for the model, in the same launch as the study's points."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from trainer.errors import StudyError
from trainer.files import replace_content
from trainer.scaling.model import Curve, Profile

MODEL = "model"
"""Folder of a study for what is modelled, and for what that is made from."""


@dataclass(frozen=True)
class Inputs:
    world_size: int
    """Ranks that the curves were measured with."""
    spare_core: bool
    """Whether each rank left a core to Horovod."""
    profiles: tuple[Profile, ...]
    curves: dict[str, Curve]
    """By compression."""


def write_inputs(study: Path, inputs: Inputs) -> None:
    """Write them into the study, in the place of older ones of the same patch size and compression."""
    if (study / MODEL / "inputs.json").exists():
        inputs = merged(read_inputs(study), inputs)
    (study / MODEL).mkdir(parents=True, exist_ok=True)
    replace_content(study / MODEL / "inputs.json", json.dumps(asdict(inputs), indent=1) + "\n")


def merged(old: Inputs, new: Inputs) -> Inputs:
    """The new ones, and of the old ones what they lack; nothing of another number of ranks."""
    if (old.world_size, old.spare_core) != (new.world_size, new.spare_core):
        return new
    profiles = {(p.patch_size, p.local_batch_size): p for p in (*old.profiles, *new.profiles)}
    return Inputs(
        new.world_size, new.spare_core, tuple(profiles[key] for key in sorted(profiles)), {**old.curves, **new.curves}
    )


def read_inputs(study: Path) -> Inputs:
    """What a study has measured for the model.

    Raises:
      StudyError: nothing, or something unreadable.
    """
    path = study / MODEL / "inputs.json"
    try:
        return TypeAdapter(Inputs).validate_json(path.read_bytes())
    except OSError:
        raise StudyError(
            "nothing was measured for the model",
            where=str(path),
            fix="widefield scaling run ... --model-inputs, with two ranks or more",
        ) from None
    except ValidationError as error:
        what = f"cannot be read: {error.errors()[0]['msg']}"
        raise StudyError(what, where=str(path), fix="measure it again") from None
