// Kernels for GPUs, in one source for three compilers: NVRTC on the machine with the GPU, nvcc ahead of time (to see registers
// and spills), and the C++ compiler for a CPU (to test the arithmetic without a GPU).
//
// A row is treated by a group of lanes. On a GPU a group is a power of two of lanes of one warp, on a CPU it is one lane, which
// does everything. A kernel's body takes its place among the groups, and is the same for all three. No header is included,
// since NVRTC has none.
//
// Activations are float or bf16, statistics and sums float. Vectors of V numbers are read and written at once: the caller sees
// to it that rows are multiples of V.

#if defined(__CUDACC__)
#define ELF_DEVICE __device__ __forceinline__
#define ELF_UNROLL _Pragma("unroll")
#else
#include <math.h>
#include <string.h>
#define ELF_DEVICE inline
#define ELF_UNROLL
#endif

namespace elf_gpu {

using i64 = long long;
using u64 = unsigned long long;

struct bf16 {
  unsigned short bits;
};

// Where a group of lanes stands: `group` of `groups`, of which `in_block` of `by_block` share a block and its memory.
struct Place {
  i64 group, groups;
  i64 block, blocks;
  int lane, width;
  int in_block, by_block;
  // Memory of the block: `columns` sums for each of its groups.
  float* shared;
};

// ---- What differs between a GPU and a CPU.

#if defined(__CUDACC__)

ELF_DEVICE float from_bits(unsigned bits) { return __uint_as_float(bits); }

ELF_DEVICE bf16 rounded(float x) {
  bf16 y;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
  return y;
}

ELF_DEVICE float exchanged(float x, int offset, const Place& p) {
  const unsigned lanes = p.width == 32 ? 0xffffffffu : ((1u << p.width) - 1) << ((threadIdx.x & 31) & ~(p.width - 1));
  return __shfl_xor_sync(lanes, x, offset);
}

ELF_DEVICE void block_waits() { __syncthreads(); }
ELF_DEVICE int block_lane() { return threadIdx.x; }
ELF_DEVICE int block_lanes() { return blockDim.x; }

#else

ELF_DEVICE float from_bits(unsigned bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

// To the nearest, halves to even; what is no number stays none.
ELF_DEVICE bf16 rounded(float x) {
  unsigned bits;
  memcpy(&bits, &x, sizeof bits);
  if (x != x) return {static_cast<unsigned short>(bits >> 16 | 64)};
  return {static_cast<unsigned short>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

// One lane has nobody to exchange with.
ELF_DEVICE float exchanged(float x, int, const Place&) { return x; }
ELF_DEVICE void block_waits() {}
ELF_DEVICE int block_lane() { return 0; }
ELF_DEVICE int block_lanes() { return 1; }

#endif

// ---- Numbers.

// V numbers that are read and written at once, 16 bytes at a time where there are as many.
template <typename T, int V>
struct alignas(V * sizeof(T) < 16 ? V * sizeof(T) : 16) Vector {
  T numbers[V];
};

template <int V, typename T>
ELF_DEVICE Vector<T, V> taken(const T* from) {
  return *reinterpret_cast<const Vector<T, V>*>(from);
}

template <int V, typename T>
ELF_DEVICE void put(T* to, const Vector<T, V>& all) {
  *reinterpret_cast<Vector<T, V>*>(to) = all;
}

ELF_DEVICE float wide(float x) { return x; }
ELF_DEVICE float wide(bf16 x) { return from_bits(static_cast<unsigned>(x.bits) << 16); }
ELF_DEVICE void narrow(float x, float& y) { y = x; }
ELF_DEVICE void narrow(float x, bf16& y) { y = rounded(x); }

template <int V, typename T>
ELF_DEVICE void load(const T* from, float (&x)[V]) {
  const Vector<T, V> all = taken<V>(from);
  ELF_UNROLL
  for (int i = 0; i < V; ++i) x[i] = wide(all.numbers[i]);
}

template <int V, typename T>
ELF_DEVICE void store(T* to, const float (&x)[V]) {
  Vector<T, V> all;
  ELF_UNROLL
  for (int i = 0; i < V; ++i) narrow(x[i], all.numbers[i]);
  put<V>(to, all);
}

// The sum over the lanes of a group, in every lane.
ELF_DEVICE float sum(float x, const Place& p) {
  for (int offset = p.width / 2; offset > 0; offset /= 2) x += exchanged(x, offset, p);
  return x;
}

ELF_DEVICE float larger(float a, float b) { return a > b ? a : b; }

ELF_DEVICE float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// ---- Sums over all rows: each group adds to a row of its own in the block's memory, a block adds up its groups', and a second
// kernel adds up the blocks'.

// The group's sums, set to zero. Every number of a row must be added to by the same lane each time.
ELF_DEVICE float* own_sums(const Place& p, int columns) {
  for (int c = block_lane(); c < p.by_block * columns; c += block_lanes()) p.shared[c] = 0.0f;
  block_waits();
  return p.shared + p.in_block * columns;
}

ELF_DEVICE void give_sums(const Place& p, int columns, float* by_block) {
  block_waits();
  for (int c = block_lane(); c < columns; c += block_lanes()) {
    float total = 0.0f;
    for (int g = 0; g < p.by_block; ++g) total += p.shared[g * columns + c];
    by_block[p.block * columns + c] = total;
  }
}

struct Reduce {
  const float* from;  // [rows, columns]
  float* to;          // [columns]
  i64 rows, columns;
};

// A group for 1 column after the other on a CPU; on a GPU the lanes of a warp have neighbouring columns, and the warps of a
// block share the rows.
ELF_DEVICE void reduce(const Reduce& a, const Place& p) {
  for (i64 start = p.block * p.width; start < a.columns; start += p.blocks * p.width) {
    const i64 c = start + p.lane;
    float total = 0.0f;
    if (c < a.columns)
      for (i64 r = p.in_block; r < a.rows; r += p.by_block) total += a.from[r * a.columns + c];
    p.shared[p.in_block * p.width + p.lane] = total;
    block_waits();
    if (p.in_block == 0 && c < a.columns) {
      for (int g = 1; g < p.by_block; ++g) total += p.shared[g * p.width + p.lane];
      a.to[c] = total;
    }
    block_waits();
  }
}

// ---- Heads: qkv [B, N, 3, heads, dim] to q, k, v [B * heads, N, dim], queries and keys normalised, weighted and rotated.

struct Heads {
  const void* qkv;
  void *q, *k, *v;
  const float *q_weight, *k_weight, *cos, *sin;  // [dim], [N, dim / 2]
  i64 tokens, positions, heads, dim;             // tokens is B * N
  float eps, q_scale;
};

struct HeadsBack {
  const void *qkv, *dq, *dk, *dv;
  void* dqkv;
  const float *q_weight, *k_weight, *cos, *sin;
  float* sums;  // [blocks, 2, dim]
  i64 tokens, positions, heads, dim;
  float eps, q_scale;
};

// Where one head of one token lies in the joint projection and by itself.
template <typename A>
struct HeadAt {
  i64 joint, apart, part, position;

  ELF_DEVICE HeadAt(const A& a, i64 row) {
    const i64 token = row / a.heads, head = row - token * a.heads, text = token / a.positions;
    position = token - text * a.positions;
    part = a.heads * a.dim;
    joint = token * 3 * part + head * a.dim;
    apart = ((text * a.heads + head) * a.positions + position) * a.dim;
  }
};

template <typename T, int V>
ELF_DEVICE float inverse_rms(const T* x, int n, float eps, const Place& p) {
  float squares = 0.0f;
  for (int c = p.lane * V; c < n; c += p.width * V) {
    float v[V];
    load<V>(x + c, v);
    ELF_UNROLL
    for (int i = 0; i < V; ++i) squares += v[i] * v[i];
  }
  return 1.0f / sqrtf(sum(squares, p) / static_cast<float>(n) + eps);
}

template <typename T, int V>
ELF_DEVICE void turn(const T* x, T* y, const float* weight, const float* cos, const float* sin, int dim, float eps, float scale,
                     const Place& p) {
  const float factor = inverse_rms<T, V>(x, dim, eps, p) * scale;
  for (int c = p.lane * V; c < dim; c += p.width * V) {
    float v[V], w[V], re[V / 2], im[V / 2];
    load<V>(x + c, v);
    load<V>(weight + c, w);
    load<V / 2>(cos + c / 2, re);
    load<V / 2>(sin + c / 2, im);
    ELF_UNROLL
    for (int i = 0; i < V; i += 2) {
      const float a = v[i] * factor * w[i], b = v[i + 1] * factor * w[i + 1];
      v[i] = a * re[i / 2] - b * im[i / 2];
      v[i + 1] = a * im[i / 2] + b * re[i / 2];
    }
    store<V>(y + c, v);
  }
}

// A gradient turned back, from the channel c on.
template <typename T, int V>
ELF_DEVICE void load_turned_back(const T* dy, const float* cos, const float* sin, float scale, int c, float (&d)[V]) {
  float re[V / 2], im[V / 2];
  load<V>(dy + c, d);
  load<V / 2>(cos + c / 2, re);
  load<V / 2>(sin + c / 2, im);
  ELF_UNROLL
  for (int i = 0; i < V; i += 2) {
    const float a = d[i], b = d[i + 1];
    d[i] = (a * re[i / 2] + b * im[i / 2]) * scale;
    d[i + 1] = (b * re[i / 2] - a * im[i / 2]) * scale;
  }
}

template <typename T, int V>
ELF_DEVICE void turn_back(const T* dy, const T* x, T* dx, float* dw, const float* weight, const float* cos, const float* sin,
                          int dim, float eps, float scale, const Place& p) {
  const float inverse = inverse_rms<T, V>(x, dim, eps, p);
  float along = 0.0f;
  for (int c = p.lane * V; c < dim; c += p.width * V) {
    float v[V], d[V], w[V], sums[V];
    load<V>(x + c, v);
    load<V>(weight + c, w);
    load<V>(dw + c, sums);
    load_turned_back<T, V>(dy, cos, sin, scale, c, d);
    ELF_UNROLL
    for (int i = 0; i < V; ++i) {
      sums[i] += d[i] * v[i] * inverse;
      along += d[i] * w[i] * v[i];
    }
    store<V>(dw + c, sums);
  }
  const float mean = sum(along, p) * inverse * inverse / static_cast<float>(dim);
  for (int c = p.lane * V; c < dim; c += p.width * V) {
    float v[V], d[V], w[V];
    load<V>(x + c, v);
    load<V>(weight + c, w);
    load_turned_back<T, V>(dy, cos, sin, scale, c, d);
    ELF_UNROLL
    for (int i = 0; i < V; ++i) v[i] = (d[i] * w[i] - v[i] * mean) * inverse;
    store<V>(dx + c, v);
  }
}

template <typename T, int V>
ELF_DEVICE void copied(const T* from, T* to, int n, const Place& p) {
  for (int c = p.lane * V; c < n; c += p.width * V) put<V>(to + c, taken<V>(from + c));
}

template <typename T, int V>
ELF_DEVICE void heads(const Heads& a, const Place& p) {
  const int dim = static_cast<int>(a.dim);
  for (i64 row = p.group; row < a.tokens * a.heads; row += p.groups) {
    const HeadAt<Heads> at(a, row);
    const T* x = static_cast<const T*>(a.qkv) + at.joint;
    const float *cos = a.cos + at.position * (dim / 2), *sin = a.sin + at.position * (dim / 2);
    turn<T, V>(x, static_cast<T*>(a.q) + at.apart, a.q_weight, cos, sin, dim, a.eps, a.q_scale, p);
    turn<T, V>(x + at.part, static_cast<T*>(a.k) + at.apart, a.k_weight, cos, sin, dim, a.eps, 1.0f, p);
    copied<T, V>(x + 2 * at.part, static_cast<T*>(a.v) + at.apart, dim, p);
  }
}

template <typename T, int V>
ELF_DEVICE void heads_back(const HeadsBack& a, const Place& p) {
  const int dim = static_cast<int>(a.dim);
  float* sums = own_sums(p, 2 * dim);
  for (i64 row = p.group; row < a.tokens * a.heads; row += p.groups) {
    const HeadAt<HeadsBack> at(a, row);
    const T* x = static_cast<const T*>(a.qkv) + at.joint;
    T* dx = static_cast<T*>(a.dqkv) + at.joint;
    const float *cos = a.cos + at.position * (dim / 2), *sin = a.sin + at.position * (dim / 2);
    turn_back<T, V>(static_cast<const T*>(a.dq) + at.apart, x, dx, sums, a.q_weight, cos, sin, dim, a.eps, a.q_scale, p);
    turn_back<T, V>(static_cast<const T*>(a.dk) + at.apart, x + at.part, dx + at.part, sums + dim, a.k_weight, cos, sin,
                    dim, a.eps, 1.0f, p);
    copied<T, V>(static_cast<const T*>(a.dv) + at.apart, dx + 2 * at.part, dim, p);
  }
  give_sums(p, 2 * dim, a.sums);
}

// ---- SwiGLU: h [rows, 2 n] to silu(h[..n]) * h[n..].

struct SwiGlu {
  const void *h, *dy;
  void* out;  // y, or dh
  i64 rows, n;
};

template <typename T, int V>
ELF_DEVICE void swiglu(const SwiGlu& a, const Place& p) {
  const i64 vectors = a.n / V;
  for (i64 i = p.group * p.width + p.lane; i < a.rows * vectors; i += p.groups * p.width) {
    const i64 row = i / vectors, c = (i - row * vectors) * V;
    const T* h = static_cast<const T*>(a.h) + row * 2 * a.n + c;
    float gate[V], value[V];
    load<V>(h, gate);
    load<V>(h + a.n, value);
    ELF_UNROLL
    for (int j = 0; j < V; ++j) value[j] *= gate[j] * sigmoid(gate[j]);
    store<V>(static_cast<T*>(a.out) + row * a.n + c, value);
  }
}

template <typename T, int V>
ELF_DEVICE void swiglu_back(const SwiGlu& a, const Place& p) {
  const i64 vectors = a.n / V;
  for (i64 i = p.group * p.width + p.lane; i < a.rows * vectors; i += p.groups * p.width) {
    const i64 row = i / vectors, c = (i - row * vectors) * V, at = row * 2 * a.n + c;
    const T* h = static_cast<const T*>(a.h) + at;
    T* dh = static_cast<T*>(a.out) + at;
    float gate[V], value[V], dy[V];
    load<V>(h, gate);
    load<V>(h + a.n, value);
    load<V>(static_cast<const T*>(a.dy) + row * a.n + c, dy);
    ELF_UNROLL
    for (int j = 0; j < V; ++j) {
      const float open = sigmoid(gate[j]), dgate = dy[j] * value[j] * open * (1.0f + gate[j] * (1.0f - open));
      value[j] = dy[j] * gate[j] * open;
      gate[j] = dgate;
    }
    store<V>(dh, gate);
    store<V>(dh + a.n, value);
  }
}

// ---- Normalisation by the root mean square: y = x / rms(x) * weight, after x += branch if there is one.

struct RmsNorm {
  const void *x, *branch;  // branch may be null
  void *sum, *y;           // sum, where there is a branch
  const float* weight;
  float* inverse;  // [rows]
  i64 rows, n;
  float eps;
};

struct RmsNormBack {
  const void *dy, *x, *dsum;  // dsum is null, or what has come to x beside the norm
  void* dx;
  const float *weight, *inverse;
  float* sums;  // [blocks, n]
  i64 rows, n;
};

template <typename T, typename O, int V>
ELF_DEVICE void rms_norm(const RmsNorm& a, const Place& p) {
  const int n = static_cast<int>(a.n);
  for (i64 row = p.group; row < a.rows; row += p.groups) {
    const T* x = static_cast<const T*>(a.x) + row * a.n;
    if (a.branch != nullptr) {
      const T* branch = static_cast<const T*>(a.branch) + row * a.n;
      T* both = static_cast<T*>(a.sum) + row * a.n;
      for (int c = p.lane * V; c < n; c += p.width * V) {
        float v[V], w[V];
        load<V>(x + c, v);
        load<V>(branch + c, w);
        ELF_UNROLL
        for (int i = 0; i < V; ++i) v[i] += w[i];
        store<V>(both + c, v);
      }
      // Each lane reads what it wrote itself.
      x = both;
    }
    const float inverse = inverse_rms<T, V>(x, n, a.eps, p);
    for (int c = p.lane * V; c < n; c += p.width * V) {
      float v[V], w[V];
      load<V>(x + c, v);
      load<V>(a.weight + c, w);
      ELF_UNROLL
      for (int i = 0; i < V; ++i) v[i] *= inverse * w[i];
      store<V>(static_cast<O*>(a.y) + row * a.n + c, v);
    }
    if (p.lane == 0) a.inverse[row] = inverse;
  }
}

template <typename T, typename O, int V>
ELF_DEVICE void rms_norm_back(const RmsNormBack& a, const Place& p) {
  const int n = static_cast<int>(a.n);
  float* sums = own_sums(p, a.n);
  for (i64 row = p.group; row < a.rows; row += p.groups) {
    const T* x = static_cast<const T*>(a.x) + row * a.n;
    const O* dy = static_cast<const O*>(a.dy) + row * a.n;
    const float inverse = a.inverse[row];
    float along = 0.0f;
    for (int c = p.lane * V; c < n; c += p.width * V) {
      float v[V], w[V], d[V], own[V];
      load<V>(x + c, v);
      load<V>(dy + c, d);
      load<V>(a.weight + c, w);
      load<V>(sums + c, own);
      ELF_UNROLL
      for (int i = 0; i < V; ++i) {
        along += d[i] * w[i] * v[i];
        own[i] += d[i] * v[i] * inverse;
      }
      store<V>(sums + c, own);
    }
    const float mean = sum(along, p) * inverse * inverse / static_cast<float>(a.n);
    for (int c = p.lane * V; c < n; c += p.width * V) {
      float v[V], w[V], d[V];
      load<V>(x + c, v);
      load<V>(dy + c, d);
      load<V>(a.weight + c, w);
      ELF_UNROLL
      for (int i = 0; i < V; ++i) v[i] = (d[i] * w[i] - v[i] * mean) * inverse;
      if (a.dsum != nullptr) {
        load<V>(static_cast<const T*>(a.dsum) + row * a.n + c, d);
        ELF_UNROLL
        for (int i = 0; i < V; ++i) v[i] += d[i];
      }
      store<V>(static_cast<T*>(a.dx) + row * a.n + c, v);
    }
  }
  give_sums(p, a.n, a.sums);
}

// ---- Cross-entropy of logits + bias [rows, n] against ids [rows], times weights [rows].

struct CrossEntropy {
  void* logits;
  const float *bias, *weights;  // weights may be null
  const i64* ids;
  float *losses, *normaliser;  // [rows]
  float* sums;                 // [slices, n]
  i64 rows, n, slices;
};

// The losses, and the logarithm of each row's sum of exponentials.
template <typename T, int V>
ELF_DEVICE void cross_entropy(const CrossEntropy& a, const Place& p) {
  const int n = static_cast<int>(a.n);
  for (i64 row = p.group; row < a.rows; row += p.groups) {
    const T* x = static_cast<const T*>(a.logits) + row * a.n;
    float top = -3e38f, total = 0.0f;
    for (int c = p.lane * V; c < n; c += p.width * V) {
      float v[V], b[V];
      load<V>(x + c, v);
      load<V>(a.bias + c, b);
      float most = top;
      ELF_UNROLL
      for (int i = 0; i < V; ++i) most = larger(v[i] += b[i], most);
      total *= expf(top - most);
      top = most;
      ELF_UNROLL
      for (int i = 0; i < V; ++i) total += expf(v[i] - top);
    }
    float most = top;
    for (int offset = p.width / 2; offset > 0; offset /= 2) most = larger(most, exchanged(most, offset, p));
    const float normaliser = most + logf(sum(total * expf(top - most), p));
    if (p.lane == 0) {
      const i64 id = a.ids[row];
      // An id outside of the vocabulary has no loss, which the host cannot be told of now.
      const float at_id = id >= 0 && id < a.n ? wide(x[id]) + a.bias[id] : from_bits(0x7fc00000);
      a.normaliser[row] = normaliser;
      a.losses[row] = (normaliser - at_id) * (a.weights != nullptr ? a.weights[row] : 1.0f);
    }
  }
}

// The slopes in place of the logits, and their sums over each slice of the rows. A group has a slice of rows and V columns a lane.
template <typename T, int V>
ELF_DEVICE void cross_entropy_slope(const CrossEntropy& a, const Place& p) {
  const i64 across = (a.n + p.width * V - 1) / (p.width * V);
  for (i64 i = p.group; i < across * a.slices; i += p.groups) {
    const i64 slice = i / across, c = ((i - slice * across) * p.width + p.lane) * V;
    if (c >= a.n) continue;
    T* x = static_cast<T*>(a.logits) + c;
    float b[V], of_bias[V];
    load<V>(a.bias + c, b);
    ELF_UNROLL
    for (int j = 0; j < V; ++j) of_bias[j] = 0.0f;
    for (i64 row = slice; row < a.rows; row += a.slices) {
      const i64 id = a.ids[row] - c;
      const float weight = a.weights != nullptr ? a.weights[row] : 1.0f, normaliser = a.normaliser[row];
      float v[V];
      load<V>(x + row * a.n, v);
      ELF_UNROLL
      for (int j = 0; j < V; ++j) {
        v[j] = (expf(v[j] + b[j] - normaliser) - (id == j ? 1.0f : 0.0f)) * weight;
        of_bias[j] += v[j];
      }
      store<V>(x + row * a.n, v);
    }
    store<V>(a.sums + slice * a.n + c, of_bias);
  }
}

// ---- Draws by counter: number i of a row is a function of the row's key and i.

struct Draw {
  const i64* keys;  // [rows]
  float* out;       // [rows, n]
  i64 rows, n;
};

// Splitmix64's finaliser.
ELF_DEVICE u64 scrambled(u64 x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

ELF_DEVICE u64 word(i64 key, i64 place) { return scrambled(static_cast<u64>(key) + static_cast<u64>(place + 1) * 0x9e3779b97f4a7c15ull); }

constexpr float UNIT = 1.0f / (1 << 24);

ELF_DEVICE void uniform(const Draw& a, const Place& p) {
  for (i64 i = p.group * p.width + p.lane; i < a.rows * a.n; i += p.groups * p.width) {
    const i64 row = i / a.n;
    a.out[i] = static_cast<float>(word(a.keys[row], i - row * a.n) >> 40) * UNIT;
  }
}

// Each word makes two numbers (Box and Muller): one in the first half of a row, one in the second.
ELF_DEVICE void normal(const Draw& a, const Place& p) {
  const i64 words = (a.n + 1) / 2;
  for (i64 i = p.group * p.width + p.lane; i < a.rows * words; i += p.groups * p.width) {
    const i64 row = i / words, c = i - row * words;
    const u64 bits = word(a.keys[row], c);
    const float radius = sqrtf(logf((static_cast<float>(bits >> 40) + 0.5f) * UNIT) * -2.0f);
    const float angle = static_cast<float>(bits & 0xffffff) * (UNIT * 6.283185307179586f);
    float* out = a.out + row * a.n;
    out[c] = cosf(angle) * radius;
    if (words + c < a.n) out[words + c] = sinf(angle) * radius;
  }
}

}  // namespace elf_gpu

// ---- The kernels by name: ELF_KERNELS(K) calls K(name, arguments, body) for each.

#define ELF_KERNELS(K)                                                          \
  K(elf_reduce, Reduce, reduce)                                                 \
  K(elf_heads_f32, Heads, (heads<float, 8>))                                    \
  K(elf_heads_bf16, Heads, (heads<bf16, 8>))                                    \
  K(elf_heads_pairs_f32, Heads, (heads<float, 2>))                              \
  K(elf_heads_pairs_bf16, Heads, (heads<bf16, 2>))                              \
  K(elf_heads_back_f32, HeadsBack, (heads_back<float, 8>))                      \
  K(elf_heads_back_bf16, HeadsBack, (heads_back<bf16, 8>))                      \
  K(elf_heads_back_pairs_f32, HeadsBack, (heads_back<float, 2>))                \
  K(elf_heads_back_pairs_bf16, HeadsBack, (heads_back<bf16, 2>))                \
  K(elf_swiglu_f32, SwiGlu, (swiglu<float, 8>))                                 \
  K(elf_swiglu_bf16, SwiGlu, (swiglu<bf16, 8>))                                 \
  K(elf_swiglu_back_f32, SwiGlu, (swiglu_back<float, 8>))                       \
  K(elf_swiglu_back_bf16, SwiGlu, (swiglu_back<bf16, 8>))                       \
  K(elf_rms_norm_f32, RmsNorm, (rms_norm<float, float, 8>))                     \
  K(elf_rms_norm_bf16, RmsNorm, (rms_norm<bf16, bf16, 8>))                      \
  K(elf_rms_norm_f32_to_bf16, RmsNorm, (rms_norm<float, bf16, 8>))              \
  K(elf_rms_norm_bf16_to_f32, RmsNorm, (rms_norm<bf16, float, 8>))              \
  K(elf_rms_norm_back_f32, RmsNormBack, (rms_norm_back<float, float, 8>))       \
  K(elf_rms_norm_back_bf16, RmsNormBack, (rms_norm_back<bf16, bf16, 8>))        \
  K(elf_rms_norm_back_f32_to_bf16, RmsNormBack, (rms_norm_back<float, bf16, 8>)) \
  K(elf_rms_norm_back_bf16_to_f32, RmsNormBack, (rms_norm_back<bf16, float, 8>)) \
  K(elf_cross_entropy_f32, CrossEntropy, (cross_entropy<float, 2>))             \
  K(elf_cross_entropy_bf16, CrossEntropy, (cross_entropy<bf16, 2>))             \
  K(elf_cross_entropy_slope_f32, CrossEntropy, (cross_entropy_slope<float, 2>)) \
  K(elf_cross_entropy_slope_bf16, CrossEntropy, (cross_entropy_slope<bf16, 2>)) \
  K(elf_uniform, Draw, uniform)                                                 \
  K(elf_normal, Draw, normal)

#if defined(__CUDACC__)

// `width` lanes to a group; a power of two of at most 32.
#define ELF_KERNEL(name, arguments, body)                                                                            \
  extern "C" __global__ void __launch_bounds__(256, 4) name(const elf_gpu::arguments a, int width) {                    \
    using namespace elf_gpu;                                                                                         \
    extern __shared__ __align__(16) float shared[];                                                                                \
    const int by_block = blockDim.x / width, in_block = threadIdx.x / width;                                         \
    body(a, Place{static_cast<i64>(blockIdx.x) * by_block + in_block, static_cast<i64>(gridDim.x) * by_block,        \
                  blockIdx.x, gridDim.x, static_cast<int>(threadIdx.x & (width - 1)), width, in_block, by_block,     \
                  shared});                                                                                          \
  }

ELF_KERNELS(ELF_KERNEL)

#endif
