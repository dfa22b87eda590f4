from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from launch import ROOT, widefield
from small_slides import data_config, manifest, run_config, tissue_slide

from trainer.config import dump_config
from trainer.config.schema import RuntimeConfig
from trainer.doctor.data import first_middle_last, read_config, slide_findings
from trainer.doctor.finding import Finding, is_ok, join_nodes
from trainer.doctor.node import gpu_findings, node_findings
from trainer.doctor.processor import Processor, parse_processor, processor_findings
from trainer.doctor.ranks import bandwidth_finding, placement_findings
from trainer.doctor.slurm import slurm_findings
from trainer.doctor.software import horovod_findings, mpi_findings, mpi_version, versions_findings
from trainer.doctor.storage import has_locks, lock_finding, memory_finding, space_finding, storage_findings
from trainer.errors import CommError
from trainer.launch.topology import Topology, parse_topology, read_topology
from trainer.runtime.affinity import Placement
from trainer.runtime.versions import HorovodBuild, TensorFlowBuild

TENSORFLOW = TensorFlowBuild("2.21.0", "2.21.0", True, ("tensorflow",), has_cuda=True, num_gpus=0, has_onednn=True)
HOROVOD = HorovodBuild("0.28.1", has_mpi=True, has_gloo=True, has_nccl=False)
LIBRARY = "Open MPI v5.0.11, package: Open MPI user@localhost Distribution, ident: 5.0.11, repo rev: v5.0.11rc1"
MPIRUN = "mpirun (Open MPI) 5.0.11\n\nReport bugs to https://www.open-mpi.org/community/help/\n"
HYDRA = "HYDRA build details:\n    Version:                                 4.0.2\n"
CPUINFO = "processor\t: 0\nvendor_id\t: {}\nmodel name\t: {}\nflags\t\t: fpu avx2 avx512f {}\n\nprocessor\t: 1\n"
XEON = parse_processor(CPUINFO.format("GenuineIntel", "Xeon", "avx512_bf16"))
XEON_AMX = parse_processor(CPUINFO.format("GenuineIntel", "Xeon", "avx512_bf16 amx_bf16"))
EPYC = parse_processor(CPUINFO.format("AuthenticAMD", "EPYC", "avx512_bf16"))
OLD_XEON = parse_processor(CPUINFO.format("GenuineIntel", "Xeon", ""))


def changed(record, **changes):
    return dataclasses.replace(record, **changes)


def statuses(findings: list[Finding]) -> list[str]:
    return [f.status for f in findings]


def topology(name: str) -> Topology:
    return parse_topology((ROOT / "tests" / "topologies" / f"{name}.txt").read_text())


def test_versions_that_fit_are_one_line() -> None:
    findings = versions_findings("0.1.0", "3.11.2", TENSORFLOW)
    assert statuses(findings) == ["ok"]
    assert "TensorFlow 2.21.0 with tf-keras 2.21.0" in findings[0].text


@pytest.mark.parametrize(
    ("changes", "status", "text", "fix"),
    [
        ({"keras_version": "2.19.0"}, "warning", "tf-keras 2.19.0 was made for another", "tf-keras~=2.21.0"),
        ({"keras_version": None}, "error", "without tf-keras", "tf-keras~=2.21.0"),
        ({"is_keras_2": False}, "error", "Widefield needs Keras 2", "unset TF_USE_LEGACY_KERAS"),
        (
            {"distributions": ("tensorflow", "tensorflow-cpu")},
            "warning",
            "tensorflow and tensorflow-cpu are installed over each other",
            "pip install tensorflow==2.21.0",
        ),
    ],
)
def test_a_tensorflow_that_is_not_whole_is_told(changes: dict, status: str, text: str, fix: str) -> None:
    finding = versions_findings("0.1.0", "3.11.2", changed(TENSORFLOW, **changes))[-1]
    assert (finding.status, text in finding.text, fix in finding.fix) == (status, True, True), finding


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (MPIRUN, "Open MPI 5.0.11"),
        (LIBRARY, "Open MPI 5.0.11"),
        ("mpirun (Open MPI) 4.1.4", "Open MPI 4.1.4"),
        ("mpiexec (OpenRTE) 4.1.4", "Open MPI 4.1.4"),
        (HYDRA, "MPICH 4.0.2"),
        ("MPICH Version:      4.2.0\nMPICH Release date: ...", "MPICH 4.2.0"),
        ("MPI VERSION    : CRAY MPICH version 8.1.25.17 (ANL base 3.4a2)", "MPICH 8.1.25.17"),
        ("Intel(R) MPI Library for Linux* OS, Version 2021.10 Build 20230619", "Intel MPI 2021.10"),
        ("something else", "None"),
    ],
)
def test_mpi_is_read_from_launchers_and_from_libraries(text: str, said: str) -> None:
    assert str(mpi_version(text)) == said


