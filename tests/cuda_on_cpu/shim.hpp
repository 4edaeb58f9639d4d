// CUDA C++ on a CPU, for tests. This header defines the names that are built into NVRTC. So g++ can
// compile the .cu files of gpu/kernels/ unchanged, and worker.hpp can run them.
//
// Blocks run one after another. The threads of a block are fibers. They switch only where a thread
// waits for others: barriers, shuffles, ballots. The test chooses the order in which waiting
// threads continue. A kernel that lacks a barrier gives different results in different orders.
//
// AddressSanitizer finds wrong addresses. In addition this header refuses lanes that wait at
// different barriers, a lane outside its own mask, and deadlock. A shuffle from a lane that does
// not take part gives noise. It cannot see races between blocks, or effects of the GPU's memory
// model.
#pragma once
#define ON_CPU 1

#include <algorithm>
#include <cmath>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <vector>

#include <sys/mman.h>
#include <unistd.h>
#if !defined(__x86_64__) || defined(SHIM_UCONTEXT)
#include <ucontext.h>
#endif

// ---- keywords -----------------------------------------------------------------------------------

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __align__(n) alignas(n)
#define __launch_bounds__(...)
// One copy is enough, because blocks run one after another. machine.py finds these variables by
// their symbols, and the worker poisons them before every block. They are the only static variables
// inside functions of the unnamed namespace of the .cu file. (g++ ignores a section attribute in
// templates.)
#define __shared__ static
#define DYN_SHARED(type, name) type* const name = reinterpret_cast<type*>(shim::dynamic_shared)

// ---- vector types -------------------------------------------------------------------------------

#define SHIM_VECTORS(T, name, align2, align4)                                              \
  struct name##2 { alignas(align2) T x; T y; };                                            \
  struct name##3 { T x, y, z; };                                                           \
  struct name##4 { alignas(align4) T x; T y, z, w; };                                      \
  inline name##2 make_##name##2(T x, T y) { return {x, y}; }                               \
  inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; }                       \
  inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
SHIM_VECTORS(unsigned char, uchar, 2, 4)
SHIM_VECTORS(unsigned short, ushort, 4, 8)
SHIM_VECTORS(short, short, 4, 8)
SHIM_VECTORS(unsigned, uint, 8, 16)
SHIM_VECTORS(int, int, 8, 16)
SHIM_VECTORS(float, float, 8, 16)
SHIM_VECTORS(double, double, 16, 16)
SHIM_VECTORS(unsigned long long, ulonglong, 16, 16)
SHIM_VECTORS(long long, longlong, 16, 16)
#undef SHIM_VECTORS

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};

inline dim3 gridDim, blockDim;
inline uint3 blockIdx, threadIdx;
constexpr int warpSize = 32;

// ---- fibers -------------------------------------------------------------------------------------

