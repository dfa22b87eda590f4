"""What the networks are put together from: maps of the backbone, and blocks with the configured norm and noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from trainer.config.schema import ModelConfig
from trainer.models.backbones import build_backbone
from trainer.models.keras import keras, tf
from trainer.models.noise import NoiseSource, with_noise
from trainer.models.norms import AllReduce, decoder_norm
from trainer.models.pixels import PixelScaling, pixel_mode


@dataclass(frozen=True)
class Parts:
    """The parts of one network; `build_model` explains the fields."""

    config: ModelConfig
    all_reduce: AllReduce | None = None
    read_weights: bool = True
    noise: NoiseSource = field(default_factory=NoiseSource)

    def maps(self, image_BHWC: tf.Tensor, strides: Sequence[int], output_stride: int = 32) -> list[tf.Tensor]:
        """The backbone's maps at 1/stride of unscaled images, and its deepest at 1/output_stride."""
        mode = pixel_mode(self.config.backbone, self.config.weights is not None)
        backbone = build_backbone(
            self.config,
            strides,
            output_stride,
            all_reduce=self.all_reduce,
            read_weights=self.read_weights,
            noise=self.noise,
        )
        return tf.nest.flatten(backbone(PixelScaling(mode, name="pixels")(image_BHWC)))

    def norm_relu(self, x: tf.Tensor, name: str) -> tf.Tensor:
        x = decoder_norm(self.config.norm, f"{name}_norm", self.all_reduce)(x)
        return keras.layers.ReLU(name=f"{name}_relu")(x)

    def conv(self, x: tf.Tensor, channels: int, size: int, name: str) -> tf.Tensor:
        """Convolution of size x size, norm, ReLU."""
        x = keras.layers.Conv2D(channels, size, padding="same", use_bias=False, name=name)(x)
        return self.norm_relu(x, name)

    def dropout(self, context: tf.Tensor, name: str) -> tf.Tensor:
        """`model.dropout`, of what goes from the encoder or its pyramid to the decoder."""
        return with_noise(context, self.config.dropout, "value", self.noise, name)
