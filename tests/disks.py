"""Small file systems in memory: a disk that fills up, or turns read-only."""

import subprocess
from pathlib import Path

PAGE = 4096  # bytes, of a file system in memory
LARGE = "size=100m"


def mount(*arguments: object) -> None:
    done = subprocess.run(["mount", *map(str, arguments)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(done.stderr.strip())


class Disk:
    """A file system of its own in memory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def remount(self, options: str) -> None:
        """Change its size, or whether it can be written."""
        mount("-o", f"remount,{options}", self.folder)

    def fill(self, leave: int) -> Path:
        """A file that leaves so many bytes free."""
        path = self.folder / "filler"
        free = int(subprocess.run(["stat", "-f", "-c", "%a", self.folder], capture_output=True, check=True).stdout)
        path.write_bytes(bytes(max(0, free * PAGE - leave)))
        return path
