"""Products and small convolutions on one thread: torch's own, by another library."""

import threading

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import functional_call, vmap
from torch.nn import functional as F

from pti_core.machine import matmul as module
from pti_core.machine.matmul import convolution, matmul
from pti_core.machine.parallel import in_parallel

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
PRODUCT = "mkldnn::_linear_pointwise"


def test_the_operator_of_onednn_is_found():
    """It is a private one of torch: a version that names it otherwise would be slower, and nothing would say so."""
    assert module._HAS_ONEDNN


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def products(run):
    """What `run` gives, and how many of oneDNN's products it takes."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        result = run()
    return result, sum(event.count for event in profile.key_averages() if event.key == PRODUCT)


def close(found, expected):
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max().clamp_min(1)))


SHAPES = [  # out, in, kernel, padding, height, width
    (64, 32, 1, 0, 16, 16),
    (3, 20, 1, 0, 8, 5),
    (12, 512, 1, 0, 32, 32),
    (5, 7, 1, 0, 3, 1),
    (24, 16, 3, 1, 7, 7),
    (24, 16, 3, 0, 7, 4),
    (8, 4, 2, 1, 5, 6),
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bias", [True, False])
def test_a_convolution_and_its_gradients_are_torchs(shape, bias):
    out, channels, k, padding, h, w = shape
    given = [torch.randn(1, channels, h, w), torch.randn(out, channels, k, k), *([torch.randn(out)] if bias else [])]

    def run(convolve):
        inputs = [x.clone().requires_grad_(True) for x in given]
        y = convolve(*inputs, padding=padding)
        shown = y.detach().clone()
        y.mul_(2).square().sum().backward()  # changed in place, as the generators do
        return [shown, *(x.grad for x in inputs)]

    found, used = products(lambda: run(convolution))
    assert used == 3
    close(found, run(F.conv2d))
    assert all(x.is_contiguous() for x in found)


def test_only_the_gradients_that_are_wanted_are_computed():
    x, weight = torch.randn(1, 8, 4, 4, requires_grad=True), torch.randn(6, 8, 1, 1)
    _, used = products(lambda: convolution(x, weight).sum().backward())
    assert used == 2
    close([x.grad], [weight.sum(dim=0).view(1, -1, 1, 1).expand_as(x)])


@pytest.mark.parametrize(("kernel", "padding"), [(1, 0), (3, 1)])
def test_second_gradients_are_torchs(kernel, padding):
    given = [torch.randn(1, 4, 5, 5), torch.randn(6, 4, kernel, kernel), torch.randn(6)]

    def run(convolve):
        inputs = [x.clone().requires_grad_(True) for x in given]
        first = torch.autograd.grad(convolve(*inputs, padding=padding).pow(3).sum(), inputs, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), inputs)

    close(run(convolution), run(F.conv2d))


@pytest.mark.parametrize(
    ("x", "weight"),
    [
        (torch.randn(2, 8, 4, 4), torch.randn(6, 8, 1, 1)),  # a batch
        (torch.randn(1, 8, 4, 4).to(memory_format=torch.channels_last), torch.randn(6, 8, 1, 1)),
        (torch.randn(1, 8, 4, 4, dtype=torch.float64), torch.randn(6, 8, 1, 1, dtype=torch.float64)),
        (torch.randn(1, 8, 4, 4).bfloat16(), torch.randn(6, 8, 1, 1).bfloat16()),
        (torch.randn(1, 8, 60, 60), torch.randn(6, 8, 3, 3)),  # large: torch takes oneDNN itself
    ],
)
def test_everything_else_is_left_to_torch(x, weight):
    found, used = products(lambda: convolution(x, weight))
    assert not used
    assert torch.equal(found, F.conv2d(x, weight))


def test_autocast_forward_gradients_traces_and_compiling_are_left_to_torch():
    x, weight = torch.randn(1, 8, 4, 4), torch.randn(6, 8, 1, 1)
    with torch.autocast("cpu", torch.bfloat16):
        assert convolution(x, weight).dtype == torch.bfloat16
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        tangent = forward_ad.unpack_dual(convolution(dual, weight)).tangent
    close([tangent], [F.conv2d(torch.ones_like(x), weight)])
    traced = torch.jit.trace(lambda x: convolution(x, weight), x)
    close([traced(x)], [F.conv2d(x, weight)])
    compiled = torch.compile(lambda x: convolution(x, weight), backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), F.conv2d(x, weight))


@pytest.mark.parametrize(
    ("weight", "bias"),
    [
        (torch.randn(6, 7, 1, 1), None),
        (torch.randn(6, 8, 1, 1), torch.randn(1)),
        (torch.randn(6, 8, 1, 1), torch.randn(6, dtype=torch.float64)),
        (torch.randn(6, 8, 9, 9), None),
    ],
)
def test_what_does_not_fit_is_an_error_as_torchs(weight, bias):
    with pytest.raises(RuntimeError) as expected:
        F.conv2d(torch.randn(1, 8, 4, 4), weight, bias)
    with pytest.raises(RuntimeError) as found:
        convolution(torch.randn(1, 8, 4, 4), weight, bias)
    assert str(found.value) == str(expected.value)


def test_with_more_threads_and_without_onednn_it_is_torchs():
    x, weight = torch.randn(1, 8, 4, 4), torch.randn(6, 8, 1, 1)
    torch.set_num_threads(2)
    assert not products(lambda: convolution(x, weight))[1]
    torch.set_num_threads(1)
    assert products(lambda: convolution(x, weight))[1]
    with torch.backends.mkldnn.flags(enabled=False):
        assert not products(lambda: (convolution(x, weight), matmul(x[0, 0], x[0, 1])))[1]


def test_within_vmap_it_is_torchs():
    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(6, 8, 1, 1))

        def forward(self, x):
            return convolution(x, self.weight)

    layer, x, weights = Layer(), torch.randn(3, 1, 8, 4, 4), torch.randn(3, 6, 8, 1, 1, requires_grad=True)
    y = vmap(lambda weight, x: functional_call(layer, {"weight": weight}, (x,)))(weights, x)
    expected = torch.stack([F.conv2d(a, w) for a, w in zip(x, weights, strict=True)])
    torch.testing.assert_close(y, expected)
    (grad,) = torch.autograd.grad(y.square().sum(), weights)
    (wanted,) = torch.autograd.grad(expected.square().sum(), weights)
    torch.testing.assert_close(grad, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("transposed", [False, True])
def test_a_product_is_torchs_and_so_are_its_gradients(transposed):
    a, b = torch.randn(30, 20), torch.randn(40, 20).T if transposed else torch.randn(20, 40)
    found, used = products(lambda: matmul(a, b))
    assert used == 1
    close([found], [a @ b])
    a.requires_grad_(True)
    found, used = products(lambda: torch.autograd.grad(matmul(a, b).square().sum(), a))
    assert not used
    close(found, torch.autograd.grad((a @ b).square().sum(), a))


def test_the_engines_threads_use_it():
    """Each thread of `parallel` has one thread of arithmetic, whatever number the process is set to later."""
    x, weight = torch.randn(1, 8, 4, 4), torch.randn(6, 8, 1, 1)

    def job(_, check):
        return threading.current_thread().name, module._by_onednn(x, weight)

    list(in_parallel(lambda item, check: None, range(8), torch.device("cpu")))  # threads that begin without torch
    torch.set_num_threads(2)
    seen = list(in_parallel(job, range(8), torch.device("cpu")))
    assert all(name.startswith("pti-cpu") and used for name, used in seen)
