"""The network's training pass in segments whose inside is computed again in the backward pass.

Gradient checkpointing (Chen et al. 2016, arXiv 1604.06174): of each segment only what leaves it is kept. The Keras
model is not changed; this module only calls its layers in another way.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import pairwise

from trainer.models.graph import Apply, Call, call_layer, calls_of, sizes_of
from trainer.models.keras import keras, tf

_NEEDS_NO_INPUT = (keras.layers.ReLU, keras.layers.Add, keras.layers.Concatenate)
"""Layers whose gradient is made from their output, or from nothing."""
_GRADIENTS = 2
"""Maps of the size of a segment's largest that are there on the way back, beside what is kept: its gradients."""
_OF_DILATED = 1.5
"""TensorFlow computes a dilated convolution on a copy of the map with zeros around it, and keeps that."""
Run = Callable[..., list[tf.Tensor]]
Wrap = Callable[[Run], Run]


def recomputing(
    model: keras.Model, apply: Apply = call_layer, change: Callable[[list[Call]], list[Call]] = list
) -> Callable[[tf.Tensor], tf.Tensor]:
    """`model(images, training=True)` that keeps only what passes between segments, for use inside a `tf.function`.

    Gradients are those of the model itself. A layer that changes a state when it is called does so twice: under batch
    norm the moving statistics would take two steps for one.

    Args:
      model: functional, one input, one output, each layer called once; models inside it are walked into.
      apply: how one of its layers is called.
      change: another list of calls with the same result.
    Returns:
      images [B, H, W, 3] -> logits [B, H, W, num_classes].
    """
    calls = change(calls_of(model))
    segments = _segments(calls, sizes_of(calls, id(model.input)))
    image, logits = id(model.input), calls[-1].output

    @tf.autograph.experimental.do_not_convert  # nothing in it depends on a tensor's value
    def forward(images: tf.Tensor) -> tf.Tensor:
        values = {image: images}
        for n, segment in enumerate(segments):
            later = {logits, *(i for s in segments[n + 1 :] for call in s for i in tf.nest.flatten(call.inputs))}
            # The backward pass begins with the last segment: to forget it would free nothing.
            wrap = _as_it_is if segment is segments[-1] else _forgetful
            values.update(_run(segment, values, later, wrap, apply))
        return values[logits]

    return forward


def _run(
    segment: list[Call], values: dict[int, tf.Tensor], later: set[int], wrap: Wrap, apply: Apply
) -> dict[int, tf.Tensor]:
    """Call a segment's layers; returns those of its tensors that are needed later."""
    made = [call.output for call in segment]
    read = dict.fromkeys(i for call in segment for i in tf.nest.flatten(call.inputs))
    taken = [i for i in read if i not in made]
    given = [i for i in made if i in later]

    def run(*inputs: tf.Tensor) -> list[tf.Tensor]:
        inside = {i: _as_numbers(x) for i, x in zip(taken, inputs, strict=True)}
        for call in segment:
            inside[call.output] = apply(call, tf.nest.map_structure(inside.__getitem__, call.inputs))
        return [inside[i] for i in given]

    return dict(zip(given, wrap(run)(*[values[i] for i in taken]), strict=True))


def _as_numbers(x: tf.Tensor) -> tf.Tensor:
    """The image is kept as bytes."""
    return tf.cast(x, tf.float32) if x.dtype.is_integer else x


def _as_it_is(run: Run) -> Run:
    return run


def _forgetful(run: Run) -> Run:
    """`run`, with only its inputs kept for the backward pass.

    `tf.recompute_grad` does the same, but copies each input by adding zero to it.
    """

    @tf.custom_gradient
    def forward(*inputs: tf.Tensor):
        def gradient(*d_outputs: tf.Tensor, variables: Sequence[tf.Variable] = ()):
            with tf.control_dependencies(d_outputs):  # else all segments would be computed again at once
                again = [tf.identity(x) for x in inputs]
            learned = [x for x in again if x.dtype.is_floating]
            with tf.GradientTape() as tape:
                tape.watch(learned)
                outputs = run(*again)
            d_learned, d_variables = tape.gradient(outputs, (learned, list(variables)), d_outputs)
            return [d_learned.pop(0) if x.dtype.is_floating else None for x in again], d_variables

        return run(*inputs), gradient

    return forward


