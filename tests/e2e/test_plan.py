from __future__ import annotations

import re
from pathlib import Path

import pytest
from launch import must_pass, widefield
from tiny import write_config

CURRICULUM = [
    {"patch_size": 64, "local_batch_size": "auto", "images": 64},
    {"sizes": {96: 0.5, 64: 0.5}, "local_batch_size": 1, "accumulate": 2, "steps": 6},
]


@pytest.mark.long
def test_a_plan_for_other_ranks_tells_batches_steps_memory_and_time_and_trains_nothing(
    tiny_slides: Path, tmp_path: Path
) -> None:
    config = write_config(tmp_path, tiny_slides, curriculum=CURRICULUM)
    out = must_pass(widefield("train", config, "--plan", "--world-size", "4"))
    assert "tiny: 4 rank(s)" in out
    # two patches of 64 px have nearly the pixels of one of 96 px; on 4 ranks 8 patches a step, so 64 images are 8 steps
    assert re.search(r"^0 +64 px +8 +8 .* GB +\d+:\d\d:\d\d", out, re.M), out
    # two passes on 4 ranks: 8 patches of 96 px in a step, or 16 of 64 px
    assert re.search(r"^1 +50% 96 px \+ 50% 64 px +6 +8, 16 .* GB +\d+:\d\d:\d\d", out, re.M), out
    assert "in all 14 steps" in out
    assert not (tmp_path / "run" / "checkpoints").exists()
