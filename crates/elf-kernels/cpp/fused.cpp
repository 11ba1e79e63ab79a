// Tensors and threads around rows.cpp, and the gradients that libtorch's autograd asks for. Plain C functions for lib.rs.

#include "choice.h"
#include "guarded.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/custom_class.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

using at::Tensor;
using elf::bf16;
using elf::data;
using elf::for_kind;
using elf::guarded;
using elf::is_bf16;
using elf::Isa;
using elf::isa;
using elf::Number;
using elf::over_rows;
using elf::Rows;
using elf::rows;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

namespace {

// One row of sums for each thread, added up at the end: the same sum each time, for one number of threads.
struct Sums {
  Tensor by_thread;
  int64_t width;

  explicit Sums(int64_t width) : by_thread(at::zeros({at::get_num_threads(), width}, at::kFloat)), width(width) {}

  float* mine() { return data<float>(by_thread) + at::get_thread_num() * width; }
  Tensor total() { return by_thread.sum(0); }
};

void check(bool holds, const char* what) { TORCH_CHECK_VALUE(holds, what); }

void check_activation(const Tensor& x) {
  check(x.device().is_cpu() && (is_bf16(x) || x.scalar_type() == at::kFloat), "activations must be fp32 or bf16, on the CPU");
}

void check_weights(const Tensor& w, int64_t n) {
  check(w.device().is_cpu() && w.scalar_type() == at::kFloat && w.numel() == n, "weights must be fp32, one for each channel");
}

Tensor rms_norm_forward(const Tensor& x, const Tensor& w, double eps, at::ScalarType kind, Tensor& inverse) {
  const int64_t n = x.size(-1), count = x.numel() / std::max<int64_t>(1, n);
  Tensor y = at::empty(x.sizes(), x.options().dtype(kind));
  inverse = at::empty({count}, at::kFloat);
  float* inv = data<float>(inverse);
  for_kind(x, [&](auto* t) {
    using T = Number<decltype(t)>;
    const T* in = data<T>(x);
    over_rows(count, n, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        inv[i] = kind == at::kBFloat16 ? rows<T>().rms_norm_bf16(in + i * n, data<float>(w), data<bf16>(y) + i * n, n, eps)
                                       : rows<T>().rms_norm_f32(in + i * n, data<float>(w), data<float>(y) + i * n, n, eps);
      }
    });
  });
  return y;
}

struct RmsNorm : torch::autograd::Function<RmsNorm> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x_in, const Tensor& w_in, double eps, bool to_bf16) {
    const Tensor x = x_in.contiguous(), w = w_in.contiguous();
    Tensor inverse;
    Tensor y = rms_norm_forward(x, w, eps, to_bf16 ? at::kBFloat16 : at::kFloat, inverse);
    ctx->save_for_backward({x, w, inverse});
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &x = saved[0], &w = saved[1], &inverse = saved[2];
    const Tensor dy = grads[0].contiguous();
    const int64_t n = x.size(-1), count = inverse.numel();
    Tensor dx = at::empty_like(x);
    Sums dw(n);
    for_kind(x, [&](auto* t) {
      using T = Number<decltype(t)>;
      over_rows(count, n, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const T* in = data<T>(x) + i * n;
          T* out = data<T>(dx) + i * n;
          const float inv = data<float>(inverse)[i];
          if (is_bf16(dy))
            rows<T>().rms_norm_back_bf16(data<bf16>(dy) + i * n, in, data<float>(w), inv, out, dw.mine(), n);
          else
            rows<T>().rms_norm_back_f32(data<float>(dy) + i * n, in, data<float>(w), inv, out, dw.mine(), n);
        }
      });
    });
    return {dx, dw.total().view(w.sizes()), Tensor(), Tensor()};
  }
};

