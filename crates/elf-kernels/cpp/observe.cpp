// Which of libtorch's operations a thread calls, as libtorch's own profiler sees them. Plain C functions for observe.rs.

#include <ATen/record_function.h>

#include <cstdint>
#include <vector>

namespace {

// `inner` is 0 as an operation begins, and as it ends 1 plus the number of operations that it called itself.
using Seen = void (*)(void*, const char*, uint64_t inner);

// What this thread tells of; null while nobody asks.
thread_local Seen seen = nullptr;
thread_local void* listener = nullptr;

// Numbers of operations that each open one has called itself.
thread_local std::vector<uint64_t> open;

std::unique_ptr<at::ObserverContext> begun(const at::RecordFunction& call) {
  if (!open.empty()) ++open.back();
  open.push_back(0);
  if (seen != nullptr) seen(listener, call.name(), 0);
  return nullptr;
}

void ended(const at::RecordFunction& call, at::ObserverContext*) {
  // One that was open as the observer came.
  if (open.empty()) return;
  const uint64_t inner = open.back();
  open.pop_back();
  if (seen != nullptr) seen(listener, call.name(), 1 + inner);
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
  return at::addThreadLocalCallback(at::RecordFunctionCallback(begun, ended).scopes({at::RecordScope::FUNCTION}));
}

void elf_observe_end(uint64_t handle) {
  at::removeCallback(handle);
  seen = nullptr;
  listener = nullptr;
}
}
