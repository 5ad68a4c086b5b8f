"""A run: one data set, one generator, one configuration; frozen in the store before any work is done."""

from __future__ import annotations

import copy
import hashlib
import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from pti_core import deltas, images
from pti_core.addresses import canonical, redact, refusal
from pti_core.config import RunConfig
from pti_core.datasets import DatasetError, read_bytes, scan
from pti_core.engine import Engine
from pti_core.generators.base import Generator
from pti_core.generators.cache import FETCHABLE_NAMES
from pti_core.generators.checkpoints import ALIASES, BUILT_IN, LoadedGenerator, load_generator
from pti_core.store import Store, run_id
from pti_core.tables import assign_shards, records

Existing = Literal["resume", "overwrite"]
VERSIONS = ("torch", "lpips", "prefect", "pyarrow", "pandas", "numpy", "pillow")


class RunError(ValueError):
    """A run that cannot be opened; the message says why and what to do."""


@dataclass(frozen=True)
class Input:
    """One decoded input."""

    pixels: NDArray[np.uint8]  # [resolution, resolution, 3]
    sha256: str  # of the file's bytes, hex


@dataclass(frozen=True)
class Run:
    """A frozen run; tasks open it again from its root and name (`load_run`)."""

    store: Store
    name: str
    digest: str
    config: RunConfig
    dataset: str
    generator: str
    generator_sha256: str
    remarks: tuple[str, ...] = ()  # of `freeze`: what a person may want to know, in sentences

    @cached_property
    def manifest(self) -> pd.DataFrame:
        """The frozen inputs: image_id, uri, shard, group, bytes, etag."""
        return self.store.read_manifest(self.name).to_pandas()

    def unfinished(self) -> list[int]:
        """Numbers of the shards that are not done, in order."""
        return sorted(set(self.manifest["shard"].tolist()) - self.store.done(self.name).keys())

    def pending(self) -> list[int]:
        """The shards to do: those that are not done, and those with rejects that another try may help."""
        markers = self.store.done(self.name)
        final = {shard for shard, marker in markers.items() if not marker["counts"].get("temporary")}
        return sorted(set(self.manifest["shard"].tolist()) - final)

    def read_input(self, uri: str, image_id: str, resolution: int) -> Input:
        """An input as the engine sees it. Raises ImageError for a bad image, OSError where it cannot be read."""
        data = read_bytes(uri)
        pixels = images.fit(images.decode(data, image_id, self.config.image), resolution, image_id, self.config.image)
        return Input(pixels, hashlib.sha256(data).hexdigest())


@lru_cache(maxsize=1)
def _loaded(generator: str) -> LoadedGenerator:
    return load_generator(generator)


def freeze(
    dataset: str,
    output: str,
    generator: str,
    config: RunConfig,
    limit: int | None = None,
    shard_size: int = 64,
    existing: Existing = "resume",
    name: str | None = None,
) -> Run:
    """Check everything that can be checked before work starts, then write config and manifest, or find them again.

    The name is the first 12 hex digits of the digest of config, data set, limit and generator, so that the same job
    resumes and a changed job makes a new run beside the old one. Raises StoreError, CheckpointError, DatasetError or
    RunError, each with one sentence. A run that is found again keeps its list of inputs; `remarks` says where the data
    set has others now.
    """
    store = Store(output)
    dataset, generator = _address("dataset", dataset), _address("generator", generator)
    store.check_writable()
    loaded = _loaded(generator)
    _check_generator(loaded, config)
    digest = config.digest(dataset=dataset, limit=limit, generator=loaded.sha256)
    name = name or run_id(digest)
    known = name in store.runs()
    if known and store.read_config(name)["digest"] != digest:
        raise RunError(f"run {name!r} in {store.root} was made with another configuration; choose another name for it")
    if not known or existing == "overwrite":
        # The inputs are listed first: where that fails, nothing is lost.
        entries = scan(dataset, limit=limit, group_by_folder=config.mode == "multi", without=output)
        manifest = assign_shards(entries, shard_size)
        if known or name not in store.runs():  # where another process froze it meanwhile, it is at work
            store.clear_run(name)
        store.write_manifest(name, manifest)
        # The configuration is written after the manifest: a run that has one is frozen.
        store.write_config(
            name,
            {
                "run": name,
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
                "digest": digest,
                "dataset": redact(dataset),
                "limit": limit,
                "generator": {
                    "source": generator,
                    "kind": loaded.kind,
                    "sha256": loaded.sha256,
                    "resolution": loaded.generator.img_resolution,
                    "num_ws": loaded.generator.num_ws,
                },
                "config": config.model_dump(mode="json"),
                "versions": versions(),
            },
        )
    run = load_run(output, name)
    return replace(run, remarks=_changes(run, dataset, limit)) if known and existing == "resume" else run


def _address(what: str, address: str) -> str:
    """The address of an input as it is recorded: the same from every working directory, and without secrets."""
    if refused := refusal(what, address):
        raise RunError(refused)
    if what == "generator" and (address in {*BUILT_IN, *ALIASES, *FETCHABLE_NAMES} or not Path(address).exists()):
        return address  # a name, a URL or a mistake
    return canonical(address)


