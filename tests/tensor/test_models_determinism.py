from __future__ import annotations

from launch import must_pass, run_python

# 3 x 100 MB are past the 200 MB from which grappler's memory optimiser would act. float32 numbers near 1e8 are 8 apart.
SUMS = """
from trainer.models.determinism import deterministic_operations
from trainer.models.keras import tf
deterministic_operations()

@tf.function
def total(ones, last):
    terms = {}
    for name, factor in sorted({"a": 1e8, "b": -1e8, "c": 1.0}.items(), key=lambda term: term[0] == last):
        with tf.control_dependencies(list(terms.values()) if name == last else []):
            terms[name] = tf.multiply(tf.exp(ones), factor, name=name)
    return tf.add_n([terms["a"], terms["b"], terms["c"]])

print({float(total(tf.ones([25_000_000]), last)[0]) for last in "abc"})
"""


def test_a_sum_has_the_same_bits_whichever_term_comes_last() -> None:
    sums = must_pass(run_python("-c", SUMS)).splitlines()[-1]
    assert sums.count(",") == 0, sums
