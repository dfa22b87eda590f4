"""The networks by name, and what they have in common: images in, logits out."""

from __future__ import annotations

from collections.abc import Callable

from trainer.config.architectures import ArchitectureName
from trainer.config.schema import ModelConfig
from trainer.models.decoders import fpn, linknet, unet
from trainer.models.deeplab import deeplabv3plus
from trainer.models.keras import keras, tf
from trainer.models.layers import Classifier, ResizeLike
from trainer.models.noise import with_noise
from trainer.models.norms import AllReduce
from trainer.models.parts import Parts
from trainer.models.pspnet import pspnet
from trainer.models.resunet import resunet

NETWORKS: dict[ArchitectureName, Callable[[tf.Tensor, Parts], tf.Tensor]] = {
    "deeplabv3plus": deeplabv3plus,
    "unet": unet,
    "fpn": fpn,
    "linknet": linknet,
    "pspnet": pspnet,
    "resunet": resunet,
}
"""Each makes of images [B, H, W, 3] in 0..255 the map that is classified, at 1/1 or coarser."""


def build_model(
    config: ModelConfig, num_classes: int, *, all_reduce: AllReduce | None = None, read_weights: bool = True
) -> keras.Model:
    """The network: images [B, H, W, 3] uint8 or float in 0..255 -> logits [B, H, W, num_classes] float32.

    H and W are unknown when it is built: the same weights serve any patch whose sides are multiples of what
    `config/architectures.py` says. Pixel scaling is inside. Keras' global precision policy decides the type of the
    arithmetic. Weights are drawn from Keras' global seed (`keras.utils.set_random_seed`), the masks of its random
    layers from `noise_seed(model)`.

    The classifier is a 1x1 convolution of the decoder's own resolution, which is the same as one after the bilinear
    resizing, and cheaper: the last map of `fpn` takes 2 GB at 2048 px where it is as large as the patch.

    Args:
      all_reduce: sum over ranks for `norm: sync_batch`; None when there is one rank.
      read_weights: False where a checkpoint will fill the network: same network, nothing read or downloaded.
    Raises:
      ModelError: see `build_backbone`.
    """
    parts = Parts(config, all_reduce, read_weights)
    image_BHWC = keras.Input((None, None, 3), dtype="float32", name="image")  # Keras casts uint8 on the way in
    decoded = NETWORKS[config.architecture](image_BHWC, parts)
    decoded = with_noise(decoded, config.decoder_dropout, "channel", parts.noise, "decoder_dropout")
    logits = Classifier(num_classes, 1, name="classifier")(decoded)
    logits_BHWC = ResizeLike(dtype="float32", name="logits")([logits, image_BHWC])
    return keras.Model(image_BHWC, logits_BHWC, name=config.architecture)
