// Exceptions as text, since none may cross into Rust.

#pragma once

#include <c10/util/Exception.h>

#include <cstring>
#include <exception>

namespace elf {

// Runs f. The text of what it throws, to be freed by elf_kernels_free; null if nothing.
template <typename F>
char* guarded(F f) {
  try {
    f();
    return nullptr;
  } catch (const c10::Error& e) {
    return strdup(e.what_without_backtrace());
  } catch (const std::exception& e) {
    return strdup(e.what());
  } catch (...) {
    return strdup("an exception of an unknown kind");
  }
}

}  // namespace elf
