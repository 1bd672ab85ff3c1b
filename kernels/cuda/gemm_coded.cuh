// What products of codes with codes share (gemm_wgmma_e4m3.cu, gemm_pairs_e4m3.cu): how weights and their scales lie, and
// how sums of a step become sums of all.
//
//     codes    [outputs / 32][inputs / 32][2][lane][16 bytes]: eight of output lane / 4, eight of the eighth after it
//     scales   bf16, times 2^120 [outputs / 32][group][8][4 scales, 4 rests of them]: of outputs 8 apart. `1 << shift`
//              inputs are a group
//     factors  f32 [outputs / 32][32]
//     x        [rows][inputs], each 32 in the order of the weights' codes; scales f32 [rows][inputs / 128]
//
// The unit adds up 128 inputs, a step, with few bits; these sums, each times both its scales, are added up in 32 bits by
// ascending inputs: the bits of a result depend on the number of parts alone.
#pragma once

#include "gemm_wgmma.cuh"

namespace {

constexpr int DEEP = LINE;       // inputs of a step
constexpr int BLOCK = 32;        // outputs whose codes lie together
constexpr int UNIT = BLOCK * 32; // bytes of 32 inputs of them
// What scales of groups are too large by, in two halves.
constexpr float HALF = 0x1p-60f;

// Eight codes of a unit, of one output, that one of 128 threads copies: where they are, and where they go among a stage's
// weights, for the first unit of a step; that of unit u is at `to ^ 32 u`. A warp's go to all banks of shared memory.
struct EightCodes {
    int from, to;

    DEVICE explicit EightCodes(int thread) {
        int set = thread / 64, half = thread / 16 % 2;
        int lane = (thread % 16 / 4 * 2 + thread / 32 % 2) * 4 + thread % 4;
        from = set * (UNIT / 2) + lane * 16 + half * 8;
        to = matrix_place(set * 16 + half * 8 + lane / 4, lane % 4 / 2) + lane % 2 * 8;
    }
};

// Scales and their rests of two neighbours, and of the outputs 8, 16 and 24 further on.
struct ScalePairs {
    Bytes16 of[2];

    DEVICE float at(int eight, int second) const {
        const Bytes16 &one = of[second];
        uint32_t scales = eight < 2 ? one.x : one.y, rests = eight < 2 ? one.z : one.w;
        return eight % 2 == 0 ? low_float(scales) + low_float(rests) : high_float(scales) + high_float(rests);
    }
};

struct Coded : Product {
    const unsigned char *scales;
    const float *factors, *x_scales;
    int shift;

    DEVICE int groups() const { return ((line - 1) >> shift) + 1; }
    // Those of a lane's outputs, from 32 on that begin with `output`.
    DEVICE ScalePairs scales_of(int output, int group) const {
        if (output >= outputs) return ScalePairs{};
        const unsigned char *of_block = scales + (size_t(output / BLOCK) * groups() + group) * BLOCK * 4;
        of_block += lane_index() % 4 * 32;
        return ScalePairs{{load16(of_block), load16(of_block + 16)}};
    }
};

// The scales of a step: of two rows of x, and of the weights where groups have their own.
template <bool grouped, int width> struct Scales {
    float of_x[2];
    ScalePairs of_weight[width / BLOCK];

    DEVICE Scales(const Coded &product, int first_row, int first_output, int step) {
        int row = first_row + warp_index() * 16 + lane_index() / 4;
        UNROLL for (int i = 0; i < 2; i++) {
            const float *scale = product.x_scales + size_t(row + 8 * i) * product.steps() + step;
            of_x[i] = row + 8 * i < product.rows ? (grouped ? *scale * HALF : *scale) : 0.0f;
        }
        if (grouped)
            UNROLL for (int block = 0; block < width / BLOCK; block++)
                of_weight[block] = product.scales_of(first_output + block * BLOCK, step * DEEP >> product.shift);
    }

    DEVICE void add(float (&sums)[width / 8][4], const float (&d)[width / 8][4]) const {
        UNROLL for (int j = 0; j < width / 8; j++)
            UNROLL for (int i = 0; i < 4; i++) {
                float scale = of_x[i / 2];
                if (grouped) scale *= of_weight[j / 4].at(j % 4, i % 2);
                sums[j][i] = fmaf(d[j][i], scale, sums[j][i]);
            }
    }
};

// What is the same for all inputs of an output.
template <bool grouped, int width>
DEVICE void scale_outputs(float (&sums)[width / 8][4], const Coded &product, int first_output) {
    UNROLL for (int block = 0; block < width / BLOCK; block++) {
        int first = first_output + block * BLOCK;
        ScalePairs scales = grouped ? ScalePairs{} : product.scales_of(first, 0);
        UNROLL for (int j = 0; j < BLOCK / 8; j++)
            UNROLL for (int second = 0; second < 2; second++) {
                int output = first + 8 * j + lane_index() % 4 * 2 + second;
                float factor = output < product.outputs ? product.factors[output] : 0.0f;
                factor *= grouped ? HALF : scales.at(j, second) * HALF * HALF;
                sums[block * 4 + j][second] *= factor;
                sums[block * 4 + j][2 + second] *= factor;
            }
    }
}

} // namespace
