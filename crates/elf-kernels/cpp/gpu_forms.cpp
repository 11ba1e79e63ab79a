// Forms for GPUs of operations that autograd would make of many more launches and copies: libtorch's operations, with gradients
// written by hand. They run on a CPU too. Plain C functions for plain.rs.

#include "guarded.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

using at::Tensor;
using elf::guarded;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

namespace {

struct SwiGlu : torch::autograd::Function<SwiGlu> {
  static Tensor forward(AutogradContext* ctx, const Tensor& h) {
    const int64_t n = h.size(-1) / 2;
    ctx->save_for_backward({h});
    return at::silu(h.narrow(-1, 0, n)).mul_(h.narrow(-1, n, n));
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const Tensor h = ctx->get_saved_variables()[0], dy = grads[0];
    const int64_t n = h.size(-1) / 2;
    const Tensor gate = h.narrow(-1, 0, n), value = h.narrow(-1, n, n);
    Tensor dh = at::empty_like(h), dgate = dh.narrow(-1, 0, n), dvalue = dh.narrow(-1, n, n);
    at::mul_out(dvalue, dy, at::silu(gate));
    at::silu_backward_out(dgate, dy * value, gate);
    return {dh};
  }
};

// qkv is [B, N, 3, heads, dim]; q, k and v are [B * heads, N, dim]. Statistics and the rotation are in fp32.
struct Heads : torch::autograd::Function<Heads> {
  static variable_list forward(AutogradContext* ctx, const Tensor& qkv_in, const Tensor& q_weight, const Tensor& k_weight,
                               const Tensor& cos, const Tensor& sin, double eps, double q_scale) {
    const Tensor qkv = qkv_in.contiguous();
    const int64_t b = qkv.size(0), n = qkv.size(1), heads = qkv.size(3), dim = qkv.size(4);
    const Tensor turns = at::complex(cos, sin).view({1, n, 1, 1, dim / 2});
    const Tensor weights = at::stack({q_weight * q_scale, k_weight}).view({2, 1, dim});
    const auto [normed, inverse] = at::_fused_rms_norm(wide(qkv), {dim}, {}, eps);
    const Tensor turned = turn(normed * weights, turns);
    Tensor qk = at::empty({2, b, heads, n, dim}, qkv.options());
    qk.copy_(turned.permute({2, 0, 3, 1, 4}));
    const Tensor v = qkv.select(2, 2).transpose(1, 2).reshape({b * heads, n, dim});
    ctx->save_for_backward({qkv, inverse, weights, turns});
    ctx->saved_data["q_scale"] = q_scale;
    return {qk.select(0, 0).view({b * heads, n, dim}), qk.select(0, 1).view({b * heads, n, dim}), v};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &qkv = saved[0], &inverse = saved[1], &weights = saved[2], &turns = saved[3];
    const int64_t b = qkv.size(0), n = qkv.size(1), heads = qkv.size(3), dim = qkv.size(4);
    Tensor dqkv = at::empty_like(qkv);
    Tensor d = at::empty({b, n, 2, heads, dim}, qkv.options().dtype(at::kFloat));
    const auto put = [&](Tensor to, const Tensor& grad) {
      if (grad.defined())
        to.copy_(grad.reshape({b, heads, n, dim}).transpose(1, 2));
      else
        to.zero_();
    };
    put(d.select(2, 0), grads[0]);
    put(d.select(2, 1), grads[1]);
    put(dqkv.select(2, 2), grads[2]);
    d = turn(d, at::conj_physical(turns));
    const Tensor normed = wide(qkv).mul_(inverse);
    Tensor product = d * normed;
    const Tensor dweights = product.sum(at::IntArrayRef{0, 1, 3});
    const Tensor mean = product.mul_(weights).mean(at::IntArrayRef{-1}, true);
    const Tensor dx = d.mul_(weights).addcmul_(normed, mean, -1.0).mul_(inverse);
    dqkv.narrow(2, 0, 2).copy_(dx);
    return {dqkv,     dweights.select(0, 0) * ctx->saved_data["q_scale"].toDouble(), dweights.select(0, 1), Tensor(), Tensor(),
            Tensor(), Tensor()};
  }

 private:
  static Tensor wide(const Tensor& qkv) { return qkv.narrow(2, 0, 2).to(at::kFloat, false, true, at::MemoryFormat::Contiguous); }

  // As complex numbers a rotation is one product.
  static Tensor turn(const Tensor& x, const Tensor& turns) {
    const auto shape = x.sizes().vec();
    auto pairs = shape;
    pairs.back() /= 2;
    pairs.push_back(2);
    return at::view_as_real(at::view_as_complex(x.view(pairs)) * turns).view(shape);
  }
};

}  // namespace

extern "C" {

char* elf_plain_swiglu(const Tensor* h, Tensor** out) {
  return guarded([&] {
    TORCH_CHECK(h->dim() >= 1 && h->size(-1) % 2 == 0, "SwiGLU takes an even number of channels");
    *out = new Tensor(SwiGlu::apply(*h));
  });
}

char* elf_plain_heads(const Tensor* qkv, const Tensor* q_weight, const Tensor* k_weight, const Tensor* cos, const Tensor* sin,
                      double eps, double q_scale, Tensor** q, Tensor** k, Tensor** v) {
  return guarded([&] {
    TORCH_CHECK(qkv->dim() == 5 && qkv->size(2) == 3 && qkv->size(4) % 2 == 0,
                "queries, keys and values must come as [B, N, 3, heads, dim]");
    const auto made = Heads::apply(*qkv, *q_weight, *k_weight, *cos, *sin, eps, q_scale);
    *q = new Tensor(made[0]);
    *k = new Tensor(made[1]);
    *v = new Tensor(made[2]);
  });
}
}