struct SwiGlu : torch::autograd::Function<SwiGlu> {
  static Tensor forward(AutogradContext* ctx, const Tensor& h_in) {
    const Tensor h = h_in.contiguous();
    const int64_t n = h.size(-1) / 2, count = h.numel() / std::max<int64_t>(1, 2 * n);
    auto shape = h.sizes().vec();
    shape.back() = n;
    Tensor y = at::empty(shape, h.options());
    for_kind(h, [&](auto* t) {
      using T = Number<decltype(t)>;
      over_rows(count, n, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) rows<T>().swiglu(data<T>(h) + 2 * i * n, data<T>(y) + i * n, n);
      });
    });
    ctx->save_for_backward({h});
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const Tensor h = ctx->get_saved_variables()[0], dy = grads[0].contiguous();
    const int64_t n = h.size(-1) / 2, count = h.numel() / std::max<int64_t>(1, 2 * n);
    Tensor dh = at::empty_like(h);
    for_kind(h, [&](auto* t) {
      using T = Number<decltype(t)>;
      over_rows(count, n, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i)
          rows<T>().swiglu_back(data<T>(dy) + i * n, data<T>(h) + 2 * i * n, data<T>(dh) + 2 * i * n, n);
      });
    });
    return {dh};
  }
};

// Where the heads of one position lie: qkv is [B, N, 3, heads, dim], q, k and v are [B * heads, N, dim].
struct Layout {
  int64_t batch, positions, heads, dim;

  explicit Layout(const Tensor& qkv) : batch(qkv.size(0)), positions(qkv.size(1)), heads(qkv.size(3)), dim(qkv.size(4)) {}

  int64_t joint(int64_t token, int64_t part, int64_t head) const { return ((token * 3 + part) * heads + head) * dim; }
  int64_t apart(int64_t token, int64_t head) const {
    return ((token / positions * heads + head) * positions + token % positions) * dim;
  }
};

struct Heads : torch::autograd::Function<Heads> {
  static variable_list forward(AutogradContext* ctx, const Tensor& qkv_in, const Tensor& q_weight, const Tensor& k_weight,
                               const Tensor& cos, const Tensor& sin, double eps, double q_scale) {
    const Tensor qkv = qkv_in.contiguous();
    const Layout at_(qkv);
    const auto make = [&] { return at::empty({at_.batch * at_.heads, at_.positions, at_.dim}, qkv.options()); };
    Tensor q = make(), k = make(), v = make();
    for_kind(qkv, [&](auto* t) {
      using T = Number<decltype(t)>;
      const T* in = data<T>(qkv);
      over_rows(at_.batch * at_.positions, 3 * at_.heads * at_.dim, [&](int64_t begin, int64_t end) {
        for (int64_t token = begin; token < end; ++token) {
          const elf::Turn for_q = turn(q_weight, cos, sin, token % at_.positions, eps, q_scale, at_.dim);
          const elf::Turn for_k = turn(k_weight, cos, sin, token % at_.positions, eps, 1.0, at_.dim);
          for (int64_t head = 0; head < at_.heads; ++head) {
            const int64_t to = at_.apart(token, head);
            rows<T>().turn(in + at_.joint(token, 0, head), data<T>(q) + to, for_q);
            rows<T>().turn(in + at_.joint(token, 1, head), data<T>(k) + to, for_k);
            std::memcpy(data<T>(v) + to, in + at_.joint(token, 2, head), at_.dim * sizeof(T));
          }
        }
      });
    });
    ctx->save_for_backward({qkv, q_weight, k_weight, cos, sin});
    ctx->saved_data["eps"] = eps;
    ctx->saved_data["q_scale"] = q_scale;
    return {q, k, v};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &qkv = saved[0], &q_weight = saved[1], &k_weight = saved[2], &cos = saved[3], &sin = saved[4];
    const double eps = ctx->saved_data["eps"].toDouble(), q_scale = ctx->saved_data["q_scale"].toDouble();
    const Layout at_(qkv);
    const auto given = [&](const Tensor& g) {
      return g.defined() ? g.contiguous() : at::zeros({at_.batch * at_.heads, at_.positions, at_.dim}, qkv.options());
    };
    const Tensor dq = given(grads[0]), dk = given(grads[1]), dv = given(grads[2]);
    Tensor dqkv = at::empty_like(qkv);
    Sums dw(2 * at_.dim);
    for_kind(qkv, [&](auto* t) {
      using T = Number<decltype(t)>;
      const T* in = data<T>(qkv);
      T* out = data<T>(dqkv);
      over_rows(at_.batch * at_.positions, 3 * at_.heads * at_.dim, [&](int64_t begin, int64_t end) {
        float* sums = dw.mine();
        for (int64_t token = begin; token < end; ++token) {
          const elf::Turn for_q = turn(q_weight, cos, sin, token % at_.positions, eps, q_scale, at_.dim);
          const elf::Turn for_k = turn(k_weight, cos, sin, token % at_.positions, eps, 1.0, at_.dim);
          for (int64_t head = 0; head < at_.heads; ++head) {
            const int64_t from = at_.apart(token, head), q0 = at_.joint(token, 0, head), k0 = at_.joint(token, 1, head);
            rows<T>().turn_back(data<T>(dq) + from, in + q0, out + q0, sums, for_q);
            rows<T>().turn_back(data<T>(dk) + from, in + k0, out + k0, sums + at_.dim, for_k);
            std::memcpy(out + at_.joint(token, 2, head), data<T>(dv) + from, at_.dim * sizeof(T));
          }
        }
      });
    });
    const Tensor total = dw.total();
    return {dqkv,     total.narrow(0, 0, at_.dim), total.narrow(0, at_.dim, at_.dim), Tensor(), Tensor(),
            Tensor(), Tensor()};
  }

