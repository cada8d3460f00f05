// The products of a tile by Hopper's wgmma: four warps multiply together, with operands where they lie in shared memory.
//
// Of one bf16 to each number. What is rare or small stays with mma.sync: tiles in which v is not finite, sums for normalisers.
// Products are on their way while other instructions run: Q S while the scores are masked, K^T V while outputs are written.
#pragma once
#include "products.cuh"

// What lies so many bytes into a matrix, as wgmma is told of it: address, distance of eight rows, swizzle.
template <class M> DEVICE u64 descriptor(M m, int offset) {
  constexpr u64 SWIZZLE = M::ROW == 128 ? 1 : M::ROW == 64 ? 2 : 3;
  return SWIZZLE << 62 | (u64)(8 * M::ROW / 16) << 32 | (((m.base & 0x3ffff) >> 4) + offset / 16);
}

// c += a b, 64 x N += 64 x 16 times 16 x N, for N of 32 and 64. A_TRANSPOSED: A's columns lie one after the other, not its rows.
// B_BY_ROWS: B's rows of N do, not its columns. An A in registers is as that of mma.sync, 16 rows to a warp.
#define SUMS(i) "+f"(c[i][0]), "+f"(c[i][1]), "+f"(c[i][2]), "+f"(c[i][3])
#define WGMMA(n) "{.reg .pred add; setp.ne.b32 add, 1, 0; wgmma.mma_async.sync.aligned.m64n" #n "k16.f32.bf16.bf16 "
#define SUMS_16 "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15}"
#define SUMS_32                                                                                                \
  "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31}"

// Sums and fragments are in their registers from here on. Between a fence and the wait no other instruction may touch them.
DEVICE void settle(float (&c)[4][4]) { asm volatile("" : SUMS(0), SUMS(1), SUMS(2), SUMS(3)); }
DEVICE void settle(float (&c)[8][4]) {
  asm volatile("" : SUMS(0), SUMS(1), SUMS(2), SUMS(3), SUMS(4), SUMS(5), SUMS(6), SUMS(7));
}
DEVICE void settle(u32 (&a)[4]) { asm volatile("" : "+r"(a[0]), "+r"(a[1]), "+r"(a[2]), "+r"(a[3])); }
DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int PENDING> DEVICE void wgmma_wait() { asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory"); }

template <bool A_TRANSPOSED, bool B_BY_ROWS> DEVICE void wgmma(float (&c)[4][4], u64 a, u64 b) {
  asm volatile(WGMMA(32) SUMS_16 ", %16, %17, add, 1, 1, %18, %19;}"
               : SUMS(0), SUMS(1), SUMS(2), SUMS(3) : "l"(a), "l"(b), "n"(A_TRANSPOSED), "n"(B_BY_ROWS));
}
template <bool A_TRANSPOSED, bool B_BY_ROWS> DEVICE void wgmma(float (&c)[8][4], u64 a, u64 b) {
  asm volatile(WGMMA(64) SUMS_32 ", %32, %33, add, 1, 1, %34, %35;}"
               : SUMS(0), SUMS(1), SUMS(2), SUMS(3), SUMS(4), SUMS(5), SUMS(6), SUMS(7)
               : "l"(a), "l"(b), "n"(A_TRANSPOSED), "n"(B_BY_ROWS));
}
template <bool B_BY_ROWS> DEVICE void wgmma(float (&c)[4][4], const u32 (&a)[4], u64 b) {
  asm volatile(WGMMA(32) SUMS_16 ", {%16,%17,%18,%19}, %20, add, 1, 1, %21;}"
               : SUMS(0), SUMS(1), SUMS(2), SUMS(3)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(B_BY_ROWS));
}
template <bool B_BY_ROWS> DEVICE void wgmma(float (&c)[8][4], const u32 (&a)[4], u64 b) {
  asm volatile(WGMMA(64) SUMS_32 ", {%32,%33,%34,%35}, %36, add, 1, 1, %37;}"
               : SUMS(0), SUMS(1), SUMS(2), SUMS(3), SUMS(4), SUMS(5), SUMS(6), SUMS(7)
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(B_BY_ROWS));
}

// Four 8 x 8 matrices from registers; lane i says where row i % 8 of matrix i / 8 goes.
DEVICE void store4(u32 at, const u32 (&r)[4]) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1,%2,%3,%4};"
               ::"r"(at), "r"(r[0]), "r"(r[1]), "r"(r[2]), "r"(r[3]) : "memory");
}