def mpi(
    mpirun: str | None = "/v/bin/mpirun", text: str = MPIRUN, library: str | None = LIBRARY, **more
) -> list[Finding]:
    situation = {"loaded": ["/v/lib/libmpi.so.40"], "beside_python": False, "is_rank": False, **more}
    return mpi_findings(mpirun, text if mpirun else "", library, **situation)


def test_one_mpi_everywhere_is_ok() -> None:
    first, second = mpi()
    assert (first.status, first.text) == ("ok", "/v/bin/mpirun is Open MPI 5.0.11")
    assert (second.status, second.text) == ("ok", "mpi4py uses Open MPI 5.0.11 (/v/lib/libmpi.so.40)")


def test_mpis_that_do_not_fit_together_are_told() -> None:
    other = mpi(text=HYDRA)[-1]
    assert other.status == "error"
    assert other.text.startswith("mpirun is MPICH 4.0.2 and the library in Python Open MPI 5.0.11: each rank would")
    older = mpi(text="mpirun (Open MPI) 4.1.4")[-1]
    assert older.status == "warning" and older.text.endswith("ranks may not find each other")
    two = mpi(loaded=["/usr/lib/libmpi.so.40", "/v/lib/libmpi.so.40"])[-1]
    assert two.status == "error" and "two MPI libraries" in two.text
    assert mpi(library=None)[1].text == "mpi4py does not load an MPI library"


def test_a_missing_mpirun_is_a_warning_unless_ranks_run_already() -> None:
    assert "module load" in mpi(None)[0].fix
    assert mpi(None, beside_python=True)[0].fix == "source .venv/bin/activate"
    assert statuses(mpi(None, is_rank=True)) == ["ok", "ok"]


def test_horovod_is_told_as_it_was_built() -> None:
    config, missing = RuntimeConfig(), CommError("Horovod cannot be loaded: no", fix="make setup")
    assert horovod_findings(HOROVOD, config, 0) == [Finding("Horovod", "ok", "0.28.1, built with MPI, Gloo")]
    (without_mpi,) = horovod_findings(changed(HOROVOD, has_mpi=False), config, 0)
    assert without_mpi.status == "error" and "built with Gloo: ranks of mpirun" in without_mpi.text
    (without_nccl,) = horovod_findings(HOROVOD, config, 4)
    assert without_nccl.status == "warning" and "without NCCL" in without_nccl.text
    assert statuses(horovod_findings(changed(HOROVOD, has_nccl=True), config, 4)) == ["ok"]
    assert horovod_findings(missing, config, 0) == [Finding("Horovod", "error", missing.what, "make setup")]
    assert statuses(horovod_findings(missing, RuntimeConfig(backend="mpi"), 0)) == ["ok"]


def processor(cpu: Processor, precision: str | None = None, **more) -> dict[str, Finding]:
    situation = {"has_onednn": True, "onednn_setting": None, "uses_gpu": False, **more}
    return {f.topic: f for f in processor_findings(cpu, precision=precision, **situation)}


def test_processor_is_told_with_its_features() -> None:
    assert processor(XEON)["processor"].text == "Xeon: avx2, avx512f, avx512_bf16 (not amx_bf16)"
    assert processor(Processor("old", "GenuineIntel", frozenset({"sse4_2"})))["processor"].status == "warning"
    assert processor(parse_processor(""))["processor"].status == "ok"  # it does not say: no reason to warn


def test_onednn_is_a_warning_only_where_somebody_turned_it_off() -> None:
    assert processor(XEON)["oneDNN"].text == "on"
    off = processor(XEON, has_onednn=False, onednn_setting="0")["oneDNN"]
    assert (off.status, off.fix) == ("warning", "unset TF_ENABLE_ONEDNN_OPTS")
    chosen = processor(OLD_XEON, has_onednn=False)["oneDNN"]
    assert chosen.status == "ok" and "TF_ENABLE_ONEDNN_OPTS=1" in chosen.text


@pytest.mark.parametrize(
    ("cpu", "says", "status"),
    [
        (XEON, "0.65 times", "warning"),
        (OLD_XEON, "emulated", "warning"),
        (EPYC, "1.55 times", "ok"),
        (XEON_AMX, "has AMX", "ok"),
    ],
)
def test_slow_bfloat16_is_a_warning_only_where_the_run_asks_for_it(cpu: Processor, says: str, status: str) -> None:
    asked, not_asked = processor(cpu, "mixed_bfloat16")["bfloat16"], processor(cpu, "float32")["bfloat16"]
    assert says in asked.text and asked.text == not_asked.text
    assert (asked.status, not_asked.status) == (status, "ok")
    assert "bfloat16" not in processor(cpu, "mixed_bfloat16", uses_gpu=True)


