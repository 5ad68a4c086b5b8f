"""Whether what a flow is about to need answers, before anything is written for it."""

from __future__ import annotations

from collections.abc import Mapping

from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL

from flows.runners import RunnerName, started


def check_reachable(
    name: RunnerName, workers: int | None, address: str | None, resources: Mapping[str, float] | None
) -> None:
    """Ask the Prefect server and the cluster that a flow is about to need, where they are not started for it alone.

    (To try whether a cluster of its own can be started would take as long as to start it twice.)
    Raises RunnerError where the cluster does not answer or has no room, RuntimeError where the server does not.
    """
    if PREFECT_API_URL.value():
        with get_client(sync_client=True) as client:
            client.raise_for_api_version_mismatch()
    if address:
        with started(name, workers, address, resources):
            pass
