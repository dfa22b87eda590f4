from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from trainer.errors import SlideError
from trainer.runtime import SingleComm, World, detect_world, on_root


@pytest.mark.parametrize(
    ("environ", "world"),
    [
        ({}, None),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, None),  # a batch script is not a rank
        (
            {
                "OMPI_COMM_WORLD_RANK": "5",
                "OMPI_COMM_WORLD_SIZE": "8",
                "OMPI_COMM_WORLD_LOCAL_RANK": "1",
                "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
            },
            World(5, 8, 1, 2),
        ),
        ({"PMI_RANK": "3", "PMI_SIZE": "4", "MPI_LOCALRANKID": "3", "MPI_LOCALNRANKS": "4"}, World(3, 4, 3, 4)),
        (
            {
                "PMIX_RANK": "6",
                "SLURM_STEP_NUM_TASKS": "8",
                "SLURM_LOCALID": "0",
                "SLURM_STEP_TASKS_PER_NODE": "2(x4)",
            },
            World(6, 8, 0, 2),
        ),
    ],
)
def test_the_launcher_says_who_we_are(environ: dict[str, str], world: World | None) -> None:
    assert detect_world(environ) == world


def test_root_work_gives_its_result_or_its_error() -> None:
    assert on_root(SingleComm(), lambda: 7) == 7

    def fail() -> None:
        raise SlideError("does not open", where="a.tif", fix="copy it again")

    with pytest.raises(SlideError, match=r"a\.tif"):
        on_root(SingleComm(), fail)


def test_one_process_is_a_world_of_one() -> None:
    comm = SingleComm()
    np.testing.assert_array_equal(comm.allreduce(np.arange(3)), np.arange(3))
    assert comm.gather("x") == ["x"]


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["config", "configs/demo.yaml"]])
def test_commands_that_need_no_tensorflow_do_not_import_it(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom trainer.cli.main import main\n"
        f"try:\n    main({arguments!r})\nexcept SystemExit as e:\n    assert not e.code\n"
        "heavy = {'tensorflow', 'openslide', 'matplotlib', 'h5py', 'pyarrow'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, timeout=60)
