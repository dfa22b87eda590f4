"""A training pass that is computed in segments: the same numbers, and less kept."""

import numpy as np
import pytest

from trainer.config.schema import LossConfig, ModelConfig
from trainer.models import build_model, segmentation_loss
from trainer.models.graph import calls_of, sizes_of
from trainer.models.keras import keras, tf
from trainer.models.noise import noise_seed
from trainer.models.recompute import _segments, recomputing

SMALL = {"aspp_channels": 16, "decoder_channels": 16, "dropout": 0.0}


def _build(**config):
    keras.utils.set_random_seed(1)
    return build_model(ModelConfig(**{**SMALL, **config}), 2)


def _loss_and_gradients(model, forward, size=(32, 48)):
    rng = np.random.default_rng(0)
    images = tf.constant(rng.integers(0, 256, (2, *size, 3), np.uint8))
    labels = tf.constant(rng.integers(0, 2, (2, *size), np.uint8))

    @tf.function
    def run(images, labels):
        with tf.GradientTape() as tape:
            loss, _ = segmentation_loss(forward(images), labels, LossConfig())
        return loss, tape.gradient(loss, model.trainable_variables)

    return run(images, labels)


def _flat(gradients):
    return np.concatenate([np.ravel(g) for g in gradients]).astype("f8")


def _training_pass(model):
    return lambda images: model(images, training=True)


@pytest.mark.parametrize(
    ("backbone", "policy", "tolerance"),
    [
        ("resnet18", "float32", 1e-6),
        # the gradients of a map that several layers read are added in another order, and rounded in between
        pytest.param("resnet18", "mixed_bfloat16", 0.02, marks=pytest.mark.long),
    ],
)
def test_loss_and_gradients_are_those_of_the_network(backbone, policy, tolerance):
    keras.mixed_precision.set_global_policy(policy)
    model = _build(backbone=backbone, stochastic_depth=0.3, dropout=0.2, decoder_dropout=0.2)
    noise_seed(model).assign([5, 6])  # masks must be the same when a segment is computed again
    loss, gradients = _loss_and_gradients(model, _training_pass(model))
    loss_again, gradients_again = _loss_and_gradients(model, recomputing(model))
    assert abs(float(loss_again - loss)) <= tolerance * float(loss)
    expected, found = _flat(gradients), _flat(gradients_again)
    assert np.linalg.norm(found - expected) <= tolerance * np.linalg.norm(expected) > 0


@pytest.mark.long
@pytest.mark.parametrize("backbone", ["efficientnetb0", "seresnet18", "densenet121", "xception"])
def test_every_family_is_cut_into_segments_that_hold_each_layer_once(backbone):
    model = _build(backbone=backbone)
    calls = calls_of(model)
    segments = _segments(calls, sizes_of(calls, id(model.input)))
    inner = model.get_layer("backbone")
    expected = {x.name for x in [*model.layers, *inner.layers] if not isinstance(x, keras.layers.InputLayer)} - {
        "backbone"
    }
    assert sorted(call.layer.name for s in segments for call in s) == sorted(expected)
    assert len(segments) >= 9 and max(map(len, segments)) < 60


def test_only_what_passes_between_segments_is_kept_for_the_backward_pass():
    """Of the graph before optimisation: the backward pass reads forward tensors of all layers, or those of few."""
    model = _build(backbone="resnet18")

    def forward_convolutions(forward):
        @tf.function
        def run(images):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(forward(images))
            return tape.gradient(loss, model.trainable_variables)

        graph = run.get_concrete_function(tf.TensorSpec([1, None, None, 3])).graph
        return sum(op.type == "Conv2D" for op in graph.get_operations())

    kept, again = forward_convolutions(_training_pass(model)), forward_convolutions(recomputing(model))
    assert 1.7 * kept < again < 2 * kept  # all but the last segment are there a second time
