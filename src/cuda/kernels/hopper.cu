// Many tokens on Hopper: three groups of four warps, each with its own work, that hand tiles of 64 tokens to one another.
//
//   converter   copies rows of q, k and v into a ring of tiles (cp.async), and makes operands of them where they lie:
//               Q = phi(q), K = phi(k), V, rounded to bf16
//   outputs     A = tril(Q K^T) in registers,  O = scale (Q S + A V) / (their sums + eps), or each by its own sum
//   state       S += K^T V in registers, f32, from products over one tile: tensor cores truncate, and a sum over a long sequence
//               would drift. Before each tile it writes S, rounded to bf16, where `outputs` multiplies it.
//
// What is worth knowing:
// 1. The groups run at the same time, on different tiles: exp, products and stores overlap, since no barrier is of all warps.
//    Named barriers say that a tile is full (for each of its two readers), that it is free again, that S is ready, and free.
// 2. Products are wgmma's, whose operands lie in shared memory; they are asynchronous, so that K^T V runs beside Q S and A V.
// 3. Sums for the normaliser are products too: with eight columns of ones, and with eight columns that are all z. Each takes the
//    operand that an output's product takes, and every lane gets the sum of its row.
// 4. The causal mask is applied to pairs of bf16, by masks that do not change from tile to tile.
//
// PerChunk keeps the sums of the current chunk apart from those of the finished ones. Where each chunk is one tile, the first are
// zero whenever a tile begins. Otherwise (`apart`) S is the current chunk's and F that of the finished ones, which is kept in
// memory, as f32, and changes where a chunk ends.
#include "prefill.cuh"
#include "wgmma.cuh"

constexpr int GROUP = 128;  // threads of a group

DEVICE void barrier_wait(int id, int threads) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"); }
DEVICE void barrier_arrive(int id, int threads) { asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory"); }
// What this thread has written is seen by the products that another group starts.
DEVICE void publish() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
// Registers move from the group that copies to those that hold sums: 168 a thread at the launch.
template <int N> DEVICE void take_registers() { asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N)); }
template <int N> DEVICE void give_registers() { asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N)); }

