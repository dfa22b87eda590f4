"""Rebuild a Keras backbone at a smaller output stride: strides beyond it become dilation (atrous convolution).

The network is walked in graph order. Where a stride would go beyond the output stride it becomes 1, and every later
window (convolution, pooling, explicit zero padding) is stretched by the strides removed so far (Chen et al. 2017,
arXiv 1706.05587). Padding is placed so that the stretched network, on the original weights, equals the original one at
every pixel of the original's coarser grid, borders included; a test checks this. Squeeze-and-excitation is the
exception: its global mean runs over more pixels, so those networks (se*, efficientnet*) differ in value,
as any network with it does when its patch grows.

Every window also keeps `n / stride` pixels of `n`, so that patches divide evenly: an unpadded convolution (the stem of
keras' Xception) gets padding, as DeepLab's own Xception has.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from trainer.errors import ModelError
from trainer.models.keras import keras, tf
from trainer.models.norms import carry_over

_CONVOLUTIONS = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D, keras.layers.SeparableConv2D)
_POOLINGS = (keras.layers.MaxPooling2D, keras.layers.AveragePooling2D)
_GLOBAL = (keras.layers.GlobalAveragePooling2D, keras.layers.GlobalMaxPooling2D)
# Layers that keep each pixel in its place, or mix channels only. Anything else is refused, not guessed at.
_IN_PLACE = (
    keras.layers.Activation,
    keras.layers.ReLU,
    keras.layers.Add,
    keras.layers.Multiply,
    keras.layers.Concatenate,
    keras.layers.Reshape,  # of [B, C] to [B, 1, 1, C] in squeeze-and-excitation
    keras.layers.Lambda,  # channel slices, expand_dims and scaled sums in classification_models and inception
)
Pair = tuple[int, int]
ChangeBranch = Callable[[tf.Tensor, float, str], tf.Tensor]
"""(branch of a residual block, its place among the blocks in (0, 1], name of the Add) -> what is added instead."""


@dataclass(frozen=True)
class Grid:
    """How the pixels of a feature map lie in the patch."""

    stride: int = 1
    dilation: int = 1
    """Product of the strides removed so far: what every window is stretched by."""
    padding: Pair = (0, 0)
    """Rows and columns of explicit zero padding not yet taken up by a window, before stretching."""


@dataclass(frozen=True)
class Dilated:
    """The rebuilt network: its input, and the feature map (and stride) in place of each layer of the original."""

    image: tf.Tensor
    features: dict[str, tf.Tensor]
    strides: dict[str, int]


def dilate(
    network: keras.Model,
    output_stride: int,
    new_norm: Callable[[keras.layers.BatchNormalization, str], keras.layers.Layer],
    change_branch: ChangeBranch | None = None,
) -> Dilated:
    """Rebuild a network with another output stride and other norm layers; the weights are copied.

    The network's own dropout is left out: few have it (efficientnet's is stochastic depth), and a setting should mean
    the same for all.

    Args:
      network: functional, one input [B, None, None, 3], each layer called once.
      output_stride: a power of two; no feature map of the result has a larger stride.
      new_norm: (batch norm, name) -> the layer in its place; its weights are carried over.
      change_branch: changes the branch of each residual block before it is added.
    Raises:
      ModelError: the network has a layer that cannot be stretched.
    """
    image = keras.Input((None, None, 3), name="scaled_image")
    source = network.input
    tensors = {id(source): image}
    grids: dict[int, Grid | None] = {id(source): Grid()}
    names = _Names()
    features, strides = {}, {}
    branches = residual_branches(network) if change_branch else {}
    for layer in network.layers:
        if isinstance(layer, keras.layers.InputLayer):
            continue
        inputs = tf.nest.flatten(layer.input)
        x, name = [tensors[id(t)] for t in inputs], names.of(layer)
        if change_branch and layer.name in branches:
            side, depth = branches[layer.name]
            x[side] = change_branch(x[side], depth, name)
        y, grid = _rebuild(
            layer,
            name,
            x if isinstance(layer.input, list) else x[0],
            _common_grid(layer, [grids[id(t)] for t in inputs]),
            output_stride,
            new_norm,
        )
        tensors[id(layer.output)], grids[id(layer.output)] = y, grid
        features[layer.name], strides[layer.name] = y, grid.stride if grid else 0
    return Dilated(image, features, strides)


def residual_branches(network: keras.Model) -> dict[str, tuple[int, float]]:
    """Each residual Add of a network: which of its two inputs is the branch, and its place among them in (0, 1].

    The branch is the side with more convolutions behind it; the other is the block's input, or one convolution of it.
    """
    num_convolutions: dict[int, int] = {}
    branches = {}
    for layer in network.layers:
        before = [num_convolutions.get(id(t), 0) for t in tf.nest.flatten(layer.input)]
        num_convolutions[id(layer.output)] = max(before) + isinstance(layer, _CONVOLUTIONS)
        if isinstance(layer, keras.layers.Add) and len(before) == 2 and before[0] != before[1]:
            branches[layer.name] = before.index(max(before))
    return {name: (side, (n + 1) / len(branches)) for n, (name, side) in enumerate(branches.items())}


class _Names:
    """Layer names that do not depend on how many layers this process built before (`conv2d_4901` -> `conv2d_3`)."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def of(self, layer: keras.layers.Layer) -> str:
        kind = re.sub(r"(?<=[a-z0-9])(?=[A-Z][a-z])", "_", type(layer).__name__).lower()
        if not re.fullmatch(rf"{kind}(_\d+)?", layer.name):
            return layer.name
        self.counts[kind] = self.counts.get(kind, 0) + 1
        return f"{kind}_{self.counts[kind]}"


