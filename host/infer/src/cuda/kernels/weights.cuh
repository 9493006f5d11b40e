// Weights as they lie on the device, and how a warp widens them.
//
// A matrix is cut into tiles of 16 rows, and a tile into units of 32 columns. A unit is what a warp takes at once: lane
// (g, t), with g = lane / 4 and t = lane % 4, holds columns 8t to 8t + 7 of the rows g and g + 8. All that the lane needs
// lies in one piece, so that a warp reads a unit in one run of bytes. The rows and columns that fill up the last
// tile and unit hold weights of 0.
//
// Each type has `load` (read a unit), `halves` (two rows of 8 weights as halves, for tensor cores) and `floats` (one of
// the two rows as floats, exactly the file's numbers).
#pragma once
#include "common.cuh"

// A matrix of one type. The same struct is in `matrix.rs`.
struct Part {
    const unsigned char* quants;
    // For each unit and g: the halves d of the rows g and g + 8; for types with a minimum d, m, d, m.
    const unsigned char* scales;
    // For 5-bit types, for each unit and lane: the fifth bits of row g, then of row g + 8.
    const unsigned char* high;
    int units;  // in a tile
    int rows;
};

DEVICE size_t unit_of(const Part& part, int tile, int unit) { return (size_t)tile * part.units + unit; }

// Four bits in each of two halves, as 1024 + bits: 1024 is where a half's step is 1.
#define NIBBLES 0x000f000fu
#define BIAS 0x64006400u

template <class T>
DEVICE T at(const unsigned char* base, size_t index) {
    return ((const T*)base)[index];
}

DEVICE u32 twice(u32 half) { return half * 0x00010001u; }

// A 4-bit word holds column 2i in bits 4i, and column 2i + 1 in bits 16 + 4i.
DEVICE u32 nibble(u32 word, int column) { return word >> (column / 2 * 4 + column % 2 * 16) & 15; }

// The fifth bit of column i is bit i.
DEVICE u32 fifth(u32 high, int column) { return (high >> column & 1) << 4; }

// The fifth bits of the columns 2i and 2i + 1, where `BIAS` and the nibbles leave room for them.
DEVICE u32 fifths(u32 high, int i) { return (high >> 2 * i & 1) << 4 | (high >> (2 * i + 1) & 1) << 20; }

struct Q4_0 {
    uint2 q;
    u32 d;

    static DEVICE Q4_0 load(const Part& part, size_t unit, int lane) {
        return {at<uint2>(part.quants, unit * WARP + lane), at<u32>(part.scales, unit * 8 + lane / 4)};
    }
    DEVICE void halves(u32 (&low)[4], u32 (&high)[4]) const {
        for (int i = 0; i < 4; i++) {
            low[i] = subtract_halves((q.x >> 4 * i & NIBBLES) | BIAS, 0x64086408u);
            high[i] = subtract_halves((q.y >> 4 * i & NIBBLES) | BIAS, 0x64086408u);
            low[i] = multiply_add_halves(low[i], twice(d & 0xffff), 0);
            high[i] = multiply_add_halves(high[i], twice(d >> 16), 0);
        }
    }
    DEVICE void floats(int half, float (&out)[8]) const {
        u32 word = half ? q.y : q.x;
        float scale = half_to_float((u16)(half ? d >> 16 : d));
        for (int i = 0; i < 8; i++) out[i] = scale * ((float)nibble(word, i) - 8.f);
    }
};

struct Q4_1 {
    uint2 q, dm;

    static DEVICE Q4_1 load(const Part& part, size_t unit, int lane) {
        return {at<uint2>(part.quants, unit * WARP + lane), at<uint2>(part.scales, unit * 8 + lane / 4)};
    }
    DEVICE void halves(u32 (&low)[4], u32 (&high)[4]) const {
        for (int i = 0; i < 4; i++) {
            low[i] = subtract_halves((q.x >> 4 * i & NIBBLES) | BIAS, BIAS);
            high[i] = subtract_halves((q.y >> 4 * i & NIBBLES) | BIAS, BIAS);
            low[i] = multiply_add_halves(low[i], twice(dm.x & 0xffff), twice(dm.x >> 16));
            high[i] = multiply_add_halves(high[i], twice(dm.y & 0xffff), twice(dm.y >> 16));
        }
    }
    DEVICE void floats(int half, float (&out)[8]) const {
        u32 word = half ? q.y : q.x, pair = half ? dm.y : dm.x;
        float scale = half_to_float((u16)pair), least = half_to_float((u16)(pair >> 16));
        for (int i = 0; i < 8; i++) out[i] = scale * (float)nibble(word, i) + least;
    }
};

