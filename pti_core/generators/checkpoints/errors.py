"""The one error of all checkpoint readers."""

from __future__ import annotations


class CheckpointError(ValueError):
    """A generator file that is refused, or that cannot be written: what is wrong, and the way out.

    Readers leave out which file it is; `load_generator` puts that before their sentence.
    """


def reason(error: BaseException) -> str:
    """The first line of an error, not too long, or its kind."""
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
