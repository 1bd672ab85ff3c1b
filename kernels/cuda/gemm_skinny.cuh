// What products of few rows have in common, whatever their weights are stored as: see gemm_skinny.cu, gemm_stored.cu.
//
// A block makes 128 outputs of all rows from one part of the inputs, in steps of 64 inputs. Warp w has outputs
// 32 (w / 2) and the next 31, inputs 32 (w % 2) and the next 31 of each step.
#pragma once

#include "experts.cuh"

namespace {

constexpr int THREADS = 256;
constexpr int BLOCK = 128; // outputs of a block
constexpr int STEP = 64;   // inputs of a step
constexpr int SETS = 2;    // of 16 outputs, for each warp
constexpr int PIECE = 16;  // bytes
constexpr int LINE = 64;   // bytes of a row in half a stage
// Floats from one row of the sums in shared memory to the next: no two lanes of a warp meet in a bank.
constexpr int PITCH = BLOCK + 4;

struct Product {
    const bf16 *x, *weight;
    const float *bias;
    float *sums;
    int *counters;
    int rows, outputs, inputs;
    // Rows that sums have room for.
    int room;
    // Pairs of an expert, where that is what rows are: rows of y, and `sharers` of them together are of a row of x.
    const int *pairs = nullptr;
    int sharers = 1;
    // What sums are multiplied with, for each output.
    const float *factors = nullptr;
    // Which of the rows that sums have room for is the first.
    int place = 0;

