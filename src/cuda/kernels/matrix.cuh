// Matrices of bf16 in shared memory, and their products on tensor cores.
//
// Operands are sums of one to three bf16 (`split`), each term a matrix of its own. A product takes the pairs of terms that
// matter: of two numbers of n terms those (i, j) with i + j < n, the others are below what n terms can hold.
#pragma once
#include "element.cuh"

// Rows of COLUMNS bf16, in blocks of BLOCK columns. Within a block the 16 bytes of eight columns are moved about, so that
// neither eight rows of one column nor one row fall on the same banks (TMA's and wgmma's swizzle of 128, 64 or 32 bytes).
template <int ROWS, int COLUMNS, int BLOCK = COLUMNS < 64 ? COLUMNS : 64> struct Matrix {
  static constexpr int BLOCK_COLUMNS = BLOCK, BLOCKS = COLUMNS / BLOCK;
  static constexpr int ROW = BLOCK * 2, BLOCK_BYTES = ROWS * ROW, BYTES = BLOCKS * BLOCK_BYTES;
  u32 base;

  // Where columns 8 eight .. 8 eight + 7 of a row lie.
  __device__ __forceinline__ u32 at(u32 row, u32 eight) const {
    constexpr u32 ACROSS = ROW / 16;
    // The pattern is one of eight rows: that a compiler can see which part of a place does not change.
    const u32 r = row % 8;
    return base + eight / ACROSS * BLOCK_BYTES + row / 8 * (8 * ROW) + r * ROW + (eight % ACROSS ^ r * ROW / 128) * 16;
  }
  __device__ __forceinline__ Matrix term(int i) const { return Matrix{base + i * BYTES}; }
};

template <int N> DEVICE void clear(float (&x)[N]) {
#pragma unroll
  for (int i = 0; i < N; i++) x[i] = 0.0f;
}
template <int M, int N> DEVICE void clear(float (&x)[M][N]) {
#pragma unroll
  for (int i = 0; i < M; i++) clear(x[i]);
}
template <int M, int N> DEVICE void add(float (&to)[M][N], const float (&x)[M][N]) {
#pragma unroll
  for (int i = 0; i < M * N; i++) to[i / N][i % N] += x[i / N][i % N];
}

DEVICE u32 shared_address(const void* at) { return (u32)__cvta_generic_to_shared(at); }

DEVICE void store_shared(u32 at, u32 x) { asm volatile("st.shared.b32 [%0], %1;" ::"r"(at), "r"(x) : "memory"); }
DEVICE void store_shared(u32 at, uint4 x) {
  asm volatile("st.shared.v4.b32 [%0], {%1,%2,%3,%4};" ::"r"(at), "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w) : "memory");
}
DEVICE u32 load_shared(u32 at) {
  u32 x;
  asm volatile("ld.shared.b32 %0, [%1];" : "=r"(x) : "r"(at) : "memory");
  return x;
}

DEVICE void load_shared4(u32 (&x)[4], u32 at) {
  asm volatile("ld.shared.v4.b32 {%0,%1,%2,%3}, [%4];" : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3]) : "r"(at) : "memory");
}
DEVICE void min_shared(u32 at, int x) { asm volatile("red.shared.min.s32 [%0], %1;" ::"r"(at), "r"(x) : "memory"); }

// Four 8 x 8 matrices; lane i says where row i % 8 of matrix i / 8 lies.
DEVICE void load4(u32 (&r)[4], u32 at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at) : "memory");
}
DEVICE void load4_transposed(u32 (&r)[4], u32 at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(at) : "memory");
}
DEVICE void load2_transposed(u32 (&r)[2], u32 at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];" : "=r"(r[0]), "=r"(r[1]) : "r"(at) : "memory");
}

