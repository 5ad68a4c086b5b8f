"""What a server and its pages call a run: what is done, and to what."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from coolname.data import config as words_of_prefect
from prefect.runtime import flow_run

from pti_core.addresses import redact, secret_in

_LONGEST = 60


def named(text: str, of: str) -> Callable[[], str]:
    """For `flow_run_name`: the name that a person gave the run; without one see `run_name`."""

    def name() -> str:
        given = flow_run.name
        return given if given and not made_up(given) else run_name(text, of, flow_run.parameters)

    return name


def made_up(name: str) -> bool:
    """Whether Prefect has made up the name of a run, an adjective and an animal, since nobody gave one."""
    lists: Mapping[str, Any] = words_of_prefect
    known = {word for of in lists.values() for word in of.get("words", ())}
    parts = name.split("-")
    return len(parts) == 2 and known.issuperset(parts)


def run_name(text: str, of: str, arguments: Mapping[str, Any]) -> str:
    """A text with a flow's arguments in braces, then the last part of the address `of`.

    An address with a secret is left out: such a run is refused, but its name would stay.
    """
    beginning, address = text.format(**arguments), str(arguments[of])
    if secret_in(address) is not None:
        return beginning
    parts = re.split(r"[/\\]+", redact(address))
    names = [" ".join(part.split()) for part in parts if not re.search(r"[*?[]|:$", part)]  # no pattern, no protocol
    last = next((name for name in reversed(names) if name), "")
    return f"{beginning}-{last[:_LONGEST]}" if last else beginning
