"""The one place where OpenVINO is imported; NNCF is imported after it.

Both send usage data to their makers as soon as they are imported, unless somebody has opted out for this account. They
do without where the package that sends it is missing, and that is what they are told here: nothing leaves a hospital
because a slide was predicted in it.
"""

from __future__ import annotations

import sys

sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # an import of it now fails

import openvino  # noqa: E402

__all__ = ["openvino"]
