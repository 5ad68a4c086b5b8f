"""Pictures in a table, with headings and captions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

MIN_CELL, MAX_CELL = 128, 256  # pixels; larger images are reduced, smaller ones enlarged
INK, PAPER, GREY = (24, 24, 27), (255, 255, 255), (113, 113, 122)
MARGIN, GAP, GROUP_GAP, HEAD, CAPTION = 16, 4, 18, 26, 20


@dataclass(frozen=True)
class Cell:
    """One picture; grey where there is none."""

    picture: Image.Image | None
    caption: str


def sheet(headings: Sequence[str], lines: Sequence[Sequence[Cell]], groups: Sequence[int]) -> Image.Image:
    """Lines of cells below headings; columns that begin a group (by number, from 0) are set apart."""
    sizes = [cell.picture.width for line in lines for cell in line if cell.picture is not None]
    size = min(MAX_CELL, max([MIN_CELL, *sizes]))
    font, small = ImageFont.load_default(13), ImageFont.load_default(11)
    lefts, x = [], MARGIN
    for i in range(len(headings)):
        x += GROUP_GAP if i and i in groups else GAP if i else 0
        lefts.append(x)
        x += size
    height = MARGIN + HEAD + len(lines) * (size + CAPTION) + MARGIN // 2
    drawn = Image.new("RGB", (x + MARGIN, height), PAPER)
    pen = ImageDraw.Draw(drawn)
    for left, heading in zip(lefts, headings, strict=True):
        pen.text((left + size / 2, MARGIN), _shorten(heading, font, size), INK, font, anchor="ma")
    for i, line in enumerate(lines):
        top = MARGIN + HEAD + i * (size + CAPTION)
        for left, cell in zip(lefts, line, strict=True):
            picture = cell.picture or Image.new("RGB", (size, size), GREY)
            drawn.paste(picture.resize((size, size), Image.Resampling.LANCZOS), (left, top))
            caption = _shorten(cell.caption, small, size)
            pen.text((left + size / 2, top + size + 3), caption, GREY, small, anchor="ma")
    return drawn


def _shorten(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """Cut a text to the width of a cell, keeping its end (the file's name, the strength)."""
    while len(text) > 4 and font.getlength(text) > width:
        text = "…" + text[2:]
    return text
