"""Image ids as names of files."""

from __future__ import annotations

import re


def plain_path(image_id: str) -> str:
    """A path that stays below the folder it is joined to, whatever an image is called in an archive or table."""
    parts = [re.sub(r"[\\\x00]", "_", part) for part in image_id.split("/") if part not in ("", ".", "..")]
    return "/".join(parts) or "image"
