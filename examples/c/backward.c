/* Gradients of a loss, of which some are compared with differences of the loss. */
#include <chunkwise.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { B = 1, T = 40, H = 2, K = 8, V = 12, ROWS = B * T * H };

static float q[ROWS * K], k[ROWS * K], v[ROWS * V], o[ROWS * V], weights[ROWS * V];
static float dq[ROWS * K], dk[ROWS * K], dv[ROWS * V];
static float state[CW_STATE_BYTES(B, H, K, V, CW_GLOBAL) / sizeof(float)], dstate[sizeof state / sizeof(float)];

static cw_attention attention = CW_ATTENTION(CW_GLOBAL, 1e-6f, 0);
static cw_call call = CW_CALL;

static void check(const char *what, cw_status status) {
    if (status == CW_OK) return;
    fprintf(stderr, "%s: %s\n", what, cw_status_string(status));
    exit(1);
}

static float noise(void) {
    static uint32_t x = 1;
    x = x * 1664525u + 1013904223u;
    return (float)(x >> 8) / (float)(1 << 23) - 1.0f;
}

/* The loss is the sum of all outputs, each times a weight, which is therefore the gradient of the output. */
static double loss(void) {
    double sum = 0;
    check("forward", cw_forward(&attention, &call));
    for (int i = 0; i < ROWS * V; i++) sum += (double)weights[i] * o[i];
    return sum;
}

/* How far the gradient of x[at] is from a difference. */
static double error_of(float *x, const float *gradient, int at) {
    const float before = x[at], step = 1.0f / 64;
    x[at] = before + step;
    double difference = loss();
    x[at] = before - step;
    difference = (difference - loss()) / (2 * step);
    x[at] = before;
    return fabs(difference - gradient[at]);
}

int main(void) {
    cw_gradients gradients = CW_GRADIENTS;
    cw_sizes sizes = CW_SIZES;
    double worst = 0;

    for (int i = 0; i < ROWS * K; i++) q[i] = noise(), k[i] = noise();
    for (int i = 0; i < ROWS * V; i++) v[i] = noise(), weights[i] = noise();
    /* The state is positive, as sums of phi(k) are. */
    for (size_t i = 0; i < sizeof state / sizeof(float); i++) state[i] = 2 + noise();
    call.q = cw_bthd(q, CW_F32, B, T, H, K), gradients.q = cw_bthd(dq, CW_F32, B, T, H, K);
    call.k = cw_bthd(k, CW_F32, B, T, H, K), gradients.k = cw_bthd(dk, CW_F32, B, T, H, K);
    call.v = cw_bthd(v, CW_F32, B, T, H, V), gradients.v = cw_bthd(dv, CW_F32, B, T, H, V);
    call.o = cw_bthd(o, CW_F32, B, T, H, V), gradients.o = cw_bthd(weights, CW_F32, B, T, H, V);
    call.state_in = state, gradients.state_in = dstate;
    call.state_bytes = gradients.state_bytes = sizeof state;
    check("sizes", cw_attention_sizes(&attention, &call, &sizes));
    call.scratch_bytes = sizes.backward_scratch_bytes;
    if (call.scratch_bytes < sizes.forward_scratch_bytes) call.scratch_bytes = sizes.forward_scratch_bytes;
    if (!(call.scratch = malloc((size_t)call.scratch_bytes))) return 1;
    check("backward", cw_backward(&attention, &call, &gradients));

    for (int t = 0; t < T; t += 13) {
        int at = t * H * K + 3;
        worst = fmax(worst, fmax(error_of(q, dq, at), error_of(k, dk, at)));
        worst = fmax(worst, fmax(error_of(v, dv, t * H * V), error_of(state, dstate, t)));
    }
    printf("gradients of q, k, v and the state: at most %.1e from differences\n", worst);
    free(call.scratch);
    return !(worst < 1e-4);
}
