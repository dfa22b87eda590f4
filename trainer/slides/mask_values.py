"""What the values of a mask image mean: class ids or colours -> labels. A value without a class is an error."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trainer.config.schema import IGNORE_LABEL, DataConfig, MaskValue
from trainer.errors import AnnotationError, ConfigError
from trainer.slides.images import RawImage

_NUM_IDS = 1 << 16


@dataclass(frozen=True)
class LabelTable:
    """What each mask value means.

    Args:
      ids: [65536] int16 label of each id, -1 where it has none.
      colours: [n] uint32 sorted colours as 0xrrggbb, and [n] int16 their labels.
      has_ids: whether the configuration maps ids (and not colours only).
    """

    ids: np.ndarray
    colours: tuple[np.ndarray, np.ndarray]
    has_ids: bool


def label_table(config: DataConfig) -> LabelTable:
    """The table of `data.classes[i].mask_values` and `data.ignore_mask_values`.

    Without a value for the first class, 0 and black are its values. An id n also stands for the grey (n, n, n) of a
    mask stored as RGB, and a grey colour for the id, unless the configuration gives those another meaning.

    Raises:
      ConfigError: a colour that is not written '#rrggbb', or an id that no 16-bit mask can hold.
    """
    values: list[tuple[MaskValue, int]] = [(v, label) for label, c in enumerate(config.classes) for v in c.mask_values]
    values += [(v, IGNORE_LABEL) for v in config.ignore_mask_values]
    ids = {v: label for v, label in values if isinstance(v, int)}
    colours = {_colour(v): label for v, label in values if isinstance(v, str)}
    has_ids = bool(ids) or not colours
    for value, label in list(ids.items()):
        if not 0 <= value < _NUM_IDS:
            raise ConfigError(f"{value} is not a mask value", where="data: mask_values", fix="ids are 0 to 65535")
        if value < 256:
            colours.setdefault(value * 0x010101, label)
    for colour, label in list(colours.items()):
        if colour % 0x010101 == 0:
            ids.setdefault(colour // 0x010101, label)
    if not config.classes[0].mask_values:
        ids.setdefault(0, 0)
        colours.setdefault(0, 0)
    id_table = np.full(_NUM_IDS, -1, np.int16)
    id_table[list(ids)] = list(ids.values())
    keys = sorted(colours)
    return LabelTable(id_table, (np.array(keys, np.uint32), np.array([colours[k] for k in keys], np.int16)), has_ids)


def _colour(text: str) -> int:
    digits = text.removeprefix("#")
    try:
        if len(digits) == 6 and text != digits:
            return int(digits, 16)
    except ValueError:
        pass
    raise ConfigError(f"'{text}' is not a colour", where="data: mask_values", fix="write '#rrggbb', e.g. '#ff0000'")


def to_labels(raw: RawImage, table: LabelTable, path: Path, offset: tuple[int, int] = (0, 0)) -> np.ndarray:
    """Labels of mask pixels.

    Args:
      raw: pixels; a palette image is taken by its palette positions when the configuration maps ids, else by its
        colours. Transparency is ignored.
      offset: (x, y) of the first pixel in the mask, for messages.
    Returns:
      [h, w] uint8.
    Raises:
      AnnotationError: a value that the table does not hold.
    """
    values, is_colour = _values(raw, table, path)
    labels = _colour_labels(values, *table.colours) if is_colour else table.ids[values]
    if labels.min(initial=0) < 0:
        row, column = np.argwhere(labels < 0)[0]
        value = int(values[row, column])
        name = f"'#{value:06x}'" if is_colour else str(value)
        raise AnnotationError(
            f"{'colour' if is_colour else 'value'} {name} at mask pixel ({column + offset[0]}, {row + offset[1]}) "
            f"has no class",
            where=str(path),
            fix=f"add {name} to data.classes[i].mask_values or data.ignore_mask_values",
        )
    return labels.astype(np.uint8)


def _colour_labels(colours: np.ndarray, known: np.ndarray, labels: np.ndarray) -> np.ndarray:
    if len(known) == 0:
        return np.full(colours.shape, -1, np.int16)
    place = np.minimum(np.searchsorted(known, colours), len(known) - 1)
    return np.where(known[place] == colours, labels[place], np.int16(-1))


def _values(raw: RawImage, table: LabelTable, path: Path) -> tuple[np.ndarray, bool]:
    """Pixels as single numbers, and whether these are colours (0xrrggbb)."""
    pixels = raw.pixels
    if raw.palette is not None and not table.has_ids:
        pixels = raw.palette[np.minimum(pixels, len(raw.palette) - 1)]
    if pixels.ndim == 3 and pixels.shape[2] == 2:
        pixels = pixels[..., 0]
    if pixels.ndim == 2:
        return pixels.astype(np.uint16), False
    if pixels.shape[2] not in (3, 4) or pixels.dtype != np.uint8:
        raise AnnotationError(
            f"a mask with {pixels.shape[2]} channels of {pixels.dtype} cannot be read",
            where=str(path),
            fix="save it with one channel of class ids, or as 8-bit RGB",
        )
    red, green, blue = (pixels[..., i].astype(np.uint32) for i in range(3))
    return (red << 16) | (green << 8) | blue, True
