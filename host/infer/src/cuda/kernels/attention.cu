// The KV cache, and attention over it.
//
// A page holds, in each layer, for each kv head the keys of its tokens, one token after another, and then for each kv head
// the values, one dimension after another. So both products read 16 bytes a lane: eight dimensions of a key, or one dimension
// of eight values. In the cache of halves a head has room for 64, 128 or 256 dimensions; those that it lacks are 0.
#include "common.cuh"

// Kept finite: a weight of 0 times a value that another row may not see must be 0.
DEVICE void narrow_to(u16* to, float x) { *to = float_to_half(fminf(fmaxf(x, -65504.f), 65504.f)); }
DEVICE void narrow_to(float* to, float x) { *to = x; }

// Keeps each row's k and v. `slots[row]` is page * PAGE + place in the page. `cache` starts at the layer. A block is a row.
template <class E>
DEVICE void store(E* cache, const float* qkv, const u32* slots, int width, int first, int kv_heads, int head_dim,
                  int stored_dim, long long page_stride) {
    const float* row = qkv + (size_t)blockIdx.x * width + first;
    u32 slot = slots[blockIdx.x];
    E* page = cache + (size_t)(slot / PAGE) * page_stride;
    int place = (int)(slot % PAGE), kv = kv_heads * head_dim;
    for (int i = threadIdx.x; i < kv; i += blockDim.x) {
        int head = i / head_dim, dim = i % head_dim;
        narrow_to(page + (size_t)head * PAGE * stored_dim + place * stored_dim + dim, row[i]);
        narrow_to(page + (size_t)(kv_heads + head) * PAGE * stored_dim + dim * PAGE + place, row[kv + i]);
    }
}

KERNEL(256, store_kv_half, u16* cache, const float* qkv, const u32* slots, int width, int first, int kv_heads, int head_dim,
       int stored_dim, long long page_stride) {
    store(cache, qkv, slots, width, first, kv_heads, head_dim, stored_dim, page_stride);
}
KERNEL(256, store_kv_single, float* cache, const float* qkv, const u32* slots, int width, int first, int kv_heads,
       int head_dim, int stored_dim, long long page_stride) {
    store(cache, qkv, slots, width, first, kv_heads, head_dim, stored_dim, page_stride);
}

// How a step's heads and pages lie. The same struct is in `kernels.rs`.
struct Heads {
    const u32* last;        // the last position that each row attends to
    const u32* table_of;    // each row's page table
    const u32* tables;      // [table][stride]
    long long page_stride;  // elements
    int stride;
    int width;      // of a row of qkv
    int out_width;  // of a row of out
    int heads;
    int kv_heads;
    int head_dim;
    int stored_dim;  // room for a head in the cache
    int window;   // positions that a row attends to, up to its last; 0: all
    float scale;  // of q · k, times log2(e)
};

DEVICE int first_position(const Heads& shape, int last) {
    return shape.window > 0 ? max(0, last + 1 - shape.window) : 0;
}

// Plain f32 arithmetic over the cache of floats, heads of up to 256 dimensions. A warp is a head of a row; a block has 4 heads. Lane i scores the
// i-th token of a page; then it sums the dimensions i, i + 32, ... of the values.
KERNEL(128, attend_plain, float* out, const float* qkv, const float* cache, Heads shape) {
    SHARED_MEMORY(shared);
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, dim = shape.head_dim;
    int row = blockIdx.x, head = blockIdx.y * 4 + warp;
    if (head >= shape.heads) return;
    float* weights = (float*)shared + warp * WARP;
    const float* q = qkv + (size_t)row * shape.width + (size_t)head * dim;
    int end = (int)shape.last[row] + 1, begin = first_position(shape, end - 1);
    int kv_head = head / (shape.heads / shape.kv_heads);
    const u32* table = shape.tables + (size_t)shape.table_of[row] * shape.stride;
    float most = negative_infinity(), sum = 0.f, acc[8] = {};
    for (int base = begin / PAGE * PAGE; base < end; base += PAGE) {
        const float* page = cache + (size_t)table[base / PAGE] * shape.page_stride;
        const float* keys = page + (size_t)kv_head * PAGE * dim;
        const float* values = page + (size_t)(shape.kv_heads + kv_head) * PAGE * dim;
        int here = min(PAGE, end - base);
        float score = negative_infinity();
        if (lane < here && base + lane >= begin) {
            score = 0.f;
            for (int i = 0; i < dim; i++) score += q[i] * keys[lane * dim + i];
            score *= shape.scale;
        }
        float next = fmaxf(most, warp_max(score)), keep = exp2f(most - next), weight = exp2f(score - next);
        sum = sum * keep + warp_sum(weight);
        __syncwarp();
        weights[lane] = weight;
        __syncwarp();
#pragma unroll
        for (int i = 0; i < 8; i++) {
            if (lane + i * WARP >= dim) break;
            const float* column = values + (lane + i * WARP) * PAGE;
            float value = acc[i] * keep;
            for (int token = 0; token < here; token++) value += weights[token] * column[token];
            acc[i] = value;
        }
        most = next;
    }
#pragma unroll
    for (int i = 0; i < 8; i++)
        if (lane + i * WARP < dim) out[(size_t)row * shape.out_width + (size_t)head * dim + lane + i * WARP] = acc[i] / sum;
}

