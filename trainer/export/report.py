"""`export.json` for people."""

from __future__ import annotations

from typing import Any


def report(about: dict[str, Any]) -> str:
    """Markdown: what the folder holds, how to use it, and what INT8 has cost."""
    source, recipe = about["source"], about["recipe"]
    resolution = recipe["resolution"]
    at = f"{resolution['mpp']:.4g} um/px" if resolution["mpp"] else f"level {resolution['level']} of the slide"
    lines = [
        f"# Export: {about['kind']}, {about['precision']}",
        "",
        f"Of {source['run']}, {source['checkpoint']}, by Widefield {about['widefield']}.",
        "",
        f"- classes: {', '.join(recipe['class_names'])}",
        f"- takes: uint8 RGB [B, P, P, 3] at {at}; P any multiple of {about['tile_multiple']}, trained with "
        f"{', '.join(map(str, recipe['patch_sizes']))}; scaling of pixels is inside",
        "- gives: float32 probabilities [B, P, P, C]",
        f"- computes in: {'INT8 and ' if 'int8' in about else ''}"
        f"{'bfloat16 where the processor has it, else ' if about['narrow'] else ''}float32",
    ]
    if "largest_difference" in about:
        lines.append(
            f"- largest difference of a probability from TensorFlow, on noise: {about['largest_difference']:.1e}"
        )
    if about["network"]:
        lines += ["", "    widefield predict THIS_FOLDER SLIDE -o OUT      needs pip install 'widefield[predict]' only"]
    if "int8" in about:
        lines += ["", *_int8(about["int8"])]
    return "\n".join([*lines, ""])


def _int8(int8: dict[str, Any]) -> list[str]:
    lines = [
        "## INT8",
        "",
        f"Calibrated with {int8['calibration_patches']} training patches of {int8['patch_size']} px, scored on "
        f"{int8['validation_patches']} validation patches.",
        "",
        "| | Dice |",
        "| --- | ---: |",
        f"| float32 | {int8['dice_float32']:.4f} |",
    ]
    if "dice" in int8:
        lines.append(f"| INT8 | {int8['dice']:.4f} |")
    kept, bound = int8["kept_in_float32"], f"to lose no more than {int8['max_drop']:g}"
    if not kept:
        return [*lines, "", f"All {int8['num_layers']} layers are in INT8; nothing had to be kept in float32 {bound}."]
    lines += ["", f"Kept in float32 {bound}: {len(kept)} of {int8['num_layers']} layers.", ""]
    return [*lines, *(f"- {name}" for name in kept)]
