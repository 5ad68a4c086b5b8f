"""What ends a command, a script or a benchmark: one sentence, and no traceback."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

from flows.lines import line

errors = Console(stderr=True)


@contextmanager
def one_sentence(stopped: str = "stopped") -> Iterator[None]:
    """Show what a person can act on as one sentence, without a traceback; exit status 1.

    `stopped` is said after Ctrl-C; exit status 130. PTI_TRACEBACK=1 shows tracebacks.
    """
    try:
        yield
    except KeyboardInterrupt:
        errors.print(stopped, style="yellow")
        sys.exit(130)
    except (ValueError, OSError, RuntimeError) as error:
        if os.environ.get("PTI_TRACEBACK"):
            raise
        line(errors, f"error: {sentence(error)}", "red")
        sys.exit(1)


def sentence(error: Exception) -> str:
    """The message of an error; where it does not say what to do, that as well."""
    from pydantic import ValidationError

    if isinstance(error, ValidationError):  # of a file that was written by hand, say
        from pti_core.presets import in_one_sentence

        return in_one_sentence(error)
    text = str(error) or type(error).__name__
    if "Failed to reach API at" in text:  # Prefect's words
        text = f"{text.rstrip('.')}; start the server with `prefect server start`, or unset PREFECT_API_URL to work "
        text += "without one"
    if "connect to ephemeral Prefect API" in text:
        text = f"{text.rstrip('.')}; the machine may be too busy: run the same command again, allow more time with "
        text += "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS=600, or start a server with `prefect server start` "
        text += "and set PREFECT_API_URL"
    return text
