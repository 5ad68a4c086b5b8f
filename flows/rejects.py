"""A run that rejects too many of its images ends early."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any, Final

from pti_core.causes import causes_of
from pti_core.words import counted

ENOUGH: Final = 200
"""Images that a flow has to have done, or all that it has to do, before their share of rejects says anything."""


class Rejects:
    """Counts what a flow run has done of its images, and says when it is to end."""

    def __init__(self, most: float | None, fresh: Collection[int]) -> None:
        """`most`: the share of rejects that is borne, 0 to 1, any where it is None.

        Only shards that are done for the first time (`fresh`) count: what was rejected before is no news.
        """
        self._most, self._fresh, self._left = most, frozenset(fresh), set(fresh)
        self._images, self._rejected, self._causes = 0, 0, Counter[str]()

    def too_many(self, counts: Mapping[str, Any]) -> str | None:
        """With the counts of one more shard: why the flow is to end, in one sentence; None where it goes on."""
        if self._most is None or counts["shard"] not in self._fresh:
            return None
        self._left.discard(counts["shard"])
        self._images += counts["images"]
        self._rejected += counts["rejects"]
        self._causes.update(causes_of([counts]))
        if (self._images < ENOUGH and self._left) or self._rejected <= self._most * self._images:
            return None
        (cause, number), share = self._causes.most_common(1)[0], self._rejected / self._images
        return (
            f"{self._rejected:,} of {counted(self._images, 'image')} were rejected ({share:.1%}), more than "
            f"the share max_rejects={self._most:g} allows ({number:,} of them {cause}); see to that, or allow more, "
            "and run it again: what is done stays"
        )