template <class E, int KT, int VP, Normaliser N> struct Tiles {
  static constexpr int C = 64;
  // As many tiles as shared memory of 227 KB has room for; `AHEAD` of them are on their way from memory.
  static constexpr int STAGES = KT == 64 ? 4 : KT == 128 ? 3 : 2, AHEAD = STAGES > 2 ? 2 : 1, LAG = STAGES - AHEAD;
  static constexpr bool NORMALISED = N != NONE, CHUNKED = N == PER_CHUNK;
  typedef Matrix<C, KT> Keys;
  typedef Matrix<C, VP, 64> Values;
  typedef Matrix<KT, VP, 64> State;
  // The first row of each column that is not finite, of each warp's rows, and whether a warp has one.
  static constexpr int ROWS_BYTES = 4 * VP * 4, FLAGS_BYTES = 16;

  // Shared memory, in bytes from its beginning.
  static constexpr int TILE = 2 * Keys::BYTES + Values::BYTES, S_AT = STAGES * TILE, F_AT = S_AT + State::BYTES,
                       Z_AT = F_AT + (CHUNKED ? State::BYTES : 0), FZ_AT = Z_AT + (NORMALISED ? KT * 16 : 0),
                       ONES_AT = FZ_AT + (CHUNKED ? KT * 16 : 0), ROWS_AT = ONES_AT + 256,
                       FLAGS_AT = ROWS_AT + STAGES * ROWS_BYTES, BYTES = FLAGS_AT + STAGES * FLAGS_BYTES;

  // Barriers: a tile is full for `outputs` and for `state`, is free; S is ready, is free; among `outputs`.
  enum Barriers { FULL_FOR_OUTPUTS = 1, FULL_FOR_STATE = 1 + STAGES, FREE = 1 + 2 * STAGES, S_READY = 13, S_FREE, OF_OUTPUTS };
  static_assert(1 + 3 * STAGES <= S_READY, "a block has sixteen barriers");

  const u32 shared;
  const PrefillArgs& a;
  const int thread, warp, lane, g, t;  // of the group; the lane's row of a fragment, and its pair of columns

  __device__ __forceinline__ Tiles(u32 shared, const PrefillArgs& a)
      : shared(shared), a(a), thread(threadIdx.x % GROUP), warp(thread / 32), lane(thread % 32), g(lane / 4), t(lane % 4) {}

  __device__ __forceinline__ Keys q_operand(int stage) const { return Keys{shared + stage * TILE}; }
  __device__ __forceinline__ Keys k_operand(int stage) const { return Keys{shared + stage * TILE + Keys::BYTES}; }
  __device__ __forceinline__ Values v_operand(int stage) const { return Values{shared + stage * TILE + 2 * Keys::BYTES}; }
  __device__ __forceinline__ State s_operand() const { return State{shared + S_AT}; }
  __device__ __forceinline__ State f_operand() const { return State{shared + F_AT}; }
  __device__ __forceinline__ u32 rows_of_columns(int stage, int warp) const {
    return shared + ROWS_AT + stage * ROWS_BYTES + warp * VP * 4;
  }
  __device__ __forceinline__ u32 flags(int stage) const { return shared + FLAGS_AT + stage * FLAGS_BYTES; }

  // As descriptors: rows `row ..` of Q or K, columns `column ..`; rows `row ..` of V, S or F; 16 rows of eight equal columns.
  DEVICE u64 of_keys(Keys m, int row, int column) {
    return descriptor(m, column / 64 * Keys::BLOCK_BYTES + row * Keys::ROW + column % 64 * 2);
  }
  template <class M> DEVICE u64 of_rows(M m, int row) { return descriptor(m, row * M::ROW); }
  __device__ __forceinline__ u64 of_z(int at, int row) const { return narrow_descriptor(shared + at + row * 16); }
  __device__ __forceinline__ u64 of_ones() const { return narrow_descriptor(shared + ONES_AT); }

  // Whether V of a tile has a number that is not finite, and the first row that has one in a column, or C.
  __device__ __forceinline__ bool has_infinite(int stage) const {
    u32 found[4];
    load_shared4(found, flags(stage));
    return (found[0] | found[1] | found[2] | found[3]) != 0;
  }
  __device__ __forceinline__ int first_infinite(int stage, int column) const {
    int first = C;
#pragma unroll 1
    for (int w = 0; w < 4; w++)
      if (load_shared(flags(stage) + w * 4)) first = min(first, (int)load_shared(rows_of_columns(stage, w) + column * 4));
    return first;
  }

  __device__ __forceinline__ int readers() const { return a.outputs ? 3 * GROUP : 2 * GROUP; }  // and the converter
  __device__ __forceinline__ void free_tile(int stage) const { barrier_arrive(FREE + stage, readers()); }
  DEVICE int next(int stage) { return stage + 1 == STAGES ? 0 : stage + 1; }
};

// --- rows of q, k and v into operands

