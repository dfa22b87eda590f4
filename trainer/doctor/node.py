"""Cores, GPUs and the plan that ranks would be started with."""

from __future__ import annotations

from trainer.doctor.finding import Finding
from trainer.errors import LaunchError
from trainer.launch.commands import Layout
from trainer.launch.plan import plan_node
from trainer.launch.topology import Topology
from trainer.runtime.versions import TensorFlowBuild


def node_findings(node: Topology, mine: Topology, *, is_rank: bool) -> list[Finding]:
    """The node's shape and, before ranks are started, what `widefield launch` would make of it.

    Args:
      mine: what this process may use of it.
      is_rank: a launcher has placed this process; where its fellows are is `ranks.py`'s.
    """
    findings = [Finding("node", "ok", node.describe())]
    if is_rank:
        return findings
    if mine != node:
        findings.append(Finding("binding", "ok", f"this process may use a part: {mine.describe()}"))
    try:
        ranks = plan_node(mine)
    except LaunchError as error:
        return [*findings, Finding("plan", "warning", error.what, f"widefield launch CONFIG --ranks N: {error.fix}")]
    return [*findings, Finding("plan", "ok", Layout(1, ranks, mine).describe())]


def gpu_findings(num_gpus: int, build: TensorFlowBuild) -> list[Finding]:
    """Whether TensorFlow uses the GPUs that the driver has given to this process.

    Args:
      num_gpus: those of the node's topology.
    """
    if not num_gpus and not build.num_gpus:
        return [Finding("GPUs", "ok", "none here")]
    text = f"{num_gpus} here, of which TensorFlow uses {build.num_gpus}"
    if build.num_gpus >= num_gpus:
        return [Finding("GPUs", "ok", text)]
    if not build.has_cuda:
        return [Finding("GPUs", "warning", f"{text}: it was built without CUDA", "pip install 'tensorflow[and-cuda]'")]
    fix = "pip install 'tensorflow[and-cuda]', and a driver that is new enough (nvidia-smi)"
    return [Finding("GPUs", "warning", f"{text}: CUDA's libraries do not load", fix)]
