// What c10d.cpp and the separately built nccl.cpp share. Everything is extern "C"; no exception leaves a function.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>

#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>

struct ElfStore {
  c10::intrusive_ptr<c10d::Store> inner;
};

struct ElfGroup {
  c10::intrusive_ptr<c10d::Backend> inner;
};

// Copies a text for the caller, who frees it with elf_c10d_free.
inline char* elf_text(const char* text) {
  size_t length = std::strlen(text) + 1;
  char* copy = static_cast<char*>(std::malloc(length));
  if (copy) std::memcpy(copy, text, length);
  return copy;
}

// Runs f; puts what went wrong into *error and returns false.
template <typename F>
bool elf_guard(char** error, F f) {
  try {
    f();
    return true;
  } catch (const c10::Error& e) {
    *error = elf_text(e.what_without_backtrace());
  } catch (const std::exception& e) {
    *error = elf_text(e.what());
  } catch (...) {
    *error = elf_text("an unknown C++ exception");
  }
  return false;
}
