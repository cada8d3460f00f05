// The products of a tile, by mma.sync: a warp takes 16 rows of the tile and a few columns of V.
#pragma once
#include "matrix.cuh"

// Of TA bf16 each: phi(q), phi(k), scores and S; of TV: v. K: columns of K. R and G: warps along a tile's rows and along V's
// columns, N: eights of columns of each. NORMALISED: whether sums for a normaliser are wanted.
template <int TA, int TV, int K, int R, int G, int N, bool NORMALISED> struct Products {
  static constexpr int ROW_WARPS = R, KT = K, NT = N, MT = K / 16 / R, C = 16 * R, VP = 8 * N * G, THREADS = 32 * R * G;
  static constexpr int TERMS = TA, VALUE_TERMS = TV;
  static constexpr u32 ONES = 0x3f803f80;
  typedef Matrix<C, KT> Keys;
  typedef Matrix<C, VP> Values;
  typedef Matrix<KT, VP> State;

  // Shared memory, in bytes from its beginning.
  static constexpr int K_AT = TA * Keys::BYTES, V_AT = K_AT + TA * Keys::BYTES, S_AT = V_AT + TV * Values::BYTES,
                       Z_AT = S_AT + TA * State::BYTES, BYTES = Z_AT + TA * KT * 2;

  // S as warps hold it: m-tiles of 16 rows of K, n-tiles of 8 columns of V.
  typedef float Sums[MT][NT][4];

  const u32 shared;
  const int lane, g, t;   // the lane, its row of a fragment, its pair of columns
  int group, row;         // which n-tiles, and which 16 rows of a tile and of the state's m-tiles, are this warp's

  __device__ __forceinline__ explicit Products(u32 shared)
      : shared(shared), lane(threadIdx.x % 32), g(threadIdx.x % 32 / 4), t(threadIdx.x % 4) {
    const int warp = threadIdx.x / 32;
    group = warp / R;
    // Every other group takes them from the end: warps share a tensor core by their number, and the last rows take most.
    row = group % 2 ? R - 1 - warp % R : warp % R;
  }

  __device__ __forceinline__ Keys q_operand() const { return Keys{shared}; }
  __device__ __forceinline__ Keys k_operand() const { return Keys{shared + K_AT}; }
  __device__ __forceinline__ Values v_operand() const { return Values{shared + V_AT}; }
  __device__ __forceinline__ State s_operand() const { return State{shared + S_AT}; }

  // The row of K and the column of the panel of element 0 of a fragment of `Sums`; 2 and 3 are eight rows below.
  __device__ __forceinline__ int row_of_k(int m) const { return (m * R + row) * 16 + g; }
  __device__ __forceinline__ int column(int n) const { return (group * NT + n) * 8 + 2 * t; }

  // S into its operand.
  __device__ __forceinline__ void store_state(const Sums& sums) const {
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
      for (int half = 0; half < 2; half++)
#pragma unroll
        for (int n = 0; n < NT; n++) {
          u32 pair[TA];
          split<TA>(sums[m][n][half * 2], sums[m][n][half * 2 + 1], pair);
#pragma unroll
          for (int i = 0; i < TA; i++)
            store_shared(s_operand().term(i).at(row_of_k(m) + half * 8, group * NT + n) + t * 4, pair[i]);
        }
  }

  // Two neighbours of z into its operand.
  __device__ __forceinline__ void put_z(int k, float a, float b) const {
    u32 pair[TA];
    split<TA>(a, b, pair);
#pragma unroll
    for (int i = 0; i < TA; i++) store_shared(shared + Z_AT + (i * KT + k) * 2, pair[i]);
  }

  // A on and below the diagonal: 16 x 8 tiles left of the diagonal, in pairs, and the pair on it.
  struct Scores {
    float left[R > 1 ? R - 1 : 1][2][4], diagonal[2][4];
  };

  // scores += Q K^T, for 16 rows of K.
  __device__ __forceinline__ void mul_keys(float (&scores)[2][4], const u32 (&qs)[TA][4], int kk, int tokens) const {
    u32 ks[2][TA][2];
    load_b_transposed(ks, k_operand(), kk, tokens, lane);
    mma_terms(scores[0], qs, ks[0]);
    mma_terms(scores[1], qs, ks[1]);
  }

  // norm += Q z, for 16 columns of Q.
  __device__ __forceinline__ void mul_z(float (&norm)[4], const u32 (&qs)[TA][4], int kk) const {
    u32 zs[TA][2];
#pragma unroll
    for (int i = 0; i < TA; i++)
#pragma unroll
      for (int half = 0; half < 2; half++) zs[i][half] = load_shared(shared + Z_AT + (i * KT + kk + half * 8 + 2 * t) * 2);
    mma_terms(norm, qs, zs);
  }

  // out += Q S, norm += Q z; and scores += Q K^T where they are asked for.
  __device__ __forceinline__ void mul_q(float (&out)[NT][4], float (&norm)[4], Scores& scores, bool with_scores) const {
#pragma unroll 1
    for (int kk = 0; kk < KT; kk += 16) {
      u32 qs[TA][4], b[NT][TA][2];
      load_a(qs, q_operand(), row * 16, kk, lane);
      load_b(b, s_operand(), kk, group * NT * 8, lane);
#pragma unroll
      for (int n = 0; n < NT; n++) mma_terms(out[n], qs, b[n]);
      if (NORMALISED) mul_z(norm, qs, kk);
      if (!with_scores) continue;
#pragma unroll
      for (int n = 0; n < R - 1; n++)
        if (n < row) mul_keys(scores.left[n], qs, kk, n * 16);
      mul_keys(scores.diagonal, qs, kk, row * 16);
    }
  }

  // out += scores V, norm += the sums of its rows, for 16 rows of V; on the diagonal of what is on and below it, so that what a
  // NaN makes above it is masked as well. A product's fragments are those of the next one's A.
  template <bool DIAGONAL>
  __device__ __forceinline__ void mul_scores(float (&out)[NT][4], float (&norm)[4], const float (&scores)[2][4],
                                             int tokens) const {
    u32 p[TA][4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
      u32 pair[TA];
      split<TA>(scores[i / 2][i % 2 * 2], scores[i / 2][i % 2 * 2 + 1], pair);
#pragma unroll
      for (int j = 0; j < TA; j++) p[j][i] = DIAGONAL ? pair[j] & lower_pair(i, g, t) : pair[j];
    }
    if (NORMALISED) {
      const u32 ones[1][2] = {{ONES, ONES}};
      mma_terms(norm, p, ones);
    }
    u32 vs[NT][TV][2];
    load_b(vs, v_operand(), tokens, group * NT * 8, lane);
#pragma unroll
    for (int i = 0; i < NT; i++) mma_terms(out[i], p, vs[i]);
  }

  // Likewise for all rows of V up to the diagonal.
  __device__ __forceinline__ void mul_tril(float (&out)[NT][4], float (&norm)[4], const Scores& scores) const {
#pragma unroll
    for (int n = 0; n < R - 1; n++)
      if (n < row) mul_scores<false>(out, norm, scores.left[n], n * 16);
    mul_scores<true>(out, norm, scores.diagonal, row * 16);
  }

  // S += K^T V, z += K^T 1: 16 rows of K at a time, summed over the tile first.
  __device__ __forceinline__ void add_tokens(Sums& sums, float* z) const {
    const u32 ones[1][2] = {{ONES, ONES}};
#pragma unroll
    for (int m = 0; m < MT; m++) {
      float sum[NT][4], sum_z[4];
      clear(sum), clear(sum_z);
#pragma unroll 1
      for (int tokens = 0; tokens < C; tokens += 16) {
        u32 vs[NT][TV][2], ks[TA][4];
        load_b(vs, v_operand(), tokens, group * NT * 8, lane);
        load_a_transposed(ks, k_operand(), (m * R + row) * 16, tokens, lane);
#pragma unroll
        for (int n = 0; n < NT; n++) mma_terms(sum[n], ks, vs[n]);
        if (NORMALISED) mma_terms(sum_z, ks, ones);
      }
      add(sums[m], sum);
      add_z(z, m, sum_z);
    }
  }

  // By one group of warps.
  __device__ __forceinline__ void add_z(float* z, int m, const float (&sum)[4]) const {
    float* at = z + row_of_k(m);
    if (NORMALISED && group == 0 && t == 0) at[0] += sum[0], at[8] += sum[2];
  }
};
