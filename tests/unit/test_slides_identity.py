from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from trainer.errors import SlideError
from trainer.slides.identity import WHOLE_BYTES, slide_hash


def test_small_file_has_the_sha256_of_its_content(tmp_path: Path) -> None:
    (tmp_path / "a.svs").write_bytes(b"slide")
    assert slide_hash(tmp_path / "a.svs") == hashlib.sha256(b"slide").hexdigest()


def test_large_file_is_told_by_size_ends_and_samples_wherever_it_lies(tmp_path: Path) -> None:
    content = bytearray(WHOLE_BYTES * 2)
    path = tmp_path / "a.svs"

    def hash_with(change: int | None = None, size: int = len(content)) -> str:
        changed = bytearray(content[:size])
        if change is not None:
            changed[change] = 1
        path.write_bytes(changed)
        return slide_hash(path)

    same = hash_with()
    (tmp_path / "b.svs").write_bytes(content)
    assert slide_hash(tmp_path / "b.svs") == same
    seen = {same, *(hash_with(change) for change in (0, (1 << 20) - 1, 1 << 20, -1, -(1 << 20), -(1 << 20) - 1))}
    seen |= {hash_with(size=len(content) - 1), hash_with(size=WHOLE_BYTES), hash_with(size=WHOLE_BYTES + 1)}
    assert len(seen) == 10


def test_slide_in_a_folder_is_told_by_its_files_too(tmp_path: Path) -> None:
    (tmp_path / "a.mrxs").write_bytes(b"slide")
    alone = slide_hash(tmp_path / "a.mrxs")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "Data0001.dat").write_bytes(b"12345")
    first = slide_hash(tmp_path / "a.mrxs")
    (tmp_path / "a" / "Data0001.dat").write_bytes(b"1234")
    assert len({alone, first, slide_hash(tmp_path / "a.mrxs")}) == 3


def test_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SlideError, match=r"gone\.svs: cannot be read: No such file"):
        slide_hash(tmp_path / "gone.svs")