def _changes(run: Run, dataset: str, limit: int | None) -> tuple[str, ...]:
    """How a data set differs from the frozen inputs of a run; nothing where it does not."""
    pending, frozen = run.unfinished(), run.manifest
    try:
        found = scan(dataset, without=run.store.root)
    except DatasetError:
        if pending:
            raise
        return ("the data set cannot be listed now",)
    ids = set(frozen["image_id"])
    finished = frozen[~frozen["shard"].isin(pending)]
    read = {row["image_id"]: (row["bytes"], row["etag"]) for row in records(finished)}
    new = sum(entry.image_id not in ids for entry in found[:limit])
    changed = sum(read.get(entry.image_id, (entry.bytes, entry.etag)) != (entry.bytes, entry.etag) for entry in found)
    gone = len(ids - {entry.image_id for entry in found})
    counts = " and ".join(f"{count} {kind}" for kind, count in (("new", new), ("changed", changed)) if count)
    files = "file is" if new + changed == 1 else "files are"
    remarks = [f"{counts} {files} not in this run; `--overwrite` does it again with them"] if counts else []
    if gone:
        remarks.append(f"{gone} of this run's {len(ids)} files {'is' if gone == 1 else 'are'} gone from the data set")
    return tuple(remarks)


def load_run(output: str, name: str) -> Run:
    """A frozen run by its root and name. Raises RunError where there is none."""
    store = Store(output)
    if name not in store.runs():
        known = ", ".join(store.runs()) or "none"
        raise RunError(f"no run {name!r} in {output}; runs there: {known}")
    content = store.read_config(name)
    return Run(
        store=store,
        name=name,
        digest=content["digest"],
        config=RunConfig.model_validate(content["config"]),
        dataset=content["dataset"],
        generator=content["generator"]["source"],
        generator_sha256=content["generator"]["sha256"],
    )


def _check_generator(loaded: LoadedGenerator, config: RunConfig) -> None:
    generator = loaded.generator
    if generator.img_channels != 3:
        raise RunError(f"generator {loaded.source}: {generator.img_channels} colour channels, 3 expected")
    if generator.img_resolution < 32:
        raise RunError(f"generator {loaded.source}: {generator.img_resolution} pixels; LPIPS needs at least 32")


def versions() -> dict[str, str]:
    """What a run was made with."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in VERSIONS}


@lru_cache(maxsize=1)
def _engine(generator: str, sha256: str, config: RunConfig, device: str) -> Engine:
    loaded = _loaded(generator)
    if loaded.sha256 != sha256:
        raise RunError(f"generator {generator} has changed since the run was frozen; start a new run with it")
    return Engine(loaded.generator, config, device)


def engine_for(run: Run) -> Engine:
    """The engine of a run, loaded once a process, on a GPU where there is one."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return _engine(run.generator, run.generator_sha256, run.config, device)


@dataclass(frozen=True)
class Stored:
    """One image as it is read back from the tables."""

    generator: Generator  # theta*, the decoded delta added
    ws: Tensor  # [1, num_ws, w_dim]
    noise: list[Tensor]  # [1, 1, H, W] each


def read_stored(run: Run, engine: Engine, pivot: Mapping[str, Any]) -> Stored:
    """Pivot, noise and tuned generator of a row of the pivots table."""
    owner = pivot["group"] if run.config.mode == "multi" else pivot["image_id"]
    rows = run.store.read("deltas", run=run.name, filters=[("shard", "==", pivot["shard"]), ("owner", "==", owner)])
    if rows.empty:
        raise RunError(f"run {run.name}: no delta of {owner!r} in the deltas table")
    return stored_from_rows(run, engine, pivot, records(rows))


def stored_from_rows(run: Run, engine: Engine, pivot: Mapping[str, Any], rows: Sequence[Mapping[Any, Any]]) -> Stored:
    """The same, from rows of the deltas table that were read already."""
    generator = apply_rows(engine.generator, rows, run.generator_sha256)
    device = engine.device
    w = torch.from_numpy(np.array(pivot["w"], dtype=np.float32)).view(1, -1, engine.generator.w_dim)
    noise = deltas.decode_noise(pivot["noise"], engine.generator.noise_shapes)
    ws = w.expand(-1, engine.generator.num_ws, -1).to(device)
    return Stored(generator, ws, [n.to(device) for n in noise])


def apply_rows(base: Generator, rows: Sequence[Mapping[Any, Any]], base_sha256: str) -> Generator:
    """A copy of `base` with the deltas of these table rows added. Raises DeltaError where they do not belong to it."""
    tensors = []
    for row in rows:
        if row["base_sha256"] != base_sha256:
            raise deltas.DeltaError(
                f"the delta of {row['owner']!r} belongs to the generator with SHA-256 {row['base_sha256'][:12]}…, "
                f"this one has {base_sha256[:12]}…"
            )
        shape = tuple(int(n) for n in row["shape"])
        tensors.append(deltas.EncodedTensor(row["tensor"], shape, row["codec"], row["scale"], row["payload"]))
    generator = copy.deepcopy(base)
    deltas.apply(generator, deltas.decode(tensors))
    return generator
