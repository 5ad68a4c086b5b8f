"""How long a data set of each kind takes to list and to divide into shards, and the peak memory of that.

    python -m benchmarks.listing                                  # a million images of each kind: some minutes of CPU
    python -m benchmarks.listing --images 10000 --kinds folder zip

The data sets are made in a temporary folder, one after the other: a million images take about 2 GB and a million inodes
there. Images are a few bytes each, since listing opens none, and what was just made is listed from the system's cache.
Each listing is a process of its own, whose memory counts with Python and the libraries (about 0.1 GB); its start does
not count.
"""

from __future__ import annotations

import argparse
import io
import os
import resource
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from pti_core.datasets import scan
from pti_core.tables import assign_shards

CONTENT = b"no image"
SHARD = 64  # images, as runs have it if nothing else is said
CLASSES = 1000


def parts(images: int, count: int) -> Iterator[tuple[int, range]]:
    """The images by number, in so many parts."""
    for part in range(count):
        yield part, range(part * images // count, (part + 1) * images // count)


def folder(root: Path, images: int) -> None:
    """Empty files in 1,000 subfolders, no links to a few, whose status would be at hand."""
    for part, numbers in parts(images, 1000):
        (within := root / f"{part:05d}").mkdir()
        for i in numbers:
            os.close(os.open(f"{within}/{i:08d}.png", os.O_CREAT))


def one_zip(root: Path, images: int) -> None:
    """As NVIDIA's dataset_tool writes it."""
    with zipfile.ZipFile(root / "images.zip", "w") as archive:
        for i in range(images):
            archive.writestr(zipfile.ZipInfo(f"{i // 1000:05d}/img{i:08d}.png"), CONTENT)


def tars(root: Path, images: int) -> None:
    """100 shards of WebDataset: a file with the label beside each image, so twice as many members."""
    for part, numbers in parts(images, 100):
        with tarfile.open(root / f"shard-{part:03d}.tar", "w") as archive:
            for i in numbers:
                for kind, content in (("jpg", CONTENT), ("cls", b"%d" % (i % CLASSES))):
                    info = tarfile.TarInfo(f"{i:08d}.{kind}")
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))


def parquet(root: Path, images: int) -> None:
    """20 files as Hugging Face writes them: `struct{bytes, path}`, 100 images to a row group."""
    for part, numbers in parts(images, 20):
        rows = [{"bytes": CONTENT, "path": f"{i:08d}.jpg"} for i in numbers]
        column = pa.array(rows, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
        pq.write_table(pa.table({"image": column}), root / f"train-{part:05d}.parquet", row_group_size=100)


class Kind(NamedTuple):
    """A kind of data set."""

    title: str
    make: Callable[[Path, int], None]
    group_by: str | None = None


KINDS = {
    "folder": Kind("a folder with 1,000 subfolders", folder),
    "zip": Kind("one zip", one_zip),
    "tars": Kind("100 WebDataset tars with labels", tars, "column:cls"),
    "parquet": Kind("20 Parquet files", parquet),
}


def listed(root: Path, group_by: str | None) -> tuple[int, float, float, int]:
    """Images in shards, seconds, seconds of CPU and the process's peak of memory in bytes."""
    start, worked = time.perf_counter(), time.process_time()
    manifest = assign_shards(scan(str(root), group_by=group_by), SHARD)
    taken, cpu = time.perf_counter() - start, time.process_time() - worked
    unit = 1 if sys.platform == "darwin" else 1024
    return len(manifest), taken, cpu, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def main() -> None:
    """Make, list and delete one data set after the other: a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1_000_000, help="in each data set")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="which; without, all")
    args = parser.parse_args()
    print(f"| {args.images:,} images in | seconds | CPU seconds | peak memory |")
    print("| --- | ---: | ---: | ---: |", flush=True)
    # A new process counts its parent's memory as its own peak, so this one stays small: another makes the data sets.
    spawn = get_context("spawn")
    with ProcessPoolExecutor(1, spawn) as maker, ProcessPoolExecutor(1, spawn, max_tasks_per_child=1) as alone:
        for kind in (KINDS[name] for name in args.kinds):
            with tempfile.TemporaryDirectory(prefix="listing-") as place:
                maker.submit(kind.make, Path(place), args.images).result()
                count, taken, cpu, peak = alone.submit(listed, Path(place), kind.group_by).result()
            if count != args.images:
                sys.exit(f"{kind.title}: {count:,} images were listed")
            print(f"| {kind.title} | {taken:.1f} | {cpu:.1f} | {peak / 1e9:.2f} GB |", flush=True)


if __name__ == "__main__":
    main()
