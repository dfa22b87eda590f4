"""Backbones: an image classification network as feature maps, with its weights, stride and norm as configured.

The networks are those of segmentation-models and Keras' Xception. A backbone is built as published, its weights are
read, and then it is rebuilt by `dilation.py`. Reading HDF5 weights copies arrays; nothing in the file is executed.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path

from trainer.config.schema import ModelConfig
from trainer.errors import ModelError, nearest
from trainer.models.dilation import ChangeBranch, Dilated, dilate, residual_branches
from trainer.models.keras import keras, tf
from trainer.models.noise import NoiseSource, with_noise
from trainer.models.norms import AllReduce, norm_in_place_of

with contextlib.redirect_stdout(io.StringIO()):  # it prints a greeting, on every rank
    import segmentation_models

_BACKBONES = segmentation_models.Backbones
_STRIDES = (16, 8, 4, 2)  # of segmentation-models' feature layers, in its order
# The last map before each pooling; that at 1/4 is the one that DeepLab takes (arXiv 1802.02611).
_XCEPTION_LAYERS = ("block13_sepconv2_bn", "block4_sepconv2_bn", "block3_sepconv2_bn", "block1_conv2_act")
_IMAGENET = "imagenet"
BACKBONE_NAMES = tuple(sorted([*_BACKBONES.models, "xception"]))


def build_backbone(
    config: ModelConfig,
    strides: Sequence[int],
    output_stride: int,
    *,
    all_reduce: AllReduce | None,
    read_weights: bool,
    noise: NoiseSource | None = None,
) -> keras.Model:
    """The configured backbone: scaled image [B, H, W, 3] -> its maps at 1/strides, then the deepest at 1/output_stride.

    Args:
      strides: of the maps on the way, each one of 2, 4, 8, 16 and at most the output stride.
      output_stride: 32 leaves the network's strides as they are.
      all_reduce: for `norm: sync_batch`, see `SyncBatchNorm`.
      read_weights: False leaves `config.weights` unread, for a network that a checkpoint will fill.
      noise: what `config.stochastic_depth` draws from; None: a source of its own.
    Raises:
      ModelError: unknown name, weights that are missing, unreadable, of another network or not to be downloaded, or
        stochastic depth without residual blocks.
    """
    network = _published(config.backbone, config.weights if read_weights else None)
    dilated = dilate(
        network,
        output_stride,
        lambda norm, name: norm_in_place_of(norm, config.norm, name, all_reduce),
        _branch_dropper(network, config, noise or NoiseSource()),
    )
    layers = [_layer_at(stride, config.backbone, network, dilated) for stride in strides]
    layers.append(network.layers[-1].name)
    return keras.Model(dilated.image, [dilated.features[layer] for layer in layers], name="backbone")


def _branch_dropper(network: keras.Model, config: ModelConfig, noise: NoiseSource) -> ChangeBranch | None:
    """Stochastic depth: what becomes of the branch of a residual block."""
    if config.stochastic_depth == 0:
        return None
    if not residual_branches(network):
        raise ModelError(
            f"{config.backbone} has no residual blocks that could be left out",
            where="model.stochastic_depth",
            fix="set model.stochastic_depth=0, or choose a backbone with them, e.g. resnet50 or mobilenetv2",
        )

    def drop(branch: tf.Tensor, depth: float, name: str) -> tf.Tensor:
        return with_noise(branch, config.stochastic_depth * depth, "patch", noise, f"{name}_branch")

    return drop


def _layer_at(stride: int, name: str, network: keras.Model, dilated: Dilated) -> str:
    """The layer whose map segmentation-models' decoders take at 1/stride."""
    layers = _XCEPTION_LAYERS if name == "xception" else _BACKBONES.get_feature_layers(name, n=len(_STRIDES))
    layer = layers[_STRIDES.index(stride)]
    layer = network.layers[layer].name if isinstance(layer, int) else layer
    if dilated.strides[layer] != stride:
        raise ModelError(
            f"the map that the decoder needs at 1/{stride} is at 1/{dilated.strides[layer]} in {name}",
            where="model.backbone",
            fix="choose another backbone, e.g. resnet50 or mobilenetv2",
        )
    return layer


def _published(name: str, weights: str | None) -> keras.Model:
    """The network as published, without its classifier, with weights from `weights` (or drawn at random)."""
    if name not in BACKBONE_NAMES:
        raise ModelError(
            f"there is no backbone '{name}'",
            where="model.backbone",
            fix=f"{nearest(name, BACKBONE_NAMES)}\n  all: {', '.join(BACKBONE_NAMES)}",
        )
    if weights == _IMAGENET:
        return _download(name)
    network = _construct(name, None)
    if weights is not None:
        _read_weights(network, name, Path(weights))
    return network


def _construct(name: str, weights: str | None) -> keras.Model:
    kwargs = {"input_shape": (None, None, 3), "weights": weights, "include_top": False}
    if name == "xception":
        return keras.applications.Xception(**kwargs)
    modules = {m: getattr(keras, m) for m in ("backend", "layers", "models", "utils")}
    return _BACKBONES.get_backbone(name, **kwargs, **modules)


def _download(name: str) -> keras.Model:
    try:
        return _construct(name, _IMAGENET)
    except Exception as error:  # Keras' get_file raises a bare Exception; its message holds the URL
        raise ModelError(
            f"the ImageNet weights of {name} could not be had: {_first_line(error)}",
            where="model.weights",
            fix="download the 'notop' HDF5 file where a network exists and give it: model.weights=/path/to/file.h5, "
            "or train from random weights: model.weights=null",
        ) from error


def _read_weights(network: keras.Model, name: str, path: Path) -> None:
    """Fill a network from a Keras HDF5 file of the same network without its classifier."""
    fix = f"give the 'notop' weights of {name} in Keras HDF5 (.h5), or choose the backbone that the file belongs to"
    if not path.is_file():
        raise ModelError("there is no such weights file", where=str(path), fix=fix)
    if path.suffix not in (".h5", ".hdf5"):  # Keras takes any other name for a TensorFlow checkpoint
        raise ModelError("backbone weights are HDF5 files named .h5 or .hdf5", where=str(path), fix=fix)
    try:
        network.load_weights(str(path))
    except Exception as error:  # h5py and Keras raise OSError, ValueError, KeyError, ... for a file that does not fit
        what = f"these weights do not fit backbone {name}: {_first_line(error)}"
        raise ModelError(what, where=str(path), fix=fix) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