// ---- Attention on tensor cores ----
//
// A query is one head of one row. A tile is up to 16 queries of one sequence that share a kv head: the heads of a group, row
// after row. A warp takes a tile through units of 64 tokens. In a unit it scores all tokens, takes their softmax, and
// sums the values; units are then merged in their order (arXiv:2205.14135). The units of a long sequence may be shared out
// to many warps and merged by `combine` (SPLIT), or go through one warp, where there are enough tiles: the arithmetic
// is the same to the last bit, so a row's result does not depend on what else is in the step.

#define UNIT 64

struct Softmax {
    float most, sum;
};

// The factors by which what was summed up before, and a new unit, are multiplied; merges the sums.
DEVICE void merge(Softmax& before, Softmax unit, float& keep, float& add) {
    keep = 1.f, add = 0.f;
    if (unit.most == negative_infinity()) return;
    float most = fmaxf(before.most, unit.most);
    keep = exp2f(before.most - most), add = exp2f(unit.most - most);
    before.sum = __fmaf_rn(before.sum, keep, __fmul_rn(unit.sum, add));
    before.most = most;
}

// Blanks the halves from the n-th on.
DEVICE uint4 first_halves(uint4 x, int n) {
    u32 words[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
    for (int i = 0; i < 4; i++) words[i] = n >= 2 * i + 2 ? words[i] : n == 2 * i + 1 ? words[i] & 0xffff : 0;
    return make_uint4(words[0], words[1], words[2], words[3]);
}

// `tiles` hold: the first row of a run of rows, the rows of the run, the first query of the tile (SPLIT: the place of the
// first row in `partial`), the page table. A head is stored with 32 * BLOCKS dimensions. A block is 4 tiles
// of a kv head (of 256 dimensions: and one half of its values), or 4 units of a tile (SPLIT). The tokens of a page are scored in the order in which a lane holds them as values:
// lane t gets the tokens 8t to 8t + 7.
template <int BLOCKS, bool SPLIT>
DEVICE void attend(float* out, int units, const uint4* tiles, int count, const float* qkv, const u16* cache,
                   const Heads& shape) {
    const int DIM = BLOCKS * 32;
    // Dimensions of the values that a warp sums up: of the largest heads half, for the registers' sake.
    const int PARTS = BLOCKS == 8 && !SPLIT ? 2 : 1, EIGHTS = BLOCKS * 4 / PARTS;
    SHARED_MEMORY(shared);
    int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, g = lane / 4, t = lane % 4, dim = shape.head_dim;
    int index = SPLIT ? blockIdx.x : blockIdx.x * 4 + warp;
    if (index >= count) return;
    uint4 tile = tiles[index];
    int kv_head = blockIdx.y / PARTS, part = blockIdx.y % PARTS * EIGHTS * 8, group = shape.heads / shape.kv_heads;
    int queries = (int)tile.y * group, first_query = SPLIT ? 0 : (int)tile.z;
    const u32* table = shape.tables + (size_t)tile.w * shape.stride;

    // This lane's queries, g and g + 8: their rows and heads, and the last position that each attends to.
    auto place = [&](int half, int& row, int& head) {
        int query = min(first_query + g + half * 8, queries - 1);
        row = (int)tile.x + query / group;
        head = kv_head * group + query % group;
    };
    int last[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        int row, head;
        place(half, row, head);
        last[half] = first_query + g + half * 8 < queries ? (int)shape.last[row] : -1;
    }
    // What any of the tile's queries attends to.
    int end = (int)shape.last[tile.x + min(first_query + 15, queries - 1) / group] + 1;
    int begin = first_position(shape, (int)shape.last[tile.x + first_query / group]);

    // The queries in half precision, each lane's own: [block][half][lane].
    uint4* q = (uint4*)shared + warp * BLOCKS * 2 * WARP + lane;
#pragma unroll
    for (int block = 0; block < BLOCKS; block++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int row, head;
            place(half, row, head);
            const float* from = qkv + (size_t)row * shape.width + (size_t)head * dim;
            u32 words[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int column = block * 32 + t * 8 + i * 2;
                words[i] = pack_halves(column < dim ? from[column] * shape.scale : 0.f,
                                       column + 1 < dim ? from[column + 1] * shape.scale : 0.f);
            }
            q[(block * 2 + half) * WARP] = make_uint4(words[0], words[1], words[2], words[3]);
        }

    Softmax whole[2] = {{negative_infinity(), 0.f}, {negative_infinity(), 0.f}};
    float total[SPLIT ? 1 : EIGHTS][4] = {};
    int unit = begin / UNIT, stop = (end + UNIT - 1) / UNIT;
    if (SPLIT) {
        int mine = (int)blockIdx.z * 4 + warp;
        if (mine < unit || mine >= stop) return;
        unit = mine, stop = mine + 1;
    }
    for (; unit < stop; unit++) {
        float score[8][4] = {};
        const u16* page_of[2];
#pragma unroll
        for (int page = 0; page < 2; page++) {
            int base = unit * UNIT + page * PAGE;
            page_of[page] = cache + (size_t)table[min(base, end - 1) / PAGE] * shape.page_stride;
            if (base >= end) {
#pragma unroll
                for (int j = 0; j < 4; j++)
#pragma unroll
                    for (int i = 0; i < 4; i++) score[page * 4 + j][i] = negative_infinity();
                continue;
            }
            const u16* keys = page_of[page] + (size_t)kv_head * PAGE * DIM + (g / 2 * 8 + g % 2) * DIM + t * 8;
#pragma unroll
            for (int block = 0; block < BLOCKS; block++) {
                uint4 low = q[block * 2 * WARP], high = q[(block * 2 + 1) * WARP];
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    uint4 key = *(const uint4*)(keys + j * 2 * DIM + block * 32);
                    multiply_tile(score[page * 4 + j], low.x, high.x, low.y, high.y, key.x, key.y);
                    multiply_tile(score[page * 4 + j], low.z, high.z, low.w, high.w, key.z, key.w);
                }
            }
#pragma unroll
            for (int j = 0; j < 4; j++)
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    int position = base + t * 8 + j * 2 + i % 2;
                    if (position > last[i / 2] || position < first_position(shape, last[i / 2])) score[page * 4 + j][i] = negative_infinity();
                }
        }
        float keep[2], add[2];
        Softmax softmax[2];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float most = negative_infinity(), sum = 0.f;
#pragma unroll
            for (int j = 0; j < 8; j++) most = fmaxf(most, fmaxf(score[j][half * 2], score[j][half * 2 + 1]));
            most = fmaxf(most, __shfl_xor_sync(EVERY_LANE, most, 1));
            most = fmaxf(most, __shfl_xor_sync(EVERY_LANE, most, 2));
            bool any = most != negative_infinity();
#pragma unroll
            for (int j = 0; j < 8; j++)
#pragma unroll
                for (int i = half * 2; i < half * 2 + 2; i++) {
                    score[j][i] = any ? exp2f(score[j][i] - most) : 0.f;
                    sum += score[j][i];
                }
            sum += __shfl_xor_sync(EVERY_LANE, sum, 1);
            sum += __shfl_xor_sync(EVERY_LANE, sum, 2);
            softmax[half] = {most, sum};
            if (!SPLIT) merge(whole[half], softmax[half], keep[half], add[half]);
        }
        // The weights as the first operand of a product: [page][step][operand].
        u32 weights[2][2][4];
