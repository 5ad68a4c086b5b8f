"""The log of a run: of an error that a person can act on its sentence, once, and what `pti_core` warns of."""

from __future__ import annotations

import logging
import os
from typing import Final

from prefect.context import FlowRunContext, TaskRunContext
from prefect.logging.handlers import APILogHandler

OWN: Final = ("pti_core.", "tasks.", "flows.")
"""Errors defined here have messages that say what is wrong and what to do; others are shown with all they have."""

OF_LAYERS: Final = (
    "Task run failed with exception",
    "Encountered exception during execution",
    "Engine execution exited with unexpected exception",
    "Execution of flow run",
)
"""What Prefect's layers say of an error that passes, one after the other."""

LOGGERS: Final = ("prefect.task_runs", "prefect.flow_runs", "prefect.engine")


class _Sentence(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
        if record.levelno < logging.WARNING or not type(error).__module__.startswith(OWN):
            return True
        message, told = record.getMessage(), False
        if message.startswith(OF_LAYERS):
            told = getattr(error, "_told", False)
            error._told = True  # type: ignore[union-attr]
            message = str(error)
        elif str(error) not in message:
            message = f"{message}: {error}"
        record.msg, record.args, record.exc_info, record.exc_text = "%s", (message,), None, None
        return not told


def in_sentences() -> None:
    """Have Prefect log errors so in this process; with PTI_TRACEBACK=1 as it would."""
    if os.environ.get("PTI_TRACEBACK"):
        return
    for logger in map(logging.getLogger, LOGGERS):
        if not any(isinstance(known, _Sentence) for known in logger.filters):
            logger.addFilter(_Sentence())


def warnings_to_the_run() -> None:
    """Have what `pti_core`, which knows nothing of Prefect, warns of in a run get into its log on the server too."""
    logger = logging.getLogger("pti_core")
    if any(isinstance(known, APILogHandler) for known in logger.handlers):
        return
    handler = APILogHandler()
    handler.addFilter(lambda record: FlowRunContext.get() is not None or TaskRunContext.get() is not None)
    logger.addHandler(handler)  # beside that of the root, which writes to the terminal
