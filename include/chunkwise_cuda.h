/* chunkwise on NVIDIA GPUs: attention on tensors in a GPU's memory. Of libraries built with the feature cuda; they start, and
 * cw_cuda_open says so, where there is no GPU or no driver.
 *
 * Structures and contracts are those of chunkwise.h, with these differences. Every data, state and scratch pointer of a cw_call
 * is a device address in the memory of that GPU, of its primary context: the one that torch, candle and CUDA's runtime use. All
 * four tensors are of one dtype. Work is queued on a stream and not waited for: what goes wrong on the device is told by a later
 * call. isa and threads of a cw_attention play no part, compensated must be 0, K is at most 256. There are no gates, no delta rule,
 * no qk_norm, no not_causal, no grouped heads and no ragged batches yet: CW_UNAVAILABLE, and the message says which. The count of
 * tokens in a state is not checked: one that is not possible is taken for the nearest that is. The caller's current context is left
 * as it was.
 *
 * Precision. CW_PRODUCTS_F32 multiplies as precisely as f32 does. CW_PRODUCTS_BF16 rounds phi, v, scores and the state to bf16
 * for the products of cw_cuda_forward, whose sums stay f32: errors are as large as those of rounding q, k, v and o.
 *
 * Bits. For one of the two, one kind of GPU and one driver, they are the same for any batch and strides, and for pieces cut at
 * multiples of 64 tokens and of the chunk, as long as sequences are computed in the same number of segments, which follows from
 * the shapes and the GPU. cw_cuda_decode agrees with cw_cuda_forward within rounding.
 *
 * message, where it is not null, gets the words of an error with the driver's own, cut to message_bytes and ended by a zero.
 */
#ifndef CHUNKWISE_CUDA_H
#define CHUNKWISE_CUDA_H

#include "chunkwise.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A GPU and the kernels that were compiled for it. May be used by any number of threads. */
typedef struct cw_cuda cw_cuda;

/* The GPU of a number, from 0 on. CW_UNAVAILABLE: no driver, no such GPU, or one that is too old. Allocates. */
cw_status cw_cuda_open(uint32_t ordinal, const cw_cuda **cuda, char *message, uint64_t message_bytes);

/* Waits for all work of the GPU's primary context and frees it; null is nothing. Nothing may use it then, no graph that launches its
 * kernels either, and no stream may be in the middle of a capture. CW_MODEL: it is none. */
cw_status cw_cuda_close(const cw_cuda *cuda);

/* What to bring: bytes of device memory. Pointers of the call are not looked at. */
cw_status cw_cuda_sizes(const cw_cuda *cuda, const cw_attention *attention, const cw_call *call, cw_sizes *sizes, char *message,
                        uint64_t message_bytes);

/* Compiles the kernels that cw_cuda_forward and cw_cuda_decode may launch for such a call, as far as they have not been compiled on
 * this cw_cuda; pointers of the call are not looked at. Without it each is compiled at its first launch, which then takes up to
 * seconds, and fails while a stream is captured into a graph. CW_GPU, CW_UNAVAILABLE: the message says why. */
cw_status cw_cuda_prepare(const cw_cuda *cuda, const cw_attention *attention, const cw_call *call, char *message,
                          uint64_t message_bytes);

/* All tokens of all heads, as cw_forward, on a CUstream (null: the default one). CW_GPU: the driver refused; the message says what. */
cw_status cw_cuda_forward(const cw_cuda *cuda, const cw_attention *attention, const cw_call *call, void *stream, char *message,
                          uint64_t message_bytes);

/* One token of all heads, as cw_decode; without scratch. */
cw_status cw_cuda_decode(const cw_cuda *cuda, const cw_attention *attention, const cw_call *call, void *stream, char *message,
                         uint64_t message_bytes);

#ifdef __cplusplus
}
#endif

#endif
