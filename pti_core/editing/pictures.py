"""Where the pictures of edits lie. Without torch, which `pti check` does not need.

runs/<run>/edits/<direction>/<image_id>/+2.png          those to compare with under `unedited/`
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from pti_core.names import folds_case, shortened
from pti_core.storage.store import Store

UNEDITED: Final = "unedited"  # folder of the pictures to compare with

_LONGEST_NAME: Final = 255  # bytes; what file systems take
_LONGEST_PATH: Final = 600  # bytes of the folders of an image; object stores take 1024 of a whole path


def picture_path(store: Store, run: str, direction: str, image_id: str, strength: float) -> str:
    """Where an edited image is to be written; each image_id has a folder of its own on any file system.

    One that is there already may have another name; its row in the table says which.
    """
    folds = store.files.local and folds_case(Path(store.files.at(f"runs/{run}/config.json")))
    parts = [_folder_name(part, folds) for part in image_id.split("/")]
    folder = "/".join(parts)
    if len(folder.encode()) > _LONGEST_PATH:
        folder = shortened("_".join(parts), image_id, 0)
    return f"runs/{run}/edits/{direction}/{folder}/{strength_text(strength)}.png"


def unedited_path(run: str, picture: str | None) -> str | None:
    """Where the picture lies that an edited one is compared with; None for none, and for one of another run."""
    top = f"runs/{run}/edits/"
    if not picture or not picture.startswith(top):
        return None
    folders = picture.removeprefix(top).split("/")[1:-1]
    return f"{top}{UNEDITED}/{'/'.join(folders)}/{strength_text(0.0)}.png"


def strength_text(strength: float) -> str:
    """`+2`, `-1.5`, `0`; no two strengths have one text, so that none gets the picture of another."""
    short = f"{strength:+g}" if strength else "0"
    return short if float(short) == strength else f"{strength:+}"


def _folder_name(part: str, folds: bool) -> str:
    """A part of an image_id with what a file system may not take, and `%` itself, as `%XX`."""
    if part in ("", ".", ".."):
        return "".join(f"%{ord(c):02X}" for c in part) or "%00"
    name = re.sub(r'[\x00-\x1f<>:"|?*\\%\[\]]', lambda found: f"%{ord(found.group()):02X}", part)
    # `A.png` and `a.png` would be one folder where case is folded.
    return shortened(name, part, 0 if folds and part != part.casefold() else _LONGEST_NAME)
