"""Extracted patches as TFRecord: one file per slide and patch size, for pipelines that are built on tf.data.

    PATH/p256/tumor_001-1a2b3c4d.tfrecord    standard `tf.train.Example` records, one per patch
    PATH/p256/tumor_001-1a2b3c4d.npz         where the bytes of each patch lie, and what the file was made from

A pipeline needs the .tfrecord files only:

    FEATURES = {
        "image/encoded": tf.io.FixedLenFeature([], tf.string),   # JPEG or PNG, see image/format
        "label/encoded": tf.io.FixedLenFeature([], tf.string),   # zlib of [height, width] uint8
        "image/height": tf.io.FixedLenFeature([], tf.int64),
        "image/width": tf.io.FixedLenFeature([], tf.int64),
    }   # also: image/format, label/format, slide (name), x, y (level-0 pixels of the corner), downsample

    def parse(record):
        example = tf.io.parse_single_example(record, FEATURES)
        image = tf.io.decode_image(example["image/encoded"], channels=3, expand_animations=False)
        labels = tf.io.decode_raw(tf.io.decode_compressed(example["label/encoded"], "ZLIB"), tf.uint8)
        return image, tf.reshape(labels, [example["image/height"], example["image/width"]])

    dataset = tf.data.TFRecordDataset(paths).map(parse, num_parallel_calls=tf.data.AUTOTUNE)

Reading here needs neither TensorFlow nor a scan: an Example holds its byte strings as they are, so the .npz says where
in the file they lie. TensorFlow is imported for writing.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from trainer.quiet import quiet_stderr
from trainer.stores.coding import EncodedPatch
from trainer.stores.contents import Contents, Header
from trainer.stores.extracted import ExtractedStore
from trainer.stores.patch_files import PatchTable, PlacedPatch, put_in_place

_BEFORE, _AFTER = 12, 4
"""Bytes round a record: its length and that length's checksum; its own checksum (TFRecord's format)."""


class TfrecordFormat:
    """See the module."""

    suffix = ".tfrecord"

    def write(self, temporary: Path, contents: Contents, patches: Iterable[PlacedPatch]) -> None:
        where = _write_records(temporary, contents, patches)
        contents.path.unlink(missing_ok=True)  # else an old file could stand beside the new .npz after a kill
        places = _places_file(contents.path)
        part = places.with_name(f".{places.name}.part")
        with part.open("wb") as file:
            header = json.dumps(contents.header, sort_keys=True)
            size = temporary.stat().st_size
            np.savez(file, header=np.array(header), num_bytes=size, x=contents.x, y=contents.y, where=where)
        put_in_place(part, places)

    def read_header(self, path: Path) -> Header:
        found = path.stat().st_size
        with np.load(_places_file(path), allow_pickle=False) as file:
            if found != file["num_bytes"]:
                raise ValueError(f"{found} bytes instead of {file['num_bytes']}")
            return json.loads(str(file["header"]))

    def read_table(self, path: Path) -> PatchTable:
        with np.load(_places_file(path), allow_pickle=False) as file:
            return PatchTable.of(*file["where"].T)


class TfrecordStore(ExtractedStore):
    """A PatchStore over the files that `widefield extract` wrote."""

    format = TfrecordFormat()


def _places_file(path: Path) -> Path:
    return path.with_suffix(".npz")


def _write_records(path: Path, contents: Contents, patches: Iterable[PlacedPatch]) -> np.ndarray:
    """[n, 4] int64 where each patch lies: see PatchTable."""
    tf = _tensorflow()
    where, start = np.zeros((len(contents.x), 4), np.int64), 0
    try:
        with tf.io.TFRecordWriter(str(path)) as writer:
            for place, patch in patches:
                record = _example(tf.train, contents, place, patch).SerializeToString(deterministic=True)
                writer.write(record)
                image, labels = record.index(patch.image), record.index(patch.labels)
                where[place] = start + _BEFORE + image, len(patch.image), labels - image, len(patch.labels)
                start += _BEFORE + len(record) + _AFTER
    except tf.errors.OpError as error:
        raise OSError(errno.EIO, error.message) from error
    return where


def _example(train: Any, contents: Contents, place: int, patch: EncodedPatch) -> Any:
    """One tf.train.Example. Serialised by key, so that the image comes before its labels."""

    def text(value: bytes) -> Any:
        return train.Feature(bytes_list=train.BytesList(value=[value]))

    def whole(value: int) -> Any:
        return train.Feature(int64_list=train.Int64List(value=[value]))

    settings = contents.header["settings"]
    features = {
        "image/encoded": text(patch.image),
        "image/format": text(settings["image"].split()[0].encode()),
        "image/height": whole(contents.patch_size),
        "image/width": whole(contents.patch_size),
        "label/encoded": text(patch.labels),
        "label/format": text(b"zlib"),
        "slide": text(contents.header["slide"].encode()),
        "x": whole(int(contents.x[place])),
        "y": whole(int(contents.y[place])),
        "downsample": train.Feature(float_list=train.FloatList(value=[settings["downsample"]])),
    }
    return train.Example(features=train.Features(feature=features))


def _tensorflow() -> Any:
    with quiet_stderr():
        import tensorflow as tf
    return tf
