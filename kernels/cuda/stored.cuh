// Weights as codes of eight or four bits, that become bf16 in registers: number = factor * (scale * code - minimum).
//
//     codes    [outputs / 32][inputs / 32][unit]: a unit is 32 outputs of 32 inputs, what a warp multiplies at once
//              8 bits   [set][lane][16 bytes]: of output 16 set + lane / 4, then of the eighth after it, two words
//                       each, one for each 16 inputs
//              4 bits   [lane][16 bytes]: a word for each of these four outputs
//     scales   16 bits [outputs / 32][group][lane / 4][4 scales, then 4 minima or rests where there are any], of the
//              same four outputs: 8 apart. `1 << shift` inputs are a group.
//     factors  f32 [outputs / 32][32], what a sum is multiplied with. But for a scale of all inputs they are powers of
//              two, so that scales need few bits of exponent.
//
// Both numbers of outputs are rounded up; what is beyond them is zeros. Lane l has of the inputs 16 i + 8 j + 2 (l % 4)
// and the next of it (e = 0, 1), i and j being 0 and 1, which is how the matrix unit takes them:
//
//     8 bits   byte 2 e + j of word i            4 bits   bits 16 e + 8 i + 4 j and the next three
//
// What codes are, and what their scales are stored as:
//
//     int8     the integer and 128   f16             int4    the integer and 8   bf16
//     uint8    the integer           f16; minima     uint4   the integer         bf16; minima less 8 scales
//     e4m3     as they are           bf16 of 2^120   e2m1    as they are         bf16 of 2^126 times the scale
//                                    times the scale; what that leaves
#pragma once

#include "narrow.cuh"

namespace {

// The two numbers of an output and a group, in sixteen bits each, as they are used: a scale, and its rest or a minimum.
struct InFloats {
    float scale, other;
    DEVICE void set_low(uint32_t scales, uint32_t others) {
        scale = half_to_float(scales & 0xffff), other = half_to_float(others & 0xffff);
    }
    DEVICE void set_high(uint32_t scales, uint32_t others) { set_low(scales >> 16, others >> 16); }
};
struct InPairs {
    uint32_t scale, other;
    DEVICE void set_low(uint32_t scales, uint32_t others) {
        scale = twice_low(scales), other = twice_low(others);
    }
    DEVICE void set_high(uint32_t scales, uint32_t others) {
        scale = twice_high(scales), other = twice_high(others);
    }
};

constexpr uint32_t PAIR_OF_ONES = 0x3f803f80, PAIR_OF_NO_MORE = 0x80008000; // 1 and 1, -0 and -0

// Codes of 8 bits: `word` has 16 inputs of a lane; pairs of the first eight and of the last.
template <bool minima> struct Whole8 {
    static constexpr int bits = 8;
    static constexpr bool has_two = minima;
    using Scale = InFloats;
    DEVICE static float number(uint32_t word, int which, const Scale &of) {
        float code = byte_above(word, which, minima ? 0.0f : 128.0f);
        return minima ? fmaf(code, of.scale, -of.other) : code * of.scale;
    }
    DEVICE static void widen(uint32_t &first, uint32_t &second, uint32_t word, const Scale &of) {
        first = to_bf16_pair(number(word, 0, of), number(word, 2, of));
        second = to_bf16_pair(number(word, 1, of), number(word, 3, of));
    }
};

struct Float8 {
    static constexpr int bits = 8;
    static constexpr bool has_two = true;
    using Scale = InPairs;
    // The upper byte of each half. As bf16 it is smaller by 2^120, which is in the scale. With its rest a scale is as
    // exact as what comes out.
    DEVICE static uint32_t pair(uint32_t word, const Scale &of) {
        uint32_t small = (word & 0x80008000u) | (word >> 4 & 0x07f007f0u);
        return multiply_add_pair(small, of.scale, multiply_add_pair(small, of.other, PAIR_OF_NO_MORE));
    }
    DEVICE static void widen(uint32_t &first, uint32_t &second, uint32_t word, const Scale &of) {
        first = pair(word << 8, of);
        second = pair(word, of);
    }
};

// Codes of 4 bits: the lowest eight of both halves of `word` count.
template <bool minima> struct Whole4 {
    static constexpr int bits = 4;
    static constexpr bool has_two = minima;
    using Scale = InPairs;
    // As the last bits of 128 they are bf16 already; less 136 they are around 0, where products are rounded least.
    DEVICE static uint32_t pair(uint32_t word, const Scale &of) {
        uint32_t code = multiply_add_pair(take_bits(word, 0x000f000f, 0x43004300), PAIR_OF_ONES, 0xc308c308);
        return multiply_add_pair(code, of.scale, minima ? of.other ^ 0x80008000u : PAIR_OF_NO_MORE);
    }
    DEVICE static void widen(uint32_t &first, uint32_t &second, uint32_t word, const Scale &of) {
        first = pair(word, of);
        second = pair(word >> 4, of);
    }
};

struct Float4 {
    static constexpr int bits = 4;
    static constexpr bool has_two = false;
    using Scale = InPairs;
    // Sign, exponent and mantissa in their places make a bf16 that is smaller by 2^126, which is in the scale.
    DEVICE static uint32_t pair(uint32_t sign, uint32_t size, const Scale &of) {
        return multiply_add_pair((sign & 0x80008000u) | (size & 0x01c001c0u), of.scale, PAIR_OF_NO_MORE);
    }
    DEVICE static void widen(uint32_t &first, uint32_t &second, uint32_t word, const Scale &of) {
        first = pair(word << 12, word << 6, of);
        second = pair(word << 8, word << 2, of);
    }
};

using Int8 = Whole8<false>;
using Uint8 = Whole8<true>;
using Int4 = Whole4<false>;
using Uint4 = Whole4<true>;
using E4m3 = Float8;
using E2m1 = Float4;

// Bytes of a unit, and of the scales of 32 outputs that a group has.
template <class Kind> constexpr int unit_bytes = 32 * 32 * Kind::bits / 8;
template <class Kind> constexpr int scale_bytes = 32 * (Kind::has_two ? 4 : 2);

struct Matrix {
    const unsigned char *codes, *scales;
    const float *factors;
    int outputs, inputs, shift;

