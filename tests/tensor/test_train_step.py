from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from trainer.config.schema import LossConfig, ModelConfig, OptimizerConfig, TrainingConfig
from trainer.errors import CheckpointError
from trainer.models import build_model, segmentation_loss
from trainer.models.keras import keras, tf
from trainer.runtime import SingleComm
from trainer.train.checkpoint import Progress, digest, load_checkpoint, save_checkpoint
from trainer.train.step import allreduce_bytes, make_optimizer, make_train_step

Trained = tuple[keras.Model, keras.optimizers.Optimizer, Path]
SMALL = ModelConfig(backbone="resnet18", aspp_channels=16, decoder_channels=16, dropout=0.0)


@pytest.fixture(autouse=True)
def float32_policy():
    yield
    keras.mixed_precision.set_global_policy("float32")


def small_model(config: ModelConfig = SMALL) -> keras.Model:
    keras.utils.set_random_seed(1)
    return build_model(config, 2)


def batch() -> tuple[tf.Tensor, tf.Tensor]:
    rng = np.random.default_rng(0)
    labels = np.zeros((2, 64, 64), np.uint8)
    labels[:, :, 32:] = 1
    labels[0, :5] = 255
    images = (labels[..., None] % 2 * 120 + rng.integers(0, 100, (2, 64, 64, 3))).astype(np.uint8)
    return tf.constant(images), tf.constant(labels)


def test_one_step_equals_plain_gradient_descent_applied_once() -> None:
    model = small_model()
    images, labels = batch()
    config = TrainingConfig(optimizer=OptimizerConfig(name="sgd", momentum=0.0, learning_rate=0.1))

    @tf.function
    def plain() -> tuple[tf.Tensor, list[tf.Tensor]]:
        with tf.GradientTape() as tape:
            loss, _ = segmentation_loss(model(images, training=True), labels, LossConfig())
        return loss, tape.gradient(loss, model.trainable_variables)

    loss, gradients = plain()
    before = [v.numpy() for v in model.trainable_variables]
    step = make_train_step(model, make_optimizer(config.optimizer, "float32"), config, SingleComm())
    assert float(step(images, labels)) == pytest.approx(float(loss), rel=1e-4)
    for variable, old, gradient in zip(model.trainable_variables, before, gradients, strict=True):
        update, expected = variable.numpy() - old, -0.1 * gradient.numpy()
        error = np.linalg.norm(update - expected) / (np.linalg.norm(expected) + 1e-6)
        assert error < 0.01, f"{variable.name}: {error}"  # a second application would make it 1


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("optimizer", ["adam"])
def test_every_precision_learns(precision: str, optimizer: str) -> None:
    keras.mixed_precision.set_global_policy(precision)
    model = small_model()
    config = TrainingConfig(precision=precision, optimizer=OptimizerConfig(name=optimizer, learning_rate=3e-3))
    step = make_train_step(model, make_optimizer(config.optimizer, precision), config, SingleComm())
    losses = [float(step(*batch())) for _ in range(12)]
    assert np.isfinite(losses).all()
    assert losses[-1] < 0.75 * losses[0]
    assert all(v.dtype == tf.float32 for v in model.trainable_variables)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_every_optimiser_learns(name: str) -> None:
    model = small_model()
    config = TrainingConfig(optimizer=OptimizerConfig(name=name, learning_rate=5e-3, weight_decay=1e-4))
    step = make_train_step(model, make_optimizer(config.optimizer, "float32"), config, SingleComm())
    losses = [float(step(*batch())) for _ in range(10)]
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
    make_train_step(model, optimizer, config, SingleComm())(*batch())
    assert digest(model) == before
    assert float(optimizer.loss_scale) < 3e38


def test_bytes_on_the_wire_follow_the_compression() -> None:
    model = small_model()
    count = sum(int(np.prod(v.shape)) for v in model.trainable_variables)
    assert [allreduce_bytes(model, c) for c in ("none", "fp16", "bf16")] == [4 * count, 2 * count, 2 * count]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A network after one step, its optimiser and their checkpoint, which no test changes."""
    model, config = small_model(), TrainingConfig()
    optimizer = make_optimizer(config.optimizer, "float32")
    optimizer.build(model.trainable_variables)
    make_train_step(model, optimizer, config, SingleComm())(*batch())
    path = tmp_path_factory.mktemp("checkpoint") / "a.safetensors"
    save_checkpoint(path, model, optimizer, Progress(1, 2))
    return model, optimizer, path


def test_a_checkpoint_restores_every_bit_of_network_and_optimiser(trained: Trained) -> None:
    model, optimizer, path = trained
    keras.utils.set_random_seed(9)
    other = build_model(SMALL, 2)
    other_optimizer = make_optimizer(OptimizerConfig(), "float32")
    other_optimizer.build(other.trainable_variables)
    assert digest(other, other_optimizer) != digest(model, optimizer)
    assert load_checkpoint(path, other, other_optimizer) == Progress(1, 2)
    assert digest(other, other_optimizer) == digest(model, optimizer)
    keras.utils.set_random_seed(9)
    alone = build_model(SMALL, 2)
    load_checkpoint(path, alone)
    assert digest(alone) == digest(model)
    assert [p.name for p in path.parent.iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize(
    "change", [{"backbone": "resnet34"}, {"aspp_channels": 24}, {"norm": "batch"}], ids=lambda c: str(c)
)
def test_a_checkpoint_of_another_architecture_is_refused_before_anything_changes(
    trained: Trained, change: dict[str, object]
) -> None:
    _, _, path = trained
    other = small_model(SMALL.model_copy(update=change))
    before = digest(other)
    with pytest.raises(CheckpointError, match="another architecture") as error:
        load_checkpoint(path, other)
    assert str(path) in str(error.value)
    assert digest(other) == before


def test_a_file_that_is_no_checkpoint_or_cut_short_is_named_and_nothing_is_executed(
    trained: Trained, tmp_path: Path
) -> None:
    model, _, path = trained
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    pickled = tmp_path / "pickle.safetensors"
    pickled.write_bytes(b"cos\nsystem\n(S'touch " + str(tmp_path / "owned").encode() + b"'\ntR.")
    for bad in (cut, pickled, tmp_path / "none.safetensors"):
        with pytest.raises(CheckpointError, match=bad.name):
            load_checkpoint(bad, model)
    assert not (tmp_path / "owned").exists()