def _segments(calls: list[Call], sizes: dict[int, float]) -> list[list[Call]]:
    """Cut so that the backward pass holds as little as possible at a time.

    While a segment is computed again, there is what passes between the segments before it, and its own inside. What is
    computed again does not depend on the cuts, but for the last segment, which is not: it is as long as that allows.

    Args:
      sizes: bytes, in any unit, of what each call makes, by `Call.output`.
    """
    readers = defaultdict(list)
    for call in calls:
        for i in tf.nest.flatten(call.inputs):
            readers[i].append(call.layer)
    insides = [_insides(calls[:stop], sizes, readers) for stop in range(len(calls) + 1)]
    passing = _passing(calls)
    kept = [[sum(sizes[i] for i in after - before) for before in passing] for after in passing]
    low, high = 0.0, insides[-1][0]
    while high - low > 0.01 * high:  # within 1 % of the least
        middle = (low + high) / 2
        low, high = (low, middle) if _stops(insides, kept, middle) else (middle, high)
    stops = [0, *(_stops(insides, kept, high) or [len(calls)])]
    return [calls[start:stop] for start, stop in pairwise(stops)]


def _stops(insides: list[list[float]], kept: list[list[float]], limit: float) -> list[int] | None:
    """Where segments end of which none needs more than the limit, and the last begins as early as that allows.

    Args:
      insides: of the calls from `start` to `stop`, as [stop][start].
      kept: what has to be kept at `stop` beside what was at `start`, as [stop][start].
    """
    whole = len(insides) - 1
    least: list[float | None] = [0.0] + [None] * whole  # that is kept before a segment that starts there
    previous = [0] * (whole + 1)
    for stop in range(1, whole + 1):
        for start in range(stop - 1, -1, -1):
            if insides[stop][start] > limit:
                break
            before, least_after = least[start], least[stop]
            if before is not None and before + insides[stop][start] <= limit:
                after = before + kept[stop][start]
                if stop == whole or least_after is None or after < least_after:
                    least[stop], previous[stop] = after, start
    if least[whole] is None:
        return None
    stops = [whole]
    while previous[stops[-1]]:
        stops.append(previous[stops[-1]])
    return stops[::-1]


def _passing(calls: list[Call]) -> list[set[int]]:
    """Between which calls a tensor passes: at n those that the first n calls make and later ones take."""
    last_use = {i: at for at, call in enumerate(calls) for i in tf.nest.flatten(call.inputs)}
    passing: list[set[int]] = [set()]
    for at, call in enumerate(calls):
        passing.append({i for i in passing[-1] | {call.output} if last_use.get(i, -1) > at})
    return passing


def _insides(calls: list[Call], sizes: dict[int, float], readers: dict[int, list[keras.layers.Layer]]) -> list[float]:
    """What the calls from each one to the last hold while they are computed again and their gradients are made.

    Args:
      readers: the layers that take each tensor, also those that come later.
    """
    kept, largest, insides = 0.0, 0.0, []
    for call in reversed(calls):
        if not all(isinstance(layer, _NEEDS_NO_INPUT) for layer in readers[call.output]):
            kept += sizes[call.output]
        kept += max(len(readers[call.output]) - 1, 0) * sizes[call.output]  # gradients that wait to be added up
        if max(getattr(call.layer, "dilation_rate", (1, 1))) > 1:
            kept += _OF_DILATED * sizes.get(call.inputs, 0.0)
        largest = max(largest, sizes[call.output])
        insides.append(kept + _GRADIENTS * largest)
    return insides[::-1]
