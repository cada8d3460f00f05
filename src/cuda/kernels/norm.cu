// Layer norm and means: a model's rows of f32.
#include "element.cuh"

constexpr int THREADS = 256;

DEVICE float sum_warp(float x) {
#pragma unroll
  for (int by = 16; by > 0; by /= 2) x += __shfl_xor_sync(~0u, x, by);
  return x;
}

// y = (x - mean) gamma rsqrt(var + eps) + beta, a warp for each row; `clip`: rsqrt(eps) where var < eps. Rows of x are
// `stride` elements apart, those of y follow each other.
extern "C" __global__ void __launch_bounds__(THREADS)
layer_norm(const float* x, float* y, const void* gamma, const void* beta, i64 stride, int rows, int size, int gamma_kind,
           int beta_kind, float eps, int clip) {
  const int row = blockIdx.x * (THREADS / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
  if (row >= rows) return;
  x += row * stride, y += (i64)row * size;
  float mean = 0.0f, variance = 0.0f;
  for (int i = lane; i < size; i += 32) mean += x[i];
  mean = sum_warp(mean) / size;
  for (int i = lane; i < size; i += 32) variance += (x[i] - mean) * (x[i] - mean);
  variance = sum_warp(variance) / size;
  const float scale = 1.0f / sqrtf(clip && variance < eps ? eps : variance + eps);
  for (int i = lane; i < size; i += 32)
    y[i] = (x[i] - mean) * (read(gamma, i, gamma_kind) * scale) + read(beta, i, beta_kind);
}

// The mean over T of each sequence's rows, `stride` elements from one to the next; of one row, a copy.
extern "C" __global__ void __launch_bounds__(THREADS) mean(const float* x, float* y, i64 stride, i64 len, int size) {
  const int column = blockIdx.y * THREADS + threadIdx.x;
  if (column >= size) return;
  x += blockIdx.x * stride + column;
  float total = 0.0f;
  // By tiles, so that the error grows with their number and not with T.
  for (i64 first = 0; first < len; first += 256) {
    float sum = 0.0f;
    for (i64 i = first; i < len && i < first + 256; i++) sum += x[i * size];
    total += sum / len;
  }
  y[(i64)blockIdx.x * size + column] = total;
}