    DEVICE size_t x_row(int row) const { return pairs ? pairs[row] / sharers : row; }
    DEVICE size_t y_row(int row) const { return pairs ? pairs[row] : row; }
};

// Where piece `piece` of row `row` lies.
DEVICE int place(int row, int piece) { return row * LINE + (piece ^ (row / 2 % 4)) * PIECE; }

// Pieces of x in a stage. At most two are a thread's.
template <int tiles> constexpr int x_pieces = 2 * tiles * WARP;

// A thread's pieces of x, from one step to the next: with eight tiles two, of both halves of a step; with few tiles one
// or none.
template <int tiles> struct X {
    static_assert(x_pieces<tiles> <= THREADS || x_pieces<tiles> == 2 * THREADS, "a thread's pieces are of one row");
    const bf16 *from;
    int left, to;

    // They begin `offset` bytes after a stage does. Inputs are there up to `end`.
    DEVICE X(const Product &product, int first_step, int end, int offset) {
        int row = threadIdx.x / 4 % (8 * tiles), half = threadIdx.x / (4 * 8 * tiles), piece = threadIdx.x % 4;
        int input = first_step * STEP + half * 32 + piece * 8;
        bool there = row < product.rows;
        from = product.x + (there ? product.x_row(row) : 0) * product.inputs + input;
        left = there ? end - input : 0;
        to = offset + half * 8 * tiles * LINE + place(row, piece);
    }

    // Pieces that are this thread's.
    static constexpr int MOST = (x_pieces<tiles> + THREADS - 1) / THREADS;
    DEVICE static bool has(int piece) { return piece * THREADS + int(threadIdx.x) < x_pieces<tiles>; }

    // Of the step after so many others.
    DEVICE void copy(unsigned char *stage, int step) const {
        UNROLL for (int piece = 0; piece < MOST; piece++) {
            int input = step * STEP + piece * 32;
            if (has(piece)) copy_async16(stage + to + piece * THREADS * PIECE, from + input, input < left);
        }
    }
    DEVICE void advance(int steps) {
        from += steps * STEP;
        left -= steps * STEP;
    }

    // Of the first stages, at once: their weights are under way before x is there. All is read before anything is put
    // where it belongs, or each read would wait for the one before.
    template <int stages> DEVICE void move(unsigned char *ring, int stage_bytes, int steps) {
        Bytes16 got[stages][MOST];
        UNROLL for (int step = 0; step < stages; step++)
            UNROLL for (int piece = 0; piece < MOST; piece++) {
                bool there = step < steps && has(piece) && step * STEP + piece * 32 < left;
                got[step][piece] = there ? load16(from + step * STEP + piece * 32) : Bytes16{0, 0, 0, 0};
            }
        // Or the assembler, short of predicates, puts reads behind writes after all.
        __syncwarp();
        UNROLL for (int step = 0; step < stages; step++)
            UNROLL for (int piece = 0; piece < MOST; piece++)
                if (step < steps && has(piece))
                    store16(ring + step * stage_bytes + to + piece * THREADS * PIECE, got[step][piece]);
        advance(stages);
    }
};

// Tiles of x that are multiplied by turns: the second product with a tile then need not wait for the first.
template <int tiles> constexpr int tiles_abreast = tiles < 2 ? tiles : 2;
template <int tiles> using FewOfX = uint32_t[tiles_abreast<tiles>][4];

// Of x, from tile `tile` on: 8 rows a tile, all 32 inputs of this warp.
template <int tiles> DEVICE void load_tiles(FewOfX<tiles> &b, const unsigned char *x, int tile) {
    int lane = lane_index();
    x += warp_index() % 2 * 8 * tiles * LINE + place(lane % 8, lane / 8);
    UNROLL for (int t = 0; t < tiles_abreast<tiles>; t++) load_matrices(b[t], x + (tile + t) * 8 * LINE);
}

// The products of a warp's 32 outputs with all rows of x, over its half of a step. `a` is of the weights: for each set,
// both groups of 8 outputs, then the same of the next 8 inputs, and all that of the next 16. `b` has the first tiles.
template <int tiles>
DEVICE void multiply_tiles(float (&d)[SETS][tiles][4], const uint32_t (&a)[SETS][2][4], FewOfX<tiles> &b,
                           const unsigned char *x) {
    constexpr int abreast = tiles_abreast<tiles>;
    UNROLL for (int tile = 0; tile < tiles; tile += abreast) {
        if (tile > 0) load_tiles<tiles>(b, x, tile);
        UNROLL for (int i = 0; i < 2; i++)
            UNROLL for (int t = 0; t < abreast; t++)
                UNROLL for (int set = 0; set < SETS; set++)
                    multiply_add(d[set][tile + t], a[set][i], b[t][2 * i], b[t][2 * i + 1]);
    }
}

// The sums of both halves of all steps, as floats [row][PITCH] in shared memory.
template <int tiles> DEVICE void add_halves(float *sums, const float (&d)[SETS][tiles][4]) {
    int half = warp_index() % 2, output = warp_index() / 2 * 32 + lane_index() / 4, row = lane_index() % 4 * 2;
    for (int turn = 1; turn >= 0; turn--) {
        if (half == turn) {
            UNROLL for (int set = 0; set < SETS; set++)
                UNROLL for (int tile = 0; tile < tiles; tile++)
                    UNROLL for (int i = 0; i < 4; i++) {
                        float *to = sums + (8 * tile + row + i % 2) * PITCH + output + 16 * set + i / 2 * 8;
                        *to = turn == 1 ? d[set][tile][i] : d[set][tile][i] + *to;
                    }
        }
        __syncthreads();
    }
}

struct Four {
    float at[4];
};

DEVICE Four load_four(const float *from) {
    Bytes16 bits = load16(from);
    return Four{{bits_to_float(bits.x), bits_to_float(bits.y), bits_to_float(bits.z), bits_to_float(bits.w)}};
}

DEVICE void store_four(float *to, Four four) {
    store16(to, Bytes16{float_to_bits(four.at[0]), float_to_bits(four.at[1]), float_to_bits(four.at[2]),
                        float_to_bits(four.at[3])});
}

DEVICE void store_four(bf16 *to, Four four) {
    store8(to, Bytes8{to_bf16_pair(four.at[0], four.at[1]), to_bf16_pair(four.at[2], four.at[3])});
}

DEVICE void store_one(float *to, float value) { *to = value; }
DEVICE void store_one(bf16 *to, float value) { *to = to_bf16(value); }

// Outputs `output` and the next three of a row, of which the last may not be there.
template <class Out> DEVICE void finish(Out *y, const Product &product, int row, int output, Four four) {
    int there = product.outputs - output;
    if (product.factors)
        UNROLL for (int i = 0; i < 4; i++)
            if (i < there) four.at[i] *= product.factors[output + i];
    if (product.bias)
        UNROLL for (int i = 0; i < 4; i++)
            if (i < there) four.at[i] += product.bias[output + i];
    Out *to = y + product.y_row(row) * product.outputs + output;
    if (product.outputs % 4 == 0) {
        if (there > 0) store_four(to, four);
    } else {
        UNROLL for (int i = 0; i < 4; i++)
            if (i < there) store_one(to + i, four.at[i]);
    }
}

// Is this the last of the blocks that make the same outputs? Then the others' sums can be read.
DEVICE bool is_last(int *counter, int parts) {
    SHARED int before;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) before = atomicAdd(counter, 1);
    __syncthreads();
    if (before != parts - 1) return false;
    __threadfence();
    if (threadIdx.x == 0) *counter = 0;
    return true;
}

