"""Run under mpirun by test_collectives.py: every collective of one backend, checked on every rank."""

from __future__ import annotations

import sys

import numpy as np

from trainer.errors import SlideError
from trainer.runtime import on_root, start_comm

backend, with_tensors = sys.argv[1], sys.argv[2] == "tensors"
comm = start_comm(backend)
rank, n = comm.rank, comm.world_size
assert n == int(sys.argv[3])

np.testing.assert_array_equal(comm.allreduce(np.array([rank, 1], np.int64)), [n * (n - 1) // 2, n])
assert comm.gather({"rank": rank}) == [{"rank": r} for r in range(n)]
assert comm.broadcast(rank + 10) == 10
comm.barrier()


def fail() -> None:
    raise SlideError("does not open", where="a.tif", fix="copy it again")


try:
    on_root(comm, fail)
except SlideError as error:
    assert (error.what, error.where, error.fix) == ("does not open", "a.tif", "copy it again")
else:
    raise AssertionError("the error of rank 0 must reach every rank")

if with_tensors:
    import tensorflow as tf

    rng = np.random.default_rng(0)
    everyone = rng.normal(size=(n, 1003)).astype(np.float32)
    mean = everyone.mean(axis=0)
    for compression, tolerance in (("none", 1e-6), ("fp16", 2e-3), ("bf16", 2e-2)):

        @tf.function
        def reduced(x: tf.Tensor, y: tf.Tensor, compression: str = compression) -> list[tf.Tensor]:
            return comm.allreduce_gradients([x, y], compression)

        a, b = everyone[rank, :1000].reshape(20, 50), everyone[rank, 1000:]
        out = [t.numpy() for t in reduced(tf.constant(a), tf.constant(b))]
        assert out[0].shape == (20, 50) and out[0].dtype == np.float32
        np.testing.assert_allclose(out[0].ravel(), mean[:1000], atol=tolerance, rtol=tolerance)
        np.testing.assert_allclose(out[1], mean[1000:], atol=tolerance, rtol=tolerance)
        flat = np.concatenate([o.ravel() for o in out]).tobytes()
        assert len(set(comm.gather(flat))) == 1, f"{compression}: the mean must be the same bits on every rank"

    variable = tf.Variable([float(rank), 5.0 + rank])
    comm.broadcast_variables([variable])
    np.testing.assert_array_equal(variable.numpy(), [0.0, 5.0])

    @tf.function
    def through(x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(x)
            total = comm.allreduce_tensor(x)
            loss = (rank + 1.0) * tf.reduce_sum(total**2)
        return total, tape.gradient(loss, x)

    total, gradient = through(tf.constant([1.0 + rank, 2.0]))
    expected = np.array([n * (n + 1) / 2, 2.0 * n], np.float32)
    np.testing.assert_allclose(total.numpy(), expected, rtol=1e-6)
    np.testing.assert_allclose(gradient.numpy(), 2 * expected * n * (n + 1) / 2, rtol=1e-6)

print(f"rank {rank} ok", flush=True)
