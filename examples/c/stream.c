/* A stream of single tokens, with a snapshot of the state that is restored. */
#include <chunkwise.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { H = 4, K = 32, V = 32 };

static float q[H * K], k[H * K], v[H * V], o[H * V];

static void check(const char *what, cw_status status) {
    if (status == CW_OK) return;
    fprintf(stderr, "%s: %s\n", what, cw_status_string(status));
    exit(1);
}

/* Fills the rows of a token with numbers that depend only on the token. */
static void rows_of(int token) {
    for (int i = 0; i < H * K; i++) {
        q[i] = (float)((token * 31 + i * 7) % 23) / 11 - 1;
        k[i] = (float)((token * 17 + i * 5) % 19) / 9 - 1;
        v[i % (H * V)] = (float)((token * 13 + i * 3) % 29) / 14 - 1;
    }
}

int main(void) {
    cw_attention attention = CW_ATTENTION(CW_PER_CHUNK, 1e-8f, 64);
    cw_call call = CW_CALL;
    cw_sizes sizes = CW_SIZES;
    float first[H * V];

    call.q = cw_bthd(q, CW_F32, 1, 1, H, K);
    call.k = cw_bthd(k, CW_F32, 1, 1, H, K);
    call.v = cw_bthd(v, CW_F32, 1, 1, H, V);
    call.o = cw_bthd(o, CW_F32, 1, 1, H, V);
    check("sizes", cw_attention_sizes(&attention, &call, &sizes));
    void *memory = malloc((size_t)sizes.state_bytes + 63), *snapshot = malloc((size_t)sizes.state_bytes);
    void *scratch = malloc((size_t)sizes.decode_scratch_bytes);
    if (!memory || !snapshot || !scratch) return 1;
    /* A state may be at any address that is aligned for a float. It is updated fastest at a multiple of 64 bytes. */
    float *state = (float *)(((uintptr_t)memory + 63) / 64 * 64);
    check("state", cw_state_init(state, sizes.state_bytes));
    call.state_in = call.state_out = state;
    call.state_bytes = sizes.state_bytes;
    call.scratch = scratch;
    call.scratch_bytes = sizes.decode_scratch_bytes;

    for (int token = 0; token < 1000; token++) {
        rows_of(token);
        check("decode", cw_decode(&attention, &call));
    }

    /* Five guessed tokens are computed, then the snapshot is restored and five other tokens are computed. After the
     * snapshot is restored again, the five guessed tokens must have the same outputs as before. */
    memcpy(snapshot, state, (size_t)sizes.state_bytes);
    for (int token = 1000; token < 1005; token++) {
        rows_of(token);
        check("decode", cw_decode(&attention, &call));
    }
    memcpy(first, o, sizeof first);
    memcpy(state, snapshot, (size_t)sizes.state_bytes);
    for (int token = 2000; token < 2005; token++) {
        rows_of(token);
        check("decode", cw_decode(&attention, &call));
    }
    int moved = memcmp(first, o, sizeof first) != 0;
    memcpy(state, snapshot, (size_t)sizes.state_bytes);
    for (int token = 1000; token < 1005; token++) {
        rows_of(token);
        check("decode", cw_decode(&attention, &call));
    }
    int same = memcmp(first, o, sizeof first) == 0;
    printf("1005 tokens, %d bytes of state: after the snapshot came back the output is %s\n", (int)sizes.state_bytes,
           same && moved ? "the same" : "DIFFERENT");
    free(memory), free(snapshot), free(scratch);
    return !(same && moved);
}
