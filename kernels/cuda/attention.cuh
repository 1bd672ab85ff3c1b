// What all attention kernels are made of: which positions a row sees, how a tile of the cache lies in shared memory,
// and the online softmax of the rows of one warp.
//
//   cache     keys bf16 or e4m3 [block][kv_head][32][head_dim], values alike. Position p of slot s: line p % 32 of
//             block tables[s * table_stride + p / 32]. What an e4m3 stands for is it times a scale: the keys' is part
//             of the scores' `scale`, the values' is applied to results
//   tile      lines of D numbers, D being head_dim or the next size that there is a kernel for. A line is pieces of
//             16 bytes, of 8 bf16 or 16 e4m3, in an order that changes from line to line (`piece_at`)
//   rows      query heads that share a KV head stand side by side as rows of one product: keys and values are loaded
//             once for all of them
//
// A row's own result depends on its query, its position and what the cache holds for it: tiles and splits of the
// context begin at multiples of their length from position 0, and a tile of which a row sees nothing leaves the row's
// sums as they were, bit for bit.
#pragma once

#include "narrow.cuh"

namespace attention {

// Positions of a block of the cache.
constexpr int PAGE = 32;
// Positions of a split: what one unit of work of decoding goes through.
constexpr int SPLIT = 256;
constexpr int PAGES_OF_SPLIT = SPLIT / PAGE;
// Warps of a block, and threads.
constexpr int WARPS = 4;
constexpr int THREADS = WARPS * WARP;

constexpr float LOG2_E = 1.44269504088896341f;

// ----------------------------------------------------------------------------------------------------------- positions

// Some positions: from `first` up to, and without, `end`.
struct Range {
    int first, end;
    DEVICE bool none() const { return first >= end; }
    DEVICE bool has(int position) const { return position >= first && position < end; }
};

// The first position that a row sees; a window of 0 is none.
DEVICE int first_seen(int position, int window) {
    return window == 0 || position < window ? 0 : position + 1 - window;
}

// The splits of which a row sees something.
DEVICE Range splits_seen(int position, int window) {
    return Range{first_seen(position, window) / SPLIT, position / SPLIT + 1};
}

// The positions of a split that a row sees; none where the position is -1.
DEVICE Range seen_of_split(int position, int window, int split) {
    return Range{max(first_seen(position, window), split * SPLIT), min(position + 1, (split + 1) * SPLIT)};
}

// --------------------------------------------------------------------------------------------------------------- cache

template <class Number> struct Cache {
    const Number *keys, *values;
    const int *tables;
    int slot_count, table_stride, block_count, kv_heads, head_dim;
    float value_scale;

    // The block of a slot's positions from 32 * `index` on; -1 where the tables do not lead into the cache.
    template <bool early = false> DEVICE int block(int slot, int index) const {
        if (unsigned(slot) >= unsigned(slot_count) || unsigned(index) >= unsigned(table_stride)) return -1;
        int block = load_int<early>(tables + size_t(slot) * table_stride + index);
        return unsigned(block) < unsigned(block_count) ? block : -1;
    }
    // Where a block's first position is, for one KV head.
    DEVICE size_t start(int block, int kv_head) const {
        return (size_t(max(block, 0)) * kv_heads + kv_head) * PAGE * head_dim;
    }
};

// -------------------------------------------------------------------------------------------------------------- scores

// What the model prescribes. A score is a dot product times `unit`, as a power of two; with a soft cap it is first made
// `height * tanh(product * steepness)`, and `unit` is 1.
struct Rule {
    float unit, height, steepness;
    int window;
};

DEVICE Rule rule_of(float scale, float soft_cap, int window) {
    if (soft_cap == 0.0f) return Rule{scale * LOG2_E, 0.0f, 0.0f, window};
    return Rule{1.0f, soft_cap * LOG2_E, scale / soft_cap, window};
}

// height * tanh(x) = height - 2 height / (exp(2 x) + 1), which is exact to some 1e-7 of the height.
template <int M, int N> DEVICE void cap(float (&scores)[M][N][4], const Rule &rule) {
    if (rule.height == 0.0f) return;
    float slope = 2.0f * LOG2_E * rule.steepness;
    UNROLL
    for (int i = 0; i < M * N * 4; i++) {
        float &score = scores[i / (4 * N)][i / 4 % N][i % 4];
        score = rule.height - __fdividef(2.0f * rule.height, power_of_two(score * slope) + 1.0f);
    }
}

// What a row's sum of values is multiplied with at the end. `top` is its largest score as a power of two, `sum` that of
// its weights relative to it. A sink takes part in the sum, and adds no value.
DEVICE float last_factor(float top, float sum, const float *sinks, int head) {
    if (!sinks) return 1.0f / sum;
    float sink = sinks[head] * LOG2_E, all = fmaxf(top, sink), factor = power_of_two(top - all);
    return factor / (sum * factor + power_of_two(sink - all));
}

// ---------------------------------------------------------------------------------------------- tiles in shared memory

// The same number, of which a compiler does not know that it is: what is computed from it inside a loop is not kept in
// registers from one round to the next.
DEVICE int opaque(int number) {
#ifdef __CUDACC__
    asm volatile("" : "+r"(number));
#endif
    return number;
}

// Pieces of a line of D numbers.
template <class Number, int D> constexpr int PIECES = D * int(sizeof(Number)) / 16;

// Where a line's piece lies in a tile of lines of so many, in pieces. The same piece of eight lines one after the other
// lies in eight different banks of sixteen bytes.
template <int pieces, class Index> DEVICE Index piece_at(Index line, Index piece) {
    static_assert(pieces % 2 == 0, "lines of 32 bytes or more");
    return line * pieces + (piece ^ (pieces % 8 == 0 ? line % 8 : pieces % 4 == 0 ? line / 2 % 4 : line / 4 % 2));
}

// Of sixteen lines from `line`, pieces `piece` and the next: a factor on the left (queries), or transposed one on the
// right (values): registers 0 and 1 for the first piece, 2 and 3 for the second.
template <int pieces, class Index>
DEVICE const unsigned char *left_lines(const unsigned char *tile, Index lane, int line, int piece) {
    return tile + 16 * piece_at<pieces>(line + lane % 16, piece + lane / 16);
}
// The same as a factor on the right (keys): registers 0 and 1 for the first eight lines, 2 and 3 for the second.
template <int pieces, class Index>
DEVICE const unsigned char *right_lines(const unsigned char *tile, Index lane, int line, int piece) {
    return tile + 16 * piece_at<pieces>(line + lane / 16 * 8 + lane % 8, piece + lane / 8 % 2);
}

// ------------------------------------------------------------------------------------------------------ online softmax

// M times sixteen rows of a warp. In a product's layout a lane has, of each sixteen, rows lane / 4 (half 0) and 8 more
// (half 1), at columns 2 (lane % 4) and the next of each eight.
//
// Out of a tile of e4m3 a lane gets four neighbours at once, and they become two registers most cheaply where they stand
// in turn (`widen_alternate`). So of each sixteen numbers of a line, `out[i][2 c]` has those at even places and
// `out[i][2 c + 1]` those at odd ones; `column` and `pair` tell which they are.
template <class Number, int D, int M> struct Rows {
    static constexpr bool ALTERNATE = sizeof(Number) == 1;
    // Sums of values, relative to `top`; the largest score so far; this lane's part of the sum of weights.
    float out[M][D / 8][4];
    float top[M][2], sum[M][2];

    DEVICE void begin() {
        UNROLL
        for (int i = 0; i < M; i++) {
            UNROLL
            for (int n = 0; n < D / 8; n++) out[i][n][0] = out[i][n][1] = out[i][n][2] = out[i][n][3] = 0.0f;
            top[i][0] = top[i][1] = -INFINITY;
            sum[i][0] = sum[i][1] = 0.0f;
        }
    }

    // Makes scores, minus infinity for what is not seen, to weights relative to `top`, which may grow: then what is
    // summed shrinks. Where a row sees nothing, its weights are 0, and all else stays, exactly.
    // The second half of each sixteen rows may be nobody's: then `halves` is 1, and what its sums are means nothing.
    template <int N> DEVICE void weigh(float (&scores)[M][N][4], float unit, int halves = 2) {
        float shrink[M][2];
        weigh(scores, unit, shrink, halves);
        shrink_by(shrink, halves);
    }

    // The same, and what is summed is left to `shrink_by`.
    template <int N> DEVICE void weigh(float (&scores)[M][N][4], float unit, float (&shrink)[M][2], int halves = 2) {
        UNROLL
        for (int at = 0; at < 2 * M; at++) {
            int i = at / 2, half = at % 2;
            shrink[i][half] = 1.0f;
            if (half >= halves) continue;
            float largest = top[i][half];
            UNROLL
            for (int n = 0; n < N; n++)
                largest = fmaxf(largest, fmaxf(scores[i][n][2 * half], scores[i][n][2 * half + 1]));
            largest = fmaxf(largest, __shfl_xor_sync(ALL_LANES, largest, 1));
            largest = fmaxf(largest, __shfl_xor_sync(ALL_LANES, largest, 2));
            float base = largest == -INFINITY ? 0.0f : largest;
            shrink[i][half] = power_of_two((top[i][half] - base) * unit);
            top[i][half] = largest;
            base *= unit;
            float added = 0.0f;
            UNROLL
            for (int n = 0; n < N; n++) {
                float &first = scores[i][n][2 * half], &second = scores[i][n][2 * half + 1];
                first = power_of_two(first * unit - base);
                second = power_of_two(second * unit - base);
                added += first + second;
            }
            sum[i][half] = sum[i][half] * shrink[i][half] + added;
        }
    }

    DEVICE void shrink_by(const float (&shrink)[M][2], int halves = 2) {
        bool shrinks = false;
        UNROLL
        for (int at = 0; at < 2 * M; at++) shrinks |= shrink[at / 2][at % 2] != 1.0f;
        // Most tiles bring no larger score.
        if (!__any_sync(ALL_LANES, shrinks)) return;
        UNROLL
        for (int half = 0; half < 2; half++) {
            if (half >= halves) return;
            UNROLL
            for (int at = 0; at < M * (D / 8) * 2; at++)
                out[at / (D / 4)][at / 2 % (D / 8)][2 * half + at % 2] *= shrink[at / (D / 4)][half];
        }
    }

    // Adds the lines of a tile of 8 N values, by their weights rounded to as many bits as those become.
    // (Whether the lane is an `int` matters: shifts and masks of one that is not take fewer instructions, and of one that
    // is, other registers.)
    template <int N, class Index>
    DEVICE void add(const float (&weights)[M][N][4], const unsigned char *values, Index lane) {
        UNROLL
        for (int k = 0; k < N / 2; k++) {
            uint32_t left[M][4];
            UNROLL
            for (int at = 0; at < 4 * M; at++) {
                const float(&four)[4] = weights[at / 4][2 * k + at % 4 / 2];
                float first = four[at % 2 * 2], second = four[at % 2 * 2 + 1];
                left[at / 4][at % 4] = ALTERNATE ? to_half_pair(first, second) : to_bf16_pair(first, second);
            }
            UNROLL
            for (int c = 0; c < PIECES<Number, D> / 2; c++) {
                uint32_t right[4];
                load_matrices_transposed(right, left_lines<PIECES<Number, D>>(values, lane, 16 * k, 2 * c));
                if constexpr (ALTERNATE) {
                    UNROLL
                    for (int half = 0; half < 2; half++) {
                        uint32_t first[2], second[2];
                        widen_alternate(first, right[2 * half]);
                        widen_alternate(second, right[2 * half + 1]);
                        UNROLL
                        for (int i = 0; i < 2 * M; i++)
                            multiply_add_half(out[i / 2][4 * c + 2 * half + i % 2], left[i / 2], first[i % 2],
                                              second[i % 2]);
                    }
                } else {
                    UNROLL
                    for (int i = 0; i < M; i++) {
                        multiply_add(out[i][2 * c], left[i], right[0], right[1]);
                        multiply_add(out[i][2 * c + 1], left[i], right[2], right[3]);
                    }
                }
            }
        }
    }

    // A line's number that is first of pair n, and both of the pair, for a half of the rows.
    DEVICE static int column(int n) {
        int lane = lane_index() % 4;
        return ALTERNATE ? n / 2 * 16 + lane * 4 + n % 2 * 2 : 8 * n + lane * 2;
    }
    DEVICE float pair(int i, int n, int half, int which) const {
        return ALTERNATE ? out[i][n / 2 * 2 + which][2 * half + n % 2] : out[i][n][2 * half + which];
    }

    // After the last tile: `top` as a power of two, `sum` of all lanes of the row.
    DEVICE void end(float unit) {
        UNROLL
        for (int at = 0; at < 2 * M; at++) {
            float &all = sum[at / 2][at % 2];
            all += __shfl_xor_sync(ALL_LANES, all, 1);
            all += __shfl_xor_sync(ALL_LANES, all, 2);
            top[at / 2][at % 2] *= unit;
        }
    }
};

} // namespace attention
