"""Half precision (StyleGAN2's top, MobileStyleGAN's synthesis): close to float32, finite, true gradients."""

import copy
from pathlib import Path

import pytest
import torch
from nvidia_files import labels, random_generator

from pti_core.engine import Engine
from pti_core.generators.base import Generator
from pti_core.generators.checkpoints import load_generator
from pti_core.generators.half import HalfPass, half_dtype, precision_for
from pti_core.generators.stylegan2_layers import SynthesisLayer
from pti_core.presets import configure
from pti_core.tuning import tunable_copy

FIXTURES = Path(__file__).parents[2] / "shared" / "fixtures"
ARCHITECTURES = ["skip", "orig", "resnet"]
# Root mean square of the difference to float32, as a share of the image's standard deviation and of the gradient's
# norm. Measured on the tiny generators here, whose activations vary more than a trained one's.
IMAGE = {"fp16": 0.005, "bf16": 0.04}  # measured: up to 0.003, 0.03
GRADIENT = {"fp16": 0.04, "bf16": 0.08}  # of w; measured: up to 0.004, 0.05; without AVX-512 fp16 sums in fp16: 0.022


def nvidia(name):
    return load_generator(str(FIXTURES / f"nvidia_sg2ada_{name}.pkl")).generator


GENERATORS = {a: lambda a=a: random_generator(64, architecture=a) for a in ARCHITECTURES}
GENERATORS["conditional, clamped"] = lambda: random_generator(32, 3, conv_clamp=4)
GENERATORS["resnet, clamped"] = lambda: random_generator(32, architecture="resnet", conv_clamp=1.0)  # times sqrt(0.5)
GENERATORS |= {n: lambda n=n: nvidia(n) for n in ("res32", "res16_resnetarch", "res64_cond") if FIXTURES.is_dir()}


def drawn(generator, precision, ws, loss=lambda images: (images - 0.3).square().mean()):
    """Images, and the gradients of a loss with respect to w and every tuned parameter."""
    generator = generator.with_precision(precision).requires_grad_(True)
    generator.zero_grad()
    w = ws.detach().clone().requires_grad_(True)
    images = generator.synthesis(w)
    loss(images).backward()
    return images.detach(), w.grad, {k: p.grad.clone() for k, p in generator.tunable().items() if p.grad is not None}


