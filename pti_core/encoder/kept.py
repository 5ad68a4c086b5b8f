"""The encoder of a run, kept beside its configuration: who goes on with the run elsewhere finds it there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, Literal

from pti_core.encoder.files import EncoderError, LoadedEncoder, encoder_for, find_encoder, load_encoder, parse_encoder
from pti_core.files import MissingFile
from pti_core.generators.checkpoints import LoadedGenerator
from pti_core.store import Store

NAME: Final = "encoder.safetensors"


def keep_encoder(store: Store, run: str, encoder: LoadedEncoder) -> None:
    """Write a run's encoder into its folder. Raises StoreError."""
    store.files.put(f"runs/{run}/{NAME}", encoder.content)


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
    """What `pivot.start` asks for: None is w_avg.

    Where this machine has no encoder of the generator, that of the run which was begun elsewhere with the same job:
    `name_with` gives the name that the job's run has with an encoder of a SHA-256, or with none. Raises EncoderError
    as `encoder_for`, StoreError where the runs cannot be read.
    """
    if start != "w_avg" and find_encoder(generator.sha256) is None:
        runs = store.runs()
        for run in [] if name_with(None) in runs else runs:
            sha256 = encoder_of_config(store.read_config(run))
            if sha256 is not None and name_with(sha256) == run:
                found = _kept(store, run, sha256, generator)
                if found is not None:
                    return found
    return encoder_for(generator, start)


def encoder_of_run(store: Store, run: str, sha256: str, generator: LoadedGenerator) -> LoadedEncoder:
    """The encoder that a run was frozen with: this machine's, or else the one in the run's folder.

    Raises EncoderError where neither is it, StoreError where the folder cannot be read.
    """
    try:
        local, why = load_encoder(generator), ""
    except EncoderError as error:
        local, why = None, str(error)
    if local is not None and local.sha256 == sha256:
        return local
    kept = _kept(store, run, sha256, generator)
    if kept is not None:
        return kept
    if local is None:
        raise EncoderError(f"the run was frozen with an encoder: {why}")
    raise EncoderError(
        f"the encoder {local.where} (SHA-256 {local.sha256[:12]}…) is not the one that the run was frozen with "
        f"({sha256[:12]}…); copy that one here, or start a new run"
    )


def _kept(store: Store, run: str, sha256: str, generator: LoadedGenerator) -> LoadedEncoder | None:
    """None where the run's folder has none, as in runs of before."""
    try:
        content = store.files.get(f"runs/{run}/{NAME}", f"run {run!r} has no encoder")
    except MissingFile:
        return None
    found = parse_encoder(content, f"{store.root}/runs/{run}/{NAME}", generator)
    if found.sha256 != sha256:
        raise EncoderError(
            f"encoder {found.where}: SHA-256 {found.sha256[:12]}…, the run was frozen with {sha256[:12]}…; "
            "copy that one there, or start a new run"
        )
    return found
