"""Mask images as labels: class ids or colours, held whole when small, read tile by tile when not.

A mask has its own frame, mask pixels; `labels.py` crosses from level-0 pixels to it. Values are looked up, never
interpolated, and a value without a class is an error, never a guess.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import tifffile

from trainer.config.schema import IGNORE_LABEL, DataConfig, MaskValue
from trainer.errors import AnnotationError, ConfigError
from trainer.slides.images import TIFF_SUFFIXES, ImageFault, RawImage, normalised_tiff, read_image

HOLD_PIXELS = 1 << 24
"""Tiled TIFF masks above this are read region by region; held as labels, a mask of this size takes 16 MiB."""

_KEPT_TILES = 16
"""Decoded tiles kept per mask: neighbouring patches share them. 4 MiB at the usual 512 x 512."""
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


class MaskImage(ABC):
    """Labels of one mask image; safe to sample from many threads. `size` is (width, height) in mask pixels."""

    path: Path
    size: tuple[int, int]

    @abstractmethod
    def sample(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """[len(rows), len(columns)] uint8 labels at ascending mask rows and columns inside the mask."""


class HeldMask(MaskImage):
    """A mask held in memory as labels; all of its values are checked when it is opened."""

    def __init__(self, path: Path, table: LabelTable) -> None:
        self.path = path
        try:
            self._labels = to_labels(read_image(path), table, path)
        except ImageFault as fault:
            raise AnnotationError(
                f"mask {fault}", where=str(path), fix="save the mask as PNG, or as a tiled TIFF if it is large"
            ) from None
        self.size = (self._labels.shape[1], self._labels.shape[0])

    def sample(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        return _picked(self._labels, rows, columns).copy()


class TiledMask(MaskImage):
    """A large tiled TIFF of which only the tiles that are asked for are decoded; the last few stay for neighbours.

    Values are checked as they are read: indexing reads every position that training will read.
    """

    def __init__(self, path: Path, table: LabelTable) -> None:
        self.path, self._table = path, table
        self._file = tifffile.TiffFile(path)
        self._page = self._file.pages.first.aspage()
        self._lock = threading.Lock()  # seek and read of the shared file handle belong together
        self.size = (self._page.imagewidth, self._page.imagelength)
        self._tile = lru_cache(maxsize=_KEPT_TILES)(self._decoded)
        self._tiles_across = -(-self._page.imagewidth // self._page.tilewidth)

    def sample(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        labels = np.empty((len(rows), len(columns)), np.uint8)
        height, width = self._page.tilelength, self._page.tilewidth
        tile_rows, tile_columns = rows // height, columns // width
        for tile_row in np.unique(tile_rows):
            to_rows = np.flatnonzero(tile_rows == tile_row)
            for tile_column in np.unique(tile_columns):
                to_columns = np.flatnonzero(tile_columns == tile_column)
                tile = self._tile(int(tile_row), int(tile_column))
                from_rows, from_columns = rows[to_rows] - tile_row * height, columns[to_columns] - tile_column * width
                _picked(labels, to_rows, to_columns)[:] = _picked(tile, from_rows, from_columns)
        return labels

    def _decoded(self, tile_row: int, tile_column: int) -> np.ndarray:
        """[tile height, tile width] uint8 labels, cut off at the mask's border."""
        page, number = self._page, tile_row * self._tiles_across + tile_column
        left, top = tile_column * page.tilewidth, tile_row * page.tilelength
        height, width = min(page.tilelength, self.size[1] - top), min(page.tilewidth, self.size[0] - left)
        try:
            count = page.databytecounts[number]
            if count == 0:  # a sparse TIFF leaves out tiles of zeros
                shape = (height, width) if page.samplesperpixel == 1 else (height, width, page.samplesperpixel)
                pixels = np.zeros(shape, page.dtype)
            else:
                with self._lock:
                    self._file.filehandle.seek(page.dataoffsets[number])
                    data = self._file.filehandle.read(count)
                tile, *_ = page.decode(data, number, jpegtables=page.jpegtables)
                pixels = np.asarray(tile)[0, :height, :width]
        except Exception as error:  # decoders raise nearly everything on damaged files
            raise AnnotationError(
                f"mask tile at ({left}, {top}) cannot be decoded: {error}", where=str(self.path), fix="save it again"
            ) from error
        return to_labels(normalised_tiff(page, pixels), self._table, self.path, (left, top))


def _picked(array: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """[len(rows), len(columns)]: a view where both are consecutive (ten times faster), else a copy."""
    if (np.diff(rows) == 1).all() and (np.diff(columns) == 1).all():
        return array[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return array[np.ix_(rows, columns)]


def open_mask(path: Path, config: DataConfig) -> MaskImage:
    """A mask image with the configuration's meaning of its values.

    Raises:
      AnnotationError: missing, unreadable, too large to hold and not tiled, or (held masks) a value without a class.
    """
    if not path.exists():
        raise AnnotationError("there is no such file", where=str(path), fix="correct the path in the manifest")
    is_tiled = path.suffix.lower() in TIFF_SUFFIXES and _is_large_and_tiled(path)
    return (TiledMask if is_tiled else HeldMask)(path, label_table(config))


def _is_large_and_tiled(path: Path) -> bool:
    try:
        with tifffile.TiffFile(path) as file:
            page = file.pages.first
            is_plain = page.planarconfig == tifffile.PLANARCONFIG.CONTIG or page.samplesperpixel == 1
            return page.is_tiled and is_plain and page.imagewidth * page.imagelength > HOLD_PIXELS
    except Exception as error:  # tifffile raises nearly everything on damaged files
        raise AnnotationError(f"mask cannot be opened: {error}", where=str(path), fix="save it again") from error