def _common_grid(layer: keras.layers.Layer, grids: list[Grid | None]) -> Grid | None:
    """The grid that all inputs share; None when none has an extent (after global pooling)."""
    spatial = {g for g in grids if g is not None}
    if len(spatial) > 1:
        raise ModelError(f"layer {layer.name} joins feature maps that lie differently: {sorted(map(str, spatial))}")
    return spatial.pop() if spatial else None


def _rebuild(layer, name: str, x, grid: Grid | None, output_stride: int, new_norm) -> tuple[tf.Tensor, Grid | None]:
    """Apply the new version of one layer to its new input."""
    if isinstance(layer, keras.layers.BatchNormalization):
        norm = new_norm(layer, name)
        y = norm(x)
        carry_over(layer, norm)
        return y, grid
    if isinstance(layer, keras.layers.Dropout):
        return x, grid
    if isinstance(layer, _GLOBAL):
        return _copy(layer, name)(x), None
    if grid is None or isinstance(layer, _IN_PLACE):
        return _apply(layer, _copy(layer, name), x), grid
    if isinstance(layer, keras.layers.ZeroPadding2D):
        return _pad_by_layer(layer, name, x, grid)
    if isinstance(layer, _CONVOLUTIONS + _POOLINGS):
        return _window(layer, name, x, grid, output_stride)
    raise ModelError(f"layer {layer.name} ({type(layer).__name__}) cannot be given another output stride")


def _copy(layer: keras.layers.Layer, name: str, **changes) -> keras.layers.Layer:
    if isinstance(layer, keras.layers.Lambda):  # its get_config would take the function apart into byte code
        return keras.layers.Lambda(layer.function, arguments=layer.arguments, name=name)
    return type(layer).from_config({**layer.get_config(), "name": name, **changes})


def _apply(layer: keras.layers.Layer, new: keras.layers.Layer, x) -> tf.Tensor:
    y = new(x)
    new.set_weights(layer.get_weights())
    return y


def _pad_by_layer(layer: keras.layers.ZeroPadding2D, name: str, x, grid: Grid) -> tuple[tf.Tensor, Grid]:
    rows, columns = layer.padding
    stretched = tuple(tuple(p * grid.dilation for p in side) for side in (rows, columns))
    padding = (grid.padding[0] + sum(rows), grid.padding[1] + sum(columns))
    return _copy(layer, name, padding=stretched)(x), replace(grid, padding=padding)


