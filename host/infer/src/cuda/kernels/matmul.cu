// out[token] = weights · x[token].
//
// One order of sums for all sizes of a batch: the units of a row are cut into SLICES runs, each run is summed in order,
// and then the runs are. So what a token gets does not depend on how many others are in the step, nor on which of the two
// tensor-core kernels computes it.
#include "weights.cuh"

#define SLICES 8

DEVICE int slice_start(int slice, int units) { return (int)((long long)slice * units / SLICES); }

// f32 weights and sums. A block is a tile of 16 rows and 4 tokens; each of its 8 warps sums a slice.
template <class W>
DEVICE void exact(float* out, const float* x, const Part& part, int tokens, int width, int out_width, int first, int add) {
    SHARED_MEMORY(shared);
    float* sums = (float*)shared;  // [warp][row][token]
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    int tile = blockIdx.x, token0 = blockIdx.y * 4;
    float acc[2][4] = {};
    for (int unit = slice_start(warp, part.units); unit < slice_start(warp + 1, part.units); unit++) {
        W raw = W::load(part, unit_of(part, tile, unit), lane);
        float weights[2][8];
        raw.floats(0, weights[0]);
        raw.floats(1, weights[1]);
        int column = unit * 32 + t * 8;
        for (int token = 0; token < 4; token++) {
            const float* row = x + (size_t)min(token0 + token, tokens - 1) * width;
            for (int i = 0; i < 8; i++) {
                float value = column + i < width ? row[column + i] : 0.f;
                acc[0][token] += weights[0][i] * value;
                acc[1][token] += weights[1][i] * value;
            }
        }
    }
    for (int half = 0; half < 2; half++)
        for (int token = 0; token < 4; token++) {
            float sum = acc[half][token];
            sum += __shfl_xor_sync(EVERY_LANE, sum, 1);
            sum += __shfl_xor_sync(EVERY_LANE, sum, 2);
            if (t == 0) sums[(warp * 16 + half * 8 + g) * 4 + token] = sum;
        }
    __syncthreads();
    int row = threadIdx.x / 4, token = threadIdx.x % 4;
    if (row >= 16 || tile * 16 + row >= part.rows || token0 + token >= tokens) return;
    float sum = 0.f;
    for (int slice = 0; slice < SLICES; slice++) sum += sums[(slice * 16 + row) * 4 + token];
    put(out + (size_t)(token0 + token) * out_width + first + tile * 16 + row, sum, add);
}

// acc += a unit of weights · 8 tokens. The 32 columns are taken in the order in which the lanes hold them, which is the
// same for weights and tokens: lane t's first four columns, then its last four.
DEVICE void multiply_unit(float (&acc)[4], const u32 (&low)[4], const u32 (&high)[4], uint4 x) {
    multiply_tile(acc, low[0], high[0], low[1], high[1], x.x, x.y);
    multiply_tile(acc, low[2], high[2], low[3], high[3], x.z, x.w);
}

// For few tokens: a block is a tile of 16 rows and 8 * GROUPS tokens; each of its 8 warps sums a slice, straight from
// device memory.
template <class W, int GROUPS>
DEVICE void narrow(float* out, const u16* x, const float* scale, const Part& part, int tokens, int padded, int out_width,
                   int first, int add) {
    SHARED_MEMORY(shared);
    float* sums = (float*)shared;  // [warp][group][lane][4]
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    int tile = blockIdx.x, token0 = blockIdx.y * 8 * GROUPS;
    const u16* rows[GROUPS];
    for (int group = 0; group < GROUPS; group++)
        rows[group] = x + (size_t)min(token0 + group * 8 + g, tokens - 1) * padded + t * 8;
    float acc[GROUPS][4] = {};
    int end = slice_start(warp + 1, part.units);
#pragma unroll(GROUPS == 1 ? 4 : 1)
    for (int unit = slice_start(warp, part.units); unit < end; unit++) {
        u32 low[4], high[4];
        W::load(part, unit_of(part, tile, unit), lane).halves(low, high);
        for (int group = 0; group < GROUPS; group++)
            multiply_unit(acc[group], low, high, *(const uint4*)(rows[group] + unit * 32));
    }
    for (int group = 0; group < GROUPS; group++)
        for (int i = 0; i < 4; i++) sums[((warp * GROUPS + group) * WARP + lane) * 4 + i] = acc[group][i];
    __syncthreads();
    for (int index = threadIdx.x; index < GROUPS * WARP * 4; index += blockDim.x) {
        float sum = 0.f;
        for (int slice = 0; slice < SLICES; slice++) sum += sums[slice * GROUPS * WARP * 4 + index];
        int group = index / (WARP * 4), from = index / 4 % WARP, i = index % 4;
        int row = tile * 16 + from / 4 + i / 2 * 8, token = token0 + group * 8 + from % 4 * 2 + i % 2;
        if (row < part.rows && token < tokens)
            put(out + (size_t)token * out_width + first + row, sum * scale[token], add);
    }
}

