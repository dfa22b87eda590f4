"""What the configuration knows of each architecture; the networks are in `trainer/models/architectures.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ArchitectureName = Literal["deeplabv3plus", "unet", "fpn", "linknet", "pspnet", "resunet"]


@dataclass(frozen=True)
class Architecture:
    """What a network needs of a patch and makes of the settings."""

    idle: tuple[str, ...] = ()
    """Settings of `model` that have no effect."""
    patch_multiple: int = 16
    """Patch sides have to be multiples of this: 16 at least, as slabs are (`models/halos.py`)."""


_HALVES_FIVE_TIMES = 32

ARCHITECTURES: dict[ArchitectureName, Architecture] = {
    "deeplabv3plus": Architecture(),
    "unet": Architecture(("output_stride", "aspp_channels"), _HALVES_FIVE_TIMES),
    "fpn": Architecture(("output_stride", "aspp_channels"), _HALVES_FIVE_TIMES),
    "linknet": Architecture(("output_stride", "aspp_channels", "decoder_channels"), _HALVES_FIVE_TIMES),
    "pspnet": Architecture(("aspp_channels",)),
    "resunet": Architecture(("backbone", "weights", "output_stride", "aspp_channels")),
}
