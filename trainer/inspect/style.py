"""The page's style sheet. Light and dark, wide and narrow, on paper; no script, no font, nothing from outside."""

from __future__ import annotations

from collections.abc import Iterable

from trainer.inspect.colours import SPLIT_COLOURS, class_colour, class_dash, class_fill

_BASE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #fff; --ink: #1c2330; --soft: #5a6475; --rule: #dce0e7;
  --link: #0b57a4; --warn: #fff4d6; --warn-rule: #e0a800; --first: #c9ced8; }
@media (prefers-color-scheme: dark) { :root { --page: #14171c; --card: #1d2128; --ink: #e6e9ee; --soft: #a2abb9;
  --rule: #343b46; --link: #7db8f0; --warn: #3a3016; --first: #596273; } }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, "Segoe UI", sans-serif; }
header, main { max-width: 1400px; margin: 0 auto; padding: 0 20px; }
h1 { margin: 24px 0 0; font-size: 26px; line-height: 1.25; overflow-wrap: anywhere; }
h2 { margin: 0 0 14px; font-size: 19px; overflow-wrap: anywhere; }
h3 { margin: 20px 0 6px; font-size: 15px; } h4 { margin: 12px 0 6px; font-size: 14px; color: var(--soft); }
h2 .badge { vertical-align: 2px; }
p { margin: 6px 0; } a { color: var(--link); } code { font-size: 13px; overflow-wrap: anywhere; }
.lead, .note, .back, small, dt, figcaption { color: var(--soft); } .note, .back, small { font-size: 13px; }
section { margin: 18px 0; padding: 18px 20px; background: var(--card); border: 1px solid var(--rule);
  border-radius: 8px; }
section > :first-child { margin-top: 0; } section > :last-child { margin-bottom: 0; }
.warn { margin: 6px 0; padding: 10px 14px 10px 30px; background: var(--warn); border-left: 4px solid var(--warn-rule);
  border-radius: 4px; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
.long .scroll { max-height: 560px; overflow-y: auto; }
.long thead th { position: sticky; top: 0; background: var(--card); }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { padding: 4px 14px 4px 0; text-align: left; border-bottom: 1px solid var(--rule); white-space: nowrap; }
thead th { color: var(--soft); font-weight: 600; font-size: 13px; }
tbody th { font-weight: 500; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 3px 14px; margin: 0; font-size: 14px; }
dd { margin: 0; overflow-wrap: anywhere; min-width: 0; }
.halves { display: grid; grid-template-columns: minmax(0, 3fr) minmax(0, 2fr); gap: 18px; }
.halves section { margin: 0; } .halves + .halves { margin-top: 18px; }
.badge { display: inline-block; padding: 0 8px; border-radius: 9px; font-size: 12px; font-weight: 600;
  line-height: 18px; color: #fff; background: #6b7280; }
.badge.val { color: #000; }
.shares { display: flex; align-items: center; gap: 8px; white-space: normal; line-height: 1.3; }
.shares small { min-width: 110px; max-width: 420px; }
.facts .shares { flex-direction: column; align-items: start; gap: 3px; }
.bar { display: flex; flex: none; width: 110px; height: 10px; border-radius: 2px; overflow: hidden;
  background: repeating-linear-gradient(135deg, #999 0 2px, transparent 2px 5px); }
.part { height: 100%; } .part.label-0, .swatch.label-0 { background: var(--first); }
.swatch { display: inline-block; width: 13px; height: 13px; margin-right: 6px; border: 1px solid #0008;
  border-radius: 2px; vertical-align: -2px; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; }
.columns { display: grid; grid-template-columns: minmax(0, 3fr) minmax(0, 2fr); gap: 24px; align-items: start; }
.viewer { display: flex; flex-wrap: wrap; gap: 6px; align-items: center; }
.viewer .stack { flex-basis: 100%; } .viewer .note { flex-basis: 100%; margin: 0; }
.switch { position: absolute; opacity: 0; pointer-events: none; }
.switch + label { padding: 2px 10px; border: 1px solid var(--soft); border-radius: 13px; font-size: 13px;
  cursor: pointer; user-select: none; }
.switch:not(:checked) + label { color: var(--soft); border-style: dashed; }
.switch:not(:checked) + label .swatch { opacity: .35; }
.switch:focus-visible + label { outline: 2px solid var(--link); outline-offset: 1px; }
.stack { position: relative; line-height: 0; }
.stack img { width: 100%; height: auto; display: block; border-radius: 3px; }
.stack svg { position: absolute; inset: 0; width: 100%; height: 100%; overflow: hidden; }
path { vector-effect: non-scaling-stroke; stroke-linejoin: round; }
svg .casing { fill: none; stroke: #000; stroke-opacity: .6; stroke-width: 4.5; }
svg .line { fill-opacity: .08; stroke-width: 2.2; }
svg .casing.pale { stroke: #fff; stroke-opacity: .85; }
svg .tissue-line { fill: none; stroke: #000; stroke-width: 1.5; }
.swatch.tissue-line { background: #fff; border: 2px solid #000; }
svg .box { fill: none; stroke-width: 1.6; }
.swatch.box { border-width: 2px; }
svg .shade { image-rendering: pixelated; }
svg .mark { fill: none; stroke: #000; stroke-width: 1.8; stroke-dasharray: 4 3; }
.swatch.mark { border: 2px dashed currentcolor; }
svg text { text-anchor: middle; dominant-baseline: central; font-weight: 700; fill: #fff; stroke: #000;
  stroke-width: 3px; vector-effect: non-scaling-stroke; paint-order: stroke; }
summary { cursor: pointer; font-weight: 600; } details { margin-top: 18px; }
.tiles { display: grid; grid-template-columns: repeat(8, 1fr); gap: 14px; }
figure { margin: 0; min-width: 0; } figcaption { margin-top: 4px; font-size: 12px; line-height: 1.4; }
figcaption span { display: block; } figcaption b { display: inline-block; min-width: 20px; padding: 0 5px;
  border-radius: 3px; text-align: center; color: var(--card); background: var(--soft); }
figcaption b.positive { color: #fff; background: #b34700; }
@media (max-width: 1100px) { .tiles { grid-template-columns: repeat(4, 1fr); } }
@media (max-width: 800px) { .columns, .halves { grid-template-columns: minmax(0, 1fr); }
  header, main { padding: 0 10px; } section { padding: 14px 12px; }
  .tiles { grid-template-columns: repeat(2, 1fr); gap: 10px; } }
@media print { body { background: #fff; } section { border: 0; padding: 0; } .long .scroll { max-height: none; }
  .back { display: none; } figure, tr, .stack { break-inside: avoid; } .slide { break-before: page; }
  * { print-color-adjust: exact; } }
"""


def style_sheet(labels: Iterable[int], patch_sizes: Iterable[int]) -> str:
    """All of the page's CSS: that above, the colours, and what each switch hides."""
    labels = tuple(labels)
    splits = (
        f".badge.{name} {{ background: {colour}; }} .box.{name} {{ stroke: {colour}; border-color: {colour}; }} "
        f"svg .flag.{name} {{ fill: {colour}; }}"
        for name, colour in SPLIT_COLOURS.items()
    )
    layers = ["tissue", "marks", *(f"label-{n}" for n in labels), *(f"size-{n}" for n in patch_sizes)]
    hidden = (f".switch.{n}:not(:checked) ~ .stack .layer.{n} {{ display: none; }}" for n in layers)
    return "\n".join([_BASE, *splits, *(_label_rule(n) for n in labels), *hidden])


def _label_rule(label: int) -> str:
    colour, name = class_colour(label), f"label-{label}"
    return (
        f".swatch.{name}, .part.{name} {{ background: {class_fill(label)}; }} "
        f"svg .line.{name} {{ stroke: {colour}; fill: {colour}; stroke-dasharray: {class_dash(label)}; }}"
    )