def test_float16_needs_a_gpu() -> None:
    assert processor(XEON, "mixed_float16")["float16"].status == "warning"
    assert "float16" not in processor(XEON, "mixed_float16", uses_gpu=True)


def test_gpus_that_tensorflow_does_not_use_are_a_warning() -> None:
    assert gpu_findings(0, TENSORFLOW)[0].text == "none here"
    assert statuses(gpu_findings(4, changed(TENSORFLOW, num_gpus=4))) == ["ok"]
    (no_libraries,) = gpu_findings(4, TENSORFLOW)
    assert no_libraries.status == "warning" and "CUDA's libraries do not load" in no_libraries.text
    (no_cuda,) = gpu_findings(4, changed(TENSORFLOW, has_cuda=False))
    assert no_cuda.status == "warning" and "built without CUDA" in no_cuda.text


def test_the_plan_is_told_before_ranks_are_started_and_not_after() -> None:
    node = topology("dual-socket")
    whole = node_findings(node, node, is_rank=False)
    assert [f.topic for f in whole] == ["node", "plan"]
    assert "2 rank(s)" in whole[1].text
    part = node_findings(node, node.restricted(range(4)), is_rank=False)
    assert [f.topic for f in part] == ["node", "binding", "plan"]
    assert [f.topic for f in node_findings(node, node, is_rank=True)] == ["node"]
    three_gpus = Topology(node.cpus, (0, 0, 1))
    plan = node_findings(three_gpus, three_gpus, is_rank=False)[-1]
    assert plan.status == "warning" and "3 ranks do not divide among 2 sockets" in plan.text and "ranks" in plan.fix


def test_what_slurm_can_start_is_told() -> None:
    assert slurm_findings(None, [], MPIRUN) == [Finding("Slurm", "ok", "no Slurm here")]
    assert "does not find its cluster" in slurm_findings("", [], MPIRUN)[0].text
    both = slurm_findings("slurm 23.11", ["none", "pmi2", "pmix", "pmix_v4"], MPIRUN)[0]
    assert both.status == "ok" and "srun --mpi=pmix, or mpirun" in both.text
    assert "start with mpirun" in slurm_findings("slurm 23.11", ["none", "pmi2"], MPIRUN)[0].text
    neither = slurm_findings("slurm 23.11", ["none", "pmix"], HYDRA)[0]
    assert neither.status == "warning" and "needs --mpi=pmi2" in neither.text and neither.fix


def test_little_room_is_a_warning() -> None:
    little = space_finding("shared memory", "/dev/shm", 64 << 20, 256 << 20, "make room")
    assert (little.status, little.text, little.fix) == (
        "warning", "/dev/shm: 64 MiB free, less than 256 MiB", "make room",
    )  # fmt: skip
    assert space_finding("disk", "TMPDIR /tmp", 6 << 30, 5 << 30, "").text == "TMPDIR /tmp: 6.0 GiB free"
    assert memory_finding(3 << 30, 4 << 30, 1).status == "ok"
    assert memory_finding(3 << 30, 4 << 30, 2).status == "warning"


def test_a_file_system_without_locks_is_a_warning(tmp_path: Path) -> None:
    assert has_locks(tmp_path) and lock_finding(tmp_path, True).status == "ok"
    assert "flock" in lock_finding(tmp_path, False).fix


def test_an_output_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    findings = storage_findings(tmp_path / "file" / "run", 1)
    assert findings[-1].status == "error" and "cannot be written" in findings[-1].text
    assert [f.topic for f in storage_findings(tmp_path / "not" / "yet", 1)][-2:] == ["disk", "locks"]


def test_slides_are_tried_at_both_ends_and_in_the_middle(tmp_path: Path) -> None:
    assert first_middle_last(range(10)) == [0, 5, 9] and first_middle_last(range(2)) == [0, 1]
    names = [tissue_slide(tmp_path / f"{i}.png").name for i in range(4)]
    data = data_config(manifest(tmp_path, *(f"{n},,,," for n in names)))
    assert slide_findings(data, 0.0) == [
        Finding("slides", "ok", f"4 in {tmp_path / 'slides.csv'}; 3 of them opened and read")
    ]
    (tmp_path / "3.png").write_text("not a slide")
    (damaged,) = slide_findings(data, 0.0)
    assert damaged.status == "error" and "1 of 3 slides tried cannot be read: 3.png" in damaged.text
    assert slide_findings(data, 0.1)[0].status == "warning"


