// The driver and NVRTC behind launch.h. Neither is linked: a program without a GPU never asks for them.

#include "launch.h"

#include "elf_kernels_source.h"

#include <ATen/Parallel.h>
#include <ATen/record_function.h>
#include <c10/core/DeviceGuard.h>
#include <dlfcn.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <mutex>
#include <string>
#include <vector>

namespace elf {

namespace {

namespace fs = std::filesystem;
using elf_gpu::Place;

constexpr int THREADS = 256;
// Bytes of a block's memory that every GPU grants without being asked.
constexpr int64_t SHARED = 48 << 10;
// Blocks of a grid on a CPU.
constexpr int64_t HOST_BLOCKS = 64;

struct Entry {
  const char* name;
  void (*on_host)(const void*, const Place&);
};

constexpr Entry ENTRIES[] = {
#define ELF_ENTRY(name, arguments, body)                                                       \
  {#name, [](const void* a, const Place& p) {                                                  \
     using namespace elf_gpu;                                                                  \
     body(*static_cast<const elf_gpu::arguments*>(a), p);                                      \
   }},
    ELF_KERNELS(ELF_ENTRY)
#undef ELF_ENTRY
};
constexpr size_t COUNT = std::size(ENTRIES);

[[noreturn]] void fail(const std::string& what) { throw std::runtime_error(what); }

template <typename F>
F* symbol(void* library, const char* name) {
  void* found = dlsym(library, name);
  if (found == nullptr) fail(std::string(name) + " is missing");
  return reinterpret_cast<F*>(found);
}

void* library(const std::vector<std::string>& names) {
  for (const auto& name : names)
    if (void* found = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL)) return found;
  fail(names.front() + " cannot be loaded");
}

// The part of the driver's interface that launches take.
struct Driver {
  int (*get_device)(int*, int);
  int (*get_attribute)(int*, int, int);
  int (*get_context)(void**);
  int (*retain_context)(void**, int);
  int (*set_context)(void*);
  int (*load_module)(void**, const void*);
  int (*get_function)(void**, void*, const char*);
  int (*launch)(void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void*, void**, void**);
  int (*name_of)(int, const char**);
  // Of libtorch.
  int (*current_stream)(int32_t, void**);

  Driver() {
    void* cuda = library({"libcuda.so.1"});
    get_device = symbol<int(int*, int)>(cuda, "cuDeviceGet");
    get_attribute = symbol<int(int*, int, int)>(cuda, "cuDeviceGetAttribute");
    get_context = symbol<int(void**)>(cuda, "cuCtxGetCurrent");
    retain_context = symbol<int(void**, int)>(cuda, "cuDevicePrimaryCtxRetain");
    set_context = symbol<int(void*)>(cuda, "cuCtxSetCurrent");
    load_module = symbol<int(void**, const void*)>(cuda, "cuModuleLoadData");
    get_function = symbol<int(void**, void*, const char*)>(cuda, "cuModuleGetFunction");
    launch = symbol<int(void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void*, void**, void**)>(
        cuda, "cuLaunchKernel");
    name_of = symbol<int(int, const char**)>(cuda, "cuGetErrorName");
    current_stream = symbol<int(int32_t, void**)>(RTLD_DEFAULT, "aoti_torch_get_current_cuda_stream");
  }

  void check(int status, const char* what) const {
    if (status == 0) return;
    const char* name = nullptr;
    name_of(status, &name);
    fail(std::string(what) + " fails with " + (name != nullptr ? name : std::to_string(status)));
  }
};

const Driver& driver() {
  static const Driver one;
  return one;
}

// Compiles the source for an architecture such as sm_90.
struct Compiler {
  void* nvrtc;
  std::string version;

  Compiler() {
    std::vector<std::string> names;
    // Beside libtorch's own libraries, as pip installs them.
    Dl_info info;
    if (dladdr(dlsym(RTLD_DEFAULT, "aoti_torch_get_current_cuda_stream"), &info) != 0 && info.dli_fname != nullptr)
      for (const char* part : {"nvidia/cu13/lib/libnvrtc.so.13", "nvidia/cuda_nvrtc/lib/libnvrtc.so.12"})
        names.push_back(fs::path(info.dli_fname).parent_path().parent_path().parent_path() / part);
    names.insert(names.begin(), {"libnvrtc.so.13"});
    names.push_back("libnvrtc.so.12");
    nvrtc = library(names);
    int major = 0, minor = 0;
    symbol<int(int*, int*)>(nvrtc, "nvrtcVersion")(&major, &minor);
    version = std::to_string(major) + "." + std::to_string(minor);
  }

