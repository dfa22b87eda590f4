"""Random 224 px patches (image and labels) from the HDF5 store, beside tf.data over TFRecords of the same JPEG bytes.

`python tools/bench_store.py SLIDE [--threads 2]` extracts the slide twice (hdf5, tfrecord), compares the stored bytes,
then reads batches of 32 in turns: the store through a pool of threads, shuffled over all patches; tf.data as its guide
says (shuffle buffer of 2,048 records, parallel map in any order, batch, prefetch), with a private pool of as many
threads. Files are in the page cache. Bars: 0.5 ms per patch with one thread; 1.0 x tf.data. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import openslide

from trainer.config.schema import Config
from trainer.patches.build import build_index
from trainer.patches.index import PatchIndex
from trainer.stores import open_store
from trainer.stores.extract import extract, jobs_of
from trainer.stores.extracted import ExtractedStore

SIZE, BATCH, SHUFFLE_BUFFER = 224, 32, 2048


def annotated_slide(slide: Path, folder: Path) -> None:
    """A manifest of the slide with circles as tumour over a quarter of it, so that labels are not constant."""
    width, height = openslide.OpenSlide(str(slide)).dimensions
    angles, areas = np.linspace(0, 2 * np.pi, 400, endpoint=False), []
    for x, y in ((0.25, 0.25), (0.75, 0.25), (0.5, 0.75)):
        radius = 0.15 * min(width, height)
        points = zip(x * width + radius * np.cos(angles), y * height + radius * np.sin(angles), strict=True)
        drawn = "".join(f'<Coordinate X="{a:.1f}" Y="{b:.1f}" />' for a, b in points)
        areas.append(f'<Annotation PartOfGroup="_0" Type="Polygon"><Coordinates>{drawn}</Coordinates></Annotation>')
    (folder / "a.xml").write_text(f"<ASAP_Annotations><Annotations>{''.join(areas)}</Annotations></ASAP_Annotations>")
    (folder / "slides.csv").write_text(f"slide,annotation,split\n{slide.absolute()},a.xml,train\n")


def config_for(folder: Path, kind: str) -> Config:
    classes = [{"name": "normal"}, {"name": "tumour", "groups": ["_0"]}]
    return Config.model_validate({
        "name": "bench", "output": folder / "run", "data": {"path": folder / "slides.csv", "classes": classes},
        "split": {"val_fraction": 0.0}, "index": {"overlap": 0.7}, "stores": {"kind": kind, "path": folder / "store"},
        "curriculum": [{"patch_size": SIZE, "local_batch_size": 1, "steps": 1}],
    })  # fmt: skip


def filled(folder: Path, index: PatchIndex, kind: str) -> ExtractedStore:
    config = config_for(folder, kind)
    extract(jobs_of(index, config, [0]), map, lambda outcome: None)
    store = open_store(index, config)
    assert isinstance(store, ExtractedStore)
    return store


def check_same_bytes(a: ExtractedStore, b: ExtractedStore) -> int:
    """The mean bytes of a patch."""
    total = 0
    for row in range(len(a.index)):
        one, other = a.source.encoded(row), b.source.encoded(row)
        assert one.image == other.image and one.labels == other.labels
        total += len(one.image) + len(one.labels)
    return total // len(a.index)


def one_thread_ms(store: ExtractedStore, rows: np.ndarray) -> float:
    started = time.perf_counter()
    for row in rows:
        store.read(row[None])
    return (time.perf_counter() - started) / len(rows) * 1e3


def patches_per_s(batches: Iterator[tuple[np.ndarray, np.ndarray]]) -> tuple[float, float]:
    """(patches per second, CPU milliseconds per patch): the second tells load from others apart."""
    started, cpu_started, total = time.perf_counter(), time.process_time(), 0
    for images, labels in batches:
        assert images.shape[1:] == (SIZE, SIZE, 3) and labels.shape[1:] == (SIZE, SIZE)
        total += len(images)
    return total / (time.perf_counter() - started), (time.process_time() - cpu_started) / total * 1e3


def our_batches(store: ExtractedStore, rows: np.ndarray, threads: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    with ThreadPoolExecutor(threads) as pool:
        yield from pool.map(store.read, [rows[i : i + BATCH] for i in range(0, len(rows), BATCH)])


def tf_data(path: Path, threads: int, repeats: int):
    import tensorflow as tf

    features = {k: tf.io.FixedLenFeature([], tf.string) for k in ("image/encoded", "label/encoded")}

    def parse(record):
        example = tf.io.parse_single_example(record, features)
        labels = tf.io.decode_raw(tf.io.decode_compressed(example["label/encoded"], "ZLIB"), tf.uint8)
        return tf.io.decode_jpeg(example["image/encoded"], channels=3), tf.reshape(labels, [SIZE, SIZE])

    options = tf.data.Options()
    options.threading.private_threadpool_size = threads
    dataset = tf.data.TFRecordDataset(str(path)).repeat(repeats).shuffle(SHUFFLE_BUFFER)
    dataset = dataset.map(parse, num_parallel_calls=threads, deterministic=False).batch(BATCH).prefetch(2)
    return dataset.with_options(options)


def quartiles(values: Sequence[float]) -> dict[str, float]:
    low, middle, high = statistics.quantiles(values, n=4)
    return {"median": round(middle, 3), "q1": round(low, 3), "q3": round(high, 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("slide", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        annotated_slide(args.slide, folder)
        index = build_index(config_for(folder, "hdf5"), folder / "index.parquet")
        store, records = filled(folder, index, "hdf5"), filled(folder, index, "tfrecord")
        mean_bytes = check_same_bytes(store, records)
        repeats = max(1, 4096 // len(index))
        dataset = tf_data(records.source.file_of(0), args.threads, repeats)
        rng, rows, rounds = np.random.default_rng(0), np.repeat(np.arange(len(index)), repeats), []
        for _ in range(args.rounds + 1):
            ours = patches_per_s(our_batches(store, rng.permutation(rows), args.threads))
            theirs = patches_per_s(dataset.as_numpy_iterator())
            rounds.append((one_thread_ms(store, rng.permutation(rows)[:1000]), *ours, *theirs))
        ms, ours, our_cpu, theirs, their_cpu = zip(*rounds[1:], strict=True)  # the first one warms up
    print(json.dumps({
        "bench": "store", "slide": args.slide.name, "patches": len(index), "patch_px": SIZE, "mean_bytes": mean_bytes,
        "threads": args.threads, "rounds": args.rounds, "one_thread_ms_per_patch": quartiles(ms),
        "hdf5_patches_per_s": quartiles(ours), "tf_data_patches_per_s": quartiles(theirs),
        "hdf5_cpu_ms_per_patch": quartiles(our_cpu), "tf_data_cpu_ms_per_patch": quartiles(their_cpu),
        "ratio_to_tf_data": quartiles([a / b for a, b in zip(ours, theirs, strict=True)]),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
