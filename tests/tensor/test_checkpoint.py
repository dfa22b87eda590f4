from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from launch import ROOT
from safetensors.numpy import load, load_file

from trainer.curriculum import Position
from trainer.errors import CheckpointError, RunError
from trainer.models.keras import keras, tf
from trainer.train.checkpoint import (
    FORMAT,
    Progress,
    check_checkpoint,
    digest,
    load_checkpoint,
    load_scored_weights,
    named_variables,
    read_progress,
    snapshot,
    write_checkpoint,
)
from trainer.train.checkpoints import (
    CheckpointWriter,
    checkpoint_path,
    checkpoints,
    latest_checkpoint,
    read_best,
    superseded,
)
from trainer.train.ema import Averaged

Parts = tuple[keras.Model, keras.optimizers.Optimizer, Averaged]


def at_step(step: int, *stage_ends: int) -> Progress:
    return Progress(Position(step, stage_ends=stage_ends), 2)


def new_parts(seed: int) -> Parts:
    """A small network with batch norm, Adam with a dynamic loss scale, and averaged weights."""
    keras.utils.set_random_seed(seed)
    layers = keras.layers
    model = keras.Sequential(
        [keras.Input((8, 8, 3)), layers.Conv2D(4, 3, name="conv"), layers.BatchNormalization(name="norm")]
    )
    optimizer = keras.mixed_precision.LossScaleOptimizer(keras.optimizers.Adam(0.01), dynamic_growth_steps=3)
    optimizer.build(model.trainable_variables)
    return model, optimizer, Averaged(model, 0.9)


def trained(parts: Parts, steps: int) -> Parts:
    """The same parts after some steps, the first of which has overflowed."""
    model, optimizer, averaged = parts

    @tf.function
    def step(scale: tf.Tensor) -> None:
        with tf.GradientTape() as tape:
            loss = optimizer.get_scaled_loss(scale * tf.reduce_mean(model(tf.ones([2, 8, 8, 3]), training=True) ** 2))
        gradients = optimizer.get_unscaled_gradients(tape.gradient(loss, model.trainable_variables))
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        averaged.update(optimizer.iterations)

    for i in range(steps):
        step(tf.constant(np.inf if i == 0 else 1.0, tf.float32))
    return parts


def arrays_of(step: int) -> dict[str, np.ndarray]:
    return {"model/0000/a": np.full(50_000, step, np.float32), "model/0001/b": np.array(step)}


def umask() -> int:
    value = os.umask(0)
    os.umask(value)
    return value


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Parts, Path]:
    """Trained parts and their checkpoint, which no test changes."""
    parts = trained(new_parts(1), 3)
    path = tmp_path_factory.mktemp("checkpoint") / "a.safetensors"
    write_checkpoint(path, snapshot(*parts), at_step(3))
    return parts, path


def test_a_checkpoint_restores_every_bit_of_network_optimiser_loss_scale_and_averages(
    saved: tuple[Parts, Path],
) -> None:
    parts, path = saved
    other = new_parts(9)
    assert digest(*other) != digest(*parts)
    assert load_checkpoint(path, *other) == at_step(3)
    assert digest(*other) == digest(*parts)
    for (name, theirs), mine in zip(snapshot(*parts).items(), snapshot(*other).values(), strict=True):
        assert mine.dtype == theirs.dtype and mine.tobytes() == theirs.tobytes(), name
    scale = (float(other[1].loss_scale), int(other[1].dynamic_counter))
    assert scale == (2.0**14, 2), "2**15, halved by the overflow; 2 good steps since"
    assert [p.name for p in path.parent.iterdir()] == ["a.safetensors"]
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask(), "a group may read its members' checkpoints"


def test_training_that_goes_on_from_a_checkpoint_ends_at_the_same_bits(tmp_path: Path) -> None:
    undisturbed = trained(new_parts(1), 3)
    write_checkpoint(tmp_path / "a.safetensors", snapshot(*undisturbed), at_step(3))
    resumed = new_parts(9)
    load_checkpoint(tmp_path / "a.safetensors", *resumed)
    assert digest(*trained(resumed, 3)) == digest(*trained(undisturbed, 3))


def test_parts_that_are_not_asked_for_are_passed_over(saved: tuple[Parts, Path]) -> None:
    (model, optimizer, _), path = saved
    alone, with_optimizer = new_parts(9), new_parts(9)
    untouched = snapshot(*alone)
    load_checkpoint(path, alone[0])
    assert digest(alone[0]) == digest(model)
    assert all(np.array_equal(v.numpy(), untouched[n]) for n, v in named_variables(*alone).items() if "model/" not in n)
    load_checkpoint(path, *with_optimizer[:2])
    assert digest(*with_optimizer[:2]) == digest(model, optimizer)


