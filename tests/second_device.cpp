// A device beside the CPU, for tests on machines without a GPU: torch's PrivateUse1 with memory of the host.
//
// Its tensors are of another device than the CPU's, so that whatever mixes the two is an error, as on a GPU. Every
// operator is the CPU's. Loading the library is enough, but for the device's name (on_second_device.py).

#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/resize_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/core/impl/alloc_cpu.h>
#include <torch/library.h>

#include <string>
#include <vector>

namespace {

const c10::Device kHere(c10::DeviceType::PrivateUse1, 0);
const c10::DispatchKeySet kKeys(c10::DispatchKey::PrivateUse1);

int64_t allocations = 0;

struct Memory final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    ++allocations;
    void* data = bytes ? c10::alloc_cpu(bytes) : nullptr;
    return {data, data, &c10::free_cpu, kHere};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &c10::free_cpu; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override { default_copy_data(to, from, bytes); }
};
Memory memory;
REGISTER_ALLOCATOR(c10::DeviceType::PrivateUse1, &memory);

struct Guard final : c10::impl::NoOpDeviceGuardImpl<c10::DeviceType::PrivateUse1> {
  c10::Device exchangeDevice(c10::Device) const override { return kHere; }
  c10::Device getDevice() const override { return kHere; }
  c10::Stream getStream(c10::Device) const noexcept override { return c10::Stream(c10::Stream::DEFAULT, kHere); }
  c10::Stream exchangeStream(c10::Stream) const noexcept override { return getStream(kHere); }
  void synchronizeDevice(c10::DeviceIndex) const override {}
};
C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
};
Hooks hooks;
const bool registered = (at::RegisterPrivateUse1HooksInterface(&hooks), true);

at::Tensor empty(at::IntArrayRef size, std::optional<at::ScalarType> type, std::optional<at::Layout>,
                 std::optional<at::Device>, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(size, &memory, kKeys, c10::dtype_or_default(type), format);
}

at::Tensor empty_strided(at::IntArrayRef size, at::IntArrayRef stride, std::optional<at::ScalarType> type,
                         std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(size, stride, &memory, kKeys, c10::dtype_or_default(type));
}

// The same memory as a tensor of the CPU.
at::Tensor on_cpu(const at::Tensor& x) {
  if (!x.defined() || x.device().is_cpu()) return x;
  return at::from_blob(x.data_ptr(), x.sizes(), x.strides(), [x](void*) {}, x.options().device(at::kCPU));
}

at::Tensor here(const at::Tensor& x) {
  if (!x.defined()) return x;
  auto found = at::empty_strided(x.sizes(), x.strides(), x.options().device(kHere));
  on_cpu(found).copy_(x);
  return found;
}

at::Tensor copy_from(const at::Tensor& from, const at::Tensor& to, bool) {
  on_cpu(to).copy_(on_cpu(from));
  return to;
}

at::Tensor copy_and_resize(const at::Tensor& from, const at::Tensor& to) {
  to.resize_(from.sizes());
  return copy_from(from, to, false);
}

at::Scalar item(const at::Tensor& x) { return on_cpu(x).item(); }

at::Tensor& set(at::Tensor& x, at::Storage storage, int64_t offset, at::IntArrayRef size, at::IntArrayRef stride) {
  return at::native::set_storage_cpu_(x, storage, offset, size, stride);
}

at::Tensor& set_whole(at::Tensor& x, at::Storage storage) {
  const auto count = static_cast<int64_t>(storage.nbytes() / x.dtype().itemsize());
  return at::native::set_storage_cpu_(x, storage, 0, {count}, {});
}

at::Tensor convolution(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias,
                       at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation, bool transposed,
                       at::IntArrayRef output_padding, int64_t groups) {
  TORCH_CHECK(x.device() == weight.device(), "convolution: ", x.device(), " and ", weight.device());
  std::optional<at::Tensor> added;
  if (bias && bias->defined()) added = on_cpu(*bias);
  return here(at::convolution(on_cpu(x), on_cpu(weight), added, stride, padding, dilation, transposed, output_padding,
                              groups));
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> convolution_backward(
    const at::Tensor& grad, const at::Tensor& x, const at::Tensor& weight, at::IntArrayRef stride,
    at::IntArrayRef padding, at::IntArrayRef dilation, bool transposed, at::IntArrayRef output_padding, int64_t groups,
    std::array<bool, 3> mask) {
  auto [a, b, c] = at::convolution_backward(on_cpu(grad), on_cpu(x), on_cpu(weight),
                                            at::OptionalIntArrayRef({weight.size(transposed ? 1 : 0)}), stride, padding,
                                            dilation, transposed, output_padding, groups, mask);
  return {here(a), here(b), here(c)};
}

// Whatever else: on the CPU. A tensor of the CPU among those from here is an error, but for one number, as on a GPU.
void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const std::string name = op.schema().name();
  const auto count = op.schema().arguments().size();
  auto check = [&](const at::Tensor& x) {
    TORCH_CHECK(!x.defined() || x.device() == kHere || x.dim() == 0, name, ": expected all tensors to be on ", kHere,
                ", but one of shape ", x.sizes(), " is on ", x.device());
  };
  if (name.rfind("aten::index", 0) != 0 && name.rfind("aten::_index", 0) != 0) {  // indices may be the CPU's
    for (auto value = stack->end() - count; value != stack->end(); ++value) {
      if (value->isTensor()) check(value->toTensor());
      if (value->isTensorList())
        for (const at::Tensor& x : value->toTensorVector()) check(x);
    }
  }
  at::native::cpu_fallback(op, stack, /*error_on_views=*/true);
}

}  // namespace

TORCH_LIBRARY(second_device, m) {
  m.def("allocations() -> int", [] { return allocations; });
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>()); }

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", empty);
  m.impl("empty_strided", empty_strided);
  m.impl("as_strided", at::native::as_strided_tensorimpl);
  m.impl("view", at::native::view);
  m.impl("_reshape_alias", at::native::_reshape_alias);
  m.impl("unfold", at::native::unfold);
  m.impl("resize_", at::native::resize_);
  m.impl("set_.source_Storage_storage_offset", set);
  m.impl("set_.source_Storage", set_whole);
  m.impl("_local_scalar_dense", item);
  m.impl("_copy_from", copy_from);
  m.impl("_copy_from_and_resize", copy_and_resize);
  m.impl("convolution_overrideable", convolution);
  m.impl("convolution_backward_overrideable", convolution_backward);
}
