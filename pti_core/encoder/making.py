"""A generator's encoder by the generator's name: trained and kept, or found where it is there already."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pti_core.addresses import redact, refusal
from pti_core.device import best_device
from pti_core.encoder.files import EncoderError, find_encoder, read_encoder, save_encoder
from pti_core.encoder.training import OnTraining, TrainingConfig, train_encoder
from pti_core.generators.checkpoints import load_generator
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

    Where the generator has one, it stays, unless `overwrite` is given. Returns its path, SHA-256, figures (means over
    held-out samples) and a page about it. Raises CheckpointError, EncoderError or OSError, each with one sentence.
    """
    check(generator, folder)
    loaded = load_generator(generator)
    path, trained = None if overwrite or folder else find_encoder(loaded.sha256), False
    if path is None:
        config = TrainingConfig(samples=samples, drawing_steps=drawing_steps, seed=seed)
        device = best_device()
        result = train_encoder(loaded.generator, load_lpips("alex", device), config, device, on_training)
        path = save_encoder(
            result.encoder, loaded.sha256, result.notes(config), Path(folder).expanduser() if folder else None
        )
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


def _remark(figures: dict[str, Any]) -> str | None:
    """What to do where the encoder knows too little; a search loses nothing by it (see `encoded_start`)."""
    if figures.get("w_error", 0.0) < 1:
        return None
    return "its w are no nearer to the right ones than w_avg is: train it anew (overwrite) with more samples or steps"


def _page(generator: str, sha256: str, path: Path, figures: dict[str, Any]) -> str:
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
        f"Encoder of generator `{generator}`: `{path}` (SHA-256 `{sha256[:12]}…`).\n\n"
        f"| {figures.get('samples', 0)} held-out samples | mean |\n| --- | ---: |\n{rows}\n"
    )
