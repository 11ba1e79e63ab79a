// Compiled three times, with ELF_ISA one of base, avx2, avx512 and the processor's features switched on to match. The
// compiler turns the plain loops below into vector code; sums may be taken in any order (-fassociative-math).

#include "rows.h"

#include <cmath>
#include <cstring>

#define ELF_JOIN_(a, b) a##b
#define ELF_JOIN(a, b) ELF_JOIN_(a, b)
#define ELF_NAMED(name) ELF_JOIN(name, ELF_ISA)

namespace elf {
namespace {

inline float get(const float* p, int64_t i) { return p[i]; }

inline float get(const bf16* p, int64_t i) { return __builtin_bit_cast(float, static_cast<uint32_t>(p[i]) << 16); }

inline void put(float* p, int64_t i, float value) { p[i] = value; }

// To the nearest, halves to even; what is no number stays none.
inline void put(bf16* p, int64_t i, float value) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  p[i] = static_cast<bf16>((bits & 0x7fffffffu) > 0x7f800000u ? 0x7fc0u : rounded);
}

// e^x to about two units in the last place: 2^k times a polynomial on [-ln2/2, ln2/2].
inline float exp_of(float x) {
  x = x < -87.0f ? -87.0f : x;
  x = x > 88.0f ? 88.0f : x;
  const float k = __builtin_nearbyintf(x * 1.44269504f);
  const float r = (x - k * 0.693359375f) + k * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  const uint32_t power = static_cast<uint32_t>(static_cast<int32_t>(k) + 127) << 23;
  return p * __builtin_bit_cast(float, power);
}

// The largest of n >= 1 numbers, in sixteen lanes: a compiler may not reorder comparisons by itself.
template <typename F>
inline float largest(F at, int64_t n) {
  float lanes[16];
  for (int j = 0; j < 16; ++j) lanes[j] = at(j < n ? j : 0);
  int64_t i = 16;
  for (; i + 16 <= n; i += 16)
    for (int j = 0; j < 16; ++j) lanes[j] = at(i + j) > lanes[j] ? at(i + j) : lanes[j];
  float most = lanes[0];
  for (int j = 1; j < 16; ++j) most = lanes[j] > most ? lanes[j] : most;
  for (; i < n; ++i) most = at(i) > most ? at(i) : most;
  return most;
}

template <typename T>
inline float sum_of_squares(const T* x, int64_t n) {
  float sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += get(x, i) * get(x, i);
  return sum;
}

template <typename T, typename O>
float rms_norm(const T* x, const float* w, O* y, int64_t n, float eps) {
  const float inverse = 1.0f / std::sqrt(sum_of_squares(x, n) / n + eps);
  for (int64_t i = 0; i < n; ++i) put(y, i, get(x, i) * inverse * w[i]);
  return inverse;
}

template <typename T, typename O>
void rms_norm_back(const O* dy, const T* x, const float* w, float inverse, T* dx, float* dw, int64_t n) {
  float dot = 0;
  for (int64_t i = 0; i < n; ++i) dot += get(dy, i) * w[i] * get(x, i);
  const float along = dot * inverse * inverse * inverse / n;
  for (int64_t i = 0; i < n; ++i) {
    const float slope = get(dy, i), value = get(x, i);
    dw[i] += slope * value * inverse;
    put(dx, i, slope * w[i] * inverse - value * along);
  }
}

template <typename T>
void swiglu(const T* h, T* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const float a = get(h, i);
    put(y, i, a / (1.0f + exp_of(-a)) * get(h, n + i));
  }
}

template <typename T>
void swiglu_back(const T* dy, const T* h, T* dh, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const float a = get(h, i), b = get(h, n + i), slope = get(dy, i);
    const float gate = 1.0f / (1.0f + exp_of(-a));
    put(dh, i, slope * b * gate * (1.0f + a * (1.0f - gate)));
    put(dh, n + i, slope * a * gate);
  }
}

// Long enough for every head that anyone uses; fused.cpp refuses longer ones.
constexpr int64_t LONGEST_HEAD = 512;

