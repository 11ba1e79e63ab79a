// The loops of rows.cpp that suit this processor, and the threads that run them.
#pragma once

#include "rows.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <type_traits>

namespace elf {

enum class Isa { base, avx2, avx512 };

inline Isa isa() {
  static const Isa found = [] {
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq"))
      return Isa::avx512;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Isa::avx2;
#endif
    return Isa::base;
  }();
  return found;
}

template <typename T>
const Rows<T>& rows();

template <>
inline const Rows<float>& rows<float>() {
#if defined(__x86_64__)
  if (isa() == Isa::avx512) return rows_f32_avx512;
  if (isa() == Isa::avx2) return rows_f32_avx2;
#endif
  return rows_f32_base;
}

template <>
inline const Rows<bf16>& rows<bf16>() {
#if defined(__x86_64__)
  if (isa() == Isa::avx512) return rows_bf16_avx512;
  if (isa() == Isa::avx2) return rows_bf16_avx2;
#endif
  return rows_bf16_base;
}

template <typename T>
T* data(const at::Tensor& t) {
  return static_cast<T*>(t.data_ptr());
}

inline bool is_bf16(const at::Tensor& t) { return t.scalar_type() == at::kBFloat16; }

// Calls f with a null pointer of the tensor's kind of number.
template <typename F>
void for_kind(const at::Tensor& t, F f) {
  if (is_bf16(t))
    f(static_cast<bf16*>(nullptr));
  else
    f(static_cast<float*>(nullptr));
}

template <typename P>
using Number = std::remove_const_t<std::remove_pointer_t<P>>;

// Rows in parallel, in pieces of some ten thousand numbers.
template <typename F>
void over_rows(int64_t rows, int64_t width, F f) {
  at::parallel_for(0, rows, std::max<int64_t>(1, 16384 / std::max<int64_t>(1, width)), f);
}

}  // namespace elf