def test_scores_are_of_the_averaged_weights_where_there_are_any(saved: tuple[Parts, Path], tmp_path: Path) -> None:
    parts, path = saved
    scored, plain = new_parts(9)[0], new_parts(9)[0]
    assert load_scored_weights(path, scored) == at_step(3)
    with parts[2].swapped():
        assert digest(scored) == digest(parts[0])
    assert digest(scored) != digest(parts[0])
    write_checkpoint(tmp_path / "plain.safetensors", snapshot(*parts[:2]), at_step(4))
    load_scored_weights(tmp_path / "plain.safetensors", plain)
    assert digest(plain) == digest(parts[0])


def test_other_programs_can_read_the_arrays_of_every_type(tmp_path: Path) -> None:
    types = [np.float32, np.int64, np.bool_, np.float16, np.uint8, np.float64, np.int32]
    arrays = {str(np.dtype(t)): np.arange(6).astype(t).reshape(2, 3)[:, ::2] for t in types}
    arrays |= {"scalar": np.array(3, np.int64), "none": np.zeros((0, 4), np.float32)}
    write_checkpoint(tmp_path / "a", arrays, at_step(1))
    for read in (load_file(tmp_path / "a"), load((tmp_path / "a").read_bytes())):
        assert read.keys() == arrays.keys()
        for name, array in arrays.items():
            assert read[name].dtype == array.dtype and read[name].shape == array.shape
            np.testing.assert_array_equal(read[name], array)


def test_a_snapshot_does_not_change_with_later_steps() -> None:
    parts = trained(new_parts(1), 2)
    taken = snapshot(*parts)
    copies = {name: array.copy() for name, array in taken.items()}
    trained(parts, 2)
    assert all(np.array_equal(taken[name], copies[name]) for name in taken)
    assert not np.array_equal(taken["model/0000/conv/kernel:0"], parts[0].variables[0].numpy())


def other_networks() -> dict[str, list[keras.layers.Layer]]:
    conv, norm = keras.layers.Conv2D, keras.layers.BatchNormalization(name="norm")
    return {
        "wider": [conv(8, 3, name="conv"), norm],
        "shallower": [conv(4, 3, name="conv")],
        "deeper": [conv(4, 3, name="conv"), norm, conv(4, 3, name="conv_2")],
        "other norm": [conv(4, 3, name="conv"), keras.layers.GroupNormalization(2, name="norm")],
    }


@pytest.mark.parametrize("which", ["wider", "shallower", "deeper", "other norm"])
def test_a_checkpoint_of_another_architecture_is_refused_before_anything_changes(
    saved: tuple[Parts, Path], which: str
) -> None:
    other = keras.Sequential([keras.Input((8, 8, 3)), *other_networks()[which]])
    before = digest(other)
    for fill in (load_checkpoint, load_scored_weights):
        with pytest.raises(CheckpointError, match="another architecture") as error:
            fill(saved[1], other)
        assert str(saved[1]) in str(error.value)
    assert digest(other) == before


def test_a_run_that_kept_no_averages_cannot_be_resumed_with_them(saved: tuple[Parts, Path], tmp_path: Path) -> None:
    parts, _ = saved
    write_checkpoint(tmp_path / "a.safetensors", snapshot(*parts[:2]), at_step(4))
    with pytest.raises(CheckpointError, match=r"ema/.* only in the configured network[\s\S]*training.ema_decay"):
        load_checkpoint(tmp_path / "a.safetensors", *new_parts(9))


def test_a_file_that_is_no_checkpoint_cut_short_or_damaged_is_named_and_nothing_is_executed_or_changed(
    saved: tuple[Parts, Path], tmp_path: Path
) -> None:
    _, path = saved
    whole = bytearray(path.read_bytes())
    (tmp_path / "cut").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "pickle").write_bytes(b"cos\nsystem\n(S'touch " + str(tmp_path / "owned").encode() + b"'\ntR.")
    (tmp_path / "older").write_bytes(whole.replace(FORMAT.encode(), FORMAT.replace("widefield", "wildefeld").encode()))
    (tmp_path / "header").write_bytes(whole.replace(b"plateau_waited", b"plateau_waiter"))
    whole[-1] ^= 1
    (tmp_path / "damaged").write_bytes(whole)
    other = new_parts(9)
    before = digest(*other)
    for bad in ("cut", "pickle", "older", "header", "damaged", "none"):
        with pytest.raises(CheckpointError, match=bad):
            load_checkpoint(tmp_path / bad, *other)
        with pytest.raises(CheckpointError, match=bad):
            check_checkpoint(tmp_path / bad)
    assert digest(*other) == before
    assert not (tmp_path / "owned").exists()


counts = st.integers(0, 1 << 40)


