// Makes process groups of NCCL. Compiled apart from everything else (`cargo xtask nccl`), because it needs nccl.h and the
// headers of the CUDA runtime; loaded at run time, into a process that has loaded libtorch_cuda already.

#include <cstdlib>
#include <cstring>

#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>

#include "c10d.h"

extern "C" ElfGroup* elf_c10d_nccl(
    const ElfStore* store, int rank, int world, int64_t timeout_ms, int device, char** error) {
  ElfGroup* made = nullptr;
  elf_guard(error, [&] {
    auto options = c10d::ProcessGroupNCCL::Options::create();
    options->timeout = std::chrono::milliseconds(timeout_ms);
    auto group = c10::make_intrusive<c10d::ProcessGroupNCCL>(store->inner, rank, world, options);
    // Collectives are made for this rank's GPU from the beginning; a barrier has no tensor to tell it from.
    group->setBoundDeviceId(at::Device(at::kCUDA, static_cast<at::DeviceIndex>(device)));
    made = new ElfGroup{group};
  });
  return made;
}
