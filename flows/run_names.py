"""What a server and its pages call a run: what is done, and to what."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from prefect.runtime import flow_run

from pti_core.addresses import secret_in, without_query

_LONGEST = 60


def named(text: str, of: str) -> Callable[[], str]:
    """For `flow_run_name`: see `run_name`."""
    return lambda: run_name(text, of, flow_run.parameters)


def run_name(text: str, of: str, arguments: Mapping[str, Any]) -> str:
    """A text with a flow's arguments in braces, then the last part of the address `of`.

    An address with a secret is left out: such a run is refused, but its name would stay.
    """
    beginning, address = text.format(**arguments), str(arguments[of])
    last = re.split(r"[/\\]", without_query(address).rstrip("/\\"))[-1]
    return f"{beginning}-{last[:_LONGEST]}" if last and secret_in(address) is None else beginning
