"""Slides predicted by several ranks, which share out tiles or share each: the files are those of one process."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
import tifffile
from launch import mpirun, must_pass, run_python, start_mpirun, start_widefield, widefield
from small_slides import damaged
from tiny import write_config

from trainer.config import dump_config, load_config
from trainer.curriculum import START
from trainer.models import build_model
from trainer.models.keras import keras
from trainer.train.checkpoint import Progress, named_variables, write_checkpoint
from trainer.train.checkpoints import checkpoint_path

long = pytest.mark.long
TILE = ("--tile", "400")
"""16 on the slide, in batches of 6."""


@pytest.fixture(scope="module")
def run(tiny_slides: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has not learned anything, with as many threads in one process as in each of several."""
    folder = tmp_path_factory.mktemp("untrained")
    model = {"architecture": "resunet", "decoder_channels": 16}
    config = load_config(write_config(folder, tiny_slides, model=model, runtime={"intra_op_threads": 1}))
    keras.utils.set_random_seed(1)
    variables = named_variables(build_model(config.model, len(config.data.classes), read_weights=False))
    path = checkpoint_path(config.output, 0)
    path.parent.mkdir(parents=True)
    write_checkpoint(path, {name: v.numpy() for name, v in variables.items()}, Progress(START, 1))
    (config.output / "config.yaml").write_text(dump_config(config))
    return config.output


@pytest.fixture(scope="module")
def slide(tiny_slides: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = sorted(tiny_slides.rglob("tumor*.tif"))[0]
    return damaged(source, tmp_path_factory.mktemp("damaged") / "slide.tif", 600, 520)


@pytest.fixture(scope="module")
def alone(run: Path, slide: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The slide's folder as one process writes it."""
    out = tmp_path_factory.mktemp("alone")
    said = must_pass(widefield("predict", run, slide, "-o", out, *TILE))
    assert "slide.tif: warning: left out: the tile in column 2, row 2 of level 0" in said
    return out / "slide"


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def warned(process: subprocess.Popen) -> tuple[int, str]:
    """Exit status and output of a prediction that is warned when its tiles are planned."""
    assert process.stdout
    for line in process.stdout:
        if "tiles have tissue" in line:
            process.send_signal(signal.SIGUSR1)
            break
    output, _ = process.communicate(timeout=120)
    return process.returncode, output


def test_a_prediction_that_was_warned_goes_on_with_tiles_over_ranks_and_ends_with_the_same_files(
    run: Path, slide: Path, alone: Path, tmp_path: Path
) -> None:
    command = ("predict", run, slide, "-o", tmp_path, *TILE)
    status, output = warned(start_widefield(*command))
    assert status == 75 and "stopped by a signal, 1 of 1 slides are not finished" in output, output
    assert "map.blocks" in files_of(tmp_path / "slide") and "summary.json" not in files_of(tmp_path / "slide")
    said = must_pass(mpirun(3, "-m", "trainer", *command))
    assert f"slide.tif: results: {tmp_path / 'slide'}" in said
    assert files_of(tmp_path / "slide") == files_of(alone)


@long
def test_ranks_that_are_warned_end_with_the_status_that_asks_for_a_new_start(
    run: Path, slide: Path, alone: Path, tmp_path: Path
) -> None:
    command = ("predict", run, slide, "-o", tmp_path, *TILE)
    for more in ((), ("--ranks-per-tile", "2")):
        status, output = warned(start_mpirun(2, "-m", "trainer", *command, *more))
        assert status == 75 and output.count("stopped by a signal, 1 of 1 slides are not finished") == 1, output
        assert "Traceback" not in output
    must_pass(mpirun(2, "-m", "trainer", *command))
    assert files_of(tmp_path / "slide") == files_of(alone)


@long
def test_more_slides_than_workers_are_handed_out_whole(
    run: Path, slide: Path, alone: Path, tiny_slides: Path, tmp_path: Path
) -> None:
    slides = [slide, *sorted(tiny_slides.rglob("normal*.tif"))[:1]]
    must_pass(mpirun(2, "-m", "trainer", "predict", run, *slides, "-o", tmp_path, *TILE))
    assert files_of(tmp_path / "slide") == files_of(alone)
    assert (tmp_path / slides[1].stem / "summary.json").exists()


def test_two_ranks_share_tiles_and_a_slide_that_fails_is_told_at_the_end(
    run: Path, slide: Path, alone: Path, tmp_path: Path
) -> None:
    (tmp_path / "bad.tif").write_text("no slide")
    slides = (tmp_path / "bad.tif", slide)
    done = mpirun(2, "-m", "trainer", "predict", run, *slides, "-o", tmp_path, *TILE, "--ranks-per-tile", "2")
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stderr.count("bad.tif") == 1 and "Traceback" not in done.stderr
    found, expected = (tifffile.imread(f / "probability-tumour.tif").astype(int) for f in (tmp_path / "slide", alone))
    assert np.ptp(expected) > 10, "there is something to compare"
    assert np.abs(found - expected).max() <= 1
    assert (tmp_path / "slide" / "map.json").read_bytes() == (alone / "map.json").read_bytes(), "the same holes"


def test_ranks_that_do_not_make_groups_are_refused(run: Path, slide: Path, tmp_path: Path) -> None:
    done = widefield("predict", run, slide, "-o", tmp_path, "--ranks-per-tile", "2")
    assert done.returncode == 2 and "--ranks-per-tile: 1 rank(s) cannot be put into groups of 2" in done.stderr


@long
def test_tiles_that_cannot_be_cut_are_refused_before_the_first(run: Path, slide: Path, tmp_path: Path) -> None:
    command = ("predict", run, slide, "-o", tmp_path, "--tile", "200", "--ranks-per-tile", "2")
    done = mpirun(2, "-m", "trainer", *command)
    assert done.returncode == 2 and "200 px cannot be cut into 2 slabs" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and not list(tmp_path.iterdir())


WITHOUT_TENSORFLOW = """
import sys
from trainer.cli.main import main
main(sys.argv[1:])
assert "tensorflow" not in sys.modules
"""


def test_a_finished_slide_needs_no_network_and_leaves_no_map(run: Path, slide: Path, alone: Path) -> None:
    before = files_of(alone)
    (alone / "map.blocks").touch()  # as a process leaves it that is killed in the last moment
    arguments = ("predict", run, slide, "-o", alone.parent, *TILE)
    said = must_pass(run_python("-c", WITHOUT_TENSORFLOW, *arguments))
    assert "slide.tif: was finished before" in said
    assert f"what is left out stays so: once the slide is mended, rm -r {alone} and predict it again" in said
    assert files_of(alone) == before
