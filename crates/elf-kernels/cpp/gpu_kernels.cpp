// Tensors around the kernels of cuda/kernels.cuh, and their gradients. What a kernel does not take goes the way of gpu_forms.cpp
// or plain.rs. Plain C functions for kernels.rs.

#include "guarded.h"
#include "launch.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

#include <optional>

using at::Tensor;
using elf::Grid;
using elf::guarded;
using elf::Kernel;
using elf::launch;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

namespace {

constexpr int64_t VECTOR = 8;
// Blocks that sum over all rows: each leaves a row of sums to be added up.
constexpr int64_t SUMMING_BLOCKS = 528;
// A block's memory holds sums of so many columns.
constexpr int64_t MOST_COLUMNS = 12288;
constexpr int64_t SLICES = 16;

bool is_bf16(const Tensor& t) { return t.scalar_type() == at::kBFloat16; }

bool is_activation(const Tensor& t) {
  return (is_bf16(t) || t.scalar_type() == at::kFloat) && t.numel() > 0 && elf::has_kernels(t.device());
}

bool is_weight(const Tensor& t, const Tensor& x, int64_t n) {
  return t.scalar_type() == at::kFloat && t.device() == x.device() && t.numel() == n;
}

// The tensor in one piece that begins where vectors may.
Tensor whole(const Tensor& t) {
  const Tensor one = t.contiguous();
  return reinterpret_cast<uintptr_t>(one.data_ptr()) % 16 == 0 ? one : one.clone();
}

float* floats(const Tensor& t) { return static_cast<float*>(t.data_ptr()); }

Tensor new_floats(at::IntArrayRef shape, const Tensor& like) { return at::empty(shape, like.options().dtype(at::kFloat)); }

// [rows, columns] to [columns].
Tensor reduced(const Tensor& sums) {
  const int64_t rows = sums.size(0), columns = sums.numel() / rows;
  Tensor total = new_floats({columns}, sums);
  const elf_gpu::Reduce a{floats(sums), floats(total), rows, columns};
  launch(Kernel::elf_reduce, sums.device(), &a, Grid{(columns + 31) / 32 * 8, 32, 32}, {{&sums}, {&total}});
  return total;
}

// The lanes for rows of n numbers, V at once.
int64_t lanes_for(int64_t n, int64_t v) {
  int64_t lanes = 1;
  while (lanes < 32 && lanes * v < n) lanes *= 2;
  return lanes;
}

Grid elements(int64_t count) { return Grid{(count + 31) / 32}; }

Kernel of_kind(const Tensor& x, Kernel f32, Kernel bf16) { return is_bf16(x) ? bf16 : f32; }

struct SwiGlu : torch::autograd::Function<SwiGlu> {
  static Tensor forward(AutogradContext* ctx, const Tensor& h_in) {
    const Tensor h = whole(h_in);
    auto shape = h.sizes().vec();
    shape.back() /= 2;
    Tensor y = at::empty(shape, h.options());
    const elf_gpu::SwiGlu a{h.data_ptr(), nullptr, y.data_ptr(), y.numel() / shape.back(), shape.back()};
    launch(of_kind(h, Kernel::elf_swiglu_f32, Kernel::elf_swiglu_bf16), h.device(), &a, elements(y.numel() / VECTOR),
           {{&h}, {&y}});
    ctx->save_for_backward({h});
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const Tensor h = ctx->get_saved_variables()[0], dy = whole(grads[0]);
    Tensor dh = at::empty_like(h);
    const int64_t n = h.size(-1) / 2;
    const elf_gpu::SwiGlu a{h.data_ptr(), dy.data_ptr(), dh.data_ptr(), dy.numel() / n, n};
    launch(of_kind(h, Kernel::elf_swiglu_back_f32, Kernel::elf_swiglu_back_bf16), h.device(), &a,
           elements(dy.numel() / VECTOR), {{&h, &dy}, {&dh}});
    return {dh};
  }
};

struct Heads : torch::autograd::Function<Heads> {
  static bool takes(const Tensor& qkv, const Tensor& q_weight, const Tensor& k_weight, const Tensor& cos, const Tensor& sin) {
    const int64_t dim = qkv.size(4), angles = qkv.size(1) * dim / 2;
    return is_activation(qkv) && 2 * dim <= MOST_COLUMNS && is_weight(q_weight, qkv, dim) && is_weight(k_weight, qkv, dim) &&
           is_weight(cos, qkv, angles) && is_weight(sin, qkv, angles);
  }