template <class E, int KT, int VP, Normaliser N> struct Converter : Tiles<E, KT, VP, N> {
  typedef Tiles<E, KT, VP, N> Base;
  typedef Part<E, Base::C, VP, N> Block;
  typedef typename E::Bits Bits;
  using Base::C, Base::AHEAD, Base::LAG, Base::STAGES, Base::a, Base::lane, Base::thread, Base::warp;
  // Elements of two bytes are copied to where their operands will be.
  static constexpr bool IN_PLACE = sizeof(Bits) == 2;
  template <class M> using By = Spread<M, C, GROUP>;

  const Block block;
  bool copied, whole;  // whether rows are copied ahead; whether they are as wide as operands

  __device__ __forceinline__ Converter(const Base& base, const Block& block) : Base(base), block(block) {
    copied = IN_PLACE && a.aligned, whole = copied && a.key == KT && block.columns == VP;
  }

  template <class M> __device__ __forceinline__ void copy(M to, const Bits* from, i64 stride, int rows, int columns) const {
    const By<M> by(thread);
    const u32 at = to.at(by.first, by.eight);
    from += by.first * stride + by.eight * 8;
    if (whole && rows == C) {
#pragma unroll
      for (int i = 0; i < by.COUNT; i++, from += by.STEP * stride) copy_async(by.below(at, i), from);
      return;
    }
    const int left = (columns > by.eight * 8 ? rows : 0) - by.first;
#pragma unroll 1
    for (int i = 0; i < by.COUNT; i++, from += by.STEP * stride) copy_async_if(i * by.STEP < left, by.below(at, i), from);
  }
  __device__ __forceinline__ void copy_tile(const Cursor& at, int stage) const {
    if (copied && at.more()) {
      const int rows = at.rows();
      if (a.outputs) copy(this->q_operand(stage), block.q + at.token * a.q_strides.token, a.q_strides.token, rows, a.key);
      copy(this->k_operand(stage), block.k + at.token * a.k_strides.token, a.k_strides.token, rows, a.key);
      copy(this->v_operand(stage), block.v + at.token * a.v_strides.token, a.v_strides.token, rows, block.columns);
    }
    // Also where there was nothing to copy: the waits count.
    copy_commit();
  }

  // Rows and columns beyond the tensor's are zero. Says whether a number was not finite.
  template <bool MAP, class M>
  __device__ __forceinline__ bool convert(M to, const Bits* from, i64 stride, int rows, int columns) const {
    const By<M> by(thread);
    const u32 first_at = to.at(by.first, by.eight);
    float nan = 0.0f;
    if (E::IS_BF16 && whole && rows == C) {
      // Nearly all tiles: two pieces at a time, without a condition.
#pragma unroll 2
      for (int i = 0; i < by.COUNT; i += 2) {
        u32 x[8];
#pragma unroll
        for (int j = 0; j < 2; j++) {
          u32 piece[4];
          load_shared4(piece, by.below(first_at, i + j));
#pragma unroll
          for (int w = 0; w < 4; w++) x[4 * j + w] = piece[w];
        }
        if (!MAP) {
          nan += not_finite(x);
          continue;
        }
        phi_bf16(x, a.feature_map, a.map_eps);
#pragma unroll
        for (int j = 0; j < 2; j++)
          store_shared(by.below(first_at, i + j), make_uint4(x[4 * j], x[4 * j + 1], x[4 * j + 2], x[4 * j + 3]));
      }
      return nan != 0.0f;
    }
    const int left = columns - by.eight * 8;
#pragma unroll 1
    for (int r = by.first; r < C; r += by.STEP) {
      uint4 terms[1] = {};
      if (r < rows && left > 0) {
        const Bits* at = from + r * stride + by.eight * 8;
        const Piece<E> piece = copied      ? Piece<E>::load_shared(to.at(r, by.eight))
                               : a.aligned ? Piece<E>::load(at)
                                           : Piece<E>::gather(at, left);
        operand<MAP>(terms, piece, a.feature_map, a.map_eps, nan);
        // phi(0) is not 0.
        if (MAP && !a.aligned) terms[0] = first(terms[0], left);
      }
      store_shared(to.at(r, by.eight), terms[0]);
    }
    return nan != 0.0f;
  }

  __device__ __forceinline__ void convert_tile(const Cursor& at, int stage) const {
    const int rows = at.rows();
    if (a.outputs) convert<true>(this->q_operand(stage), block.q + at.token * a.q_strides.token, a.q_strides.token, rows, a.key);
    convert<true>(this->k_operand(stage), block.k + at.token * a.k_strides.token, a.k_strides.token, rows, a.key);
    const auto v = this->v_operand(stage);
    const bool infinite = convert<false>(v, block.v + at.token * a.v_strides.token, a.v_strides.token, rows, block.columns);
    const bool any = __any_sync(~0u, infinite);
    if (lane == 0) store_shared(this->flags(stage) + warp * 4, any);
    if (!any) return;
    const u32 rows_of_columns = this->rows_of_columns(stage, warp);
    for (int i = lane; i < VP; i += 32) store_shared(rows_of_columns + i * 4, (u32)C);
    __syncwarp();
    const By<typename Base::Values> by(thread);
#pragma unroll 1
    for (int r = by.first; r < C; r += by.STEP) take_out<1>(v, r, by.eight, rows_of_columns);
  }

  __device__ __forceinline__ void run(Cursor now) const {
    if (Base::NORMALISED && thread < 64) store_shared(this->shared + Base::ONES_AT + thread * 4, 0x3f803f80u);
    Cursor ahead = now;
    int stage = 0, ahead_stage = 0, freed = 0, tiles = 0;
    const auto copy_next = [&] {
      copy_tile(ahead, ahead_stage);
      if (ahead.more()) ahead.advance(ahead.rows());
      ahead_stage = Base::next(ahead_stage);
    };
    const auto wait_until_free = [&] { barrier_wait(Base::FREE + freed, this->readers()), freed = Base::next(freed); };
#pragma unroll
    for (int i = 0; i < AHEAD; i++) copy_next();
#pragma unroll 1
    for (; now.more(); now.advance(now.rows()), tiles++) {
      copy_wait<AHEAD - 1>();
      convert_tile(now, stage);
      publish();
      if (a.outputs) barrier_arrive(Base::FULL_FOR_OUTPUTS + stage, 2 * GROUP);
      barrier_arrive(Base::FULL_FOR_STATE + stage, 2 * GROUP);
      stage = Base::next(stage);
      // The tile that is copied next takes the place of one that was read long ago.
      if (tiles >= LAG) wait_until_free();
      copy_next();
    }
    copy_wait<0>();
    for (int i = tiles < LAG ? tiles : LAG; i > 0; i--) wait_until_free();
  }
};