template <typename T>
void turn(const T* x, T* y, const Turn& t) {
  const float inverse = t.scale / std::sqrt(sum_of_squares(x, t.dim) / t.dim + t.eps);
  for (int64_t i = 0; i < t.dim / 2; ++i) {
    const float a = get(x, 2 * i) * inverse * t.weight[2 * i];
    const float b = get(x, 2 * i + 1) * inverse * t.weight[2 * i + 1];
    put(y, 2 * i, a * t.cos[i] - b * t.sin[i]);
    put(y, 2 * i + 1, a * t.sin[i] + b * t.cos[i]);
  }
}

template <typename T>
void turn_back(const T* dy, const T* x, T* dx, float* dw, const Turn& t) {
  float upright[LONGEST_HEAD];
  for (int64_t i = 0; i < t.dim / 2; ++i) {
    const float a = get(dy, 2 * i) * t.scale, b = get(dy, 2 * i + 1) * t.scale;
    upright[2 * i] = a * t.cos[i] + b * t.sin[i];
    upright[2 * i + 1] = b * t.cos[i] - a * t.sin[i];
  }
  const float inverse = 1.0f / std::sqrt(sum_of_squares(x, t.dim) / t.dim + t.eps);
  rms_norm_back(upright, x, t.weight, inverse, dx, dw, t.dim);
}

// Rows up to this length are kept in fp32 between their loops.
constexpr int64_t KEPT = 4096;

template <typename T>
void softmax(const T* x, const float* shift, T* y, int64_t n) {
  float shifted[KEPT];
  if (n > KEPT) {
    const auto at = [&](int64_t i) { return shift == nullptr ? get(x, i) : get(x, i) + shift[i]; };
    const float most = largest(at, n);
    float sum = 0;
    for (int64_t i = 0; i < n; ++i) sum += exp_of(at(i) - most);
    for (int64_t i = 0; i < n; ++i) put(y, i, exp_of(at(i) - most) / sum);
    return;
  }
  // Loops without a choice in them, so that each becomes vector code.
  if (shift == nullptr)
    for (int64_t i = 0; i < n; ++i) shifted[i] = get(x, i);
  else
    for (int64_t i = 0; i < n; ++i) shifted[i] = get(x, i) + shift[i];
  const float most = largest([&](int64_t i) { return shifted[i]; }, n);
  float sum = 0;
  for (int64_t i = 0; i < n; ++i) {
    shifted[i] = exp_of(shifted[i] - most);
    sum += shifted[i];
  }
  const float inverse = 1.0f / sum;
  for (int64_t i = 0; i < n; ++i) put(y, i, shifted[i] * inverse);
}

template <typename T>
void softmax_back(const T* dy, const T* y, T* dx, int64_t n) {
  float dot = 0;
  for (int64_t i = 0; i < n; ++i) dot += get(dy, i) * get(y, i);
  for (int64_t i = 0; i < n; ++i) put(dx, i, get(y, i) * (get(dy, i) - dot));
}

// Sixteen numbers at a time; the compiler splits them where registers are narrower.
typedef float Lanes __attribute__((vector_size(64)));

// out [rows, width] = a [rows, inner] b [inner, width], rows of a and of the others a given step apart; width is a multiple of 16.
template <int ROWS>
void product_of(const float* a, int64_t a_step, const float* b, float* out, int64_t inner, int64_t width) {
  for (int64_t column = 0; column < width; column += 16) {
    Lanes sums[ROWS] = {};
    for (int64_t i = 0; i < inner; ++i) {
      Lanes right;
      std::memcpy(&right, b + i * width + column, sizeof right);
      for (int row = 0; row < ROWS; ++row) sums[row] += a[row * a_step + i] * right;
    }
    for (int row = 0; row < ROWS; ++row) std::memcpy(out + row * width + column, &sums[row], sizeof sums[row]);
  }
}

void product(const float* a, int64_t a_step, const float* b, float* out, int64_t rows, int64_t inner, int64_t width) {
  int64_t row = 0;
  for (; row + 8 <= rows; row += 8) product_of<8>(a + row * a_step, a_step, b, out + row * width, inner, width);
  for (; row + 2 <= rows; row += 2) product_of<2>(a + row * a_step, a_step, b, out + row * width, inner, width);
  for (; row < rows; ++row) product_of<1>(a + row * a_step, a_step, b, out + row * width, inner, width);
}