// c += a b, 16 x 8 += 16 x 16 times 16 x 8.
DEVICE void mma(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Which of the numbers of pair i of a 16 x 16 fragment of A are on and below its diagonal, for row g and pair t of columns.
DEVICE u32 lower_pair(int i, int g, int t) {
  const int below = g + i % 2 * 8 - (i / 2 * 8 + 2 * t);
  return below > 0 ? 0xffffffffu : below == 0 ? 0xffffu : 0u;
}

// c += a b, summed in c by the tensor core where both are one term: it truncates as it adds.
//
// Of more terms, and wherever many products are added one after the other, the pairs of terms are summed by themselves, the
// large ones first, and then added in f32, which rounds.
template <int TA, int TB> DEVICE void add_product(float (&c)[4], const u32 (&a)[TA][4], const u32 (&b)[TB][2]) {
  constexpr int MOST = TA > TB ? TA : TB;
  float sum[4] = {0, 0, 0, 0};
#pragma unroll
  for (int i = 0; i < TA; i++)
#pragma unroll
    for (int j = 0; j < TB; j++)
      if (i + j < MOST) mma(sum, a[i], b[j][0], b[j][1]);
#pragma unroll
  for (int i = 0; i < 4; i++) c[i] += sum[i];
}
template <int TA, int TB> DEVICE void mma_terms(float (&c)[4], const u32 (&a)[TA][4], const u32 (&b)[TB][2]) {
  if (TA == 1 && TB == 1) mma(c, a[0], b[0][0], b[0][1]);
  else add_product(c, a, b);
}

// 16 x 16 of A, from rows `row`, columns `column` of a matrix that holds A, or A transposed.
template <int T, class M> DEVICE void load_a(u32 (&a)[T][4], M m, int row, int column, int lane) {
#pragma unroll
  for (int i = 0; i < T; i++) load4(a[i], m.term(i).at(row + lane % 16, column / 8 + lane / 16));
}
template <int T, class M> DEVICE void load_a_transposed(u32 (&a)[T][4], M m, int row, int column, int lane) {
#pragma unroll
  for (int i = 0; i < T; i++)
    load4_transposed(a[i], m.term(i).at(column + lane % 8 + lane / 16 * 8, row / 8 + lane / 8 % 2));
}

// 16 x 8 N of B, from a matrix that holds B with row `row` and column `column`.
template <int T, int N, class M> DEVICE void load_b(u32 (&b)[N][T][2], M m, int row, int column, int lane) {
#pragma unroll
  for (int i = 0; i < T; i++) {
    if (N == 1) {
      u32 r[2];
      load2_transposed(r, m.term(i).at(row + lane % 16, column / 8));
      b[0][i][0] = r[0], b[0][i][1] = r[1];
    }
#pragma unroll
    for (int n = 0; n + 1 < N; n += 2) {
      u32 r[4];
      load4_transposed(r, m.term(i).at(row + lane % 16, column / 8 + n + lane / 16));
      b[n][i][0] = r[0], b[n][i][1] = r[1], b[n + 1][i][0] = r[2], b[n + 1][i][1] = r[3];
    }
  }
}
// 16 x 16 of B from a matrix that holds it transposed.
template <int T, class M> DEVICE void load_b_transposed(u32 (&b)[2][T][2], M m, int row, int column, int lane) {
#pragma unroll
  for (int i = 0; i < T; i++) {
    u32 r[4];
    load4(r, m.term(i).at(column + lane % 8 + lane / 16 * 8, row / 8 + lane / 8 % 2));
    b[0][i][0] = r[0], b[0][i][1] = r[1], b[1][i][0] = r[2], b[1][i][1] = r[3];
  }
}

DEVICE void copy_async(u32 to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(__cvta_generic_to_global(from)) : "memory");
}
DEVICE void copy_async_if(bool condition, u32 to, const void* from) {
  asm volatile("{.reg .pred p; setp.ne.b32 p, %0, 0; @p cp.async.cg.shared.global [%1], [%2], 16;}"
               ::"r"((int)condition), "r"(to), "l"(__cvta_generic_to_global(from)) : "memory");
}
DEVICE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int PENDING> DEVICE void copy_wait() { asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory"); }