#pragma unroll
        for (int page = 0; page < 2; page++)
#pragma unroll
            for (int step = 0; step < 2; step++) {
                const float *a = score[page * 4 + step * 2], *b = score[page * 4 + step * 2 + 1];
                weights[page][step][0] = pack_halves(a[0], a[1]);
                weights[page][step][1] = pack_halves(a[2], a[3]);
                weights[page][step][2] = pack_halves(b[0], b[1]);
                weights[page][step][3] = pack_halves(b[2], b[3]);
            }
        // Where the unit's result goes (SPLIT): [row][head][unit][DIM + 2].
        float* partial[2] = {};
#pragma unroll
        for (int half = 0; SPLIT && half < 2; half++) {
            int row, head;
            place(half, row, head);
            partial[half] = out + (((size_t)tile.z + row - tile.x) * shape.heads + head) * units * (DIM + 2) + (size_t)unit * (DIM + 2);
        }
#pragma unroll
        for (int eight = 0; eight < EIGHTS; eight++) {
            float sum[4] = {};
#pragma unroll
            for (int page = 0; page < 2; page++) {
                int left = end - unit * UNIT - page * PAGE;
                if (left <= 0) break;
                const u16* values = page_of[page] + (size_t)(shape.kv_heads + kv_head) * PAGE * DIM + (part + g) * PAGE + t * 8;
                uint4 value = *(const uint4*)(values + eight * 8 * PAGE);
                if (left < PAGE) value = first_halves(value, left - t * 8);
                const u32(*w)[4] = weights[page];
                multiply_tile(sum, w[0][0], w[0][1], w[0][2], w[0][3], value.x, value.y);
                multiply_tile(sum, w[1][0], w[1][1], w[1][2], w[1][3], value.z, value.w);
            }
#pragma unroll
            for (int i = 0; i < 4; i++) {
                if (!SPLIT)
                    total[eight][i] = __fmaf_rn(total[eight][i], keep[i / 2], __fmul_rn(sum[i], add[i / 2]));
                else if (last[i / 2] >= 0)
                    partial[i / 2][eight * 8 + t * 2 + i % 2] = sum[i];
            }
        }
        if (SPLIT && t == 0) {
#pragma unroll
            for (int half = 0; half < 2; half++)
                if (last[half] >= 0) partial[half][DIM] = softmax[half].most, partial[half][DIM + 1] = softmax[half].sum;
        }
    }
    if (SPLIT) return;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        if (last[half] < 0) continue;
        int row, head;
        place(half, row, head);
        float* to = out + (size_t)row * shape.out_width + (size_t)head * dim + part + t * 2;
