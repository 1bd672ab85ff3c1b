// Products of few rows with a matrix of weights: y[rows][outputs] = x[rows][inputs] weight[outputs][inputs]^T, plus a
// bias[outputs] where there is one. Up to 64 rows. The weights are read once, and that is what it costs: all else is
// there to keep many of their bytes under way.
//
// A block makes 128 outputs of all rows from one part of the inputs. It goes along its part in steps of 64 inputs,
// through a ring of stages in shared memory:
//
//     warp w   outputs 32 (w / 2) and the next 31, inputs 32 (w % 2) and the next 31 of each step
//     stage    weights [warp][32 outputs][4 pieces], x [half of the step][rows][4 pieces]: 16 bytes, 8 inputs each
//     piece p  of row r lies in place p ^ (r / 2 % 4): what the matrix unit takes at once lies in different banks
//
// Weights are the unit's left side (16 outputs), and rows of x are its columns (8 a tile). Each warp copies its own
// weights.
//
// What the parts of the inputs add up to (gridDim.y of them) is summed by the last block of the 128 outputs to come.
// Which inputs are added in which order follows from `outputs` and `inputs` alone, never from `rows`: a row's results
// are the same bits with any others.
//
//     sums     f32 [part][128 outputs][rows][128], room for the parts where there are several
//     counters i32 [128 outputs], how many parts are there; zeros before the first launch, and after each
//
// The same of a mixture of experts, for each unit of the list in experts.cuh (gridDim.z of them at most): the rows of x
// are those of the unit's pairs, the weights those of its expert, weight[experts][outputs][inputs], and y has a row for
// each pair. Sums then are [part][128 outputs][place in the list][128], and counters [unit][128 outputs].
#include "experts.cuh"

namespace {

constexpr int THREADS = 256;
constexpr int BLOCK = 128; // outputs of a block
constexpr int STEP = 64;   // inputs of a step
constexpr int SETS = 2;    // of 16 outputs, for each warp
constexpr int PIECE = 16;  // bytes
constexpr int LINE = 64;   // bytes of a row in half a stage
constexpr int WEIGHT_BYTES = BLOCK * STEP * 2;
// Floats from one row of the sums in shared memory to the next: no two lanes of a warp meet in a bank.
constexpr int PITCH = BLOCK + 4;

// What follows from the number of tiles of 8 rows.
template <int tiles> struct Ring {
    static constexpr int x_pieces = 2 * tiles * WARP;
    static_assert(x_pieces <= THREADS || x_pieces == 2 * THREADS, "a thread's pieces are of one row");
    static constexpr int stage_bytes = WEIGHT_BYTES + x_pieces * PIECE;
    static constexpr int stages = tiles <= 2 ? 5 : 4;
    static_assert(8 * tiles * PITCH * 4 <= stages * stage_bytes, "the sums fit where the stages were");
};

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

    DEVICE size_t x_row(int row) const { return pairs ? pairs[row] / sharers : row; }
    DEVICE size_t y_row(int row) const { return pairs ? pairs[row] : row; }
};

// Where piece `piece` of row `row` lies.
DEVICE int place(int row, int piece) { return row * LINE + (piece ^ (row / 2 % 4)) * PIECE; }

// A lane's pieces of the weights, from one step to the next.
struct Weights {
    const bf16 *from;
    int groups, left, inputs, to;

    DEVICE Weights(const Product &product, int first_step) {
        int output = blockIdx.x * BLOCK + warp_index() / 2 * 32 + lane_index() / 4;
        int input = first_step * STEP + warp_index() % 2 * 32 + lane_index() % 4 * 8;
        from = product.weight + size_t(output) * product.inputs + input;
        groups = (product.outputs - output + 7) / 8;
        left = product.inputs - input;
        inputs = product.inputs;
        to = warp_index() * 32 * LINE + place(lane_index() / 4, lane_index() % 4);
    }

    DEVICE void copy(unsigned char *stage) {
        UNROLL for (int group = 0; group < 4; group++)
            copy_async16(stage + to + group * 8 * LINE, from + size_t(8 * group) * inputs, group < groups && left > 0);
        from += STEP;
        left -= STEP;
    }
};

