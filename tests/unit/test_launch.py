"""Where ranks go on nodes of recorded shapes, and the command lines that put them there."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from launch import ROOT

from trainer.errors import LaunchError
from trainer.launch.commands import Layout, choose_launcher, mpi_of, mpirun_command, pmi_of, srun_command
from trainer.launch.plan import plan_node, plan_threads, rank_environment
from trainer.launch.ranges import ranges
from trainer.launch.site import REQUIRED, read_site
from trainer.launch.slurm import cpus_of_nodes, current_job
from trainer.launch.topology import Cpu, Topology, format_topology, parse_topology, read_topology

FOLDER = ROOT / "tests" / "topologies"
EVEN, ODD = ranges(range(0, 48, 2)), ranges(range(1, 48, 2))
NAMES = sorted(p.stem for p in FOLDER.glob("*.txt"))


def node(name: str) -> Topology:
    path = FOLDER / f"{name}.txt"
    return parse_topology(path.read_text(), str(path))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("laptop", "1 socket x 4 cores, 2 threads a core"),
        ("dual-socket", "2 sockets x 24 cores"),
        ("dual-socket-smt", "2 sockets x 24 cores, 2 threads a core"),
        ("four-numa", "2 sockets x 16 cores, 4 NUMA domains"),
        ("eight-gpus", "2 sockets x 64 cores, 2 threads a core, 8 NUMA domains, 8 GPUs"),
        ("one-core", "1 socket x 1 core"),
    ],
)
def test_a_recorded_node_is_described(name: str, text: str) -> None:
    assert node(name).describe() == text


@pytest.mark.parametrize("name", NAMES)
def test_a_topology_reads_back(name: str) -> None:
    assert parse_topology(format_topology(node(name))) == node(name)


def test_this_machine_can_be_read() -> None:
    import os

    topology = read_topology()
    assert set(os.sched_getaffinity(0)) <= {c.cpu for c in topology.cpus}


@pytest.mark.parametrize("text", ["0,0,x,0", "1", "gpu,0", "# nothing\n"])
def test_a_damaged_topology_names_its_file(text: str) -> None:
    with pytest.raises(LaunchError, match=r"node\.txt"):
        parse_topology(text, "node.txt")


@pytest.mark.parametrize(
    ("name", "ranks", "places"),
    [
        ("laptop", None, [("0", "0-7", 4, None)]),
        ("laptop", 2, [("0", "0-1,4-5", 2, None), ("0", "2-3,6-7", 2, None)]),
        ("dual-socket", None, [("0", EVEN, 24, None), ("1", ODD, 24, None)]),
        ("dual-socket-smt", None, [("0", "0-23,48-71", 24, None), ("1", "24-47,72-95", 24, None)]),
        ("four-numa", 4, [(s, c, 8, None) for s, c in zip("0011", ("0-7", "8-15", "16-23", "24-31"), strict=True)]),
        ("one-core", None, [("0", "0", 1, None)]),
    ],
)
def test_ranks_get_their_own_cores(
    name: str, ranks: int | None, places: list[tuple[str, str, int, int | None]]
) -> None:
    plan = plan_node(node(name), ranks)
    assert [(ranges(r.sockets), ranges(r.cpus), r.num_cores, r.gpu) for r in plan] == places


def test_a_rank_per_gpu_uses_the_gpu_of_its_local_rank() -> None:
    plan = plan_node(node("eight-gpus"))
    assert [r.gpu for r in plan] == list(range(8))
    assert [r.sockets for r in plan] == [(0,)] * 4 + [(1,)] * 4
    assert {r.num_cores for r in plan} == {16}


@given(st.sampled_from(NAMES), st.integers(1, 12))
def test_no_core_is_shared_and_no_rank_crosses_a_socket(name: str, ranks: int) -> None:
    topology = node(name)
    try:
        plan = plan_node(topology, ranks)
    except LaunchError:
        return
    cpus = [cpu for rank in plan for cpu in rank.cpus]
    assert len(cpus) == len(set(cpus))
    assert len(plan) == ranks
    assert len({r.num_cores for r in plan}) == 1, "every step waits for the slowest"
    assert ranks == 1 or all(len(r.sockets) == 1 for r in plan)
    assert all(1 <= r.threads.intra_op <= r.num_cores for r in plan)
    assert all(r.threads.comm_cpu is None or r.threads.comm_cpu in r.cpus for r in plan)


def test_a_core_is_left_to_horovod_where_it_costs_little() -> None:
    assert plan_threads(node("dual-socket"), world_size=1).intra_op == 48, "one rank exchanges nothing"
    per_socket = plan_node(node("dual-socket"))
    assert [r.threads.intra_op for r in per_socket] == [23, 23]
    assert [r.threads.comm_cpu for r in per_socket] == [46, 47]
    assert [r.threads.mpi_yields for r in per_socket] == [False, False]
    few = plan_node(node("laptop"), 2)[0].threads
    assert (few.intra_op, few.comm_cpu, few.mpi_yields) == (2, None, True)
    assert plan_node(node("four-numa"), 1, num_nodes=8)[0].threads.intra_op == 31, "one rank on each of 8 nodes"


def test_what_ranks_libraries_read() -> None:
    spare = rank_environment(plan_node(node("dual-socket"))[1].threads, local_size=2)
    assert spare["HOROVOD_THREAD_AFFINITY"] == "47,47", "each rank reads the entry of its local rank"
    assert spare["OMPI_MCA_mpi_yield_when_idle"] == "0"
    assert spare["OMPI_MCA_btl_tcp_flags"] == "send,inplace"
    assert spare["OMP_NUM_THREADS"] == "23"
    alone = rank_environment(plan_node(node("laptop"), 4)[0].threads, local_size=4)
    assert "HOROVOD_THREAD_AFFINITY" not in alone
    assert alone["OMPI_MCA_mpi_yield_when_idle"] == "1"


@pytest.mark.parametrize(
    ("name", "ranks", "cores", "said"),
    [
        ("laptop", 5, None, "5 ranks are more than the 4 cores"),
        ("dual-socket", 3, None, "3 ranks do not divide among 2 sockets"),
        ("dual-socket", 4, 13, "4 ranks of 13 cores are more than the 48 cores"),
    ],
)
def test_ranks_that_do_not_fit_are_refused(name: str, ranks: int, cores: int | None, said: str) -> None:
    with pytest.raises(LaunchError, match=said):
        plan_node(node(name), ranks, cores_per_rank=cores)


def test_one_rank_can_be_given_the_share_that_it_has_among_others() -> None:
    (alone,) = plan_node(node("dual-socket-smt"), 1, cores_per_rank=24)
    assert (alone.sockets, alone.num_cores) == ((0,), 24)
    assert alone.cpus == plan_node(node("dual-socket-smt"), 2)[0].cpus


def layout(name: str, ranks: int | None = None, nodes: int = 1, cores: int | None = None) -> Layout:
    return Layout(nodes, plan_node(node(name), ranks, num_nodes=nodes, cores_per_rank=cores), node(name))


def test_one_rank_per_socket_is_bound_to_it() -> None:
    two = layout("dual-socket", nodes=32)
    assert " ".join(mpirun_command(two, "openmpi5")) == "mpirun -np 64 --map-by ppr:1:package --bind-to package"
    assert " ".join(mpirun_command(two, "openmpi4")) == "mpirun -np 64 --map-by ppr:1:socket --bind-to socket"
    line = srun_command(two, "pmix", cpus_per_node=48)
    assert {"--nodes=32", "--ntasks=64", "--ntasks-per-node=2", "--cpus-per-task=24", "--cpu-bind=sockets"} <= set(line)


def test_several_ranks_of_a_socket_are_bound_to_their_cores() -> None:
    four = layout("four-numa", 4)
    assert " ".join(mpirun_command(four, "openmpi5")) == "mpirun -np 4 --map-by ppr:2:package:PE=8 --bind-to core"
    assert {"--cpus-per-task=8", "--cpu-bind=cores"} <= set(srun_command(four, "pmix", cpus_per_node=32))
    gpus = srun_command(layout("eight-gpus", nodes=2), "pmix", cpus_per_node=256)
    assert {"--ntasks=16", "--ntasks-per-node=8", "--cpus-per-task=32"} <= set(gpus)


def test_one_rank_has_the_node_or_the_cores_it_was_given() -> None:
    assert mpirun_command(layout("laptop"), "openmpi5")[-2:] == ["--bind-to", "none"]
    part = mpirun_command(layout("dual-socket", 1, cores=24), "openmpi5")
    assert part == ["mpirun", "-np", "1", "--map-by", "ppr:1:package:PE=24", "--bind-to", "core"]
    assert "--cpus-per-task=24" in srun_command(layout("dual-socket", 1, cores=24), "pmix", cpus_per_node=48)


@pytest.mark.parametrize(
    ("text", "mpi", "pmi"),
    [
        ("mpirun (Open MPI) 5.0.11\n", "openmpi5", "pmix"),
        ("mpirun (Open MPI) 4.1.4\n", "openmpi4", "pmix"),
        ("HYDRA build details:\n    Version: 4.1.2", "mpich", "pmi2"),
        ("Intel(R) MPI Library for Linux* OS, Version 2021.9", "mpich", "pmi2"),
        ("", "unknown", "pmix"),
    ],
)
def test_mpirun_says_which_mpi_it_is(text: str, mpi: str, pmi: str) -> None:
    assert mpi_of(text) == mpi
    assert pmi_of(mpi_of(text)) == pmi


def test_srun_is_chosen_where_it_works_and_mpirun_else() -> None:
    assert choose_launcher("openmpi5", ["pmix", "none", "pmix_v4"], step_works=True) == "srun"
    assert choose_launcher("openmpi5", ["pmix", "pmix_v4"], step_works=False) == "mpirun", "listed, and does not load"
    assert choose_launcher("openmpi4", ["none", "pmi2"], step_works=True) == "mpirun"
    assert choose_launcher("mpich", ["none", "pmi2"], step_works=True) == "srun"
    with pytest.raises(LaunchError, match=r"needs --mpi=pmi2, and `srun --mpi=list` gives none, pmix"):
        choose_launcher("mpich", ["none", "pmix"], step_works=True)
    with pytest.raises(LaunchError, match="with which no step starts"):
        choose_launcher("mpich", ["pmi2"], step_works=False)
    with pytest.raises(LaunchError, match="not Open MPI's"):
        mpirun_command(layout("laptop"), "mpich")


def test_slurm_says_what_the_job_has() -> None:
    assert current_job({}) is None
    assert current_job({"SLURM_JOB_ID": "7"}) is None
    job = current_job({"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "3", "SLURM_JOB_CPUS_PER_NODE": "48(x3)"})
    assert job is not None
    assert (job.num_nodes, job.cpus_per_node) == (3, 48)
    assert cpus_of_nodes("2(x2),1") == [2, 2, 1]
    unequal = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "3", "SLURM_JOB_CPUS_PER_NODE": "48(x2),96"}
    with pytest.raises(LaunchError, match=r"unequal shape \(48, 96 CPUs\)"):
        current_job(unequal)


SITE = {**dict.fromkeys(REQUIRED, "x"), "WIDEFIELD_LAUNCHER": "auto", "WIDEFIELD_SOCKETS_PER_NODE": "2"}
SITE |= {"WIDEFIELD_CORES_PER_SOCKET": "24", "WIDEFIELD_GPUS_PER_NODE": "0"}


def site_file(folder: Path, **changes: str | None) -> None:
    lines = [f"{k}='{v}'" for k, v in {**SITE, **changes}.items() if v is not None]
    (folder / "here.env").write_text("# a site\n\n" + "\n".join(lines) + "\n")


def test_a_site_is_read(tmp_path: Path) -> None:
    site_file(tmp_path, WIDEFIELD_SETUP="module load a && source b", SBATCH_ACCOUNT="me")
    site = read_site("here", tmp_path)
    assert site.variables["WIDEFIELD_SETUP"] == "module load a && source b"
    assert site.topology == Topology(tuple(Cpu(s, s, s * 24 + c, s * 24 + c) for s in range(2) for c in range(24)))


@pytest.mark.parametrize("key", REQUIRED)
def test_a_site_without_a_value_says_which(tmp_path: Path, key: str) -> None:
    site_file(tmp_path, **{key: None})
    with pytest.raises(LaunchError, match=rf"here\.env: {key} is missing"):
        read_site("here", tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"WIDEFIELD_CORES_PER_SOCKET": "many"}, "is not a number, 1 or more"),
        ({"WIDEFIELD_SOCKETS_PER_NODE": "0"}, "is not a number, 1 or more"),
        ({"WIDEFIELD_LAUNCHER": "ssh"}, "one of auto, srun, mpirun"),
    ],
)
def test_a_site_with_a_wrong_value_says_so(tmp_path: Path, changes: dict[str, str], said: str) -> None:
    site_file(tmp_path, **changes)
    with pytest.raises(LaunchError, match=said):
        read_site("here", tmp_path)


@pytest.mark.parametrize("line", ["export A=b", "A = b", "A='b"])
def test_a_line_that_is_no_variable_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "here.env").write_text(f"# one\n{line}\n")
    with pytest.raises(LaunchError, match=r"here\.env, line 2"):
        read_site("here", tmp_path)


def test_an_unknown_site_suggests_one() -> None:
    with pytest.raises(LaunchError, match="did you mean 'dual-socket'"):
        read_site("dual-sockets", ROOT / "slurm" / "sites")


@pytest.mark.parametrize("path", sorted((ROOT / "slurm" / "sites").glob("*.env")), ids=lambda p: p.stem)
def test_the_sites_that_come_with_it_are_whole(path: Path) -> None:
    site = read_site(path.stem, path.parent)
    assert plan_node(site.topology)
