"""The network on a slab: some rows of each patch, the others being on other ranks of a group.

Every layer of the Keras model is called so that a slab's output is the same rows of what the layer makes of the whole
patch. A layer whose window looks beyond the slab gets its neighbours' rows first; what is one number per patch or per
channel is summed over the group. The weights are the model's own.

Gradients: each rank's loss is the whole patch's, so the sum over the group of a rank's gradients is `size` times that
of the patch, and their mean over all ranks is what data-parallel training of the same patches gives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

from trainer.errors import ModelError
from trainer.models.dilation import DilatedPooling
from trainer.models.graph import Call, call_layer, forward_of, padding_joined
from trainer.models.halos import CONVOLUTIONS, PER_PIXEL, Rows, Window, slabs, window_of
from trainer.models.keras import keras, tf
from trainer.models.layers import Classifier, ResizeLike
from trainer.models.noise import Noise
from trainer.models.norms import GroupNorm, batch_norm, group_norm
from trainer.models.recompute import recomputing

_Run = Callable[[tf.Tensor], tf.Tensor]
_ALL_OF_DIM_0 = {"begin_mask": 1, "end_mask": 1}
_THIN = 8
"""How many times as high as what a halo makes of it a map has to be for its halos to be computed apart from it."""


class Group(Protocol):
    """What a slab needs of `runtime.comm.Group`, where this is described."""

    rank: int
    size: int

    def swap(self, up: Any, down: Any, name: str) -> tuple[Any, Any]: ...

    def sum(self, tensor: Any, name: str) -> Any: ...


class Groups(Protocol):
    """What a network of slabs needs of `runtime.comm.Comm`."""

    def group(self, size: int) -> Group: ...


def training_forward(model: keras.Model, slab: Slab | None, *, recompute: bool) -> Callable[[tf.Tensor], tf.Tensor]:
    """The network while training: images [B, H, W, 3] -> logits [B, H, W, num_classes]; H rows of a slab if given."""
    if slab is None:
        return recomputing(model) if recompute else partial(model, training=True)
    return (recomputing if recompute else forward_of)(model, slab, padding_joined)


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
        return _METHODS[type(call.layer)](self, call, inputs)

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
        if x.shape[1:3] in ((1, 1), like.shape[1:3]):  # one value per patch, or nothing to do
            return self.as_it_is(call, inputs)
        factor = like.shape[1] // x.shape[1]
        x, first, last = _edges(x, 1, 1)
        above, below = self._swapped(first, last)

        def resized(part: tf.Tensor) -> tf.Tensor:
            return tf.cast(tf.image.resize(part, [factor * part.shape[1], like.shape[2]]), call.layer.compute_dtype)

        y = resized(x)  # as if the rows beyond its edges were those at its edges
        if not self._is_top:
            y = _plus_rows(y, resized(_with_zeros(above - first, 0, 1))[:, factor:], 0)
        if not self._is_bottom:
            y = _plus_rows(y, resized(_with_zeros(below - last, 1, 0))[:, :factor], y.shape[1] - factor)
        return y

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
        if window.is_same and x.shape[1] >= _THIN * (window.above + window.extent):
            y = self._plus_halos(x, window, partial(_convolve, layer))
        else:
            y = self._over(x, window, lambda part: _convolve(layer, _with_columns(part, window), "VALID"), 0)
        if isinstance(layer, keras.layers.SeparableConv2D):
            y = tf.nn.conv2d(y, tf.cast(layer.pointwise_kernel, y.dtype), 1, "VALID")
        if layer.use_bias:
            y = tf.nn.bias_add(y, tf.cast(layer.bias, y.dtype))
        return layer.activation(y) if layer.activation is not None else y

    def max_pooling(self, call: Call, x: tf.Tensor) -> tf.Tensor:
        layer, window = call.layer, window_of(call, x.shape[2])
        outside = 0 if any(map(any, call.zeros)) else x.dtype.min

        def run(part: tf.Tensor) -> tf.Tensor:
            part = _with_columns(part, window, tf.cast(outside, x.dtype))
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
            return tf.nn.avg_pool2d(_with_columns(part, window), layer.pool_size, layer.strides, "VALID")

        return self._over(x, window, mean, 0) if layer.padding == "valid" else self._mean(x, window, mean)

    def _mean(self, x: tf.Tensor, window: Window, run: _Run) -> tf.Tensor:
        """Over the pixels of each window that lie in the patch: `run` has taken those outside for zeros."""
        above, below = window.above * (not self._is_top), window.below * (not self._is_bottom)
        outside = [[0, 0], [window.above - above, window.below - below], [0, 0], [0, 0]]
        inside = tf.pad(tf.ones([1, above + x.shape[1] + below, x.shape[2], 1], x.dtype), outside)
        return self._over(x, window, run, 0) / run(inside)

    def _over(self, x: tf.Tensor, window: Window, run: _Run, outside: float) -> tf.Tensor:
        """`run`, which pads columns but not rows, over a map: `outside` beyond the patch, else the neighbours' rows."""
        if not window.above and not window.below:
            return run(x)
        x, first, last = _edges(x, window.below, window.above)
        above, below = self._swapped(first, last)
        if self._is_top:
            above += tf.cast(outside, x.dtype)
        if self._is_bottom:
            below += tf.cast(outside, x.dtype)
        return run(tf.concat([above, x, below], 1))

    def _plus_halos(self, x: tf.Tensor, window: Window, convolve: Callable[[tf.Tensor, str], tf.Tensor]) -> tf.Tensor:
        """A convolution with padding `SAME`: of the map with zeros around it, to which the halos' products are added.

        It is computed while the halos are on the way, and the map is not copied.
        """
        x, first, last = _edges(x, window.below, window.above)
        above, below = self._swapped(first, last)
        y = convolve(x, "SAME")
        # A slab that gets nothing adds zeros if it has nothing else of this exchange to use.
        if window.above and not (self._is_top and window.below):
            num_rows = -(-window.above // window.stride)
            zeros = (num_rows - 1) * window.stride + window.extent - window.above
            y = _plus_rows(y, convolve(_with_columns(_with_zeros(above, 0, zeros), window), "VALID"), 0)
        if window.below and not (self._is_bottom and window.above):
            num_rows = -(-window.below // window.stride)
            zeros = num_rows * window.stride + window.above
            rows = convolve(_with_columns(_with_zeros(below, zeros, 0), window), "VALID")
            y = _plus_rows(y, rows, y.shape[1] - num_rows)
        return y

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
    **dict.fromkeys(CONVOLUTIONS, Slab.convolution),
    keras.layers.MaxPooling2D: Slab.max_pooling,
    keras.layers.AveragePooling2D: Slab.mean_pooling,
    DilatedPooling: Slab.dilated_pooling,
    keras.layers.GlobalAveragePooling2D: Slab.mean_of_patch,
    GroupNorm: Slab.group_norm,
    **dict.fromkeys(PER_PIXEL, Slab.as_it_is),
    keras.layers.BatchNormalization: Slab.batch_norm,
    ResizeLike: Slab.resize,
    Noise: Slab.noise,
}
"""By a layer's own type; `halos.check_split` refuses networks with others."""


def _convolve(layer: keras.layers.Layer, x: tf.Tensor, padding: str) -> tf.Tensor:
    """A convolution layer's products, without bias; of a separable one those of its depthwise part."""
    if isinstance(layer, (keras.layers.DepthwiseConv2D, keras.layers.SeparableConv2D)):
        kernel, strides = tf.cast(layer.depthwise_kernel, x.dtype), [1, *layer.strides, 1]
        return tf.nn.depthwise_conv2d(x, kernel, strides, padding, dilations=layer.dilation_rate)
    kernel = tf.cast(layer.kernel, x.dtype)
    return tf.nn.convolution(x, kernel, layer.strides, padding, dilations=layer.dilation_rate)


def _with_columns(x: tf.Tensor, window: Window, value: Any = 0) -> tf.Tensor:
    return tf.pad(x, [[0, 0], [0, 0], window.columns, [0, 0]], constant_values=value) if any(window.columns) else x


def _with_zeros(x: tf.Tensor, above: int, below: int) -> tf.Tensor:
    return tf.pad(x, [[0, 0], [above, below], [0, 0], [0, 0]])


def _plus_rows(x: tf.Tensor, rows: tf.Tensor, start: int) -> tf.Tensor:
    """A map with something added to its rows from `start` on; in place if nothing else needs the map."""
    stop = start + rows.shape[1]

    @tf.custom_gradient
    def plus(x: tf.Tensor, rows: tf.Tensor):
        changed = tf.raw_ops.TensorStridedSliceUpdate(
            input=x, begin=[0, start], end=[0, stop], strides=[1, 1], value=x[:, start:stop] + rows, **_ALL_OF_DIM_0
        )
        return changed, lambda dy: (dy, dy[:, start:stop])

    return plus(x, rows) if stop > start else x


def _edges(x: tf.Tensor, num_first: int, num_last: int) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """A map and copies of its first and last rows, whose gradients are added to the map's."""
    start = x.shape[1] - num_last

    @tf.custom_gradient
    def cut(x: tf.Tensor):
        def gradient(dx: tf.Tensor, d_first: tf.Tensor, d_last: tf.Tensor):
            return _plus_rows(_plus_rows(dx, d_first, 0), d_last, start)

        return (tf.identity(x), x[:, :num_first], x[:, start:]), gradient

    return cut(x)
