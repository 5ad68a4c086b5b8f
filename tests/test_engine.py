"""One batch through the whole method."""

import gc
import io
import weakref
from threading import Semaphore

import pytest
import torch
from nvidia_files import random_generator
from PIL import Image

from pti_core import deltas
from pti_core.batches import find_all, tune_owners
from pti_core.engine import Engine
from pti_core.generators.stylegan2 import StyleGAN2
from pti_core.inversions import Delta, Failure, Inversion, Target
from pti_core.machine.device import UnfitMachine
from pti_core.metrics import round_uint8
from pti_core.presets import configure
from pti_core.progress import WorkCounter

QUICK = {"pivot.steps": 12, "pivot.w_samples": 500, "tuning.steps": 10, "measure.z_samples": 1}


@pytest.fixture(scope="module")
def targets(tiny_generator) -> list[Target]:
    with torch.no_grad():
        z = torch.randn(8, tiny_generator.z_dim, generator=torch.Generator().manual_seed(5))
        images = tiny_generator.synthesis(tiny_generator.mapping(z)).clamp(-1, 1)
    images[:, 0, 8:12, 6:26] = 1.0
    return [Target(f"faces/{i}.png", f"group-{i // 4}", image) for i, image in enumerate(images)]


def invert(generator, targets, overrides=None, preset="demo", at_once=1, stack=1, **more):
    engine = Engine(generator, configure(preset, {**QUICK, **(overrides or {})}))
    engine.at_once, engine.stack = at_once, stack  # one of each is a CPU's choice, more are a GPU's
    return list(engine.invert(targets, **more)), engine


def by_id(results):
    return {r.image_id: r for r in results if isinstance(r, Inversion)}


def test_every_image_gets_measures_of_all_stages_and_a_delta(tiny_generator, targets):
    results, engine = invert(tiny_generator, targets[:3])
    inversions, tensors = by_id(results), [r for r in results if isinstance(r, Delta)]
    assert list(inversions) == [t.image_id for t in targets[:3]]
    assert [d.owner for d in tensors] == list(inversions)
    for inversion in inversions.values():
        assert set(inversion.measures) == {"pivot", "tuned", "stored"}
        assert inversion.measures["tuned"]["lpips"] < inversion.measures["pivot"]["lpips"]
        assert inversion.measures["stored"]["lpips"] == pytest.approx(inversion.measures["tuned"]["lpips"], abs=2e-3)
        assert inversion.w.shape == (1, tiny_generator.w_dim)
    # What is stored draws the image: pivot, noise and delta, decoded.
    first = inversions["faces/0.png"]
    generator = engine.stored_generator(tensors[0].tensors)
    noise = deltas.decode_noise(first.noise, tiny_generator)
    with torch.no_grad():
        image = generator.synthesis(first.w[None].expand(-1, generator.num_ws, -1), noise=noise)
    mse = (round_uint8(image[0]) - round_uint8(targets[0].image)).square().mean().item()
    assert mse == pytest.approx(first.measures["stored"]["mse"], rel=1e-3)


def test_a_batch_of_8_gives_what_8_runs_of_one_give(tiny_generator, targets):
    """The whole method at the demo preset's own step counts."""
    steps = {name: getattr(configure("demo"), name).steps for name in ("pivot", "tuning")}
    full = {f"{name}.steps": n for name, n in steps.items()}
    together = by_id(invert(tiny_generator, targets, full)[0])
    for target in targets:
        alone = by_id(invert(tiny_generator, [target], full)[0])[target.image_id]
        for stage, measures in alone.measures.items():
            found = together[target.image_id].measures[stage]["lpips"]
            assert found == pytest.approx(measures["lpips"], abs=1e-3), (target.image_id, stage)


def test_the_batch_size_changes_nothing(tiny_generator, targets):
    one = by_id(invert(tiny_generator, targets[:5], {"batch": 2})[0])
    other = by_id(invert(tiny_generator, targets[:5], {"batch": 5})[0])
    for image_id, inversion in one.items():
        assert inversion.measures["stored"]["lpips"] == pytest.approx(
            other[image_id].measures["stored"]["lpips"], abs=1e-3
        )


