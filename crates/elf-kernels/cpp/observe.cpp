// Which of libtorch's operations a thread calls, as libtorch's own profiler sees them. Plain C functions for observe.rs.

#include <ATen/ATen.h>
#include <ATen/record_function.h>

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

namespace {

// `inner` is 0 as an operation begins, and as it ends 1 plus the number of operations that it called itself. `bytes` are those of its
// inputs and its results, as it ends.
using Seen = void (*)(void*, const char*, uint64_t inner, uint64_t bytes);

// What this thread tells of; null while nobody asks.
thread_local Seen seen = nullptr;
thread_local void* listener = nullptr;

// An operation that has begun: how many it has called itself, and the bytes of its inputs, which may be gone when it ends.
struct Open {
  uint64_t inner, read;
};

thread_local std::vector<Open> open;

// Bytes of what a tensor shows: a dimension that repeats the same numbers counts once.
uint64_t shown(const at::Tensor& t) {
  uint64_t numbers = 1;
  for (int64_t i = 0; i < t.dim(); ++i) numbers *= t.stride(i) == 0 ? std::min<int64_t>(t.size(i), 1) : t.size(i);
  return numbers * t.element_size();
}

// Bytes of all tensors among the values, what is the same once.
template <typename Values>
uint64_t bytes_of(const Values& values) {
  std::vector<std::pair<const void*, uint64_t>> all;
  const auto add = [&](const at::Tensor& t) {
    if (!t.defined() || !t.has_storage()) return;
    const std::pair<const void*, uint64_t> one(t.const_data_ptr(), shown(t));
    if (std::find(all.begin(), all.end(), one) == all.end()) all.push_back(one);
  };
  for (const c10::IValue& value : values) {
    if (value.isTensor()) add(value.toTensor());
    if (value.isTensorList())
      for (const at::Tensor& t : value.toTensorVector()) add(t);
  }
  uint64_t sum = 0;
  for (const auto& [at, bytes] : all) sum += bytes;
  return sum;
}

std::unique_ptr<at::ObserverContext> begun(const at::RecordFunction& call) {
  if (!open.empty()) ++open.back().inner;
  open.push_back({0, bytes_of(call.inputs())});
  if (seen != nullptr) seen(listener, call.name(), 0, 0);
  return nullptr;
}

void ended(const at::RecordFunction& call, at::ObserverContext*) {
  // One that was open as the observer came.
  if (open.empty()) return;
  const auto [inner, read] = open.back();
  open.pop_back();
  if (seen != nullptr) seen(listener, call.name(), 1 + inner, read + bytes_of(call.outputs()));
}

}  // namespace

extern "C" {

// `told` is called with the name of each operation that this thread begins or ends, until elf_observe_end is called with the
// result. One observer a thread: it returns 0 if there is one already.
uint64_t elf_observe_begin(void* state, Seen told) {
  if (seen != nullptr) return 0;
  seen = told;
  listener = state;
  open.clear();
  return at::addThreadLocalCallback(at::RecordFunctionCallback(begun, ended)
                                         .needsInputs(true)
                                         .needsOutputs(true)
                                         .scopes({at::RecordScope::FUNCTION}));
}

void elf_observe_end(uint64_t handle) {
  at::removeCallback(handle);
  seen = nullptr;
  listener = nullptr;
}
}
