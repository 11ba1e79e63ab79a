// The bridge to c10d: stores, process groups and gradient hooks for Rust.
//
// Ownership: every function that gives a pointer gives it away; it is freed by the *_free function of its kind. Tensors
// (at::Tensor*) are borrowed for the call; what an operation needs longer, c10d counts references to.

#include <cstdlib>
#include <cstring>

#include <c10/util/Logging.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>
#include <torch/csrc/distributed/c10d/FileStore.hpp>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include "c10d.h"

C10_DECLARE_int(caffe2_log_level);

using std::chrono::milliseconds;

struct ElfWork {
  c10::intrusive_ptr<c10d::Work> inner;
};

namespace {

at::Tensor& tensor(void* pointer) {
  return *static_cast<at::Tensor*>(pointer);
}

std::vector<uint8_t> bytes(const uint8_t* data, size_t length) {
  return std::vector<uint8_t>(data, data + length);
}

void give(const std::vector<uint8_t>& value, uint8_t** data, size_t* length) {
  *data = static_cast<uint8_t*>(std::malloc(value.size() + 1));
  if (!*data) throw std::bad_alloc();
  if (!value.empty()) std::memcpy(*data, value.data(), value.size());
  *length = value.size();
}

class Callback : public torch::autograd::PostAccumulateGradHook {
 public:
  Callback(void (*call)(void*, size_t), void* context, size_t index)
      : call_(call), context_(context), index_(index) {}
  void operator()(const torch::autograd::Variable&) override {
    call_(context_, index_);
  }

 private:
  void (*call_)(void*, size_t);
  void* context_;
  size_t index_;
};

} // namespace

