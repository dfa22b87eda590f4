"""The one place where TensorFlow and its legacy Keras are imported for models and training.

Horovod's Keras layer and segmentation-models need Keras 2: TensorFlow reads `TF_USE_LEGACY_KERAS` when `tf.keras` is
first touched, segmentation-models reads `SM_FRAMEWORK` when it is imported. Write
`from trainer.models.keras import keras, tf` instead of importing either directly.
"""

from __future__ import annotations

import os

from trainer.quiet import quiet_stderr

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("SM_FRAMEWORK", "tf.keras")

with quiet_stderr():
    import tensorflow as tf

    keras = tf.keras

if not keras.layers.Layer.__module__.startswith("tf_keras"):
    raise ImportError(
        "tf.keras is Keras 3, but Widefield needs Keras 2: unset TF_USE_LEGACY_KERAS or set it to 1, and import "
        "trainer.models.keras before anything else that touches tf.keras"
    )

__all__ = ["keras", "tf"]
