"""What every network does that a configuration can name; DeepLab's own properties are in test_models_deeplab.py."""

from typing import get_args

import numpy as np
import pytest
import segmentation_models

from trainer.config.architectures import ARCHITECTURES, ArchitectureName
from trainer.config.schema import LossConfig, ModelConfig
from trainer.models import build_model, segmentation_loss
from trainer.models.architectures import NETWORKS
from trainer.models.keras import keras, tf
from trainer.models.layers import Enlarge, MeanOfParts
from trainer.models.memory.cost import pass_cost
from trainer.models.noise import Noise, noise_seed
from trainer.models.norms import FrozenBatchNorm, GroupNorm
from trainer.models.pixels import PixelScaling
from trainer.models.recompute import recomputing

NEW = [name for name in NETWORKS if name != "deeplabv3plus"]
SMALL = {"backbone": "resnet18", "decoder_channels": 64}
NOISY = {"dropout": 0.1, "decoder_dropout": 0.1, "stochastic_depth": 0.1}


def _build(architecture, **config):
    keras.utils.set_random_seed(1)
    return build_model(ModelConfig(architecture=architecture, **{**SMALL, **config}), 2)


@pytest.fixture(scope="module", params=NEW)
def network(request):
    """Group norm, and all random layers."""
    return _build(request.param, **NOISY)


