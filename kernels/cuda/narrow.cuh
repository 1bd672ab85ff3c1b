// Numbers of eight bits and of half precision, codes, and pairs in one register: from one type to another, and arithmetic of
// pairs.
#pragma once

#include "device.cuh"

// ------------------------------------------------------------------------------------------------ numbers of eight bits

// A sign, four bits of exponent, three of mantissa: up to 448, and no infinity.
struct e4m3 {
    uint8_t bits;
};

DEVICE float to_float(e4m3 number) {
    uint32_t sign = uint32_t(number.bits & 0x80) << 24, rest = number.bits & 0x7f;
    // As the bits of a float it is smaller by a power of two, also where it is subnormal.
    return rest == 0x7f ? bits_to_float(sign | 0x7fc00000u) : bits_to_float(sign | rest << 20) * 0x1p120f;
}

// Two to the nearest, ties to even, those beyond 448 to 448; what is no number stays none. `first` is the lower half.
DEVICE uint32_t to_e4m3_pair(float first, float second) {
#if defined(__CUDACC__) && __CUDA_ARCH__ >= 890
    uint16_t pair;
    asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(second), "f"(first));
    return pair;
#else
    uint32_t pair = 0;
    UNROLL
    for (int i = 0; i < 2; i++) {
        float number = i == 0 ? first : second, size = fminf(fabsf(number), 448.0f);
        uint32_t bits = float_to_bits(size), sign = float_to_bits(number) >> 24 & 0x80;
        // Below 2^-6 the steps are those of floats from 2^14 on.
        uint32_t small = float_to_bits(size + 0x1p14f) - float_to_bits(0x1p14f);
        uint32_t large = ((bits + 0x7ffff + (bits >> 20 & 1)) >> 20) - (120 << 3);
        uint32_t rounded = sign | (size < 0x1p-6f ? small : large);
        pair |= (number != number ? 0x7f : rounded) << 8 * i;
    }
    return pair;
#endif
}

DEVICE void store_four(e4m3 *to, const float (&from)[4]) {
    uint32_t four = to_e4m3_pair(from[0], from[1]) | to_e4m3_pair(from[2], from[3]) << 16;
    *reinterpret_cast<uint32_t *>(to) = four;
}

// Each half of a register, whose upper byte is an e4m3, as the same number in bf16; the lower byte does not matter.
// What is no number becomes 480.
DEVICE uint32_t widen_e4m3(uint32_t pair) {
    uint32_t small = (pair & 0x80008000u) | (pair >> 4 & 0x07f007f0u);
#ifdef __CUDACC__
    // Times 2^120, and nothing is added: what is -0 stays so.
    uint32_t wide;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(wide) : "r"(small), "r"(0x7b807b80u), "r"(0x80008000u));
    return wide;
#else
    return to_bf16_pair(low_float(small) * 0x1p120f, high_float(small) * 0x1p120f);
#endif
}

// Eight e4m3 as bf16, in their order.
DEVICE Bytes16 widen_eight(uint32_t first, uint32_t second) {
#ifdef __CUDACC__
    return Bytes16{widen_e4m3(__byte_perm(first, 0, 0x1404)), widen_e4m3(__byte_perm(first, 0, 0x3424)),
                   widen_e4m3(__byte_perm(second, 0, 0x1404)), widen_e4m3(__byte_perm(second, 0, 0x3424))};
#else
    uint32_t wide[4];
    for (int i = 0; i < 4; i++) {
        uint32_t two = (i < 2 ? first : second) >> i % 2 * 16;
        wide[i] = widen_e4m3((two & 0xff) << 8 | (two & 0xff00) << 16);
    }
    return Bytes16{wide[0], wide[1], wide[2], wide[3]};
#endif
}

// -------------------------------------------------------------------------------------------- codes, pairs, and halves

// What a half ("half precision", 16 bits) can hold of a number; what is no number stays none.
constexpr float HALF_MAX = 65504.0f;
DEVICE float within_half(float number) {
    return number > HALF_MAX ? HALF_MAX : number < -HALF_MAX ? -HALF_MAX : number;
}