 private:
  static elf::Turn turn(const Tensor& w, const Tensor& cos, const Tensor& sin, int64_t position, double eps, double scale,
                        int64_t dim) {
    const int64_t at_ = position * (dim / 2);
    return {data<float>(w),           data<float>(cos) + at_,    data<float>(sin) + at_,
            static_cast<float>(eps), static_cast<float>(scale), dim};
  }
};

// x is [rows, N, n]; the mask, if there is one, [rows / of_one_mask, n], is the same for all N.
struct Softmax : torch::autograd::Function<Softmax> {
  static Tensor forward(AutogradContext* ctx, const Tensor& x_in, const std::optional<Tensor>& mask) {
    const Tensor x = x_in.contiguous();
    const int64_t n = x.size(2), per_row = x.size(1), count = x.size(0) * per_row;
    const int64_t per_mask = mask ? count / std::max<int64_t>(1, mask->size(0)) : 1;
    Tensor y = at::empty_like(x);
    for_kind(x, [&](auto* t) {
      using T = Number<decltype(t)>;
      over_rows(count, n, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i)
          rows<T>().softmax(data<T>(x) + i * n, mask ? data<float>(*mask) + i / per_mask * n : nullptr, data<T>(y) + i * n, n);
      });
    });
    ctx->save_for_backward({y});
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const Tensor y = ctx->get_saved_variables()[0], dy = grads[0].contiguous();
    const int64_t n = y.size(2), count = y.size(0) * y.size(1);
    Tensor dx = at::empty_like(y);
    for_kind(y, [&](auto* t) {
      using T = Number<decltype(t)>;
      over_rows(count, n, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i)
          rows<T>().softmax_back(data<T>(dy) + i * n, data<T>(y) + i * n, data<T>(dx) + i * n, n);
      });
    });
    return {dx, Tensor()};
  }
};