// --- outputs

template <class E, int KT, int VP, Normaliser N> struct Outputs : Tiles<E, KT, VP, N> {
  typedef Tiles<E, KT, VP, N> Base;
  typedef Part<E, Base::C, VP, N> Block;
  typedef typename E::Bits Bits;
  using Base::C, Base::NORMALISED, Base::CHUNKED, Base::a, Base::g, Base::lane, Base::t, Base::warp;
  static constexpr int NT = VP / 8;
  typedef Matrix<C, VP, 64> Rows;  // of outputs, where q's were

  const Block block;

  __device__ __forceinline__ Outputs(const Base& base, const Block& block) : Base(base), block(block) {}

  // out = Q S, norm = Q z, of S or of F.
  template <class M>
  __device__ __forceinline__ void mul_state(float (&out)[NT][4], float (&norm)[4], int stage, M s, int z) const {
#pragma unroll
    for (int kk = 0; kk < KT; kk += 16) {
      const u64 q = Base::of_keys(this->q_operand(stage), 0, kk);
      wgmma<false, true>(out, q, Base::of_rows(s, kk), kk > 0);
      if (NORMALISED) wgmma<false, true>(norm, q, this->of_z(z, kk), kk > 0);
    }
    wgmma_commit();
  }

  // What earlier tiles give, divided by its own sums.
  __device__ __forceinline__ void take_past(float (&past)[NT][4], const float (&out)[NT][4], const float (&norm)[4]) const {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const float by = a.scale / (norm[half * 2] + a.eps);
#pragma unroll
      for (int i = 0; i < 2 * NT; i++) past[i / 2][half * 2 + i % 2] = out[i / 2][half * 2 + i % 2] * by;
    }
  }

  __device__ __forceinline__ void run(Cursor now) const {
    bool apart = block.begins_apart(now);
    int stage = 0;
#pragma unroll 1
    for (; now.more(); stage = Base::next(stage)) {
      const int rows = now.rows();
      if (block.is_tail(rows)) apart = true;
      barrier_wait(Base::FULL_FOR_OUTPUTS + stage, 2 * GROUP);
      barrier_wait(Base::S_READY, 2 * GROUP);

      float scores[C / 8][4], out[NT][4], norm[4], past[NT][4];
      wgmma_fence();
#pragma unroll
      for (int kk = 0; kk < KT; kk += 16) {
        const u64 q = Base::of_keys(this->q_operand(stage), 0, kk), k = Base::of_keys(this->k_operand(stage), 0, kk);
        wgmma<false, false>(scores, q, k, kk > 0);
      }
      wgmma_commit();
      if (CHUNKED) mul_state(out, norm, stage, apart ? this->f_operand() : this->s_operand(), apart ? Base::FZ_AT : Base::Z_AT);
      else mul_state(out, norm, stage, this->s_operand(), Base::Z_AT);
      wgmma_wait<1>();
      settle(scores);
      // A's pairs are fragments of an operand in registers. NaN above the diagonal is masked as well.
      u32 p[C / 16][4];
#pragma unroll
      for (int n = 0; n < C / 16; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const u32 pair = pack(scores[2 * n + i / 2][i % 2 * 2], scores[2 * n + i / 2][i % 2 * 2 + 1]);
          p[n][i] = n < warp ? pair : n == warp ? pair & lower_pair(i, g, t) : 0;
        }
      if (CHUNKED) {
        wgmma_wait<0>();
        settle(out), settle(norm);
        take_past(past, out, norm);
        // Now: later the sums would have to be copied for it.
        settle(past);
      }
      if (CHUNKED && apart) wgmma_fence(), mul_state(out, norm, stage, this->s_operand(), Base::Z_AT);
#pragma unroll
      for (int n = 0; n < C / 16; n++) settle(p[n]);
      wgmma_fence();
#pragma unroll
      for (int n = 0; n < C / 16; n++) {
        const bool adds = !CHUNKED || apart || n > 0;
        wgmma<true>(out, p[n], Base::of_rows(this->v_operand(stage), n * 16), adds);
        if (NORMALISED) wgmma<true>(norm, p[n], this->of_ones(), adds);
      }
      wgmma_commit();
      // Q S was started before; `state` may write the next S while A V is on its way.
      wgmma_wait<1>();
      barrier_arrive(Base::S_FREE, 2 * GROUP);
      wgmma_wait<0>();
      settle(out);
      if (NORMALISED) settle(norm);
      finish(out, norm, past);
      if (this->has_infinite(stage)) spread_infinite(out, stage);
      write(now.token, rows, out, stage);
      this->free_tile(stage);
      now.advance(rows);
    }
  }

  // past + out, divided by its sums where there are any.
  __device__ __forceinline__ void finish(float (&out)[NT][4], const float (&norm)[4], const float (&past)[NT][4]) const {
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const float by = NORMALISED ? a.scale / (norm[half * 2] + a.eps) : a.scale;
#pragma unroll
      for (int i = 0; i < 2 * NT; i++) {
        float& x = out[i / 2][half * 2 + i % 2];
        x = CHUNKED ? fmaf(x, by, past[i / 2][half * 2 + i % 2]) : x * by;
      }
    }
  }

  __device__ __forceinline__ void spread_infinite(float (&out)[NT][4], int stage) const {
#pragma unroll
    for (int i = 0; i < 2 * NT; i++) {
      const int first = this->first_infinite(stage, i / 2 * 8 + 2 * t + i % 2);
#pragma unroll
      for (int half = 0; half < 2; half++)
        if (warp * 16 + half * 8 + g >= first) out[i / 2][half * 2 + i % 2] = __int_as_float(0x7fffffff);
    }
  }

  // Through shared memory, where q's rows were, so that each lane stores 16 bytes and a warp whole lines.
  __device__ __forceinline__ void write_pieces(i64 token, int rows, const float (&out)[NT][4], int stage) const {
    const Rows staged{this->q_operand(stage).base};
    barrier_wait(Base::OF_OUTPUTS, GROUP);
#pragma unroll
    for (int n = 0; n < NT; n += 2) {
      u32 pairs[4];
#pragma unroll
      for (int i = 0; i < 4; i++) pairs[i] = E::pack(out[n + i / 2][i % 2 * 2], out[n + i / 2][i % 2 * 2 + 1]);
      store4(staged.at(warp * 16 + lane % 16, n + lane / 16), pairs);
    }
    __syncwarp();
    constexpr int LANES = VP / 8, STEP = 32 / LANES;
    const int eight = lane % LANES, first = warp * 16 + lane / LANES;
    Bits* to = block.o + (token + first) * a.o_strides.token + eight * 8;
#pragma unroll
    for (int i = 0; i < 16 / STEP; i++, to += STEP * a.o_strides.token) {
      u32 x[4];
      load_shared4(x, staged.at(first + i * STEP, eight));
      if (first + i * STEP < rows) *(uint4*)to = make_uint4(x[0], x[1], x[2], x[3]);
    }
  }

  __device__ __forceinline__ void write(i64 token, int rows, const float (&out)[NT][4], int stage) const {
    if constexpr (sizeof(Bits) == 2)
      if (a.neighbours == 8 && block.columns == VP) return write_pieces(token, rows, out, stage);
#pragma unroll
    for (int half = 0; half < 2; half++) {
      const int r = warp * 16 + half * 8 + g;
      if (r >= rows) continue;
      Bits* at = block.o + (token + r) * a.o_strides.token + 2 * t;
#pragma unroll
      for (int n = 0; n < NT; n++) {
        const float x = out[n][half * 2], y = out[n][half * 2 + 1];
        if (sizeof(Bits) == 4 && a.neighbours > 1 && block.columns == VP) *(float2*)(at + n * 8) = make_float2(x, y);
        else {
          if (n * 8 + 2 * t < block.columns) at[n * 8] = E::narrow(x);
          if (n * 8 + 2 * t + 1 < block.columns) at[n * 8 + 1] = E::narrow(y);
        }
      }
    }
    __syncwarp();
  }
};

