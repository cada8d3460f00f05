// The types of elements, and numbers as sums of bf16: what every kernel here reads and writes with.
#pragma once

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

// What kernels take, made of src/cuda/args.rs by scripts/ptx.
#include "args.cuh"

#define DEVICE static __device__ __forceinline__

// Bits of each type, widened exactly and rounded to nearest even.
struct F32 {
  typedef u32 Bits;
  static constexpr bool IS_BF16 = false;
  DEVICE float widen(u32 x) { return __uint_as_float(x); }
  DEVICE u32 narrow(float x) { return __float_as_uint(x); }
};

// Two numbers as a pair, the first in the low half, as fragments of matrices have them.
DEVICE u32 pack(float low, float high) {
  u32 pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

struct Bf16 {
  typedef u16 Bits;
  static constexpr bool IS_BF16 = true;
  DEVICE u32 pack(float low, float high) { return ::pack(low, high); }
  DEVICE float widen(u16 x) { return __uint_as_float((u32)x << 16); }
  DEVICE u16 narrow(float x) {
    u16 y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y) : "f"(x));
    return y;
  }
};

struct F16 {
  typedef u16 Bits;
  static constexpr bool IS_BF16 = false;
  DEVICE u32 pack(float low, float high) {
    u32 pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
  }
  DEVICE float widen(u16 x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x));
    return y;
  }
  DEVICE u16 narrow(float x) {
    u16 y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y) : "f"(x));
    return y;
  }
};

// The same types by number, for kernels that read too little to be compiled for each: as `Kind` in kernels.rs.
enum Kind { KIND_F32, KIND_BF16, KIND_F16 };

DEVICE float read(const void* at, i64 index, int kind) {
  switch (kind) {
    case KIND_F32: return ((const float*)at)[index];
    case KIND_BF16: return Bf16::widen(((const u16*)at)[index]);
    default: return F16::widen(((const u16*)at)[index]);
  }
}

DEVICE void write(void* at, i64 index, int kind, float x) {
  switch (kind) {
    case KIND_F32: ((float*)at)[index] = x; break;
    case KIND_BF16: ((u16*)at)[index] = Bf16::narrow(x); break;
    default: ((u16*)at)[index] = F16::narrow(x);
  }
}

// Without branches: where all of many elements are guarded these are half of a kernel's text.
DEVICE float load_if(bool condition, const float* at) {
  float x;
  asm volatile("{.reg .pred p; setp.ne.b32 p, %1, 0; mov.b32 %0, 0; @p ld.global.f32 %0, [%2];}"
               : "=f"(x) : "r"((int)condition), "l"(__cvta_generic_to_global(at)) : "memory");
  return x;
}
DEVICE void store_if(bool condition, float* at, float x) {
  asm volatile("{.reg .pred p; setp.ne.b32 p, %1, 0; @p st.global.f32 [%2], %0;}"
               ::"f"(x), "r"((int)condition), "l"(__cvta_generic_to_global(at)) : "memory");
}
// Four neighbours at an address that is a multiple of 16.
DEVICE void load_if(bool condition, const float* at, float (&x)[4]) {
  asm volatile("{.reg .pred p; setp.ne.b32 p, %4, 0; mov.b32 %0, 0; mov.b32 %1, 0; mov.b32 %2, 0; mov.b32 %3, 0; "
               "@p ld.global.v4.f32 {%0, %1, %2, %3}, [%5];}"
               : "=&f"(x[0]), "=&f"(x[1]), "=&f"(x[2]), "=&f"(x[3])
               : "r"((int)condition), "l"(__cvta_generic_to_global(at)) : "memory");
}
DEVICE void store_if(bool condition, float* at, const float (&x)[4]) {
  asm volatile("{.reg .pred p; setp.ne.b32 p, %4, 0; @p st.global.v4.f32 [%5], {%0, %1, %2, %3};}"
               ::"f"(x[0]), "f"(x[1]), "f"(x[2]), "f"(x[3]), "r"((int)condition), "l"(__cvta_generic_to_global(at))
               : "memory");
}
// Two neighbours, of which `left` are there; zeros for the others.
DEVICE void load_pair_if(int left, const float* at, float (&x)[2]) {
  asm volatile("{.reg .pred p, q; setp.gt.s32 p, %2, 0; setp.gt.s32 q, %2, 1; mov.b32 %0, 0; mov.b32 %1, 0; "
               "@p ld.global.f32 %0, [%3]; @q ld.global.f32 %1, [%3+4];}"
               : "=&f"(x[0]), "=&f"(x[1]) : "r"(left), "l"(__cvta_generic_to_global(at)) : "memory");
}
DEVICE void store_pair_if(int left, float* at, float x, float y) {
  asm volatile("{.reg .pred p, q; setp.gt.s32 p, %2, 0; setp.gt.s32 q, %2, 1; @p st.global.f32 [%3], %0; @q st.global.f32 [%3+4], %1;}"
               ::"f"(x), "f"(y), "r"(left), "l"(__cvta_generic_to_global(at)) : "memory");
}

