"""What is installed only when it is asked for, and how to ask for it."""

from __future__ import annotations

_EXTRAS = {
    "tensorflow": "train",
    "tf_keras": "train",
    "segmentation_models": "train",
    "mpi4py": "train",
    "openvino": "predict",
    "nncf": "export",
    "tf2onnx": "export",
}
"""Module -> the extra of setup.cfg that brings it."""


def how_to_install(missing: ModuleNotFoundError) -> str | None:
    """The error of a missing module in words for people; None where no extra brings it."""
    module = (missing.name or "").split(".")[0]
    extra = _EXTRAS.get(module)
    if extra is None:
        return None
    return f"Error: this needs {module}, which is not installed\n  fix: pip install 'widefield[{extra}]'"
