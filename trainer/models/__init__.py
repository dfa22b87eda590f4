"""From configuration to Keras models and losses. Nothing here knows data or ranks.

`keras.py` imports TensorFlow; `deeplab.py` is the network, on `backbones.py` (which uses `dilation.py`), `norms.py` and
`pixels.py`; `losses.py` is what it is trained on.
"""

from trainer.models.deeplab import build_model
from trainer.models.losses import segmentation_loss

__all__ = ["build_model", "segmentation_loss"]
