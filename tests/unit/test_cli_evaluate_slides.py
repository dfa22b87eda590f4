"""Which slides `widefield evaluate --slides` takes, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_slides import manifest, run_config, tissue_slide

from trainer.cli.evaluate_slides import AUTO, chosen_slides
from trainer.cli.main import make_parser, parse
from trainer.config import Config, dump_config
from trainer.errors import ConfigError, DataError
from trainer.patches.build import build_index


@pytest.fixture
def config(tmp_path: Path) -> Config:
    for name in "abc":
        tissue_slide(tmp_path / f"{name}.png")
    manifest(tmp_path, "a.png,,,,train", "b.png,,,,val", "c.png,,,,test")
    config = run_config(tmp_path)
    config.output.mkdir()
    (config.output / "config.yaml").write_text(dump_config(config))
    return config


def names(config: Config, split: str, *, is_changed: bool = False) -> tuple[str, list[str]]:
    chosen, records = chosen_slides(config, config.output, split, is_changed=is_changed)
    return chosen, [record.slide.stem for record in records]


def test_test_slides_come_before_those_of_validation(config: Config, tmp_path: Path) -> None:
    assert names(config, AUTO) == ("test", ["c"])
    assert names(config, "val") == ("val", ["b"])
    assert names(config, "all") == ("all", ["a", "b", "c"])
    manifest(tmp_path, "a.png,,,,train", "b.png,,,,val")
    assert names(config, AUTO) == ("val", ["b"])
    with pytest.raises(DataError, match="no slide in 'test'"):
        names(config, "test")


def test_slides_have_the_split_that_the_run_was_trained_with(config: Config, tmp_path: Path) -> None:
    build_index(config, config.index_path)
    manifest(tmp_path, "a.png,,,,val", "b.png,,,,train")
    (tmp_path / "c.png").unlink()
    assert names(config, "val") == ("val", ["b"])
    assert names(config, AUTO) == ("test", ["c"]), "a slide that is gone is not forgotten"
    assert names(config, "val", is_changed=True) == ("val", ["a"])


def test_another_data_set_needs_no_split(config: Config, tmp_path: Path) -> None:
    manifest(tmp_path, "c.png,,,,test")
    assert names(config, "all", is_changed=True) == ("all", ["c"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--slides", "--checkpoint", "x"], "--checkpoint with --slides"),
        (["--slides", "--patch-size", "64"], "--patch-size with --slides"),
        (["--slides", "--trained-weights"], "--trained-weights with --slides"),
        (["--slides", "--class", "tumor"], "'tumor' is no class but the first"),
        (["--predictions", "x"], "--predictions: means something for whole slides only"),
        (["--class", "tumour"], "--class: means something for whole slides only"),
    ],
)
def test_options_that_do_not_go_together_are_refused(config: Config, options: list[str], message: str) -> None:
    args = parse(make_parser(), ["evaluate", str(config.output), *options])
    with pytest.raises(ConfigError, match=message):
        args.run(args)
