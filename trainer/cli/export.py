from __future__ import annotations

import argparse
import math
from pathlib import Path

from trainer.cli.common import count
from trainer.errors import ExportError

NAME = "export"
HELP = "write a run's network for prediction without TensorFlow"
DETAILS = """\
Writes the weights that scored best to RUN_DIR/export/FORMAT-PRECISION (-o: elsewhere): the network, export.json with
all that slides are predicted by (classes, resolution, tissue, stains, patch sizes) and report.md.

  widefield export runs/demo                                    OpenVINO, float32
  widefield export runs/demo --precision fp16                   half the size; computes in bfloat16 where it is fast
  widefield export runs/demo --precision int8                   a quarter of the size; calibrated on training patches
  widefield export runs/demo --format onnx                      for ONNX Runtime and others; also savedmodel
  widefield predict runs/demo/export/openvino-int8 slide.svs -o predictions
  widefield export runs/demo --compare                          Dice, latency, memory and size of all, side by side

INT8 is scored on the run's validation patches. Where Dice falls by more than --max-drop, the layers that cost most stay
in float32 until it does not; report.md names them."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", type=Path, help="directory of a run")
    parser.add_argument("--format", choices=["openvino", "onnx", "savedmodel"], default="openvino")
    parser.add_argument("--precision", choices=["fp32", "fp16", "int8"], default="fp32")
    parser.add_argument("-o", "--output", type=Path, metavar="OUT", help="folder of the export")
    parser.add_argument(
        "--calibration-patches", type=count, default=128, metavar="N", help="training patches for INT8 (default 128)"
    )
    parser.add_argument(
        "--max-drop", type=drop, default=0.005, metavar="DICE", help="Dice that INT8 may lose (default 0.005)"
    )
    parser.add_argument(
        "--patch-size", type=count, metavar="PX", help="of the patches for INT8 and --compare (default: the largest)"
    )
    parser.add_argument(
        "--compare", action="store_true", help="export all precisions that are missing and measure them all"
    )


def drop(text: str) -> float:
    """A difference of two Dice scores."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a difference of Dice, 0 to 1")
    return value


def run(args: argparse.Namespace) -> None:
    from trainer.config import load_run_config
    from trainer.runtime.start import my_threads

    run_dir, threads = args.run_dir, my_threads().intra_op
    if args.compare and args.output:
        raise ExportError(
            f"--compare measures what is in {run_dir / 'export'}", where=f"-o {args.output}", fix="leave -o out"
        )
    config = load_run_config(run_dir)
    if args.precision == "int8" or args.compare:
        import trainer.export.int8  # noqa: F401  # where NNCF is missing, that is told first
    from trainer.export.compare import compare
    from trainer.export.export import PRECISIONS, Kind, Precision, Wanted, export_run, is_current
    from trainer.infer.run_recipe import scored_checkpoint
    from trainer.train.session import configure_tensorflow

    def wanted(kind: Kind, precision: Precision) -> Wanted:
        return Wanted(
            kind=kind,
            precision=precision,
            calibration_patches=args.calibration_patches,
            max_drop=args.max_drop,
            patch_size=args.patch_size,
        )

    def say(line: str) -> None:
        print(line, flush=True)

    configure_tensorflow(config, threads, 0)
    if not args.compare:
        export = wanted(args.format, args.precision)
        out = args.output or run_dir / "export" / export.name
        export_run(config, run_dir, export, out, threads, say)
        print((out / "report.md").read_text(encoding="utf-8"))
        print(f"export: {out}")
        return
    folders = []
    for precision in PRECISIONS:
        export = wanted("openvino", precision)
        folders.append(run_dir / "export" / export.name)
        if not is_current(folders[-1], config, run_dir):
            export_run(config, run_dir, export, folders[-1], threads, say)
    size = args.patch_size or config.patch_sizes[-1]
    compare(config, run_dir, folders, scored_checkpoint(run_dir), size, threads, say)
    print((run_dir / "export" / "compare.md").read_text(encoding="utf-8"))
