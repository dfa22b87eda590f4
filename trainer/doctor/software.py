"""Do TensorFlow, Keras, MPI and Horovod fit together? Decisions on what they say of themselves."""

from __future__ import annotations

import re
from dataclasses import dataclass

from trainer.config.schema import RuntimeConfig
from trainer.doctor.finding import Finding
from trainer.errors import CommError
from trainer.runtime.libraries import require_one_mpi
from trainer.runtime.versions import HorovodBuild, TensorFlowBuild


@dataclass(frozen=True)
class MpiVersion:
    family: str
    number: str

    def __str__(self) -> str:
        return f"{self.family} {self.number}".strip()


def mpi_version(text: str) -> MpiVersion | None:
    """MPI and version that `mpirun --version` or a library's own text names; None where it is none we know."""
    if found := re.search(r"Open ?(?:MPI|RTE)\)? v?(\d[\w.]*)", text):
        return MpiVersion("Open MPI", found[1])
    if found := re.search(r"Intel\(R\) MPI.*?(20\d\d[\d.]*)", text, re.DOTALL):
        return MpiVersion("Intel MPI", found[1])
    if found := re.search(r"(?:MPICH|HYDRA).*?(\d+\.\d+[\w.]*)", text, re.DOTALL):
        return MpiVersion("MPICH", found[1])
    return None


def versions_findings(widefield: str, python: str, build: TensorFlowBuild) -> list[Finding]:
    """The versions, and whether TensorFlow was installed as one whole."""
    text = f"Widefield {widefield}, Python {python}, TensorFlow {build.version}"
    if build.keras_version is None:
        fix = f"pip install 'tf-keras~={_minor(build.version)}.0'"
        return [Finding("versions", "error", f"{text} without tf-keras, which Widefield needs", fix)]
    findings = [Finding("versions", "ok", f"{text} with tf-keras {build.keras_version}")]
    if not build.is_keras_2:
        text = "TF_USE_LEGACY_KERAS turns tf.keras into Keras 3, and Widefield needs Keras 2"
        findings.append(Finding("versions", "error", text, "unset TF_USE_LEGACY_KERAS"))
    if _minor(build.version) != _minor(build.keras_version):
        findings.append(
            Finding(
                "versions",
                "warning",
                f"tf-keras {build.keras_version} was made for another TensorFlow than {build.version}",
                f"pip install 'tf-keras~={_minor(build.version)}.0'",
            )
        )
    if len(build.distributions) > 1:
        findings.append(
            Finding(
                "versions",
                "warning",
                f"{' and '.join(build.distributions)} are installed over each other",
                f"pip uninstall {' '.join(build.distributions)}; pip install tensorflow=={build.version}",
            )
        )
    return findings


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


def mpi_findings(
    mpirun: str | None,
    mpirun_text: str,
    library_text: str | None,
    loaded: list[str],
    beside_python: bool,
    is_rank: bool,
) -> list[Finding]:
    """Which mpirun and which library, and whether they are the same MPI.

    Args:
      mpirun: path of the mpirun that a shell would start; None: there is none.
      mpirun_text: what `mpirun --version` says.
      library_text: what the library under mpi4py says; None where mpi4py cannot be loaded.
      loaded: MPI libraries in this process, after Horovod and mpi4py were loaded.
      beside_python: whether an mpirun lies in the folder of this Python.
      is_rank: whether a launcher has started this process, which then needs no mpirun (srun).
    """
    findings = [_mpirun_finding(mpirun, mpirun_text, beside_python, is_rank)]
    if library_text is None:
        findings.append(Finding("MPI", "error", "mpi4py does not load an MPI library", "make setup"))
    else:
        ours = mpi_version(library_text)
        findings.append(Finding("MPI", "ok", f"mpi4py uses {ours or library_text} ({', '.join(loaded) or '?'})"))
        findings += _mixture(mpirun_text, library_text)
    try:
        require_one_mpi(loaded)
    except CommError as error:
        findings.append(Finding("MPI", "error", error.what, error.fix))
    return findings


def _mpirun_finding(mpirun: str | None, text: str, beside_python: bool, is_rank: bool) -> Finding:
    if mpirun:
        return Finding("MPI", "ok", f"{mpirun} is {mpi_version(text) or 'of an unknown MPI'}")
    if is_rank:
        return Finding("MPI", "ok", "no mpirun on the PATH; srun has started these ranks")
    fix = "source .venv/bin/activate" if beside_python else "module load your site's MPI, or make setup"
    return Finding("MPI", "warning", "no mpirun on the PATH, so only single processes start here", fix)


def _mixture(mpirun_text: str, library_text: str) -> list[Finding]:
    starter, library = mpi_version(mpirun_text), mpi_version(library_text)
    if starter is None or library is None or starter == library:
        return []
    what = f"mpirun is {starter} and the library in Python {library}"
    fix = "put the mpirun of the MPI that Python was built with first on the PATH: source .venv/bin/activate"
    if (starter.family == "Open MPI") != (library.family == "Open MPI"):
        return [Finding("MPI", "error", f"{what}: each rank would think that it is alone", fix)]
    return [Finding("MPI", "warning", f"{what}: ranks may not find each other", fix)]


def horovod_findings(build: HorovodBuild | CommError, runtime: RuntimeConfig, num_gpus: int) -> list[Finding]:
    """How Horovod was built, and whether that is enough for the GPUs of this node."""
    if isinstance(build, CommError):
        if runtime.backend == "mpi":
            return [Finding("Horovod", "ok", "cannot be loaded; runtime.backend=mpi does not need it")]
        return [Finding("Horovod", "error", build.what, build.fix)]
    parts = {"MPI": build.has_mpi, "Gloo": build.has_gloo, "NCCL": build.has_nccl}
    text = f"{build.version}, built with {', '.join(n for n, has in parts.items() if has) or 'nothing'}"
    if not build.has_mpi:
        fix = "with mpicc on the PATH: tools/build_horovod.sh (or use runtime.backend=mpi)"
        return [Finding("Horovod", "error", f"{text}: ranks of mpirun or srun would not find each other", fix)]
    if num_gpus and not build.has_nccl:
        fix = "make setup GPU=nccl on a node with CUDA and NCCL"
        return [Finding("Horovod", "warning", f"{text}, without NCCL: GPUs exchange gradients through the host", fix)]
    return [Finding("Horovod", "ok", text)]