// Two numbers within halves to the nearest of these. `first` is the lower.
DEVICE uint32_t to_half_pair(float first, float second) {
#ifdef __CUDACC__
    uint32_t pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
    return pair;
#else
    return uint32_t(emulator::round_to_half(first)) | uint32_t(emulator::round_to_half(second)) << 16;
#endif
}

// Four e4m3 as pairs of halves, exactly: the first and the third, the second and the fourth. It costs less than neighbours
// do, and less than bf16. What is no number stays none, or becomes 480 on cards that have no instruction for it.
DEVICE void widen_alternate(uint32_t (&to)[2], uint32_t four) {
#if defined(__CUDACC__) && __CUDA_ARCH__ >= 890
    asm("{\n.reg .b16 even, odd;\nmov.b32 {even, odd}, %2;\ncvt.rn.f16x2.e4m3x2 %0, even;\ncvt.rn.f16x2.e4m3x2 %1, odd;\n}"
        : "=r"(to[0]), "=r"(to[1])
        : "r"(__byte_perm(four, 0, 0x3120)));
#else
    UNROLL
    for (int odd = 0; odd < 2; odd++) {
        uint32_t pair = odd ? four : four << 8;
        // With the exponent's bits where those of a half are, it is smaller by a power of two, also where it is subnormal.
        uint32_t small = (pair & 0x80008000u) | (pair >> 1 & 0x3f803f80u);
#ifdef __CUDACC__
        asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(to[odd]) : "r"(small), "r"(0x5c005c00u));
#else
        to[odd] = 0;
        for (int half = 0; half < 2; half++) {
            bool none = (pair >> (16 * half + 8) & 0x7f) == 0x7f;
            float number = none ? NAN : emulator::half_to_float(small >> 16 * half) * 256.0f;
            to[odd] |= uint32_t(emulator::round_to_half(number)) << 16 * half;
        }
#endif
    }
#endif
}

// a b + c of each half of registers that hold pairs of bf16, rounded once. (A host rounds the sum to 32 bits before.)
DEVICE uint32_t multiply_add_pair(uint32_t a, uint32_t b, uint32_t c) {
#ifdef __CUDACC__
    uint32_t d;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
#else
    return to_bf16_pair(fmaf(low_float(a), low_float(b), low_float(c)),
                        fmaf(high_float(a), high_float(b), high_float(c)));
#endif
}

// The bits of `mask` in `from`, with those of `more`. Two constants in one instruction is more than the compiler makes of it.
DEVICE uint32_t take_bits(uint32_t from, uint32_t mask, uint32_t more) {
#ifdef __CUDACC__
    uint32_t to;
    asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(to) : "r"(from), "r"(mask), "r"(more));
    return to;
#else
    return (from & mask) | more;
#endif
}

// The lower half of a register in both halves, and the upper half.
DEVICE uint32_t twice_low(uint32_t pair) {
#ifdef __CUDACC__
    return __byte_perm(pair, 0, 0x1010);
#else
    return (pair & 0xffff) | pair << 16;
#endif
}
DEVICE uint32_t twice_high(uint32_t pair) {
#ifdef __CUDACC__
    return __byte_perm(pair, 0, 0x3232);
#else
    return pair >> 16 | (pair & 0xffff0000u);
#endif
}

// Byte `which` of four, less `zero`: as the last bits of 2^23 it is a float already.
DEVICE float byte_above(uint32_t four, int which, float zero) {
#ifdef __CUDACC__
    uint32_t bits = __byte_perm(four, 0x4b000000u, 0x7440 | which);
#else
    uint32_t bits = (four >> 8 * which & 0xff) | 0x4b000000u;
#endif
    return bits_to_float(bits) - (8388608.0f + zero);
}

// The half-precision number in a register's lower bits, which must be finite.
DEVICE float half_to_float(uint32_t half) {
#ifdef __CUDACC__
    float number;
    asm("cvt.f32.f16 %0, %1;" : "=f"(number) : "h"(static_cast<unsigned short>(half)));
    return number;
#else
    return emulator::half_to_float(half);
#endif
}
