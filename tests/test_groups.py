"""Mode `multi`: one generator a group, whatever the order and the size of parts; and what is said of groups of one."""

from dataclasses import replace

import pytest
import torch
from conftest import QUICK_SETTINGS
from PIL import Image

from pti_core.batches import find_all, tune_owners
from pti_core.engine import Engine
from pti_core.freezing.freeze import freeze
from pti_core.images import to_float
from pti_core.inversions import Failure, Inversion, Target
from pti_core.presets import configure
from pti_core.progress import WorkCounter
from pti_core.storage.known_runs import RunError


@pytest.fixture
def targets(pictures):
    """Two groups of three and two pictures."""
    images = torch.from_numpy(to_float(torch.tensor(pictures[:5]).numpy()[:, 4:36, 4:36]))
    return [Target(f"{i}.png", "ab"[i % 2], image) for i, image in enumerate(images)]


def measures(generator, targets, at_once=1, **settings):
    """LPIPS of every image as it is stored; and the pivots."""
    engine = Engine(generator, configure("demo", QUICK_SETTINGS | {"mode": "multi"} | settings))
    engine.at_once = at_once
    found = [result for result in engine.invert(targets) if isinstance(result, Inversion)]
    assert {one.image_id for one in found} == {target.image_id for target in targets}
    return {one.image_id: one.measures["stored"]["lpips"] for one in found}


def test_neither_the_order_of_images_in_a_group_nor_the_batch_changes_anything(tiny_generator, targets):
    expected = pytest.approx(measures(tiny_generator, targets), abs=5e-3)
    assert measures(tiny_generator, targets[::-1]) == expected
    assert measures(tiny_generator, targets, batch=2) == expected
    assert measures(tiny_generator, [target for target in targets if target.group == "a"]) == pytest.approx(
        {name: value for name, value in expected.expected.items() if int(name[0]) % 2 == 0}, abs=5e-3
    )
    others = [replace(target, group="c") for target in targets]
    assert measures(tiny_generator, others) != expected  # what a group holds does count


def test_an_image_at_which_tuning_diverges_costs_itself_and_not_its_group(tiny_generator, targets):
    engine = Engine(tiny_generator, configure("demo", QUICK_SETTINGS | {"mode": "multi"}))
    engine.prepare()
    counter = WorkCounter(engine.config, 3)
    first, second, third = find_all(engine, counter, targets[:3])
    bad = replace(second, pivot=replace(second.pivot, w=second.pivot.w * 1e30))  # where nothing finite is drawn
    (expected,) = tune_owners(engine, counter, [("a", [first, third])], lambda: None)
    (results,) = tune_owners(engine, counter, [("a", [first, bad, third])], lambda: None)
    failure, *others = results
    assert failure == Failure(
        "1.png",
        "tuning",
        "NotFinite",
        "image_id '1.png': its loss in the tuning of 'a' became NaN, and the others are tuned without it; "
        "a tuning.lr below 0.015 may help (a new run)",
        permanent=True,
    )
    assert [(type(one), one.owner) for one in others] == [(type(one), one.owner) for one in expected]
    assert [one.measures for one in others[:2]] == [one.measures for one in expected[:2]]
    (results,) = tune_owners(engine, counter, [("a", [bad, bad])], lambda: None)  # no culprit
    assert [one.message for one in results] == [
        "image_id '1.png': its tuning diverged to NaN; a tuning.lr below 0.015 may help (a new run)"
    ] * 2

    calls = iter(range(99))

    def short():
        if next(calls):  # once the others are tuned anew
            raise torch.OutOfMemoryError("no room")

    (results,) = tune_owners(engine, counter, [("a", [first, bad, third])], short)
    assert [(one.image_id, one.permanent) for one in results] == [("1.png", True), ("0.png", False), ("2.png", False)]


@pytest.fixture
def begin(tmp_path, tiny_checkpoint):
    """A function that freezes a run of a folder in a mode, and gives its remarks."""

    def remarks(folder, preset="demo", **more):
        settings = QUICK_SETTINGS if preset == "demo" else {}
        config = configure(preset, settings | {"mode": more.pop("mode", "multi")})
        return freeze(str(folder), str(tmp_path / "out"), tiny_checkpoint, config, **more).remarks

    return remarks


def test_groups_of_one_image_are_told(dataset, begin, pictures):
    flat = dataset(3)
    (remark,) = begin(flat)
    assert remark.startswith("3 of 3 groups have one image and get a generator of their own; `--group-by ")
    assert begin(flat) == ()  # once is enough
    assert begin(flat, mode="single")[0].startswith("a new run beside")
    (_, remark) = begin(flat, group_by="regex:([01])")
    assert remark.startswith("3 of 3 groups")
    assert not [remark for remark in begin(flat, group_by="regex:(png)") if "of their own" in remark]
    (flat / "ann").mkdir()
    for i in range(2):
        Image.fromarray(pictures[i]).save(flat / "ann" / f"{i}.png")
    (flat / "1.png").unlink()
    (flat / "2.png").unlink()
    assert "1 of 2 groups has one image and gets a generator of its own" in begin(flat, limit=9)[-1]


def test_the_last_group_by_number_may_have_one_image(dataset, begin, pictures):
    flat = dataset(3)
    assert begin(flat, group_by="count:2") == ()
    Image.fromarray(pictures[3]).save(flat / "x.png")
    remarks = begin(flat, group_by="count:2", existing="extend")
    assert remarks[0] == "1 new file is appended as shard 1"
    assert not [remark for remark in remarks if "one image" in remark]


@pytest.fixture
def crowd(dataset):
    """A function that puts copies of a picture into a folder of the data set, up to so many."""
    picture = (dataset(1) / "0.png").read_bytes()

    def fill(folder, count):
        folder.mkdir(parents=True, exist_ok=True)
        for i in range(count):
            (folder / f"{i}.png").write_bytes(picture)
        return folder.parent

    return fill


def test_a_large_group_is_told_with_its_size(begin, crowd, tmp_path):
    data = crowd(tmp_path / "set/anna", 64)
    crowd(data / "ben", 2)
    assert begin(data, "noop") == ()
    crowd(data / "ben", 65)
    (remark,) = begin(data, "noop", limit=1000)[1:]
    assert remark.startswith(
        "group 'ben' has 65 images, which share one generator and are held in memory together; `--"
    )
    crowd(data / "carl", 70)  # what is appended is looked at, and nothing else
    remarks = begin(data, "noop", limit=1000, existing="extend")
    assert [remark[:27] for remark in remarks] == ["70 new files are appended a", "group 'carl' has 70 images,"]


def test_a_group_that_is_hardly_meant_has_to_be_asked_for(begin, crowd, tmp_path):
    data = crowd(tmp_path / "set/anna", 1001)
    says = (
        r"^group 'anna' \(by folder, the default\) has 1,001 images, .* at most 1,000 expected; .*`folder` if it is all"
    )
    with pytest.raises(RunError, match=says):
        begin(data, "noop")
    assert not list((tmp_path / "out").rglob("*.*"))
    assert begin(data, "noop", mode="single") == ()
    assert [remark[:12] for remark in begin(data, "noop", group_by="folder")] == ["a new run be", "group 'anna'"]
    crowd(data / "ben", 1001)
    with pytest.raises(RunError, match="group 'ben'"):
        begin(data, "noop", existing="extend")
    assert len(begin(data, "noop", group_by="folder", existing="extend")) == 2
