from __future__ import annotations

from pathlib import Path

import pytest

from trainer.cli.main import make_parser, parse
from trainer.config import load_run_config
from trainer.errors import RunError
from trainer.extras import how_to_install


def test_weights_without_settings_are_refused(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(RunError, match=r"has no config\.yaml"):
        load_run_config(tmp_path)


@pytest.mark.parametrize("value", ["-0.1", "2", "x"])
def test_a_drop_of_dice_is_from_0_to_1(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as e:
        parse(make_parser(), ["export", "run", "--max-drop", value])
    assert e.value.code == 2 and "is not a difference of Dice" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("module", "extra"), [("nncf", "export"), ("openvino", "predict"), ("tensorflow.keras", "train")]
)
def test_a_missing_package_is_told_with_its_extra(module: str, extra: str) -> None:
    text = how_to_install(ModuleNotFoundError(f"No module named '{module}'", name=module))
    assert text and f"pip install 'widefield[{extra}]'" in text


def test_a_missing_module_of_ours_is_a_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    assert how_to_install(ModuleNotFoundError("No module named 'trainer.nothing'", name="trainer.nothing")) is None
