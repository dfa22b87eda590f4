"""The network on a slab: some rows of each patch, the others being on other ranks of a group.

Every layer of the Keras model is called so that a slab's output is the same rows of what the layer makes of the whole
patch. A layer whose window looks beyond the slab gets its neighbours' rows first; what is one number per patch or per
channel is summed over the group. The weights are the model's own.

Gradients: each rank's loss is the whole patch's, so the sum over the group of a rank's gradients is `size` times that
of the patch, and their mean over all ranks is what data-parallel training of the same patches gives. Only rows are
split: a slab's rows lie together in memory, and a rank has two neighbours whatever the size of the group.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Protocol

from trainer.errors import ModelError
from trainer.models.deeplab import Atrous, Classifier, ResizeLike
from trainer.models.dilation import DilatedPooling
from trainer.models.graph import Call, Pair, call_layer, calls_of, forward_of, padding_joined
from trainer.models.keras import keras, tf
from trainer.models.noise import Noise
from trainer.models.norms import FrozenBatchNorm, GroupNorm, SyncBatchNorm, batch_norm, group_norm
from trainer.models.pixels import PixelScaling
from trainer.models.recompute import recomputing

_CONVOLUTIONS = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D, keras.layers.SeparableConv2D, Atrous)
_POOLINGS = (keras.layers.MaxPooling2D, keras.layers.AveragePooling2D, DilatedPooling)
_PER_PIXEL = (
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
)
_UNIT = 16
"""The largest output stride: every feature map is then cut between two of its rows."""
_Run = Callable[[tf.Tensor], tf.Tensor]


class Group(Protocol):
    """What a slab needs of `runtime.comm.Group`, where this is described."""

    rank: int
    size: int

    def swap(self, up: Any, down: Any, name: str) -> tuple[Any, Any]: ...

    def sum(self, tensor: Any, name: str) -> Any: ...


class Groups(Protocol):
    """What a network of slabs needs of `runtime.comm.Comm`."""

    def group(self, size: int) -> Group: ...


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
    elif isinstance(layer, _POOLINGS):
        size, strides, dilation = layer.pool_size, layer.strides, (1, 1)
    else:
        size, strides, dilation = layer.kernel_size, layer.strides, layer.dilation_rate
    extents = [(k - 1) * d + 1 for k, d in zip(size, dilation, strict=True)]
    if isinstance(layer, DilatedPooling):
        rows, columns = layer.around
    elif layer.padding == "same":  # TensorFlow puts the odd row and column at the end
        needed = (
            max(extents[0] - strides[0], 0),
            max((-(-width // strides[1]) - 1) * strides[1] + extents[1] - width, 0),
        )
        rows, columns = ((n // 2, n - n // 2) for n in needed)
    else:
        rows, columns = call.zeros
    if sum(rows) < extents[0] - strides[0]:
        raise ModelError(f"layer {layer.name} ({type(layer).__name__}) loses rows at the border and cannot be split")
    left, right = columns
    return Window(extents[0], strides[0], rows[0], (left, right))


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
    strides, learned = {id(model.input): 1}, {id(model.input): False}  # stride 0: one value per patch
    channels = {id(model.input): model.input.shape[-1]}
    halos = []
    for call in padding_joined(calls_of(model)[0]):
        _method_of(call)
        layer, inputs = call.layer, tf.nest.flatten(call.inputs)
        stride = max(strides[i] for i in inputs)
        above = below = 0
        if isinstance(layer, ResizeLike):
            above = below = int(strides[inputs[0]] > 0)
            stride = strides[inputs[0]]
        elif isinstance(layer, (*_CONVOLUTIONS, *_POOLINGS)) and not isinstance(layer, Classifier):
            window = window_of(call, _UNIT)
            above, below = window.above, window.below
        if above or below:
            width = tf.as_dtype(layer.compute_dtype).size
            first = inputs[0]
            halos.append(Halo(layer.name, above, below, stride, channels[first], width, learned[first]))
        strides[call.output] = _stride_after(layer, [strides[i] for i in inputs])
        learned[call.output] = bool(layer.trainable_variables) or any(learned[i] for i in inputs)
        channels[call.output] = layer.output_shape[-1]
    return halos


def _stride_after(layer: keras.layers.Layer, strides: Sequence[int]) -> int:
    if isinstance(layer, keras.layers.GlobalAveragePooling2D):
        return 0
    if isinstance(layer, ResizeLike):
        return strides[1]
    own = layer.strides[0] if isinstance(layer, (*_CONVOLUTIONS, *_POOLINGS[:2])) else 1
    return own * max(strides)


def training_forward(model: keras.Model, slab: Slab | None, *, recompute: bool) -> Callable[[tf.Tensor], tf.Tensor]:
    """The network while training: images [B, H, W, 3] -> logits [B, H, W, num_classes]; H rows of a slab if given."""
    if slab is None:
        return recomputing(model) if recompute else partial(model, training=True)
    return (recomputing if recompute else forward_of)(model, slab, padding_joined)


def check_split(model: keras.Model, patch_size: int, parts: int) -> None:
    """Whether a network can be trained on slabs of a patch.

    Raises:
      ModelError: names a layer that cannot be split; or slabs are thinner than the largest halo.
    """
    thinnest = slabs(patch_size, parts)[-1]
    rows = thinnest.stop - thinnest.start
    for halo in sorted(halos_of(model), key=lambda h: max(h.above, h.below) * h.stride, reverse=True)[:1]:
        needed = -(-max(halo.above, halo.below) * halo.stride // _UNIT) * _UNIT
        if needed > rows:
            raise ModelError(
                f"{parts} slabs of a {patch_size} px patch have {rows} rows, thinner than the largest halo: layer "
                f"{halo.layer} needs {needed} rows of its neighbour",
                where="parallel.spatial",
                fix=f"at most {patch_size // needed} slabs, or a patch of at least {needed * parts} px",
            )


class Slab:
    """How the layers of a network are called on this rank's rows of each patch. All maps need known shapes.

    Every collective has a name of its own, the same on all ranks of the group.

    Attributes:
      sent_bytes: what this rank hands over to its neighbours in all passes that were traced.
    """

    def __init__(self, group: Group, rows: Rows, *, training: bool = True) -> None:
        self.sent_bytes = 0
        self._group, self._rows, self._number, self._training = group, rows, 0, training
        self._is_top, self._is_bottom = group.rank == 0, group.rank + 1 == group.size

    def __call__(self, call: Call, inputs: Any) -> tf.Tensor:
        """The rows of the layer's output, given those of its input or inputs."""
        return _method_of(call)(self, call, inputs)

    def sum(self, tensor: tf.Tensor) -> tf.Tensor:
        """Over the group, as is the gradient."""
        name = self._name("sum")

        @tf.custom_gradient
        def summed(x: tf.Tensor):
            return self._group.sum(x, name), lambda dy: self._group.sum(dy, f"{name}_gradient")

        return summed(tensor)

    def plain_sum(self, tensor: tf.Tensor) -> tf.Tensor:
        """Over the group; without a gradient."""
        return self._group.sum(tensor, self._name("sum"))

    def as_it_is(self, call: Call, inputs: Any) -> tf.Tensor:
        if any(map(any, call.zeros)):
            raise ModelError(f"layer {call.layer.name} ({type(call.layer).__name__}) takes zeros around the patch")
        return call_layer(call, inputs, self._training)

    def group_norm(self, call: Call, x: tf.Tensor) -> tf.Tensor:
        layer = call.layer
        gamma, beta = tf.convert_to_tensor(layer.gamma), tf.convert_to_tensor(layer.beta)
        return group_norm(x, gamma, beta, layer.groups, layer.epsilon, self.plain_sum)

    def batch_norm(self, call: Call, x: tf.Tensor) -> tf.Tensor:
        return batch_norm(call.layer, x, self.sum) if self._training else self.as_it_is(call, x)

    def mean_of_patch(self, call: Call, x: tf.Tensor) -> tf.Tensor:
        rows = self._rows.at(x.shape[1])
        share = (rows.stop - rows.start) / rows.whole
        mean = self.sum(share * tf.reduce_mean(tf.cast(x, tf.float32), [1, 2], keepdims=call.layer.keepdims))
        return tf.cast(mean, call.layer.compute_dtype)

    def resize(self, call: Call, inputs: Sequence[tf.Tensor]) -> tf.Tensor:
        """Bilinear: an output pixel lies between the two nearest rows, so one beyond each edge is enough."""
        x, like = inputs
        if x.shape[1:3] == (1, 1):  # one value per patch
            return self.as_it_is(call, inputs)
        factor = like.shape[1] // x.shape[1]
        x, first, last = _edges(x, 1, 1)
        above, below = self._swapped(first, last)
        if self._is_top:
            above += first
        if self._is_bottom:
            below += last
        taller = tf.concat([above, x, below], 1)
        resized = tf.image.resize(taller, [factor * taller.shape[1], like.shape[2]], method="bilinear")
        return tf.cast(resized[:, factor:-factor], call.layer.compute_dtype)

    def noise(self, call: Call, x: tf.Tensor) -> tf.Tensor:
        """The slab's rows of the mask that the whole patch would get."""
        layer = call.layer
        if layer.unit != "value" or not self._training:
            return self.as_it_is(call, x)
        rows = self._rows.at(x.shape[1])
        mask = layer.factor([x.shape[0], rows.whole, *x.shape[2:]])[:, rows.start : rows.stop]
        return x * tf.cast(mask, x.dtype)

    def convolution(self, call: Call, x: tf.Tensor) -> tf.Tensor:
        layer, window = call.layer, window_of(call, x.shape[2])
        if not window.above and not window.below and not any(window.columns):
            return self.as_it_is(call, x)
        x = tf.cast(x, layer.compute_dtype)
        y = self._over(x, window, lambda part: _convolve(layer, part, window.columns), 0)
        if layer.use_bias:
            y = tf.nn.bias_add(y, tf.cast(layer.bias, y.dtype))
        return layer.activation(y) if layer.activation is not None else y

    def max_pooling(self, call: Call, x: tf.Tensor) -> tf.Tensor:
        layer, window = call.layer, window_of(call, x.shape[2])
        outside = 0 if any(map(any, call.zeros)) else x.dtype.min

        def run(part: tf.Tensor) -> tf.Tensor:
            part = tf.pad(part, [[0, 0], [0, 0], window.columns, [0, 0]], constant_values=tf.cast(outside, x.dtype))
            return tf.nn.max_pool2d(part, layer.pool_size, layer.strides, "VALID")

        return self._over(x, window, run, outside)

    def dilated_pooling(self, call: Call, x: tf.Tensor) -> tf.Tensor:
        layer, window = call.layer, window_of(call, x.shape[2])
        narrow = DilatedPooling(layer.kind, layer.size, layer.dilation, [(0, 0), window.columns])
        if layer.kind == "max":
            return self._over(x, window, lambda part: narrow.reduce(part, tf.maximum, x.dtype.min), x.dtype.min)
        return self._mean(x, window, lambda part: narrow.reduce(part, tf.add, 0))

    def mean_pooling(self, call: Call, x: tf.Tensor) -> tf.Tensor:
        layer, window = call.layer, window_of(call, x.shape[2])

        def mean(part: tf.Tensor) -> tf.Tensor:
            part = tf.pad(part, [[0, 0], [0, 0], window.columns, [0, 0]])
            return tf.nn.avg_pool2d(part, layer.pool_size, layer.strides, "VALID")

        return self._over(x, window, mean, 0) if layer.padding == "valid" else self._mean(x, window, mean)

    def _mean(self, x: tf.Tensor, window: Window, run: _Run) -> tf.Tensor:
        """Over the pixels of each window that lie in the patch: `run` has taken those outside for zeros."""
        above, below = window.above * (not self._is_top), window.below * (not self._is_bottom)
        outside = [[0, 0], [window.above - above, window.below - below], [0, 0], [0, 0]]
        inside = tf.pad(tf.ones([1, above + x.shape[1] + below, x.shape[2], 1], x.dtype), outside)
        return self._over(x, window, run, 0) / run(inside)

    def _over(self, x: tf.Tensor, window: Window, run: _Run, outside: float) -> tf.Tensor:
        """`run`, which pads columns but not rows, over a map: `outside` beyond the patch, else the neighbours' rows.

        What needs no neighbour is computed from the map itself while their rows are on the way, and no copy of the map
        is made that the backward pass would keep.
        """
        num_rows, extent, stride = x.shape[1], window.extent, window.stride
        if not window.above and not window.below:
            return run(x)
        num_outputs = num_rows // stride
        num_top = -(-window.above // stride)
        num_bottom = num_outputs - ((num_rows + window.above - extent) // stride + 1)
        has_interior = num_outputs >= 2 * (num_top + num_bottom)  # else its strips would be as much work
        top = (num_top - 1) * stride - window.above + extent  # rows of the map that the topmost outputs see
        bottom = num_rows - ((num_outputs - num_bottom) * stride - window.above)
        sides = (window.below, window.above)
        if has_interior:
            sides = (max(window.below, top if num_top else 0), max(window.above, bottom if num_bottom else 0))
        x, first, last = _edges(x, *sides)
        above, below = self._swapped(first[:, : window.below], last[:, last.shape[1] - window.above :])
        if self._is_top:
            above += tf.cast(outside, x.dtype)
        if self._is_bottom:
            below += tf.cast(outside, x.dtype)
        if not has_interior:
            return run(tf.concat([above, x, below], 1))
        parts = [run(x[:, num_top * stride - window.above :])]
        if num_top:
            parts.insert(0, run(tf.concat([above, first[:, :top]], 1)))
        if num_bottom:
            parts.append(run(tf.concat([last[:, last.shape[1] - bottom :], below], 1)))
        return tf.concat(parts, 1)

    def _swapped(self, first: tf.Tensor, last: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The neighbours' rows: above this slab those like `last`, below it those like `first`. Differentiable.

        Zeros beyond the patch, which are to be used all the same: the exchange is left out where its result is not.
        """
        name = self._name("halo")

        def swap(up: tf.Tensor, down: tf.Tensor, name: str) -> tuple[tf.Tensor, tf.Tensor]:
            sent = [up] * (not self._is_top) + [down] * (not self._is_bottom)
            self.sent_bytes += sum(x.shape.num_elements() * x.dtype.size for x in sent)
            return self._group.swap(up, down, name)

        @tf.custom_gradient
        def swapped(up: tf.Tensor, down: tf.Tensor):
            # what has come from above goes back there
            return swap(up, down, name), lambda d_above, d_below: swap(d_above, d_below, f"{name}_gradient")

        return swapped(first, last)

    def _name(self, kind: str) -> str:
        self._number += 1
        return f"slab_{kind}_{self._number}"


@tf.autograph.experimental.do_not_convert
def slab_of(comm: Groups, images: tf.Tensor, spatial: int, *, training: bool = True) -> Slab | None:
    """This rank's slab of the patches that [B, H, W, 3] are rows of; None where they are not split."""
    if spatial == 1:
        return None
    group = comm.group(spatial)
    return Slab(group, slabs(images.shape[2], spatial)[group.rank], training=training)


_METHODS: dict[type, Callable[[Slab, Call, Any], tf.Tensor]] = {
    Classifier: Slab.as_it_is,  # 1x1, in a precision of its own
    **dict.fromkeys(_CONVOLUTIONS, Slab.convolution),
    keras.layers.MaxPooling2D: Slab.max_pooling,
    keras.layers.AveragePooling2D: Slab.mean_pooling,
    DilatedPooling: Slab.dilated_pooling,
    keras.layers.GlobalAveragePooling2D: Slab.mean_of_patch,
    GroupNorm: Slab.group_norm,
    **dict.fromkeys(_PER_PIXEL, Slab.as_it_is),
    keras.layers.BatchNormalization: Slab.batch_norm,
    ResizeLike: Slab.resize,
    Noise: Slab.noise,
}
"""Of a layer's own type: one that is derived from it may do something else, as Conv2DTranspose does."""


def _method_of(call: Call) -> Callable[[Slab, Call, Any], tf.Tensor]:
    method = _METHODS.get(type(call.layer))
    if method is None:
        raise ModelError(
            f"layer {call.layer.name} ({type(call.layer).__name__}) cannot be split over ranks",
            where="parallel.spatial",
            fix="another backbone, e.g. resnet50, mobilenetv2 or efficientnetb0, or parallel.spatial=1",
        )
    return method


def _convolve(layer: keras.layers.Layer, x: tf.Tensor, columns: Pair) -> tf.Tensor:
    """A convolution layer's products, without bias; no rows are added."""
    around = [[0, 0], [0, 0], list(columns), [0, 0]]
    if not isinstance(layer, (keras.layers.DepthwiseConv2D, keras.layers.SeparableConv2D)):
        kernel = tf.cast(layer.kernel, x.dtype)
        if max(layer.dilation_rate) == 1:
            return tf.nn.conv2d(x, kernel, layer.strides, around)
        # through space-to-batch, as in Keras: TensorFlow has no gradient of a dilated conv2d on CPUs
        return tf.nn.convolution(tf.pad(x, around), kernel, layer.strides, "VALID", dilations=layer.dilation_rate)
    x = tf.pad(x, around)
    strides = [1, *layer.strides, 1]
    y = tf.nn.depthwise_conv2d(
        x, tf.cast(layer.depthwise_kernel, x.dtype), strides, "VALID", dilations=layer.dilation_rate
    )
    if isinstance(layer, keras.layers.SeparableConv2D):
        y = tf.nn.conv2d(y, tf.cast(layer.pointwise_kernel, x.dtype), 1, "VALID")
    return y


def _edges(x: tf.Tensor, num_first: int, num_last: int) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """A map and copies of its first and last rows; the three gradients are put together in one pass."""
    num_rows = x.shape[1]

    @tf.custom_gradient
    def cut(x: tf.Tensor):
        def gradient(dx: tf.Tensor, d_first: tf.Tensor, d_last: tf.Tensor):
            if num_first + num_last > num_rows:
                around = [[0, 0], [num_rows - num_last, 0], [0, 0], [0, 0]]
                return (
                    dx + tf.pad(d_first, [[0, 0], [0, num_rows - num_first], [0, 0], [0, 0]]) + tf.pad(d_last, around)
                )
            middle = dx[:, num_first : num_rows - num_last]
            return tf.concat([dx[:, :num_first] + d_first, middle, dx[:, num_rows - num_last :] + d_last], 1)

        return (tf.identity(x), x[:, :num_first], x[:, num_rows - num_last :]), gradient

    return cut(x)
