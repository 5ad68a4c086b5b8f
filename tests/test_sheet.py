"""Captions of contact sheets: names of all the world's files stay different, within their cells."""

import numpy as np
import pytest
from PIL import Image

from pti_core.sheet import Cell, sheet

PICTURE = Image.new("RGB", (128, 128), (90, 120, 180))


def drawn(caption, heading="target"):
    return np.asarray(sheet([heading], [[Cell(PICTURE, caption)]], ()))


@pytest.mark.parametrize(
    ("one", "other"),
    [("ä.png", "ö.png"), ("Ω.png", "м.png"), ("人.png", "物.png"), ("a.png", "ä.png"), ("😀", "😃"), ("ä\nö", "ä\rö")],
)
def test_names_with_other_letters_than_english_are_told_apart(one, other):
    assert (drawn(one) != drawn(other)).any()


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
