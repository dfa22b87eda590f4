"""Decoded tiles kept for the next region that needs them, bounded in bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable

import numpy as np


class TileCache:
    """The least recently used tiles leave when a new one would exceed the bound.

    The lock is held for a few dictionary operations only: two threads that miss the same tile both decode it, which is
    cheaper than having one wait for the other.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self._tiles: OrderedDict[Hashable, np.ndarray] = OrderedDict()  # oldest use first
        self._lock = threading.Lock()

    def get(self, key: Hashable) -> np.ndarray | None:
        with self._lock:
            tile = self._tiles.get(key)
            if tile is not None:
                self._tiles.move_to_end(key)
            return tile

    def put(self, key: Hashable, tile: np.ndarray) -> None:
        with self._lock:
            old = self._tiles.pop(key, None)
            self.num_bytes += tile.nbytes - (0 if old is None else old.nbytes)
            self._tiles[key] = tile
            while self.num_bytes > self.max_bytes:
                self.num_bytes -= self._tiles.popitem(last=False)[1].nbytes
