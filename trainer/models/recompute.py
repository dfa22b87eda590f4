"""The network's training pass in segments whose inside is computed again in the backward pass.

Gradient checkpointing (Chen et al. 2016, arXiv 1604.06174): of each segment only what leaves it is kept. The Keras
model is not changed; this module only calls its layers in another way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from trainer.models.graph import Apply, Call, call_layer, calls_of
from trainer.models.keras import keras, tf

_CONVOLUTIONS = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D, keras.layers.SeparableConv2D)
_MIN_CONVOLUTIONS = 3  # in a segment: a bottleneck of a resnet, an inverted residual, two units of a densenet
_MIN_CONVOLUTIONS_OF_HEAD = 2  # a separable convolution: the decoder's maps, at 1/4, are the largest of all
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
    calls, handed_out = calls_of(model)
    calls = change(calls)
    segments = _segments(calls, handed_out)
    image, logits = id(model.input), calls[-1].output

    @tf.autograph.experimental.do_not_convert  # nothing in it depends on a tensor's value
    def forward(images: tf.Tensor) -> tf.Tensor:
        values = {image: tf.cast(images, model.input.dtype)}
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
        inside = dict(zip(taken, inputs, strict=True))
        for call in segment:
            inside[call.output] = apply(call, tf.nest.map_structure(inside.__getitem__, call.inputs))
        return [inside[i] for i in given]

    return dict(zip(given, wrap(run)(*[values[i] for i in taken]), strict=True))


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
            with tf.GradientTape() as tape:
                tape.watch(again)
                outputs = run(*again)
            return tape.gradient(outputs, (again, list(variables)), d_outputs)

        return run(*inputs), gradient

    return forward


def _segments(calls: list[Call], handed_out: set[int]) -> list[list[Call]]:
    """Cut where one tensor passes and a few convolutions have gone before.

    What the backbone hands to the decoder passes many cuts; it is kept in any case and does not count. All up to the
    first such map, at 1/4, is one segment: when it is computed again all others are done with, so its inside has
    their room, while maps of that size between segments would be kept all the time (0.4 GB at 2048 px, resnet50).
    """
    ends = [at for at, call in enumerate(calls) if call.output in handed_out]
    low_level, deepest = (ends[0], ends[-1]) if ends else (0, len(calls))
    last_use = {i: at for at, call in enumerate(calls) for i in tf.nest.flatten(call.inputs)}
    segments: list[list[Call]] = [[]]
    alive: set[int] = set()
    for at, call in enumerate(calls):
        segments[-1].append(call)
        alive = {i for i in alive | {call.output} if last_use.get(i, -1) > at}
        num_convolutions = sum(isinstance(c.layer, _CONVOLUTIONS) for c in segments[-1])
        enough = _MIN_CONVOLUTIONS_OF_HEAD if at > deepest else _MIN_CONVOLUTIONS
        is_cut = at >= low_level and len(alive - handed_out) <= 1 and num_convolutions >= enough
        if is_cut and at + 1 < len(calls):
            segments.append([])
    return segments
