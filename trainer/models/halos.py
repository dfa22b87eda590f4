"""A patch cut into slabs of its rows: which rows each has, and how far the layers of a network look beyond them.

Only rows are split: a slab's rows lie together in memory, and a rank has two neighbours whatever the size of the group.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from trainer.errors import ModelError
from trainer.models.deeplab import Atrous
from trainer.models.dilation import DilatedPooling
from trainer.models.graph import Call, Pair, calls_of, padding_joined, strides_of
from trainer.models.keras import keras, tf
from trainer.models.layers import Classifier, Enlarge, ResizeLike
from trainer.models.noise import Noise
from trainer.models.norms import FrozenBatchNorm, GroupNorm, SyncBatchNorm
from trainer.models.pixels import PixelScaling

CONVOLUTIONS = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D, keras.layers.SeparableConv2D, Atrous)
POOLINGS = (keras.layers.MaxPooling2D, keras.layers.AveragePooling2D, DilatedPooling)
PER_PIXEL = (
    keras.layers.Activation,
    keras.layers.ReLU,
    keras.layers.Add,
    keras.layers.Multiply,
    keras.layers.Concatenate,
    keras.layers.Reshape,
    keras.layers.Lambda,
    PixelScaling,
    FrozenBatchNorm,
    SyncBatchNorm,  # its sums are over all ranks, and so over all slabs
    Enlarge,
)
_UNIT = 16
"""The largest output stride of most networks: their feature maps are then cut between two rows."""
_KNOWN = {
    *(Classifier, ResizeLike, Noise, GroupNorm, keras.layers.BatchNormalization, keras.layers.GlobalAveragePooling2D),
    *CONVOLUTIONS,
    *POOLINGS,
    *PER_PIXEL,
}
"""Layers' own types: one that is derived from them may do something else, as Conv2DTranspose does."""


