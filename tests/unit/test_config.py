from __future__ import annotations

from pathlib import Path

import pytest
import yaml

import trainer.cli.train as cli_train
from trainer.cli.main import make_parser, parse
from trainer.config import Config, check_groups, check_rules, dump_config, load_config
from trainer.errors import ConfigError

MINIMAL = {
    "name": "x",
    "output": "runs/x",
    "data": {"path": "slides.csv", "classes": [{"name": "normal"}, {"name": "tumour", "groups": ["Tumor"]}]},
    "curriculum": [{"patch_size": 64, "local_batch_size": 2, "steps": 3}],
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(MINIMAL))
    return path


def test_ranks_that_share_patches_must_come_out_even(file: Path) -> None:
    config = load_config(file, ["curriculum.0.parallel.spatial=4"])
    for world_size in (4, 8):
        check_groups(config, world_size)
    with pytest.raises(ConfigError, match=r"6 rank\(s\) cannot be put into groups of 4") as error:
        check_groups(config, 6)
    assert "curriculum.0.parallel.spatial=3, or a multiple of 4 ranks" in str(error.value)
    assert config.has_groups and not load_config(file).has_groups


def test_the_resolved_configuration_reads_back_to_the_same_object(file: Path, tmp_path: Path) -> None:
    config = load_config(file, ["curriculum.0.steps=7", "training.precision=mixed_bfloat16"])
    again = tmp_path / "again.yaml"
    again.write_text(dump_config(config))
    assert load_config(again) == config
    assert config.curriculum[0].steps == 7


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("modle.norm=batch", "did you mean 'model'?"),
        ("model.nrom=batch", "did you mean 'norm'?"),
        ("curriculum.0.patchsize=64", "did you mean 'patch_size'?"),
        ("data.classes.1.group=[a]", "did you mean 'groups'?"),
        ("training.optimizer.learning_rat=1", "did you mean 'learning_rate'?"),
        ("curriculum.0.epochs=1", "exactly one of epochs, images, steps and plateau"),
        ("curriculum.0.sizes={64: 1}", "exactly one of patch_size and sizes"),
        ("training.precision=float8", "training.precision"),
        ("model.architecture=deeplab", "'deeplabv3plus', 'unet', 'fpn', 'linknet', 'pspnet' or 'resunet'"),
        ("curriculum.3.steps=1", "not a position in a list of 1"),
        ("seed", "key.path=value"),
        ("data.classes.1.name=normal", "given twice"),
        ("split.val_centres=[a]", "train_centres and val_centres together"),
        ("split.fold=2", "give fold and folds together"),
        ("split={folds: 5, fold: 6}", "no fold 6 of 5"),
        ("split={folds: 5, fold: 1, train_centres: [a], val_centres: [b]}", "both say who validates"),
        ("index.resolution={level: 0, mpp: 0.5}", "exactly one of level and mpp"),
        ("index.resolution.level=-1", "index.resolution.level"),
        ("index.tissue.saturation=1.5", "index.tissue.saturation"),
        ("stores.kind=hdf5", "needs stores.path"),
        ("stores.stage_to=/tmp", "it needs kind=hdf5 or tfrecord"),
        ("stores.kind=zarr", "stores.kind"),
    ],
)
def test_a_mistake_is_named_with_its_key(file: Path, override: str, says: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(file, [override])
    assert says in str(error.value)


def test_a_file_that_is_missing_or_not_yaml_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_config(tmp_path / "none.yaml")
    bad = tmp_path / "bad.yaml"
    bad.write_text("a: [1,")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(bad)
    bad.write_text("!!python/object/apply:os.system ['true']")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(bad)


def test_a_run_to_resume_may_have_any_name(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = Path("20240501")  # in YAML a number
    run.mkdir()
    (run / "config.yaml").write_text(file.read_text())
    parser = make_parser()
    assert cli_train._config(parse(parser, ["train", "--resume", str(run)])).output == run


def test_a_number_of_ranks_is_one_or_more(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        parse(make_parser(), ["train", "configs/demo.yaml", "--plan", "--world-size", "0"])
    assert "1 or more" in capsys.readouterr().err


def test_a_patch_size_that_the_network_cannot_take_is_refused_with_the_nearest_that_it_can(file: Path) -> None:
    with pytest.raises(ConfigError, match=r"curriculum\[0\].patch_size") as error:
        check_rules(load_config(file, ["curriculum.0.patch_size=700"]))
    assert "curriculum.0.patch_size=704" in str(error.value)


@pytest.mark.parametrize(
    ("architecture", "given", "fits"),
    [("unet", 176, 192), ("fpn", 80, 64), ("linknet", 48, 64), ("pspnet", 72, 64), ("resunet", 56, 64)],
)
def test_what_a_patch_size_must_divide_by_depends_on_the_architecture(
    file: Path, architecture: str, given: int, fits: int
) -> None:
    overrides = [f"model.architecture={architecture}"]
    with pytest.raises(
        ConfigError, match=rf"a patch of {given} px does not divide by \d+, which {architecture}"
    ) as error:
        check_rules(load_config(file, [*overrides, f"curriculum.0.patch_size={given}"]))
    assert f"curriculum.0.patch_size={fits}" in str(error.value)
    assert check_rules(load_config(file, [*overrides, f"curriculum.0.patch_size={fits}"])) == []


@pytest.mark.parametrize(
    ("overrides", "idle"),
    [
        (
            ["architecture=unet", "aspp_channels=64", "output_stride=8", "dropout=0.3"],
            ["output_stride", "aspp_channels"],
        ),
        (["architecture=linknet", "decoder_channels=64"], ["decoder_channels"]),
        (["architecture=pspnet", "output_stride=8", "decoder_channels=64"], []),
        (["architecture=resunet", "backbone=vgg16", "weights=w.h5", "stochastic_depth=0.1"], ["backbone", "weights"]),
    ],
)
def test_settings_that_an_architecture_does_not_know_are_warned_of(
    file: Path, overrides: list[str], idle: list[str]
) -> None:
    config = load_config(file, [f"model.{override}" for override in overrides])
    what = f"has no effect with model.architecture={config.model.architecture}"
    assert check_rules(config) == [f"model.{name} {what}" for name in idle]


def test_frozen_norms_need_statistics_that_are_stored(file: Path) -> None:
    frozen = ["model.norm=frozen"]
    assert "no normalisation" in check_rules(load_config(file, frozen))[0]
    own_encoder = check_rules(load_config(file, [*frozen, "model.architecture=resunet"]))
    assert own_encoder == ["model.norm=frozen: resunet has no stored statistics; its norms are group norms"]


def test_class_weights_must_fit_the_classes(file: Path) -> None:
    with pytest.raises(ConfigError, match="3 weights for 2 classes"):
        check_rules(load_config(file, ["training.loss.class_weights=[1,2,3]"]))


def test_batch_norm_with_few_patches_warns_and_depends_on_the_world_size(file: Path) -> None:
    assert "noisy" in check_rules(load_config(file, ["model.norm=sync_batch"]), world_size=1)[0]
    assert check_rules(load_config(file, ["model.norm=sync_batch"]), world_size=4) == []


def test_settings_without_effect_are_warned_of(file: Path) -> None:
    overrides = ["index.positions=random", "index.overlap=0.5", "stores.path=/patches"]
    folds = ["split.folds=5", "split.fold=1", "split.val_fraction=0.3"]
    warnings = check_rules(load_config(file, overrides + folds))
    assert [w.split(" has no effect")[0] for w in warnings] == ["split.val_fraction", "index.overlap", "stores.path"]


@pytest.mark.parametrize("path", sorted(Path(__file__).parents[2].glob("configs/*.yaml")), ids=lambda p: p.stem)
def test_every_config_that_ships_is_valid(path: Path) -> None:
    config = load_config(path)
    assert isinstance(config, Config)
    check_rules(config, world_size=2)
