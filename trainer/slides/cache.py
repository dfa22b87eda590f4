"""At most so many slides open at once, opened when first asked for, shared by all reading threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class _Entry(Generic[Value]):
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.value: Value | None = None


class SlideCache(Generic[Key, Value]):
    """The least recently used entry leaves when a new one would exceed the bound.

    It is dropped, not closed: a thread may be reading from it at this moment. Slides close themselves when their last
    reader lets go (OpenSlide's handle does so when it is collected). Different keys open side by side; one key is
    opened once even when many threads ask for it together. A failure is raised to each who asks, and never cached.

    Args:
      open_one: makes the value of a key; its errors pass through.
      capacity: how many values are kept, at least 1.
    """

    def __init__(self, open_one: Callable[[Key], Value], capacity: int) -> None:
        self._open_one, self._capacity = open_one, capacity
        self._entries: dict[Key, _Entry[Value]] = {}  # oldest use first
        self._lock = threading.Lock()

    def get(self, key: Key) -> Value:
        with self._lock:
            entry = self._entries.pop(key, None) or _Entry()
            self._entries[key] = entry
            while len(self._entries) > self._capacity:
                del self._entries[next(iter(self._entries))]
        with entry.lock:
            if entry.value is None:
                entry.value = self._open_one(key)
            return entry.value

    def __len__(self) -> int:
        return len(self._entries)