@dataclass(frozen=True)
class Rows:
    """A slab's rows of the patch: `start <= row < stop` of `whole`."""

    start: int
    stop: int
    whole: int

    def at(self, num_rows: int) -> Rows:
        """The same in a feature map of which the slab has so many rows."""
        stride = (self.stop - self.start) // num_rows
        return Rows(self.start // stride, self.stop // stride, self.whole // stride)


def slabs(patch_size: int, parts: int) -> list[Rows]:
    """The rows of each part, from the top; as equal as multiples of 16 allow, the larger ones first.

    Raises:
      ModelError: the patch is no multiple of 16 or too small.
    """
    units, rest = divmod(patch_size, _UNIT)
    if rest or units < parts:
        raise ModelError(
            f"a patch of {patch_size} px cannot be cut into {parts} slabs of whole multiples of {_UNIT} rows",
            where="parallel.spatial",
            fix=f"a patch size that is a multiple of {_UNIT}, of at least {_UNIT * parts} px, or fewer slabs",
        )
    stops = [_UNIT * (units // parts * n + min(n, units % parts)) for n in range(parts + 1)]
    return [Rows(start, stop, patch_size) for start, stop in pairwise(stops)]


@dataclass(frozen=True)
class Window:
    """How far a layer looks along the rows, and what lies beside the map's columns."""

    extent: int
    """Rows that one output row is made from, holes of a dilation included."""
    stride: int
    above: int
    """Rows that the first output row needs above the map."""
    columns: Pair
    """Columns added on the left and on the right."""
    is_same: bool
    """TensorFlow's padding `SAME` would add the same rows and columns of zeros, to a slab as to the patch."""

    @property
    def below(self) -> int:
        """Rows that the last output row needs below the map, which has a multiple of `stride` rows."""
        return max(self.extent - self.stride - self.above, 0)


def window_of(call: Call, width: int) -> Window:
    """The window of a convolution or pooling on a map of so many columns.

    Raises:
      ModelError: its output has fewer than one row for every `stride` of its input.
    """
    layer = call.layer
    if isinstance(layer, DilatedPooling):
        size, strides, dilation = layer.size, (1, 1), (layer.dilation,) * 2
    elif isinstance(layer, POOLINGS):
        size, strides, dilation = layer.pool_size, layer.strides, (1, 1)
    else:
        size, strides, dilation = layer.kernel_size, layer.strides, layer.dilation_rate
    extents = [(k - 1) * d + 1 for k, d in zip(size, dilation, strict=True)]
    # TensorFlow puts the odd row and column at the end; there is a multiple of `stride` rows
    beyond = (extents[0] - strides[0], (-(-width // strides[1]) - 1) * strides[1] + extents[1] - width)
    same = tuple((n // 2, n - n // 2) for n in (max(n, 0) for n in beyond))
    if isinstance(layer, DilatedPooling):
        rows, columns = layer.around
    else:
        rows, columns = same if layer.padding == "same" else call.zeros
    if sum(rows) < extents[0] - strides[0]:
        raise ModelError(f"layer {layer.name} ({type(layer).__name__}) loses rows at the border and cannot be split")
    left, right = columns
    return Window(extents[0], strides[0], rows[0], (left, right), is_same=(tuple(rows), (left, right)) == same)


@dataclass(frozen=True)
class Halo:
    """What one layer needs of the neighbours' slabs."""

    layer: str
    above: int
    """Rows of its input, from the slab above."""
    below: int
    stride: int
    """Rows of the patch per row of its input."""
    channels: int
    bytes_per_value: int
    has_gradient: bool
    """As many rows of gradient go back: there are weights before it."""

    @property
    def patch_rows(self) -> int:
        """Rows of the patch that the larger side covers."""
        return max(self.above, self.below) * self.stride

    def sent_bytes(self, patch_size: int, batch: int, *, up: bool, down: bool) -> int:
        """What a slab sends to the one above it and to the one below it, forward and backward once."""
        forward = up * self.below + down * self.above
        backward = up * self.above + down * self.below
        rows = forward + self.has_gradient * backward
        return batch * rows * (patch_size // self.stride) * self.channels * self.bytes_per_value


def halos_of(model: keras.Model) -> list[Halo]:
    """Of every layer that looks beyond its rows, first to last.

    Raises:
      ModelError: names a layer that cannot be split.
    """
    calls, image = _known_calls(model), id(model.input)
    strides, learned, channels = strides_of(calls, image), {image: False}, {image: model.input.shape[-1]}
    halos = []
    for call in calls:
        layer, inputs = call.layer, tf.nest.flatten(call.inputs)
        stride = max(strides[i] for i in inputs)
        above = below = 0
        if isinstance(layer, ResizeLike):
            stride, like = (strides[i] for i in inputs)
            above = below = int(stride not in (0, like))
        elif isinstance(layer, (*CONVOLUTIONS, *POOLINGS)) and not isinstance(layer, Classifier):
            window = window_of(call, _UNIT)
            above, below = window.above, window.below
        if above or below:
            width = tf.as_dtype(layer.compute_dtype).size
            first = inputs[0]
            halos.append(Halo(layer.name, above, below, stride, channels[first], width, learned[first]))
        learned[call.output] = bool(layer.trainable_variables) or any(learned[i] for i in inputs)
        channels[call.output] = layer.output_shape[-1]
    return halos


def _known_calls(model: keras.Model) -> list[Call]:
    calls = padding_joined(calls_of(model))
    for call in calls:
        _require_known(call)
    return calls


def check_split(model: keras.Model, patch_size: int, parts: int) -> None:
    """Whether a network can be trained on slabs of a patch.

    Raises:
      ModelError: names a layer that cannot be split; or slabs are thinner than the largest halo, or cut through a row.
    """
    cut = slabs(patch_size, parts)
    rows = cut[-1].stop - cut[-1].start
    stride = max(strides_of(_known_calls(model), id(model.input)).values())
    if any(slab.stop % stride for slab in cut):
        raise ModelError(
            f"{parts} slabs of a {patch_size} px patch cut through rows of the deepest map, which is at 1/{stride}",
            where="parallel.spatial",
            fix=f"a patch size that is a multiple of {stride * parts} px",
        )
    largest = max(halos_of(model), key=lambda h: h.patch_rows, default=None)
    if largest and largest.patch_rows > rows:
        needed = -(-largest.patch_rows // _UNIT) * _UNIT
        raise ModelError(
            f"{parts} slabs of a {patch_size} px patch have {rows} rows, thinner than the largest halo: layer "
            f"{largest.layer} needs {needed} rows of its neighbour",
            where="parallel.spatial",
            fix=f"at most {patch_size // needed} slabs, or a patch of at least {needed * parts} px",
        )


def _require_known(call: Call) -> None:
    if type(call.layer) not in _KNOWN:
        raise ModelError(
            f"layer {call.layer.name} ({type(call.layer).__name__}) cannot be split over ranks",
            where="parallel.spatial",
            fix="another network, e.g. deeplabv3plus or unet on resnet50, mobilenetv2 or efficientnetb0, or "
            "parallel.spatial=1",
        )