@given(
    st.builds(
        Progress,
        st.builds(
            Position,
            counts,
            st.dictionaries(st.integers(32, 1 << 14), counts, max_size=3),
            st.lists(counts, max_size=3).map(tuple),
        ),
        st.integers(1, 4096),
        st.dictionaries(st.sampled_from(["settings", "patch index"]), st.text(max_size=5)),
        st.none() | st.floats(allow_nan=False),
        counts,
        st.none() | counts,
        st.floats(0, 1e9),
        st.floats(0, 1),
        counts,
    )
)
def test_progress_is_read_as_it_was_written(progress: Progress) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(Path(folder) / "a", {}, progress)
        assert read_progress(Path(folder) / "a") == progress


def test_a_stage_begins_with_nothing_used_up_and_remembers_where_the_one_before_ended() -> None:
    progress = Progress(Position(), 2, plateau_best=0.5, plateau_waited=2, rate_factor=0.25).at(7, {64: 56}, 3.5)
    assert progress.position == Position(7, {64: 56}) and progress.stage_seconds == 3.5
    later = progress.after_stage().at(9, {128: 4}, 1.0).after_stage()
    assert later.position == Position(9, {}, (7, 9)) and later.position.stage == 2
    assert later.stage_seconds == 0
    assert (later.plateau_best, later.plateau_waited, later.rate_factor) == (None, 0, 0.25)


@given(
    st.lists(st.integers(0, 60), unique=True, min_size=1),
    st.integers(1, 5),
    st.sets(st.integers(0, 60)),
    st.data(),
)
def test_the_policy_keeps_the_last_ones_the_ends_of_stages_and_the_best_and_nothing_else(
    steps: list[int], keep: int, always: set[int], data: st.DataObject
) -> None:
    step = data.draw(st.sampled_from(steps))
    gone = superseded(steps, step, keep, always)
    stay = set(steps) - gone
    assert gone <= set(steps) and step in stay and not gone & always
    others = sorted(stay - always - {step})
    assert len([s for s in stay if s <= step]) >= min(keep, len([s for s in steps if s <= step]))
    assert len(others) < keep
    assert all(s < step for s in others), "what a run that went back has left behind is gone"
    assert all(g < o for g in gone if g < step for o in others), "none is dropped for an older one"
    assert not superseded(stay, step, keep, always)


def test_the_folder_holds_what_the_policy_says_and_the_best_survives_a_restart(tmp_path: Path) -> None:
    scores = {10: 0.3, 20: 0.8, 30: 0.8, 40: 0.1, 50: 0.2, 60: 0.1}
    for session in ([10, 20, 30], [40, 50, 60]):
        writer = CheckpointWriter(tmp_path, keep=2)
        for step in session:
            writer.save(arrays_of(step), at_step(step, *(e for e in (30,) if e < step)))
            writer.mark_best(step, "common_miou", scores[step])
        writer.close()
        assert writer.poll() == []
    assert list(checkpoints(tmp_path)) == [20, 30, 50, 60]
    best = read_best(tmp_path)
    assert best and (best.step, best.metric, best.score) == (20, "common_miou", 0.8)
    assert latest_checkpoint(tmp_path) == (checkpoint_path(tmp_path, 60), [])
    assert read_progress(checkpoint_path(tmp_path, 60)) == at_step(60, 30)


