"""Random layers: what they drop, how often, and that their masks can be drawn again."""

import numpy as np
import pytest

from trainer.config.schema import ModelConfig
from trainer.errors import ModelError
from trainer.models import build_model
from trainer.models.backbones import _construct, build_backbone
from trainer.models.dilation import dilate, residual_branches
from trainer.models.keras import keras, tf
from trainer.models.noise import Noise, NoiseSource, noise_seed

SMALL = {"aspp_channels": 16, "decoder_channels": 16}
NOISY = {"backbone": "resnet18", "dropout": 0.5, "decoder_dropout": 0.3, "stochastic_depth": 0.4}


def _build(**config):
    keras.utils.set_random_seed(1)
    return build_model(ModelConfig(**{**SMALL, **config}), 2)


def _images(batch=2):
    return np.random.default_rng(0).integers(0, 256, (batch, 64, 64, 3), dtype=np.uint8)


def _noises(model):
    return [layer for layer in model.submodules if isinstance(layer, Noise)]


@pytest.mark.parametrize(
    ("unit", "shape"), [("value", (4, 16, 16, 32)), ("channel", (64, 3, 3, 64)), ("patch", (4096, 2, 2, 3))]
)
def test_a_share_is_dropped_as_whole_units_and_the_mean_stays(unit, shape):
    y = Noise(0.3, unit, NoiseSource())(tf.ones(shape), training=True).numpy()
    assert set(np.unique(y)) == {np.float32(0), np.float32(1 / 0.7)}
    whole = {"value": y, "channel": y[:, :1, :1], "patch": y[:, :1, :1, :1]}[unit]
    np.testing.assert_array_equal(y, np.broadcast_to(whole, shape))
    assert abs((whole == 0).mean() - 0.3) < 0.03


def test_masks_follow_the_seed_and_differ_between_layers_and_steps():
    source = NoiseSource()
    layers = [Noise(0.5, "value", source) for _ in range(3)]
    masks = {}
    for seed in [(0, 0), (0, 1), (0, 2), (1, 0), (0, 0)]:
        source.seed.assign(seed)
        for layer in layers:
            mask = layer(tf.ones([1, 8, 8, 4]), training=True).numpy().tobytes()
            assert masks.setdefault((seed, layer.number), mask) == mask
    assert len(set(masks.values())) == len(masks) == 12


def test_a_network_repeats_its_training_pass_and_is_not_random_when_it_predicts():
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    model, images = _build(**NOISY), _images()
    seed = noise_seed(model)
    train = tf.function(lambda: model(images, training=True))
    first = train().numpy()
    np.testing.assert_array_equal(train(), first)
    seed.assign([3, 7])
    assert np.abs(train() - first).max() > 1e-3
    np.testing.assert_array_equal(model(images), model(images))
    predicted = model(images).numpy()
    seed.assign([0, 0])
    np.testing.assert_array_equal(model(images), predicted)


def test_the_seed_is_in_no_checkpoint_and_rates_of_zero_leave_no_layer():
    noisy = _build(**NOISY)
    quiet = _build(backbone="resnet18", dropout=0.0)
    assert noise_seed(noisy) is not None and not any(v is noise_seed(noisy) for v in noisy.variables)
    assert noise_seed(quiet) is None and not _noises(quiet)
    ours, theirs = ({v.name: v.numpy() for v in model.variables} for model in (noisy, quiet))
    assert sorted(ours) == sorted(theirs)
    for name, value in ours.items():
        np.testing.assert_array_equal(value, theirs[name])


def test_later_blocks_are_left_out_more_often():
    config = ModelConfig(backbone="resnet18", stochastic_depth=0.4)
    depths = _noises(build_backbone(config, [4], 16, all_reduce=None, read_weights=True))
    rates = [n.rate for n in sorted(depths, key=lambda n: n.number)]
    np.testing.assert_allclose(rates, 0.4 * np.arange(1, 9) / 8)


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2", "seresnet18"])
def test_the_branch_of_a_block_is_left_out_and_never_its_shortcut(name):
    network = _construct(name, None)
    branches = residual_branches(network)
    sources = {layer.output.name: layer for layer in network.layers}
    adds = [layer.name for layer in network.layers if isinstance(layer, keras.layers.Add)]
    assert len(adds) > 5 and sorted(branches) == sorted(adds)

    def convolutions_to(tensor, goal, most=12):  # along first inputs, as far as the other side of the Add
        count = 0
        for _ in range(60):
            if tensor.name == goal.name:
                return count
            layer = sources[tensor.name]
            count += "Conv" in type(layer).__name__
            tensor = tf.nest.flatten(layer.input)[0]
        return None

    for add, (side, _) in branches.items():
        branch, shortcut = network.get_layer(add).input[side], network.get_layer(add).input[1 - side]
        assert convolutions_to(shortcut, branch) is None  # the branch is nobody's ancestor
        assert convolutions_to(branch, shortcut) or "Add" not in type(sources[shortcut.name]).__name__


def test_stochastic_depth_without_residual_blocks_is_refused():
    with pytest.raises(ModelError, match=r"model\.stochastic_depth: vgg16 has no residual blocks"):
        _build(backbone="vgg16", stochastic_depth=0.1)


def test_a_networks_own_dropout_is_left_out():
    published = _construct("efficientnetb0", None)
    assert any(isinstance(layer, keras.layers.Dropout) for layer in published.layers)
    dilated = dilate(published, 16, lambda norm, name: type(norm).from_config({**norm.get_config(), "name": name}))
    rebuilt = keras.Model(dilated.image, dilated.features[published.layers[-1].name])
    assert not any(isinstance(layer, keras.layers.Dropout) for layer in rebuilt.layers)
