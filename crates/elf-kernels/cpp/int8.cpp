// Linear layers of 8-bit integers, on oneDNN's products through libtorch. Plain C functions for int8.rs.

#include "choice.h"
#include "guarded.h"

#include <ATen/core/dispatch/Dispatcher.h>

using at::Tensor;
using elf::data;
using elf::for_kind;
using elf::guarded;
using elf::Number;
using elf::over_rows;
using elf::rows;

namespace {

// What 0 is as an unsigned number: products of processors take unsigned activations and signed weights.
constexpr int64_t ZERO = 128;

c10::IValue call(const char* name, torch::jit::Stack stack) {
  c10::Dispatcher::singleton().findSchemaOrThrow(name, "").callBoxed(&stack);
  return stack.at(0);
}

struct Quantised {
  Tensor numbers, scales;
};

// Each row of x, [.., n], by its own scale.
Quantised quantised(const Tensor& x) {
  const int64_t n = x.size(-1), count = x.numel() / std::max<int64_t>(1, n);
  Quantised q{at::empty({count, n}, at::kByte), at::empty({count}, at::kFloat)};
  for_kind(x, [&](auto* t) {
    using T = Number<decltype(t)>;
    over_rows(count, n, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        data<float>(q.scales)[i] = rows<T>().quantise(data<T>(x) + i * n, data<uint8_t>(q.numbers) + i * n, n);
    });
  });
  return q;
}

}  // namespace

extern "C" {

char* elf_int8_pack(const Tensor* w, Tensor** packed, Tensor** scales) {
  return guarded([&] {
    TORCH_CHECK_VALUE(w->dim() == 2 && w->device().is_cpu(), "an 8-bit matrix is made of a matrix on the CPU");
    const at::NoGradGuard no_grad;
    const Tensor wide = w->to(at::kFloat);
    const Tensor by_row = wide.abs().amax(1).clamp_min_(1e-30).div_(127.0);
    const Tensor numbers = (wide / by_row.unsqueeze(1)).round_().clamp_(-127, 127).to(at::kChar).contiguous();
    *packed = new Tensor(call("onednn::qlinear_prepack", {numbers, c10::IValue()}).toTensor());
    *scales = new Tensor(by_row.contiguous());
  });
}

char* elf_int8_linear(const Tensor* x, const Tensor* packed, const Tensor* scales, const Tensor* bias, Tensor** out) {
  return guarded([&] {
    const at::NoGradGuard no_grad;
    TORCH_CHECK_VALUE(x->device().is_cpu() && (x->scalar_type() == at::kFloat || x->scalar_type() == at::kBFloat16),
                      "activations must be fp32 or bf16, on the CPU");
    const int64_t channels = scales->size(0);
    TORCH_CHECK_VALUE(bias == nullptr || bias->numel() == channels, "a bias has one number for each channel");
    const Tensor own = x->contiguous();
    const Quantised q = quantised(own);
    const Tensor zeros = at::zeros({channels}, at::kLong);
    const Tensor sums =
        call("onednn::qlinear_pointwise",
             {q.numbers, 1.0, ZERO, *packed, *scales, zeros, c10::IValue(), 1.0, int64_t{0}, at::kFloat, "none",
              torch::List<std::optional<at::Scalar>>(), ""})
            .toTensor();
    auto shape = own.sizes().vec();
    shape.back() = channels;
    Tensor y = own.scalar_type() == at::kFloat ? sums.view(shape) : at::empty(shape, own.options());
    const Tensor added = bias == nullptr ? Tensor() : bias->to(at::kFloat).contiguous();
    for_kind(own, [&](auto* t) {
      using T = Number<decltype(t)>;
      const float* shift = bias == nullptr ? nullptr : data<float>(added);
      over_rows(sums.size(0), channels, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i)
          rows<T>().rescale(data<float>(sums) + i * channels, data<float>(q.scales)[i], shift, data<T>(y) + i * channels,
                            channels);
      });
    });
    *out = new Tensor(std::move(y));
  });
}
}
