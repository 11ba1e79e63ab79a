// Launches of the kernels of cuda/kernels.cuh: on a GPU by NVRTC and the driver, which are loaded where they are needed, on a
// CPU by calls.

#pragma once

#include "../cuda/kernels.cuh"

#include <ATen/ATen.h>

#include <initializer_list>

namespace elf {

enum class Kernel {
#define ELF_KERNEL_ID(name, arguments, body) name,
  ELF_KERNELS(ELF_KERNEL_ID)
#undef ELF_KERNEL_ID
};

// How a kernel's work is spread.
struct Grid {
  // Groups that have something to do, of at most `lanes` lanes each, a power of two up to 32.
  int64_t groups;
  int64_t lanes = 32;
  // Sums of each group in the memory of its block.
  int64_t columns = 0;
  // No more blocks than these: each has more rows instead.
  int64_t most_blocks = 1 << 11;
};

// Lanes, groups and blocks of a grid on a device.
struct Spread {
  int64_t width, by_block, blocks;
};

Spread spread(const at::Device& device, const Grid& grid);

// Whether the kernels run on a device: always on a CPU; on a GPU if they can be compiled, which the first call tries. Says in one
// line of warning why not.
bool has_kernels(const at::Device& device);

// The tensors of a kernel, for observers: those that it reads and those that it writes, null or undefined where there are none.
struct Touched {
  std::initializer_list<const at::Tensor*> read, written;
};

// Queues a kernel on the device's current stream. `arguments` is the kernel's structure. Throws if the driver refuses.
void launch(Kernel kernel, const at::Device& device, const void* arguments, const Grid& grid, const Touched& touched);

// Runs a kernel on the host, uncounted.
void run_on_host(Kernel kernel, const void* arguments, const Grid& grid);

}  // namespace elf
