"""What the libraries that ranks compute and talk with say of themselves. Nothing is started here."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from trainer.errors import CommError
from trainer.quiet import quiet_stderr

_TENSORFLOWS = ("tensorflow", "tensorflow-cpu", "tensorflow-rocm")
"""Packages that bring the module `tensorflow`."""


@dataclass(frozen=True)
class TensorFlowBuild:
    version: str
    keras_version: str | None
    """Of tf-keras, which is Keras 2; None where it is missing."""
    is_keras_2: bool
    """Whether `tf.keras` is that one."""
    distributions: tuple[str, ...]
    """Installed packages that bring it."""
    has_cuda: bool
    num_gpus: int
    """GPUs that it can use now."""
    has_onednn: bool
    """Whether oneDNN computes in this process."""


def tensorflow_build() -> TensorFlowBuild:
    """Load TensorFlow with Keras 2, without the models that `trainer.models.keras` comes with (0.6 s), and ask it.

    Raises:
      CommError: it cannot be loaded.
    """
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
    try:
        with quiet_stderr():  # that there is no GPU is no error
            import tensorflow as tf
            from tensorflow.python.util import _pywrap_util_port  # no public question for oneDNN

            num_gpus = len(tf.config.list_physical_devices("GPU"))
    except ImportError as error:
        raise CommError(f"TensorFlow cannot be loaded: {error}", where="python", fix="make setup") from None
    return TensorFlowBuild(
        version=tf.__version__,
        keras_version=_version("tf-keras"),
        is_keras_2=os.environ["TF_USE_LEGACY_KERAS"].lower() in ("1", "true"),
        distributions=tuple(name for name in _TENSORFLOWS if _version(name)),
        has_cuda=bool(tf.sysconfig.get_build_info()["is_cuda_build"]),
        num_gpus=num_gpus,
        has_onednn=_pywrap_util_port.IsMklEnabled(),
    )


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@dataclass(frozen=True)
class HorovodBuild:
    version: str
    has_mpi: bool
    has_gloo: bool
    has_nccl: bool


def horovod_build() -> HorovodBuild:
    """How Horovod was built.

    Raises:
      CommError: it cannot be loaded.
    """
    from trainer.runtime.comm_horovod import hvd  # first: its error says what to do

    return HorovodBuild(_version("horovod") or "?", hvd.mpi_built(), hvd.gloo_built(), bool(hvd.nccl_built()))


def mpi_library() -> str | None:
    """The first line that the MPI library under mpi4py says of itself; None where that cannot be loaded."""
    try:
        import mpi4py

        mpi4py.rc.initialize = False  # under a launcher `start_comm` has started MPI; elsewhere nobody should
        from mpi4py import MPI
    except (ImportError, RuntimeError):  # RuntimeError: mpi4py 4 finds no MPI library
        return None
    return MPI.Get_library_version().strip("\0\n ").splitlines()[0]