// q is [rows, N, dim], k and v are [rows, M, dim]; the mask, if there is one, [rows / of_one_mask, N or 1, M].
struct Attend : torch::autograd::Function<Attend> {
  static Tensor forward(AutogradContext* ctx, const Tensor& q_in, const Tensor& k_in, const Tensor& v_in,
                        const std::optional<Tensor>& mask) {
    const Tensor q = q_in.contiguous(), k = k_in.contiguous(), v = v_in.contiguous();
    const elf::Attention a{q.size(1), k.size(1), q.size(2)};
    const int64_t count = q.size(0), of_one_mask = mask ? count / std::max<int64_t>(1, mask->size(0)) : 1;
    const int64_t shift_step = mask && mask->size(1) > 1 ? a.m : 0;
    Tensor y = at::empty_like(q), weights = at::empty({count, a.n, a.m}, at::kFloat);
    for_kind(q, [&](auto* t) {
      using T = Number<decltype(t)>;
      over_rows(count, work(a), [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const float* shift = mask ? data<float>(*mask) + i / of_one_mask * mask->size(1) * a.m : nullptr;
          rows<T>().attend(data<T>(q) + i * a.n * a.dim, data<T>(k) + i * a.m * a.dim, data<T>(v) + i * a.m * a.dim, shift,
                           shift_step, data<float>(weights) + i * a.n * a.m, data<T>(y) + i * a.n * a.dim, scratch(a), a);
        }
      });
    });
    ctx->save_for_backward({q, k, v, weights});
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &q = saved[0], &k = saved[1], &v = saved[2], &weights = saved[3], dy = grads[0].contiguous();
    const elf::Attention a{q.size(1), k.size(1), q.size(2)};
    Tensor dq = at::empty_like(q), dk = at::empty_like(k), dv = at::empty_like(v);
    for_kind(q, [&](auto* t) {
      using T = Number<decltype(t)>;
      over_rows(q.size(0), work(a), [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const int64_t query = i * a.n * a.dim, key = i * a.m * a.dim;
          rows<T>().attend_back(data<T>(dy) + query, data<T>(q) + query, data<T>(k) + key, data<T>(v) + key,
                                data<float>(weights) + i * a.n * a.m, data<T>(dq) + query, data<T>(dk) + key,
                                data<T>(dv) + key, scratch(a), a);
        }
      });
    });
    return {dq, dk, dv, Tensor()};
  }

 private:
  static int64_t work(const elf::Attention& a) { return a.n * a.m * a.dim / 16; }

  // This thread's own.
  static float* scratch(const elf::Attention& a) {
    static thread_local std::vector<float> kept;
    const size_t size = static_cast<size_t>(elf::attention_scratch(a));
    if (kept.size() < size) kept.resize(size);
    return kept.data();
  }
};

Tensor cross_entropy(Tensor& logits, const Tensor& bias, const Tensor& ids, const Tensor* weights, Tensor* bias_slope) {
  const int64_t count = logits.size(0), n = logits.size(1);
  Tensor losses = at::empty({count}, at::kFloat);
  Sums slopes(bias_slope != nullptr ? n : 0);
  for_kind(logits, [&](auto* t) {
    using T = Number<decltype(t)>;
    over_rows(count, n, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const float weight = weights != nullptr ? data<float>(*weights)[i] : 1.0f;
        float* slope = bias_slope != nullptr ? slopes.mine() : nullptr;
        data<float>(losses)[i] =
            rows<T>().cross_entropy(data<T>(logits) + i * n, data<float>(bias), data<int64_t>(ids)[i], weight, slope, n);
      }
    });
  });
  if (bias_slope != nullptr) *bias_slope = slopes.total();
  return losses;
}

constexpr int64_t PIECE = 1 << 15;

double momentum(Tensor& m, const Tensor& g, Tensor& u, double decay, double ahead, double now) {
  const int64_t n = m.numel(), pieces = (n + PIECE - 1) / PIECE;
  std::vector<double> sums(pieces);
  for_kind(u, [&](auto* t) {
    using T = Number<decltype(t)>;
    at::parallel_for(0, pieces, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t at_ = i * PIECE, length = std::min(PIECE, n - at_);
        sums[i] = rows<T>().momentum(data<float>(m) + at_, data<float>(g) + at_, data<T>(u) + at_, decay, ahead, now, length);
      }
    });
  });
  double total = 0;
  for (double sum : sums) total += sum;
  return total;
}

void add_scaled(Tensor& p, const Tensor& d, double a) {
  for_kind(d, [&](auto* t) {
    using T = Number<decltype(t)>;
    at::parallel_for(0, p.numel(), PIECE, [&](int64_t begin, int64_t end) {
      rows<T>().add_scaled(data<float>(p) + begin, data<T>(d) + begin, a, end - begin);
    });
  });
}

void adam(Tensor& p, const Tensor& g, Tensor& m, Tensor& v, const elf::AdamStep& step) {
  auto row = elf::adam_base;
#if defined(__x86_64__)
  if (isa() == Isa::avx512) row = elf::adam_avx512;
  if (isa() == Isa::avx2) row = elf::adam_avx2;
#endif
  at::parallel_for(0, p.numel(), PIECE, [&](int64_t begin, int64_t end) {
    row(data<float>(p) + begin, data<float>(g) + begin, data<float>(m) + begin, data<float>(v) + begin, step, end - begin);
  });
}