// Eight neighbours of a row at once, 16 or 32 bytes that are aligned.
template <class E> struct Piece {
  static constexpr int BYTES = 8 * (int)sizeof(typename E::Bits), PER_WORD = 32 / BYTES;
  u32 words[BYTES / 4];

  DEVICE Piece load(const void* at) {
    Piece piece;
#pragma unroll
    for (int i = 0; i < BYTES / 16; i++) piece.set(i, ((const uint4*)at)[i]);
    return piece;
  }
  DEVICE Piece load_shared(u32 at) {
    Piece piece;
#pragma unroll
    for (int i = 0; i < BYTES / 16; i++) {
      uint4 x;
      asm volatile("ld.shared.v4.b32 {%0,%1,%2,%3}, [%4];"
                   : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w) : "r"(at + i * 16) : "memory");
      piece.set(i, x);
    }
    return piece;
  }
  // The first `left` of them, from any address; zeros after them.
  DEVICE Piece gather(const typename E::Bits* at, int left) {
    Piece piece = {};
#pragma unroll
    for (int i = 0; i < 8; i++)
      if (i < left) piece.words[i / PER_WORD] |= (u32)at[i] << (i % PER_WORD * 16);
    return piece;
  }

  __device__ __forceinline__ void set(int i, uint4 x) {
    words[4 * i] = x.x, words[4 * i + 1] = x.y, words[4 * i + 2] = x.z, words[4 * i + 3] = x.w;
  }
  __device__ __forceinline__ void widen(float (&x)[8]) const {
#pragma unroll
    for (int i = 0; i < 8; i++) x[i] = E::widen((typename E::Bits)(words[i / PER_WORD] >> (i % PER_WORD * 16)));
  }
};

// As `Division` in kernels.rs numbers them.
enum Normaliser { NONE, GLOBAL, PER_CHUNK };

// phi, as `FeatureMap` in rule.rs, numbered by `options` in attention.rs: the same formulas in the same order.
enum FeatureMap { ELU, RELU, IDENTITY };
constexpr float LOG2_E = 1.442695041f;

// Of N numbers at once: the choice is made once.
template <int N> DEVICE void phi(float (&x)[N], int map, float eps) {
  if (map == ELU) {
#pragma unroll
    for (int i = 0; i < N; i++) {
      // exp by 2^(x log2 e): for x <= 0 the error is below 3e-7, absolutely.
      float below;
      asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(below) : "f"(x[i] * LOG2_E));
      x[i] = 1.0f + (x[i] <= 0.0f ? below - 1.0f : x[i]);
    }
  } else if (map == RELU) {
#pragma unroll
    for (int i = 0; i < N; i++) x[i] = (x[i] <= 0.0f ? 0.0f : x[i]) + eps;
  }
}

