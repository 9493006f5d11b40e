// What treats each row by itself: embedding, norms, rotation, activations, bias, gather.
#include "weights.cuh"

// out[row] = the table's row of each id, times a scale; set or added. A block is a row.
template <class W>
DEVICE void embed(float* out, const Part& table, const u32* ids, int width, float scale, int add) {
    int id = (int)ids[blockIdx.x], tile = id / 16, row = id % 16;
    for (int piece = threadIdx.x; piece * 8 < width; piece += blockDim.x) {
        float values[8];
        W::load(table, unit_of(table, tile, piece / 4), row % 8 * 4 + piece % 4).floats(row / 8, values);
        for (int i = 0; i < 8; i++)
            if (piece * 8 + i < width) put(out + (size_t)blockIdx.x * width + piece * 8 + i, values[i] * scale, add);
    }
}

#define EMBED(type)                                                                                                 \
    KERNEL(128, embed_##type, float* out, Part table, const u32* ids, int width, float scale, int add) {             \
        embed<type>(out, table, ids, width, scale, add);                                                             \
    }
EMBED(F32)
EMBED(F16)
EMBED(BF16)
EMBED(Q4_0)
EMBED(Q4_1)
EMBED(Q5_0)
EMBED(Q5_1)
EMBED(Q8_0)
EMBED(Q4_16)
EMBED(Q8_16)

// out[row] = x[row] / rms(x[row]) * weight (arXiv:1910.07467), set or added; and in half precision, for the product that
// follows, where `half` is not null. A block is a row.
KERNEL(256, rms_norm, float* out, u16* half, float* half_scale, const float* x, const float* weight, int width, int padded,
       float epsilon, int add) {
    SHARED_MEMORY(shared);
    x += (size_t)blockIdx.x * width, out += (size_t)blockIdx.x * width;
    float squares = 0.f, most = 0.f;
    for (int i = threadIdx.x; i < width; i += blockDim.x) squares += x[i] * x[i];
    float factor = 1.f / sqrtf(block_sum(squares, (float*)shared) / (float)width + epsilon);
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        put(out + i, x[i] * factor * weight[i], add);
        most = fmaxf(most, fabsf(out[i]));
    }
    if (half == nullptr) return;
    most = block_max(most, (float*)shared);
    round_row(out, most, width, padded, half + (size_t)blockIdx.x * padded, half_scale + blockIdx.x);
}

// out[row] = (x[row] - mean) / sqrt(variance + epsilon) * weight + bias (arXiv:1607.06450); and in half precision, as
// `rms_norm`. A block is a row.
KERNEL(256, layer_norm, float* out, u16* half, float* half_scale, const float* x, const float* weight, const float* bias,
       int width, int padded, float epsilon) {
    SHARED_MEMORY(shared);
    x += (size_t)blockIdx.x * width, out += (size_t)blockIdx.x * width;
    float sum = 0.f, squares = 0.f, most = 0.f;
    for (int i = threadIdx.x; i < width; i += blockDim.x) sum += x[i];
    float mean = block_sum(sum, (float*)shared) / (float)width;
    for (int i = threadIdx.x; i < width; i += blockDim.x) squares += (x[i] - mean) * (x[i] - mean);
    float factor = 1.f / sqrtf(block_sum(squares, (float*)shared) / (float)width + epsilon);
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        out[i] = (x[i] - mean) * factor * weight[i] + bias[i];
        most = fmaxf(most, fabsf(out[i]));
    }
    if (half == nullptr) return;
    most = block_max(most, (float*)shared);
    round_row(out, most, width, padded, half + (size_t)blockIdx.x * padded, half_scale + blockIdx.x);
}

// Each q head and each k head of a row becomes head / rms(head) * weight. A warp is a head; a block has 8 of a row's.
KERNEL(256, head_norm, float* qkv, const float* q_weight, const float* k_weight, int width, int heads, int kv_heads,
       int head_dim, float epsilon) {
    int head = blockIdx.y * 8 + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (head >= heads + kv_heads) return;
    const float* weight = head < heads ? q_weight : k_weight;
    float* x = qkv + (size_t)blockIdx.x * width + (size_t)head * head_dim;
    float squares = 0.f;
    for (int i = lane; i < head_dim; i += WARP) squares += x[i] * x[i];
    float factor = 1.f / sqrtf(warp_sum(squares) / (float)head_dim + epsilon);
    for (int i = lane; i < head_dim; i += WARP) x[i] = x[i] * factor * weight[i];
}

