"""Results as files for other tools: a tuned generator with its delta applied and its pivot; the inverted images."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import torch

from pti_core import images
from pti_core.addresses import redact
from pti_core.engine import Engine
from pti_core.generators.checkpoints import load_generator
from pti_core.generators.checkpoints.convert import SUFFIXES, check_free, format_for, write_generator
from pti_core.generators.checkpoints.whole import whole
from pti_core.machine.device import exact_float32
from pti_core.machine.parallel import one_at_a_time
from pti_core.names import (
    apart,
    as_listed,
    file_in_the_way,
    folds_case,
    own_path,
    plain_path,
    refused,
    shortened,
    there,
)
from pti_core.read_back import StoredRows, in_turn, stored_rows
from pti_core.runs import Run, Stored, engine_for, find_run, load_run, read_stored, stored_from_rows
from pti_core.sources.folders import listed_with
from pti_core.status import no_pivot, nothing_done
from pti_core.storage.known_runs import RunError, run_names
from pti_core.storage.lookup import manifest_is_lost, rows_of
from pti_core.storage.store import Store, StoreError


class ExportError(ValueError):
    """A result that cannot be exported; the message says why and what to do."""


@dataclass(frozen=True)
class Exported:
    """What was written."""

    run: str
    generator: Path
    format: str
    pivot: Path
    remarks: list[str]  # on what a reader of the generator's file will do differently


def export_image(
    root: str,
    image_id: str,
    format: str | None = None,
    run: str | None = None,
    output: str | Path | None = None,
    overwrite: bool = False,
) -> Exported:
    """Write the tuned generator of an image, and its pivot beside it as `<output>.pivot.npz`.

    `format` as in `write_generator`; left out, it is what `output`'s ending says, or safetensors. `run` may be left out
    where only one run has the image; `output` defaults to the image's name in the current folder. The generator's own
    noise maps (`noise_const`) are replaced by those of the pivot, so that a tool that knows nothing of them draws the
    image too. The pivot's file has

    - `w`: `[1, num_ws, w_dim]`, float32, as in the `projected_w.npz` of NVIDIA's projector; `ws` is the same array
    - `noise_00`, `noise_01`, ...: `[H, W]`, float32, a map for each layer in the generator's order
    - `space` (`w` or `w+`), `image_id`, `run`, `base_sha256`: text

    Raises ExportError for an unknown image and a run without deltas, RunError for no such run, CheckpointError where
    the base generator cannot be read, the format cannot express it, `output` ends as none does and no format is
    given, or a file is there already.
    """
    if format is None:
        format = "safetensors" if output is None else format_for(output)
    if format not in SUFFIXES:
        raise ExportError(f"format {format!r}: one of {', '.join(SUFFIXES)} expected")
    image_id = as_listed(image_id)
    path = Path(output) if output is not None else Path(_file_name(image_id) + SUFFIXES[format])
    pivot_path = path.with_name(path.name + ".pivot.npz")
    opened, pivot = _find(root, image_id, run)
    for file in (path, pivot_path):
        check_free(file, overwrite)
    stored = _stored(opened, lambda engine: read_stored(opened, engine, pivot))
    with torch.no_grad():
        for own, given in zip(stored.generator.noise_const(), stored.noise, strict=True):
            own.copy_(given[0, 0])
    # What the base says of itself (origin, licence) holds for what was made from it.
    notes = load_generator(opened.generator).notes | {
        "image_id": image_id,
        "run": opened.name,
        "base": opened.generator,
        "base_sha256": opened.generator_sha256,
    }
    remarks = write_generator(stored.generator, path, format, overwrite, notes)
    arrays: dict[str, Any] = {"w": stored.ws.cpu().numpy(), "ws": stored.ws.cpu().numpy()}
    arrays |= {f"noise_{i:02d}": noise[0, 0].cpu().numpy() for i, noise in enumerate(stored.noise)}
    arrays |= {name: np.array(notes[name]) for name in ("image_id", "run", "base_sha256")}
    arrays["space"] = np.array(pivot["space"])
    with whole(pivot_path) as part, part.open("wb") as npz:
        np.savez(npz, **arrays)
    return Exported(opened.name, path, format, pivot_path, remarks)


@dataclass(frozen=True)
class ExportedImages:
    """Pictures in a folder."""

    run: str
    written: int
    kept: int  # were there already
    unfinished: int  # shards of the run that have no results yet
    left_out: list[str]  # a sentence an image whose file cannot have its name, or that has no picture


def export_images(
    root: str,
    folder: str | Path,
    image_id: str | None = None,
    run: str | None = None,
    overwrite: bool = False,
    on_progress: Callable[[int, int], object] = lambda done, total: None,
) -> ExportedImages:
    """Write what the tuned generators draw at their pivots as PNG, at the generator's resolution.

    All finished images of a run (the newest where `run` is None), or one. Each has its image_id as its path below
    `folder`, with `.png` at the end; those of the run that would share a file, as `a.jpg` and `a.jpg.png`, have a part
    of their name's checksum before it. (Where such an image comes later, the file from before stays.) What is there is
    kept unless `overwrite`; so the same call again does the rest. An image whose name the file system does not take is
    left out and told. `on_progress(done, total)` counts images.

    Raises ExportError for an unknown image, a run without results and a folder in the run's data set; RunError for no
    such run; StoreError where its manifest cannot be read.
    """
    if "://" in str(folder):
        raise ExportError(f"{redact(str(folder))}: a folder on this machine expected")
    if blocked := file_in_the_way(Path(folder), "choose another folder"):
        raise ExportError(blocked)
    if image_id is None:
        opened = find_run(root, run)
        done = set(opened.store.done(opened.name))
        if not done:
            raise ExportError(nothing_done(opened))
        frame = opened.store.read("pivots", run=opened.name, columns=["image_id", "shard"])
        shards = dict(zip(frame["image_id"], frame["shard"], strict=True))
        wanted = {name: int(shard) for name, shard in shards.items() if shard in done}
        unfinished = opened.manifest.shards - len(done)
    else:
        image_id = as_listed(image_id)
        opened, pivot = _find(root, image_id, run)
        wanted, unfinished = {image_id: int(pivot["shard"])}, 0
    if listed_with(opened.dataset, Path(folder), root):
        raise ExportError(
            f"{str(folder)!r} lies in the data set of run {opened.name} ({opened.dataset}), so that its next listing "
            "would take the pictures for images to invert; choose a folder outside of it"
        )
    # Of all of the run, or a name would depend on what else is exported, and on what is done by then.
    own = _apart([*wanted, *_alike(opened, image_id)], Path(folder))

    def file(image_id: str) -> Path:
        return Path(folder) / _picture_path(image_id, own.get(image_id, 0))

    missing: dict[int, list[str]] = {}
    for name, shard in wanted.items():
        if overwrite or not there(file(name)):
            missing.setdefault(shard, []).append(name)
    left_out: list[str] = []
    written, kept = 0, len(wanted) - sum(map(len, missing.values()))
    on_progress(kept, len(wanted))

    def one(rows: StoredRows, check: Callable[[], None]) -> str | None:
        check()
        pivot = rows.pivot
        stored = _stored(opened, lambda engine: stored_from_rows(opened, engine, pivot, rows.delta))
        with torch.no_grad(), exact_float32(stored.ws.device):
            image = stored.generator.synthesis(stored.ws, noise=stored.noise)
        if not image.isfinite().all():
            return f"image {pivot['image_id']!r}: its stored generator draws values that are no numbers"
        path = file(pivot["image_id"])
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with whole(path) as part:
                images.picture(images.to_uint8(image.cpu().numpy())[0]).save(part, "PNG")
        except OSError as error:
            if sentence := refused(pivot["image_id"], error):
                return sentence
            raise
        return None

    for shard, names in sorted(missing.items()):
        engine = engine_for(opened)
        with one_at_a_time(engine.device):
            pieces = stored_rows(opened, engine, shard, names)
            for sentence in in_turn(engine, one, pieces):
                left_out += [sentence] if sentence else []
                written += not sentence
                on_progress(kept + written + len(left_out), len(wanted))
    return ExportedImages(opened.name, written, kept, unfinished, left_out)


def _alike(run: Run, image_id: str | None) -> list[str]:
    """The images of a run whose files may be that of one, or all of them."""
    if image_id is None:
        names: list[str] = run.manifest.table(["image_id"])["image_id"].to_pylist()
        return names
    path, found = _picture_path(image_id).casefold(), []
    try:
        for _, rows in run.manifest.windows(_WINDOW, ["image_id"]):
            found += [name for name in rows["image_id"].to_pylist() if _picture_path(name).casefold() == path]
    except StoreError as error:
        if not manifest_is_lost(run.store, run.name, error):  # without it one image can be exported all the same
            raise
    return found


def _picture_path(image_id: str, own: int = 0) -> str:
    """Below a folder, as PNG; with `own` such that no other image has it (see `apart`)."""
    if own:
        return f"{own_path(image_id, own)}.png"
    path = plain_path(image_id)
    return path if path.lower().endswith(".png") else f"{path}.png"


def _apart(ids: Iterable[str], folder: Path) -> dict[str, int]:
    """What tells those images apart that would have one file, as `A.png` and `a.png` on the disk of a Mac."""

    def folded(image_id: str, own: int) -> list[str]:
        return [_picture_path(image_id, own).casefold()]

    def as_written(image_id: str, own: int) -> list[str]:
        return [_picture_path(image_id, own)]

    first = dict.fromkeys(ids, 0)
    found = apart(folded, first)
    if any(found.values()) and not _folds_case(folder):
        found = apart(as_written, first)
    return {image_id: own for image_id, own in found.items() if own}


def _folds_case(folder: Path) -> bool:
    """Whether the disk of a folder, which may not be there yet, takes capital letters for small ones."""
    above = next(path for path in (folder, *folder.parents) if there(path))
    with TemporaryDirectory(prefix="pti-", dir=above) as probe:
        return folds_case(Path(probe))


def _find(root: str, image_id: str, name: str | None) -> tuple[Run, dict[str, Any]]:
    """The run that has the image, and its row of the pivots table."""
    store = Store(root)
    searched = run_names(store, name)
    found = {}
    for candidate in searched:
        rows = rows_of(store, "pivots", candidate, [image_id])
        if not rows.empty:
            found[candidate] = {str(key): value for key, value in rows.iloc[0].to_dict().items()}
    if len(found) > 1:
        raise ExportError(f"{image_id!r} is in several runs: {', '.join(found)}; choose one with --run")
    if not found:
        raise ExportError(no_pivot(store, searched, image_id))
    chosen, pivot = found.popitem()
    return load_run(root, chosen), pivot


def _stored(run: Run, read: Callable[[Engine], Stored]) -> Stored:
    """The tuned generator and the pivot, read back from the tables."""
    try:
        return read(engine_for(run))
    except RunError as error:
        if run.config.engine != "pti":
            raise ExportError(str(error)) from error
        hint = "`pti run` again makes what is missing; or bring the deltas table and the generator back"
        raise ExportError(f"{error}; {hint}") from error


_WINDOW: Final = 100_000  # names that are looked at together

_LONGEST: Final = 200
"""Bytes of a file's name before its endings; most file systems take 255 in all."""


def _file_name(image_id: str) -> str:
    """An image id as the name of a file, without its ending; where it is too long, its beginning and a checksum."""
    stem = image_id.removesuffix(Path(image_id).suffix)
    return shortened(re.sub(r"[^\w.-]+", "_", stem).strip("._") or "image", image_id, _LONGEST)