def test_mode_multi_tunes_one_generator_for_each_group(tiny_generator, targets):
    results, _ = invert(tiny_generator, targets, {"mode": "multi", "tuning.steps": 20})
    owners = [r.owner for r in results if isinstance(r, Delta)]
    assert owners == ["group-0", "group-1"]
    inversions = by_id(results)
    assert {i.owner for i in inversions.values()} == set(owners)
    before = sum(i.measures["pivot"]["lpips"] for i in inversions.values())
    assert sum(i.measures["stored"]["lpips"] for i in inversions.values()) < 0.8 * before


def test_an_image_that_diverges_is_a_failure_and_the_others_go_on(tiny_generator, targets):
    bad = Target("bad.png", "bad.png", torch.full_like(targets[0].image, float("nan")))
    results, _ = invert(tiny_generator, [targets[0], bad, targets[1]])
    (failure,) = [r for r in results if isinstance(r, Failure)]
    assert (failure.image_id, failure.stage, failure.permanent) == ("bad.png", "pivot", True)
    said = "image_id 'bad.png': the search of its pivot diverged to NaN; a pivot.lr below 0.1 may help (a new run)"
    assert failure.message == said
    assert list(by_id(results)) == ["faces/0.png", "faces/1.png"]
    good = by_id(invert(tiny_generator, targets[:2])[0])
    for image_id, inversion in by_id(results).items():
        assert inversion.measures["stored"]["lpips"] == pytest.approx(
            good[image_id].measures["stored"]["lpips"], abs=1e-3
        )


def test_a_stack_gives_what_one_image_after_the_other_gives(tiny_generator, targets):
    single = by_id(invert(tiny_generator, targets[:5], {"precision": "fp32"})[0])
    results, _ = invert(tiny_generator, targets[:5], {"precision": "fp32"}, stack=3)
    assert [r.owner for r in results if isinstance(r, Delta)] == list(single)
    for image_id, inversion in by_id(results).items():
        assert inversion.tuning_steps == single[image_id].tuning_steps
        for stage in ("tuned", "stored"):
            expected = single[image_id].measures[stage]["lpips"]
            assert inversion.measures[stage]["lpips"] == pytest.approx(expected, abs=1e-3), (image_id, stage)


def test_a_stack_is_of_images_that_end_at_about_the_same_step_and_results_keep_the_order(tiny_generator, targets):
    stacks = {}

    def on_step(stage, ids, step, lpips):
        if (stage, step) == ("tuning", 1):
            stacks[ids[0]] = lpips.tolist()

    results, _ = invert(tiny_generator, targets, {"precision": "fp32", "tuning.steps": 1}, stack=3, on_step=on_step)
    assert list(by_id(results)) == [r.owner for r in results if isinstance(r, Delta)] == [t.image_id for t in targets]
    assert sorted(map(len, stacks.values())) == [2, 3, 3]
    lpips = [value for stack in sorted(stacks.values(), reverse=True) for value in stack]
    assert lpips == pytest.approx(sorted(lpips, reverse=True), abs=2e-3)


class Hungry(torch.nn.Module):
    """A synthesis that runs out of memory above a number of images, as a real device does."""

    def __init__(self, synthesis, most):
        super().__init__()
        self.inner, self.most = synthesis, most

    def forward(self, ws, **kwargs):
        if len(ws) > self.most:
            raise torch.OutOfMemoryError(f"{len(ws)} images do not fit")
        return self.inner(ws, **kwargs)


class HungryGenerator(torch.nn.Module):
    def __init__(self, generator, most):
        super().__init__()
        self.generator, self.most = generator, most
        self.synthesis, self.mapping = Hungry(generator.synthesis, most), generator.mapping

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("generator"), name)

    def tunable(self):
        return self.generator.tunable()

    def with_precision(self, precision):
        return self  # the inner one's would be of the inner one, which is never hungry


def test_out_of_memory_halves_the_batch_and_goes_on(tiny_generator, targets):
    results, _ = invert(HungryGenerator(tiny_generator, 3), targets[:7], at_once=7)  # as on a GPU
    assert list(by_id(results)) == [t.image_id for t in targets[:7]]
    plain = by_id(invert(tiny_generator, targets[:7])[0])
    for image_id, inversion in by_id(results).items():
        assert inversion.measures["pivot"]["lpips"] == pytest.approx(
            plain[image_id].measures["pivot"]["lpips"], abs=0.02
        )


