"""The output stride of backbones: the same function as the original, on a finer grid."""

import numpy as np
import pytest

from trainer.config.schema import ModelConfig
from trainer.errors import ModelError
from trainer.models.backbones import _construct, build_backbone
from trainer.models.dilation import DilatedPooling, dilate
from trainer.models.keras import keras, tf


def _same_norm(norm, name):
    return type(norm).from_config({**norm.get_config(), "name": name})


def _image(size=128):
    return tf.constant(np.random.default_rng(0).normal(size=(1, size, size, 3)), tf.float32)


def _draw_statistics(network):
    """Statistics unlike those of a new layer, so that a lost weight would show."""
    rng = np.random.default_rng(1)
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.moving_mean.assign(rng.normal(0, 0.3, layer.moving_mean.shape))
            layer.moving_variance.assign(rng.uniform(0.5, 1.5, layer.moving_mean.shape))
            layer.beta.assign(rng.normal(0, 0.3, layer.beta.shape))


def _deepest(network, output_stride):
    dilated = dilate(network, output_stride, _same_norm)
    return keras.Model(dilated.image, dilated.features[network.layers[-1].name])


# resnet: explicit padding. mobilenetv2: one-sided padding and depthwise. densenet: mean pooling. vgg: max pooling.
@pytest.mark.parametrize(
    ("name", "output_strides"),
    [("resnet18", (16, 8)), ("mobilenetv2", (16, 8)), ("densenet121", (8,)), ("vgg16", (16, 8))],
)
def test_a_dilated_backbone_equals_the_original_on_the_original_grid(name, output_strides):
    network = _construct(name, None)
    _draw_statistics(network)
    original = network(_image()).numpy()
    assert original.shape[1:3] == (4, 4) and original.std() > 1e-3
    for output_stride in output_strides:
        dilated = _deepest(network, output_stride)
        fine = dilated(_image()).numpy()
        step = 32 // output_stride
        pointwise = [layer for layer in dilated.layers if getattr(layer, "kernel_size", None) == (1, 1)]
        assert all(layer.dilation_rate == (1, 1) for layer in pointwise)  # else TensorFlow cuts the map up for them
        assert fine.shape[1:3] == (128 // output_stride,) * 2
        np.testing.assert_allclose(fine[:, ::step, ::step], original, atol=1e-5 * np.abs(original).max())


def test_a_dilated_xception_equals_its_padded_self_at_stride_32():
    """Its published stem is unpadded, so the original's grid does not divide the patch; ours does."""
    network = _construct("xception", None)
    _draw_statistics(network)
    coarse = _deepest(network, 32)(_image()).numpy()
    for output_stride in (16, 8):
        step = 32 // output_stride
        fine = _deepest(network, output_stride)(_image()).numpy()
        assert fine.shape[1:3] == (128 // output_stride,) * 2
        np.testing.assert_allclose(fine[:, ::step, ::step], coarse, atol=1e-5 * np.abs(coarse).max())


@pytest.mark.parametrize(
    ("name", "output_stride"), [("seresnet18", 8), ("seresnet18", 16), ("mobilenet", 8), ("efficientnetb0", 16)]
)
def test_feature_maps_lie_at_a_quarter_and_at_the_output_stride(name, output_stride):
    config = ModelConfig(backbone=name, norm="batch")
    backbone = build_backbone(config, [4], output_stride, all_reduce=None, read_weights=True)
    for size in (64, 128):
        low_level, deepest = backbone(_image(size))
        assert low_level.shape[1:3] == (size // 4, size // 4)
        assert deepest.shape[1:3] == (size // output_stride, size // output_stride)
        assert np.isfinite(deepest).all() and np.std(deepest) > 0


def test_layer_names_do_not_depend_on_what_was_built_before():
    config = ModelConfig(backbone="seresnet18", norm="frozen")
    first, second = (build_backbone(config, [4], 16, all_reduce=None, read_weights=True) for _ in range(2))
    assert [w.name for w in first.weights] == [w.name for w in second.weights]


@pytest.mark.parametrize(("kind", "keras_pooling"), [("max", "MaxPooling2D"), ("mean", "AveragePooling2D")])
def test_dilated_pooling_without_holes_equals_keras(kind, keras_pooling):
    x = _image(8) - 3.0
    ours = DilatedPooling(kind, (3, 3), 1, [(1, 1), (1, 1)])(x)
    np.testing.assert_allclose(ours, getattr(keras.layers, keras_pooling)(3, 1, "same")(x), atol=1e-6)


def test_a_network_that_cannot_be_stretched_is_refused_by_layer():
    image = keras.Input((None, None, 3))
    network = keras.Model(image, keras.layers.UpSampling2D(name="grow")(image))
    with pytest.raises(ModelError, match="grow"):
        dilate(network, 16, _same_norm)