// A group is of four warps, and its columns of V are one block.
template <int K, int G, int N> struct WarpgroupProducts : Products<1, 1, K, 4, G, N, 8 * N> {
  typedef Products<1, 1, K, 4, G, N, 8 * N> Base;
  using typename Base::Keys;
  using typename Base::State;
  using typename Base::Sums;
  using typename Base::Values;
  using Base::C, Base::KT, Base::MT, Base::NT, Base::group, Base::lane, Base::normalised, Base::row, Base::t, Base::g;

  // All of A: what is above the diagonal is computed with the rest.
  typedef float Scores[C / 8][4];

  __device__ __forceinline__ WarpgroupProducts(u32 shared, bool normalised) : Base(shared, normalised) {
    row = threadIdx.x / 32 % 4;
  }

  // Rows `row ..` of Q or K, columns `column ..`.
  __device__ __forceinline__ u64 of_keys(Keys m, int row, int column) const {
    return descriptor(m, column / 64 * Keys::BLOCK_BYTES + row * Keys::ROW + column % 64 * 2);
  }
  // Rows `row ..` of V or S, this group's columns.
  template <class M> __device__ __forceinline__ u64 of_group(M m, int row) const {
    return descriptor(M{m.base + group * M::BLOCK_BYTES}, row * M::ROW);
  }

  __device__ __forceinline__ void publish() const { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

  __device__ __forceinline__ void store_state(const Sums& sums) const {
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
      for (int n = 0; n < NT; n += 2) {
        u32 pairs[4];
#pragma unroll
        for (int i = 0; i < 4; i++) pairs[i] = pack(sums[m][n + i / 2][i % 2 * 2], sums[m][n + i / 2][i % 2 * 2 + 1]);
        store4(this->s_operand().at((m * 4 + row) * 16 + lane % 16, group * NT + n + lane / 16), pairs);
      }
  }

  __device__ __forceinline__ void mul_q(float (&out)[NT][4], float (&norm)[4], Scores& scores, bool with_scores) const {
    settle(out), settle(scores);
    wgmma_fence();
    if (with_scores)
#pragma unroll
      for (int kk = 0; kk < KT; kk += 16)
        wgmma<false, false>(scores, of_keys(this->q_operand(), 0, kk), of_keys(this->k_operand(), 0, kk));
    wgmma_commit();
#pragma unroll
    for (int kk = 0; kk < KT; kk += 16)
      wgmma<false, true>(out, of_keys(this->q_operand(), 0, kk), of_group(this->s_operand(), kk));
    wgmma_commit();
    if (with_scores) {
      wgmma_wait<1>();
      settle(scores);
    }
    if (!normalised) return;
#pragma unroll 1
    for (int kk = 0; kk < KT; kk += 16) {
      u32 qs[1][4];
      load_a(qs, this->q_operand(), row * 16, kk, lane);
      this->mul_z(norm, qs, kk);
    }
  }

  template <int LATER = 0> __device__ __forceinline__ void finish(float (&out)[NT][4]) const {
    wgmma_wait<LATER>();
    settle(out);
  }

  __device__ __forceinline__ void mul_tril(float (&out)[NT][4], float (&norm)[4], Scores& scores, bool infinite) const {
    if (infinite) return finish(out), mul_tril_infinite(out, norm, scores);
    u32 p[C / 16][4];
#pragma unroll
    for (int i = 0; i < C / 2; i++) {
      const int column = i / 4 * 8 + 2 * t + i % 2;
      if (column > row * 16 + i / 2 % 2 * 8 + g) scores[i / 4][i % 4] = 0.0f;
    }
#pragma unroll
    for (int i = 0; i < C / 4; i++) p[i / 4][i % 4] = pack(scores[i / 2][i % 2 * 2], scores[i / 2][i % 2 * 2 + 1]);
    if (normalised)
#pragma unroll
      for (int n = 0; n < C / 16; n++) mma(norm, p[n], Base::ONES, Base::ONES);
    // After Q S, which need not be done: products follow one another.
#pragma unroll
    for (int n = 0; n < C / 16; n++) settle(p[n]);
    wgmma_fence();
#pragma unroll
    for (int n = 0; n < C / 16; n++) wgmma<true>(out, p[n], of_group(this->v_operand(), n * 16));
    wgmma_commit();
  }

  // Warps go their own ways: a product with what is above the diagonal would be NaN.
  __device__ __forceinline__ void mul_tril_infinite(float (&out)[NT][4], float (&norm)[4], const Scores& scores) const {
    typename Base::Scores tril = {};
#pragma unroll
    for (int n = 0; n < C / 16; n++)
#pragma unroll
      for (int i = 0; i < 8; i++) {
        const float x = scores[2 * n + i / 4][i % 4];
        if (n + 1 < C / 16) tril.left[n][i / 4][i % 4] = x;
        if (n == row) tril.diagonal[i / 4][i % 4] = x;
      }
    Base::mul_tril(out, norm, tril, true);
  }

  // K^T V of the first 64 rows of K is on its way while outputs are written.
  typedef float Pending[NT][4];
  __device__ __forceinline__ void start_tokens(Pending& sum) const { start_rows(sum, 0); }
  __device__ __forceinline__ void start_rows(Pending& sum, int m) const {
    clear(sum);
    settle(sum);
    wgmma_fence();
#pragma unroll
    for (int tokens = 0; tokens < C; tokens += 16)
      wgmma<true, true>(sum, of_keys(this->k_operand(), tokens, m * 64), of_group(this->v_operand(), tokens));
    wgmma_commit();
  }

  __device__ __forceinline__ void add_tokens(Sums& sums, Pending& sum, float* z) const {
#pragma unroll
    for (int m = 0; m < MT; m++) {
      if (m > 0) start_rows(sum, m);
      finish(sum);
      add(sums[m], sum);
      if (!normalised) continue;
      float sum_z[4];
      clear(sum_z);
#pragma unroll 1
      for (int tokens = 0; tokens < C; tokens += 16) {
        u32 ks[1][4];
        load_a_transposed(ks, this->k_operand(), (m * 4 + row) * 16, tokens, lane);
        mma(sum_z, ks[0], Base::ONES, Base::ONES);
      }
      this->add_z(z, m, sum_z);
    }
  }
};