// A function of Rust's, dropped with the last part of the graph that may call it.
struct Closure : torch::CustomClassHolder {
  using Call = char* (*)(void* state, const Tensor* x, Tensor** y);

  void* state;
  Call call;
  void (*drop)(void* state);

  Closure(void* state, Call call, void (*drop)(void*)) : state(state), call(call), drop(drop) {}
  ~Closure() override { drop(state); }

  Tensor operator()(const Tensor& x) const {
    Tensor* y = nullptr;
    if (char* text = call(state, &x, &y)) {
      const std::string message = text;
      free(text);
      throw std::runtime_error(message);
    }
    const Tensor made = *y;
    delete y;
    return made;
  }
};

struct Recompute : torch::autograd::Function<Recompute> {
  // Runs without gradients, as every forward of a Function does: nothing but the input is kept.
  static Tensor forward(AutogradContext* ctx, const Tensor& x, const c10::intrusive_ptr<Closure>& f) {
    ctx->save_for_backward({x});
    ctx->saved_data["f"] = c10::IValue::make_capsule(f);
    return (*f)(x);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto capsule = ctx->saved_data["f"].toCapsule();
    const auto& f = static_cast<const Closure&>(*capsule);
    const Tensor x = ctx->get_saved_variables()[0].detach().requires_grad_(true);
    at::AutoGradMode with_grad(true);
    // What f reaches beside x takes its gradients here.
    torch::autograd::backward({f(x)}, {grads[0]});
    return {x.grad(), Tensor()};
  }
};

// Results of parts of a batch, each with a graph of its own.
struct Parts : torch::CustomClassHolder {
  variable_list inputs, outputs;

  Parts(variable_list inputs, variable_list outputs) : inputs(std::move(inputs)), outputs(std::move(outputs)) {}
};

struct Joined : torch::autograd::Function<Joined> {
  static Tensor forward(AutogradContext* ctx, const Tensor&, at::TensorList leaves, const c10::intrusive_ptr<Parts>& parts) {
    ctx->save_for_backward(leaves.vec());
    ctx->saved_data["parts"] = c10::IValue::make_capsule(parts);
    return at::cat(parts->outputs, 0);
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto capsule = ctx->saved_data["parts"].toCapsule();
    const auto& parts = static_cast<const Parts&>(*capsule);
    const variable_list leaves = ctx->get_saved_variables();
    const int64_t n = parts.outputs.size();
    variable_list slopes;
    for (int64_t i = 0, row = 0; i < n; row += parts.outputs[i++].size(0)) {
      slopes.push_back(grads[0].narrow(0, row, parts.outputs[i].size(0)));
    }
    std::vector<variable_list> found(n);
    at::parallel_for(0, n, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        variable_list wanted{parts.inputs[i]};
        wanted.insert(wanted.end(), leaves.begin(), leaves.end());
        found[i] = torch::autograd::grad({parts.outputs[i]}, wanted, {slopes[i]}, false, false, true);
      }
    });
    variable_list of_inputs;
    for (const auto& of_part : found) of_inputs.push_back(of_part[0]);
    variable_list sums{at::cat(of_inputs, 0)};
    for (size_t j = 1; j <= leaves.size(); ++j) {
      // The parts in their order: the same sum each time.
      Tensor sum = found[0][j];
      for (int64_t i = 1; i < n; ++i) {
        const Tensor& next = found[i][j];
        if (next.defined()) sum = sum.defined() ? sum.add_(next) : next;
      }
      sums.push_back(sum);
    }
    sums.emplace_back();
    return sums;
  }
};

bool plain_f32(const Tensor& t, int64_t n) {
  return t.device().is_cpu() && t.scalar_type() == at::kFloat && t.is_contiguous() && t.numel() == n;
}

}  // namespace

