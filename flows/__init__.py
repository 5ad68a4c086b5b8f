"""Prefect flows and the `pti` command: what a person starts, in a terminal or from the server's pages."""

import time
from typing import Final

BEGUN: Final = time.monotonic()
"""When this process began to import the program: a command's clock counts from here, not from after its imports."""
