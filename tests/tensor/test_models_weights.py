"""Backbone weights: from a local file, and what is said when they cannot be had."""

from pathlib import Path

import numpy as np
import pytest

from trainer.config.schema import ModelConfig
from trainer.errors import ModelError
from trainer.models.backbones import _BACKBONES, _construct, build_backbone
from trainer.models.keras import keras, tf
from trainer.models.norms import FrozenBatchNorm, GroupNorm
from trainer.models.pixels import PixelScaling, pixel_mode

SQUEEZENET = (
    Path(__file__).parents[3] / "shared/fixtures/weights/squeezenet_weights_tf_dim_ordering_tf_kernels_notop.h5"
)


def _build(read_weights=True, **config):
    return build_backbone(ModelConfig(**config), [4], 16, all_reduce=None, read_weights=read_weights)


@pytest.fixture
def resnet_file(tmp_path):
    network = _construct("resnet18", None)
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights([w + np.arange(w.size) % 7 / 10 + 0.1 for w in layer.get_weights()])
    path = tmp_path / "resnet18_notop.h5"
    network.save_weights(path)
    return path, network


def test_a_local_file_fills_convolutions_and_norms_of_every_policy(resnet_file):
    path, network = resnet_file
    frozen, group = (_build(backbone="resnet18", weights=str(path), norm=norm) for norm in ("frozen", "group"))
    for model in (frozen, group):
        np.testing.assert_array_equal(model.get_layer("conv0").kernel, network.get_layer("conv0").kernel)
        np.testing.assert_array_equal(model.get_layer("bn1").gamma, network.get_layer("bn1").gamma)
        np.testing.assert_array_equal(model.get_layer("bn1").beta, network.get_layer("bn1").beta)
    assert isinstance(group.get_layer("bn1"), GroupNorm)
    np.testing.assert_array_equal(frozen.get_layer("bn1").moving_mean, network.get_layer("bn1").moving_mean)


def test_the_norm_over_three_colours_keeps_its_statistics_under_group_norm(resnet_file):
    path, network = resnet_file
    norm = _build(backbone="resnet18", weights=str(path)).get_layer("bn_data")
    assert isinstance(norm, FrozenBatchNorm)
    np.testing.assert_array_equal(norm.moving_variance, network.get_layer("bn_data").moving_variance)


def test_a_network_for_a_checkpoint_reads_no_file(tmp_path):
    _build(read_weights=False, backbone="resnet18", weights=str(tmp_path / "gone.h5"))


@pytest.mark.skipif(not SQUEEZENET.is_file(), reason=f"{SQUEEZENET} is not here")
def test_real_weights_of_another_network_are_refused():
    with pytest.raises(ModelError, match=r"squeezenet.*do not fit backbone resnet18: .*expected 40 layers, found 25"):
        _build(backbone="resnet18", weights=str(SQUEEZENET))


def test_weights_with_other_shapes_are_refused(tmp_path):
    _construct("vgg16", None).save_weights(tmp_path / "w.h5")
    with pytest.raises(ModelError, match="do not fit backbone vgg19"):
        _build(backbone="vgg19", weights=str(tmp_path / "w.h5"))


@pytest.mark.parametrize(
    ("name", "says"), [("gone.h5", "no such"), ("text.h5", "do not fit"), ("text.pkl", "named .h5")]
)
def test_a_file_that_is_no_weights_file_is_named(tmp_path, name, says):
    for written in ("text.h5", "text.pkl"):
        (tmp_path / written).write_text("not HDF5")
    with pytest.raises(ModelError, match=says) as error:
        _build(backbone="resnet18", weights=str(tmp_path / name))
    assert name in str(error.value) and "notop" in error.value.fix


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2", "efficientnetb0", "xception"])
def test_offline_imagenet_says_so_and_how_to_give_a_file(name, tmp_path, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ModelError, match="https://") as error:
        _build(backbone=name, weights="imagenet")
    assert "model.weights=/path" in error.value.fix


def test_an_unknown_backbone_gets_the_nearest_name():
    with pytest.raises(ModelError, match="did you mean 'resnet50'"):
        _build(backbone="resnet5o")


def test_pixel_scaling_is_what_each_family_was_trained_with():
    image = np.random.default_rng(0).integers(0, 256, (1, 4, 4, 3)).astype("f4")
    for name in _BACKBONES.models:
        preprocess = _BACKBONES.get_preprocessing(name)
        modules = {m: getattr(keras, m) for m in ("backend", "layers", "models", "utils")}
        expected = preprocess(image.copy(), **modules)
        np.testing.assert_allclose(PixelScaling(pixel_mode(name, True))(image), expected, atol=1e-4, err_msg=name)


def test_without_weights_pixels_lie_between_minus_one_and_one():
    scaled = PixelScaling(pixel_mode("resnet50", False))(tf.constant([[[[0.0, 127.5, 255.0]]]]))
    np.testing.assert_allclose(scaled, [[[[-1.0, 0.0, 1.0]]]])
