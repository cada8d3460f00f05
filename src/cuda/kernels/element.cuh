// The types of elements, and numbers as sums of bf16: what every kernel here reads and writes with.
#pragma once

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

#define DEVICE static __device__ __forceinline__

// Bits of each type, widened exactly and rounded to nearest even.
struct F32 {
  typedef u32 Bits;
  DEVICE float widen(u32 x) { return __uint_as_float(x); }
  DEVICE u32 narrow(float x) { return __float_as_uint(x); }
};

struct Bf16 {
  typedef u16 Bits;
  DEVICE float widen(u16 x) { return __uint_as_float((u32)x << 16); }
  DEVICE u16 narrow(float x) {
    u16 y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y) : "f"(x));
    return y;
  }
};

struct F16 {
  typedef u16 Bits;
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

// Eight neighbours of a row at once, 16 or 32 bytes that are aligned.
template <class E> struct Piece {
  static constexpr int BYTES = 8 * (int)sizeof(typename E::Bits);
  uint4 bits[BYTES / 16];

  DEVICE Piece load(const void* at) {
    Piece piece;
#pragma unroll
    for (int i = 0; i < BYTES / 16; i++) piece.bits[i] = ((const uint4*)at)[i];
    return piece;
  }

  __device__ __forceinline__ void widen(float (&x)[8]) const {
    constexpr int PER_WORD = 32 / BYTES;
#pragma unroll
    for (int i = 0; i < 8; i++) {
      const uint4& four = bits[i / PER_WORD / 4];
      const int word = i / PER_WORD % 4;
      const u32 bits = word == 0 ? four.x : word == 1 ? four.y : word == 2 ? four.z : four.w;
      x[i] = E::widen((typename E::Bits)(bits >> (i % PER_WORD * 16)));
    }
  }
};

// phi, as `FeatureMap` in feature_map.rs: the same formulas in the same order.
enum FeatureMap { ELU, RELU, IDENTITY };

// Of N numbers at once: the choice is made once.
template <int N> DEVICE void phi(float (&x)[N], int map, float eps) {
  if (map == ELU) {
#pragma unroll
    for (int i = 0; i < N; i++) {
      // exp by 2^(x log2 e): for x <= 0 the error is below 3e-7, absolutely.
      float below;
      asm("ex2.approx.f32 %0, %1;" : "=f"(below) : "f"(x[i] * 1.442695041f));
      x[i] = 1.0f + (x[i] <= 0.0f ? below - 1.0f : x[i]);
    }
  } else if (map == RELU) {
#pragma unroll
    for (int i = 0; i < N; i++) x[i] = (x[i] <= 0.0f ? 0.0f : x[i]) + eps;
  }
}

// bf16 of two numbers, the first in the low half, as fragments of matrices have them.
DEVICE u32 pack(float low, float high) {
  u32 pair;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  return pair;
}

DEVICE float low(u32 pair) { return __uint_as_float(pair << 16); }
DEVICE float high(u32 pair) { return __uint_as_float(pair & 0xffff0000u); }

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