  static variable_list forward(AutogradContext* ctx, const Tensor& qkv_in, const Tensor& q_weight_in, const Tensor& k_weight_in,
                               const Tensor& cos_in, const Tensor& sin_in, double eps, double q_scale) {
    const Tensor qkv = whole(qkv_in), q_weight = whole(q_weight_in), k_weight = whole(k_weight_in), cos = whole(cos_in),
                 sin = whole(sin_in);
    const int64_t b = qkv.size(0), n = qkv.size(1), heads = qkv.size(3), dim = qkv.size(4);
    const auto make = [&] { return at::empty({b * heads, n, dim}, qkv.options()); };
    const Tensor q = make(), k = make(), v = make();
    const elf_gpu::Heads a{qkv.data_ptr(), q.data_ptr(), k.data_ptr(), v.data_ptr(), floats(q_weight), floats(k_weight),
                           floats(cos),    floats(sin),  b * n,        n,            heads,            dim,
                           static_cast<float>(eps), static_cast<float>(q_scale)};
    const bool eights = dim % VECTOR == 0;
    launch(eights ? of_kind(qkv, Kernel::elf_heads_f32, Kernel::elf_heads_bf16)
                  : of_kind(qkv, Kernel::elf_heads_pairs_f32, Kernel::elf_heads_pairs_bf16),
           qkv.device(), &a, Grid{b * n * heads, lanes_for(dim, eights ? VECTOR : 2)},
           {{&qkv, &q_weight, &k_weight, &cos, &sin}, {&q, &k, &v}});
    ctx->set_materialize_grads(false);
    ctx->save_for_backward({qkv, q_weight, k_weight, cos, sin});
    ctx->saved_data["eps"] = eps;
    ctx->saved_data["q_scale"] = q_scale;
    return {q, k, v};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &qkv = saved[0], &q_weight = saved[1], &k_weight = saved[2], &cos = saved[3], &sin = saved[4];
    const int64_t b = qkv.size(0), n = qkv.size(1), heads = qkv.size(3), dim = qkv.size(4);
    const auto given = [&](const Tensor& g) {
      return g.defined() ? whole(g) : at::zeros({b * heads, n, dim}, qkv.options());
    };
    const Tensor dq = given(grads[0]), dk = given(grads[1]), dv = given(grads[2]);
    const bool eights = dim % VECTOR == 0;
    const Grid grid{b * n * heads, lanes_for(dim, eights ? VECTOR : 2), 2 * dim, SUMMING_BLOCKS};
    const Tensor dqkv = at::empty_like(qkv), sums = new_floats({elf::spread(qkv.device(), grid).blocks, 2 * dim}, qkv);
    const elf_gpu::HeadsBack a{qkv.data_ptr(),  dq.data_ptr(),    dk.data_ptr(), dv.data_ptr(), dqkv.data_ptr(),
                               floats(q_weight), floats(k_weight), floats(cos),   floats(sin),   floats(sums),
                               b * n,           n,                heads,         dim,
                               static_cast<float>(ctx->saved_data["eps"].toDouble()),
                               static_cast<float>(ctx->saved_data["q_scale"].toDouble())};
    launch(eights ? of_kind(qkv, Kernel::elf_heads_back_f32, Kernel::elf_heads_back_bf16)
                  : of_kind(qkv, Kernel::elf_heads_back_pairs_f32, Kernel::elf_heads_back_pairs_bf16),
           qkv.device(), &a, grid, {{&qkv, &dq, &dk, &dv, &q_weight, &k_weight, &cos, &sin}, {&dqkv, &sums}});
    const Tensor total = reduced(sums);
    return {dqkv, total.narrow(0, 0, dim), total.narrow(0, dim, dim), Tensor(), Tensor(), Tensor(), Tensor()};
  }
};

// Gives the normed rows, and before them x + branch if there is a branch.
struct RmsNorm : torch::autograd::Function<RmsNorm> {
  static bool takes(const Tensor& x, const Tensor& w) {
    return x.dim() >= 1 && is_activation(x) && takes(x.size(-1)) && is_weight(w, x, x.size(-1));
  }

  static bool takes(int64_t n) { return n > 0 && n % VECTOR == 0 && n <= MOST_COLUMNS; }