struct Q5_0 {
    uint2 q;
    u32 d;
    u16 bits;

    static DEVICE Q5_0 load(const Part& part, size_t unit, int lane) {
        return {at<uint2>(part.quants, unit * WARP + lane), at<u32>(part.scales, unit * 8 + lane / 4),
                at<u16>(part.high, unit * WARP + lane)};
    }
    DEVICE void halves(u32 (&low)[4], u32 (&high)[4]) const {
        for (int i = 0; i < 4; i++) {
            low[i] = subtract_halves((q.x >> 4 * i & NIBBLES) | fifths(bits, i) | BIAS, 0x64106410u);
            high[i] = subtract_halves((q.y >> 4 * i & NIBBLES) | fifths(bits >> 8, i) | BIAS, 0x64106410u);
            low[i] = multiply_add_halves(low[i], twice(d & 0xffff), 0);
            high[i] = multiply_add_halves(high[i], twice(d >> 16), 0);
        }
    }
    DEVICE void floats(int half, float (&out)[8]) const {
        u32 word = half ? q.y : q.x, fifth_bits = half ? bits >> 8 : bits;
        float scale = half_to_float((u16)(half ? d >> 16 : d));
        for (int i = 0; i < 8; i++) out[i] = scale * ((float)(nibble(word, i) | fifth(fifth_bits, i)) - 16.f);
    }
};

struct Q5_1 {
    uint2 q, dm;
    u16 bits;

    static DEVICE Q5_1 load(const Part& part, size_t unit, int lane) {
        return {at<uint2>(part.quants, unit * WARP + lane), at<uint2>(part.scales, unit * 8 + lane / 4),
                at<u16>(part.high, unit * WARP + lane)};
    }
    DEVICE void halves(u32 (&low)[4], u32 (&high)[4]) const {
        for (int i = 0; i < 4; i++) {
            low[i] = subtract_halves((q.x >> 4 * i & NIBBLES) | fifths(bits, i) | BIAS, BIAS);
            high[i] = subtract_halves((q.y >> 4 * i & NIBBLES) | fifths(bits >> 8, i) | BIAS, BIAS);
            low[i] = multiply_add_halves(low[i], twice(dm.x & 0xffff), twice(dm.x >> 16));
            high[i] = multiply_add_halves(high[i], twice(dm.y & 0xffff), twice(dm.y >> 16));
        }
    }
    DEVICE void floats(int half, float (&out)[8]) const {
        u32 word = half ? q.y : q.x, pair = half ? dm.y : dm.x, fifth_bits = half ? bits >> 8 : bits;
        float scale = half_to_float((u16)pair), least = half_to_float((u16)(pair >> 16));
        for (int i = 0; i < 8; i++) out[i] = scale * (float)(nibble(word, i) | fifth(fifth_bits, i)) + least;
    }
};

// 8-bit weights lie with 128 added, so that a byte with 0x64 above it is the half 1024 + 128 + weight.
struct Q8_0 {
    uint4 q;
    u32 d;

    static DEVICE Q8_0 load(const Part& part, size_t unit, int lane) {
        return {at<uint4>(part.quants, unit * WARP + lane), at<u32>(part.scales, unit * 8 + lane / 4)};
    }
    static DEVICE u32 pair(u32 word, u32 selector, u32 scale) {
        u32 biased = __byte_perm(word, 0x64646464u, selector);
        return multiply_add_halves(subtract_halves(biased, 0x64806480u), scale, 0);
    }
    DEVICE void halves(u32 (&low)[4], u32 (&high)[4]) const {
        u32 first = twice(d & 0xffff), second = twice(d >> 16);
        low[0] = pair(q.x, 0x4140, first), low[1] = pair(q.x, 0x4342, first);
        low[2] = pair(q.y, 0x4140, first), low[3] = pair(q.y, 0x4342, first);
        high[0] = pair(q.z, 0x4140, second), high[1] = pair(q.z, 0x4342, second);
        high[2] = pair(q.w, 0x4140, second), high[3] = pair(q.w, 0x4342, second);
    }
    DEVICE void floats(int half, float (&out)[8]) const {
        u32 words[2] = {half ? q.z : q.x, half ? q.w : q.y};
        float scale = half_to_float((u16)(half ? d >> 16 : d));
        for (int i = 0; i < 8; i++) out[i] = scale * ((float)(words[i / 4] >> i % 4 * 8 & 255) - 128.f);
    }
};

