"""Encoders beside the runs that start at them: whoever goes on with a run elsewhere finds its encoder there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

from pti_core.encoder.files import (
    LARGEST,
    EncoderError,
    LoadedEncoder,
    encoder_for,
    find_encoder,
    load_encoder,
    parse_encoder,
)
from pti_core.generators.checkpoints import LoadedGenerator
from pti_core.storage.store import Store

FOLDER: Final = "encoders"  # of a root; encoders/<SHA-256 of the generator>/<SHA-256 of the encoder>.safetensors
_SUFFIX: Final = ".safetensors"


def keep_encoder(store: Store, generator_sha256: str, encoder: LoadedEncoder) -> None:
    """Write an encoder into the root, where it is not there. Raises StoreError."""
    if _kept(store, generator_sha256).get(encoder.sha256) != len(encoder.content):
        store.files.put(_path(generator_sha256, encoder.sha256), encoder.content)


def encoder_of_config(content: Mapping[str, Any]) -> str | None:
    """The SHA-256 of the encoder that a run's `config.json` names; None where the search starts at w_avg."""
    found: str | None = (content.get("encoder") or {}).get("sha256")
    return found


def encoder_of_job(
    store: Store,
    generator: LoadedGenerator,
    start: Literal["auto", "w_avg", "encoder"],
    name_with: Callable[[str | None], str],
) -> LoadedEncoder | None:
    """What `pivot.start` asks for: this machine's encoder of the generator, else the root's; None is w_avg.

    `name_with` gives the name that the job's run has with an encoder of a SHA-256, or with none: a run that is there
    decides. Raises EncoderError as `encoder_for` and for a damaged file, StoreError where the root cannot be read.
    """
    if start == "w_avg" or find_encoder(generator.sha256) is not None:
        return encoder_for(generator, start)
    kept = _kept(store, generator.sha256)
    runs = store.runs() if kept else []
    if not kept or name_with(None) in runs:
        return encoder_for(generator, start)
    choice = [sha256 for sha256 in kept if name_with(sha256) in runs] or list(kept)
    sha256 = choice[0] if len(choice) == 1 else _newest(store, choice)
    return _read(store, sha256, kept[sha256], generator)


def encoder_of_run(store: Store, sha256: str, generator: LoadedGenerator) -> LoadedEncoder:
    """The encoder that a run was frozen with: this machine's, or else the one in the root.

    Raises EncoderError where neither is it, StoreError where the root cannot be read.
    """
    try:
        local, why = load_encoder(generator), ""
    except EncoderError as error:
        local, why = None, str(error)
    if local is not None and local.sha256 == sha256:
        return local
    kept = _kept(store, generator.sha256)
    if sha256 in kept:
        return _read(store, sha256, kept[sha256], generator)
    if local is None:
        raise EncoderError(f"the run was frozen with an encoder: {why}")
    raise EncoderError(
        f"the encoder {local.where} (SHA-256 {local.sha256[:12]}…) is not the one that the run was frozen with "
        f"({sha256[:12]}…); copy that one here, or start a new run"
    )


def _path(generator_sha256: str, sha256: str) -> str:
    return f"{FOLDER}/{generator_sha256}/{sha256}{_SUFFIX}"


def _kept(store: Store, generator_sha256: str) -> dict[str, int]:
    """Bytes of a generator's encoders in the root, by their SHA-256."""
    found = store.files.find(f"{FOLDER}/{generator_sha256}", maxdepth=1)
    names = {path.rpartition("/")[2]: size for path, size in found.items()}
    return {name.removesuffix(_SUFFIX): size for name, size in names.items() if name.endswith(_SUFFIX)}


def _newest(store: Store, choice: list[str]) -> str:
    """The one that the newest run started at; any where none did."""
    configs = sorted((store.read_config(run) for run in store.runs()), key=lambda config: config.get("created", ""))
    last = {encoder_of_config(config): place for place, config in enumerate(configs)}
    return max(choice, key=lambda sha256: last.get(sha256, -1))


def _read(store: Store, sha256: str, size: int, generator: LoadedGenerator) -> LoadedEncoder:
    path, remedy = _path(generator.sha256, sha256), "copy the one there that its runs were frozen with, or remove it"
    where = f"{store.root}/{path}"
    if size > LARGEST:
        raise EncoderError(f"encoder {where}: {size:,} bytes, at most {LARGEST:,} expected; {remedy}")
    found = parse_encoder(store.files.get(path, f"the encoder {sha256[:12]}… is gone"), where, generator, remedy)
    if found.sha256 != sha256:
        raise EncoderError(f"encoder {where}: SHA-256 {found.sha256[:12]}…, that of its name expected; {remedy}")
    return found