#pragma unroll
        for (int eight = 0; eight < EIGHTS; eight++)
#pragma unroll
            for (int i = 0; i < 2; i++)
                if (part + eight * 8 + t * 2 + i < dim) to[eight * 8 + i] = total[eight][half * 2 + i] / whole[half].sum;
    }
}

#define ATTEND(dims, blocks)                                                                                          \
    LARGE_KERNEL(128, 2, attend_whole_##dims, float* out, int units, const uint4* tiles, int count, const float* qkv,           \
           const u16* cache, Heads shape) {                                                                            \
        attend<blocks, false>(out, units, tiles, count, qkv, cache, shape);                                            \
    }                                                                                                                  \
    LARGE_KERNEL(128, 2, attend_split_##dims, float* out, int units, const uint4* tiles, int count, const float* qkv,           \
           const u16* cache, Heads shape) {                                                                            \
        attend<blocks, true>(out, units, tiles, count, qkv, cache, shape);                                             \
    }
ATTEND(64, 2)
ATTEND(128, 4)
ATTEND(256, 8)

// Merges the units of each of `rows`, in their order. A block is a head of a row.
KERNEL(256, combine, float* out, const float* partial, const u32* rows, int units, Heads shape) {
    int row = (int)rows[blockIdx.x], head = blockIdx.y, dim = shape.head_dim;
    int last = (int)shape.last[row], stored = shape.stored_dim, record = stored + 2;
    partial += ((size_t)blockIdx.x * shape.heads + head) * units * record;
    for (int i = threadIdx.x; i < dim; i += blockDim.x) {
        Softmax whole = {negative_infinity(), 0.f};
        float total = 0.f;
        for (int unit = first_position(shape, last) / UNIT; unit <= last / UNIT; unit++) {
            const float* from = partial + (size_t)unit * record;
            float keep, add;
            merge(whole, {from[stored], from[stored + 1]}, keep, add);
            total = __fmaf_rn(total, keep, __fmul_rn(from[i], add));
        }
        out[(size_t)row * shape.out_width + (size_t)head * dim + i] = total / whole.sum;
    }
}
