"""What is wrong with where ranks run, from what each of them says of itself."""

from __future__ import annotations

from dataclasses import replace

import pytest

from trainer.errors import CommError
from trainer.runtime.affinity import Placement, gpu_of, idle_cores, my_placement, problems_of, table
from trainer.runtime.libraries import mpi_libraries, require_one_mpi


def rank(number: int, cpus: range, *, host: str = "a", socket: int = 0, threads: int | None = None) -> Placement:
    return Placement(
        rank=number,
        host=host,
        local_rank=number,
        cpus=tuple(cpus),
        cpus_at_start=tuple(cpus),
        thread_cpus=tuple(cpus),
        cores=tuple(cpus),
        sockets=(socket,),
        numa=(socket,),
        node_cores=48,
        node_sockets=2,
        intra_op_threads=threads or len(cpus),
        inter_op_threads=1,
        comm_cpu=None,
        mpi_yields=True,
        gpu=None,
    )


RIGHT = [
    rank(0, range(24)),
    rank(1, range(24, 48), socket=1),
    rank(2, range(24), host="b"),
    rank(3, range(24, 48), host="b", socket=1),
]


def test_one_rank_per_socket_is_right() -> None:
    assert problems_of(RIGHT) == []
    assert idle_cores(RIGHT) is None


def test_the_same_cores_on_two_hosts_are_not_shared() -> None:
    assert problems_of([rank(0, range(24)), rank(1, range(24), host="b")]) == []


def test_ranks_that_share_cores_are_named_with_their_host() -> None:
    wrong = [*RIGHT[:2], rank(2, range(24), host="b"), rank(3, range(20, 44), host="b")]
    assert problems_of(wrong) == ["b: ranks 2-3 share cores (CPUs 20-23): each waits while the other computes"]


def test_two_threads_of_one_core_are_shared_too() -> None:
    first, second = rank(0, range(24)), replace(rank(1, range(48, 72)), cores=tuple(range(24)))
    assert problems_of([first, second])[0].startswith("a: ranks 0-1 share cores")


def test_a_rank_on_two_sockets_is_found_unless_it_is_alone() -> None:
    wide = replace(rank(0, range(48)), sockets=(0, 1))
    assert problems_of([wide]) == []
    assert "a: rank(s) 0 run on sockets 0-1" in problems_of([wide, rank(1, range(48), host="b")])[0]


def test_more_threads_than_hardware_has_are_found() -> None:
    assert problems_of([rank(0, range(2), threads=4)]) == [
        "a: rank 0 computes with 4 threads on 2 hardware threads",
    ]


def test_a_rank_that_mpi_has_moved_is_found() -> None:
    moved = replace(RIGHT[0], cpus_at_start=(0,))
    assert "was bound to CPUs 0, and MPI or Horovod moved it to 0-23" in problems_of([moved, *RIGHT[1:]])[0]


def test_nodes_of_unequal_shape_are_found() -> None:
    found = problems_of([rank(0, range(24)), rank(1, range(12), host="b")])
    assert found == ["rank 1 on b has 12 core(s) and rank 0 on a 24: every step waits for the slowest"]


def test_two_ranks_of_one_gpu_are_found() -> None:
    first, second = (replace(r, gpu="0") for r in RIGHT[:2])
    assert problems_of([first, second]) == ["a: 2 ranks use 1 GPUs; shared: 0"]
    assert problems_of([first, replace(second, gpu="1")]) == []


def test_cores_that_mpirun_leaves_idle_are_remarked() -> None:
    """Open MPI binds two ranks to a core each, whatever the node has."""
    assert idle_cores([rank(0, range(1)), rank(1, range(1, 2))]) == "a: 2 ranks use 2 of 48 cores"


def test_the_table_has_a_line_for_each_rank() -> None:
    lines = table(RIGHT).splitlines()
    assert len(lines) == 5
    assert lines[2].split()[:5] == ["1", "a", "24-47", "1", "1"]


def test_this_process_knows_where_it_is() -> None:
    import os

    mine = my_placement(0, 0, os.sched_getaffinity(0), 1, 1)
    assert set(mine.cpus) == os.sched_getaffinity(0) == set(mine.cpus_at_start)
    assert set(mine.cpus) <= set(mine.thread_cpus)
    assert problems_of([mine]) == []


def test_two_mpis_in_one_process_are_refused() -> None:
    mapped = ["/usr/lib/libmpi.so.40.30.4", "/opt/intel/lib/release/libmpi.so.12", "/usr/lib/libmpi.so.40.30.4"]
    found = mpi_libraries([*mapped, "/usr/lib/libmpich_not_it.txt", "/lib/libc.so.6"])
    assert found == sorted(set(mapped))
    with pytest.raises(CommError, match=r"two MPI libraries are loaded.*libmpi\.so\.40.*libmpi\.so\.12|libmpi\.so\.12"):
        require_one_mpi(found)
    require_one_mpi(found[:1])


def test_a_gpu_is_named_as_the_driver_counts() -> None:
    assert gpu_of(0, 2, "") == "2"
    assert gpu_of(1, 1, "4,5,6,7") == "5"
    assert gpu_of(3, 0, "0") == "0 given to rank 3", (
        "a job manager may give each rank another one under the same number"
    )
