"""Layers that networks share and Keras lacks, or has in a dearer form. They know no network and no configuration."""

from __future__ import annotations

from trainer.models.keras import keras, tf


def shape_of(x: tf.Tensor) -> list:
    """Numbers where they are known: a training step's graph is a third smaller without the arithmetic of sizes."""
    return [tf.shape(x)[axis] if size is None else size for axis, size in enumerate(x.shape)]


class Classifier(keras.layers.Conv2D):
    """A convolution with a float32 result under every policy: the loss and small class differences need the digits.

    Its gradients are computed in the type of its input, as those of all other layers. In float32 they would need two
    float32 copies of the decoder's last map, 0.5 GB at 2048 px.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **{**kwargs, "dtype": "float32", "autocast": False})

    def convolution_op(self, inputs, kernel):
        @tf.custom_gradient
        def convolve(x, kernel):
            def gradient(dy):
                narrow = tf.cast(kernel, x.dtype)
                with tf.GradientTape() as tape:
                    tape.watch([x, narrow])
                    y = tf.nn.conv2d(x, narrow, self.strides, self.padding.upper())
                dx, dkernel = tape.gradient(y, [x, narrow], tf.cast(dy, x.dtype))
                return dx, tf.cast(dkernel, kernel.dtype)

            return tf.nn.conv2d(tf.cast(x, kernel.dtype), kernel, self.strides, self.padding.upper()), gradient

        return convolve(inputs, tf.convert_to_tensor(kernel))


class ResizeLike(keras.layers.Layer):
    """Bilinear resize of the first map to the rows and columns of the second, in the layer's compute type."""

    def __init__(self, **kwargs) -> None:
        super().__init__(**{**kwargs, "autocast": False})  # no cast copy of a map that only lends its size

    def call(self, inputs):
        x, like = inputs
        resized = tf.image.resize(x, tf.shape(like)[1:3], method="bilinear")
        return tf.cast(resized, self.compute_dtype)


class Enlarge(keras.layers.Layer):
    """Each pixel of [B, H, W, C] becomes a square of `factor` x `factor`: nearest upsampling.

    The gradient is a mean over the square. That of Keras' UpSampling2D is refused on a GPU where runs are
    deterministic (TensorFlow pull request 51023), and takes three times as long in bfloat16 on a CPU.
    """

    def __init__(self, factor: int, **kwargs) -> None:
        super().__init__(**kwargs)
        self.factor = factor

    def call(self, x_BHWC):
        factor = self.factor

        @tf.custom_gradient
        def enlarge(x):
            _, rows, columns, _ = shape_of(x)
            y = tf.raw_ops.ResizeNearestNeighbor(images=x, size=[factor * rows, factor * columns])
            return y, lambda dy: factor**2 * tf.nn.avg_pool2d(dy, factor, factor, "VALID")

        return enlarge(x_BHWC)

    def get_config(self) -> dict:
        return {**super().get_config(), "factor": self.factor}


class MeanOfParts(keras.layers.Layer):
    """[B, H, W, C] -> [B, parts, parts, C]: means over a grid of equal rectangles, whatever H and W are.

    A pixel that a border cuts counts in both of its rectangles, for the share of it that lies there.
    """

    def __init__(self, parts: int, **kwargs) -> None:
        super().__init__(**{**kwargs, "autocast": False})
        self.parts = parts

    def call(self, x_BHWC):
        batch, rows, columns, channels = shape_of(x_BHWC)
        x = tf.reshape(tf.cast(x_BHWC, tf.float32), [batch, rows, columns * channels])
        x = tf.reshape(tf.matmul(_shares(rows, self.parts), x), [batch, self.parts, columns, channels])
        return tf.cast(tf.matmul(_shares(columns, self.parts), x), self.compute_dtype)

    def get_config(self) -> dict:
        return {**super().get_config(), "parts": self.parts}


def _shares(num_pixels, parts: int) -> tf.Tensor:
    """[parts, num_pixels] float32: how much each pixel of a line counts in the mean over each part of it."""
    per_part = tf.cast(num_pixels, tf.float32) / parts
    start = tf.range(parts, dtype=tf.float32)[:, tf.newaxis] * per_part
    pixel = tf.range(num_pixels, dtype=tf.float32)
    overlap = tf.minimum(pixel + 1, start + per_part) - tf.maximum(pixel, start)
    return tf.maximum(overlap, 0.0) / per_part
