"""The pictures of a report: one sprite per image, drawn once and kept in the report's folder, a file a shard.

A sprite holds in its first row target, pivot, tuned (as it was drawn in memory, see `shots`) and stored, and below a
strip of edits for each direction and generator: base and tuned along the first direction, then along the second.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pti_core import images
from pti_core.directions import Direction, visible_directions
from pti_core.editing.results import finished
from pti_core.engine import Engine
from pti_core.generators.base import Generator
from pti_core.read_back import StoredRows, in_turn, stored_rows
from pti_core.runs import Run, engine_for, stored_from_rows
from pti_core.shard.shots import read_shots
from pti_core.storage.files import MissingFile

STRENGTHS: Final = tuple(round(i * 2 / 3, 2) for i in range(-3, 4))
"""Of the edits, in standard deviations of W along the direction: -2 to 2, 0 in the middle."""

SHOTS: Final = ("target", "pivot", "tuned", "stored")
"""The pictures in the first row."""

EDIT: Final = 128  # pixels at most of the edits' pictures; `images.SHOT` of those in the first row
QUALITY: Final = 72  # of WebP
AT_ONCE: Final = 4  # pictures that a generator draws at once: edits at 1024 need much memory
VERSION: Final = 2  # of the sprites; older ones are drawn again
GREY: Final = 128  # where the target is gone, or has changed since; where the tuned image was not kept

_SCHEMA: Final = pa.schema([("image_id", pa.string()), ("whole", pa.bool_()), ("sprite", pa.binary())])


@dataclass(frozen=True)
class Layout:
    """Where the pictures of a sprite lie: `shot` pixels a picture in the first row, `edit` in the strips."""

    shot: int
    edit: int
    directions: tuple[str, ...]
    strengths: tuple[float, ...]

    @property
    def width(self) -> int:
        """Of the sprite, pixels."""
        return max(len(SHOTS) * self.shot, len(self.strengths) * self.edit)

    @property
    def height(self) -> int:
        """Of the sprite, pixels."""
        return self.shot + 2 * len(self.directions) * self.edit


@dataclass(frozen=True)
class Pictures:
    """Sprites (WebP) by image_id, and how they are laid out; no layout where nothing was drawn."""

    sprites: Mapping[str, bytes]
    layout: Layout | None


OnPicture = Callable[[], None]
"""Called once for every image whose pictures are there."""


def draw(run: Run, wanted: Mapping[int, Sequence[str]], on_picture: OnPicture = lambda: None) -> Pictures:
    """The pictures of the wanted images (image_ids by shard), from the report's folder where they were drawn before.

    The engine is loaded only where something has to be drawn. A shard that was done again is drawn again.
    """
    sprites: dict[str, bytes] = {}
    layout: Layout | None = None
    directions: list[Direction] | None = None
    for shard, ids in sorted(wanted.items()):
        key = _key(run, finished(run.store, run.name, shard))
        kept, found = _kept(run, shard, key)
        layout = layout or found
        missing = [image_id for image_id in ids if image_id not in kept or not kept[image_id][0]]
        for image_id in ids:
            if image_id not in missing:
                on_picture()
        if missing:
            engine = engine_for(run)
            directions = directions or visible_directions(engine.generator, engine.statistics, engine.lpips)
            layout = _layout(engine, directions)
            kept |= _drawn(run, engine, directions, layout, shard, missing, on_picture)
            run.store.write_report(run.name, _path(shard), _parquet(kept, key, layout))
        sprites |= {image_id: kept[image_id][1] for image_id in ids}
    return Pictures(sprites, layout)


def _layout(engine: Engine, directions: Sequence[Direction]) -> Layout:
    resolution = engine.generator.img_resolution
    return Layout(min(images.SHOT, resolution), min(EDIT, resolution), tuple(d.name for d in directions), STRENGTHS)


_Kept = dict[str, tuple[bool, bytes]]  # whether the target was there, and the sprite, by image_id


@torch.no_grad()
def _drawn(
    run: Run,
    engine: Engine,
    directions: Sequence[Direction],
    layout: Layout,
    shard: int,
    ids: Sequence[str],
    on_picture: OnPicture,
) -> _Kept:
    shots = read_shots(run, shard)

    def one(rows: StoredRows, check: Callable[[], None]) -> tuple[str, tuple[bool, bytes]]:
        image_id = rows.pivot["image_id"]
        with torch.no_grad():  # a setting of the thread
            return image_id, _sprite(run, engine, directions, layout, rows, shots.get(image_id), check)

    found = {}
    pieces = stored_rows(run, engine, shard, ids)
    for image_id, sprite in in_turn(engine, one, pieces):
        found[image_id] = sprite
        on_picture()
    return found


def _sprite(
    run: Run,
    engine: Engine,
    directions: Sequence[Direction],
    layout: Layout,
    rows: StoredRows,
    tuned: bytes | None,
    check: Callable[[], None],
) -> tuple[bool, bytes]:
    stored = stored_from_rows(run, engine, rows.pivot, rows.delta)
    target = _target(run, rows.pivot, engine.generator.img_resolution)

    def drawn(generator: Generator, ws: Tensor) -> list[NDArray[np.uint8]]:
        pixels = []
        for part in ws.split(AT_ONCE):
            check()
            drawn = generator.synthesis(part, noise=stored.noise).nan_to_num()
            pixels += list(images.to_uint8(drawn.cpu().numpy()))
        return pixels

    canvas = Image.new("RGB", (layout.width, layout.height))
    generators = (engine.generator, stored.generator)
    edits = [torch.cat([d.edit(stored.ws, strength) for strength in layout.strengths]) for d in directions]
    strips = [drawn(generator, ws) for ws in edits for generator in generators]
    middle = layout.strengths.index(0)
    grey = np.full_like(strips[0][0], GREY)
    kept = grey if tuned is None else np.asarray(Image.open(io.BytesIO(tuned)).convert("RGB"))
    for i, picture in enumerate((grey if target is None else target, strips[0][middle], kept, strips[1][middle])):
        canvas.paste(_reduced(picture, layout.shot), (i * layout.shot, 0))
    for y, strip in enumerate(strips):
        for x, picture in enumerate(strip):
            canvas.paste(_reduced(picture, layout.edit), (x * layout.edit, layout.shot + y * layout.edit))
    buffer = io.BytesIO()
    canvas.save(buffer, "WEBP", quality=QUALITY, method=5)
    return target is not None, buffer.getvalue()


def _target(run: Run, pivot: Mapping[str, Any], resolution: int) -> NDArray[np.uint8] | None:
    """The input once more `[resolution, resolution, 3]`; None where it is gone or has changed since."""
    try:
        found = run.read_input(pivot["uri"], pivot["image_id"], resolution)
    except (OSError, images.ImageError):
        return None
    return found.pixels if found.sha256 == pivot["sha256"] else None


def _reduced(picture: NDArray[np.uint8], size: int) -> Image.Image:
    return Image.fromarray(picture).resize((size, size), Image.Resampling.LANCZOS)


# --- kept between calls ------------------------------------------------------------------------------------------


def _path(shard: int) -> str:
    return f"pictures/shard={shard:05d}.parquet"


def _key(run: Run, marker: Mapping[str, Any]) -> str:
    """Changes with all that the pictures of a shard depend on."""
    files = [f["sha256"] for f in marker["files"] if f["path"].startswith(("pivots/", "deltas/"))]
    text = json.dumps([VERSION, run.generator_sha256, images.SHOT, EDIT, STRENGTHS, QUALITY, *sorted(files)])
    return hashlib.sha256(text.encode()).hexdigest()


def _kept(run: Run, shard: int, key: str) -> tuple[_Kept, Layout | None]:
    """What was drawn of a shard before; nothing where that was of other results, or cannot be read."""
    path = f"runs/{run.name}/report/{_path(shard)}"
    try:
        table = pq.read_table(pa.BufferReader(run.store.files.get(path, "no pictures")))
    except (MissingFile, pa.ArrowException, OSError):
        return {}, None
    metadata = table.schema.metadata or {}
    if table.column_names != _SCHEMA.names or metadata.get(b"key") != key.encode():
        return {}, None
    layout = json.loads(metadata[b"layout"])
    layout = Layout(layout["shot"], layout["edit"], tuple(layout["directions"]), tuple(layout["strengths"]))
    return {row["image_id"]: (row["whole"], row["sprite"]) for row in table.to_pylist()}, layout


def _parquet(kept: _Kept, key: str, layout: Layout) -> bytes:
    schema = _SCHEMA.with_metadata({"key": key, "layout": json.dumps(asdict(layout))})
    rows = [{"image_id": name, "whole": whole, "sprite": sprite} for name, (whole, sprite) in kept.items()]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), sink, compression="none")
    return bytes(sink.getvalue())
