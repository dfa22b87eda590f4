"""README.md and figures/ of a study, rebuilt from its runs at any time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from trainer.errors import StudyError
from trainer.files import replace_content
from trainer.scaling.efficiency import Result, results_of
from trainer.scaling.plots import draw_figures
from trainer.scaling.records import Run, RunRecord, Study
from trainer.scaling.study import FIGURES, read_study
from trainer.scaling.tables import ELSEWHERE, result_table, run_table

_HOW_TO_READ = f"""\
## How to read it

- **Step**: seconds of a step on the rank that took longest for it; median [quartiles] over all timed steps. Steps of
  the warm-up, in which TensorFlow traces and compiles, are not timed.
- **Mpx/s**: pixels of the patches of all ranks, over the time of the rank that took longest for a repeat; median
  [quartiles] over repeats. 1 Mpx is 10^6 pixels.
- **Efficiency** of N ranks: their speed, over N / N0 times the median speed of the base's N0 ranks; median [quartiles]
  over repeats. The base is *one rank*, or *one node* with as many ranks as each of the run's nodes: ranks of a node
  share its memory bandwidth, so one rank alone is the harder base, and one node shows what the network costs. Base and
  run have the same patch size, the same source of data, and the same batch per rank (weak) or in all (strong); with
  one node also the same compression, while one rank exchanges nothing. n/a: the base was not measured.
- **Compute, all-reduce, wait, rest**: shares of the mean step, as mean over ranks / on the slowest rank. All-reduce is
  the part that no computing hid; on fast ranks it holds their waiting for slow ones. Wait is for data.
- **Slowest rank**: the one with the largest median of a step without all-reduce and wait, and how far that is above
  the median rank's (of two ranks: the other's).
- **Bytes handed over**, **MB sent**: what a rank gives to the all-reduce per step, and what it sends of that in a
  ring. Both are counted from the shapes of the gradients, not read off the network.
- **{ELSEWHERE}**: the base was measured on another machine or commit, so the figure compares those, too.
"""


def write_report(study_dir: Path) -> Path:
    """Write README.md and figures/ into the study's folder, each file whole or not at all. Returns the README.

    Raises:
      StudyError: the study cannot be read, or its folder not be written to.
    """
    study = read_study(study_dir)
    results = results_of(study.runs)
    figures = draw_figures(results)
    try:
        (study_dir / FIGURES).mkdir(exist_ok=True)
        for name, content in figures.items():
            replace_content(study_dir / FIGURES / name, content)
        replace_content(study_dir / "README.md", readme(study, results, figures))
    except OSError as error:
        raise StudyError(
            f"cannot be written: {error}", where=str(study_dir), fix="copy the study to a folder of yours"
        ) from error
    return study_dir / "README.md"


def readme(study: Study, results: Sequence[Result], figures: Iterable[str]) -> str:
    """The Markdown of README.md.

    Args:
      figures: names of the files in figures/.
    """
    records = [run.record for run in study.runs]
    failed = f", and {len(study.failed)} that failed" if study.failed else ""
    pictures = [f.removesuffix(".png") for f in figures if f.endswith(".png")]
    parts = [
        f"# Scaling study {study.name} on {study.system}\n",
        f"Runs measured: {len(study.done)}{failed}. Every figure on this page was measured; nothing is modelled.\n",
        *_about(records),
    ]
    for mode in ("weak", "strong"):
        rows = [r for r in results if r.record.point.mode == mode]
        if rows:
            parts += [f"## {mode.capitalize()} scaling, measured\n", result_table(rows)]
            parts += [_picture(p) for p in pictures if p.startswith(mode)]
    return "\n".join([*parts, *_failures(study.failed), "## Runs\n", run_table(records), _HOW_TO_READ])


def _about(records: Sequence[RunRecord]) -> list[str]:
    """Where, when and how it was measured, and what to type to measure it again."""
    timing = [
        f"{r.repeats} repeats of {r.steps_per_repeat} steps, each repeat after {r.warmup_steps} steps of warm-up"
        for r in records
    ]
    return [
        _common("Machine", [r.machine for r in records]),
        _common("Network", [r.network for r in records]),
        _common("Commit", [f"{r.commit} (Widefield {r.widefield})" for r in records]),
        _common("Date", [r.date[:10] for r in records]),
        _common("Timed", timing),
        "- Measured with:\n\n  ```sh",
        *(f"  {command}" for command in dict.fromkeys(r.command for r in records)),
        "  ```\n",
    ]


def _common(name: str, values: Sequence[str]) -> str:
    different = sorted(set(values))
    said = different[0] if len(different) == 1 else f"differs, see [runs](#runs): {'; '.join(different)}"
    return f"- {name}: {said}"


def _picture(stem: str) -> str:
    """`weak-throughput` as a picture that links to its SVG."""
    mode, _, what = stem.partition("-")
    alt = f"{mode} scaling, measured: {what}"
    return f"[![{alt}]({FIGURES}/{stem}.png)]({FIGURES}/{stem}.svg)\n"


def _failures(runs: Sequence[Run]) -> list[str]:
    entries = [f"- `{run.point.name}`:\n\n{_indented(run.record.error)}\n" for run in runs]
    return ["## Failed runs\n", *entries] if runs else []


def _indented(text: str) -> str:
    """As a code block within a list, whatever marks the text holds."""
    return "\n".join(f"      {line}" for line in text.strip().splitlines())
