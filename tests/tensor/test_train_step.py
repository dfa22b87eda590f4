from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from trainer.config.schema import LossConfig, ModelConfig, OptimizerConfig, TrainingConfig
from trainer.models import build_model, segmentation_loss
from trainer.models.keras import keras, tf
from trainer.runtime import SingleComm
from trainer.train.checkpoint import digest
from trainer.train.ema import Averaged
from trainer.train.forecast import Speed, fit_speed
from trainer.train.step import TrainStep, allreduce_bytes, make_optimizer, moving_statistics, wire_bytes

SMALL = ModelConfig(backbone="resnet18", aspp_channels=16, decoder_channels=16, dropout=0.0)


@pytest.fixture(autouse=True)
def float32_policy():
    yield
    keras.mixed_precision.set_global_policy("float32")


def small_model(config: ModelConfig = SMALL) -> keras.Model:
    keras.utils.set_random_seed(1)
    return build_model(config, 2)


def train_step(
    model: keras.Model, config: TrainingConfig, averaged: Averaged | None = None, seed: int = 0
) -> TrainStep:
    return TrainStep(model, make_optimizer(config.optimizer, config.precision), config, SingleComm(), averaged, seed)


def batch(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.zeros((2, 64, 64), np.uint8)
    labels[:, :, 32:] = 1
    labels[0, :5] = 255
    images = (labels[..., None] % 2 * 120 + rng.integers(0, 100, (2, 64, 64, 3))).astype(np.uint8)
    return images, labels


def test_one_step_equals_plain_gradient_descent_applied_once() -> None:
    model = small_model()
    images, labels = batch()
    config = TrainingConfig(optimizer=OptimizerConfig(name="sgd", momentum=0.0, learning_rate=0.1))

    @tf.function
    def plain(images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, list[tf.Tensor]]:
        with tf.GradientTape() as tape:
            loss, _ = segmentation_loss(model(images, training=True), labels, LossConfig())
        return loss, tape.gradient(loss, model.trainable_variables)

    loss, gradients = plain(tf.constant(images), tf.constant(labels))
    ours, change = change_of(model, train_step(model, config), images, labels, 1)
    expected = -0.1 * np.concatenate([g.numpy().ravel() for g in gradients])
    assert ours == pytest.approx(float(loss), rel=1e-5)
    assert np.linalg.norm(change - expected) < 1e-5 * np.linalg.norm(expected)  # a second application would make it 1


@pytest.mark.parametrize("precision", ["mixed_bfloat16", pytest.param("mixed_float16", marks=pytest.mark.long)])
def test_every_precision_learns(precision: str) -> None:
    keras.mixed_precision.set_global_policy(precision)
    model = small_model()
    config = TrainingConfig(precision=precision, optimizer=OptimizerConfig(learning_rate=3e-3))
    step = train_step(model, config)
    losses = [step(*batch(), n).loss for n in range(12)]
    assert np.isfinite(losses).all()
    assert losses[-1] < 0.75 * losses[0]
    assert all(v.dtype == tf.float32 for v in model.trainable_variables)


@pytest.mark.long
@pytest.mark.parametrize(("name", "decay"), [("adamw", 1e-4), ("sgd", 1e-4), ("adam", 1e-4), ("adamw", 0.0)])
def test_every_optimiser_learns(name: str, decay: float) -> None:
    model = small_model()
    config = TrainingConfig(optimizer=OptimizerConfig(name=name, learning_rate=5e-3, weight_decay=decay))
    step = train_step(model, config)
    losses = [step(*batch(), n).loss for n in range(10)]
    assert losses[-1] < losses[0]


def test_a_float16_overflow_skips_the_step_and_lowers_the_scale() -> None:
    keras.mixed_precision.set_global_policy("mixed_float16")
    model = small_model()
    config = TrainingConfig(precision="mixed_float16")
    optimizer = make_optimizer(config.optimizer, "mixed_float16")
    optimizer.build(model.trainable_variables)
    optimizer.loss_scale  # noqa: B018 - builds its variable
    before = digest(model)
    optimizer._loss_scale._current_loss_scale.assign(3e38)
    TrainStep(model, optimizer, config, SingleComm())(*batch(), 0)
    assert digest(model) == before
    assert float(optimizer.loss_scale) < 3e38


SGD = TrainingConfig(optimizer=OptimizerConfig(name="sgd", momentum=0.0, learning_rate=0.1))


def change_of(model: keras.Model, step: TrainStep, images: np.ndarray, labels: np.ndarray, passes: int) -> tuple:
    """(loss, what a step adds to all weights as one vector); the weights are put back."""
    before = [v.numpy() for v in model.trainable_variables]
    loss = step(images, labels, 0, passes=passes).loss
    change = [(v.numpy() - old).ravel() for v, old in zip(model.trainable_variables, before, strict=True)]
    for variable, old in zip(model.trainable_variables, before, strict=True):
        variable.assign(old)
    return loss, np.concatenate(change)


def test_accumulating_k_passes_equals_one_pass_with_a_k_fold_batch() -> None:
    model = small_model()
    step, differences = train_step(model, SGD), []  # one step for all: what a batch has added up is gone at the next
    for seed in range(3):
        images, labels = (np.concatenate([x, x[::-1, ::-1]]) for x in batch(seed))
        labels[0, :40] = 255  # patches with few labelled pixels count as they do in one batch
        once, whole = change_of(model, step, images, labels, 1)
        loss, change = change_of(model, step, images, labels, 4)
        assert loss == pytest.approx(once, rel=1e-5)
        differences.append(np.linalg.norm(change - whole) / np.linalg.norm(whole))
    # the middle one: now and then rounding, which depends on the processor and the batch, flips a ReLU
    assert np.median(differences) < 1e-5 and max(differences) < 0.05


def test_noise_is_a_function_of_the_step_so_that_a_resumed_run_repeats_it() -> None:
    config = SGD.model_copy(update={"optimizer": OptimizerConfig(name="sgd", momentum=0.0, learning_rate=1e-12)})
    step = train_step(small_model(SMALL.model_copy(update={"dropout": 0.5})), config)
    losses = [step(*batch(), n).loss for n in (0, 1, 0)]
    assert losses[0] == losses[2] != losses[1]
    of_another_seed = train_step(small_model(SMALL.model_copy(update={"dropout": 0.5})), config, seed=1)
    assert of_another_seed(*batch(), 0).loss != losses[0]


def test_averaged_weights_follow_the_trained_ones_at_a_distance() -> None:
    model = small_model()
    start, averaged = digest(model), Averaged(model, 0.9)
    step = train_step(model, SGD, averaged=averaged)
    for n in range(3):
        step(*batch(), n)
    trained = digest(model)
    with averaged.swapped():
        assert digest(model) not in (start, trained)
    assert digest(model) == trained


class Traced(SingleComm):
    """One of two ranks, which keeps what the traced step sends."""

    world_size = 2
    sent: Sequence[tf.Tensor] = ()

    def allreduce_gradients(self, gradients: Sequence[tf.Tensor], compression: str, name: str = "") -> list[tf.Tensor]:
        sent = [tf.cast(g, tf.float16) for g in gradients]
        self.sent = self.sent or sent
        return [tf.cast(g, tf.float32) for g in sent]


@pytest.mark.parametrize("recompute", ["none", "blocks"])
def test_gradients_of_upper_layers_can_travel_before_those_of_lower_layers_are_begun(recompute: str) -> None:
    comm, config, model = Traced(), TrainingConfig(recompute=recompute), small_model()
    TrainStep(model, make_optimizer(config.optimizer, config.precision), config, comm)(*batch(), 0)
    names = [v.name for v in model.trainable_variables]
    lowest = comm.sent[names.index(next(n for n in names if "conv" in n))].op
    before, waiting = set(), [lowest]
    while waiting:
        operation = waiting.pop()
        if operation not in before:
            before.add(operation)
            waiting += [t.op for t in operation.inputs] + list(operation.control_inputs)
    late = [n for n, g in zip(names, comm.sent, strict=True) if g.op not in before]
    assert len(late) < 0.1 * len(names), late


def test_weight_decay_shrinks_kernels_and_leaves_norms_and_biases_alone() -> None:
    decaying = OptimizerConfig(name="sgd", momentum=0.0, learning_rate=0.1, weight_decay=0.5)
    model = small_model()
    _, plain = change_of(model, train_step(model, SGD), *batch(), 1)
    step = train_step(model, SGD.model_copy(update={"optimizer": decaying}))
    _, decayed = change_of(model, step, *batch(), 1)
    sizes = np.cumsum([v.shape.num_elements() for v in model.trainable_variables])[:-1]
    parts = zip(model.trainable_variables, np.split(plain, sizes), np.split(decayed, sizes), strict=True)
    for variable, without, with_decay in parts:
        expected = 0.0 if "kernel" not in variable.name else -0.05 * variable.numpy().ravel()
        np.testing.assert_allclose(with_decay - without, expected, atol=1e-5, err_msg=variable.name)


def test_a_clipped_gradient_is_no_longer_than_was_asked() -> None:
    clipped = OptimizerConfig(name="sgd", momentum=0.0, learning_rate=0.1, clip_norm=0.01)
    model = small_model()
    step = train_step(model, SGD.model_copy(update={"optimizer": clipped}))
    _, change = change_of(model, step, *batch(), 1)
    assert np.linalg.norm(change) == pytest.approx(0.001, rel=1e-2)


@pytest.mark.parametrize(("norm", "learns"), [("group", False), ("frozen", False), ("batch", True)])
def test_only_statistics_that_are_learned_are_averaged_over_ranks(norm: str, learns: bool) -> None:
    model = small_model(SMALL.model_copy(update={"norm": norm}))
    assert model.non_trainable_variables, "the first layer of a resnet keeps its stored statistics"
    assert bool(moving_statistics(model)) == learns


def test_bytes_on_the_wire_follow_the_compression_and_the_number_of_ranks() -> None:
    model = small_model(SMALL.model_copy(update={"norm": "batch"}))
    count = sum(int(np.prod(v.shape)) for v in model.trainable_variables)
    statistics = 4 * sum(int(np.prod(v.shape)) for v in model.non_trainable_variables)
    expected = [width * count + statistics + 8 for width in (4, 2, 2)]
    assert [allreduce_bytes(model, c) for c in ("none", "fp16", "bf16")] == expected
    assert [wire_bytes(1000, n) for n in (1, 2, 4)] == [0, 1000, 1500]


def test_a_forecast_separates_what_every_pass_costs_from_what_its_arithmetic_costs() -> None:
    speed = fit_speed([(1e9, 0.6), (16e9, 4.4)])
    assert speed.fixed + speed.per_flop * 1e9 == pytest.approx(0.6)
    assert speed.fixed + speed.per_flop * 16e9 == pytest.approx(4.4)
    assert fit_speed([(2e9, 1.0)]) == fit_speed([(1e9, 0.1), (2e9, 1.0)]) == Speed(0.0, 0.5e-9)