extern "C" {

void elf_c10d_free(void* pointer) {
  std::free(pointer);
}

// Errors reach the caller as texts; the same on standard error, with stack traces, would only bury them.
void elf_c10d_hush() {
  FLAGS_caffe2_log_level = c10::GLOG_FATAL;
}

// ---- stores ----

ElfStore* elf_c10d_tcp_store(
    const char* host, uint16_t port, bool server, int listener, int64_t timeout_ms, uint16_t* bound_port,
    char** error) {
  ElfStore* made = nullptr;
  elf_guard(error, [&] {
    c10d::TCPStoreOptions options;
    options.port = port;
    options.isServer = server;
    if (listener >= 0) options.masterListenFd = listener;
    options.waitWorkers = false;
    options.timeout = milliseconds(timeout_ms);
    auto store = c10::make_intrusive<c10d::TCPStore>(std::string(host), options);
    *bound_port = store->getPort();
    made = new ElfStore{store};
  });
  return made;
}

ElfStore* elf_c10d_file_store(const char* path, int64_t timeout_ms, char** error) {
  ElfStore* made = nullptr;
  elf_guard(error, [&] {
    // Without a number of workers the file is left to its owner to remove.
    auto store = c10::make_intrusive<c10d::FileStore>(std::string(path), -1);
    store->setTimeout(milliseconds(timeout_ms));
    made = new ElfStore{store};
  });
  return made;
}

ElfStore* elf_c10d_prefix_store(const ElfStore* store, const char* prefix, char** error) {
  ElfStore* made = nullptr;
  elf_guard(error, [&] {
    made = new ElfStore{c10::make_intrusive<c10d::PrefixStore>(std::string(prefix), store->inner)};
  });
  return made;
}

void elf_c10d_store_free(ElfStore* store) {
  char* error = nullptr;
  elf_guard(&error, [&] { delete store; });
  std::free(error);
}

bool elf_c10d_store_set(ElfStore* store, const char* key, const uint8_t* data, size_t length, char** error) {
  return elf_guard(error, [&] { store->inner->set(key, bytes(data, length)); });
}

bool elf_c10d_store_get(ElfStore* store, const char* key, uint8_t** data, size_t* length, char** error) {
  return elf_guard(error, [&] { give(store->inner->get(key), data, length); });
}

bool elf_c10d_store_set_once(
    ElfStore* store, const char* key, const uint8_t* wanted, size_t wanted_length, uint8_t** data, size_t* length,
    char** error) {
  return elf_guard(
      error, [&] { give(store->inner->compareSet(key, {}, bytes(wanted, wanted_length)), data, length); });
}

bool elf_c10d_store_add(ElfStore* store, const char* key, int64_t amount, int64_t* sum, char** error) {
  return elf_guard(error, [&] { *sum = store->inner->add(key, amount); });
}

bool elf_c10d_store_has(ElfStore* store, const char* key, bool* there, char** error) {
  return elf_guard(error, [&] { *there = store->inner->check({key}); });
}

bool elf_c10d_store_wait(ElfStore* store, const char* key, int64_t timeout_ms, char** error) {
  return elf_guard(error, [&] { store->inner->wait({key}, milliseconds(timeout_ms)); });
}

// ---- process groups ----

ElfGroup* elf_c10d_gloo(
    const ElfStore* store, int rank, int world, int64_t timeout_ms, const char* interface_name, const char* host,
    int threads, char** error) {
  ElfGroup* made = nullptr;
  elf_guard(error, [&] {
    auto options = c10d::ProcessGroupGloo::Options::create(milliseconds(timeout_ms));
    options->threads = threads;
    if (interface_name) {
      options->devices.push_back(c10d::ProcessGroupGloo::createDeviceForInterface(interface_name));
    } else if (host) {
      options->devices.push_back(c10d::ProcessGroupGloo::createDeviceForHostname(host));
    } else {
      options->devices.push_back(c10d::ProcessGroupGloo::createDefaultDevice());
    }
    made = new ElfGroup{c10::make_intrusive<c10d::ProcessGroupGloo>(store->inner, rank, world, options)};
  });
  return made;
}

void elf_c10d_group_free(ElfGroup* group) {
  char* error = nullptr;
  elf_guard(&error, [&] { delete group; });
  std::free(error);
}

ElfWork* elf_c10d_broadcast(ElfGroup* group, void* value, int root, char** error) {
  ElfWork* work = nullptr;
  elf_guard(error, [&] {
    std::vector<at::Tensor> tensors{tensor(value)};
    c10d::BroadcastOptions options;
    options.rootRank = root;
    work = new ElfWork{group->inner->broadcast(tensors, options)};
  });
  return work;
}

ElfWork* elf_c10d_all_reduce_sum(ElfGroup* group, void* value, char** error) {
  ElfWork* work = nullptr;
  elf_guard(error, [&] {
    std::vector<at::Tensor> tensors{tensor(value)};
    work = new ElfWork{group->inner->allreduce(tensors, c10d::AllreduceOptions())};
  });
  return work;
}

ElfWork* elf_c10d_all_gather(ElfGroup* group, void* all, void* own, char** error) {
  ElfWork* work = nullptr;
  elf_guard(error, [&] {
    work = new ElfWork{group->inner->_allgather_base(tensor(all), tensor(own), c10d::AllgatherOptions())};
  });
  return work;
}

ElfWork* elf_c10d_reduce_scatter_sum(ElfGroup* group, void* own, void* all, char** error) {
  ElfWork* work = nullptr;
  elf_guard(error, [&] {
    work = new ElfWork{group->inner->_reduce_scatter_base(tensor(own), tensor(all), c10d::ReduceScatterOptions())};
  });
  return work;
}

ElfWork* elf_c10d_barrier(ElfGroup* group, char** error) {
  ElfWork* work = nullptr;
  elf_guard(error, [&] { work = new ElfWork{group->inner->barrier(c10d::BarrierOptions())}; });
  return work;
}

bool elf_c10d_work_wait(ElfWork* work, char** error) {
  return elf_guard(error, [&] {
    if (!work->inner->wait()) throw std::runtime_error("the operation did not succeed");
  });
}

bool elf_c10d_work_done(ElfWork* work) {
  bool done = false;
  char* error = nullptr;
  elf_guard(&error, [&] { done = work->inner->isCompleted(); });
  std::free(error);
  return done;
}

void elf_c10d_work_free(ElfWork* work) {
  char* error = nullptr;
  elf_guard(&error, [&] { delete work; });
  std::free(error);
}

// ---- gradient hooks ----

// From now on `call(context, index)` is called on the thread of the backward pass each time that this leaf's gradient has
// been accumulated.
bool elf_c10d_watch_gradient(
    void* leaf, size_t index, void (*call)(void*, size_t), void* context, char** error) {
  return elf_guard(error, [&] {
    torch::autograd::impl::set_post_acc_grad_hooks(
        tensor(leaf), std::make_unique<Callback>(call, context, index));
  });
}

void elf_c10d_unwatch_gradient(void* leaf) {
  char* error = nullptr;
  elf_guard(&error, [&] { torch::autograd::impl::set_post_acc_grad_hooks(tensor(leaf), nullptr); });
  std::free(error);
}

} // extern "C"