// Parts of a scratch buffer, one after the other.
struct Scratch {
  float* next;

  float* take(int64_t size) {
    float* part = next;
    next += size;
    return part;
  }
};

// x [rows, columns] in rows of `width` floats with zeros behind.
template <typename T>
float* widened(const T* x, int64_t rows, int64_t columns, int64_t width, Scratch& scratch) {
  float* wide = scratch.take(rows * width);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) wide[i * width + j] = get(x, i * columns + j);
    for (int64_t j = columns; j < width; ++j) wide[i * width + j] = 0;
  }
  return wide;
}

// The transpose of x [rows, columns], whose rows are `step` apart, in rows of `width` floats with zeros behind.
template <typename T>
float* transposed(const T* x, int64_t rows, int64_t columns, int64_t step, int64_t width, Scratch& scratch) {
  float* turned = scratch.take(columns * width);
  for (int64_t j = 0; j < columns; ++j) {
    for (int64_t i = 0; i < rows; ++i) turned[j * width + i] = get(x, i * step + j);
    for (int64_t i = rows; i < width; ++i) turned[j * width + i] = 0;
  }
  return turned;
}

template <typename T>
void narrowed(const float* wide, int64_t rows, int64_t columns, int64_t width, T* x) {
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < columns; ++j) put(x, i * columns + j, wide[i * width + j]);
}

template <typename T>
void attend(const T* q, const T* k, const T* v, const float* shift, int64_t shift_step, float* weights, T* y, float* buffer,
            const Attention& a) {
  Scratch scratch{buffer};
  const int64_t wide = padded(a.dim), keys = padded(a.m);
  float* scores = scratch.take(a.n * keys);
  product(widened(q, a.n, a.dim, wide, scratch), wide, transposed(k, a.m, a.dim, a.dim, keys, scratch), scores, a.n, a.dim, keys);
  for (int64_t i = 0; i < a.n; ++i)
    softmax(scores + i * keys, shift == nullptr ? nullptr : shift + i * shift_step, weights + i * a.m, a.m);
  float* mixed = scratch.take(a.n * wide);
  product(weights, a.m, widened(v, a.m, a.dim, wide, scratch), mixed, a.n, a.m, wide);
  narrowed(mixed, a.n, a.dim, wide, y);
}

template <typename T>
void attend_back(const T* dy, const T* q, const T* k, const T* v, const float* weights, T* dq, T* dk, T* dv, float* buffer,
                 const Attention& a) {
  Scratch scratch{buffer};
  const int64_t wide = padded(a.dim), keys = padded(a.m);
  const float* slope = widened(dy, a.n, a.dim, wide, scratch);
  float* out = scratch.take((a.n > a.m ? a.n : a.m) * wide);
  float* scores = scratch.take(a.n * keys);
  const Scratch rest = scratch;

  product(transposed(weights, a.n, a.m, a.m, a.n, scratch), a.n, slope, out, a.m, a.n, wide);
  narrowed(out, a.m, a.dim, wide, dv);

  scratch = rest;
  product(slope, wide, transposed(v, a.m, a.dim, a.dim, keys, scratch), scores, a.n, a.dim, keys);
  for (int64_t i = 0; i < a.n; ++i) softmax_back(scores + i * keys, weights + i * a.m, scores + i * keys, a.m);

  scratch = rest;
  product(scores, keys, widened(k, a.m, a.dim, wide, scratch), out, a.n, a.m, wide);
  narrowed(out, a.n, a.dim, wide, dq);

  scratch = rest;
  const float* turned = transposed(scores, a.n, a.m, keys, a.n, scratch);
  product(turned, a.n, widened(q, a.n, a.dim, wide, scratch), out, a.m, a.n, wide);
  narrowed(out, a.m, a.dim, wide, dk);
}