// 4-bit weights with a scale and a minimum for each 16 of them: for each unit, g and half of the columns d, m, d, m.
struct Q4_16 : Q4_1 {
    static DEVICE Q4_16 load(const Part& part, size_t unit, int lane) {
        return {{at<uint2>(part.quants, unit * WARP + lane), at<uint2>(part.scales, unit * 16 + lane / 4 * 2 + lane % 4 / 2)}};
    }
};

// 8-bit weights with a scale for each 16 of them.
struct Q8_16 : Q8_0 {
    static DEVICE Q8_16 load(const Part& part, size_t unit, int lane) {
        return {{at<uint4>(part.quants, unit * WARP + lane), at<u32>(part.scales, unit * 16 + lane / 4 * 2 + lane % 4 / 2)}};
    }
};

struct F16 {
    uint4 q[2];

    static DEVICE F16 load(const Part& part, size_t unit, int lane) {
        return {{at<uint4>(part.quants, (unit * WARP + lane) * 2), at<uint4>(part.quants, (unit * WARP + lane) * 2 + 1)}};
    }
    DEVICE void halves(u32 (&low)[4], u32 (&high)[4]) const {
        low[0] = q[0].x, low[1] = q[0].y, low[2] = q[0].z, low[3] = q[0].w;
        high[0] = q[1].x, high[1] = q[1].y, high[2] = q[1].z, high[3] = q[1].w;
    }
    DEVICE void floats(int half, float (&out)[8]) const {
        uint4 row = half ? q[1] : q[0];
        u32 words[4] = {row.x, row.y, row.z, row.w};
        for (int i = 0; i < 8; i++) out[i] = half_to_float((u16)(words[i / 2] >> i % 2 * 16));
    }
};

struct BF16 {
    uint4 q[2];

    static DEVICE BF16 load(const Part& part, size_t unit, int lane) {
        return {{at<uint4>(part.quants, (unit * WARP + lane) * 2), at<uint4>(part.quants, (unit * WARP + lane) * 2 + 1)}};
    }
    // A bfloat16 is the upper half of a float.
    static DEVICE float upper(u32 word) { return __uint_as_float(word & 0xffff0000u); }
    static DEVICE float lower(u32 word) { return __uint_as_float(word << 16); }
    DEVICE void halves(u32 (&low)[4], u32 (&high)[4]) const {
        u32 first[4] = {q[0].x, q[0].y, q[0].z, q[0].w}, second[4] = {q[1].x, q[1].y, q[1].z, q[1].w};
        for (int i = 0; i < 4; i++) {
            low[i] = pack_halves(lower(first[i]), upper(first[i]));
            high[i] = pack_halves(lower(second[i]), upper(second[i]));
        }
    }
    DEVICE void floats(int half, float (&out)[8]) const {
        uint4 row = half ? q[1] : q[0];
        u32 words[4] = {row.x, row.y, row.z, row.w};
        for (int i = 0; i < 8; i++) out[i] = i % 2 ? upper(words[i / 2]) : lower(words[i / 2]);
    }
};

struct F32 {
    float4 q[4];

    static DEVICE F32 load(const Part& part, size_t unit, int lane) {
        F32 out;
        for (int i = 0; i < 4; i++) out.q[i] = at<float4>(part.quants, (unit * WARP + lane) * 4 + i);
        return out;
    }
    DEVICE void floats(int half, float (&out)[8]) const {
        float4 a = half ? q[2] : q[0], b = half ? q[3] : q[1];
        out[0] = a.x, out[1] = a.y, out[2] = a.z, out[3] = a.w;
        out[4] = b.x, out[5] = b.y, out[6] = b.z, out[7] = b.w;
    }
};
