"""Patches cut into slabs: what can be known without a second rank. Real ranks are in tests/ranks/test_spatial.py."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import write_config

from trainer.config import load_config
from trainer.config.schema import ModelConfig
from trainer.errors import AffinityError, ModelError
from trainer.models import build_model
from trainer.models.halos import check_split, halos_of, slabs
from trainer.models.keras import keras
from trainer.models.memory.cost import pass_cost
from trainer.train.placement import check_groups_on_nodes


def network(**settings):
    return build_model(ModelConfig(**{"aspp_channels": 16, "decoder_channels": 16, **settings}), 2)


@given(units=st.integers(1, 600), parts=st.integers(1, 64))
def test_slabs_cover_a_patch_in_order_and_are_equal_to_within_sixteen_rows(units: int, parts: int) -> None:
    if units < parts:
        with pytest.raises(ModelError, match=r"cannot be cut into"):
            slabs(16 * units, parts)
        return
    cut = slabs(16 * units, parts)
    assert [row for slab in cut for row in range(slab.start, slab.stop)] == list(range(16 * units))
    heights = [slab.stop - slab.start for slab in cut]
    assert max(heights) - min(heights) <= 16 and not any(h % 16 for h in heights)


@pytest.mark.parametrize(("stride", "rows"), [(16, 18 * 16), (8, 36 * 8)])
def test_the_largest_halo_is_that_of_the_widest_atrous_convolution(stride: int, rows: int) -> None:
    model = network(backbone="resnet18", output_stride=stride)
    assert max(max(h.above, h.below) * h.stride for h in halos_of(model)) == rows
    check_split(model, 2 * rows, 2)
    with pytest.raises(ModelError, match=r"thinner than the largest halo") as error:
        check_split(model, 2 * rows - 16, 2)
    assert "at most 1 slabs, or a patch of at least 576 px" in str(error.value)


def test_what_is_sent_is_the_rows_that_each_window_reaches_over_the_edge() -> None:
    image = keras.Input((None, None, 3))
    x = keras.layers.Conv2D(8, 7, 2, padding="same")(image)  # 2 rows above, 3 below; the image needs no gradient
    x = keras.layers.MaxPooling2D(3, 2, padding="same")(x)  # none above, one below
    model = keras.Model(image, keras.layers.Conv2D(5, 3, padding="same", dilation_rate=4)(x))
    first, pooling, dilated = halos_of(model)
    assert [(h.above, h.below, h.stride, h.channels) for h in (first, pooling, dilated)] == [
        (2, 3, 1, 3), (0, 1, 2, 8), (4, 4, 4, 8)
    ]  # fmt: skip
    assert first.sent_bytes(64, 2, up=False, down=True) == 2 * 2 * 64 * 3 * 4
    assert first.sent_bytes(64, 2, up=True, down=False) == 2 * 3 * 64 * 3 * 4
    assert pooling.sent_bytes(64, 1, up=True, down=False) == 1 * 32 * 8 * 4, "up forward, nothing back"
    assert pooling.sent_bytes(64, 1, up=False, down=True) == 1 * 32 * 8 * 4, "only its gradient"
    assert dilated.sent_bytes(64, 1, up=True, down=True) == 2 * 8 * 16 * 8 * 4


def test_a_layer_that_cannot_be_split_is_named() -> None:
    image = keras.Input((None, None, 3))
    model = keras.Model(image, keras.layers.Conv2DTranspose(2, 2, 2, name="upwards")(image))
    with pytest.raises(ModelError, match=r"layer upwards \(Conv2DTranspose\) cannot be split over ranks"):
        check_split(model, 64, 2)
    lossy = keras.Model(image, keras.layers.Conv2D(2, 3, name="shrinking")(image))
    with pytest.raises(ModelError, match=r"layer shrinking \(Conv2D\) loses rows at the border"):
        check_split(lossy, 64, 2)


def test_a_network_that_goes_back_to_the_size_of_the_patch_can_be_split_between_rows_of_its_deepest_map() -> None:
    model = network(architecture="unet", backbone="vgg16")
    check_split(model, 128, 2)
    deepest = max(h.stride for h in halos_of(model))
    assert deepest == 32 and all(max(h.above, h.below) == 1 for h in halos_of(model))
    assert not any(h.layer in ("logits", "classifier") for h in halos_of(model)), "nothing is resized"
    with pytest.raises(
        ModelError, match=r"2 slabs of a 96 px patch cut through rows of the deepest map, .* 1/32"
    ) as error:
        check_split(model, 96, 2)
    assert "a multiple of 64 px" in str(error.value)


def test_a_pyramid_of_means_over_parts_of_the_patch_is_refused_by_name() -> None:
    with pytest.raises(ModelError, match=r"layer pyramid_1_mean \(MeanOfParts\) cannot be split over ranks") as error:
        check_split(network(architecture="pspnet", backbone="vgg16"), 1024, 2)
    assert "deeplabv3plus or unet on resnet50" in str(error.value)


def test_a_group_that_spans_nodes_is_refused_where_its_stage_says_so(tmp_path: Path) -> None:
    stage = {"patch_size": 576, "local_batch_size": 1, "steps": 1, "parallel": {"spatial": 2, "within_node": True}}
    config = load_config(write_config(tmp_path, tmp_path, curriculum=[stage]))

    def ranks_on(*hosts: str) -> list[Any]:
        return [SimpleNamespace(host=host) for host in hosts]

    check_groups_on_nodes(config, ranks_on("a", "a", "b", "b"))
    with pytest.raises(AffinityError, match=r"ranks 2 to 3 share a patch and are on b, c"):
        check_groups_on_nodes(config, ranks_on("a", "a", "b", "c"))
    elsewhere = load_config(tmp_path / "run.yaml", ["curriculum.0.parallel.within_node=false"])
    check_groups_on_nodes(elsewhere, ranks_on("a", "b"))


@pytest.mark.parametrize("recompute", [False, pytest.param(True, marks=pytest.mark.long)])
def test_half_a_patch_takes_about_half_the_memory_and_arithmetic(recompute: bool) -> None:
    model = network(backbone="mobilenetv2")
    whole, half = (pass_cost(model, 1024, 1, recompute, parts) for parts in (1, 2))
    assert 0.44 < half.live_bytes / whole.live_bytes < 0.56  # of the copies that padding makes it needs none
    assert 0.49 < half.flops / whole.flops < 0.54