namespace shim {

inline unsigned char* dynamic_shared;

[[noreturn]] inline void fail(const char* format, ...) {
  std::fprintf(stderr, "cuda_on_cpu: block (%u, %u, %u), thread %u: ", blockIdx.x, blockIdx.y,
               blockIdx.z, threadIdx.x);
  va_list arguments;
  va_start(arguments, format);
  std::vfprintf(stderr, format, arguments);
  va_end(arguments);
  std::fputc('\n', stderr);
  std::fflush(stderr);
  _exit(3);
}

// Functions of the shim itself are not checked. This makes it twice as fast.
#define SHIM_FAST __attribute__((no_sanitize("address", "undefined")))

constexpr int LANES = 32, MOST_THREADS = 1024;
constexpr size_t STACK = 256 * 1024;  // frames are large with AddressSanitizer

enum class State { ready, at_block_barrier, at_warp_barrier, done };

struct Fiber {
#if defined(__x86_64__) && !defined(SHIM_UCONTEXT)
  void* stack_pointer = nullptr;
#else
  ucontext_t context;
#endif
  bool started = false;
  State state = State::done;
  uint3 index{};
  int line = 0;                // of the barrier at which it waits
  unsigned mask = 0;           // lanes for which it waits, and itself
  unsigned long long given = 0, got = 0;  // its input and its result in an exchange of the warp
  int source = 0;              // lane of which a shuffle takes the input
};

inline Fiber fibers[MOST_THREADS];
inline Fiber scheduler;
inline unsigned waiting_lanes[MOST_THREADS / LANES];  // per warp, the lanes at a warp barrier
inline int current, threads;  // the running fiber, and the number of fibers of the block
inline void (*body)();        // the kernel, called with its arguments

#if defined(__x86_64__) && !defined(SHIM_UCONTEXT)
// Saves the registers that a function must keep, and continues on another stack.
extern "C" void shim_switch(void** from, void* to);
asm(R"(
.text
.p2align 4
.globl shim_switch
.type shim_switch, @function
shim_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size shim_switch, .-shim_switch
)");
inline void switch_to(Fiber& from, Fiber& to) {
  shim_switch(&from.stack_pointer, to.stack_pointer);
}
#else
inline void switch_to(Fiber& from, Fiber& to) { swapcontext(&from.context, &to.context); }
#endif

inline void leave() { switch_to(fibers[current], scheduler); }

// A fiber lives as long as the process. It runs one thread of each block.
inline void fiber_main() {
  for (;;) {
    body();
    fibers[current].state = State::done;
    leave();
  }
}

inline void start(Fiber& fiber) {
  // The lowest page cannot be accessed, so a stack overflow ends the process.
  void* memory = mmap(nullptr, STACK, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED || mprotect(memory, 4096, PROT_NONE)) fail("no memory for a stack");
#if defined(__x86_64__) && !defined(SHIM_UCONTEXT)
  // On entry the stack pointer is a multiple of 16, minus 8, as after a call of fiber_main.
  void** top = reinterpret_cast<void**>(static_cast<char*>(memory) + STACK) - 2;
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(&fiber_main);
  fiber.stack_pointer = top - 6;  // six registers, all zero
#else
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = memory;
  fiber.context.uc_stack.ss_size = STACK;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, &fiber_main, 0);
#endif
  fiber.started = true;
}

// ---- barriers -----------------------------------------------------------------------------------

SHIM_FAST inline int thread_of(int lane) { return current / LANES * LANES + lane; }

// Waits for all threads of the block that have not ended. `line` identifies the barrier.
inline void block_barrier(int line) {
  fibers[current].line = line;
  fibers[current].state = State::at_block_barrier;
  leave();
}

// If all threads of the block wait at a barrier or have ended, lets them continue.
inline bool release_block() {
  int line = 0, waiting = 0;
  for (int i = 0; i < threads; ++i) {
    if (fibers[i].state == State::done) continue;
    if (fibers[i].state != State::at_block_barrier) return false;
    if (line && fibers[i].line != line) {
      fail("__syncthreads() of line %d meets that of line %d", line, fibers[i].line);
    }
    line = fibers[i].line;
    ++waiting;
  }
  for (int i = 0; i < threads; ++i) {
    if (fibers[i].state == State::at_block_barrier) fibers[i].state = State::ready;
  }
  return waiting > 0;
}

// Gives `given` to the lanes of mask, waits until all of them have reached the same line, and
// returns the result that `finish` writes to `got`. The last lane calls `finish` for all lanes,
// because a lane that continues may give something new before a slow lane has read the old input.
template <typename Finish>
SHIM_FAST inline unsigned long long exchange(
    int line, unsigned mask, unsigned long long given, int source, Finish finish) {
  Fiber& self = fibers[current];
  const int lane = current % LANES;
  if (!(mask >> lane & 1)) fail("line %d: lane %d is not in its own mask %08x", line, lane, mask);
  self.line = line;
  self.mask = mask;
  self.given = given;
  self.source = source;
  self.state = State::at_warp_barrier;
  unsigned& waiting = waiting_lanes[current / LANES];
  waiting |= 1u << lane;
  bool complete = (waiting & mask) == mask;
  for (int i = 0; complete && i < LANES; ++i) {
    const Fiber& other = fibers[thread_of(i)];
    if (mask >> i & 1) complete = other.line == line && other.mask == mask;
  }
  if (!complete) {
    leave();
    return self.got;
  }
  waiting &= ~mask;
  finish(&fibers[thread_of(0)]);
  for (int i = 0; i < LANES; ++i) {
    if (mask >> i & 1) fibers[thread_of(i)].state = State::ready;
  }
  return self.got;
}

