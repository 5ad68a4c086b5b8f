"""Captions of contact sheets: names of all the world's files, within their cells."""

import numpy as np
import pytest
from PIL import Image

from pti_core.sheet import Cell, sheet

PICTURE = Image.new("RGB", (128, 128), (90, 120, 180))


def drawn(caption, heading="target"):
    return np.asarray(sheet([heading], [[Cell(PICTURE, caption)]], ()))


@pytest.mark.parametrize(
    ("one", "other"),
    [("ä.png", "ö.png"), ("Ω.png", "м.png"), ("人.png", "人物.png"), ("a.png", "ä.png"), ("😀", "☺"), ("äö", "ä\nö")],
)
def test_names_with_other_letters_than_english_are_told_apart(one, other):
    assert (drawn(one) != drawn(other)).any()


@pytest.mark.parametrize("unknown", ["人", "物", "\n", "\x00", "\u200b", "\ud800"])
def test_a_letter_that_no_font_has_is_one_box(unknown):
    for name in ("{}.png", "{0}/{0}{0}.png", "ä{}.png"):
        assert (drawn(name.format(unknown)) == drawn(name.format("□"))).all()
    room = "□" * 9 + ".png"  # of which the cell has enough: its beginning is there, not the half of a code
    assert (drawn(unknown * 9 + ".png") == drawn(room)).all()
    assert (drawn(room) != drawn("□" * 8 + ".png")).any()


@pytest.mark.parametrize(
    "name", ["a/very/long/path/" * 4 + "{}.png", "sehr/größer/" * 6 + "{}.png", "人物" * 20 + "{}.png"]
)
def test_a_long_name_is_cut_to_its_cell_and_keeps_its_end(name):
    first, second = drawn(name.format("one")), drawn(name.format("two"))
    assert (first != second).any()
    edges = np.concatenate([first[:, :14], first[:, -14:]], axis=1)
    assert (edges == 255).all()


def test_a_heading_is_cut_too():
    assert (drawn("a", "head " * 40)[:, :14] == 255).all()
