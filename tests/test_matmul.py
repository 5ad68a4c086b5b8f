"""Products and 1x1 convolutions on one thread: torch's own, by another library."""

import threading

import pytest
import torch
from torch.func import functional_call, vmap
from torch.nn import functional as F

from pti_core import matmul as module
from pti_core.matmul import matmul, pointwise


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def by_onednn(run):
    """What `run` gives, and whether oneDNN's product was called in it."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        result = run()
    return result, any("linear_pointwise" in event.key for event in profile.key_averages())


@pytest.mark.parametrize("shape", [(64, 32, 16, 16), (3, 20, 8, 8), (12, 512, 32, 32), (5, 7, 3, 1)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_convolution_and_its_gradients_are_torchs(shape, bias):
    out, channels, h, w = shape
    given = [torch.randn(1, channels, h, w), torch.randn(out, channels, 1, 1), *([torch.randn(out)] if bias else [])]
    of_y = torch.randn(1, out, h, w)

    def run(convolution):
        inputs = [x.clone().requires_grad_(True) for x in given]
        y = convolution(*inputs)
        shown = y.detach().clone()
        F.leaky_relu_(y.add_(1), 0.2).backward(of_y)  # changed in place, as the generators do
        return [shown, *(x.grad for x in inputs)]

    found, used = by_onednn(lambda: run(pointwise))
    assert used
    for a, b in zip(found, run(F.conv2d), strict=True):
        assert a.shape == b.shape
        assert a.is_contiguous()
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-3)


def test_only_the_gradients_that_are_wanted_are_computed():
    x, weight = torch.randn(1, 8, 4, 4, requires_grad=True), torch.randn(6, 8, 1, 1)
    pointwise(x, weight).sum().backward()
    torch.testing.assert_close(x.grad, weight.sum(dim=0).view(1, -1, 1, 1).expand_as(x))
    assert weight.grad is None


@pytest.mark.parametrize(
    ("x", "weight"),
    [
        (torch.randn(2, 8, 4, 4), torch.randn(6, 8, 1, 1)),  # a batch
        (torch.randn(1, 8, 4, 4).to(memory_format=torch.channels_last), torch.randn(6, 8, 1, 1)),
        (torch.randn(1, 8, 4, 4, dtype=torch.float64), torch.randn(6, 8, 1, 1, dtype=torch.float64)),
        (torch.randn(1, 8, 4, 4).bfloat16(), torch.randn(6, 8, 1, 1).bfloat16()),
    ],
)
def test_everything_else_is_left_to_torch(x, weight):
    found, used = by_onednn(lambda: pointwise(x, weight))
    assert not used
    assert torch.equal(found, F.conv2d(x, weight))


def test_with_more_threads_and_without_onednn_it_is_torchs():
    x, weight = torch.randn(1, 8, 4, 4), torch.randn(6, 8, 1, 1)
    torch.set_num_threads(2)
    assert not by_onednn(lambda: pointwise(x, weight))[1]
    torch.set_num_threads(1)
    assert by_onednn(lambda: pointwise(x, weight))[1]
    with torch.backends.mkldnn.flags(enabled=False):
        assert not by_onednn(lambda: (pointwise(x, weight), matmul(x[0, 0], x[0, 1])))[1]


def test_within_vmap_it_is_torchs():
    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(6, 8, 1, 1))

        def forward(self, x):
            return pointwise(x, self.weight)

    layer, x, weights = Layer(), torch.randn(3, 1, 8, 4, 4), torch.randn(3, 6, 8, 1, 1, requires_grad=True)
    y = vmap(lambda weight, x: functional_call(layer, {"weight": weight}, (x,)))(weights, x)
    expected = torch.stack([F.conv2d(a, w) for a, w in zip(x, weights, strict=True)])
    torch.testing.assert_close(y, expected)
    (grad,) = torch.autograd.grad(y.square().sum(), weights)
    (wanted,) = torch.autograd.grad(expected.square().sum(), weights)
    torch.testing.assert_close(grad, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("transposed", [False, True])
def test_a_product_is_torchs(transposed):
    a, b = torch.randn(30, 20), torch.randn(40, 20).T if transposed else torch.randn(20, 40)
    found, used = by_onednn(lambda: matmul(a, b))
    assert used
    torch.testing.assert_close(found, a @ b, rtol=1e-4, atol=1e-4)
    traced = matmul(a.requires_grad_(True), b)  # torch's own has a gradient
    assert traced.grad_fn is not None


def test_the_engines_threads_use_it():
    """The pool of `parallel` gives each job one thread, whatever the process has."""
    from pti_core.parallel import in_parallel

    torch.set_num_threads(2)
    x, weight = torch.randn(1, 8, 4, 4), torch.randn(6, 8, 1, 1)
    seen = []

    def job(_, check):
        seen.append((threading.current_thread().name, module._by_onednn(x, weight)))

    list(in_parallel(job, range(4), torch.device("cpu")))
    assert all(name.startswith("pti-cpu") and used for name, used in seen)