template <typename T>
inline unsigned long long to_word(T value) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
  unsigned long long word = 0;
  std::memcpy(&word, &value, sizeof(T));
  return word;
}

template <typename T>
inline T from_word(unsigned long long word) {
  T value;
  std::memcpy(&value, &word, sizeof(T));
  return value;
}

// A shuffle: each lane gives the lane from which it takes. A lane that does not take part gives
// noise.
template <typename T>
inline T shuffle(int line, unsigned mask, T value, int source) {
  return from_word<T>(exchange(line, mask, to_word(value), source, [mask](Fiber* warp) SHIM_FAST {
    for (int i = 0; i < LANES; ++i) {
      if (!(mask >> i & 1)) continue;
      const int from = warp[i].source;
      warp[i].got = mask >> from & 1 ? warp[from].given : 0xdeadbeefdeadbeefull;
    }
  }));
}

inline int segment(int width) { return current % LANES / width * width; }

template <typename T>
inline T shfl(int line, unsigned mask, T value, int from, int width = LANES) {
  return shuffle(line, mask, value, segment(width) + (from & (width - 1)));
}

template <typename T>
inline T shfl_xor(int line, unsigned mask, T value, int step, int width = LANES) {
  const int self = current % LANES, from = self ^ step;
  return shuffle(line, mask, value, from < segment(width) + width ? from : self);
}

template <typename T>
inline T shfl_up(int line, unsigned mask, T value, unsigned step, int width = LANES) {
  const int self = current % LANES, from = self - static_cast<int>(step);
  return shuffle(line, mask, value, from >= segment(width) ? from : self);
}

template <typename T>
inline T shfl_down(int line, unsigned mask, T value, unsigned step, int width = LANES) {
  const int self = current % LANES, from = self + static_cast<int>(step);
  return shuffle(line, mask, value, from < segment(width) + width ? from : self);
}

inline unsigned ballot(int line, unsigned mask, bool bit) {
  return static_cast<unsigned>(exchange(line, mask, bit, 0, [mask](Fiber* warp) SHIM_FAST {
    unsigned long long bits = 0;
    for (int i = 0; i < LANES; ++i) {
      if (mask >> i & 1) bits |= warp[i].given << i;
    }
    for (int i = 0; i < LANES; ++i) {
      if (mask >> i & 1) warp[i].got = bits;
    }
  }));
}

template <typename T>
inline unsigned match_any(int line, unsigned mask, T value) {
  return static_cast<unsigned>(exchange(line, mask, to_word(value), 0, [mask](Fiber* warp) {
    for (int i = 0; i < LANES; ++i) {
      if (!(mask >> i & 1)) continue;
      warp[i].got = 0;
      for (int other = 0; other < LANES; ++other) {
        if (mask >> other & 1 && warp[other].given == warp[i].given) warp[i].got |= 1ull << other;
      }
    }
  }));
}

template <typename T, typename Combine>
inline T reduce(int line, unsigned mask, T value, Combine combine) {
  static_assert(std::is_same_v<T, int> || std::is_same_v<T, unsigned>);
  return from_word<T>(exchange(line, mask, to_word(value), 0, [mask, combine](Fiber* warp) {
    const int first = __builtin_ctz(mask);
    T total = from_word<T>(warp[first].given);
    for (int i = first + 1; i < LANES; ++i) {
      if (mask >> i & 1) total = combine(total, from_word<T>(warp[i].given));
    }
    for (int i = 0; i < LANES; ++i) {
      if (mask >> i & 1) warp[i].got = to_word(total);
    }
  }));
}