// For many tokens: a block is 8 tiles (128 rows) and 64 tokens, a warp 4 tiles and 32 tokens. Weights are widened once a
// block, into shared memory, in the order in which the lanes read them; the next unit is fetched while one is multiplied.
template <class W>
DEVICE void wide(float* out, const u16* x, const float* scale, const Part& part, int tokens, int padded, int out_width,
                 int first, int add) {
    SHARED_MEMORY(shared);
    uint4* weights = (uint4*)shared;           // [buffer][tile][half][lane]
    uint4* columns = weights + 2 * 8 * 2 * 32;  // [buffer][token][t]
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    int tile0 = blockIdx.x * 8, token0 = blockIdx.y * 64, tiles = (part.rows + 15) / 16;
    int own_tiles = warp % 2 * 4, own_tokens = warp / 2 * 32;

    W raw[2];
    uint4 fetched[2];
    auto fetch = [&](int unit) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            raw[i] = W::load(part, unit_of(part, min(tile0 + warp * 2 + i, tiles - 1), unit), lane);
            int piece = threadIdx.x + i * 128, token = min(token0 + piece / 4, tokens - 1);
            fetched[i] = *(const uint4*)(x + (size_t)token * padded + unit * 32 + piece % 4 * 8);
        }
    };
    auto keep = [&](int buffer) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            u32 low[4], high[4];
            raw[i].halves(low, high);
            uint4* to = weights + ((buffer * 8 + warp * 2 + i) * 2) * 32 + lane;
            to[0] = make_uint4(low[0], low[1], low[2], low[3]);
            to[32] = make_uint4(high[0], high[1], high[2], high[3]);
            columns[buffer * 256 + threadIdx.x + i * 128] = fetched[i];
        }
    };

    float total[4][4][4] = {}, acc[4][4][4] = {};
    fetch(0);
    keep(0);
    __syncthreads();
    int unit = 0;
    for (int slice = 0; slice < SLICES; slice++) {
        int end = slice_start(slice + 1, part.units);
        for (; unit < end; unit++) {
            bool more = unit + 1 < part.units;
            int buffer = unit & 1;
            if (more) fetch(unit + 1);
            uint4 tokens_of[4];
#pragma unroll
            for (int j = 0; j < 4; j++) tokens_of[j] = columns[buffer * 256 + (own_tokens + j * 8) * 4 + lane];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const uint4* from = weights + ((buffer * 8 + own_tiles + i) * 2) * 32 + lane;
                uint4 a = from[0], b = from[32];
                u32 low[4] = {a.x, a.y, a.z, a.w}, high[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
                for (int j = 0; j < 4; j++) multiply_unit(acc[i][j], low, high, tokens_of[j]);
            }
            if (more) keep(buffer ^ 1);
            __syncthreads();
        }
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < 4; j++)
#pragma unroll
                for (int k = 0; k < 4; k++) total[i][j][k] += acc[i][j][k], acc[i][j][k] = 0.f;
    }
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++)
#pragma unroll
            for (int k = 0; k < 4; k++) {
                int row = (tile0 + own_tiles + i) * 16 + lane / 4 + k / 2 * 8;
                int token = token0 + own_tokens + j * 8 + lane % 4 * 2 + k % 2;
                if (row < part.rows && token < tokens)
                    put(out + (size_t)token * out_width + first + row, total[i][j][k] * scale[token], add);
            }
}

#define EXACT(type)                                                                                                    \
    KERNEL(256, matmul_exact_##type, float* out, const float* x, Part part, int tokens, int width, int out_width,      \
           int first, int add) {                                                                                       \
        exact<type>(out, x, part, tokens, width, out_width, first, add);                                               \
    }
#define PRODUCT(threads, name, function)                                                                                \
    KERNEL(threads, name, float* out, const u16* x, const float* scale, Part part, int tokens, int padded,             \
           int out_width, int first, int add) {                                                                        \
        function(out, x, scale, part, tokens, padded, out_width, first, add);                                          \
    }
#define COMMA ,
#define PRODUCTS(type)                                              \
    PRODUCT(256, matmul_8_##type, narrow<type COMMA 1>)              \
    PRODUCT(256, matmul_32_##type, narrow<type COMMA 4>)             \
    PRODUCT(128, matmul_64_##type, wide<type>)
EXACT(F32)
EXACT(F16)
EXACT(BF16)
EXACT(Q4_0)
EXACT(Q4_1)
EXACT(Q5_0)
EXACT(Q5_1)
EXACT(Q8_0)
PRODUCTS(F16)
PRODUCTS(BF16)
PRODUCTS(Q4_0)
PRODUCTS(Q4_1)
PRODUCTS(Q5_0)
PRODUCTS(Q5_1)
PRODUCTS(Q8_0)
PRODUCTS(Q4_16)
PRODUCTS(Q8_16)