  static variable_list forward(AutogradContext* ctx, const Tensor& x_in, const std::optional<Tensor>& branch_in, const Tensor& w_in,
                               double eps, bool to_bf16) {
    const Tensor x = whole(x_in), w = whole(w_in), branch = branch_in ? whole(*branch_in) : Tensor();
    const int64_t n = x.size(-1), rows = x.numel() / n;
    const Tensor y = at::empty(x.sizes(), x.options().dtype(to_bf16 ? at::kBFloat16 : at::kFloat));
    const Tensor inverse = new_floats({rows}, x), both = branch_in ? at::empty_like(x) : Tensor();
    const elf_gpu::RmsNorm a{x.data_ptr(),
                             branch_in ? branch.data_ptr() : nullptr,
                             branch_in ? both.data_ptr() : nullptr,
                             y.data_ptr(),
                             floats(w),
                             floats(inverse),
                             rows,
                             n,
                             static_cast<float>(eps)};
    launch(to_bf16 ? of_kind(x, Kernel::elf_rms_norm_f32_to_bf16, Kernel::elf_rms_norm_bf16)
                   : of_kind(x, Kernel::elf_rms_norm_f32, Kernel::elf_rms_norm_bf16_to_f32),
           x.device(), &a, Grid{rows, lanes_for(n, VECTOR)}, {{&x, &branch, &w}, {&y, &inverse, &both}});
    ctx->set_materialize_grads(false);
    ctx->save_for_backward({branch_in ? both : x, w, inverse});
    ctx->saved_data["with_branch"] = branch_in.has_value();
    if (branch_in) return {both, y};
    return {y};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &w = saved[1], &inverse = saved[2];
    const bool with_branch = ctx->saved_data["with_branch"].toBool();
    const Tensor& of_y = grads.back();
    if (!of_y.defined()) return {grads[0], with_branch ? grads[0] : Tensor(), Tensor(), Tensor(), Tensor()};
    const Tensor dy = whole(of_y), dsum = with_branch && grads[0].defined() ? whole(grads[0]) : Tensor();
    const int64_t n = x.size(-1), rows = inverse.numel();
    const Grid grid{rows, lanes_for(n, VECTOR), n, SUMMING_BLOCKS};
    const Tensor dx = at::empty_like(x), sums = new_floats({elf::spread(x.device(), grid).blocks, n}, x);
    const elf_gpu::RmsNormBack a{dy.data_ptr(), x.data_ptr(),    dsum.defined() ? dsum.data_ptr() : nullptr, dx.data_ptr(),
                                 floats(w),     floats(inverse), floats(sums), rows, n};
    launch(is_bf16(dy) ? of_kind(x, Kernel::elf_rms_norm_back_f32_to_bf16, Kernel::elf_rms_norm_back_bf16)
                       : of_kind(x, Kernel::elf_rms_norm_back_f32, Kernel::elf_rms_norm_back_bf16_to_f32),
           x.device(), &a, grid, {{&dy, &x, &dsum, &w, &inverse}, {&dx, &sums}});
    return {dx, with_branch ? dx : Tensor(), reduced(sums).view(w.sizes()), Tensor(), Tensor()};
  }
};

}  // namespace