// --- the state

template <class E, int KT, int VP, Normaliser N> struct State : Tiles<E, KT, VP, N> {
  typedef Tiles<E, KT, VP, N> Base;
  typedef Part<E, Base::C, VP, N> Block;
  using Base::C, Base::NORMALISED, Base::CHUNKED, Base::a, Base::g, Base::lane, Base::t, Base::warp;
  static constexpr int MT = KT / 64, NT = VP / 8;
  typedef float Sums[MT][NT][4];
  typedef float Zs[MT][2];  // rows g and g + 8 of 16 rows of K; the four lanes of a row have the same

  const Block block;

  __device__ __forceinline__ State(const Base& base, const Block& block) : Base(base), block(block) {}

  // Calls f(element, where it lies in z) for those that this thread keeps of z.
  template <class F> __device__ __forceinline__ void each_z(Zs& z, const float* at, F f) const {
    if (NORMALISED)
#pragma unroll
      for (int i = 0; i < 2 * MT; i++) {
        const int k = i / 2 * 64 + i % 2 * 8 + warp * 16 + g;
        if (k < a.key) f(z[i / 2][i % 2], at + k);
      }
  }
  __device__ __forceinline__ void add_from(Sums& sums, const float* from) const {
    block.template add_from<64>(sums, warp * 16 + g, 2 * t, from);
  }
  __device__ __forceinline__ void add_from(Zs& z, const float* from) const {
    each_z(z, from, [](float& x, const float* at) { x += *at; });
  }
  __device__ __forceinline__ void store(Sums& sums, float* to) const {
    block.template store<64>(sums, warp * 16 + g, 2 * t, to);
  }
  // One panel of a head writes it.
  __device__ __forceinline__ void store(Zs& z, float* to) const {
    if (block.panel == 0 && t == 0) each_z(z, to, [](float& x, const float* at) { *(float*)at = x; });
  }

  // Into the operands that `outputs` multiplies.
  template <class M> __device__ __forceinline__ void offer(const Sums& sums, Zs& z, M s, int at) const {
#pragma unroll
    for (int m = 0; m < MT; m++)
#pragma unroll
      for (int n = 0; n < NT; n += 2) {
        u32 pairs[4];
#pragma unroll
        for (int i = 0; i < 4; i++) pairs[i] = pack(sums[m][n + i / 2][i % 2 * 2], sums[m][n + i / 2][i % 2 * 2 + 1]);
        store4(s.at(m * 64 + warp * 16 + lane % 16, n + lane / 16), pairs);
      }
    if (NORMALISED)
#pragma unroll
      for (int i = 0; i < 2 * MT; i++) {
        const float x = z[i / 2][i % 2];
        store_shared(this->shared + at + (i / 2 * 64 + i % 2 * 8 + warp * 16 + g) * 16 + t * 4, pack(x, x));
      }
  }

  // S += K^T V, z += K^T 1.
  __device__ __forceinline__ void add_tile(Sums& sums, Zs& z, int stage) const {
#pragma unroll
    for (int m = 0; m < MT; m++) {
      float sum[NT][4], sum_z[4];
      wgmma_fence();
#pragma unroll
      for (int tokens = 0; tokens < C; tokens += 16) {
        const u64 k = Base::of_keys(this->k_operand(stage), tokens, m * 64);
        wgmma<true, true>(sum, k, Base::of_rows(this->v_operand(stage), tokens), tokens > 0);
        if (NORMALISED) wgmma<true, true>(sum_z, k, this->of_ones(), tokens > 0);
      }
      wgmma_commit();
      wgmma_wait<0>();
      settle(sum);
      add(sums[m], sum);
      if (!NORMALISED) continue;
      settle(sum_z);
      z[m][0] += sum_z[0], z[m][1] += sum_z[2];
    }
  }

  __device__ __forceinline__ void run(Cursor now) const {
    // `sums` are of all tokens, or `apart` those of the current chunk; the others' S is in `finished` then, their z here.
    Sums sums = {};
    Zs z = {}, finished_z = {};
    bool apart = block.begins_apart(now), begins = true;
    const float* from = !a.outputs ? 0 : block.sums ? block.sums : block.initial;
    const float* from_z = block.sums ? from + block.matrix : block.all_z;
    int stage = 0;
#pragma unroll 1
    for (;; stage = Base::next(stage), begins = false) {
      const bool more = now.more();
      const int rows = now.rows();
      // S is read once for each tile.
      if (a.outputs && !begins) barrier_wait(Base::S_FREE, 2 * GROUP);
      const bool ended = !begins && apart && now.fill == 0, tail = !apart && more && block.is_tail(rows);
      if (begins && from) add_from(sums, from), add_from(z, from_z);
      if (CHUNKED && ended) add_from(sums, block.finished);
      if (CHUNKED && (ended || tail || begins && apart)) {
        store(sums, block.finished);
#pragma unroll
        for (int i = 0; i < 2 * MT; i++) finished_z[i / 2][i % 2] += z[i / 2][i % 2], z[i / 2][i % 2] = 0.0f;
        offer(sums, finished_z, this->f_operand(), Base::FZ_AT);
#pragma unroll
        for (int m = 0; m < MT; m++) clear(sums[m]);
        if (begins && now.fill > 0) add_from(sums, from + block.sums_len), add_from(z, block.chunk_z);
        apart = true;
      }
      if (!more) break;
      if (a.outputs) {
        offer(sums, z, this->s_operand(), Base::Z_AT);
        publish();
        barrier_arrive(Base::S_READY, 2 * GROUP);
      }
      barrier_wait(Base::FULL_FOR_STATE + stage, 2 * GROUP);
      add_tile(sums, z, stage);
      if (this->has_infinite(stage)) spread_infinite(sums, stage);
      this->free_tile(stage);
      now.advance(rows);
    }

    float* to = block.destination(now, apart);
    if (!to) return;
    store(z, to + block.matrix);
    if (CHUNKED && a.outputs) {
      // The other sums: of the finished chunks, or of a chunk that has not begun.
      float* of_chunk = block.last + block.sums_len;
      store(finished_z, (apart ? block.last : of_chunk) + block.matrix);
      if (block.panel == 0 && this->thread == 0) of_chunk[block.sums_len] = (float)now.fill;
    }
#pragma unroll 1
    for (int i = CHUNKED && a.outputs && !apart; i >= 0; i--, to += block.sums_len) {
      store(sums, to);
#pragma unroll
      for (int m = 0; m < MT; m++) clear(sums[m]);
    }
  }

  __device__ __forceinline__ void spread_infinite(Sums& sums, int stage) const {
#pragma unroll
    for (int i = 0; i < 2 * NT; i++)
      if (this->first_infinite(stage, i / 2 * 8 + 2 * t + i % 2) < C)
#pragma unroll
        for (int m = 0; m < 2 * MT; m++) sums[m / 2][i / 2][m % 2 * 2 + i % 2] = __int_as_float(0x7fffffff);
  }
};

