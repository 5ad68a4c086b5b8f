"""How many images at once: by a cost that a function tells."""

from itertools import groupby

import pytest
import torch
from nvidia_files import random_generator

from pti_core.engine import Engine
from pti_core.machine.device import UnfitMachine
from pti_core.presets import configure
from pti_core.widths import STEPS, Widths, fastest_width, widths


def test_doubles_as_long_as_an_image_gets_cheaper():
    asked = []

    def seconds(width):
        asked.append(width)
        return max(1.0, width / 4)  # a device with room for four

    assert fastest_width(seconds, 64) == 4
    assert [width for width, _ in groupby(asked)] == [1, 2, 4, 8, 16]


def test_a_width_that_gains_about_a_twentieth_is_asked_for_twice_and_its_quicker_time_counts():
    times = {1: [1.0], 2: [2 * 0.98, 2 * 0.90], 4: [4 * 0.5], 8: [8 * 0.6], 16: [16 * 0.47, 16 * 0.48]}
    assert fastest_width(lambda width: times[width].pop(0), 16) == 16
    assert not any(times.values())


def test_two_that_cost_as_much_as_one_each_do_not_hide_what_more_would_gain():
    """As where two are drawn in another way than one, which costs twice as much however many they are."""
    assert fastest_width(lambda width: 1.0 if width == 1 else 2.0, 8) == 8


def test_one_where_nothing_is_gained_and_never_more_than_the_most():
    assert fastest_width(lambda width: width, 64) == 1
    assert fastest_width(lambda width: 1.0, 6) == 6
    assert fastest_width(lambda width: 1.0, 1) == 1


def test_memory_that_ends_is_an_answer_and_other_errors_are_not(caplog):
    caplog.set_level("INFO", "pti_core.widths")

    def seconds(width):
        if width > 8:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 1.0

    assert fastest_width(seconds, 64) == 8
    assert caplog.messages == ["16 images at once: no memory for them (CUDA out of memory)"]
    assert caplog.records[0].levelname == "INFO"
    with pytest.raises(UnfitMachine, match=r"out of memory with one image alone; .* \(CUDA out of memory\)"):
        fastest_width(lambda width: seconds(width + 8), 64)

    def unknown(width):
        if width > 2:
            raise RuntimeError("GET was unable to find an engine to execute this computation")
        return 1.0

    assert fastest_width(unknown, 64) == 2
    assert caplog.records[-1].levelname == "WARNING"  # it may be that cuDNN knows no way, with any memory

    def broken(width):
        if width > 2:
            raise RuntimeError("something else")
        return 1.0

    with pytest.raises(RuntimeError, match="something else"):
        fastest_width(broken, 64)


@pytest.mark.parametrize(
    ("family", "precision"), [("mobilestylegan", "half"), ("stylegan2", "half"), ("stylegan2", "fp32")]
)
@pytest.mark.parametrize("mode", ["single", "multi"])
def test_what_is_tried_is_the_search_and_the_tuning_of_this_generator(tiny_generator, family, precision, mode):
    generator = tiny_generator if family == "mobilestylegan" else random_generator(resolution=32)
    config = configure("demo", {"batch": 3, "mode": mode, "precision": precision, "pivot.w_samples": 100})
    engine = Engine(generator, config)
    shared = (engine.drawing, engine.config, engine.statistics, engine.lpips, engine.bases, engine.device)
    sizes = []

    def judged(net, given):
        if given[0].requires_grad:  # images that were drawn to be made better
            sizes.append(len(given[0]))

    hook = engine.lpips.slices[0].register_forward_pre_hook(judged)
    try:
        found = widths(*shared, 3)
    finally:
        hook.remove()
    stacks = mode == "single"
    assert not found.ended  # but by the most
    tries = []
    for size, _ in groupby(sizes):
        tries += [[]] if size == 1 else []
        tries[-1].append(size)
    assert len(tries) == (2 if stacks else 1)  # of the search, of the stack
    for chosen, tried in zip(found[:2], tries, strict=False):
        assert tried == [1, 2, 3]  # at most one doubling gains nothing before the last
        assert chosen in tried
    assert stacks or found[1] == 1
    assert not any(p.requires_grad for p in generator.parameters())


@pytest.fixture
def on_a_gpu(tiny_generator, monkeypatch):
    """An engine of batch 64 that finds by trying how many go together, for which a width is the most; what it tried."""
    engine, tried, useful = Engine(tiny_generator, configure("demo", {"batch": 64, "pivot.w_samples": 100})), [], [64]
    engine.device, engine.at_once = torch.device("meta"), 64

    def found(*shared_and_most):
        tried.append(most := shared_and_most[-1])
        width = min(most, useful[0])
        return Widths(width, width, ended=width < most)

    monkeypatch.setattr("pti_core.engine.widths", found)
    monkeypatch.setattr(Engine, "bases", None)
    return engine, tried, useful


def test_what_memory_has_no_room_for_is_not_tried_again_for_a_larger_part(on_a_gpu):
    engine, _, _ = on_a_gpu
    engine.prepare(4)
    assert (engine.at_once, engine.stack) == (4, 4)
    engine.prepare(7)
    assert (engine.at_once, engine.stack) == (8, 8)
    engine.draw_at_most(3)  # as after a search that ran out of memory
    engine.prepare(16)
    assert (engine.at_once, engine.stack) == (3, 16)
    engine.tune_at_most(5)
    engine.prepare(64)
    assert (engine.at_once, engine.stack) == (3, 5)


def test_widths_are_tried_anew_for_twice_as_many_and_not_where_wider_was_no_better(on_a_gpu):
    engine, tried, useful = on_a_gpu
    engine.prepare(0)  # nothing is done together
    assert (tried, engine.at_once, engine.stack) == ([], 64, 1)
    for count in (3, 4, 5, 6, 7, 8):
        engine.prepare(count)
    assert tried == [4, 8]
    useful[0] = 8
    for count in (9, 33, 64, None):
        engine.prepare(count)
    assert tried == [4, 8, 16]
    assert (engine.at_once, engine.stack) == (8, 8)


def test_a_part_that_lacks_an_image_is_as_good_as_a_whole_one(on_a_gpu):
    engine, tried, _ = on_a_gpu
    engine.prepare(63)
    engine.prepare(64)
    assert tried == [64]


def test_one_image_alone_is_tried_and_not_timed(tiny_generator):
    settings = {"precision": "fp32", "pivot.w_samples": 100, "locality.enabled": False}
    engine = Engine(tiny_generator, configure("demo", settings))
    judged = []
    hook = engine.lpips.slices[0].register_forward_pre_hook(lambda _, given: judged.append(given[0].requires_grad))
    shared = (engine.drawing, engine.config, engine.statistics, engine.lpips, engine.bases, engine.device)
    try:
        assert widths(*shared, 1) == (1, 1, False)
    finally:
        hook.remove()
    assert sum(judged) == 2 * (1 + STEPS)  # of the search and of the tuning, once each