extern "C" {

char* elf_plain_swiglu(const Tensor* h, Tensor** out);
char* elf_plain_heads(const Tensor* qkv, const Tensor* q_weight, const Tensor* k_weight, const Tensor* cos, const Tensor* sin,
                      double eps, double q_scale, Tensor** q, Tensor** k, Tensor** v);

char* elf_gpu_swiglu(const Tensor* h, Tensor** out) {
  if (h->dim() < 1 || h->size(-1) % (2 * VECTOR) != 0 || !is_activation(*h)) return elf_plain_swiglu(h, out);
  return guarded([&] { *out = new Tensor(SwiGlu::apply(*h)); });
}

char* elf_gpu_heads(const Tensor* qkv, const Tensor* q_weight, const Tensor* k_weight, const Tensor* cos, const Tensor* sin,
                    double eps, double q_scale, Tensor** q, Tensor** k, Tensor** v) {
  const bool ours = qkv->dim() == 5 && qkv->size(2) == 3 && qkv->size(4) % 2 == 0 &&
                    Heads::takes(*qkv, *q_weight, *k_weight, *cos, *sin);
  if (!ours) return elf_plain_heads(qkv, q_weight, k_weight, cos, sin, eps, q_scale, q, k, v);
  return guarded([&] {
    const auto made = Heads::apply(*qkv, *q_weight, *k_weight, *cos, *sin, eps, q_scale);
    *q = new Tensor(made[0]);
    *k = new Tensor(made[1]);
    *v = new Tensor(made[2]);
  });
}

int elf_gpu_norm_size(int64_t n) { return RmsNorm::takes(n); }

// Whether elf_gpu_rms_norm takes such tensors.
int elf_gpu_norms(const Tensor* x, const Tensor* w) { return RmsNorm::takes(*x, *w); }

// branch and sum may be null.
char* elf_gpu_rms_norm(const Tensor* x, const Tensor* branch, const Tensor* w, double eps, int to_bf16, Tensor** sum,
                       Tensor** out) {
  return guarded([&] {
    std::optional<Tensor> added;
    if (branch != nullptr) {
      TORCH_CHECK_VALUE(branch->sizes() == x->sizes() && branch->scalar_type() == x->scalar_type(),
                        "a branch must be like what it is added to");
      added = *branch;
    }
    const auto made = RmsNorm::apply(*x, added, *w, eps, to_bf16 != 0);
    if (added) *sum = new Tensor(made[0]);
    *out = new Tensor(made.back());
  });
}

int elf_gpu_scores(const Tensor* logits, const Tensor* bias, const Tensor* ids, const Tensor* weights) {
  return logits->dim() == 2 && logits->is_contiguous() && logits->size(1) % 2 == 0 && is_activation(*logits) &&
         reinterpret_cast<uintptr_t>(logits->data_ptr()) % 8 == 0 && is_weight(*bias, *logits, logits->size(1)) &&
         ids->scalar_type() == at::kLong && ids->device() == logits->device() && ids->numel() == logits->size(0) &&
         (weights == nullptr || is_weight(*weights, *logits, logits->size(0)));
}

// weights may be null.
char* elf_gpu_cross_entropy(Tensor* logits, const Tensor* bias_in, const Tensor* ids_in, const Tensor* weights_in, int with_slope,
                            Tensor** losses, Tensor** bias_slope) {
  return guarded([&] {
    const Tensor bias = whole(*bias_in), ids = whole(*ids_in), weights = weights_in ? whole(*weights_in) : Tensor();
    const int64_t rows = logits->size(0), n = logits->size(1), slices = std::min(SLICES, rows);
    const Tensor each = new_floats({rows}, bias), normaliser = new_floats({rows}, bias);
    const Tensor sums = with_slope != 0 ? new_floats({slices, n}, bias) : Tensor();
    const elf_gpu::CrossEntropy a{logits->data_ptr(),
                                  floats(bias),
                                  weights_in ? floats(weights) : nullptr,
                                  static_cast<const elf_gpu::i64*>(ids.data_ptr()),
                                  floats(each),
                                  floats(normaliser),
                                  with_slope != 0 ? floats(sums) : nullptr,
                                  rows,
                                  n,
                                  slices};
    launch(of_kind(*logits, Kernel::elf_cross_entropy_f32, Kernel::elf_cross_entropy_bf16), bias.device(), &a,
           Grid{rows, lanes_for(n, 2)}, {{logits, &bias, &ids, &weights}, {&each, &normaliser}});
    *losses = new Tensor(each);
    if (with_slope == 0) return;
    launch(of_kind(*logits, Kernel::elf_cross_entropy_slope_f32, Kernel::elf_cross_entropy_slope_bf16), bias.device(), &a,
           Grid{(n + 63) / 64 * slices}, {{logits, &bias, &ids, &weights, &normaliser}, {logits, &sums}});
    *bias_slope = new Tensor(reduced(sums));
  });
}

// Numbers [rows, n] drawn by counter from the rows' keys, on the keys' device. On a CPU nothing is counted.
char* elf_draw(const Tensor* keys_in, int64_t n, int normal, int counted, Tensor** out) {
  return guarded([&] {
    TORCH_CHECK_VALUE(keys_in->scalar_type() == at::kLong && keys_in->dim() == 1, "keys must be int64 [rows]");
    const Tensor keys = keys_in->contiguous();
    const int64_t rows = keys.size(0);
    const Tensor drawn = new_floats({rows, n}, keys);
    const elf_gpu::Draw a{static_cast<const elf_gpu::i64*>(keys.data_ptr()), floats(drawn), rows, n};
    const Kernel kernel = normal != 0 ? Kernel::elf_normal : Kernel::elf_uniform;
    const Grid grid = elements(rows * (normal != 0 ? (n + 1) / 2 : n));
    if (drawn.numel() > 0 && (counted != 0 || !keys.device().is_cpu()))
      launch(kernel, keys.device(), &a, grid, {{&keys}, {&drawn}});
    else if (drawn.numel() > 0)
      elf::run_on_host(kernel, &a, grid);
    *out = new Tensor(drawn);
  });
}
}
