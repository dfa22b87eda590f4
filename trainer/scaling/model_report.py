"""model/ of a study: predictions beside what was measured, and what they are on a machine that nobody measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trainer.errors import StudyError
from trainer.files import replace_content
from trainer.scaling.inputs import MODEL, read_inputs
from trainer.scaling.model_plots import draw_checked, draw_series
from trainer.scaling.network import NetworkFile, read_network
from trainer.scaling.predictions import Checked, Series, check, extrapolated
from trainer.scaling.study import read_study

BELIEVED = 0.15
"""Largest error against measured points up to which the model is believed."""


def write_model(study_dir: Path, host_dir: Path, network_file: Path | None, command: str) -> Path:
    """Write model/README.md and its figures; returns the README.

    Args:
      host_dir: study over memory, whose curves are casting, copying and adding alone.
    Raises:
      StudyError: a study or file cannot be read, or nothing was measured that the model could be checked with.
    """
    study, inputs, host = read_study(study_dir), read_inputs(study_dir), read_inputs(host_dir)
    checked = check(study, inputs, host)
    if not checked:
        raise StudyError(
            "no point of two ranks or more was measured with batches out of memory, to check the model with",
            where=str(study_dir),
            fix="widefield scaling run ... --ranks 2 --data memory --model-inputs",
        )
    network = read_network(network_file) if network_file else None
    series = extrapolated(inputs, host, network) if network else []
    figures = draw_checked(checked) | (draw_series(series, network.name) if network else {})
    for name, content in figures.items():
        replace_content(study_dir / MODEL / name, content)
    text = readme(f"{study.system}/{study.name}", checked, series, network, command)
    replace_content(study_dir / MODEL / "README.md", text)
    return study_dir / MODEL / "README.md"


def readme(
    name: str, checked: Sequence[Checked], series: Sequence[Series], network: NetworkFile | None, command: str
) -> str:
    """The Markdown of model/README.md."""
    worst = max(abs(c.error) for c in checked)
    verdict = "is believed" if worst <= BELIEVED else "is NOT believed"
    lines = [
        f"# Performance model, {name}: modelled",
        "",
        f"`{command}`",
        "",
        "What one rank and one network were measured to do (inputs.json), put together by `trainer/scaling/model.py`:",
        "when each bucket of gradients is ready in the backward pass, and what an all-reduce of its size takes alone;",
        "over memory (`--host`) that is casting, copying and adding, which stops computing where no core is spare.",
        "Measured steps are in the column *measured* only.",
        "",
        "## Checked against measured steps",
        "",
        f"Largest error {worst:.1%}: the model {verdict} (limit {BELIEVED:.0%}).",
        "",
        "![measured and modelled steps](checked.png)",
        "",
        "| ranks | patch px | batch per rank | compression | measured step s | modelled step s | error | "
        "modelled: computing | all-reduce not hidden |",
        "|" + " ---: |" * 9,
        *(_checked_row(c) for c in checked),
    ]
    if network:
        lines += ["", *_extrapolation(series, network)]
    return "\n".join(lines) + "\n"


def _checked_row(c: Checked) -> str:
    p, m = c.point, c.prediction
    cells = [p.world_size, p.patch_size, p.local_batch_size, p.compression, f"{c.measured_s:.3f}", f"{m.step_s:.3f}"]
    return "| " + " | ".join(map(str, [*cells, f"{c.error:+.1%}", f"{m.compute_s:.3f}", f"{m.exposed_s:.3f}"])) + " |"


def _extrapolation(series: Sequence[Series], network: NetworkFile) -> list[str]:
    figures = network.model_dump(exclude={"name", "nodes"})
    return [
        f"## Extrapolated to {network.name}: modelled, nothing measured",
        "",
        "Its figures are from a file; several are assumptions, and say so there: "
        + ", ".join(f"{key} {value}" for key, value in figures.items())
        + ". Stragglers are as on the machine that was measured: logarithms of step times taken as normal, with the "
        "spread of inputs.json; a quiet supercomputer has less.",
        "",
        "![modelled weak-scaling efficiency](extrapolated.png)",
        "",
        "Efficiency is against one rank that exchanges nothing.",
        "",
        "| patch px | compression | all-reduce | " + " | ".join(f"{n} nodes" for n in network.nodes) + " |",
        "|" + " ---: |" * (3 + len(network.nodes)),
        *(
            f"| {s.profile.patch_size} | {s.compression} | {s.algorithm} | "
            + " | ".join(f"{e:.3f}" for e in s.efficiency)
            + " |"
            for s in series
        ),
    ]
