"""A run: one data set, one generator, one configuration; frozen in the store before any work is done."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pti_core import deltas, images
from pti_core.config import RunConfig
from pti_core.connections import file_system
from pti_core.encoder.files import EncoderError
from pti_core.encoder.kept import encoder_of_config, encoder_of_run
from pti_core.encoder.network import Encoder
from pti_core.engine import Engine
from pti_core.generators.base import Generator
from pti_core.generators.checkpoints import LoadedGenerator, load_generator
from pti_core.machine.device import best_device
from pti_core.noop_engine import NoopEngine
from pti_core.once import once
from pti_core.reading import read_bytes
from pti_core.storage.files import MissingFile
from pti_core.storage.known_runs import RunError, newest_run, run_names
from pti_core.storage.manifests import Manifest
from pti_core.storage.markers import temporary_rejects
from pti_core.storage.share import ALL, Share
from pti_core.storage.store import Store
from pti_core.tables import records


@dataclass(frozen=True)
class Input:
    """One decoded input."""

    pixels: NDArray[np.uint8]  # [resolution, resolution, 3]
    sha256: str  # of the file's bytes, hex


class ToDo(NamedTuple):
    """What is left of a run."""

    shards: list[int]  # to do, in order
    images_done: int  # of the other shards, how many images they have
    fresh: list[int]  # of `shards` those that were not done before


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
    created: str  # ISO 8601, UTC
    encoder_sha256: str | None = None  # of the encoder whose w the search starts at; None: at w_avg
    remarks: tuple[str, ...] = ()  # of `freeze`: what a person may want to know, in sentences

    @cached_property
    def manifest(self) -> Manifest:
        """The frozen inputs."""
        return self.store.manifest(self.name)

    @property
    def version(self) -> str:
        """Changes when the run is made anew or extended."""
        return f"{self.created} {self.manifest.rows}"

    def to_do(self, retry_rejects: bool = False, share: Share = ALL) -> ToDo:
        """What is left, of a share's own shards: those that are not done, and with `retry_rejects` some once more.

        Those are the ones with temporary rejects. Temporary is what another try may help: a read that failed, memory
        that was short.
        """
        markers = self.store.done(self.name)
        own = share.of(range(self.manifest.shards))  # others may have appended and done more meanwhile
        again = {shard for shard in own if shard in markers and retry_rejects and temporary_rejects(markers[shard])}
        done = sum(int(markers[shard]["counts"]["manifest"]) for shard in own if shard in markers.keys() - again)
        shards = [shard for shard in own if shard not in markers or shard in again]
        return ToDo(shards, done, [shard for shard in shards if shard not in again])

    def read_input(self, uri: str, image_id: str, resolution: int) -> Input:
        """An input as the engine sees it. Raises ImageError for a bad image, OSError where it cannot be read."""
        data = read_bytes(uri)
        pixels = images.fit(images.decode(data, image_id, self.config.image), resolution, image_id, self.config.image)
        return Input(pixels, hashlib.sha256(data).hexdigest())


@once()
def loaded(generator: str) -> LoadedGenerator:
    """A generator by its name or address; the last one stays in memory."""
    return load_generator(generator)


_stamps: Final[dict[str, str]] = {}


def loaded_now(generator: str) -> LoadedGenerator:
    """The same as it is now, for the start of a run: read again where its file is not the one that was loaded.

    That is told by its size, date or ETag; of a web address, which has none of these, it is not.
    """
    try:
        fs, path = file_system(generator)
        stamp = str(fs.ukey(path))
    except Exception:  # a built-in name, or what `load_generator` has a sentence for
        stamp = ""
    if _stamps.get(generator) != stamp:
        loaded.cache_clear()
        _stamps[generator] = stamp
    return loaded(generator)


def load_run(output: str, name: str, version: str | None = None) -> Run:
    """A frozen run by its root and name. Raises RunError where there is none.

    With its `version` it is read once a process, however many tasks ask for it.
    """
    store = Store(output)
    if version is None:
        return _opened(store, name)
    options = store.files.fs.storage_options  # with other credentials it is opened anew
    return _kept(output, name, version, repr(sorted(options.items(), key=lambda item: item[0])))


@once(keep=2)
def _kept(output: str, name: str, version: str, options: str) -> Run:
    return _opened(Store(output), name)


def _opened(store: Store, name: str) -> Run:
    try:
        content = store.read_config(name)
    except MissingFile:
        run_names(store, name)  # says why there is none
        raise
    return Run(
        store=store,
        name=name,
        digest=content["digest"],
        config=RunConfig.model_validate(content["config"]),
        dataset=content["dataset"],
        generator=content["generator"]["source"],
        generator_sha256=content["generator"]["sha256"],
        created=content.get("created", ""),
        encoder_sha256=encoder_of_config(content),
    )


def find_run(output: str, name: str | None = None) -> Run:
    """A run by its name, or the newest one below a root. Raises RunError where there is none."""
    return load_run(output, newest_run(Store(output)) if name is None else name)


@dataclass(frozen=True)
class _Start:
    """The encoder of a run: the same for all runs that were frozen with it."""

    sha256: str | None
    store: Store = field(compare=False)


@once()
def _engine(generator: str, sha256: str, config: RunConfig, device: str, start: _Start) -> Engine | NoopEngine:
    found = loaded(generator)
    if found.sha256 != sha256:  # it may have been replaced since this process has loaded it
        loaded.cache_clear()
        found = loaded(generator)
    if found.sha256 != sha256:
        raise RunError(f"generator {generator} has changed since the run was frozen; start a new run with it")
    if config.engine != "pti":
        return NoopEngine(found.generator, config, device)
    return Engine(found.generator, config, device, _encoder(found, start))


def _encoder(generator: LoadedGenerator, start: _Start) -> Encoder | None:
    """The encoder that a run was frozen with. Raises RunError where neither machine nor root has it."""
    if start.sha256 is None:
        return None
    try:
        return encoder_of_run(start.store, start.sha256, generator).encoder
    except EncoderError as error:
        raise RunError(str(error)) from None


def any_engine_for(run: Run) -> Engine | NoopEngine:
    """The engine of a run, loaded once a process, on a GPU where there is one."""
    return _engine(
        run.generator, run.generator_sha256, run.config, best_device(), _Start(run.encoder_sha256, run.store)
    )


def forget_engine() -> None:
    """The next engine is made anew, also for the run of the last one."""
    _engine.cache_clear()


def engine_for(run: Run) -> Engine:
    """The same, of a run with results. Raises RunError for one whose engine does nothing."""
    engine = any_engine_for(run)
    if isinstance(engine, NoopEngine):
        raise RunError(f"run {run.name} was made by the engine 'noop': there are no images to draw; use a real preset")
    return engine


@dataclass(frozen=True)
class Stored:
    """One image as it is read back from the tables."""

    generator: Generator  # theta*, the decoded delta added
    ws: Tensor  # [1, num_ws, w_dim]
    noise: list[Tensor]  # [1, 1, H, W] each


def read_stored(run: Run, engine: Engine, pivot: Mapping[str, Any]) -> Stored:
    """Pivot, noise and tuned generator of a row of the pivots table.

    Raises RunError where its delta is not in the store, DeltaError where it is damaged or of another generator.
    """
    owner = run.config.owner(pivot["image_id"], pivot["group"])
    rows = run.store.read("deltas", run=run.name, filters=[("shard", "==", pivot["shard"]), ("owner", "==", owner)])
    return stored_from_rows(run, engine, pivot, records(rows))


def stored_from_rows(run: Run, engine: Engine, pivot: Mapping[str, Any], rows: Sequence[Mapping[Any, Any]]) -> Stored:
    """The same, from rows of the deltas table that were read already. Raises RunError for none, DeltaError."""
    if not rows:
        owner = run.config.owner(pivot["image_id"], pivot["group"])
        raise RunError(f"run {run.name}: no delta of {owner!r} in the deltas table")
    generator = engine.stored_generator(encoded_tensors(rows, run.generator_sha256))
    device = engine.device
    w = torch.from_numpy(np.array(pivot["w"], dtype=np.float32)).view(1, -1, engine.generator.w_dim)
    noise = deltas.decode_noise(pivot["noise"], engine.generator)
    ws = w.expand(-1, engine.generator.num_ws, -1).to(device)
    return Stored(generator, ws, [n.to(device) for n in noise])


def encoded_tensors(rows: Sequence[Mapping[Any, Any]], base_sha256: str) -> list[deltas.EncodedTensor]:
    """The tensors in rows of the deltas table. Raises DeltaError where they belong to another base generator."""
    tensors = []
    for row in rows:
        if row["base_sha256"] != base_sha256:
            raise deltas.DeltaError(
                f"the delta of {row['owner']!r} belongs to the generator with SHA-256 {row['base_sha256'][:12]}…, "
                f"this one has {base_sha256[:12]}…"
            )
        shape = tuple(int(n) for n in row["shape"])
        tensors.append(deltas.EncodedTensor(row["tensor"], shape, row["codec"], row["scale"], row["payload"]))
    return tensors
