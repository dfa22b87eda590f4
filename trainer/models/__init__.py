"""From configuration to Keras models and losses. Nothing here knows data or ranks.

`keras.py` imports TensorFlow; `architectures.py` has the networks by name. They are in `deeplab.py`, `decoders.py`,
`pspnet.py` and `resunet.py`, and made of `parts.py`: `backbones.py` (which uses `dilation.py`), `norms.py`, `noise.py`
and `pixels.py`. `losses.py` is what they are trained on.
"""

from trainer.models.architectures import build_model
from trainer.models.losses import segmentation_loss

__all__ = ["build_model", "segmentation_loss"]
