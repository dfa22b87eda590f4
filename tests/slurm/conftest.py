"""A real Slurm for the tests of this folder, and what they all submit."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from launch import ROOT
from tiny import write_config
from virtual_cluster import Cluster, why_not

SITE = f"""\
# made by the tests
SBATCH_PARTITION=hosts
WIDEFIELD_SETUP='export PATH={Path(sys.executable).parent}:$PATH PYTHONPATH={ROOT}'
WIDEFIELD_LAUNCHER=auto
WIDEFIELD_SOCKETS_PER_NODE=1
WIDEFIELD_CORES_PER_SOCKET=1
WIDEFIELD_GPUS_PER_NODE=0
WIDEFIELD_LOCAL_DIR=/tmp
"""


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    reason = why_not()
    if reason:
        if os.environ.get("WIDEFIELD_NEED_SLURM"):  # `make test-slurm` has installed what was missing
            pytest.fail(f"no Slurm: {reason}")
        pytest.skip(f"no Slurm: {reason}")
    with Cluster() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def shared_slides(cluster: Cluster) -> Path:
    """Slides on the "parallel file system"."""
    from trainer.slides.synthetic import make_slides

    folder = cluster.folder / "shared" / "slides"
    make_slides(folder, num_train=3, num_test=1, size=1024, seed=5)
    return folder


@pytest.fixture
def project(cluster: Cluster, request: pytest.FixtureRequest) -> Path:
    """A folder to submit from, as a clone is: the job scripts, with this cluster's site among them."""
    folder = cluster.folder / "shared" / request.node.name[:40]
    shutil.copytree(ROOT / "slurm", folder / "slurm")
    (folder / "slurm" / "sites" / "virtual.env").write_text(SITE)
    return folder


@pytest.fixture
def configure(project: Path, shared_slides: Path) -> Callable[..., Path]:
    """Write a run's configuration into the project folder."""
    return lambda **changes: write_config(project, shared_slides, **changes)
