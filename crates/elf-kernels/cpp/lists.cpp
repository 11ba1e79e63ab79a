// Operations over lists of tensors, each one or a few launches on a GPU whatever the number of tensors. An empty list is left
// as it is.
// Plain C functions for lists.rs.

#include "guarded.h"

#include <ATen/ATen.h>
#include <ATen/Context.h>
#include <c10/core/AllocatorConfig.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cstdlib>

#include <tuple>
#include <vector>

using at::Tensor;
using elf::guarded;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

namespace {

std::vector<Tensor> listed(Tensor* const* tensors, size_t n) {
  std::vector<Tensor> list;
  list.reserve(n);
  for (size_t i = 0; i < n; i++) list.push_back(*tensors[i]);
  return list;
}

struct Cast : torch::autograd::Function<Cast> {
  static variable_list forward(AutogradContext* ctx, at::TensorList list, at::ScalarType kind) {
    ctx->set_materialize_grads(false);
    variable_list made;
    for (const Tensor& t : list) made.push_back(at::empty_like(t, t.options().dtype(kind)));
    at::_foreach_copy_(made, list);
    ctx->saved_data["kind"] = static_cast<int64_t>(list[0].scalar_type());
    return made;
  }

  // What has no gradient gets none.
  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto kind = static_cast<at::ScalarType>(ctx->saved_data["kind"].toInt());
    std::vector<Tensor> from, to;
    for (Tensor& grad : grads) {
      if (!grad.defined()) continue;
      from.push_back(grad);
      grad = at::empty_like(grad, grad.options().dtype(kind));
      to.push_back(grad);
    }
    if (!to.empty()) at::_foreach_copy_(to, from);
    grads.emplace_back();
    return grads;
  }
};

}  // namespace

extern "C" {

char* elf_list_to_bf16(Tensor* const* p, size_t n, Tensor** out) {
  return guarded([&] {
    if (n == 0) return;
    const auto list = listed(p, n);
    const auto made = Cast::apply(at::TensorList(list), at::kBFloat16);
    for (size_t i = 0; i < n; i++) out[i] = new Tensor(made[i]);
  });
}

// step: b1, b2, eps, of_first, of_grad, of_second, lr, keep.
char* elf_list_adam(Tensor* const* p, Tensor* const* g, Tensor* const* m, Tensor* const* v, size_t n, const double* step) {
  return guarded([&] {
    if (n == 0) return;
    const auto [params, grads, first, second] = std::tuple(listed(p, n), listed(g, n), listed(m, n), listed(v, n));
    at::_foreach_lerp_(first, grads, 1.0 - step[0]);
    at::_foreach_mul_(second, step[1]);
    at::_foreach_addcmul_(second, grads, grads, 1.0 - step[1]);
    auto below = at::_foreach_mul(second, step[5]);
    at::_foreach_sqrt_(below);
    at::_foreach_add_(below, step[2]);
    auto ahead = at::_foreach_mul(first, step[3]);
    if (step[4] != 0.0) at::_foreach_add_(ahead, grads, step[4]);
    if (step[7] != 1.0) at::_foreach_mul_(params, step[7]);
    at::_foreach_addcdiv_(params, ahead, below, -step[6]);
  });
}

// m <- decay m + (1 - decay) g; out: ahead m + now g, one new tensor each.
char* elf_list_momentum(Tensor* const* m, Tensor* const* g, size_t n, double decay, double ahead, double now, Tensor** out) {
  return guarded([&] {
    if (n == 0) return;
    const auto [momentum, grads] = std::pair(listed(m, n), listed(g, n));
    at::_foreach_lerp_(momentum, grads, 1.0 - decay);
    auto update = at::_foreach_mul(momentum, ahead);
    at::_foreach_add_(update, grads, now);
    for (size_t i = 0; i < n; i++) out[i] = new Tensor(update[i]);
  });
}

// p <- p + weight (q - p).
char* elf_list_lerp(Tensor* const* p, Tensor* const* q, size_t n, double weight) {
  return guarded([&] {
    if (n > 0) at::_foreach_lerp_(listed(p, n), listed(q, n), weight);
  });
}

// p <- p + a d.
char* elf_list_add(Tensor* const* p, Tensor* const* d, size_t n, double a) {
  return guarded([&] {
    if (n > 0) at::_foreach_add_(listed(p, n), listed(d, n), a);
  });
}

// p <- p times a number on their device.
char* elf_list_scale(Tensor* const* p, size_t n, const Tensor* factor) {
  return guarded([&] {
    if (n > 0) at::_foreach_mul_(listed(p, n), *factor);
  });
}

char* elf_list_zero(Tensor* const* p, size_t n) {
  return guarded([&] {
    if (n > 0) at::_foreach_zero_(listed(p, n));
  });
}

// Leaves the parameters without gradients: a backward pass then hands its own over instead of adding to them.
char* elf_list_without_grad(Tensor* const* p, size_t n) {
  return guarded([&] {
    for (size_t i = 0; i < n; i++) p[i]->mutable_grad().reset();
  });
}

// The Euclidean norms of the tensors, [n].
char* elf_list_norms(Tensor* const* p, size_t n, Tensor** out) {
  return guarded([&] { *out = new Tensor(at::stack(at::_foreach_norm(listed(p, n)))); });
}

// Settings for GPUs. Attention by libtorch's own kernels: cuDNN's are compiled anew, in a good part of a second, for each shape, and
// rows of texts have many. Memory in segments that grow, since shapes vary, unless the user says otherwise.
void elf_set_up_gpus() {
  at::globalContext().setSDPUseCuDNN(false);
  if (getenv("PYTORCH_CUDA_ALLOC_CONF") != nullptr || getenv("PYTORCH_ALLOC_CONF") != nullptr) return;
  try {
    c10::CachingAllocator::setAllocatorSettings("expandable_segments:True");
  } catch (const std::exception&) {
    // Without them, memory is only used less well.
  }
}

// Whether fp32 products on a GPU may round their inputs to TF32.
void elf_allow_tf32(int allow) {
  at::globalContext().setFloat32MatmulPrecision(allow ? "high" : "highest");
}
}