def _dark_half(batch=1, size=64):
    """Patches whose right half is darker and of another class."""
    images = np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), dtype=np.uint8)
    images[:, :, size // 2 :] //= 4
    labels = np.zeros((batch, size, size), np.uint8)
    labels[:, :, size // 2 :] = 1
    return tf.constant(images), tf.constant(labels)


def _gradients(forward, weights, batch=1):
    images, labels = _dark_half(batch)
    with tf.GradientTape() as tape:
        loss, _ = segmentation_loss(forward(images), labels, LossConfig())
    return loss, tape.gradient(loss, weights)


def _layers(model):
    return [part for part in model.submodules if isinstance(part, keras.layers.Layer)]


def test_what_the_configuration_names_is_what_there_is():
    assert set(get_args(ArchitectureName)) == set(ARCHITECTURES) == set(NETWORKS)
    assert not any(set(a.idle) - set(ModelConfig.model_fields) for a in ARCHITECTURES.values())


# --- Each network, built once -----------------------------------------------------------------------------------------


def test_the_same_weights_take_any_patch_size(network):
    for rows, columns in ((64, 64), (96, 160)):
        images = np.random.default_rng(0).integers(0, 256, (2, rows, columns, 3), dtype=np.uint8)
        logits = network(images)
        assert logits.shape == (2, rows, columns, 2) and logits.dtype == tf.float32
        assert np.isfinite(logits).all() and np.std(logits) > 0


def test_every_norm_is_a_group_norm_but_that_of_the_colours(network):
    norms = [x for x in _layers(network) if isinstance(x, (GroupNorm, keras.layers.BatchNormalization))]
    others = [x for x in norms if not isinstance(x, GroupNorm)]
    assert len(norms) > 10 and all(isinstance(x, FrozenBatchNorm) and x.gamma is None for x in others)
    assert [x.name for x in others] == ([] if network.name == "resunet" else ["bn_data"])


def test_every_rate_has_its_random_layers(network):
    assert {x.unit for x in _layers(network) if isinstance(x, Noise)} == {"value", "channel", "patch"}


def test_gradients_are_the_same_when_segments_are_computed_again(network):
    noise_seed(network).assign([5, 6])
    loss, gradients = _gradients(lambda x: network(x, training=True), network.trainable_variables)
    loss_again, again = _gradients(recomputing(network), network.trainable_variables)
    assert float(abs(loss - loss_again)) <= 1e-6 * float(loss)
    expected, found = (np.concatenate([np.ravel(g) for g in gs]) for gs in (gradients, again))
    assert np.linalg.norm(found - expected) <= 1e-5 * np.linalg.norm(expected) > 0


def test_a_few_steps_at_batch_one_learn_one_patch(network):
    weights = network.trainable_variables
    before = [w.numpy() for w in weights]
    optimizer = keras.optimizers.Adam(1e-3)
    losses = []
    for step in range(5):
        noise_seed(network).assign([5, step])  # other masks each step: a block dropped in all of them would not learn
        loss, gradients = _gradients(lambda x: network(x, training=True), weights)
        optimizer.apply_gradients(zip(gradients, weights, strict=True))
        losses.append(float(loss))
    assert losses[-1] < 0.75 * losses[0]
    assert all(np.any(w.numpy() != old) for w, old in zip(weights, before, strict=True)), "every weight learns"


# --- Norms, precision, seeds, memory ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "norm", "policy"),
    [
        ("unet", "sync_batch", "mixed_bfloat16"),
        ("pspnet", "batch", "mixed_bfloat16"),
        ("resunet", "frozen", "mixed_float16"),
    ],
)
def test_norms_and_precisions_go_together_and_logits_stay_float32(architecture, norm, policy):
    keras.mixed_precision.set_global_policy(policy)
    model = _build(architecture, norm=norm, backbone="vgg16")
    assert model.get_layer("classifier").input.dtype == policy.removeprefix("mixed_")
    assert {model.output.dtype, *(w.dtype for w in model.trainable_weights)} == {tf.float32}
    loss, gradients = _gradients(lambda x: model(x, training=True), model.trainable_variables, batch=2)
    assert np.isfinite(loss) and all(np.isfinite(g).all() for g in gradients)


def test_an_equal_seed_gives_equal_weights_of_equal_names():
    first, second = (_build("unet", backbone="vgg16").weights for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert a.name == b.name
        np.testing.assert_array_equal(a, b)


def test_memory_is_predicted_for_a_network_with_maps_as_large_as_the_patch():
    model = _build("resunet")
    kept, again = (pass_cost(model, 128, 1, recompute) for recompute in (False, True))
    assert kept.live_bytes > 4 * 128**2 * (16 + 16 + 48), "the finest maps at least"
    assert again.live_bytes < 0.7 * kept.live_bytes and again.flops > kept.flops


# --- The decoders of segmentation-models ------------------------------------------------------------------------------

THEIR_NAMES = {
    "centre_a": "center_block1",
    "centre_b": "center_block2",
    "pyramid_deepest": "fpn_stage_p5_pre_conv",
    **{f"pyramid_{2**n}": f"fpn_stage_p{n + 1}_conv" for n in range(1, 5)},
    **{f"pyramid_{2**n}{x}": f"segm_stage{n + 1}{x}" for n in range(1, 5) for x in "ab"},
    "pyramid_project": "final_stage",
}


@pytest.mark.parametrize(
    ("architecture", "theirs", "last", "settings"),
    [
        ("unet", "Unet", "decoder_stage4b_relu", {"decoder_filters": (64, 32, 16, 8, 4)}),
        ("linknet", "Linknet", "decoder_stage4c_relu", {}),
        ("fpn", "FPN", "final_stage_relu", {"pyramid_block_filters": 64, "pyramid_aggregation": "sum"}),
    ],
)
def test_a_decoder_computes_what_that_of_segmentation_models_does(architecture, theirs, last, settings):
    published = getattr(segmentation_models, theirs)("vgg16", encoder_weights=None, **settings)
    ours = _build(architecture, backbone="vgg16", norm="batch", dropout=0.0)
    backbone = ours.get_layer("backbone")
    rng = np.random.default_rng(3)

    def copy(layer, name):
        layer.set_weights([w + rng.uniform(0, 0.2, w.shape) * (w.ndim == 1) for w in layer.get_weights()])
        published.get_layer(name).set_weights(layer.get_weights())

    for layer in [*backbone.layers, *ours.layers]:
        name = layer.name.removesuffix("_norm")
        name = THEIR_NAMES.get(name, name)
        if layer.weights and layer.name not in ("backbone", "classifier"):
            is_backbone, is_norm = layer in backbone.layers, layer.name.endswith("_norm")
            whole = is_backbone or name.endswith("_conv")
            copy(layer, name if whole else f"{name}_bn" if is_norm else f"{name}_conv")
    image = tf.constant(rng.uniform(0, 256, (1, 64, 96, 3)), tf.float32)
    expected = keras.Model(published.input, published.get_layer(last).output)(PixelScaling("tf")(image))
    found = keras.Model(ours.input, ours.get_layer("classifier").input)(image)
    assert np.std(expected) > 0
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


# --- Layers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("narrow", ["float32", "bfloat16"])
def test_enlarging_is_nearest_upsampling_with_its_gradient(narrow):
    x = tf.cast(tf.random.stateless_normal([2, 3, 5, 4], [1, 2]), narrow)
    dy = tf.cast(tf.random.stateless_normal([2, 12, 20, 4], [3, 4]), narrow)
    results = []
    for layer in (Enlarge(4, dtype=narrow), keras.layers.UpSampling2D(4, dtype=narrow)):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x)
        results.append((y, tape.gradient(y, x, dy)))
    np.testing.assert_array_equal(results[0][0], results[1][0])
    np.testing.assert_allclose(*(tf.cast(r[1], tf.float32) for r in results), atol=1e-5 if narrow == "float32" else 0.1)


def test_means_of_parts_are_those_of_pooling_where_parts_are_whole_pixels():
    x = tf.random.stateless_normal([2, 12, 18, 3], [1, 2])
    for parts in (1, 2, 3, 6):
        pooled = keras.layers.AveragePooling2D((12 // parts, 18 // parts))(x)
        np.testing.assert_allclose(MeanOfParts(parts)(x), pooled, atol=1e-6)


def test_a_pixel_on_the_border_of_parts_counts_in_both():
    line = tf.constant([[[[1.0], [2.0], [4.0], [8.0], [16.0]]]])  # of one row
    np.testing.assert_allclose(MeanOfParts(2)(line)[0, 0, :, 0], [(1 + 2 + 4 / 2) / 2.5, (4 / 2 + 8 + 16) / 2.5])
    few = MeanOfParts(6)(line)
    assert few.shape == (1, 6, 6, 1)
    np.testing.assert_allclose(tf.reduce_mean(few), 31 / 5, rtol=1e-6)