class Remembering(Hungry):
    """As a device is: what a failed attempt still holds is missing to the next one."""

    held, calls = [], []  # of all copies

    def forward(self, ws, **kwargs):
        self.calls.append((len(ws), sum(tensor() is not None for tensor in self.held)))
        if len(ws) > self.most:
            block = torch.zeros(1) + ws.sum()  # a local one, with a graph
            self.held += [weakref.ref(block), weakref.ref(ws)]
        return super().forward(ws, **kwargs)


@pytest.mark.parametrize("stage", ["pivot", "tuning"])
def test_another_try_begins_when_the_memory_of_the_failed_one_is_free_and_later_parts_begin_smaller(
    tiny_generator, targets, stage
):
    generator = HungryGenerator(tiny_generator, 8)
    generator.synthesis = Remembering(tiny_generator.synthesis, 3)
    Remembering.held.clear(), Remembering.calls.clear()
    settings = {**QUICK, "precision": "fp32", "mode": "single" if stage == "pivot" else "multi"}
    engine = Engine(generator, configure("demo", settings))
    engine.at_once = 8
    if stage == "tuning":  # pivots are found one by one, then four of a group are tuned together
        engine.at_once = 1
        engine.prepare()
        counter = WorkCounter(engine.config, 4)
        found = list(find_all(engine, counter, targets[:4]))
        engine.at_once = 4
        (results,) = tune_owners(engine, counter, [("group-0", found)], lambda: None)
    else:
        results = list(engine.invert(targets))
    assert len(by_id(results)) == (8 if stage == "pivot" else 4)
    tries = [(size, held) for size, held in generator.synthesis.calls if size > 1]
    assert tries[0][0] == (8 if stage == "pivot" else 4)
    assert all(held == 0 for _, held in tries)
    assert engine.at_once == 2


def test_generators_that_were_tuned_are_given_up_where_memory_ends_after_that(tiny_generator, targets):
    engine = Engine(tiny_generator, configure("demo", {**QUICK, "precision": "fp32"}))
    engine.prepare()
    alive, short = [], []

    def on_step(stage, ids, step, lpips):
        if (stage, step) == ("tuning", 1):
            gc.collect()
            alive.append(sum(isinstance(one, type(tiny_generator)) for one in gc.get_objects()))

    def hungry(_, given):
        if alive and len(given[0]) == 1 and not short:  # the stack is tuned, and one of its deltas to be fitted
            short.append(len(alive))
            raise torch.OutOfMemoryError("no room for a delta")

    engine.stack = 4
    hook = engine.lpips.slices[0].register_forward_pre_hook(hungry)
    try:
        done = list(engine.invert(targets[:4], on_step=on_step))
    finally:
        hook.remove()
    assert (len(by_id(done)), short, engine.stack) == (4, [1], 2)
    assert len(alive) == 3
    assert len(set(alive)) == 1


@pytest.mark.parametrize("stage", ["pivot", "tuning"])
def test_what_was_cut_before_memory_was_short_is_cut_again_without_failing_first(tiny_generator, targets, stage):
    engine, sizes = Engine(tiny_generator, configure("demo", {**QUICK, "precision": "fp32", "pivot.steps": 2})), []
    engine.prepare()
    engine.at_once, engine.stack = (4, 1) if stage == "pivot" else (1, 4)
    engine._room = Semaphore(1)  # as on a GPU: one job after the other

    def hungry(_, given):
        sizes.append(len(given[0]))
        if sizes[-1] > 2:
            raise torch.OutOfMemoryError("no room for more than two")

    hook = engine.judge.slices[0].register_forward_pre_hook(hungry)
    try:
        results = list(engine.invert(targets))
    finally:
        hook.remove()
    assert list(by_id(results)) == [t.image_id for t in targets]
    assert [size for size in sizes if size > 2] == [4]
    assert (engine.at_once, engine.stack) == ((2, 1) if stage == "pivot" else (1, 2))


def test_a_group_that_does_not_fit_is_done_by_accumulation(tiny_generator, targets):
    settings = {"mode": "multi"}
    results, _ = invert(HungryGenerator(tiny_generator, 3), targets, settings, at_once=8)
    plain = by_id(invert(tiny_generator, targets, settings)[0])
    assert [r.owner for r in results if isinstance(r, Delta)] == ["group-0", "group-1"]
    assert list(by_id(results)) == list(plain)
    for image_id, inversion in by_id(results).items():
        assert inversion.measures["stored"]["lpips"] == pytest.approx(
            plain[image_id].measures["stored"]["lpips"], abs=0.02
        )


