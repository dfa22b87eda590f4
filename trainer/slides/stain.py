"""Stains of a patch: random changes in their space (HED jitter) and mapping to reference stains (Macenko).

Both are linear in the logarithm of the pixel, so either is one 3x3 matrix and one offset (`_recolour`).
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import lru_cache

import numpy as np

_HED = np.array([(0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78)])
"""Optical density in red, green, blue of one unit of haematoxylin, eosin, DAB: Ruifrok & Johnston 2001, as in
`skimage.color.rgb_from_hed`."""
_LIGHT = 240.0
"""Macenko: the grey level of glass, as in the usual implementations (github.com/mitkovetta/staining-normalization)."""
_MIN_DENSITY = 0.15
"""Macenko: pixels with less optical density (natural logarithm) than this in any channel carry no stain."""
_ANGLE_PERCENTILE, _CONCENTRATION_PERCENTILE = 1, 99
_MIN_STAINED_PX = 1000
"""Fewer stained pixels do not carry percentiles: ten pixels lie outside each."""
_MIN_ANGLE_RAD = np.radians(5)
"""Stains closer than this are one stain and its noise; the reference stains are 22 degrees apart."""
_LOG = np.log(np.maximum(np.arange(256, dtype=np.float32), 1))
_BLOCK_PX = 1 << 16
"""Pixels that are recoloured at once, to bound the float32 copies of a large patch; as fast as the whole."""


def hed_jitter(image: np.ndarray, alpha: np.ndarray, beta: np.ndarray) -> np.ndarray:
    """Change the amount of each stain: s' = s * alpha + beta for haematoxylin, eosin and DAB.

    Amounts are optical densities to base 10 (1 unit of haematoxylin lets 10^-0.70 of green through). scikit-image's
    `rgb2hed` gives a sixth of them, for it divides by its log(10^-6); its amounts below 0 are cut off, ours are not,
    so that alpha = 1, beta = 0 changes nothing. Otherwise `hed2rgb(rgb2hed(image) * alpha + beta / 6)` is the same.

    Args:
      image: [h, w, 3] uint8 RGB.
      alpha, beta: [3] factors near 1 and offsets near 0. Tellez et al. draw both from +-0.05 (light) to +-0.2 (strong).
    Returns:
      [h, w, 3] uint8.
    Source: Tellez et al. 2018, doi 10.1109/TMI.2018.2820199.
    """
    matrix = np.linalg.inv(_HED) * alpha @ _HED
    return _recolour(image, matrix, 255.0, -np.log(10) * np.asarray(beta) @ _HED)


@dataclass(frozen=True)
class Stains:
    """The two stains of a slide.

    Attributes:
      matrix: optical density in red, green, blue of each stain, haematoxylin first; unit vectors.
      max_concentrations: 99th percentile of each stain's amount where there is any stain; natural logarithms.
    """

    matrix: tuple[tuple[float, float, float], tuple[float, float, float]]
    max_concentrations: tuple[float, float]

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> Stains:
        return _as_stains(**json.loads(text))


REFERENCE = Stains(((0.5626, 0.7201, 0.4062), (0.2159, 0.8012, 0.5581)), (1.9705, 1.0308))
"""The target that Veta's implementation brought and most others copied (github.com/mitkovetta/staining-normalization,
torchstain, HEnorm_python)."""


def estimate_stains(pixels: np.ndarray) -> Stains | None:
    """The two stains of a slide from a sample of its tissue.

    Stained pixels lie in a plane of optical densities; its extreme directions (1st and 99th percentile of the angle)
    are the stains. Glass in the sample changes nothing, for only stained pixels count.

    Args:
      pixels: [N, 3] uint8 RGB; 100,000 of them are plenty.
    Returns:
      None where there are not two stains: fewer than 1000 stained pixels, or all in about one direction.
    Source: Macenko et al. 2009, doi 10.1109/ISBI.2009.5193250.
    """
    density = (np.log(_LIGHT) - _LOG)[pixels]
    is_dense = density >= _MIN_DENSITY
    stained = density[is_dense.all(axis=1)]
    if len(stained) < _MIN_STAINED_PX:
        return None
    _, directions = np.linalg.eigh(np.cov(stained.T))
    plane = directions[:, 1:]  # the two of largest variance, as columns, of arbitrary sign
    x, y = stained.mean(axis=0) @ plane
    plane = plane @ np.array([(x, -y), (y, x)]) / np.hypot(x, y)  # angles are taken from the mean: no sign, no wrap
    angles = np.arctan2(stained @ plane[:, 1], stained @ plane[:, 0])
    low, high = np.percentile(angles, (_ANGLE_PERCENTILE, 100 - _ANGLE_PERCENTILE))
    if high - low < _MIN_ANGLE_RAD:
        return None
    stains = np.array([(np.cos(a), np.sin(a)) for a in (low, high)]) @ plane.T
    stains = stains[np.argsort(-stains[:, 0])]  # haematoxylin takes more of red
    amounts = density[is_dense.any(axis=1)] @ np.linalg.pinv(stains)  # pale eosin counts here, glass does not
    most = np.percentile(amounts, _CONCENTRATION_PERCENTILE, axis=0)
    return _as_stains(stains.tolist(), most.tolist()) if (most > 0).all() else None


def _as_stains(matrix: list[list[float]], max_concentrations: list[float]) -> Stains:
    (h_red, h_green, h_blue), (e_red, e_green, e_blue) = matrix
    haematoxylin_most, eosin_most = max_concentrations
    return Stains(((h_red, h_green, h_blue), (e_red, e_green, e_blue)), (haematoxylin_most, eosin_most))


def normalise_stains(image: np.ndarray, stains: Stains, target: Stains = REFERENCE) -> np.ndarray:
    """The image as if it had been stained with `target`; what is neither stain is dropped, white stays white.

    Args:
      image: [h, w, 3] uint8 RGB.
      stains: those of the image's slide.
    Returns:
      [h, w, 3] uint8.
    """
    return _recolour(image, _normalising(stains, target), _LIGHT, np.zeros(3))


@lru_cache(maxsize=1024)
def _normalising(stains: Stains, target: Stains) -> np.ndarray:
    scale = np.array(target.max_concentrations) / np.array(stains.max_concentrations)
    return np.linalg.pinv(np.array(stains.matrix)) * scale @ np.array(target.matrix)


def _recolour(image: np.ndarray, matrix: np.ndarray, light: float, offset: np.ndarray) -> np.ndarray:
    """light * exp(offset + log(image / light) @ matrix), rounded to uint8; black counts as 1."""
    offset = (offset + np.log(light) * (1 - matrix.sum(axis=0))).astype(np.float32)
    matrix = matrix.astype(np.float32)
    pixels, out = image.reshape(-1, 3), np.empty((image.size // 3, 3), np.uint8)
    for start in range(0, len(pixels), _BLOCK_PX):
        values = _LOG[pixels[start : start + _BLOCK_PX]] @ matrix
        values += offset
        np.exp(values, out=values)
        np.minimum(values, 255, out=values)
        np.rint(values, out=values)
        out[start : start + _BLOCK_PX] = values
    return out.reshape(image.shape)
