// Which of libtorch's operations a thread calls, as libtorch's own profiler sees them. Plain C functions for observe.rs.

#include <ATen/record_function.h>

#include <cstdint>

namespace {

using Seen = void (*)(void*, const char*);

// What this thread tells of; null while nobody asks.
thread_local Seen seen = nullptr;
thread_local void* listener = nullptr;

std::unique_ptr<at::ObserverContext> begun(const at::RecordFunction& call) {
  if (seen != nullptr) seen(listener, call.name());
  return nullptr;
}

}  // namespace

extern "C" {

// `told` is called with the name of each operation that this thread begins, until elf_observe_end is called with the
// result. One observer a thread: it returns 0 if there is one already.
uint64_t elf_observe_begin(void* state, Seen told) {
  if (seen != nullptr) return 0;
  seen = told;
  listener = state;
  return at::addThreadLocalCallback(at::RecordFunctionCallback(begun).scopes({at::RecordScope::FUNCTION}));
}

void elf_observe_end(uint64_t handle) {
  at::removeCallback(handle);
  seen = nullptr;
  listener = nullptr;
}
}
