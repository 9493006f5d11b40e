// What all kernels share: types, half precision, reductions, tensor-core products.
//
// No CUDA header is included: the run-time compiler has none built in, and its types and intrinsics are enough.
// A helper that needs inline PTX has a plain twin of the same name in the test driver's `shim.h`; the macro
// MILLGATE_TEST_DRIVER chooses. Nothing else differs between a GPU and the test driver.
#pragma once

#ifdef MILLGATE_TEST_DRIVER
#include "shim.h"
#else

#define DEVICE __device__ __forceinline__
// A kernel of up to `threads` threads a block.
#define KERNEL(threads, name, ...) extern "C" __global__ void __launch_bounds__(threads) name(__VA_ARGS__)
// The same, for kernels of many registers: the compiler is to leave room for so many blocks at once, and for no more.
#define LARGE_KERNEL(threads, blocks, name, ...) \
    extern "C" __global__ void __launch_bounds__(threads, blocks) name(__VA_ARGS__)
// The block's shared memory, whose size the launch says.
#define SHARED_MEMORY(name)              \
    extern __shared__ uint4 name##_all[]; \
    unsigned char* name = (unsigned char*)name##_all

typedef unsigned short u16;
typedef unsigned int u32;

DEVICE float half_to_float(u16 half) {
    float out;
    asm("cvt.f32.f16 %0, %1;" : "=f"(out) : "h"(half));
    return out;
}

DEVICE u16 float_to_half(float x) {
    u16 out;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out) : "f"(x));
    return out;
}

// Two halves in a word, the first one low.
DEVICE u32 pack_halves(float first, float second) {
    u32 out;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(out) : "f"(second), "f"(first));
    return out;
}

// a - b, for two halves at once.
DEVICE u32 subtract_halves(u32 a, u32 b) {
    u32 out;
    asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(out) : "r"(a), "r"(b));
    return out;
}

// a * b + c with one rounding, for two halves at once.
DEVICE u32 multiply_add_halves(u32 a, u32 b, u32 c) {
    u32 out;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(out) : "r"(a), "r"(b), "r"(c));
    return out;
}

// d += a · b for a (16 x 16) and b (16 x 8) in half precision, spread over the warp's lanes (PTX ISA, mma.m16n8k16).
// With g = lane / 4 and t = lane % 4: a[0] holds row g, columns 2t and 2t + 1; a[1] row g + 8; a[2] and a[3] the same
// rows, 8 columns on. b[0] holds column g, rows 2t and 2t + 1; b[1] 8 rows on. d[0], d[1] are row g, columns 2t
// and 2t + 1; d[2], d[3] are row g + 8.
DEVICE void multiply_tile(float (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

#endif

#define WARP 32
#define EVERY_LANE 0xffffffffu
// Tokens in a page of the KV cache.
#define PAGE 32

DEVICE float negative_infinity() { return __int_as_float((int)0xff800000); }

DEVICE float warp_sum(float x) {
    for (int distance = WARP / 2; distance > 0; distance /= 2) x += __shfl_xor_sync(EVERY_LANE, x, distance);
    return x;
}

DEVICE float warp_max(float x) {
    for (int distance = WARP / 2; distance > 0; distance /= 2)
        x = fmaxf(x, __shfl_xor_sync(EVERY_LANE, x, distance));
    return x;
}

// The sum over the block; `shared` holds a float for each warp. Every thread of the block calls it.
DEVICE float block_sum(float x, float* shared) {
    x = warp_sum(x);
    __syncthreads();
    if (threadIdx.x % WARP == 0) shared[threadIdx.x / WARP] = x;
    __syncthreads();
    float sum = 0.f;
    for (u32 i = 0; i < blockDim.x / WARP; i++) sum += shared[i];
    return sum;
}

DEVICE float block_max(float x, float* shared) {
    x = warp_max(x);
    __syncthreads();
    if (threadIdx.x % WARP == 0) shared[threadIdx.x / WARP] = x;
    __syncthreads();
    float most = shared[0];
    for (u32 i = 1; i < blockDim.x / WARP; i++) most = fmaxf(most, shared[i]);
    return most;
}

// Sets, or adds to what is there.
DEVICE void put(float* out, float value, int add) { *out = add ? *out + value : value; }

// A power of two by its exponent, -126 to 127.
DEVICE float power_of_two(int exponent) { return __int_as_float((exponent + 127) << 23); }

// Writes a row in half precision, over a power of two that keeps it in range: row = half * scale. Dividing by a power of
// two is exact, and what a row gets depends on nothing but itself. Columns up to `padded` become 0.
DEVICE void round_row(const float* row, float most, int width, int padded, u16* half, float* scale) {
    int exponent = (int)(__float_as_uint(most) >> 23 & 255) - 127 - 13;
    exponent = max(-100, min(100, exponent));
    float down = power_of_two(-exponent);
    for (int i = threadIdx.x; i < padded; i += blockDim.x) half[i] = i < width ? float_to_half(row[i] * down) : 0;
    if (threadIdx.x == 0) *scale = power_of_two(exponent);
}