def test_remarks_on_a_configuration_are_warnings_and_mistakes_errors(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(dump_config(run_config(tmp_path)))
    config, findings = read_config(str(path), ["model.norm=frozen"], 2)
    assert config is not None and statuses(findings) == ["ok", "warning"]
    config, findings = read_config(str(path), ["model.nrom=group"], 2)
    assert config is None and statuses(findings) == ["error"] and "norm" in findings[0].fix


def placement(rank: int, cpu: int) -> Placement:
    return Placement(
        rank=rank, host="n1", local_rank=rank, cpus=(cpu,), cpus_at_start=(cpu,), thread_cpus=(cpu,), cores=(cpu,),
        sockets=(0,), numa=(0,), node_cores=8, node_sockets=1, intra_op_threads=1, inter_op_threads=1, comm_cpu=None,
        mpi_yields=True, gpu=None,
    )  # fmt: skip


def test_placements_are_judged_as_training_judges_them() -> None:
    shared = [placement(0, 3), placement(1, 3)]
    assert "share cores" in placement_findings(shared, stops=True)[0].text
    assert placement_findings(shared, stops=True)[0].status == "error"
    assert placement_findings(shared, stops=False)[0].status == "warning"
    idle = placement_findings([placement(0, 0), placement(1, 1)], stops=True)
    assert statuses(idle) == ["warning"] and "2 ranks use 2 of 8 cores" in idle[0].text
    (busy,) = placement_findings([placement(i, i) for i in range(8)], stops=True)
    assert busy.text == "8 rank(s) on 1 node(s), 1 core(s) and 1 thread(s) each, none shared; MPI waits by yielding"


def test_bandwidth_is_told_and_too_little_of_it_is_a_warning() -> None:
    fast = bandwidth_finding({4096: 100e-6, 1 << 20: 1e-3, 32 << 20: 33.554432e-3}, 4)
    assert fast.status == "ok"
    assert fast.text == "4 ranks: 100 us for 4 KiB; 1.05 GB/s at 1 MiB; 1.00 GB/s at 32 MiB (bus 1.50 GB/s)"
    slow = bandwidth_finding({4096: 100e-6, 1 << 20: 0.1, 32 << 20: 0.671}, 2)
    assert slow.status == "warning" and "100 MB of gradients would take 2.0 s in each step" in slow.text


def test_other_nodes_are_heard_where_they_differ() -> None:
    root = [Finding("versions", "ok", "1"), Finding("disk", "ok", "9 GiB free")]
    other = [Finding("versions", "ok", "2"), Finding("disk", "ok", "8 GiB free")]
    full = [Finding("versions", "ok", "1"), Finding("disk", "warning", "full", "make room")]
    joined = join_nodes([("a", root), ("b", other), ("c", other), ("d", full), ("e", root)])
    assert joined == [*root, Finding("versions", "ok", "b, c: 2"), Finding("disk", "warning", "d: full", "make room")]
    assert is_ok(joined) and not is_ok([Finding("x", "error", "")])


def test_topology_is_printed_so_that_it_reads_back() -> None:
    done = widefield("doctor", "--topology")
    assert parse_topology(done.stdout) == read_topology(), done.stderr


def test_doctor_prints_one_json_object() -> None:
    done = widefield("doctor", "--json")
    report = json.loads(done.stdout)
    topics = {f["topic"]: f for f in report["findings"]}
    assert done.returncode == 0 and report["ok"] is True, done.stdout + done.stderr
    assert {f["status"] for f in report["findings"]} <= {"ok", "warning"}
    assert {"versions", "MPI", "Horovod", "processor", "oneDNN", "GPUs", "node", "plan", "Slurm", "disk"} <= set(topics)
    assert "built with MPI" in topics["Horovod"]["text"]
    assert all(f["fix"] for f in report["findings"] if f["status"] != "ok")


def test_doctor_names_a_slide_folder_that_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(dump_config(run_config(tmp_path)))
    done = widefield("doctor", path, f"data.path={tmp_path / 'nowhere'}", "data.format=camelyon16")
    assert done.returncode == 2, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("error")]
    assert "slides" in line and "nowhere: there is no such file or directory" in line
    assert done.stdout.splitlines()[-1].startswith("1 error(s)")


def test_ranks_that_a_foreign_launcher_left_alone_are_an_error_among_the_rest() -> None:
    done = widefield("doctor", OMPI_COMM_WORLD_RANK="0", OMPI_COMM_WORLD_SIZE="2")
    assert done.returncode == 2, done.stderr
    assert "the launcher started 2 ranks but horovod sees 1" in done.stdout
    assert "mpi4py uses" in done.stdout
