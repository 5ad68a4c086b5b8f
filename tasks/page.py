"""What a flow run's page on the server shows of its results: artifacts. A server that is away loses these, no work."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Final

from prefect.logging import get_run_logger

PAUSES: Final = (5.0, 30.0)
"""Seconds after which a server that did not answer is asked again, once each: it may just be starting anew."""


def show(artifacts: Iterable[Callable[[], object]], then: str = "what it would show is in the store") -> None:
    """Create artifacts, one call each; a warning where the server cannot be told of all.

    By then all is computed and written, so a run does not fail by it. `then`: where to find what is not shown.
    """
    pauses = iter(PAUSES)
    for create in artifacts:
        while True:
            try:
                create()
                break
            except Exception as error:
                if (pause := next(pauses, None)) is None:
                    why = f"{type(error).__name__}: {error}"
                    get_run_logger().warning("the run's page does not show all of its results (%s); %s", why, then)
                    return
                time.sleep(pause)
