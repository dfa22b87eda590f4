"""Which runs a sweep has, what they are called, and what is checked before any of them starts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from launch import ROOT
from small_slides import manifest, run_config, tissue_slide

from trainer.cli.main import main
from trainer.config import dump_config, load_config
from trainer.errors import ConfigError, DataError, RunError
from trainer.experiments.grid import NamedRun, fold_runs, folder_name, short_names, sweep_runs
from trainer.experiments.plan import check, configs_of, write_configs
from trainer.train.run_dir import holds_run

RATE = "training.optimizer.learning_rate"


def names(*overrides: str) -> list[str]:
    return [run.name for run in sweep_runs(overrides)]


# the grid


def test_every_combination_is_a_run_whose_name_says_its_settings() -> None:
    assert names(f"{RATE}=[0.001,1e-4]", "seed=3", "model.norm=[group,batch]") == [
        "learning_rate=0.001,norm=group",
        "learning_rate=0.001,norm=batch",
        "learning_rate=1e-4,norm=group",
        "learning_rate=1e-4,norm=batch",
    ]


def test_a_list_of_lists_tries_lists_and_what_varies_not_holds_for_all() -> None:
    plain, heavy = sweep_runs(["training.loss.class_weights=[[1,1],[1,4]]", "seed=3"])
    assert plain.settings == {"training.loss.class_weights": [1, 1]}
    assert heavy.overrides == ("seed=3", "training.loss.class_weights=[1, 4]")
    assert plain.name != heavy.name


def test_overrides_give_a_run_the_values_that_were_typed(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(dump_config(run_config(tmp_path)))
    runs = sweep_runs(
        [f"{RATE}=[1e-3]", "model.weights=[null,'5']", "training.loss.dice=[0.5]", "augment.flip=[false]"]
    )
    configs = [load_config(path, run.overrides) for run in runs]
    assert [c.model.weights for c in configs] == [None, "5"]
    assert {(c.training.optimizer.learning_rate, c.training.loss.dice, c.augment.flip) for c in configs} == {
        (0.001, 0.5, False)
    }


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["seed=3"], "no setting has several values"),
        (["seed=[]"], r"\[\[\]\] for an empty list"),
        (["seed=[1,2]", "seed=3"], "given twice"),
        (["seed=[1,2,1]"], "has the value 1 twice"),
    ],
)
def test_a_grid_that_means_nothing_is_refused(overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        sweep_runs(overrides)
    assert re.search(said, str(error.value))


def test_keys_are_shortened_as_far_as_they_stay_apart() -> None:
    keys = ["curriculum.0.steps", "curriculum.1.steps", RATE, "seed"]
    assert list(short_names(keys).values()) == ["0.steps", "1.steps", "learning_rate", "seed"]
    assert short_names(["a.name", "name"]) == {"a.name": "a.name", "name": "name"}


@given(st.lists(st.text(), min_size=2, unique=True))
def test_names_are_safe_short_and_different_for_different_words(values: list[str]) -> None:
    found = [folder_name({"key": value}) for value in values]
    assert all(re.fullmatch(r"[A-Za-z0-9_.+=,-]{1,80}", name) for name in found)
    assert len(set(found)) == len(values)


# the plan


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    rows = [f"{tissue_slide(tmp_path / f'{n}.png').name},,p{n}" for n in range(4)]
    manifest(tmp_path, *rows, header="slide,annotation,patient")
    path = tmp_path / "run.yaml"
    path.write_text(dump_config(run_config(tmp_path)))
    return path


def test_each_run_has_its_own_folder_and_index_and_all_share_the_patches_of_slides(config_file: Path) -> None:
    runs = sweep_runs(["seed=[1,2]"])
    folder, configs = configs_of(str(config_file), runs, "sweep", None)
    assert folder == config_file.parent / "run-sweep"
    assert [c.index_path for c in configs] == [folder / f"seed={n}" / "index.parquet" for n in (1, 2)]
    assert {c.index_parts for c in configs} == {folder / "index.parts"}
    indexed = sweep_runs(["seed=[1,2]", "index_file=/d/index.parquet"])
    _, configs = configs_of(str(config_file), indexed, "sweep", Path("elsewhere"))
    assert {c.index_parts for c in configs} == {Path("/d/index.parquet.parts")}
    assert configs[0].output == Path("elsewhere/seed=1") and configs[0].index_file is None


def test_a_mistake_in_one_of_many_runs_is_found_and_names_the_run(config_file: Path) -> None:
    with pytest.raises(ConfigError, match=r"run norm=bach: .*model\.norm"):
        configs_of(str(config_file), sweep_runs(["model.norm=[group,bach]"]), "sweep", None)
    runs = sweep_runs(["curriculum.0.patch_size=[64,70]"])
    with pytest.raises(ConfigError, match="70 px does not divide by 16"):
        check(runs, configs_of(str(config_file), runs, "sweep", None)[1], 1)


def test_folds_are_checked_against_the_slides_before_anything_starts(config_file: Path) -> None:
    def lines(folds: int, *overrides: str) -> list[str]:
        runs = fold_runs(folds, overrides)
        return check(runs, configs_of(str(config_file), runs, "crossval", None)[1], 1)[0]

    assert lines(4) == [f"fold-{k}: 3 train, 1 val slides" for k in (1, 2, 3, 4)]
    with pytest.raises(DataError, match="4 groups for 5 folds"):
        lines(5)
    with pytest.raises(ConfigError, match="both say who validates"):
        lines(2, "split.train_centres=[a]", "split.val_centres=[b]")
    with pytest.raises(ConfigError, match="1 folds leave nothing to train on"):
        lines(1)


def test_a_run_that_was_begun_with_other_settings_is_refused_and_named_with_both(config_file: Path) -> None:
    def plan(*overrides: str) -> list[Path]:
        _, configs = configs_of(str(config_file), sweep_runs(["seed=[1,2]", *overrides]), "sweep", None)
        write_configs(configs)
        return [c.output for c in configs]

    first, second = plan("training.ema_decay=0.5")
    assert not holds_run(first) and load_config(first / "config.yaml").training.ema_decay == 0.5
    plan("training.ema_decay=0.9")  # nothing had begun
    (second / "metrics.jsonl").touch()
    plan("training.ema_decay=0.9")
    with pytest.raises(RunError, match=r"seed=2: was begun with other.*training\.ema_decay = 0\.9, now 0\.5"):
        plan("training.ema_decay=0.5")
    assert load_config(first / "config.yaml").training.ema_decay == 0.9


def test_a_fold_can_be_repeated_by_hand_from_its_own_configuration(config_file: Path) -> None:
    runs = fold_runs(4, ["seed=7"])
    _, configs = configs_of(str(config_file), runs, "crossval", None)
    write_configs(configs)
    again = load_config(configs[2].output / "config.yaml")
    assert (again.split.fold, again.split.folds, again.seed) == (3, 4, 7)
    assert check([NamedRun("x", {}, ())], [again], 1)[0] == ["x: 3 train, 1 val slides"]


# the command


def test_an_array_has_a_task_for_each_run_that_is_not_finished_and_a_dry_run_writes_nothing(
    config_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    line = ["sweep", str(config_file), "seed=[1,2,3]", "--submit", "dual-socket", "--nodes", "4", "--time", "1:00"]
    main([*line, "--dry-run"])
    shown, folder = capsys.readouterr().out, config_file.parent / "run-sweep"
    runs = " ".join(f"{folder}/seed={n}" for n in (1, 2, 3))
    assert f"sbatch --array=0-2 --nodes=4 --time=1:00 slurm/experiment.sbatch {runs}" in shown
    assert f"widefield sweep --report {folder}" in shown and not folder.exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--ranks", "2", "--submit", "dual-socket"], "--ranks with --submit"),
        (["--nodes", "2"], "without --submit"),
        (["--ranks", "4096"], "4096 ranks are more than"),
        (["curriculum.0.parallel.spatial=2"], "cannot be put into groups of 2"),
        (["data.path=nowhere.csv"], "no such file"),
    ],
)
def test_what_cannot_work_ends_with_2_before_the_first_run(
    config_file: Path, options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["crossval", str(config_file), "--folds", "2", *options])
    assert end.value.code == 2 and said in capsys.readouterr().err
    assert not (config_file.parent / "run-crossval").exists()
