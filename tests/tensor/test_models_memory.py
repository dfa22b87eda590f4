from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.config.schema import ModelConfig
from trainer.models import build_model
from trainer.models.keras import keras, tf
from trainer.models.memory import PeakMemory, flops_per_pass, peak_memory, predicted_peak_bytes
from trainer.models.memory.cost import _traced, pass_cost
from trainer.models.memory.liveness import peak_live_bytes

SMALL = ModelConfig(backbone="resnet18", aspp_channels=16, decoder_channels=16)
PLAIN = {
    "recompute": False,
    "optimizer_slots": 2,
    "ema": False,
    "accumulate": False,
    "world_size": 1,
    "checkpoints": False,
}


@pytest.fixture(scope="module")
def small() -> keras.Model:
    return build_model(SMALL, 2)


def live_bytes(function, *shapes: tuple[int, ...]) -> int:
    graph = tf.function(function, autograph=False).get_concrete_function(*(tf.TensorSpec(s) for s in shapes))
    return peak_live_bytes([o for o in graph.graph.get_operations() if o not in {t.op for t in graph.outputs}])


@given(st.integers(1, 12))
@settings(max_examples=5, deadline=None)
def test_a_chain_of_elementwise_operations_needs_one_buffer(length: int) -> None:
    def chain(x):
        for factor in range(length):
            x = x * (factor + 2.0)
        return x

    assert live_bytes(chain, (10, 100)) == 4000


def test_what_the_backward_pass_reads_stays_alive_and_views_cost_nothing() -> None:
    def kept(x):
        a = tf.matmul(x, x)
        b = tf.matmul(a, a)
        c = tf.reshape(tf.matmul(b, b), [-1])
        return tf.matmul(a, tf.reshape(c, [10, 10]))

    assert live_bytes(kept, (10, 10)) == 3 * 400  # a, c and the last product, or a, b and c; nothing for a reshape


def test_the_same_cast_twice_is_one_copy() -> None:
    def twice(x):
        narrow = tf.cast(tf.matmul(x, x), tf.bfloat16)
        return tf.matmul(tf.matmul(tf.cast(narrow, tf.float32), x), tf.cast(narrow, tf.float32))

    assert live_bytes(twice, (10, 10)) == 3 * 400  # the copy, the inner product, the outer one


def test_weights_optimiser_and_copies_are_counted_to_the_byte(small: keras.Model) -> None:
    trainable = 4 * sum(int(v.shape.num_elements()) for v in small.trainable_variables)
    everything = peak_memory(small, 64, 1, **{**PLAIN, "ema": True, "accumulate": True})
    assert everything.gradients == trainable
    assert everything.weights == 4 * small.count_params()
    assert (everything.optimizer, everything.ema, everything.accumulators) == (2 * trainable, trainable, trainable)
    nothing = peak_memory(small, 64, 1, **{**PLAIN, "optimizer_slots": 0})
    assert nothing.optimizer == nothing.ema == nothing.accumulators == nothing.all_reduce == 0
    assert everything.total - nothing.total == 4 * trainable
    assert peak_memory(small, 64, 1, **{**PLAIN, "world_size": 2}).all_reduce > 0
    saving = peak_memory(small, 64, 1, **{**PLAIN, "checkpoints": True})
    assert saving.checkpoint == 4 * small.count_params() + 2 * trainable


def test_memory_and_arithmetic_grow_with_patch_and_batch(small: keras.Model) -> None:
    for growing in ([(64, 1), (128, 1)], [(256, 1), (256, 2), (256, 4), (256, 5)]):
        peaks = [predicted_peak_bytes(small, patch, batch, **PLAIN) for patch, batch in growing]
        flops = [flops_per_pass(small, patch, batch) for patch, batch in growing]
        assert peaks == sorted(set(peaks))
        assert flops == sorted(set(flops))


def test_larger_batches_are_extrapolated_truly(small: keras.Model) -> None:
    known, traced = pass_cost(small, 64, 5, False), _traced(small, 64, 5, False)
    assert known.live_bytes == pytest.approx(traced.live_bytes, rel=0.02)
    assert known.flops == pytest.approx(traced.flops, rel=0.01)


def test_recomputing_takes_less_memory_and_more_arithmetic(small: keras.Model) -> None:
    kept, recomputed = (pass_cost(small, 128, 1, recompute) for recompute in (False, True))
    assert recomputed.live_bytes < 0.7 * kept.live_bytes
    assert 1.1 * kept.flops < recomputed.flops < 1.4 * kept.flops


def test_flops_of_one_convolution_are_those_of_its_formula() -> None:
    image = keras.Input((None, None, 3))
    model = keras.Model(image, keras.layers.Conv2D(5, 3, padding="same")(image))
    forward = 2 * 32 * 32 * 3 * 3 * 3 * 5
    assert flops_per_pass(model, 32, 1) == 2 * forward  # forward and kernel; the image needs no gradient


@pytest.mark.long
@pytest.mark.parametrize(
    ("patch_size", "precision", "recompute"), [(384, "float32", "none"), (512, "mixed_bfloat16", "blocks")]
)
def test_a_real_training_process_takes_what_was_predicted(patch_size: int, precision: str, recompute: str) -> None:
    keras.mixed_precision.set_global_policy(precision)
    model = build_model(ModelConfig(backbone="resnet18"), 2)
    predicted = predicted_peak_bytes(model, patch_size, 1, **{**PLAIN, "recompute": recompute == "blocks"})
    command = [sys.executable, "-m", "trainer.bench.memory_step", str(patch_size), "1", precision, recompute]
    done = subprocess.run([*command, "resnet18", "1"], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    measured = 1e9 * json.loads(done.stdout.splitlines()[-1])["peak_memory_gb"]
    assert predicted == pytest.approx(measured, rel=0.15)


def test_the_parts_add_up() -> None:
    assert PeakMemory(1, 2, 3, 4, 5, 6, 7, 8, 9).total == 45
