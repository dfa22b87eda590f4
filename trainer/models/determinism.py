"""The same graph on the same numbers gives the same bits, in every process."""

from __future__ import annotations

from tensorflow.core.protobuf import config_pb2, rewriter_config_pb2
from tensorflow.python.eager import context

from trainer.models.keras import tf


def deterministic_operations() -> None:
    """Switch on TensorFlow's deterministic operations. Called once, before TensorFlow computes anything.

    They leave one hole: in a graph of more than 200 MB, grappler's memory optimiser turns a sum of three or more
    tensors (the gradients of the pyramid's five branches) into additions to one variable in the order in which the
    terms arrive, and that differs from process to process. So it is switched off; no public setting does that.
    """
    config = config_pb2.ConfigProto()
    config.graph_options.rewrite_options.memory_optimization = rewriter_config_pb2.RewriterConfig.NO_MEM_OPT
    context.context()._config = config  # what further tf.config settings are written over
    tf.config.experimental.enable_op_determinism()
