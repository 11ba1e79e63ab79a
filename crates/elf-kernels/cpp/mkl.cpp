// Which code MKL takes for fp32 products. Plain C functions for mkl.rs.

// What is in force, in the numbers that mkl.rs knows.
enum Code { kOwn = 0, kStrictAvx2 = 1, kStrictAvx512 = 2, kUsers = 3 };

#if defined(__x86_64__) && defined(__linux__)

extern "C" {

// MKL's own, under the names it has within libtorch; null in a libtorch without MKL.
int mkl_serv_cbwr_set(int) __attribute__((weak));
int mkl_serv_cbwr_get(int) __attribute__((weak));

}

namespace {

// From MKL's reference: a branch is a number, to which strictness is added.
constexpr int kStrict = 0x10000;
constexpr int kAvx2 = 10 | kStrict;
constexpr int kAvx512 = 12 | kStrict;
constexpr int kAll = -1;

bool as_if_intel = false;

}  // namespace

extern "C" {

// MKL asks this function of its own whether the processor is Intel's, and a program's function of that name stands before it.
int mkl_serv_intel_cpu_true() { return as_if_intel || __builtin_cpu_is("intel"); }

// What is in force, whoever chose it: kUsers is not among the answers.
int elf_mkl_code() {
  if (mkl_serv_cbwr_get == nullptr) return kOwn;
  switch (mkl_serv_cbwr_get(kAll)) {
    case kAvx2: return kStrictAvx2;
    case kAvx512: return kStrictAvx512;
    default: return kOwn;
  }
}

// `keep`: the user has told MKL which branch to take.
int elf_mkl_use_vector_code(int keep) {
  if (mkl_serv_cbwr_set == nullptr || mkl_serv_cbwr_get == nullptr) return kOwn;
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return kOwn;
  as_if_intel = true;
  if (keep) return kUsers;
  const bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (!wide || mkl_serv_cbwr_set(kAvx512) != 0) mkl_serv_cbwr_set(kAvx2);
  // It may have been too late, or MKL may know the processor better.
  return elf_mkl_code();
}
}

#else

extern "C" int elf_mkl_code() { return kOwn; }
extern "C" int elf_mkl_use_vector_code(int) { return kOwn; }

#endif