template <class E, int KT, int VP, Normaliser N> DEVICE void prefill(const PrefillArgs& args, unsigned char* memory) {
  typedef Tiles<E, KT, VP, N> Shared;
  // Each group makes its own: what only one of them needs would take registers of all.
  typedef Part<E, Shared::C, VP, N> Block;
  const Shared tiles(shared_address(memory), args);
  // No barrier: `state` writes what this reads only after it has been handed the last tile, if there is one.
  const Cursor begin = Block(args).begin();
  // The same for all lanes, which a compiler can't see in threadIdx.
  const int group = __shfl_sync(~0u, threadIdx.x / GROUP, 0);
  if (group == 0) {
    if (KT > 64) give_registers<KT == 128 ? 56 : 64>();
    Converter<E, KT, VP, N>(tiles, Block(args)).run(begin);
  } else if (group == 1) {
    if (KT > 64) take_registers<KT == 128 ? 208 : 200>();
    if (args.outputs) Outputs<E, KT, VP, N>(tiles, Block(args)).run(begin);
  } else {
    if (KT > 64) take_registers<240>();
    State<E, KT, VP, N>(tiles, Block(args)).run(begin);
  }
}

// K's columns, V's of a block.
#define ENTRY(KT, VP, NAME, NORMALISER)                                                                              \
  extern "C" __global__ void __launch_bounds__(3 * GROUP, 1)                                                         \
  prefill_##KT##_##NAME(const __grid_constant__ PrefillArgs args) {                                                  \
    extern __shared__ __align__(1024) unsigned char shared[];                                                        \
    prefill<ELEMENT, KT, VP, NORMALISER>(args, shared);                                                              \
  }
#define ENTRIES(KT, VP) ENTRY(KT, VP, none, NONE) ENTRY(KT, VP, global, GLOBAL) ENTRY(KT, VP, per_chunk, PER_CHUNK)
ENTRIES(64, 64)
ENTRIES(128, 128)
ENTRIES(256, 64)
