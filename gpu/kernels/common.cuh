// Types, conversions and strided arrays, which all kernels share.
//
// No CUDA header is included, so compiling needs only NVRTC and not the headers of the toolkit.
// tests/cuda_on_cpu/shim.hpp runs the same files on a CPU: it defines ON_CPU and the names that are
// built into the CUDA compiler.
//
// The arguments of a kernel are arrays (pointers), Int or float, and nothing else. gpu/_kernels.py
// reads their names and kinds from the kernel's signature, and the launchers pass them by name.
// A stride of array x has the name x_batch, x_head, x_token or x_plane and is in elements.
#pragma once

typedef long long Int;
typedef unsigned long long Word;  // 64 coordinates of a bit plane

constexpr int LANES = 32;
constexpr unsigned ALL_LANES = 0xffffffffu;
constexpr int TILE = 64;  // tokens per tile

#ifndef ON_CPU
// Gives dynamic shared memory a name and a type. All such names in a kernel mean the same bytes.
#define DYN_SHARED(type, name)                                    \
  extern __shared__ __align__(16) unsigned char dynamic_shared[]; \
  type* const name = reinterpret_cast<type*>(dynamic_shared)

__device__ __forceinline__ float half_bits_to_float(unsigned short bits) {
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
  return x;
}

__device__ __forceinline__ unsigned short float_to_half_bits(float x) {  // rounds half to even
  unsigned short bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return bits;
}
#endif

// The 16-bit element types, as their bits.
struct Half {
  unsigned short bits;
};
struct BFloat16 {
  unsigned short bits;
};

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(Half x) { return half_bits_to_float(x.bits); }
__device__ __forceinline__ float to_float(BFloat16 x) {
  return __uint_as_float(static_cast<unsigned>(x.bits) << 16);
}

// Round x to an element type, half to even. NaN stays NaN.
__device__ __forceinline__ void from_float(float& to, float x) { to = x; }
__device__ __forceinline__ void from_float(Half& to, float x) { to.bits = float_to_half_bits(x); }
__device__ __forceinline__ void from_float(BFloat16& to, float x) {
  const unsigned bits = __float_as_uint(x);
  const unsigned half_to_even = bits + 0x7fffu + ((bits >> 16) & 1u);
  to.bits = x != x ? 0x7fffu : static_cast<unsigned short>(half_to_even >> 16);
}

// A number that rises as x falls: 2^23 - 1 for inf, up to 0xff800000 for -inf. NaN counts as -inf.
// x must not be -0, because its number is not that of 0.
__device__ __forceinline__ unsigned rank_of(float x) {
  const unsigned bits = __float_as_uint(fmaxf(x, __uint_as_float(0xff800000u)));  // NaN: -inf
  return bits >> 31 ? bits : bits ^ 0x7fffffffu;
}

// A scale byte s of codes means the float32 with the bits (s + SCALE_LEAST) << SCALE_SHIFT: 2^-16 to
// 2^16, with three bits of mantissa.
constexpr int SCALE_SHIFT = 20, SCALE_LEAST = 111 << 3;

__device__ __forceinline__ float scale_of(unsigned char byte) {
  return __uint_as_float(static_cast<unsigned>(byte + SCALE_LEAST) << SCALE_SHIFT);
}

// N elements that one instruction loads.
template <typename T, int N>
struct alignas(sizeof(T) * N) Vector {
  T x[N];
};

// The same N elements as words of 32 bits. A load of them under a condition stays one instruction.
template <typename T, int N>
struct alignas(sizeof(T) * N) Packed {
  static constexpr int PER_WORD = 4 / sizeof(T);
  unsigned words[N / PER_WORD];

  __device__ T element(int i) const {
    T x;
    if constexpr (sizeof(T) == 4) {
      x = __uint_as_float(words[i]);
    } else {
      x.bits = static_cast<unsigned short>(words[i / PER_WORD] >> (16 * (i % PER_WORD)));
    }
    return x;
  }
};
template <typename T>
struct Packed<T, 1> {
  T x;

  __device__ T element(int) const { return x; }
};

// An array (B, heads, tokens, D), its strides in elements. The last axis is contiguous.
template <typename T>
struct Strided {
  const T* data;
  Int batch_stride, head_stride, token_stride;

  __device__ const T* row(int b, int head, Int token) const {
    return data + b * batch_stride + head * head_stride + token * token_stride;
  }
};

__device__ __forceinline__ int lane_index() { return threadIdx.x % LANES; }

// The number of this warp in the whole launch. Blocks have one axis and whole warps.
__device__ __forceinline__ Int warp_index() {
  return (static_cast<Int>(blockIdx.x) * blockDim.x + threadIdx.x) / LANES;
}