// out[row] = activation(gate) * up, where a row of x holds gate and then up (arXiv:2002.05202). The activation is 0: silu,
// or 1: gelu, approximated by tanh (arXiv:1606.08415). A block is a row.
KERNEL(256, gated, float* out, u16* half, float* half_scale, const float* x, int width, int padded, int activation) {
    SHARED_MEMORY(shared);
    x += (size_t)blockIdx.x * 2 * width, out += (size_t)blockIdx.x * width;
    float most = 0.f;
    for (int i = threadIdx.x; i < width; i += blockDim.x) {
        float gate = x[i];
        if (activation == 0)
            gate = gate / (1.f + expf(-gate));
        else
            gate = 0.5f * gate * (1.f + tanhf(0.7978845608f * (gate + 0.044715f * gate * gate * gate)));
        out[i] = gate * x[width + i];
        most = fmaxf(most, fabsf(out[i]));
    }
    if (half == nullptr) return;
    most = block_max(most, (float*)shared);
    round_row(out, most, width, padded, half + (size_t)blockIdx.x * padded, half_scale + blockIdx.x);
}

// x[row] = gelu(x[row]), not approximated. A block is a row.
KERNEL(256, gelu, float* x, int width) {
    x += (size_t)blockIdx.x * width;
    for (int i = threadIdx.x; i < width; i += blockDim.x) x[i] = 0.5f * x[i] * (1.f + erff(x[i] * 0.7071067812f));
}

// x[row] in half precision. A block is a row.
KERNEL(256, round_rows, u16* half, float* half_scale, const float* x, int width, int padded) {
    SHARED_MEMORY(shared);
    x += (size_t)blockIdx.x * width;
    float most = 0.f;
    for (int i = threadIdx.x; i < width; i += blockDim.x) most = fmaxf(most, fabsf(x[i]));
    most = block_max(most, (float*)shared);
    round_row(x, most, width, padded, half + (size_t)blockIdx.x * padded, half_scale + blockIdx.x);
}

// Rotates pairs in the first `heads` heads of each row (arXiv:2104.09864): neighbours, or elements `pairs` apart where
// `halves` is 1. angles[row] holds the cosines of the pairs, then their sines. A block is a row.
KERNEL(256, rope, float* x, const float* angles, int width, int heads, int head_dim, int pairs, int halves) {
    x += (size_t)blockIdx.x * width, angles += (size_t)blockIdx.x * 2 * pairs;
    for (int i = threadIdx.x; i < heads * pairs; i += blockDim.x) {
        int pair = i % pairs;
        float* head = x + i / pairs * head_dim;
        float *first = head + (halves ? pair : 2 * pair), *second = first + (halves ? pairs : 1);
        float a = *first, b = *second, cosine = angles[pair], sine = angles[pairs + pair];
        *first = a * cosine - b * sine;
        *second = a * sine + b * cosine;
    }
}

// x[row] += bias. A block is a row.
KERNEL(256, add_bias, float* x, const float* bias, int width) {
    for (int i = threadIdx.x; i < width; i += blockDim.x) x[(size_t)blockIdx.x * width + i] += bias[i];
}

// out[i] = x[rows[i]]. A block is a row of out.
KERNEL(256, gather, float* out, const float* x, const u32* rows, int width) {
    size_t from = (size_t)rows[blockIdx.x] * width;
    for (int i = threadIdx.x; i < width; i += blockDim.x) out[(size_t)blockIdx.x * width + i] = x[from + i];
}

// out[rows[i]][at..] += x[i], over the width of x. A block is a row of x.
KERNEL(256, scatter_add, float* out, const float* x, const u32* rows, int width, int out_width, int at) {
    float* to = out + (size_t)rows[blockIdx.x] * out_width + at;
    for (int i = threadIdx.x; i < width; i += blockDim.x) to[i] += x[(size_t)blockIdx.x * width + i];
}