  std::string compiled(const std::string& architecture) const {
    void* program = nullptr;
    const auto create = symbol<int(void**, const char*, const char*, int, const char* const*, const char* const*)>(
        nvrtc, "nvrtcCreateProgram");
    if (create(&program, KERNELS_SOURCE, "kernels.cuh", 0, nullptr, nullptr) != 0) fail("NVRTC takes no program");
    const std::string target = "--gpu-architecture=" + architecture;
    const char* options[] = {target.c_str(), "--std=c++17"};
    if (symbol<int(void*, int, const char* const*)>(nvrtc, "nvrtcCompileProgram")(program, 2, options) != 0) {
      size_t size = 0;
      symbol<int(void*, size_t*)>(nvrtc, "nvrtcGetProgramLogSize")(program, &size);
      std::string log(size, ' ');
      symbol<int(void*, char*)>(nvrtc, "nvrtcGetProgramLog")(program, log.data());
      fail("NVRTC refuses the kernels for " + architecture + ": " + log.substr(0, log.find('\n')));
    }
    size_t size = 0;
    symbol<int(void*, size_t*)>(nvrtc, "nvrtcGetCUBINSize")(program, &size);
    std::string image(size, '\0');
    symbol<int(void*, char*)>(nvrtc, "nvrtcGetCUBIN")(program, image.data());
    symbol<int(void**)>(nvrtc, "nvrtcDestroyProgram")(&program);
    return image;
  }
};

// FNV-1a.
uint64_t hash_of(const std::string& text) {
  uint64_t h = 0xcbf29ce484222325;
  for (unsigned char c : text) h = (h ^ c) * 0x100000001b3;
  return h;
}

std::string hex(uint64_t x) {
  char text[17];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(x));
  return text;
}

// The folder of compiled kernels; empty if the user has none.
fs::path cache_folder() {
  const auto named = [](const char* variable) {
    const char* value = std::getenv(variable);
    return fs::path(value != nullptr ? value : "");
  };
  if (const auto own = named("ELF_CACHE_DIR"); !own.empty()) return own / "kernels";
  if (const auto all = named("XDG_CACHE_HOME"); !all.empty()) return all / "elf" / "kernels";
  if (const auto home = named("HOME"); !home.empty()) return home / ".cache" / "elf" / "kernels";
  return {};
}

