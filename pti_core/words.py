"""Numbers in words, the same in a terminal, in a log and on pages."""

from __future__ import annotations

import re


def counted(number: int, noun: str) -> str:
    """`1 image`, `2 images`, `1,000 images`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def some_of(part: int, whole: int, noun: str) -> str:
    """`2 of 1,000 images`, or `1,000 images` where the part is all."""
    return counted(whole, noun) if part >= whole else f"{part:,} of {counted(whole, noun)}"


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 20 min`, `2 d 4 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


PERCENT = "%"
"""The unit of work that is not counted in images: a share of all of it, with 100 as the total."""


def how_far(done: float, total: int, rate: float, unit: str = "image") -> str:
    """`1.5 of 4 images, 0.100 images/s, 25 s left`, or `26 %, 25 s left`. `rate`: a second, 0 where not known yet."""
    words = [f"{done:.0f} %" if unit == PERCENT else f"{done:.1f} of {counted(total, unit)}"]
    if rate > 0 and unit != PERCENT:
        words.append(f"{rate:.3f} images/s")
    if done < total:
        words.append(f"{duration((total - done) / rate)} left" if rate > 0 else "measuring speed")
    return ", ".join(words)


def rate_of(images: float, seconds: float) -> float:
    """Images a second; 0, for "not known yet", within the first second, which says nothing."""
    return images / seconds if seconds > 1 and images > 0 else 0.0


def escaped(text: str) -> str:
    """Text that stays text in Markdown, whatever the names of images are."""
    return re.sub(r"([\\`*_{}\[\]()<>#+\-.!|~&$:])", r"\\\1", " ".join(text.split()))