def relative(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize(
    ("name", "precision", "count"),
    [*((name, precision, 2) for name in GENERATORS for precision in IMAGE), *(("pocket", "bf16", n) for n in (1, 2))],
)
def test_images_and_gradients_are_near_those_of_float32(name, precision, count):
    generator = load_generator("pocket").generator if name == "pocket" else GENERATORS[name]()
    torch.manual_seed(0)
    ws = generator.mapping(torch.randn(count, generator.z_dim), labels(count, generator.c_dim))
    images, w_grad, grads = drawn(generator, "fp32", ws)
    half, half_w_grad, half_grads = drawn(generator, precision, ws)
    assert half.dtype == half_w_grad.dtype == torch.float32
    assert 0 < (half - images).square().mean().sqrt() / images.std() < IMAGE[precision]
    assert relative(half_w_grad, w_grad) < GRADIENT[precision]
    assert half_grads.keys() == grads.keys()
    for key, grad in half_grads.items():
        assert grad.dtype == torch.float32
        assert grad.isfinite().all(), key
        if grad.ndim > 1:  # a single strength is a sum of both signs, whose error is relative to its terms
            assert relative(grad, grads[key]) < 2 * GRADIENT[precision], key


@pytest.mark.parametrize("precision", IMAGE)
@pytest.mark.parametrize("name", GENERATORS)
def test_so_they_are_where_weights_are_scaled(name, precision):
    """As in tuning and in the search for one image: see `scales_weights`."""
    generator = GENERATORS[name]().requires_grad_(True)
    torch.manual_seed(0)
    ws = generator.mapping(torch.randn(1, generator.z_dim), labels(1, generator.c_dim)).detach()
    images = [g.synthesis(ws) for g in (generator, generator.with_precision(precision))]
    assert 0 < (images[1] - images[0]).square().mean().sqrt() / images[0].std() < IMAGE[precision]
    weights = [p for p in generator.tunable().values() if p.ndim > 1]
    grads, half_grads = (torch.autograd.grad((x - 0.3).square().mean(), weights) for x in images)
    for grad, half in zip(grads, half_grads, strict=True):
        assert relative(half, grad) < 2 * GRADIENT[precision]
    generator.requires_grad_(False)
    ws.requires_grad_(True)
    images = [g.synthesis(ws) for g in (generator, generator.with_precision(precision))]
    w_grad, half_w_grad = (torch.autograd.grad(1e-9 * (x - 0.3).square().mean(), ws)[0] for x in images)
    assert relative(half_w_grad, w_grad) < GRADIENT[precision]


def test_sums_beyond_fp16_are_clipped_and_without_gradient():
    layer = SynthesisLayer(1024, 2, 4, 8).requires_grad_(False)
    layer.weight.fill_(1.0)
    layer.affine.weight.fill_(0.1)
    x, w = torch.full((1, 1024, 8, 8), 512.0).half(), torch.ones(1, 4, requires_grad=True)
    y = layer(x, w, None, half=HalfPass(torch.float16))
    assert (y == 512).all()
    assert torch.equal(torch.autograd.grad(y.float().sum(), w)[0], torch.zeros(1, 4))


@pytest.mark.parametrize("size", [1e-30, 1e-12, 1e6])
def test_gradients_of_any_size_survive_fp16(size):
    generator = random_generator(32)
    ws = torch.randn(1, generator.num_ws, 20)
    _, expected, grads = drawn(generator, "fp32", ws, lambda images: images.square().mean())
    _, found, half_grads = drawn(generator, "fp16", ws, lambda images: size * images.square().mean())
    assert relative(found / size, expected) < GRADIENT["fp16"]
    name = "synthesis.b32.conv1.weight"
    assert relative(half_grads[name] / size, grads[name]) < GRADIENT["fp16"]


def test_a_loss_without_gradient_and_two_passes_at_once():
    generator = random_generator(16).requires_grad_(True).with_precision("fp16")
    ws = torch.randn(1, generator.num_ws, 20, requires_grad=True)
    small, large = generator.synthesis(ws), generator.synthesis(ws)  # each has a scale of its own
    (1e-9 * small.square().mean() + 1e6 * large.square().mean()).backward()
    together = ws.grad.clone()
    assert relative(together, drawn(generator, "fp32", ws, lambda x: 1e6 * x.square().mean())[1]) < GRADIENT["fp16"]
    ws.grad = None
    (0 * generator.synthesis(ws)).sum().backward()
    assert torch.equal(ws.grad, torch.zeros_like(ws))


@pytest.mark.parametrize("lost", [torch.inf, -torch.inf, torch.nan])
def test_an_image_whose_gradient_is_lost_takes_no_other_with_it(lost):
    generator = random_generator(16)
    ws = torch.randn(2, generator.num_ws, 20)
    per_image = torch.tensor([1.0, lost])
    expected = drawn(generator, "fp32", ws[:1], lambda images: images.square().mean())[1]
    found = drawn(generator, "fp16", ws, lambda x: (x.square().mean(dim=(1, 2, 3)) * per_image).sum())[1]
    assert relative(found[:1], expected) < GRADIENT["fp16"]


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_weights_and_styles_that_overflow_fp16_do_not(architecture, count):
    generator = random_generator(64, architecture=architecture, conv_clamp=256)
    ws = generator.mapping(torch.randn(count, 12))
    with torch.no_grad():
        for layer in generator.synthesis.layers[1:]:  # demodulation takes both factors back
            layer.weight.mul_(3e4)
            layer.affine.weight.mul_(3e3)
            layer.affine.bias.mul_(3e3)
            assert not (layer.weight * layer.affine(ws[:, 0]).amax()).half().isfinite().all()
    images, w_grad, _ = drawn(generator, "fp32", ws)
    half, half_w_grad, grads = drawn(generator, "fp16", ws)
    assert relative(half, images) < IMAGE["fp16"]
    assert relative(half_w_grad, w_grad) < GRADIENT["fp16"]
    assert all(grad.isfinite().all() for grad in grads.values())
    with torch.no_grad():
        assert relative(generator.with_precision("fp16").synthesis(ws), images) < IMAGE["fp16"]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("clamp", [None, 256])
def test_activations_beyond_fp16_are_clipped(architecture, clamp):
    generator = random_generator(32, architecture=architecture, conv_clamp=clamp)
    generator.synthesis.b16.conv1.bias.fill_(1e6)
    generator.synthesis.b32.conv0.bias.fill_(-1e6)
    ws = torch.randn(2, generator.num_ws, 20)
    images, w_grad, grads = drawn(generator, "fp16", ws)
    assert images.isfinite().all()
    assert w_grad.isfinite().all()
    assert all(grad.isfinite().all() for grad in grads.values())
    if clamp is not None:  # the same limit in both precisions
        assert relative(images, drawn(generator, "fp32", ws)[0]) < IMAGE["fp16"]


@pytest.mark.parametrize(
    ("stored", "half"), [(None, [8, 16, 32, 64]), (0, [8, 16, 32, 64]), (2, [32, 64]), (9, [8, 16, 32, 64])]
)
def test_only_the_top_resolutions_run_in_half_precision(stored, half):
    generator = random_generator(64, **({} if stored is None else {"num_fp16_res": stored}))
    generator = generator.with_precision("bf16")
    seen = {}
    for block in generator.synthesis.blocks:
        block.register_forward_hook(lambda block, _, out: seen.update({block.resolution: (out[0].dtype, out[1].dtype)}))
    generator.synthesis(torch.randn(1, generator.num_ws, 20))
    assert {r for r, (x, _) in seen.items() if x == torch.bfloat16} == set(half)
    assert {image for _, image in seen.values()} == {torch.float32}


@pytest.mark.parametrize("family", ["stylegan2", "mobilestylegan"])
def test_float32_masters_are_tuned_and_copies_keep_the_precision(family, tiny_generator):
    generator = random_generator(32) if family == "stylegan2" else tiny_generator
    half = generator.with_precision("half")
    ws = torch.randn(1, generator.num_ws, generator.w_dim)
    target = generator.synthesis(torch.randn(1, generator.num_ws, generator.w_dim)).detach()
    new = tunable_copy(half)
    optimizer = torch.optim.Adam(list(new.tunable().values()), lr=3e-3)
    losses = []
    for _ in range(30):
        loss = (new.synthesis(ws) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert {p.dtype for p in new.parameters()} == {torch.float32}
    with torch.no_grad():
        images = [g.synthesis(ws) for g in (new, new.with_precision("fp32"))]
    assert not torch.equal(*images)
    assert relative(*images) < IMAGE["bf16"]


@pytest.mark.parametrize("family", ["stylegan2", "mobilestylegan"])
def test_both_precisions_are_one_generator(family, tiny_generator):
    generator = random_generator(16) if family == "stylegan2" else copy.deepcopy(tiny_generator)
    half = generator.with_precision("half")
    assert isinstance(half, Generator)
    assert half.config == generator.config  # how it runs is no part of what it is
    assert [p.data_ptr() for p in half.parameters()] == [p.data_ptr() for p in generator.parameters()]
    ws = torch.randn(1, generator.num_ws, generator.w_dim)
    before = [g.synthesis(ws) for g in (generator, half)]
    assert not torch.equal(*before)
    bias = generator.synthesis.b16.torgb.bias if family == "stylegan2" else generator.synthesis.head.bias[:3]
    bias.add_(1)  # the head's first three are the low band, twice as large as pixels
    change = 1 if family == "stylegan2" else 0.5
    for g, image in zip((generator, half), before, strict=True):
        torch.testing.assert_close(g.synthesis(ws), image + change, atol=0.05, rtol=0)
    assert torch.equal(half.with_precision("fp32").synthesis(ws), generator.synthesis(ws))


def test_the_choice_by_device_and_words_that_are_none(tiny_generator):
    assert half_dtype("half", torch.device("cuda", 1)) == half_dtype("fp16", torch.device("cpu")) == torch.float16
    assert half_dtype("half", torch.device("cpu")) == torch.bfloat16
    assert half_dtype("fp32", torch.device("cuda")) is None
    with pytest.raises(ValueError, match=r"precision 'fp8': one of fp32, half"):
        random_generator(8).with_precision("fp8")
    with pytest.raises(ValueError, match="a mobilestylegan draws in half precision as 'bf16' only"):
        tiny_generator.with_precision("fp16")


def test_auto_is_half_for_a_mobilestylegan_where_the_processor_multiplies_bf16(monkeypatch):
    cpu, gpu, mobile = torch.device("cpu"), torch.device("cuda"), "mobilestylegan"
    for has, expected in ((True, "half"), (False, "fp32")):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda has=has: has)
        assert precision_for("auto", mobile, cpu) == expected
        assert precision_for("auto", mobile, gpu) == precision_for("auto", "stylegan2", cpu) == "fp32"
    for wanted in ("fp32", "half", "bf16"):
        assert precision_for(wanted, mobile, cpu) == precision_for(wanted, "stylegan2", gpu) == wanted


@pytest.mark.parametrize("has", [True, False])
def test_the_quick_presets_draw_in_what_auto_chooses_and_measure_in_float32(has, tiny_generator, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has)
    expected = {"fast": "half" if has else "fp32", "demo": "half" if has else "fp32", "paper": "fp32"}
    for preset, precision in expected.items():
        engine = Engine(tiny_generator, configure(preset))
        assert engine.drawing.synthesis.precision == precision
        assert engine.judge.net_dtype == (torch.bfloat16 if precision == "half" else None)
        assert engine.generator.synthesis.precision == "fp32"
        assert engine.lpips.net_dtype is None


@pytest.mark.parametrize(("has", "dtype"), [(True, torch.bfloat16), (False, None)])
def test_losses_are_judged_in_bf16_only_where_that_is_fast(has, dtype, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has)
    for precision, expected in (("half", dtype), ("bf16", dtype), ("fp32", None)):
        engine = Engine(random_generator(32), configure("demo", {"precision": precision}))
        assert (engine.judge.net_dtype, engine.lpips.net_dtype) == (expected, None)
