"""What a flow run's page on the server shows of its results: artifacts. A server that is away loses these, no work."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Final

import httpx
from prefect.logging import get_run_logger

LONGEST: Final = 60  # characters of an address in a key


def key_of(what: str, address: str) -> str:
    """The key of an artifact of a data set's runs: small letters, digits and dashes, as Prefect wants it."""
    return "-".join([what, *re.findall("[a-z0-9]+", address.lower()[-LONGEST:])])


def show(artifacts: Iterable[Callable[[], object]], then: str = "what it would show is in the store") -> None:
    """Create artifacts, one call each; a warning where the server cannot be told of all.

    By then all is computed and written, so a run does not fail by it. (Prefect asks a server that does not answer
    again for about a minute.) `then`: where to find what is not shown.
    """
    for create in artifacts:
        try:
            create()
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
            get_run_logger().warning("the run's page does not show all of its results (%s); %s", why, then)
            if isinstance(error, httpx.TransportError):
                return  # nor could it be told of the others
