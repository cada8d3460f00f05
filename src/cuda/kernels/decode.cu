// One token, and what states need beside: a block of threads for each head.
//
//   o = scale (phi(q)^T S + (phi(q) . phi(k)) v) / norm,   S = S + phi(k) v^T
//
// in one pass: S is read, takes part in o, and is written. Threads lie along a row of S, so that loads and stores are of
// whole lines whatever V is; each takes eight rows at once, to have as many loads on their way.
#include "element.cuh"

constexpr int THREADS = 256, MOST_KEY = 256, ROWS = 8;

// Sums of two numbers over the block, for all its threads.
DEVICE float2 sum_all(float2 x, float2* space) {
#pragma unroll
  for (int by = 16; by > 0; by /= 2) x.x += __shfl_xor_sync(~0u, x.x, by), x.y += __shfl_xor_sync(~0u, x.y, by);
  if (threadIdx.x % 32 == 0) space[threadIdx.x / 32] = x;
  __syncthreads();
  float2 sum = {0, 0};
#pragma unroll
  for (int i = 0; i < THREADS / 32; i++) sum.x += space[i].x, sum.y += space[i].y;
  return sum;
}

extern "C" __global__ void __launch_bounds__(THREADS) decode(const __grid_constant__ DecodeArgs a) {
  __shared__ float q[MOST_KEY], k[MOST_KEY], out[2][THREADS];
  __shared__ float2 space[2][THREADS / 32];
  const int head = blockIdx.x, batch = head / a.heads, of_batch = head % a.heads;
  const bool per_chunk = a.normaliser == PER_CHUNK;
  const int matrix = a.key * a.value, sums_len = matrix + (a.normaliser == NONE ? 0 : a.key);
  float* all = a.state + head * a.state_len;
  float* now = per_chunk ? all + sums_len : all;  // what the token is added to
  // As in prefill.cu: what can't be a count is taken for the nearest that can.
  float* count_at = all + 2 * sums_len;
  const int count = per_chunk ? (int)fminf(fmaxf(*count_at, 0.0f), (float)(a.chunk - 1)) + 1 : 0;
  const bool ends = per_chunk && count == a.chunk;

  // phi(q) . phi(k), and the norms before this token: of all, and of the chunk.
  float score = 0.0f, norm = 0.0f, chunk_norm = 0.0f;
  for (int i = threadIdx.x; i < a.key; i += THREADS) {
    float both[2] = {read(a.q, batch * a.q_strides.batch + of_batch * a.q_strides.head + i, a.kind),
                     read(a.k, batch * a.k_strides.batch + of_batch * a.k_strides.head + i, a.kind)};
    phi(both, a.feature_map, a.map_eps);
    q[i] = both[0], k[i] = both[1];
    score += q[i] * k[i];
    if (a.normaliser != NONE) {
      const float z = now[matrix + i], all_z = all[matrix + i];
      norm += q[i] * all_z, chunk_norm += q[i] * z;
      now[matrix + i] = ends ? 0.0f : z + k[i];
      if (ends) all[matrix + i] = all_z + (z + k[i]);
    }
  }
  const float2 sums = sum_all({score, norm}, space[0]);
  score = sums.x, norm = sums.y;
  chunk_norm = sum_all({chunk_norm, 0.0f}, space[1]).x;
  if (per_chunk && threadIdx.x == 0) *count_at = (float)(ends ? 0 : count);

  const int across = a.across, groups = THREADS / across, x = threadIdx.x % across, y = threadIdx.x / across;
  for (int first = 0; first < a.value; first += across) {
    const int column = first + x;
    const bool mine = column < a.value;
    const float v = mine ? read(a.v, batch * a.v_strides.batch + of_batch * a.v_strides.head + column, a.kind) : 0.0f;
    float past = 0.0f, in_chunk = 0.0f;
    for (int row = y; row < a.key; row += groups * ROWS) {
      float s[ROWS], all_s[ROWS];
#pragma unroll
      for (int i = 0; i < ROWS; i++) {
        const int r = row + i * groups;
        s[i] = load_if(mine && r < a.key, now + r * a.value + column);
        all_s[i] = load_if(mine && r < a.key && per_chunk, all + r * a.value + column);
      }
#pragma unroll
      for (int i = 0; i < ROWS; i++) {
        const int r = row + i * groups;
        const bool inside = mine && r < a.key;
        const float by_q = r < a.key ? q[r] : 0.0f, next = s[i] + (r < a.key ? k[r] : 0.0f) * v;
        if (inside) past += by_q * all_s[i], in_chunk += by_q * s[i];
        store_if(inside, now + r * a.value + column, ends ? 0.0f : next);
        store_if(inside && ends, all + r * a.value + column, all_s[i] + next);
      }
    }
    out[0][threadIdx.x] = past, out[1][threadIdx.x] = in_chunk;
    __syncthreads();
    if (y == 0 && mine) {
      for (int i = 1; i < groups; i++) past += out[0][i * across + x], in_chunk += out[1][i * across + x];
      in_chunk += score * v;
      float o = in_chunk * a.scale;
      if (a.normaliser == GLOBAL) o = in_chunk * (a.scale / (norm + score + a.eps));
      if (per_chunk) o = past * (a.scale / (norm + a.eps)) + in_chunk * (a.scale / (chunk_norm + score + a.eps));
      write(a.o, batch * a.o_strides.batch + of_batch * a.o_strides.head + column, a.kind, o);
    }
    __syncthreads();
  }
}

// [segments, heads, len]: sums of each segment, into the sums before it; from `initial` [heads, state_len] on, or from zero.
// The last segment's are not needed, and not there.
extern "C" __global__ void __launch_bounds__(THREADS)
scan(float* sums, const float* initial, i64 state_len, int segments, int len) {
  const int at = blockIdx.y * THREADS + threadIdx.x;
  if (at >= len) return;
  float running = initial ? initial[blockIdx.x * state_len + at] : 0.0f;
  for (int i = 0; i < segments; i++) {
    float* here = sums + ((i64)i * gridDim.x + blockIdx.x) * len + at;
    const float of_segment = i + 1 < segments ? *here : 0.0f;
    *here = running;
    running += of_segment;
  }
}

// z, the chunk's z and count (0 where there are none) of states, [heads, 2 key + 1]: for prefill.cu's `sums`.
extern "C" __global__ void __launch_bounds__(THREADS)
snapshot(float* to, const float* state, i64 state_len, int key, int matrix, int per_chunk) {
  state += blockIdx.x * state_len, to += (i64)blockIdx.x * (2 * key + 1);
  const float* chunk = state + matrix + key;
  for (int i = threadIdx.x; i < key; i += THREADS) {
    to[i] = state[matrix + i];
    to[key + i] = per_chunk ? chunk[matrix + i] : 0.0f;
  }
  if (threadIdx.x == 0) to[2 * key] = per_chunk ? chunk[matrix + key] : 0.0f;
}
