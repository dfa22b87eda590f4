"""What whole-slide prediction needs of a network: a function on tiles, and how it wants them made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from trainer.config.schema import ResolutionConfig, StainConfig, TissueConfig


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How slides become what a network was trained on.

    Args:
      network: a hash of its weights.
      class_names: what the network's channels are.
      patch_sizes: it was trained on, ascending.
      resolution: of its patches; an mpp wherever one is known, so that a slide of another scanner is resampled.
      mpp: of slides that do not say theirs; None where nobody knows it.
      tissue: what counts as tissue; None where it was trained on everything.
      min_tissue_fraction: of the patches it was trained on, and that stains are estimated from.
      stain: normalisation of slides.
      seed: stains are estimated with.
    """

    network: str
    class_names: tuple[str, ...]
    patch_sizes: tuple[int, ...]
    resolution: ResolutionConfig
    mpp: float | None
    tissue: TissueConfig | None
    min_tissue_fraction: float
    stain: StainConfig
    seed: int

    def to_json(self) -> dict[str, Any]:
        """All of it as plain data."""
        settings = {k: getattr(self, k) for k in ("resolution", "tissue", "stain")}
        return asdict(self) | {k: v.model_dump(mode="json") if v else None for k, v in settings.items()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Recipe:
        """What `to_json` gave."""
        tissue = data["tissue"]
        return cls(
            **data
            | {
                "class_names": tuple(data["class_names"]),
                "patch_sizes": tuple(data["patch_sizes"]),
                "resolution": ResolutionConfig.model_validate(data["resolution"]),
                "tissue": tissue and TissueConfig.model_validate(tissue),
                "stain": StainConfig.model_validate(data["stain"]),
            }
        )


class Network(Protocol):
    """A trained network. Called from one thread, always with the same number of tiles of one size."""

    recipe: Recipe

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """uint8 RGB [B, P, P, 3] -> probabilities float32 [B, P, P, C], which add up to 1 at each pixel."""


class LazyNetwork:
    """A network that is built when its first tiles come: a slide that is finished does not need it.

    Args:
      recipe: the one it will have.
    """

    def __init__(self, recipe: Recipe, build: Callable[[], Network]) -> None:
        self.recipe, self._build = recipe, build
        self._network: Network | None = None

    def __call__(self, images: np.ndarray) -> np.ndarray:
        self._network = self._network or self._build()
        return self._network(images)