template <typename T>
float cross_entropy(T* logits, const float* bias, int64_t target, float weight, float* bias_slope, int64_t n) {
  const float most = largest([&](int64_t i) { return get(logits, i) + bias[i]; }, n);
  float sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += exp_of(get(logits, i) + bias[i] - most);
  const float loss = std::log(sum) - (get(logits, target) + bias[target] - most);
  if (bias_slope == nullptr) return loss * weight;
  const float factor = weight / sum;
  const float at_target = exp_of(get(logits, target) + bias[target] - most) * factor - weight;
  for (int64_t i = 0; i < n; ++i) {
    const float slope = exp_of(get(logits, i) + bias[i] - most) * factor;
    bias_slope[i] += slope;
    put(logits, i, slope);
  }
  bias_slope[target] -= weight;
  put(logits, target, at_target);
  return loss * weight;
}

template <typename T>
double momentum(float* m, const float* g, T* u, float decay, float ahead, float now, int64_t n) {
  double total = 0;
  // In pieces, so that many small squares do not get lost in a large float.
  for (int64_t start = 0; start < n; start += 4096) {
    const int64_t end = start + 4096 < n ? start + 4096 : n;
    float sum = 0;
    for (int64_t i = start; i < end; ++i) {
      const float gradient = g[i];
      const float mean = m[i] + (1.0f - decay) * (gradient - m[i]);
      const float update = ahead * mean + now * gradient;
      m[i] = mean;
      sum += update * update;
      put(u, i, update);
    }
    total += sum;
  }
  return total;
}

template <typename T>
void add_scaled(float* p, const T* d, float a, int64_t n) {
  for (int64_t i = 0; i < n; ++i) p[i] += a * get(d, i);
}

template <typename T>
float quantise(const T* x, uint8_t* q, int64_t n) {
  const float most = largest([&](int64_t i) { return std::fabs(get(x, i)); }, n);
  // 0 unless something is infinite or no number.
  float odd = 0;
  for (int64_t i = 0; i < n; ++i) odd += get(x, i) * 0.0f;
  const float scale = odd == 0 ? most / 127.0f : std::nanf("");
  const float inverse = scale > 0 ? 1.0f / scale : 0.0f;
  for (int64_t i = 0; i < n; ++i) {
    const float at = __builtin_nearbyintf(get(x, i) * inverse) + 128.0f;
    q[i] = static_cast<uint8_t>(static_cast<int32_t>(at > 255.0f ? 255.0f : (at > 1.0f ? at : 1.0f)));
  }
  return scale;
}

template <typename T>
void rescale(const float* x, float scale, const float* shift, T* y, int64_t n) {
  if (shift == nullptr) {
    for (int64_t i = 0; i < n; ++i) put(y, i, x[i] * scale);
  } else {
    for (int64_t i = 0; i < n; ++i) put(y, i, x[i] * scale + shift[i]);
  }
}

template <typename T>
constexpr Rows<T> table() {
  return {rms_norm<T, float>,  rms_norm<T, bf16>, rms_norm_back<T, float>, rms_norm_back<T, bf16>, swiglu<T>, swiglu_back<T>,
          turn<T>,             turn_back<T>,      softmax<T>,              softmax_back<T>,        attend<T>,  attend_back<T>,
          cross_entropy<T>,    momentum<T>,       add_scaled<T>,           quantise<T>,             rescale<T>};
}

}  // namespace

extern const Rows<float> ELF_NAMED(rows_f32_) = table<float>();
extern const Rows<bf16> ELF_NAMED(rows_bf16_) = table<bf16>();

void ELF_NAMED(adam_)(float* p, const float* g, float* m, float* v, const AdamStep& s, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const float gradient = g[i];
    const float first = m[i] + (1.0f - s.b1) * (gradient - m[i]);
    const float second = v[i] + (1.0f - s.b2) * (gradient * gradient - v[i]);
    m[i] = first;
    v[i] = second;
    const float ahead = s.of_first * first + s.of_grad * gradient;
    p[i] = p[i] * s.keep - s.lr * ahead / (std::sqrt(second * s.of_second) + s.eps);
  }
}

}  // namespace elf