// mma.m16n8k32 of unsigned and signed bytes, in the layout that score.cuh describes.
inline void multiply_bytes(int line, int (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  const int g = current % LANES / 4, t = current % LANES % 4;
  unsigned rows[2][8], columns[2][8];  // 32 bytes each: of the rows g, g + 8; the columns 2t, 2t + 1
  const auto from = [&](unsigned word, int lane) { return shuffle(line, ~0u, word, lane); };
  for (int i = 0; i < 8; ++i) {
    for (int half = 0; half < 2; ++half) {
      rows[half][i] = from(a[i / 4 * 2 + half], 4 * g + i % 4);
      columns[half][i] = from(b[i / 4], 4 * (2 * t + half) + i % 4);
    }
  }
  for (int i = 0; i < 32; ++i) {
    for (int j = 0; j < 4; ++j) {
      const int x = rows[j / 2][i / 4] >> 8 * (i % 4) & 255;
      const int y = static_cast<signed char>(columns[j % 2][i / 4] >> 8 * (i % 4));
      d[j] += x * y;
    }
  }
}

inline int syncthreads_count(int line, bool bit) {
  fibers[current].given = bit;
  block_barrier(line);
  int count = 0;
  for (int i = 0; i < threads; ++i) {
    if (fibers[i].state != State::done) count += static_cast<int>(fibers[i].given);
  }
  block_barrier(-line);  // no thread gives something new before all have read
  return count;
}

inline int syncthreads_and(int line, bool bit) { return syncthreads_count(line, !bit) == 0; }

}  // namespace shim

#define __syncthreads() shim::block_barrier(__LINE__)
#define __syncthreads_count(bit) shim::syncthreads_count(__LINE__, (bit))
#define __syncthreads_or(bit) (shim::syncthreads_count(__LINE__, (bit)) > 0)
#define __syncthreads_and(bit) shim::syncthreads_and(__LINE__, (bit))
#define SHIM_FIRST(first, ...) first
#define __syncwarp(...) \
  ((void)shim::ballot(__LINE__, SHIM_FIRST(__VA_ARGS__ __VA_OPT__(, ) 0xffffffffu), false))
#define __shfl_sync(...) shim::shfl(__LINE__, __VA_ARGS__)
#define __shfl_xor_sync(...) shim::shfl_xor(__LINE__, __VA_ARGS__)
#define __shfl_up_sync(...) shim::shfl_up(__LINE__, __VA_ARGS__)
#define __shfl_down_sync(...) shim::shfl_down(__LINE__, __VA_ARGS__)
#define __ballot_sync(mask, bit) shim::ballot(__LINE__, (mask), (bit))
#define __any_sync(mask, bit) (shim::ballot(__LINE__, (mask), (bit)) != 0)
#define __all_sync(mask, bit) (shim::ballot(__LINE__, (mask), !(bit)) == 0)
#define __match_any_sync(mask, value) shim::match_any(__LINE__, (mask), (value))
#define __reduce_add_sync(mask, value) \
  shim::reduce(__LINE__, (mask), (value), [](auto a, auto b) { return a + b; })
#define __reduce_min_sync(mask, value) \
  shim::reduce(__LINE__, (mask), (value), [](auto a, auto b) { return a < b ? a : b; })
#define __reduce_max_sync(mask, value) \
  shim::reduce(__LINE__, (mask), (value), [](auto a, auto b) { return a > b ? a : b; })
#define __reduce_or_sync(mask, value) \
  shim::reduce(__LINE__, (mask), (value), [](auto a, auto b) { return a | b; })

inline void __threadfence() {}
inline void __threadfence_block() {}

// ---- arithmetic ---------------------------------------------------------------------------------
// With -ffp-contract=off g++ keeps IEEE rounding, NaN and subnormal numbers.

inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __fsqrt_rn(float a) { return std::sqrt(a); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }

template <typename A, typename B>
inline auto min(A a, B b) { return std::min<std::common_type_t<A, B>>(a, b); }
template <typename A, typename B>
inline auto max(A a, B b) { return std::max<std::common_type_t<A, B>>(a, b); }

// Of the two halves of 16 bits.
inline unsigned __vminu2(unsigned a, unsigned b) {
  return min(a >> 16, b >> 16) << 16 | min(a & 0xffff, b & 0xffff);
}
inline unsigned __vmaxu2(unsigned a, unsigned b) {
  return max(a >> 16, b >> 16) << 16 | max(a & 0xffff, b & 0xffff);
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned by) {
  const unsigned long long both = static_cast<unsigned long long>(high) << 32 | low;
  return static_cast<unsigned>(both << by % 32 >> 32);
}

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz(static_cast<unsigned>(x)) : 32; }
inline int __clzll(long long x) {
  return x ? __builtin_clzll(static_cast<unsigned long long>(x)) : 64;
}
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }

inline unsigned __float_as_uint(float x) { return shim::from_word<unsigned>(shim::to_word(x)); }
inline int __float_as_int(float x) { return shim::from_word<int>(shim::to_word(x)); }
inline float __uint_as_float(unsigned x) { return shim::from_word<float>(x); }
inline float __int_as_float(int x) { return shim::from_word<float>(shim::to_word(x)); }
inline int __float2int_rn(float x) { return static_cast<int>(std::nearbyint(x)); }

inline float half_bits_to_float(unsigned short bits) {
  // Computed with numbers, because not every g++ has _Float16.
  const int exponent = bits >> 10 & 31;
  const float fraction = static_cast<float>(bits & 1023);
  float size = exponent == 0 ? std::ldexp(fraction, -24)
                             : std::ldexp(fraction + 1024.0f, exponent - 25);
  if (exponent == 31) size = bits & 1023 ? NAN : INFINITY;
  return bits >> 15 ? -size : size;
}

inline unsigned short float_to_half_bits(float x) {
  const unsigned short sign = std::signbit(x) ? 0x8000 : 0;
  if (std::isnan(x)) return 0x7fff;
  const float size = std::fabs(x);
  if (size >= 65520.0f) return sign | 0x7c00;  // halfway to 65536, which is too large
  if (size < 6.103515625e-05f) {  // 2**-14: subnormal, in steps of 2**-24
    return sign | static_cast<unsigned short>(std::nearbyint(std::ldexp(size, 24)));
  }
  int exponent;
  const float fraction = std::frexp(size, &exponent);  // 0.5 <= fraction < 1
  const int rounded = static_cast<int>(std::nearbyint(std::ldexp(fraction, 11)));  // 1024 to 2048
  return sign | static_cast<unsigned short>(((exponent + 13) << 10) + rounded);
}

// ---- memory -------------------------------------------------------------------------------------

template <typename T> inline T __ldg(const T* p) { return *p; }
template <typename T> inline T __ldcg(const T* p) { return *p; }
template <typename T> inline T __ldcs(const T* p) { return *p; }
template <typename T> inline void __stcs(T* p, T value) { *p = value; }
template <typename T> inline void __stcg(T* p, T value) { *p = value; }

namespace shim {
template <typename T, typename Change>
inline T change(T* p, Change f) {
  const T old = *p;
  *p = f(old);
  return old;
}
}  // namespace shim

template <typename T, typename V>
inline T atomicAdd(T* p, V v) { return shim::change(p, [v](T old) { return static_cast<T>(old + v); }); }
template <typename T, typename V>
inline T atomicSub(T* p, V v) { return shim::change(p, [v](T old) { return static_cast<T>(old - v); }); }
template <typename T, typename V>
inline T atomicMin(T* p, V v) { return shim::change(p, [v](T old) { return min(old, static_cast<T>(v)); }); }
template <typename T, typename V>
inline T atomicMax(T* p, V v) { return shim::change(p, [v](T old) { return max(old, static_cast<T>(v)); }); }
template <typename T, typename V>
inline T atomicOr(T* p, V v) { return shim::change(p, [v](T old) { return static_cast<T>(old | v); }); }
template <typename T, typename V>
inline T atomicAnd(T* p, V v) { return shim::change(p, [v](T old) { return static_cast<T>(old & v); }); }
template <typename T, typename V>
inline T atomicExch(T* p, V v) { return shim::change(p, [v](T) { return static_cast<T>(v); }); }
template <typename T, typename C, typename V>
inline T atomicCAS(T* p, C compare, V v) {
  return shim::change(p, [=](T old) { return old == static_cast<T>(compare) ? static_cast<T>(v) : old; });
}
inline unsigned atomicInc(unsigned* p, unsigned top) {
  return shim::change(p, [top](unsigned old) { return old >= top ? 0 : old + 1; });
}
