"""What Prefect logs of an error that a person can act on: its sentence, once, in place of a traceback at each layer."""

from __future__ import annotations

import logging
import os
from typing import Final

OWN: Final = ("pti_core.", "tasks.", "flows.")
"""Errors defined here have messages that say what is wrong and what to do; others are shown with all they have."""

LOGGERS: Final = ("prefect.task_runs", "prefect.flow_runs", "prefect.engine")


class _Sentence(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
        if record.levelno < logging.ERROR or not type(error).__module__.startswith(OWN):
            return True
        told = getattr(error, "_told", False)
        record.msg, record.args, record.exc_info, record.exc_text = "%s", (str(error),), None, None
        error._told = True  # type: ignore[union-attr]
        return not told


def in_sentences() -> None:
    """Have Prefect log errors so in this process; with PTI_TRACEBACK=1 as it would."""
    if os.environ.get("PTI_TRACEBACK"):
        return
    for logger in map(logging.getLogger, LOGGERS):
        if not any(isinstance(known, _Sentence) for known in logger.filters):
            logger.addFilter(_Sentence())