extern "C" {

void elf_kernels_free(char* text) { free(text); }

const char* elf_kernels_isa() {
  switch (isa()) {
    case Isa::avx512: return "avx512";
    case Isa::avx2: return "avx2";
    default: return "base";
  }
}

char* elf_rms_norm(const Tensor* x, const Tensor* w, double eps, int to_bf16, Tensor** out) {
  return guarded([&] {
    check_activation(*x);
    check(x->dim() >= 1, "a number has no channels to normalise over");
    check_weights(*w, x->size(-1));
    *out = new Tensor(RmsNorm::apply(*x, *w, eps, to_bf16 != 0));
  });
}

// Text for a message that Rust hands over; freed by whoever reads it.
char* elf_kernels_text(const char* bytes, size_t length) { return strndup(bytes, length); }

// run(work, i) for each i below n, side by side.
char* elf_parallel(int64_t n, void* work, void (*run)(void*, int64_t)) {
  return guarded([&] {
    at::parallel_for(0, n, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) run(work, i);
    });
  });
}

// Numbers too small to be normal count as 0 in this thread and in libtorch's: 0 where the processor cannot.
int elf_flush_denormals() {
  if (!at::globalContext().setFlushDenormal(true)) return 0;
  at::parallel_for(0, at::get_num_threads(), 1, [](int64_t, int64_t) { at::globalContext().setFlushDenormal(true); });
  return 1;
}

// The outputs as one tensor, which sends gradients to x, whose rows the inputs are, and to the leaves.
char* elf_joined(const Tensor* x, Tensor* const* inputs, Tensor* const* outputs, size_t n, Tensor* const* leaves,
                 size_t n_leaves, Tensor** out) {
  return guarded([&] {
    const auto list = [](Tensor* const* of, size_t n) {
      variable_list all;
      for (size_t i = 0; i < n; ++i) all.push_back(*of[i]);
      return all;
    };
    const auto parts = c10::make_intrusive<Parts>(list(inputs, n), list(outputs, n));
    const variable_list all_leaves = list(leaves, n_leaves);
    *out = new Tensor(Joined::apply(*x, at::TensorList(all_leaves), parts));
  });
}

// Takes `state` over in any case.
char* elf_recompute(const Tensor* x, void* state, Closure::Call call, void (*drop)(void*), Tensor** out) {
  return guarded([&] {
    const auto f = c10::make_intrusive<Closure>(state, call, drop);
    *out = new Tensor(Recompute::apply(*x, f));
  });
}

char* elf_swiglu(const Tensor* h, Tensor** out) {
  return guarded([&] {
    check_activation(*h);
    check(h->dim() >= 1 && h->size(-1) % 2 == 0, "SwiGLU takes an even number of channels");
    *out = new Tensor(SwiGlu::apply(*h));
  });
}

char* elf_heads(const Tensor* qkv, const Tensor* q_weight, const Tensor* k_weight, const Tensor* cos, const Tensor* sin,
                double eps, double q_scale, Tensor** q, Tensor** k, Tensor** v) {
  return guarded([&] {
    check_activation(*qkv);
    check(qkv->dim() == 5 && qkv->size(2) == 3, "queries, keys and values must come as [B, N, 3, heads, dim]");
    const int64_t n = qkv->size(1), dim = qkv->size(4);
    check(dim % 2 == 0 && dim <= 512, "a head must have an even number of channels, at most 512");
    check_weights(*q_weight, dim);
    check_weights(*k_weight, dim);
    check(plain_f32(*cos, n * dim / 2) && plain_f32(*sin, n * dim / 2), "cos and sin must be fp32 [N, dim / 2]");
    const auto parts = Heads::apply(*qkv, q_weight->contiguous(), k_weight->contiguous(), *cos, *sin, eps, q_scale);
    *q = new Tensor(parts[0]);
    *k = new Tensor(parts[1]);
    *v = new Tensor(parts[2]);
  });
}

char* elf_softmax(const Tensor* x, const Tensor* mask, Tensor** out) {
  return guarded([&] {
    check_activation(*x);
    check(x->dim() == 3, "scores must be [rows, N, n]");
    std::optional<Tensor> shift;
    if (mask != nullptr) {
      check(mask->dim() == 2 && mask->size(1) == x->size(2) && mask->size(0) > 0 && x->size(0) % mask->size(0) == 0,
            "the mask must be [B, n], B dividing the scores' rows");
      check(plain_f32(*mask, mask->numel()), "the mask must be fp32, on the CPU, in one piece");
      shift = *mask;
    }
    *out = new Tensor(Softmax::apply(*x, shift));
  });
}