def _window(layer, name: str, x, grid: Grid, output_stride: int) -> tuple[tf.Tensor, Grid]:
    """A convolution or pooling: as it is, or with its stride removed and its window stretched."""
    size = layer.pool_size if isinstance(layer, _POOLINGS) else layer.kernel_size
    stride, stretch = layer.strides[0], grid.dilation
    fits = grid.stride * stride <= output_stride
    # Padding still missing for n / stride pixels out of n. TensorFlow's own 'same' puts the odd one at the end.
    missing = [max(k - stride - p, 0) for k, p in zip(size, grid.padding, strict=True)]
    if fits and stretch == 1:
        if layer.padding == "valid":
            x = _zeros_around(x, [(m // 2, m - m // 2) for m in missing], name)
        return _apply(layer, _copy(layer, name), x), Grid(grid.stride * stride)
    # A window stretched by d covers (k - 1) d + 1 pixels. What lay before the first pixel is stretched as well, which
    # keeps the coarse grid at every stride-th pixel; the rest goes to the end.
    starts = [m // 2 * stretch for m in missing]
    around = [
        (start, max((k - 1 - p) * stretch - start, 0)) for start, k, p in zip(starts, size, grid.padding, strict=True)
    ]
    after = Grid(grid.stride, stretch * stride) if not fits else Grid(grid.stride * stride, stretch)
    if isinstance(layer, _POOLINGS):
        kind = "max" if isinstance(layer, keras.layers.MaxPooling2D) else "mean"
        return DilatedPooling(kind, size, stretch, around, name=name)(x), after
    is_centred = all(a == b for a, b in around) and grid.padding == (0, 0)
    if not is_centred:
        x = _zeros_around(x, around, name)
    # of one pixel there is nothing to stretch, and TensorFlow would cut the map up for it all the same
    rate = stretch if max(size) > 1 else 1
    new = _copy(layer, name, strides=(1, 1), dilation_rate=rate, padding="same" if is_centred else "valid")
    return _apply(layer, new, x), after


def _zeros_around(x: tf.Tensor, around: list[Pair], name: str) -> tf.Tensor:
    if not any(any(side) for side in around):
        return x
    return keras.layers.ZeroPadding2D(tuple(around), name=f"{name}_zeros")(x)


class DilatedPooling(keras.layers.Layer):
    """Max or mean pooling at stride 1 with holes in its window; Keras has none.

    Pixels outside the map count for neither kind, as with Keras' own 'same' pooling.

    Args:
      kind: "max" or "mean".
      size: rows and columns of the window, holes not counted.
      dilation: distance between neighbours in the window.
      around: pixels added before and after the rows, and before and after the columns.
    """

    def __init__(self, kind: str, size: Pair, dilation: int, around: list[Pair], **kwargs) -> None:
        super().__init__(**kwargs)
        self.kind, self.size, self.dilation = kind, tuple(size), dilation
        self.around = [tuple(side) for side in around]

    def call(self, x_BHWC):
        if self.kind == "max":
            return self.reduce(x_BHWC, tf.maximum, x_BHWC.dtype.min)
        inside = tf.ones_like(x_BHWC[:1, :, :, :1])
        return self.reduce(x_BHWC, tf.add, 0) / self.reduce(inside, tf.add, 0)

    def reduce(self, x, combine: Callable, outside: float) -> tf.Tensor:
        """Rows, then columns, by shifted slices of a map padded with what leaves this kind unchanged."""
        x = tf.pad(x, [[0, 0], *self.around, [0, 0]], constant_values=tf.cast(outside, x.dtype))
        for axis in (1, 2):
            reach = (self.size[axis - 1] - 1) * self.dilation
            length = tf.shape(x)[axis] - reach
            slices = [
                x[:, at : at + length] if axis == 1 else x[:, :, at : at + length]
                for at in range(0, reach + 1, self.dilation)
            ]
            x = slices[0]
            for other in slices[1:]:
                x = combine(x, other)
        return x

    def get_config(self) -> dict:
        own = {"kind": self.kind, "size": self.size, "dilation": self.dilation, "around": self.around}
        return {**super().get_config(), **own}
