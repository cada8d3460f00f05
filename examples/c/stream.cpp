// The same header in C++11, with errors as exceptions and memory in vectors: a sequence is computed by one forward and
// token by token.
#include <chunkwise.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <stdexcept>
#include <vector>

namespace {

void check(cw_status status) {
    if (status != CW_OK) throw std::runtime_error(cw_status_string(status));
}

constexpr uint64_t T = 50, H = 2, K = 16, V = 16;

struct Attention {
    cw_attention what = CW_ATTENTION(CW_GLOBAL, 1e-6f, 0);
    cw_sizes sizes = CW_SIZES;
    std::vector<float> state, scratch;

    // A call for tensors of `len` tokens, with memory for its state and scratch. The tensors are not read.
    cw_call call(const float *q, const float *k, const float *v, float *o, uint64_t len) {
        cw_call call = CW_CALL;
        call.q = cw_bthd(q, CW_F32, 1, len, H, K);
        call.k = cw_bthd(k, CW_F32, 1, len, H, K);
        call.v = cw_bthd(v, CW_F32, 1, len, H, V);
        call.o = cw_bthd(o, CW_F32, 1, len, H, V);
        check(cw_attention_sizes(&what, &call, &sizes));
        state.resize(sizes.state_bytes / sizeof(float));
        scratch.resize(std::max(sizes.forward_scratch_bytes, sizes.decode_scratch_bytes) / sizeof(float));
        call.state_in = call.state_out = state.data();
        call.state_bytes = state.size() * sizeof(float);
        call.scratch = scratch.data();
        call.scratch_bytes = scratch.size() * sizeof(float);
        return call;
    }
};

}  // namespace

int main() try {
    std::vector<float> q(T * H * K), k(T * H * K), v(T * H * V), all(T * H * V), tokens(T * H * V);
    for (std::size_t i = 0; i < q.size(); i++) {
        q[i] = std::sin(float(i));
        k[i] = std::cos(float(3 * i));
        v[i] = std::sin(float(7 * i) + 1);
    }

    Attention whole, stream;
    cw_call call = whole.call(q.data(), k.data(), v.data(), all.data(), T);
    check(cw_forward(&whole.what, &call));
    for (uint64_t t = 0; t < T; t++) {
        const std::size_t row = t * H * K;
        call = stream.call(&q[row], &k[row], &v[row], &tokens[t * H * V], 1);
        check(cw_decode(&stream.what, &call));
    }

    const bool same = std::memcmp(all.data(), tokens.data(), all.size() * sizeof(float)) == 0;
    std::printf("forward and %d times decode: %s bits\n", int(T), same ? "the same" : "DIFFERENT");
    return !same;
} catch (const std::exception &error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
}
