"""Files that appear whole or not at all, readable for whom the umask says."""

from __future__ import annotations

import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A hidden file beside `path` to write to: renamed to it when all went well, removed otherwise.

    Its mode is that of any new file, whatever the writer makes of it (safetensors' own is for its owner alone).
    """
    part = path.with_name(f".{uuid.uuid4().hex[:12]}.part")  # without its name, which may have no room for more
    try:
        part.touch(exist_ok=False)
        mode = stat.S_IMODE(part.stat().st_mode)
        yield part
        part.chmod(mode)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
