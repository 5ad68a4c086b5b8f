"""A generator's encoder by the generator's name: trained and kept, or found where it is there already."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pti_core.addresses import redact, refusal
from pti_core.encoder.files import EncoderError, find_encoder, read_encoder, save_encoder
from pti_core.encoder.training import OnTraining, TrainingConfig, train_encoder
from pti_core.generators.checkpoints import LoadedGenerator, load_generator
from pti_core.machine.device import best_device
from pti_core.perceptual import load_lpips


def check(generator: str, folder: str | None = None) -> None:
    """Raise EncoderError for a generator's address with a secret, and for a folder that is not on this machine."""
    if refused := refusal("generator", generator):
        raise EncoderError(refused)
    if folder and "://" in folder:
        raise EncoderError(f"folder {redact(folder)!r}: a folder on this machine expected")


def make(
    generator: str,
    samples: int,
    drawing_steps: int,
    seed: int = 0,
    overwrite: bool = False,
    folder: str | None = None,
    on_training: OnTraining | None = None,
) -> dict[str, Any]:
    """Train an encoder on a GPU where there is one, and keep it in the user's cache, or in `folder`.

    Where the generator has one, it stays, unless `overwrite` is given. One that is no nearer to the right w than w_avg
    is never gets into the cache, where runs would begin with it. Returns its path and SHA-256 (None where it was not
    kept), figures (means over held-out samples), a remark and a page about it. Raises CheckpointError, EncoderError or
    OSError, each with one sentence.
    """
    check(generator, folder)
    loaded = load_generator(generator)
    path, trained = None if overwrite or folder else find_encoder(loaded.sha256), False
    if path is None:
        config = TrainingConfig(samples=samples, drawing_steps=drawing_steps, seed=seed)
        device = best_device()
        result = train_encoder(loaded.generator, load_lpips("alex", device), config, device, on_training)
        notes = result.notes(config)
        if not folder and _useless(notes["held_out"]):
            return _not_kept(loaded, notes["held_out"], samples)
        path = save_encoder(result.encoder, loaded.sha256, notes, Path(folder).expanduser() if folder else None)
        trained = True
    found = read_encoder(path, loaded)
    figures = found.notes.get("held_out", {})
    return {
        "path": str(path),
        "sha256": found.sha256,
        "trained": trained,
        "held_out": figures,
        "remark": _remark(figures),
        "markdown": _page(loaded.source, found.sha256, path, figures),
    }


def _useless(figures: Mapping[str, Any]) -> bool:
    """Whether the encoder's w are no nearer to the right ones than w_avg is; those of before may lack the figure."""
    return not figures.get("w_error", 0.0) < 1


def _remark(figures: Mapping[str, Any]) -> str | None:
    """What to do where the encoder knows too little; a search loses nothing by it (see `encoded_start`)."""
    if not _useless(figures):
        return None
    return "its w are no nearer to the right ones than w_avg is: train it anew (overwrite) with more samples or steps"


def _not_kept(loaded: LoadedGenerator, figures: Mapping[str, Any], samples: int) -> dict[str, Any]:
    """What `make` returns of an encoder that is of no use: what was there before stays."""
    before = find_encoder(loaded.sha256)
    stays = f"the encoder that was there stays ({before})" if before else "searches start at w_avg as before"
    remark = (
        f"the trained encoder was not kept, since its w are no nearer to the right ones than w_avg is, and {stays}: "
        f"train it with more samples than {samples:,} or more steps, or give a folder to have it there all the same"
    )
    page = _page(loaded.source, None, None, figures)
    return {"path": None, "sha256": None, "trained": True, "held_out": figures, "remark": remark, "markdown": page}


def _page(generator: str, sha256: str | None, path: Path | None, figures: Mapping[str, Any]) -> str:
    """Figures as Markdown; without a path of an encoder that was not kept."""
    where = f"`{path}` (SHA-256 `{sha256[:12]}…`)" if path and sha256 else "not kept"
    rows = "\n".join(
        f"| {name} | {figures[key]:.3f} |"
        for name, key in (
            ("LPIPS of what w_avg draws", "lpips_w_avg"),
            ("LPIPS of what the encoder's w draws", "lpips_encoder"),
            ("squared error in W, as a share of w_avg's", "w_error"),
        )
        if key in figures
    )
    return (
        f"Encoder of generator `{generator}`: {where}.\n\n"
        f"| {figures.get('samples', 0)} held-out samples | mean |\n| --- | ---: |\n{rows}\n"
    )
