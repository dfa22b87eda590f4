"""Augmentation: labels move with pixels, the numbers depend on the seed alone, and each change keeps to its setting."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.batches.augment import augment, jitter_colour
from trainer.batches.warp import draw_map, warp
from trainer.config.schema import AugmentConfig
from trainer.slides.stain import hed_jitter
from trainer.stores import Part

IMAGE = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
LABEL = np.random.default_rng(1).integers(0, 3, (32, 32), np.uint8)
STILL = AugmentConfig(flip=False, brightness=0, contrast=0, saturation=0)


def still(**changes: float) -> AugmentConfig:
    return STILL.model_copy(update=changes)


def augmented(
    image: np.ndarray,
    label: np.ndarray,
    config: AugmentConfig,
    rng: np.random.Generator,
    rows: tuple[int, int] | None = None,
    parts: list[Part] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """A patch in memory; what is read of it is appended to `parts`."""

    def read(part: Part) -> tuple[np.ndarray, np.ndarray]:
        if parts is not None:
            parts.append(part)
        return image[part.slices], label[part.slices]

    return augment(read, len(label), rows or (0, len(label)), config, rng)


def square(size: int, half: int) -> tuple[np.ndarray, np.ndarray]:
    """A white square on black in the middle, with label 1 under it."""
    label = np.zeros((size, size), np.uint8)
    label[size // 2 - half : size // 2 + half, size // 2 - half : size // 2 + half] = 1
    return np.repeat(label[..., None] * 255, 3, axis=-1), label


def test_flips_move_labels_with_pixels() -> None:
    tagged = np.repeat(LABEL[..., None] * 50, 3, axis=-1)
    images = []
    for seed in range(64):
        image, label = augmented(tagged, LABEL, still(flip=True), np.random.default_rng(seed))
        np.testing.assert_array_equal(image[..., 0], label * 50)
        images.append(label.tobytes())
    assert len(set(images)) == 8, "the symmetries of the square"


@pytest.mark.parametrize("changes", [{}, {"scale": 0.3}, {"elastic": 0.1}, {"scale": 0.3, "elastic": 0.1, "hed": 0.1}])
def test_augmentation_is_a_function_of_its_seed(changes: dict[str, float]) -> None:
    config = AugmentConfig(**changes)
    one, two, other = (augmented(IMAGE, LABEL, config, np.random.default_rng([1, 2, n])) for n in (3, 3, 4))
    np.testing.assert_array_equal(one[0], two[0])
    np.testing.assert_array_equal(one[1], two[1])
    assert not np.array_equal(one[0], other[0])


def test_without_warping_labels_are_only_moved() -> None:
    _, label = augmented(IMAGE, LABEL, AugmentConfig(), np.random.default_rng(1))
    np.testing.assert_array_equal(np.bincount(label.ravel()), np.bincount(LABEL.ravel()))


def test_colour_jitter_follows_its_definition() -> None:
    np.testing.assert_array_equal(jitter_colour(IMAGE, 1, 1, 1), IMAGE)
    np.testing.assert_array_equal(jitter_colour(IMAGE // 2, 1.5, 1, 1), np.rint(IMAGE // 2 * 1.5).astype(np.uint8))
    grey = jitter_colour(IMAGE, 1, 1, 0)
    luma = IMAGE @ np.array([0.299, 0.587, 0.114])
    assert np.abs(grey.astype(float) - luma[..., None]).max() <= 1
    assert set(np.unique(jitter_colour(IMAGE, 1, 0, 1))) <= {127, 128}, "no contrast is middle grey"
    image = np.random.default_rng(3).integers(0, 256, (300, 400, 3), np.uint8)
    expected = np.clip(np.rint(1.1 * (127.5 + 1.2 * (image - 127.5))), 0, 255)
    assert np.abs(jitter_colour(image, 1.1, 1.2, 1) - expected).max() <= 1


def test_each_change_keeps_the_numbers_of_those_that_were_there_before_it() -> None:
    """Flip, colour jitter, stain jitter, warp draw in this order; flip, warp, stain, colour are applied in that one."""
    for seed in range(4):
        rng = np.random.default_rng(seed)
        turns, mirror, colour = int(rng.integers(4)), bool(rng.integers(2)), 1 + rng.uniform(-1, 1, 3) * 0.1
        image = np.rot90(IMAGE, turns)[:, :: -1 if mirror else 1]
        label = np.rot90(LABEL, turns)[:, :: -1 if mirror else 1]
        expected = {AugmentConfig(): (jitter_colour(image, *colour), label)}
        alpha, beta = 0.2 * rng.uniform(-1, 1, (2, 3))
        expected[AugmentConfig(hed=0.2)] = jitter_colour(hed_jitter(image, 1 + alpha, beta), *colour), label
        moved, moved_label = warp(image, label, draw_map(32, 0.3, 0.1, rng))
        expected[AugmentConfig(hed=0.2, scale=0.3, elastic=0.1)] = (
            jitter_colour(hed_jitter(moved, 1 + alpha, beta), *colour),
            moved_label,
        )
        for config, (pixels, labels) in expected.items():
            found = augmented(IMAGE, LABEL, config, np.random.default_rng(seed))
            np.testing.assert_array_equal(found[0], pixels)
            np.testing.assert_array_equal(found[1], labels)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 9999),
    size=st.sampled_from([32, 48, 112, 240]),
    parts=st.integers(1, 4),
    changes=st.sampled_from([{}, {"hed": 0.1}, {"scale": 0.5}, {"elastic": 0.1}, {"scale": 0.3, "elastic": 0.05}]),
)
def test_ranks_that_share_a_patch_make_it_together_and_read_only_what_they_need(
    seed: int, size: int, parts: int, changes: dict[str, float]
) -> None:
    rng = np.random.default_rng(seed)
    image, label = rng.integers(0, 256, (size, size, 3), np.uint8), rng.integers(0, 3, (size, size), np.uint8)
    config = AugmentConfig(**changes)
    whole = augmented(image, label, config, np.random.default_rng([seed, 1]))
    edges = np.rint(np.linspace(0, size, parts + 1)).astype(int).tolist()
    read: list[Part] = []
    slabs = [augmented(image, label, config, np.random.default_rng([seed, 1]), rows, read) for rows in pairwise(edges)]
    # Pillow's coordinates are those of what was read, so a last bit may round the other way
    assert np.abs(np.concatenate([s[0] for s in slabs]).astype(int) - whole[0]).max() <= 1
    assert (np.concatenate([s[1] for s in slabs]) == whole[1]).mean() > 0.999
    if not changes.keys() & {"scale", "elastic"}:
        assert sum(p.width * p.height for p in read) == size**2, "each pixel is read once"
    elif parts == 4 and size == 240:  # a zoom by 1 / 1.5 needs 1.5 times the rows, a cell of the mesh is 15 px
        assert max(min(p.width, p.height) for p in read) <= 60 * 1.5 + 2 * 15 * 1.5 + 2 * 0.1 * size + 4


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 9999), scale=st.sampled_from([0.0, 0.2, 0.5]), elastic=st.sampled_from([0.0, 0.03, 0.1])
)  # fmt: skip
def test_a_painted_square_stays_under_its_label(seed: int, scale: float, elastic: float) -> None:
    pixels, labels = square(100, 20)
    image, label = warp(pixels, labels, draw_map(100, scale, elastic, np.random.default_rng(seed)))
    assert image.shape == pixels.shape and label.shape == labels.shape and image.dtype == label.dtype == np.uint8
    assert set(np.unique(label)) <= {0, 1}
    is_clear = abs(image[..., 0] - 127.5) > 25  # a whole outline may fall half way between two pixels
    assert is_clear.mean() > 0.9
    assert ((image[..., 0] > 127) == (label == 1))[is_clear].mean() > 0.995, "all but rounding along the outline"
    assert label.any()


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 9999),
    size=st.sampled_from([32, 50, 255, 1024]),
    scale=st.floats(0, 0.5),
    elastic=st.floats(0, 0.1),
)
def test_zoom_and_shifts_stay_within_their_settings(seed: int, size: int, scale: float, elastic: float) -> None:
    corners = draw_map(size, scale, elastic, np.random.default_rng(seed))
    zoomed = draw_map(size, scale, 1e-12 if elastic else 0.0, np.random.default_rng(seed))
    width = zoomed[0, -1, 0] - zoomed[0, 0, 0]
    assert size / (1 + scale) - 1e-9 <= width <= size * (1 + scale) + 1e-9
    np.testing.assert_allclose(zoomed[0, 0] + zoomed[-1, -1], size, err_msg="the centre stays")
    assert np.linalg.norm(corners - zoomed, axis=-1).max() <= elastic * size + 1e-9


def test_zoom_is_drawn_evenly_between_smaller_and_larger() -> None:
    widths = [np.ptp(draw_map(64, 0.5, 0.0, np.random.default_rng(seed))[0, :, 0]) / 64 for seed in range(400)]
    assert 0.42 < np.mean(np.array(widths) < 1) < 0.58
    assert min(widths) < 0.69 and max(widths) > 1.45


def test_a_map_that_moves_nothing_changes_nothing() -> None:
    image, label = warp(IMAGE, LABEL, draw_map(32, 0.0, 0.0, np.random.default_rng(0)))
    np.testing.assert_array_equal(image, IMAGE)
    np.testing.assert_array_equal(label, LABEL)


def test_outside_the_patch_lies_its_mirror_image_with_its_labels() -> None:
    """Zoomed out by two, the middle half is the patch at half its size; pixels beyond repeat it mirrored."""
    corners = draw_map(64, 0.0, 0.0, np.random.default_rng(0))
    columns = np.repeat((np.arange(64) // 16).astype(np.uint8)[None], 64, axis=0)
    pixels = np.repeat(columns[..., None] * 60, 3, axis=-1)
    image, label = warp(pixels, columns, 32 + (corners - 32) * 2)
    expected = np.repeat([1, 0, 0, 1, 2, 3, 3, 2], 8)
    np.testing.assert_array_equal(label, np.tile(expected, (64, 1)))
    inner = np.arange(64) % 8 // 2 % 3 == 1  # away from the seams, where pixels are blends
    np.testing.assert_array_equal(image[:, inner, 0], label[:, inner] * 60)


def test_ignored_pixels_stay_ignored_and_no_class_is_invented() -> None:
    labels = np.where(LABEL == 1, 255, LABEL).astype(np.uint8)
    for seed in range(8):
        _, label = augmented(IMAGE, labels, still(scale=0.5, elastic=0.1), np.random.default_rng(seed))
        assert set(np.unique(label)) <= {0, 2, 255}
