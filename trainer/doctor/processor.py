"""Is this processor good at what training asks of it?"""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path

from trainer.doctor.finding import Finding

FEATURES = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
"""Flags of /proc/cpuinfo that decide how fast TensorFlow and oneDNN are."""
_CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Processor:
    model: str
    vendor: str = ""
    flags: frozenset[str] = frozenset()


def parse_processor(cpuinfo: str) -> Processor:
    """The first processor of a /proc/cpuinfo."""
    fields: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    model = fields.get("model name") or platform.processor() or platform.machine()
    return Processor(model, fields.get("vendor_id", ""), frozenset(fields.get("flags", "").split()))


def read_processor() -> Processor:
    return parse_processor(_CPUINFO.read_text() if _CPUINFO.exists() else "")


def processor_findings(
    processor: Processor, *, has_onednn: bool, onednn_setting: str | None, precision: str | None, uses_gpu: bool
) -> list[Finding]:
    """Features, oneDNN and, where no GPU computes, what 16-bit precision costs.

    Args:
      onednn_setting: TF_ENABLE_ONEDNN_OPTS.
      precision: what the configuration asks for; None where there is none.
    """
    findings = [_features(processor), _onednn(has_onednn, onednn_setting)]
    return findings if uses_gpu else [*findings, _bfloat16(processor, precision), *_float16(precision)]


def _features(processor: Processor) -> Finding:
    has = [f for f in FEATURES if f in processor.flags]
    lacks = [f for f in FEATURES if f not in processor.flags]
    text = f"{processor.model}: {', '.join(has) or 'none'}" + (f" (not {', '.join(lacks)})" if lacks else "")
    if processor.flags and "avx2" not in processor.flags:
        return Finding("processor", "warning", text, "without AVX2 training is slow: use a newer node, or ask for AVX2 "
                       "in the virtual machine's settings")  # fmt: skip
    return Finding("processor", "ok", text)


def _onednn(has_onednn: bool, setting: str | None) -> Finding:
    if has_onednn:
        return Finding("oneDNN", "ok", "on")
    if setting == "0":
        return Finding("oneDNN", "warning", "off: TF_ENABLE_ONEDNN_OPTS=0", "unset TF_ENABLE_ONEDNN_OPTS")
    # TensorFlow turns it on by itself where the processor has instructions for networks (VNNI, BF16, AMX)
    return Finding("oneDNN", "ok", "off, TensorFlow's choice for this processor; TF_ENABLE_ONEDNN_OPTS=1 turns it on")


def _bfloat16(processor: Processor, precision: str | None) -> Finding:
    """Measured (README, 'bfloat16 is not faster everywhere'): ResNet-50, 1024 px, 2 threads, bfloat16 / float32."""
    if "amx_bf16" in processor.flags:
        return Finding("bfloat16", "ok", "mixed_bfloat16 can be fast: the processor has AMX (not measured by us)")
    if "avx512_bf16" not in processor.flags:
        slow = "mixed_bfloat16 is emulated here: steps are slower than in float32"
    elif processor.vendor == "AuthenticAMD":
        return Finding("bfloat16", "ok", "mixed_bfloat16 is fast: 1.55 times float32 was measured on an AMD EPYC")
    else:
        slow = "mixed_bfloat16 is slow without AMX: 0.65 times the speed of float32 was measured on an Intel Xeon"
    if precision == "mixed_bfloat16":
        return Finding("bfloat16", "warning", slow, "training.precision=float32, unless memory is what is short")
    return Finding("bfloat16", "ok", slow)


def _float16(precision: str | None) -> list[Finding]:
    if precision != "mixed_float16":
        return []
    return [Finding("float16", "warning", "mixed_float16 is for GPUs, and none is used", "training.precision=float32")]