// Adds up the parts in their order, whichever came first. A thread has as many fours of outputs as there are tiles. What it
// reads is under way sixteen reads at a time: one after the other, each read would take the way to the second cache.
template <int tiles, class Out> DEVICE void add_parts(Out *y, const Product &product, const float *mine) {
    constexpr int abreast = tiles < 2 ? tiles : 2, at_once = 16 / abreast;
    int parts = gridDim.y, fours = product.rows * (BLOCK / 4);
    unsigned part = gridDim.x * product.room * BLOCK;
    float *sums = product.sums + (size_t(blockIdx.x) * product.room + product.place) * BLOCK;
    for (int four = threadIdx.x; four < fours; four += THREADS)
        store_four(sums + blockIdx.y * part + four * 4,
                   load_four(mine + four / (BLOCK / 4) * PITCH + four % (BLOCK / 4) * 4));
    if (!is_last(product.counters + blockIdx.z * gridDim.x + blockIdx.x, parts)) return;
    ROLLED for (int first = threadIdx.x; first < fours; first += abreast * THREADS) {
        Four sum[abreast];
        ROLLED for (int from = 0; from < parts; from += at_once) {
            Bytes16 more[at_once][abreast];
            UNROLL for (int i = 0; i < at_once; i++)
                UNROLL for (int j = 0; j < abreast; j++)
                    if (from + i < parts && first + j * THREADS < fours)
                        more[i][j] = load16(sums + (from + i) * part + (first + j * THREADS) * 4);
            UNROLL for (int i = 0; i < at_once; i++)
                UNROLL for (int j = 0; j < abreast; j++) {
                    if (from + i >= parts) continue;
                    Four one{{bits_to_float(more[i][j].x), bits_to_float(more[i][j].y), bits_to_float(more[i][j].z),
                              bits_to_float(more[i][j].w)}};
                    bool begins = i == 0 && from == 0;
                    UNROLL for (int k = 0; k < 4; k++) sum[j].at[k] = begins ? one.at[k] : sum[j].at[k] + one.at[k];
                }
        }
        UNROLL for (int j = 0; j < abreast; j++) {
            int four = first + j * THREADS;
            if (four < fours)
                finish(y, product, four / (BLOCK / 4), blockIdx.x * BLOCK + four % (BLOCK / 4) * 4, sum[j]);
        }
    }
}

// What is left once all steps are added up. The ring is free then.
template <int tiles, class Out>
DEVICE void finish_all(Out *y, const Product &product, const float (&d)[SETS][tiles][4], unsigned char *ring) {
    copies_wait<0>();
    __syncthreads();
    float *sums = reinterpret_cast<float *>(ring);
    add_halves<tiles>(sums, d);
    if (gridDim.y > 1) return add_parts<tiles>(y, product, sums);
    for (int four = threadIdx.x; four < product.rows * (BLOCK / 4); four += THREADS) {
        int row = four / (BLOCK / 4), output = four % (BLOCK / 4) * 4;
        finish(y, product, row, blockIdx.x * BLOCK + output, load_four(sums + row * PITCH + output));
    }
}

// A ring of stages: what follows from how weights are stored, and from the number of tiles of 8 rows. `Weights` copies
// its `bytes` of a stage, and makes fragments of them.
template <class Weights, int tiles> struct Ring {
    static constexpr int stage_bytes = Weights::bytes + x_pieces<tiles> * PIECE;
    static constexpr int stages = Weights::stages(tiles, stage_bytes);
    // Stages of a turn, within which no warp waits for another: up to four, and three turns at least. The shorter codes
    // are, the more a turn of one stage would cost for each of their bytes.
    static constexpr int together = tiles > 4 || stages < 6 ? 1 : stages < 12 ? stages / 3 : 4, turns = stages / together;
    static_assert(8 * tiles * PITCH * 4 <= stages * stage_bytes, "the sums fit where the stages were");
};

