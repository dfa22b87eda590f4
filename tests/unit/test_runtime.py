from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from trainer.errors import SlideError
from trainer.runtime import SingleComm, World, detect_world, on_root
from trainer.runtime.pool import MpiWorkers


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


def test_a_pool_gives_results_in_order_and_takes_items_as_they_are_wanted() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in range(100):
            taken.append(number)
            yield number

    def square(number: int) -> int:
        time.sleep(0.01 * (number % 2 == 0))  # the second is done before the first
        return number**2

    with ThreadPoolExecutor(2) as executor:
        results = MpiWorkers(executor, 2).in_order(square, items())
        assert [next(results) for _ in range(5)] == [0, 1, 4, 9, 16]
        results.close()
    assert len(taken) <= 5 + 4, "two per worker are under way"