def test_another_metric_has_its_own_best_and_a_file_that_is_damaged_is_named(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path, keep=1)
    writer.save(arrays_of(1), at_step(1))
    writer.mark_best(1, "common_miou", 0.9)
    writer.save(arrays_of(2), at_step(2))
    writer.mark_best(2, "common_auc", float("nan"))
    assert json.loads((tmp_path / "checkpoints" / "best.json").read_text())["metric"] == "common_miou"
    writer.mark_best(2, "common_auc", 0.1)
    writer.close()
    assert json.loads((tmp_path / "checkpoints" / "best.json").read_text())["metric"] == "common_auc"
    (tmp_path / "checkpoints" / "best.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"best\.json[\s\S]*rm "):
        CheckpointWriter(tmp_path, keep=1)


def test_a_damaged_newest_checkpoint_is_passed_over_and_said(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no checkpoint"):
        latest_checkpoint(tmp_path)
    writer = CheckpointWriter(tmp_path, keep=3)
    for step in (1, 2, 3):
        writer.save(arrays_of(step), at_step(step))
    writer.wait()
    paths = checkpoints(tmp_path)
    paths[3].write_bytes(paths[3].read_bytes()[:-1])
    paths[2].write_bytes(bytes(paths[2].stat().st_size))
    assert latest_checkpoint(tmp_path) == (paths[1], [paths[3], paths[2]])
    writer.save(arrays_of(2), at_step(2))  # the run goes on from step 1
    writer.close()
    assert latest_checkpoint(tmp_path) == (paths[2], [])
    assert list(checkpoints(tmp_path)) == [1, 2]
    for path in (paths[1], paths[2]):
        path.write_bytes(b"")
    with pytest.raises(CheckpointError, match="cannot be read"):
        latest_checkpoint(tmp_path)


@contextmanager
def files_of_at_most(num_bytes: int) -> Iterator[None]:
    """A disk that is full: the kernel refuses to make a file longer."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_a_warning_the_old_checkpoint_stays_and_saving_goes_on_when_there_is_room(
    tmp_path: Path,
) -> None:
    writer = CheckpointWriter(tmp_path, keep=1)
    writer.save(arrays_of(1), at_step(1))
    writer.mark_best(1, "common_miou", 0.5)
    with files_of_at_most(100_000):
        writer.save(arrays_of(2), at_step(2))
        writer.mark_best(2, "common_miou", 0.9)
        (warning,) = writer.poll()
        writer.save(arrays_of(1), at_step(1))  # over the old one
        writer.wait()
    assert "step 2" in warning and "File too large" in warning and "step-00000001.safetensors" in warning
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["best.json", "step-00000001.safetensors"]
    check_checkpoint(checkpoint_path(tmp_path, 1))
    best = read_best(tmp_path)
    assert best and best.step == 1, "the best is one that is there"
    writer.save(arrays_of(3), at_step(3))
    writer.close()
    assert len(writer.poll()) == 1
    assert list(checkpoints(tmp_path)) == [1, 3]


def test_weights_that_are_not_finite_do_not_replace_a_checkpoint_to_go_back_to(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path, keep=1)
    writer.save(arrays_of(1), at_step(1))
    writer.save({"model/0000/a": np.array([1, np.nan], np.float32)}, at_step(2))
    writer.close()
    (warning,) = writer.poll()
    assert "step 2" in warning and "model/0000/a is not finite" in warning
    assert latest_checkpoint(tmp_path) == (checkpoint_path(tmp_path, 1), [])


KEEP_WRITING = """
import sys
from pathlib import Path
import numpy as np
from trainer.curriculum import Position
from trainer.train.checkpoint import Progress
from trainer.train.checkpoints import CheckpointWriter, checkpoints
assert "tensorflow" not in sys.modules, "asking how far a run is must not start TensorFlow"
run = Path(sys.argv[1])
writer, step = CheckpointWriter(run, keep=2), max(checkpoints(run), default=0)
while True:
    step += 1
    writer.save({"model/0000/a": np.full(3_000_000, step, np.float32)}, Progress(Position(step), 1))
    print(step, flush=True)
"""


def test_a_process_killed_while_it_writes_leaves_the_newest_checkpoint_whole(tmp_path: Path) -> None:
    in_the_middle, random_s = 0, random.Random(1)
    for _ in range(6):
        process = subprocess.Popen(
            [sys.executable, "-c", KEEP_WRITING, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        assert process.stdout and process.stdout.readline() and process.stdout.readline()
        time.sleep(random_s.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        in_the_middle += len(list((tmp_path / "checkpoints").glob(".*.part")))
        newest, damaged = latest_checkpoint(tmp_path)
        assert not damaged
        assert newest == checkpoint_path(tmp_path, read_progress(newest).position.step)
    assert in_the_middle, "no kill came while a checkpoint was being written"
    (tmp_path / "checkpoints" / ".step-00009999.safetensors.part").write_bytes(b"cut short")
    CheckpointWriter(tmp_path, keep=2).close()
    assert not list((tmp_path / "checkpoints").glob(".*.part"))


def test_averages_follow_the_formula_and_start_at_the_weights() -> None:
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
    averaged = Averaged(model, 0.6)
    expected = [v.numpy().astype(np.float64) for v in model.trainable_variables]
    for average, weight in zip(averaged.variables, expected, strict=True):
        np.testing.assert_array_equal(average.numpy(), weight)
    update = tf.function(averaged.update)
    for step in range(1, 12):
        for variable in model.trainable_variables:
            variable.assign_add(tf.random.normal(variable.shape))
        update(tf.constant(step, tf.int64))
        decay = min(0.6, (1 + step) / (10 + step))
        expected = [
            decay * e + (1 - decay) * v.numpy() for e, v in zip(expected, model.trainable_variables, strict=True)
        ]
    for average, value in zip(averaged.variables, expected, strict=True):
        np.testing.assert_allclose(average.numpy(), value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("fails", [False, True])
def test_swapping_scores_the_averages_and_gives_the_weights_back_to_the_last_bit(fails: bool) -> None:
    model, optimizer, averaged = trained(new_parts(1), 3)
    before = digest(model, optimizer, averaged)
    try:
        with averaged.swapped():
            for weight, average in zip(model.trainable_variables, averaged.variables, strict=True):
                np.testing.assert_array_equal(weight.numpy(), average.numpy())
            assert digest(model, optimizer, averaged) != before
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        assert fails
    assert digest(model, optimizer, averaged) == before
