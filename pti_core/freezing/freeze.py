"""The start of a run: check all that can be checked, then freeze configuration and inputs, or find them again."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

import pyarrow as pa

from pti_core.addresses import canonical, redact, refusal
from pti_core.config import RunConfig
from pti_core.datasets import DatasetError, scan
from pti_core.defaults import DEFAULT_GENERATOR, SHARD_SIZE
from pti_core.encoder.kept import encoder_of_job, keep_encoder
from pti_core.freezing.as_frozen import remarks_on_frozen
from pti_core.freezing.beginning import begin
from pti_core.freezing.beside import Job, Meant, check_extended, remarks_on_others
from pti_core.freezing.extension import Changes, changes, extension
from pti_core.freezing.group_sizes import remarks_on_groups
from pti_core.generators.cache import FETCHABLE_NAMES
from pti_core.generators.checkpoints import ALIASES, BUILT_IN, LoadedGenerator
from pti_core.reading import read_bytes
from pti_core.runs import Run, load_run, loaded_now
from pti_core.status import others_at_work
from pti_core.storage.known_runs import RunError, check_not_cleared, left_unfrozen, lost_config, lost_results
from pti_core.storage.store import Store
from pti_core.tables import assign_shards
from pti_core.tuning import tuned_names
from pti_core.versions import versions
from pti_core.words import counted

Existing = Literal["resume", "extend", "overwrite"]

LISTED_AGAIN: Final = 100_000
"""Runs of at most so many images look at their data set again when they are resumed, to tell what has changed."""

LOOKED_AT: Final = 100
"""At most so many files of another size or date are read for that."""

_FLOW_COMES: Final = 300.0
"""Seconds in which the flow is expected that a command has frozen a run for; later the data set may be another."""

_listed_now: dict[tuple[str, str], float] = {}
"""When this process has listed the data sets of runs, by name and time, for a flow to come, which need not do so."""


def freeze(
    dataset: str,
    output: str,
    generator: str,
    config: RunConfig,
    limit: int | None = None,
    shard_size: int = SHARD_SIZE,
    existing: Existing = "resume",
    group_by: str | None = None,
    by: str | None = None,
    ready: Callable[[], object] = lambda: None,
    alone: bool = True,
) -> Run:
    """Check everything that can be checked before work starts, then write config and manifest, or find them again.

    The name is the first 12 hex digits of the digest of config, data set, limit, groups and generator, so that the
    same job resumes and a changed job makes a new run beside the old one. (A run of an earlier version, which lacks
    settings that have their defaults now, is found by what it is of: `Meant`.) A run that is found again keeps its list
    of inputs (`resume`), gets new and changed files of the data set as new shards (`extend`), or is made anew
    (`overwrite`). `extend` makes a new run where there is none to extend, but not beside one that only settings or the
    encoder tell from it. A flow says which of its runs it is (`by`): where that one has overwritten the run it
    resumes it, and where this process has just made or extended the run for it, the data set is not listed again.
    `ready` is called before anything of a new run is written: where it raises, there is none, and an old one stays.
    Where others begin the same run at the same time (not `alone`), none removes what an interrupted one has left.
    `remarks` of the result says what a person may want to know about it.

    The generator's encoder, where the search starts at one, belongs to the digest as the generator does, and is kept
    below `output`, which other machines take it from.

    Raises StoreError, CheckpointError, EncoderError, DatasetError or RunError, each with one sentence.
    """
    store = Store(output)
    dataset, generator = _address("dataset", dataset), _address("generator", generator)
    if group_by is not None and config.mode != "multi":
        way = "add --mode multi (mode=multi)"
        raise RunError(f"group_by {group_by!r}: only in mode 'multi' do groups share a generator; {way}")
    asked_groups = group_by is not None
    if config.mode == "multi":
        group_by = group_by or "folder"
    store.check_writable()
    found = loaded_now(generator)
    _check_generator(found, config)
    job, meant = Job(dataset, limit, group_by, found.sha256, None, config, generator == DEFAULT_GENERATOR), Meant(store)
    encoder = None
    if config.engine == "pti":
        start = config.pivot.start
        encoder = encoder_of_job(store, found, start, lambda own: meant.run(replace(job, encoder_sha256=own))[0])
        job = replace(job, encoder_sha256=encoder.sha256 if encoder else None)
    name, digest = meant.run(job)
    known = name in meant.runs
    if known and existing == "overwrite" and by is not None and store.read_config(name).get("overwritten_by") == by:
        existing = "resume"  # the same flow run, tried again: what it has done since stays

    noted: list[str] = []

    def listing(limit: int | None = None) -> pa.Table:
        return scan(dataset, limit=limit, group_by=group_by, without=output, note=noted.append)

    def compared(most_read: int | None = None) -> Changes:
        whole = listing()
        return changes(run, whole, limit, most_read, left_out=bool(noted))  # archives beside pictures are all it notes

    if not known and existing != "overwrite" and lost_results(store, name):
        raise RunError(lost_config(store, name))
    if not known and existing == "extend":
        check_extended(store, job)
    if not alone and not known and left_unfrozen(store, name):
        raise RunError(
            f"{store.root}: run {name} was cut off while it was overwritten; run the command once without --part "
            "(part), and start the parts when it works"
        )
    remarks: list[str] = []
    if not known or existing == "overwrite":
        # The inputs are listed first: where that fails, nothing is lost.
        inputs = listing(limit)
        _check_readable(inputs, dataset)
        manifest = assign_shards(inputs, shard_size)
        beside = remarks_on_others(store, job) if not known else []
        beside += remarks_on_groups(inputs, group_by, asked_groups)
        if known and (others := others_at_work(store, name, range(store.manifest(name).shards))):
            beside.append(others)
        ready()
        if encoder is not None:
            keep_encoder(store, found.sha256, encoder)
        # Looked for only now: what another process has begun meanwhile is nothing that was left.
        if known or (alone and left_unfrozen(store, name)):
            if existing != "overwrite":
                check_not_cleared(store, name)
            store.clear_run(name)
        content = _content(name, digest, job, generator, found, shard_size)
        if by is not None and existing == "overwrite":
            content["overwritten_by"] = by
        begin(store, name, manifest, content)
        remarks += [*beside, *noted]
    elif encoder is not None:
        keep_encoder(store, found.sha256, encoder)  # runs of before have none in their root
    run = load_run(output, name)
    frozen = name, run.created
    if known and existing == "extend":
        remarks += [*_extend(run, compared(), shard_size, group_by, asked_groups), *noted]
        remarks += remarks_on_frozen(run, config)
    elif known and existing == "resume":
        listed = _listed_now.pop(frozen, None) if by is not None else None
        if listed is None or time.monotonic() - listed > _FLOW_COMES:
            remarks += [*_changed(run, lambda: compared(LOOKED_AT)), *remarks_on_frozen(run, config, shard_size)]
    if by is None and (not known or existing != "resume"):
        _listed_now[frozen] = time.monotonic()
    return replace(run, remarks=tuple(remarks))


def _content(
    name: str, digest: str, job: Job, generator: str, found: LoadedGenerator, shard_size: int
) -> dict[str, Any]:
    """What `config.json` holds."""
    return {
        "run": name,
        "created": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "digest": digest,
        "dataset": redact(job.dataset),
        "limit": job.limit,
        "group_by": job.group_by,
        "shard_size": shard_size,
        "generator": {
            "source": generator,
            "kind": found.kind,
            "sha256": found.sha256,
            "resolution": found.generator.img_resolution,
            "num_ws": found.generator.num_ws,
        },
        "encoder": {"sha256": job.encoder_sha256} if job.encoder_sha256 else None,
        "config": job.config.model_dump(mode="json"),
        "versions": versions(),
    }


def _address(what: str, address: str) -> str:
    """The address of an input as it is recorded: the same from every working directory, and without secrets."""
    if refused := refusal(what, address):
        raise RunError(refused)
    if what == "generator" and (address in {*BUILT_IN, *ALIASES, *FETCHABLE_NAMES} or not Path(address).exists()):
        return address  # a name, a URL or a mistake
    return canonical(address)


def _check_generator(loaded: LoadedGenerator, config: RunConfig) -> None:
    generator = loaded.generator
    if generator.img_channels != 3:
        raise RunError(f"generator {loaded.source}: {generator.img_channels} colour channels, 3 expected")
    if generator.img_resolution < 32:
        raise RunError(f"generator {loaded.source}: {generator.img_resolution} pixels; LPIPS needs at least 32")
    try:
        tuned_names(generator, config.tuning.from_resolution)
    except ValueError as error:
        raise RunError(f"generator {loaded.source}: {error}") from error


def _check_readable(inputs: pa.Table, dataset: str) -> None:
    """A data set that one may list but not read is noticed before any work; a file that is broken is no reason."""
    try:
        read_bytes(inputs["uri"][0].as_py())
    except PermissionError as error:
        raise DatasetError(f"dataset {redact(dataset)!r} can be listed but not read: {redact(str(error))}") from error
    except OSError:
        pass


def _extend(run: Run, found: Changes, shard_size: int, group_by: str | None, asked_groups: bool) -> list[str]:
    """Append what is new or has changed as new shards; say what was done."""
    found.remember()
    rows = extension(found, shard_size, run.manifest.shards)
    unread = f"{counted(found.unread, 'file')} that may have changed or moved could not be read to see"
    left = [f"{unread} whether the content is another, and left out; extend again later"] if found.unread else []
    if found.moved:
        at = "is at another address now" if found.moved == 1 else "are at other addresses now"
        left.append(f"{counted(found.moved, 'image')} {at}, with the same content, and not appended again")
    if found.gone:
        which = f"{found.first_gone!r}; it stays" if found.gone == 1 else f"{found.first_gone!r} first; they stay"
        left.append(f"{_gone(run, found)}, {which} in the run")
    if not len(rows):
        return left
    of_groups = remarks_on_groups(rows, group_by, asked_groups)
    first, last = run.manifest.shards, rows["shard"][-1].as_py()
    run.store.write_manifest(run.name, rows)
    del run.__dict__["manifest"]  # read again, now longer
    shards = f"shard {first}" if first == last else f"shards {first} to {last}"
    remarks = [f"{found.counts()} appended as {shards}", *left, *of_groups]
    if found.grown:
        one = found.grown == 1
        remarks.append(
            f"{found.grown} {'group that is' if one else 'groups that are'} in this run already "
            f"{'has' if one else 'have'} more images now; these get {'a generator' if one else 'generators'} of their "
            "own, under names such as anna@2; `--overwrite` tunes whole groups again"
        )
    return remarks


def _changed(run: Run, compare: Callable[[], Changes]) -> list[str]:
    """How a data set differs from the frozen inputs of a run; nothing where it does not."""
    if run.manifest.rows > LISTED_AGAIN:
        return []
    try:
        found = compare()
    except DatasetError:
        if run.to_do().shards:
            raise
        return ["the data set cannot be listed now"]
    except RunError as error:  # it cannot be extended, but what is frozen can be done
        return [str(error)]
    remarks = []
    if counts := found.counts():
        these = "it" if found.single else "them"
        adds = these if found.sure else f"{these}, but for those whose content is still the same"
        remarks.append(f"{counts} not in this run; `--extend` (existing=extend) adds {adds}")
    if found.gone:
        remarks.append(_gone(run, found))
    return remarks


def _gone(run: Run, found: Changes) -> str:
    these = f"{found.gone} of this run's {run.manifest.rows} files {'is' if found.gone == 1 else 'are'}"
    return f"{these} gone from the data set"