// The file's content behind its hash; empty if there is none, or it is damaged.
std::string read(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  const std::string all((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  if (all.size() <= 16 || all.compare(0, 16, hex(hash_of(all.substr(16)))) != 0) return "";
  return all.substr(16);
}

// Writes aside and renames, so that nobody reads half a file. Without a place to write, the next program compiles again.
void write(const fs::path& path, const std::string& content) {
  std::error_code ignored;
  fs::create_directories(path.parent_path(), ignored);
  const fs::path aside = path.string() + "." + std::to_string(getpid());
  std::ofstream file(aside, std::ios::binary);
  file << hex(hash_of(content)) << content;
  file.close();
  if (file)
    fs::rename(aside, path, ignored);
  else
    fs::remove(aside, ignored);
}

std::string image(const std::string& architecture) {
  const Compiler compiler;
  const auto key = hex(hash_of(std::string(KERNELS_SOURCE) + "\n" + architecture + "\n" + compiler.version));
  const fs::path folder = cache_folder(), path = folder / ("kernels-" + key + ".cubin");
  if (!folder.empty())
    if (const auto kept = read(path); !kept.empty()) return kept;
  const auto made = compiler.compiled(architecture);
  if (!folder.empty()) write(path, made);
  return made;
}

// The kernels on one GPU, whose context is current.
struct Loaded {
  std::array<void*, COUNT> functions{};

  explicit Loaded(int index) {
    const Driver& cuda = driver();
    int device = 0, major = 0, minor = 0;
    cuda.check(cuda.get_device(&device, index), "cuDeviceGet");
    cuda.check(cuda.get_attribute(&major, 75, device), "cuDeviceGetAttribute");
    cuda.check(cuda.get_attribute(&minor, 76, device), "cuDeviceGetAttribute");
    if (major < 8) fail("kernels are for GPUs of compute capability 8.0 and above");
    void* module = nullptr;
    const auto code = image("sm_" + std::to_string(10 * major + minor));
    cuda.check(cuda.load_module(&module, code.data()), "cuModuleLoadData");
    for (size_t i = 0; i < COUNT; ++i)
      cuda.check(cuda.get_function(&functions[i], module, ENTRIES[i].name), "cuModuleGetFunction");
  }
};

// Makes the device's context current on this thread; libtorch's guard does so except on a thread that is new to CUDA.
void enter(const at::Device& device) {
  const Driver& cuda = driver();
  void* context = nullptr;
  cuda.check(cuda.get_context(&context), "cuCtxGetCurrent");
  if (context != nullptr) return;
  int number = 0;
  cuda.check(cuda.get_device(&number, device.index()), "cuDeviceGet");
  cuda.check(cuda.retain_context(&context, number), "cuDevicePrimaryCtxRetain");
  cuda.check(cuda.set_context(context), "cuCtxSetCurrent");
}

// Null if the kernels cannot run on that GPU.
const Loaded* loaded(const at::Device& device) {
  static std::mutex lock;
  static std::map<int, std::unique_ptr<Loaded>> all;
  const std::lock_guard<std::mutex> alone(lock);
  const auto known = all.find(device.index());
  if (known != all.end()) return known->second.get();
  auto& one = all[device.index()];
  const char* asked = std::getenv("ELF_OWN_KERNELS");
  if (asked != nullptr && std::string(asked) == "0") return nullptr;
  try {
    const c10::DeviceGuard on_device(device);
    enter(device);
    one = std::make_unique<Loaded>(device.index());
  } catch (const std::exception& e) {
    std::fprintf(stderr, "warning: own kernels are not used on this GPU, libtorch's are: %s\n", e.what());
  }
  return one.get();
}

}  // namespace

Spread spread(const at::Device& device, const Grid& grid) {
  const int64_t groups = std::max<int64_t>(grid.groups, 1);
  if (device.is_cpu()) return {1, 1, std::min(groups, std::min(grid.most_blocks, HOST_BLOCKS))};
  int64_t by_block = THREADS / grid.lanes;
  if (grid.columns > 0) by_block = std::min(by_block, SHARED / (grid.columns * 4));
  TORCH_CHECK(by_block > 0, "a row is longer than the kernel's memory");
  return {grid.lanes, by_block, std::min((groups + by_block - 1) / by_block, grid.most_blocks)};
}

bool has_kernels(const at::Device& device) {
  return device.is_cpu() || (device.is_cuda() && loaded(device) != nullptr);
}

void run_on_host(Kernel kernel, const void* arguments, const Grid& grid) {
  const auto& entry = ENTRIES[static_cast<size_t>(kernel)];
  const Spread s = spread(at::kCPU, grid);
  at::parallel_for(0, s.blocks, 1, [&](int64_t begin, int64_t end) {
    std::vector<float> shared(static_cast<size_t>(std::max<int64_t>(grid.columns, 1)));
    for (int64_t block = begin; block < end; ++block)
      entry.on_host(arguments, Place{block, s.blocks, block, s.blocks, 0, 1, 0, 1, shared.data()});
  });
}

void launch(Kernel kernel, const at::Device& device, const void* arguments, const Grid& grid, const Touched& touched) {
  const auto& entry = ENTRIES[static_cast<size_t>(kernel)];
  at::RecordFunction record(at::RecordScope::FUNCTION);
  if (record.isActive()) {
    const auto values = [](const auto& tensors) {
      std::vector<c10::IValue> all;
      for (const at::Tensor* t : tensors)
        if (t != nullptr && t->defined()) all.emplace_back(*t);
      return all;
    };
    const std::vector<c10::IValue> read = values(touched.read);
    record.before(entry.name, c10::ArrayRef<const c10::IValue>(read.data(), read.size()));
    record.setOutputs(values(touched.written));
  }
  if (device.is_cpu()) return run_on_host(kernel, arguments, grid);
  const c10::DeviceGuard on_device(device);
  enter(device);
  const Loaded* kernels = loaded(device);
  TORCH_CHECK(kernels != nullptr, "there are no kernels for this GPU");
  const Driver& cuda = driver();
  void* stream = nullptr;
  cuda.check(cuda.current_stream(device.index(), &stream), "the current stream");
  const Spread s = spread(device, grid);
  int width = static_cast<int>(s.width);
  void* parameters[] = {const_cast<void*>(arguments), &width};
  cuda.check(cuda.launch(kernels->functions[static_cast<size_t>(kernel)], s.blocks, 1, 1, s.by_block * s.width, 1, 1,
                         s.by_block * grid.columns * 4, stream, parameters, nullptr),
             entry.name);
}

}  // namespace elf

extern "C" {

int elf_has_kernels(int cuda_index) {
  return elf::has_kernels(cuda_index < 0 ? at::Device(at::kCPU) : at::Device(at::kCUDA, cuda_index));
}

// The kernels compiled for an architecture, from the cache if they are there: the number of bytes, or 0 with the reason as text.
size_t elf_compile_kernels(const char* architecture, char** reason) {
  try {
    return elf::image(architecture).size();
  } catch (const std::exception& e) {
    *reason = strdup(e.what());
    return 0;
  }
}
}
