/* A model from a file: cw_model_open allocates memory, and cw_model_load uses the caller's. */
#include <chunkwise.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { B = 1, T = 40 };

static char message[200];

static void check(const char *what, cw_status status) {
    if (status == CW_OK) return;
    fprintf(stderr, "%s: %s %s\n", what, cw_status_string(status), message);
    exit(1);
}

static void *room(uint64_t bytes) {
    void *memory = malloc(bytes ? (size_t)bytes : 1);
    if (!memory) exit(1);
    return memory;
}

static void *whole_file(const char *path, uint64_t *bytes) {
    FILE *file = fopen(path, "rb");
    if (!file || fseek(file, 0, SEEK_END)) exit(1);
    *bytes = (uint64_t)ftell(file);
    rewind(file);
    void *memory = room(*bytes);
    if (fread(memory, 1, (size_t)*bytes, file) != *bytes) exit(1);
    fclose(file);
    return memory;
}

/* The model's output for a fixed input. The caller must free it. */
static float *answer(const cw_model *model, uint64_t *bytes) {
    cw_model_sizes sizes = CW_MODEL_SIZES;
    check("sizes", cw_model_sizes_of(model, B, T, &sizes));
    cw_model_call call = CW_MODEL_CALL;
    call.batch = B;
    call.len = T;
    call.input_bytes = B * T * sizes.embed_dim * sizeof(float);
    call.output_bytes = sizes.output_bytes;
    call.scratch_bytes = sizes.forward_scratch_bytes;
    float *input = room(call.input_bytes), *output = room(call.output_bytes), *scratch = room(call.scratch_bytes);
    for (uint64_t i = 0; i < B * T * sizes.embed_dim; i++) input[i] = (float)(i % 17) / 8 - 1;
    call.input = input;
    call.output = output;
    call.scratch = scratch;
    check("forward", cw_model_forward(model, &call));
    *bytes = call.output_bytes;
    free(input);
    free(scratch);
    return output;
}

int main(int argc, char **argv) {
    const cw_model *model;
    uint64_t bytes, bytes_again, memory_bytes, align;
    if (argc < 2) return fprintf(stderr, "usage: %s model.safetensors [options.json]\n", argv[0]), 1;

    cw_model_file file = CW_MODEL_FILE;
    file.message = message;
    file.message_bytes = sizeof message;
    if (argc > 2) file.json = whole_file(argv[2], &file.json_len);
    check(argv[1], cw_model_open(argv[1], &file, &model));
    float *output = answer(model, &bytes);
    check("close", cw_model_close(model));

    /* The same model in the caller's memory. This memory and the bytes of the file must exist as long as the model is
     * used. */
    void *weights = whole_file(argv[1], &file.bytes_len);
    file.bytes = weights;
    cw_model_config config = CW_MODEL_CONFIG(1);
    check(argv[1], cw_model_file_config(&file, &config));
    check("memory", cw_model_memory(&config, &memory_bytes, &align));
    void *memory = room(memory_bytes);
    check(argv[1], cw_model_load(&file, memory, memory_bytes, &model));
    float *again = answer(model, &bytes_again);

    int same = bytes == bytes_again && memcmp(output, again, (size_t)bytes) == 0;
    printf("%d layers of %d: output begins %g %g %g; loaded %s\n", (int)config.num_layers, (int)config.hidden_size,
           output[0], output[1], output[2], same ? "the same" : "DIFFERENT");
    free((void *)file.json), free(output), free(again), free(memory), free(weights);
    return !same;
}