// Adds all steps to `d`. Returns where the ring is, whose last stages are still being read.
template <class Weights, int tiles, class Job>
DEVICE unsigned char *add_all(float (&d)[SETS][tiles][4], const Job &product) {
    using Is = Ring<Weights, tiles>;
    constexpr int together = Is::together, turn = together * Is::stage_bytes, ahead = (Is::turns - 1) * together;
    DYNAMIC_SHARED(ring);
    let_next_start();
    // Steps are given to the parts as evenly as they go.
    int all = (product.inputs + STEP - 1) / STEP;
    int first = all * int(blockIdx.y) / int(gridDim.y), steps = all * int(blockIdx.y + 1) / int(gridDim.y) - first;
    int end = (first + steps) * STEP < product.inputs ? (first + steps) * STEP : product.inputs;
    Weights weights(product, first, end);
    // Weights are nobody's output: they need not wait.
    for (int step = 0; step < ahead; step += together) {
        UNROLL for (int i = 0; i < together; i++) weights.copy(ring + (step + i) * Is::stage_bytes, i);
        weights.advance(together);
        copies_commit();
    }
    wait_for_earlier();
    X<tiles> x(product, first, end, Weights::bytes);
    x.template move<ahead>(ring, Is::stage_bytes, steps);

    int stage = 0, filled = (Is::turns - 1) * turn;
    for (int step = 0; step < steps; step += together) {
        copies_wait<Is::turns - 2>();
        // These steps' stages are there, and all are done with those that are filled next.
        __syncthreads();
        // A branch costs fewer registers than copies of nothing do.
        if (tiles <= 4 || step + ahead < steps) {
            UNROLL for (int i = 0; i < together; i++) {
                weights.copy(ring + filled + i * Is::stage_bytes, i);
                x.copy(ring + filled + i * Is::stage_bytes, i);
            }
            weights.advance(together);
            x.advance(together);
        }
        copies_commit();
        UNROLL for (int i = 0; i < together; i++)
            if (step + i < steps) {
                const unsigned char *from = ring + stage + i * Is::stage_bytes;
                // What x takes to come, codes are widened in, where registers are enough.
                FewOfX<tiles> b;
                uint32_t a[SETS][2][4];
                if (tiles <= 4) load_tiles<tiles>(b, from + Weights::bytes, 0);
                weights.fragments(a, from);
                if (tiles > 4) load_tiles<tiles>(b, from + Weights::bytes, 0);
                multiply_tiles<tiles>(d, a, b, from + Weights::bytes);
            }
        filled = stage;
        stage = stage + turn == Is::turns * turn ? 0 : stage + turn;
    }
    return ring;
}

template <class Weights, int tiles, class Out> DEVICE void skinny(Out *y, const Product &product) {
    float d[SETS][tiles][4] = {};
    unsigned char *ring = add_all<Weights, tiles>(d, product);
    finish_all<tiles>(y, product, d, ring);
}

// The same where the type of y is known when it runs.
template <class Weights, int tiles, class Job> DEVICE void skinny(void *y, int wide, const Job &product) {
    float d[SETS][tiles][4] = {};
    unsigned char *ring = add_all<Weights, tiles>(d, product);
    if (wide) return finish_all<tiles>(static_cast<float *>(y), product, d, ring);
    finish_all<tiles>(static_cast<bf16 *>(y), product, d, ring);
}

// Of the unit that blockIdx.z says: which, and whether there is one. The rows are its pairs then.
template <int tiles> DEVICE bool take_unit(Product &product, Unit &unit, const int *offsets, int experts) {
    unit = find_unit(offsets, experts, 8 * tiles, blockIdx.z);
    if (unit.pairs == 0) return false;
    if (product.bias) product.bias += unit.expert * product.outputs;
    product.place = unit.first;
    product.pairs += unit.first;
    product.rows = unit.pairs;
    return true;
}

} // namespace
