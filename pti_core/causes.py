"""Why images were rejected, and how many for what: counts by cause, as the markers of shards tell them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:  # it brings pandas, and a terminal shows causes
    from pti_core.tables import Row

BY_CAUSE: Final = "by_error"
"""In a marker's counts where there are rejects: how many, by stage and class of error as in the table of rejects."""

UNKNOWN: Final = "for an unknown cause"
"""Of rejects in markers of earlier versions, which tell no causes."""

LINES: Final = 5  # that are shown


def causes_of_rows(rejects: Iterable[Row]) -> Counter[str]:
    """Rows of the rejects table, counted by cause: `read FileNotFoundError`."""
    return Counter(f"{row['stage']} {row['error']}" for row in rejects)


def causes_of(counts: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """The rejects of shards by cause, the most frequent first, by the counts of their markers."""
    found: Counter[str] = Counter()
    for count in counts:
        told = count.get(BY_CAUSE) or {}
        found.update(told)
        found[UNKNOWN] += max(0, int(count["rejects"]) - sum(told.values()))
    return {cause: number for cause, number in sorted(found.items(), key=lambda item: (-item[1], item[0])) if number}


def in_lines(causes: Mapping[str, int]) -> list[str]:
    """At most `LINES` lines, the most frequent cause first; what has no room is summed up in the last one."""
    shown = list(causes.items())
    if len(shown) > LINES:
        rest = shown[LINES - 1 :]
        shown = [*shown[: LINES - 1], (f"for {len(rest)} other causes", sum(number for _, number in rest))]
    return [f"{number:,} {cause}" for cause, number in shown]
