// Loops over rows of numbers, compiled once for each kind of processor: rows.cpp holds them, fused.cpp chooses and calls.
//
// They know nothing of tensors or threads. A number is float or bf16 (the upper half of a float); sums are float, over a
// row, or double, over a tensor.
#pragma once

#include <cstdint>

namespace elf {

using bf16 = uint16_t;

// Adam's constants of one step: the update is lr (of_first m + of_grad g) / (sqrt(of_second v) + eps).
struct AdamStep {
  float b1, b2, eps, of_first, of_grad, of_second, lr, keep;
};

// What one head's vector of length dim goes through: normalisation with a weight, rotation of adjacent pairs, a factor.
struct Turn {
  const float* weight;
  const float* cos;
  const float* sin;
  float eps, scale;
  int64_t dim;
};

// One head's attention: n queries over m keys and values, all of dim channels.
struct Attention {
  int64_t n, m, dim;
};

// Whole groups of sixteen numbers.
inline int64_t padded(int64_t size) { return (size + 15) / 16 * 16; }

// Floats that the forward and the backward pass of a head's attention need in addition to their results.
inline int64_t attention_scratch(const Attention& a) {
  return 4 * (a.n + a.m) * padded(a.dim) + (a.dim + 2 * a.n) * padded(a.m) + a.n * a.m;
}

// T is the kind of the activations; O that of a result where it may differ.
template <typename T>
struct Rows {
  // y = x / rms(x) * w; gives 1 / rms(x).
  float (*rms_norm_f32)(const T* x, const float* w, float* y, int64_t n, float eps);
  float (*rms_norm_bf16)(const T* x, const float* w, bf16* y, int64_t n, float eps);
  // dx, and dw added up.
  void (*rms_norm_back_f32)(const float* dy, const T* x, const float* w, float inverse, T* dx, float* dw, int64_t n);
  void (*rms_norm_back_bf16)(const bf16* dy, const T* x, const float* w, float inverse, T* dx, float* dw, int64_t n);
  // y = silu(h[..n]) * h[n..].
  void (*swiglu)(const T* h, T* y, int64_t n);
  void (*swiglu_back)(const T* dy, const T* h, T* dh, int64_t n);
  // One head's vector on its way into attention, and its gradient on the way back; dw is added up.
  void (*turn)(const T* x, T* y, const Turn& turn);
  void (*turn_back)(const T* dy, const T* x, T* dx, float* dw, const Turn& turn);
  // y = softmax(x + shift), shift being null or a row of its own; and the gradient on the way back.
  void (*softmax)(const T* x, const float* shift, T* y, int64_t n);
  void (*softmax_back)(const T* dy, const T* y, T* dx, int64_t n);
  // weights = softmax(q k^T + shift), y = weights v, all row by row; shift is null, or has the row of query i at i * shift_step.
  void (*attend)(const T* q, const T* k, const T* v, const float* shift, int64_t shift_step, float* weights, T* y,
                 float* scratch, const Attention& a);
  void (*attend_back)(const T* dy, const T* q, const T* k, const T* v, const float* weights, T* dq, T* dk, T* dv,
                      float* scratch, const Attention& a);
  // Cross-entropy of logits + bias against `target`; turns the logits into the loss's slope times `weight`, which is also
  // added to `bias_slope`, if it is given.
  float (*cross_entropy)(T* logits, const float* bias, int64_t target, float weight, float* bias_slope, int64_t n);
  // m += (1 - decay) (g - m); u = ahead m + now g; gives the sum of squares of u.
  double (*momentum)(float* m, const float* g, T* u, float decay, float ahead, float now, int64_t n);
  // p += a d.
  void (*add_scaled)(float* p, const T* d, float a, int64_t n);
  // q = round(x / scale) + 128, with the scale of the row's largest number, which is returned: no number if x has one that is none.
  float (*quantise)(const T* x, uint8_t* q, int64_t n);
  // y = x scale + shift, shift being null or a row.
  void (*rescale)(const float* x, float scale, const float* shift, T* y, int64_t n);
};

void adam_base(float* p, const float* g, float* m, float* v, const AdamStep& s, int64_t n);
void adam_avx2(float* p, const float* g, float* m, float* v, const AdamStep& s, int64_t n);
void adam_avx512(float* p, const float* g, float* m, float* v, const AdamStep& s, int64_t n);

extern const Rows<float> rows_f32_base, rows_f32_avx2, rows_f32_avx512;
extern const Rows<bf16> rows_bf16_base, rows_bf16_avx2, rows_bf16_avx512;

}  // namespace elf