// The same of a thread's pieces of x: with eight tiles two, of both halves of a step; with few tiles one or none.
template <int tiles> struct X {
    const bf16 *from;
    int left, to;

    DEVICE X(const Product &product, int first_step) {
        int row = threadIdx.x / 4 % (8 * tiles), half = threadIdx.x / (4 * 8 * tiles), piece = threadIdx.x % 4;
        int input = first_step * STEP + half * 32 + piece * 8;
        bool there = row < product.rows;
        from = product.x + (there ? product.x_row(row) : 0) * product.inputs + input;
        left = there ? product.inputs - input : 0;
        to = WEIGHT_BYTES + half * 8 * tiles * LINE + place(row, piece);
    }

    // `put` is given a place in the stage, one in x, and whether the latter exists.
    template <class Put> DEVICE void step(unsigned char *stage, Put put) {
        UNROLL for (int first = 0; first < Ring<tiles>::x_pieces; first += THREADS)
            if (first + int(threadIdx.x) < Ring<tiles>::x_pieces)
                put(stage + to + first * PIECE, from + first / THREADS * 32, first / THREADS * 32 < left);
        from += STEP;
        left -= STEP;
    }

    DEVICE void copy(unsigned char *stage) {
        step(stage, [](void *shared, const bf16 *global, bool there) { copy_async16(shared, global, there); });
    }

    // At once, for the first stages: their weights are under way before x is there.
    DEVICE void move(unsigned char *stage) {
        step(stage, [](void *shared, const bf16 *global, bool there) {
            store16(shared, there ? load16(global) : Bytes16{0, 0, 0, 0});
        });
    }
};

