"""How many images at once: by a cost that a function tells."""

import pytest
import torch

from pti_core.widths import fastest_width


def test_doubles_as_long_as_an_image_gets_cheaper():
    asked = []

    def seconds(width):
        asked.append(width)
        return max(1.0, width / 4)  # a device with room for four

    assert fastest_width(seconds, 64) == 4
    assert asked == [1, 2, 4, 8]


def test_one_where_nothing_is_gained_and_never_more_than_the_most():
    assert fastest_width(lambda width: width, 64) == 1
    assert fastest_width(lambda width: 1.0, 6) == 6
    assert fastest_width(lambda width: 1.0, 1) == 1


def test_memory_that_ends_is_an_answer_and_other_errors_are_not():
    def seconds(width):
        if width > 8:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 1.0

    assert fastest_width(seconds, 64) == 8
    assert fastest_width(lambda width: seconds(width + 8), 64) == 1  # not even one: what is smaller then says so

    def broken(width):
        if width > 2:
            raise RuntimeError("something else")
        return 1.0

    with pytest.raises(RuntimeError, match="something else"):
        fastest_width(broken, 64)
