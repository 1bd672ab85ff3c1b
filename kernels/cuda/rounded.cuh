// Rows as codes of eight bits, which products of codes with codes take (gemm_coded.cuh says how they lie): each 128 numbers
// have a scale of their own. Numbers are rounded to bf16 before, whoever makes them: codes do not depend on which kernel
// that is.
#pragma once

#include "narrow.cuh"

// Numbers that share a scale.
constexpr int CODES_OF_SCALE = 128;

// The larger of a pair of bf16, without signs.
DEVICE float largest(uint32_t pair) { return fmaxf(fabsf(low_float(pair)), fabsf(high_float(pair))); }

// From the largest of numbers that share a scale: their scale, and what they are multiplied by. Where all are so small that
// none matters, they are zeros.
DEVICE float scale_of(float largest) { return largest / 448.0f; }
DEVICE float to_codes(float largest) { return largest > 1e-30f ? 448.0f / largest : 0.0f; }

// Word t of the four of sixteen numbers, of their pairs t and t + 4.
DEVICE uint32_t four_codes(uint32_t first, uint32_t second, float up) {
    uint32_t low = to_e4m3_pair(low_float(first) * up, low_float(second) * up);
    return low | to_e4m3_pair(high_float(first) * up, high_float(second) * up) << 16;
}

// Where word t of the sixteen numbers that number `at` is one of is among the words of all.
DEVICE size_t word_of_codes(size_t at, int t) { return at / 32 * 8 + 2 * t + at / 16 % 2; }
