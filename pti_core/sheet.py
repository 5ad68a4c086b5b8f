"""Pictures in a table, with headings and captions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

MIN_CELL, MAX_CELL = 128, 256  # pixels; larger images are reduced, smaller ones enlarged
INK, PAPER, GREY = (24, 24, 27), (255, 255, 255), (113, 113, 122)
MARGIN, GAP, GROUP_GAP, HEAD, CAPTION = 16, 4, 18, 26, 20
_CUT, _UNKNOWN = "…", "□"


@dataclass(frozen=True)
class Cell:
    """One picture; grey where there is none."""

    picture: Image.Image | None
    caption: str


def sheet(headings: Sequence[str], lines: Sequence[Sequence[Cell]], groups: Sequence[int]) -> Image.Image:
    """Lines of cells below headings; columns that begin a group (by number, from 0) are set apart."""
    sizes = [cell.picture.width for line in lines for cell in line if cell.picture is not None]
    size = min(MAX_CELL, max([MIN_CELL, *sizes]))
    lefts, x = [], MARGIN
    for i in range(len(headings)):
        x += GROUP_GAP if i and i in groups else GAP if i else 0
        lefts.append(x)
        x += size
    height = MARGIN + HEAD + len(lines) * (size + CAPTION) + MARGIN // 2
    drawn = Image.new("RGB", (x + MARGIN, height), PAPER)
    pen = ImageDraw.Draw(drawn)
    for left, heading in zip(lefts, headings, strict=True):
        write(pen, (left + size / 2, MARGIN), heading, INK, 13, size)
    for i, line in enumerate(lines):
        top = MARGIN + HEAD + i * (size + CAPTION)
        for left, cell in zip(lefts, line, strict=True):
            picture = cell.picture or Image.new("RGB", (size, size), GREY)
            drawn.paste(picture.resize((size, size), Image.Resampling.LANCZOS), (left, top))
            write(pen, (left + size / 2, top + size + 3), cell.caption, GREY, 11, size)
    return drawn


def write(
    pen: ImageDraw.ImageDraw, at: tuple[float, float], text: str, ink: tuple[int, int, int], size: int, width: float
) -> None:
    """A line of text of `size` pixels, centred below `at` and cut to a width.

    Its end is kept, which tells more (the file's name, the strength). What no font here has is one `_UNKNOWN` each: the
    code of a letter would take the room of ten.
    """
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont = ImageFont.load_default(size)
    if not (text.isascii() and text.isprintable()):
        path, known = _more_letters()
        font = ImageFont.truetype(path, size, layout_engine=ImageFont.Layout.BASIC)  # as the default font has it
        text = "".join(c if c.isprintable() and ord(c) in known else _UNKNOWN for c in text)
    cut, text = text, text[-int(width) :]  # no letter is narrower than a pixel
    while len(text) > 4 and font.getlength(cut) > width:
        text = text[1:]
        cut = f"{_CUT}{text}"
    pen.text(at, cut, ink, font, anchor="ma")


@lru_cache(1)
def _more_letters() -> tuple[str, frozenset[int]]:
    """A font with the letters of Europe and more, which matplotlib brings along, and the codes that it has."""
    from matplotlib import get_data_path
    from matplotlib.ft2font import FT2Font

    path = str(Path(get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"))
    return path, frozenset(FT2Font(path).get_charmap())