    DEVICE int groups() const { return ((inputs - 1) >> shift) + 1; }
};

DEVICE uint32_t word_of(const Bytes16 &words, int which) {
    return which == 0 ? words.x : which == 1 ? words.y : which == 2 ? words.z : words.w;
}

// Scales of a lane's four outputs.
template <class Kind> DEVICE void load_scales(typename Kind::Scale (&to)[4], const unsigned char *scales) {
    int place = lane_index() / 4;
    Bytes16 got;
    if (Kind::has_two) {
        got = load16(scales + 16 * place);
    } else {
        Bytes8 half = load8(scales + 8 * place);
        got = Bytes16{half.x, half.y, 0, 0};
    }
    to[0].set_low(got.x, got.z), to[1].set_high(got.x, got.z);
    to[2].set_low(got.y, got.w), to[3].set_high(got.y, got.w);
}

// A unit, of which `unit` is this lane's part, as fragments of the matrix unit's left side: for each 16 outputs and each 16 inputs, both groups of 8 outputs,
// then the same of the next 8 inputs. Where a group is 16 inputs, the scales of two stand behind each other.
template <class Kind>
DEVICE void widen_unit(uint32_t (&a)[2][2][4], const unsigned char *unit, const unsigned char *scales, bool sixteen) {
    Bytes16 words[2];
    words[0] = load16(unit);
    if (Kind::bits == 8) words[1] = load16(unit + 512);
    typename Kind::Scale of[4];
    load_scales<Kind>(of, scales);
    UNROLL for (int i = 0; i < 2; i++) {
        if (i == 1 && sixteen) load_scales<Kind>(of, scales + scale_bytes<Kind>);
        UNROLL for (int set = 0; set < 2; set++)
            UNROLL for (int half = 0; half < 2; half++) {
                uint32_t word = Kind::bits == 8 ? word_of(words[set], 2 * half + i)
                                                : word_of(words[0], 2 * set + half) >> 8 * i;
                Kind::widen(a[set][i][half], a[set][i][2 + half], word, of[2 * set + half]);
            }
    }
}

} // namespace