DEVICE float low(u32 pair) { return __uint_as_float(pair << 16); }
DEVICE float high(u32 pair) { return __uint_as_float(pair & 0xffff0000u); }

// Of N pairs of bf16, rounded to bf16 as well. ELU's is exp(min(x, 0)) + max(x, 0): one of the two is exact, the sum rounds
// once.
template <int N> DEVICE void phi_bf16(u32 (&x)[N], int map, float eps) {
  if (map == IDENTITY) return;
  u32 y[N];
  if (map == ELU) {
#pragma unroll
    for (int i = 0; i < N; i++) {
      u32 below;
      float a, b;
      asm("min.bf16x2 %0, %1, %2;" : "=r"(below) : "r"(x[i]), "r"(0));
      asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(a) : "f"(low(below) * LOG2_E));
      asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(b) : "f"(high(below) * LOG2_E));
      y[i] = pack(a, b);
    }
  } else {
#pragma unroll
    for (int i = 0; i < N; i++) y[i] = pack(eps, eps);
  }
#pragma unroll
  for (int i = 0; i < N; i++) {
    u32 above;
    asm("max.NaN.bf16x2 %0, %1, %2;" : "=r"(above) : "r"(x[i]), "r"(0));
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(x[i]) : "r"(y[i]), "r"(0x3f803f80), "r"(above));
  }
}

// 0, or not a number where one of N pairs of bf16 is not finite.
template <int N> DEVICE float not_finite(const u32 (&x)[N]) {
  u32 zero = 0;
#pragma unroll
  for (int i = 0; i < N; i++) asm("fma.rn.bf16x2 %0, %1, %2, %0;" : "+r"(zero) : "r"(x[i]), "r"(0));
  return low(zero) + high(zero);
}

// Two numbers as sums of TERMS bf16 each: 8 bits of each number a term, 24 with three. What is left of an infinity is
// nothing, not NaN.
template <int TERMS> DEVICE void split(float a, float b, u32 (&terms)[TERMS]) {
#pragma unroll
  for (int i = 0; i < TERMS; i++) {
    terms[i] = pack(a, b);
    if (i + 1 < TERMS) {
      a = isinf(low(terms[i])) ? 0.0f : a - low(terms[i]);
      b = isinf(high(terms[i])) ? 0.0f : b - high(terms[i]);
    }
  }
}

// Eight neighbours, or phi of them, as sums of TERMS bf16 each. `nan` becomes not a number where one is not finite.
template <bool MAP, class E, int TERMS>
DEVICE void operand(uint4 (&terms)[TERMS], const Piece<E>& piece, int map, float eps, float& nan) {
  if constexpr (E::IS_BF16 && TERMS == 1) {
    u32 x[4] = {piece.words[0], piece.words[1], piece.words[2], piece.words[3]};
    if (MAP) phi_bf16(x, map, eps);
    else nan += not_finite(x);
    terms[0] = make_uint4(x[0], x[1], x[2], x[3]);
  } else {
    float x[8];
    piece.widen(x);
    if (MAP) phi(x, map, eps);
    u32 pair[4][TERMS];
#pragma unroll
    for (int i = 0; i < 4; i++) split<TERMS>(x[2 * i], x[2 * i + 1], pair[i]);
#pragma unroll
    for (int i = 0; i < TERMS; i++) terms[i] = make_uint4(pair[0][i], pair[1][i], pair[2][i], pair[3][i]);
    // As it is multiplied: the largest numbers are infinite in bf16.
    const u32 largest[4] = {pair[0][0], pair[1][0], pair[2][0], pair[3][0]};
    if (!MAP) nan += not_finite(largest);
  }
}

// The first `left` elements of eight.
DEVICE uint4 first(uint4 x, int left) {
  const auto keep = [&](u32 pair, int left) { return left > 1 ? pair : left > 0 ? pair & 0xffffu : 0u; };
  return make_uint4(keep(x.x, left), keep(x.y, left - 2), keep(x.z, left - 4), keep(x.w, left - 6));
}
