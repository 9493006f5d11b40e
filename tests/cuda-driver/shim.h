// CUDA's execution model on the host: what `common.cuh` includes instead of inline PTX when the kernels are compiled as C++.
//
// Every CUDA thread is a fiber, so that barriers and warp operations are real meeting points, and the order in which the
// threads of a block run between two of them is the driver's choice (`seed`). What it cannot show: speed, bank conflicts,
// the memory model of real hardware, and errors in the text of inline PTX.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>

struct uint2 { unsigned x, y; };
struct uint3 { unsigned x, y, z; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(16) float4 { float x, y, z, w; };
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
typedef unsigned short u16;
typedef unsigned int u32;

namespace shim {

enum class State : uint8_t { Runs, AtBarrier, InWarp, Done };

struct Fiber {
    void* stack_pointer;
    unsigned index;
    State state;
    uint32_t mask;  // the lanes that it waits for
};

// Where the lanes of a warp leave what the others read.
struct Warp {
    unsigned char slot[32][16];
    float a[16][16], b[8][16];
};

struct Block {
    uint3 index, threads, grid;
    unsigned count;
    Fiber* fibers;
    Warp* warps;
    Fiber* current;
    void* scheduler;
    unsigned char* shared;
    void (*run)(void**);
    void** arguments;
};

extern thread_local Block* block;

inline Warp& warp() { return block->warps[block->current->index / 32]; }
inline unsigned lane() { return block->current->index % 32; }
void pause(State state);  // back to the scheduler
inline void meet(uint32_t mask) {
    block->current->mask = mask;
    pause(State::InWarp);
}
template <class T>
T exchange(uint32_t mask, T value, unsigned from) {
    static_assert(sizeof(T) <= 16);
    Warp& all = warp();
    memcpy(all.slot[lane()], &value, sizeof value);
    meet(mask);
    T out;
    memcpy(&out, all.slot[from % 32], sizeof out);
    meet(mask);
    return out;
}

struct Kernel {
    const char* name;
    unsigned threads;  // its launch bound
    void (*run)(void**);
    std::vector<unsigned> sizes;  // of its arguments
};
std::vector<Kernel>& kernels();

template <class... A, size_t... I>
void call(void (*kernel)(A...), void** arguments, std::index_sequence<I...>) {
    kernel(*(std::remove_reference_t<A>*)arguments[I]...);
}
template <auto K>
struct Entry;
template <class... A, void (*K)(A...)>
struct Entry<K> {
    static void run(void** arguments) { call(K, arguments, std::index_sequence_for<A...>{}); }
    static bool add(const char* name, unsigned threads) {
        kernels().push_back({name, threads, run, {(unsigned)sizeof(A)...}});
        return true;
    }
};

float half_to_float(uint16_t half);
uint16_t float_to_half(float x);

}  // namespace shim

#define DEVICE inline
#define KERNEL(threads, name, ...)                                                    \
    static void name(__VA_ARGS__);                                                    \
    static const bool name##_added = shim::Entry<&name>::add(#name, threads);         \
    static void name(__VA_ARGS__)
#define LARGE_KERNEL(threads, blocks, name, ...) KERNEL(threads, name, __VA_ARGS__)
#define SHARED_MEMORY(name) unsigned char* name = shim::block->shared
#define threadIdx (shim::thread_index())
#define blockIdx (shim::block->index)
#define blockDim (shim::block->threads)
#define gridDim (shim::block->grid)
namespace shim {
inline uint3 thread_index() {
    unsigned i = block->current->index, x = block->threads.x, y = block->threads.y;
    return {i % x, i / x % y, i / x / y};
}
}  // namespace shim

inline void __syncthreads() { shim::pause(shim::State::AtBarrier); }
inline void __syncwarp(uint32_t mask = ~0u) { shim::meet(mask); }
template <class T>
T __shfl_xor_sync(uint32_t mask, T value, int distance) {
    return shim::exchange(mask, value, shim::lane() ^ distance);
}
template <class T>
T __shfl_sync(uint32_t mask, T value, int from) {
    return shim::exchange(mask, value, from);
}
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
    uint64_t bytes = (uint64_t)y << 32 | x;
    unsigned out = 0;
    for (int i = 0; i < 4; i++) out |= (unsigned)(bytes >> (selector >> 4 * i & 7) * 8 & 255) << 8 * i;
    return out;
}
inline float __int_as_float(int x) {
    float out;
    memcpy(&out, &x, 4);
    return out;
}
inline float __uint_as_float(unsigned x) { return __int_as_float((int)x); }
inline unsigned __float_as_uint(float x) {
    unsigned out;
    memcpy(&out, &x, 4);
    return out;
}
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
using std::max;
using std::min;

// ---- The twins of the helpers in inline PTX ----
inline float half_to_float(u16 half) { return shim::half_to_float(half); }
inline u16 float_to_half(float x) { return shim::float_to_half(x); }
inline u32 pack_halves(float first, float second) {
    return shim::float_to_half(first) | (u32)shim::float_to_half(second) << 16;
}
template <class F>
u32 each_half(u32 a, u32 b, u32 c, F f) {
    u32 out = 0;
    for (int shift = 0; shift < 32; shift += 16) {
        auto part = [&](u32 x) { return shim::half_to_float((u16)(x >> shift)); };
        out |= (u32)shim::float_to_half(f(part(a), part(b), part(c))) << shift;
    }
    return out;
}
inline u32 subtract_halves(u32 a, u32 b) {
    return each_half(a, b, 0, [](float a, float b, float) { return a - b; });
}
// A product of two halves is exact in a float; the sum is rounded twice, which differs from one rounding only where the
// float lies exactly between two halves.
inline u32 multiply_add_halves(u32 a, u32 b, u32 c) {
    return each_half(a, b, c, [](float a, float b, float c) { return a * b + c; });
}
inline void multiply_tile(float (&d)[4], u32 a0, u32 a1, u32 a2, u32 a3, u32 b0, u32 b1) {
    shim::Warp& all = shim::warp();
    unsigned lane = shim::lane(), g = lane / 4, t = lane % 4;
    auto put = [](float* to, u32 pair) {
        to[0] = shim::half_to_float((u16)pair);
        to[1] = shim::half_to_float((u16)(pair >> 16));
    };
    put(&all.a[g][2 * t], a0), put(&all.a[g + 8][2 * t], a1);
    put(&all.a[g][2 * t + 8], a2), put(&all.a[g + 8][2 * t + 8], a3);
    put(&all.b[g][2 * t], b0), put(&all.b[g][2 * t + 8], b1);  // by column
    shim::meet(~0u);
    for (int i = 0; i < 4; i++) {
        const float *row = all.a[g + i / 2 * 8], *column = all.b[2 * t + i % 2];
        float sum = 0;
        for (int k = 0; k < 16; k++) sum += row[k] * column[k];
        d[i] += sum;
    }
    shim::meet(~0u);
}