template <int tiles> DEVICE void add_step(float (&d)[SETS][tiles][4], const unsigned char *stage) {
    int lane = lane_index();
    // Of the weights: both groups of 8 outputs, then the same of the next 8 inputs.
    const unsigned char *weights = stage + warp_index() * 32 * LINE, *x = stage + WEIGHT_BYTES;
    uint32_t a[SETS][2][4];
    UNROLL for (int set = 0; set < SETS; set++)
        UNROLL for (int i = 0; i < 2; i++)
            load_matrices(a[set][i], weights + set * 16 * LINE + place(lane % 16, 2 * i + lane / 16));
    // Of x: 8 rows, all 32 inputs.
    x += warp_index() % 2 * 8 * tiles * LINE + place(lane % 8, lane / 8);
    // Two tiles at a time: the second product with a tile then need not wait for the first.
    constexpr int abreast = tiles < 2 ? tiles : 2;
    UNROLL for (int tile = 0; tile < tiles; tile += abreast) {
        uint32_t b[abreast][4];
        UNROLL for (int t = 0; t < abreast; t++) load_matrices(b[t], x + (tile + t) * 8 * LINE);
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

// Adds up the parts in their order, whichever came first.
template <class Out> DEVICE void add_parts(Out *y, const Product &product, const float *mine) {
    int parts = gridDim.y;
    size_t part = size_t(gridDim.x) * product.room * BLOCK;
    float *sums = product.sums + size_t(blockIdx.x) * product.room * BLOCK;
    for (int four = threadIdx.x; four < product.rows * (BLOCK / 4); four += THREADS)
        store_four(sums + blockIdx.y * part + four * 4,
                   load_four(mine + four / (BLOCK / 4) * PITCH + four % (BLOCK / 4) * 4));
    if (!is_last(product.counters + blockIdx.x, parts)) return;
    for (int four = threadIdx.x; four < product.rows * (BLOCK / 4); four += THREADS) {
        Four sum = load_four(sums + four * 4);
        for (int other = 1; other < parts; other++) {
            Four more = load_four(sums + other * part + four * 4);
            UNROLL for (int i = 0; i < 4; i++) sum.at[i] += more.at[i];
        }
        finish(y, product, four / (BLOCK / 4), blockIdx.x * BLOCK + four % (BLOCK / 4) * 4, sum);
    }
}

template <int tiles, class Out> DEVICE void skinny(Out *y, const Product &product) {
    using Is = Ring<tiles>;
    constexpr int ahead = Is::stages - 1;
    DYNAMIC_SHARED(ring);
    let_next_start();
    // Steps are given to the parts as evenly as they go.
    int all = (product.inputs + STEP - 1) / STEP;
    int first = all * int(blockIdx.y) / int(gridDim.y), steps = all * int(blockIdx.y + 1) / int(gridDim.y) - first;
    Weights weights(product, first);
    // Weights are nobody's output: they need not wait.
    for (int step = 0; step < ahead; step++) {
        if (step < steps) weights.copy(ring + step * Is::stage_bytes);
        copies_commit();
    }
    wait_for_earlier();
    X<tiles> x(product, first);
    for (int step = 0; step < ahead && step < steps; step++) x.move(ring + step * Is::stage_bytes);

    float d[SETS][tiles][4] = {};
    int stage = 0, filled = ahead * Is::stage_bytes;
    for (int step = 0; step < steps; step++) {
        copies_wait<ahead - 1>();
        // This step's stage is there, and all are done with the one that is filled next.
        __syncthreads();
        if (step + ahead < steps) {
            weights.copy(ring + filled);
            x.copy(ring + filled);
        }
        copies_commit();
        add_step<tiles>(d, ring + stage);
        filled = stage;
        stage = stage + Is::stage_bytes == Is::stages * Is::stage_bytes ? 0 : stage + Is::stage_bytes;
    }
    copies_wait<0>();
    __syncthreads();

    float *sums = reinterpret_cast<float *>(ring);
    add_halves<tiles>(sums, d);
    if (gridDim.y > 1) return add_parts(y, product, sums);
    for (int four = threadIdx.x; four < product.rows * (BLOCK / 4); four += THREADS) {
        int row = four / (BLOCK / 4), output = four % (BLOCK / 4) * 4;
        finish(y, product, row, blockIdx.x * BLOCK + output, load_four(sums + row * PITCH + output));
    }
}

// Of the unit that blockIdx.z says.
template <int tiles, class Out>
DEVICE void skinny_of_expert(Out *y, Product product, const int *offsets, int experts) {
    wait_for_earlier();
    Unit unit = find_unit(offsets, experts, 8 * tiles, blockIdx.z);
    if (unit.pairs == 0) return;
    product.weight += size_t(unit.expert) * product.outputs * product.inputs;
    if (product.bias) product.bias += unit.expert * product.outputs;
    product.sums += size_t(unit.first) * BLOCK;
    product.counters += blockIdx.z * gridDim.x;
    product.pairs += unit.first;
    product.rows = unit.pairs;
    skinny<tiles>(y, product);
}

} // namespace

// Up to `most` rows. The dynamic shared memory is Ring<most / 8>'s stages.
#define SKINNY(most, out, Out)                                                                                         \
    KERNEL_ABREAST(THREADS, 2)                                                                                         \
    gemm_skinny_##most##_##out(Out *y, const bf16 *x, const bf16 *weight, const float *bias, float *sums,              \
                               int *counters, int rows, int outputs, int inputs) {                                     \
        skinny<most / 8>(y, Product{x, weight, bias, sums, counters, rows, outputs, inputs, rows});                    \
    }                                                                                                                  \
    EXPORT(gemm_skinny_##most##_##out)

SKINNY(8, f32, float)
SKINNY(8, bf16, bf16)
SKINNY(16, f32, float)
SKINNY(16, bf16, bf16)
SKINNY(32, f32, float)
SKINNY(32, bf16, bf16)
SKINNY(64, f32, float)
SKINNY(64, bf16, bf16)

// Of experts: units of up to `most` of all `pairs`.
#define SKINNY_EXPERTS(most, out, Out)                                                                                 \
    KERNEL_ABREAST(THREADS, 2)                                                                                         \
    gemm_skinny_experts_##most##_##out(Out *y, const bf16 *x, const bf16 *weight, const float *bias, float *sums,      \
                                       int *counters, const int *list, const int *offsets, int pairs, int sharers,     \
                                       int experts, int outputs, int inputs) {                                         \
        Product product{x, weight, bias, sums, counters, 0, outputs, inputs, pairs, list, sharers};                    \
        skinny_of_expert<most / 8>(y, product, offsets, experts);                                                      \
    }                                                                                                                  \
    EXPORT(gemm_skinny_experts_##most##_##out)

SKINNY_EXPERTS(8, f32, float)
SKINNY_EXPERTS(8, bf16, bf16)
SKINNY_EXPERTS(16, f32, float)
SKINNY_EXPERTS(16, bf16, bf16)
SKINNY_EXPERTS(32, f32, float)
SKINNY_EXPERTS(32, bf16, bf16)
SKINNY_EXPERTS(64, f32, float)
SKINNY_EXPERTS(64, bf16, bf16)