def test_features_of_a_large_group_are_made_a_few_at_a_time(tiny_generator, targets, monkeypatch):
    settings = {"mode": "multi", "tuning.steps": 4}
    group = [Target(t.image_id, "one", t.image) for t in targets]
    kept = by_id(invert(tiny_generator, group, settings, at_once=2)[0])
    monkeypatch.setattr("pti_core.tuning.KEPT", 3)
    engine = Engine(tiny_generator, configure("demo", {**QUICK, **settings}))
    features, most = engine.judge.features, []

    def counted(images):
        most.append(len(images))
        return features(images)

    monkeypatch.setattr(engine.judge, "features", counted)
    engine.at_once = 2
    anew = by_id(list(engine.invert(group)))
    assert max(most) == 2
    for image_id, inversion in anew.items():
        assert inversion.measures["tuned"]["lpips"] == pytest.approx(kept[image_id].measures["tuned"]["lpips"])


def test_a_generator_without_noise_maps(targets):
    kwargs = {"channel_base": 256, "channel_max": 16, "use_noise": False}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        generator = StyleGAN2(12, 0, 20, 32, 3, {"num_layers": 2}, kwargs).eval()
    inversion, delta = invert(generator, targets[:1])[0]
    assert inversion.measures["tuned"]["lpips"] < inversion.measures["pivot"]["lpips"]
    assert deltas.decode_noise(inversion.noise, generator) == []
    assert delta.tensors


def test_a_generator_of_grey_images():
    kwargs = {"channel_base": 256, "channel_max": 16}
    generator = StyleGAN2(12, 0, 20, 32, 1, {"num_layers": 2}, kwargs).eval()
    inversion, _ = invert(generator, [Target("0.png", "0.png", torch.zeros(1, 32, 32))])[0]
    assert Image.open(io.BytesIO(inversion.shot)).size == (32, 32)


def test_out_of_memory_even_alone_is_a_failure_for_a_passing_reason(tiny_generator, targets):
    generator = HungryGenerator(tiny_generator, 1)
    engine = Engine(generator, configure("demo", QUICK))
    engine.prepare()
    generator.synthesis.most = 0  # others have taken the memory meanwhile
    results = list(engine.invert(targets[:2]))
    assert [(r.image_id, r.permanent) for r in results] == [("faces/0.png", False), ("faces/1.png", False)]
    assert all("out of memory" in r.message for r in results)


def test_no_memory_for_one_image_from_the_start_is_an_error(tiny_generator, targets):
    engine = Engine(HungryGenerator(tiny_generator, 0), configure("demo", {**QUICK, "tuning.basis": "weights"}))
    with pytest.raises(UnfitMachine, match="out of memory with one image alone"):
        list(engine.invert(targets[:2]))


def test_progress_rises_from_start_to_end(tiny_generator, targets):
    seen = []
    invert(tiny_generator, targets[:3], {"tuning.stop_lpips": 0.0, "batch": 2}, on_progress=seen.append)
    shares = [p.share for p in seen]
    assert shares == sorted(shares)
    assert shares[0] < 0.1
    assert shares[-1] == pytest.approx(1)
    assert {p.stage for p in seen} == {"pivot", "tuning"}
    assert all(p.lpips > 0 for p in seen)


@pytest.mark.parametrize(("family", "precision"), [("stylegan2", "bf16"), ("mobilestylegan", "half")])
def test_half_precision_finds_what_full_precision_finds(family, precision, targets, tiny_generator):
    """Weights, deltas and measures stay float32; the searches differ in their last bits, so only quality compares."""
    generator = random_generator(32, architecture="skip") if family == "stylegan2" else tiny_generator
    half, engine = invert(generator, targets[:2], {"precision": precision})
    assert engine.drawing.synthesis.precision == precision
    full, _ = invert(generator, targets[:2], {"precision": "fp32"})
    for image_id, found in by_id(half).items():
        expected = by_id(full)[image_id].measures
        assert found.measures["tuned"]["lpips"] < found.measures["pivot"]["lpips"]
        assert found.measures["tuned"]["mse"] == pytest.approx(expected["tuned"]["mse"], rel=0.25)
        assert found.measures["tuned"]["mse"] != expected["tuned"]["mse"]
    assert {p.dtype for p in engine.generator.parameters()} == {torch.float32}
