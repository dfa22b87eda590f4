from __future__ import annotations

from pathlib import Path

import pytest

from trainer.cli.main import make_parser, parse
from trainer.cli.predict import Outcome, jobs_of, raise_failures
from trainer.errors import DataError, SlideError, StoppedBySignal


def jobs(*argv: object) -> list:
    return jobs_of(parse(make_parser(), ["predict", "run", *map(str, argv), "-o", "out"]))


def test_every_slide_has_a_folder_of_its_own(tmp_path: Path) -> None:
    for name in ("a.svs", "b.tif", "sub/a.svs"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = jobs(tmp_path / "a.svs", tmp_path / "b.tif", "--tile", 512)
    assert [(j.folder, j.tile, j.overlap) for j in found] == [
        (Path("out/a"), 512, None), (Path("out/b"), 512, None)
    ]  # fmt: skip
    with pytest.raises(DataError, match="2 slides are named a and would share the folder out/a"):
        jobs(tmp_path / "a.svs", tmp_path / "sub" / "a.svs")


def test_tasks_of_an_array_share_out_the_slides(tmp_path: Path) -> None:
    slides = [tmp_path / f"{name}.tif" for name in "abcde"]
    for slide in slides:
        slide.touch()
    parts = [[j.slide for j in jobs(*slides, "--task", f"{task}/2")] for task in (0, 1)]
    assert parts == [slides[::2], slides[1::2]]


def test_a_misspelt_slide_is_told_before_any_is_predicted(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"b\.svs: there is no such slide"):
        jobs(tmp_path / "b.svs")


@pytest.mark.parametrize("argv", [["--tile", "0"], ["--overlap", "-1"], ["--mpp", "0"], ["--mpp", "x"]])
def test_numbers_that_cannot_be_are_refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as e:
        jobs("a.svs", *argv)
    assert e.value.code == 2 and "is not" in capsys.readouterr().err


def test_slides_that_failed_are_listed_and_those_alone() -> None:
    bad = SlideError("is cut short", where="b.svs", fix="copy it")
    raise_failures([Outcome(Path("a.svs"), None)])
    with pytest.raises(SlideError, match=r"b\.svs: is cut short"):
        raise_failures([Outcome(Path("a.svs"), None), Outcome(Path("b.svs"), bad)])
    with pytest.raises(SlideError, match=r"(?s)2 of 3 slides are not predicted:\n  b\.svs: is cut short\n  c\.svs"):
        raise_failures([Outcome(Path("a.svs"), None), Outcome(Path("b.svs"), bad), Outcome(Path("c.svs"), bad)])
    with pytest.raises(StoppedBySignal, match="1 of 2 slides are not finished; run the same command again"):
        raise_failures([Outcome(Path("a.svs"), bad), Outcome(Path("b.svs"), StoppedBySignal())])
