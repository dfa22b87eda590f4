"""Tests of one process with TensorFlow: quiet, on the CPU, two threads, and with the same seed for every test."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import pytest

from trainer.models.keras import keras, tf

tf.config.threading.set_intra_op_parallelism_threads(2)
tf.config.threading.set_inter_op_parallelism_threads(1)


@pytest.fixture(autouse=True)
def _same_start():
    keras.utils.set_random_seed(1)
    yield
    keras.mixed_precision.set_global_policy("float32")
    keras.backend.clear_session()