char* elf_attend(const Tensor* q, const Tensor* k, const Tensor* v, const Tensor* mask, Tensor** out) {
  return guarded([&] {
    for (const Tensor* x : {q, k, v}) {
      check_activation(*x);
      check(x->dim() == 3 && x->scalar_type() == q->scalar_type(), "queries, keys and values must be [rows, N, dim], of one kind");
    }
    check(k->sizes() == v->sizes() && k->size(0) == q->size(0) && k->size(2) == q->size(2) && k->size(1) > 0,
          "keys and values must be alike, at least one, with the rows and channels of the queries");
    std::optional<Tensor> shift;
    if (mask != nullptr) {
      check(mask->dim() == 3 && mask->size(0) > 0 && q->size(0) % mask->size(0) == 0 && mask->size(2) == k->size(1) &&
                (mask->size(1) == 1 || mask->size(1) == q->size(1)),
            "the mask must be [B, N or 1, M], B dividing the rows");
      check(plain_f32(*mask, mask->numel()), "the mask must be fp32, on the CPU, in one piece");
      shift = *mask;
    }
    *out = new Tensor(Attend::apply(*q, *k, *v, shift));
  });
}

char* elf_cross_entropy(Tensor* logits, const Tensor* bias, const Tensor* ids, const Tensor* weights, int with_slope,
                        Tensor** losses, Tensor** bias_slope) {
  return guarded([&] {
    check_activation(*logits);
    check(logits->dim() == 2 && logits->is_contiguous(), "logits must be [N, V] in one piece");
    const int64_t count = logits->size(0), n = logits->size(1);
    check(n > 0, "there are no words to choose from");
    check(plain_f32(*bias, n), "the bias must be fp32 [V]");
    check(ids->device().is_cpu() && ids->scalar_type() == at::kLong && ids->is_contiguous() && ids->numel() == count,
          "ids must be int64 [N]");
    check(weights == nullptr || plain_f32(*weights, count), "weights must be fp32 [N]");
    for (int64_t i = 0; i < count; ++i) {
      const int64_t id = data<int64_t>(*ids)[i];
      check(id >= 0 && id < n, "an id is outside of the vocabulary");
    }
    Tensor slope;
    *losses = new Tensor(cross_entropy(*logits, *bias, *ids, weights, with_slope != 0 ? &slope : nullptr));
    if (with_slope != 0) *bias_slope = new Tensor(slope);
  });
}

char* elf_momentum(Tensor* m, const Tensor* g, Tensor* u, double decay, double ahead, double now, double* sum_of_squares) {
  return guarded([&] {
    check(plain_f32(*m, m->numel()) && plain_f32(*g, m->numel()), "momentum and gradient must be fp32, alike, in one piece");
    check_activation(*u);
    check(u->is_contiguous() && u->numel() == m->numel(), "the update must be like the momentum");
    *sum_of_squares = momentum(*m, *g, *u, decay, ahead, now);
  });
}

char* elf_add_scaled(Tensor* p, const Tensor* d, double a) {
  return guarded([&] {
    check(plain_f32(*p, p->numel()), "the parameter must be fp32, in one piece");
    check_activation(*d);
    const Tensor direction = d->contiguous();
    check(direction.numel() == p->numel(), "the direction must be like the parameter");
    add_scaled(*p, direction, a);
  });
}

char* elf_adam(Tensor* p, const Tensor* g, Tensor* m, Tensor* v, const double* step) {
  return guarded([&] {
    const int64_t n = p->numel();
    check(plain_f32(*p, n) && plain_f32(*g, n) && plain_f32(*m, n) && plain_f32(*v, n),
          "parameter, gradient and moments must be fp32, alike, in one piece");
    const auto f = [&](int i) { return static_cast<float>(step[i]); };
    adam(*p, *g, *m, *v, {f(0), f(1), f(2), f(3), f(4), f(5), f(6), f(7)});
  });
}

}  // extern "C"
