// Products of one to eight rows with a matrix of weights, and what stands before and after them in a layer: y[rows][outputs]
// = x[rows][inputs] weight[outputs][inputs]^T. With so few rows a step is a chain of short launches, so that what is
// waited for, one thing after the other, costs more than the bytes. Here
//
//     each output is one block's: no block waits for another's part, and what follows an output is done at once
//     a block asks for its first 96 KB of weights before it waits for earlier kernels
//     x may be the residual stream: the block norms it by itself, instead of a launch that does
//
// A block makes `share` units of outputs one after the other: a unit is eight outputs, or, of a gated product, eight of
// the gate and the same eight of the other half. It goes over the weights of G times eight rows at a time; warp w has
// every eighth stage of their inputs, from stage w on, in a ring of its own, and meets the others only to add up:
//
//     shared    x bf16 [rows][line]; for each warp [stages][8 G rows of weights][DEEP inputs]; sums f32 [2][warp][rows][8 G]
//     piece p   of row r (16 bytes, 8 inputs) of a stage lies in place p ^ 4 (r % 2): no two lanes meet in a bank
//
// Rows of x are the left side of a product and weights its right one. Which inputs a lane has of a piece does not matter
// so long as both sides have the same: it takes eight that stand together, for two products.
//
// Of a normed row the sum of squares is needed at the end alone: x times the norm's weights is multiplied, and what comes
// of it is divided by the root of the mean square.
//
// In which order inputs are added follows from `outputs`, `inputs` and `gated`, never from `rows`.
#include "activation.cuh"

namespace {

constexpr int WARPS = 8;
constexpr int THREADS = WARPS * WARP;
constexpr int ROWS = 8;           // at most
constexpr int GROUP = 8;          // rows of weights that are one product's right side
constexpr int RING_BYTES = 12288; // of a warp
constexpr int PIECE = 16;         // bytes, 8 inputs
constexpr int DEEPEST = 128;      // inputs of a stage, at most

// What becomes of the outputs.
enum Outcome { F32, BF16, ADDED, GATED };

struct Product {
    const void *x;
    const bf16 *weight;
    const float *bias, *norm;
    const int *row_index;
    void *y;
    int rows, x_rows, outputs, inputs, share;
    // GATED and more: GATED plus the activation.
    int outcome;
    float offset, eps, factor;

    DEVICE bool gated() const { return outcome >= GATED; }
    // Numbers of a row of x in shared memory: whole stages, of which the last may end with zeros.
    DEVICE int padded() const { return (inputs + DEEPEST - 1) / DEEPEST * DEEPEST; }
    // Bytes from one row to the next: those of two rows lie in different banks.
    DEVICE int line() const { return padded() * 2 + 64; }
    // What is written for a row.
    DEVICE int width() const { return gated() ? outputs / 2 : outputs; }
    // The block's units: the first, and how many groups of weights they are.
    DEVICE int first_unit() const { return blockIdx.x * share; }
    DEVICE int groups() const {
        int units = min(share, (width() + GROUP - 1) / GROUP - first_unit());
        return gated() ? 2 * units : units;
    }
    // The first row of weights of a group of the block's.
    DEVICE int weight_row(int group) const {
        return gated() ? group % 2 * width() + (first_unit() + group / 2) * GROUP : (first_unit() + group) * GROUP;
    }
};

template <int G> struct Stage {
    static constexpr int DEEP = G == 4 ? 64 : DEEPEST; // inputs
    static constexpr int PIECES = DEEP / 8;        // of a row
    static constexpr int BYTES = G * GROUP * DEEP * 2;
    static constexpr int COUNT = RING_BYTES / BYTES;
    static_assert(COUNT >= 3, "one is multiplied, and two are under way");

    DEVICE static int place(int row, int piece) { return (row * PIECES + (piece ^ row % 2 * 4)) * PIECE; }
};

DEVICE float activate(int kind, float gate, float up, float limit) {
    switch (kind) {
    case SILU: return activate<SILU>(gate, up, limit);
    case GELU: return activate<GELU>(gate, up, limit);
    case GELU_TANH: return activate<GELU_TANH>(gate, up, limit);
    default: return activate<CLAMPED_SWIGLU>(gate, up, limit);
    }
}

// Loads a warp's stages one after the other.
template <int G> struct Loader {
    using Is = Stage<G>;
    static constexpr int AT_ONCE = WARP / Is::PIECES; // rows
    const Product &product;
    unsigned char *to;
    // The lane's first piece of the next stage; numbers from a group of weights to the one after it, and from two to two.
    const bf16 *from;
    size_t other, pair;
    int groups, group, stage, place;

    DEVICE Loader(const Product &product, unsigned char *ring)
        : product(product), groups(product.groups()), group(0), stage(warp_index()), place(0) {
        int row = lane_index() / Is::PIECES, piece = lane_index() % Is::PIECES;
        size_t eight = size_t(GROUP) * product.inputs;
        to = ring + Is::place(row, piece);
        from = product.weight + size_t(product.weight_row(0) + row) * product.inputs + stage * Is::DEEP + piece * 8;
        other = product.gated() ? size_t(product.width()) * product.inputs : eight;
        pair = product.gated() ? eight : 2 * eight;
        if (stage >= stages()) group = groups;
    }

    DEVICE int stages() const { return (product.inputs + Is::DEEP - 1) / Is::DEEP; }

    // Every call ends a group of copies, also where there is nothing left to load.
    DEVICE void load() {
        if (group < groups) copy();
        copies_commit();
        place = place + Is::BYTES == Is::COUNT * Is::BYTES ? 0 : place + Is::BYTES;
        stage += WARPS;
        from += WARPS * Is::DEEP;
        if (stage < stages()) return;
        // Back to the warp's first stage, of the groups that follow.
        from -= stage * Is::DEEP;
        stage = warp_index();
        from += stage * Is::DEEP;
        from += G == 1 ? other : G / 2 * pair;
        group += G;
    }

    DEVICE void copy() const {
        // Rows of weights from here on that are there: a gated product has no groups in part.
        int rows = (groups - group) * GROUP;
        if (!product.gated()) rows = min(rows, product.outputs - product.weight_row(group));
        if (stage * Is::DEEP + lane_index() % Is::PIECES * 8 >= product.inputs) rows = 0;
        rows -= lane_index() / Is::PIECES;
        UNROLL for (int g = 0; g < G; g++)
            UNROLL for (int row = 0; row < GROUP; row += AT_ONCE)
                copy_async16(to + place + (g * GROUP + row) * Is::PIECES * PIECE,
                             from + (g / 2 * pair + g % 2 * other + row * product.inputs), g * GROUP + row < rows);
    }
};

// Reads of x that a thread has under way at once: all are said to be before the first result is used.
constexpr int ABREAST = 4;

// Rows of x as they are.
DEVICE void copy_rows(unsigned char *to, const Product &product) {
    for (int row = 0; row < product.rows; row++) {
        const bf16 *from = static_cast<const bf16 *>(product.x) + size_t(row) * product.inputs;
        ROLLED for (int first = threadIdx.x * 8; first < product.padded(); first += ABREAST * THREADS * 8) {
            Bytes16 got[ABREAST];
            UNROLL for (int i = 0; i < ABREAST; i++) {
                int at = first + i * THREADS * 8;
                got[i] = at < product.inputs ? load16(from + at) : Bytes16{0, 0, 0, 0};
            }
            UNROLL for (int i = 0; i < ABREAST; i++) {
                int at = first + i * THREADS * 8;
                if (at < product.padded()) store16(to + row * product.line() + at * 2, got[i]);
            }
        }
    }
}

// Rows of the residual stream times the norm's weights; `squares` gets the parts of the rows' sums of squares. Warps
// share a row where there are fewer rows than warps; what is summed in one part does not depend on how many do.
DEVICE void norm_rows(unsigned char *to, float (&squares)[ROWS][WARPS], const Product &product) {
    int sharers = WARPS;
    while (sharers * product.rows > WARPS) sharers /= 2;
    int row = warp_index() / sharers;
    if (row >= product.rows) return;
    int x_row = product.row_index ? product.row_index[row] : row;
    bool there = unsigned(x_row) < unsigned(product.x_rows);
    const float *x = static_cast<const float *>(product.x) + size_t(there ? x_row : 0) * product.inputs;
    unsigned char *line = to + row * product.line();
    for (int part = warp_index() % sharers; part < WARPS; part += sharers) {
        float sum = 0.0f;
        ROLLED for (int first = (part * WARP + lane_index()) * 4; first < product.padded();
                    first += ABREAST * THREADS * 4) {
            float numbers[ABREAST][4] = {}, weights[ABREAST][4] = {};
            UNROLL for (int i = 0; i < ABREAST; i++) {
                int at = first + i * THREADS * 4;
                if (!there || at >= product.inputs) continue;
                load_four(numbers[i], x + at);
                load_four(weights[i], product.norm + at);
            }
            UNROLL for (int i = 0; i < ABREAST; i++) {
                int at = first + i * THREADS * 4;
                if (at >= product.padded()) continue;
                UNROLL for (int j = 0; j < 4; j++) {
                    sum += numbers[i][j] * numbers[i][j];
                    numbers[i][j] *= weights[i][j] + product.offset;
                }
                const float(&four)[4] = numbers[i];
                store8(line + at * 2, Bytes8{to_bf16_pair(four[0], four[1]), to_bf16_pair(four[2], four[3])});
            }
        }
        sum = warp_sum(sum);
        if (lane_index() == 0) squares[row][part] = sum;
    }
}

// The products of a stage with all rows of x. A lane's sums are of row lane / 4, outputs 2 (lane % 4) and the next of
// each group; the other two stay 0, for there are no rows from 8 on.
template <int G>
DEVICE void multiply(float (&d)[G][4], const Product &product, const unsigned char *x, const unsigned char *weights,
                     int stage) {
    using Is = Stage<G>;
    int row = lane_index() / 4, piece = lane_index() % 4;
    x += row * product.line() + stage * Is::DEEP * 2 + piece * PIECE;
    UNROLL for (int block = 0; block < Is::DEEP / 32; block++) {
        Bytes16 left{0, 0, 0, 0};
        if (row < product.rows) left = load16(x + block * 64);
        const uint32_t first[4] = {left.x, 0, left.y, 0}, second[4] = {left.z, 0, left.w, 0};
        Bytes16 right[G];
        UNROLL for (int g = 0; g < G; g++) right[g] = load16(weights + Is::place(g * GROUP + row, block * 4 + piece));
        UNROLL for (int g = 0; g < G; g++) multiply_add(d[g], first, right[g].x, right[g].y);
        UNROLL for (int g = 0; g < G; g++) multiply_add(d[g], second, right[g].z, right[g].w);
    }
}

// What is written of the groups that were multiplied together: one number of a row for each thread, of the first threads.
template <int G> struct Result {
    int row, column, output;
    bool there;
    float before;

    DEVICE Result(const Product &product, int group) {
        int columns = product.gated() ? G * GROUP / 2 : G * GROUP;
        row = int(threadIdx.x) / columns;
        column = int(threadIdx.x) % columns;
        if (product.gated()) column = column / GROUP * 2 * GROUP + column % GROUP;
        int of = group + column / GROUP;
        output = product.weight_row(of) + column % GROUP;
        there = row < product.rows && of < product.groups() && output < product.width();
        // It takes as long as the way to the second cache, so early.
        before = 0.0f;
        if (there && product.outcome == ADDED) before = static_cast<const float *>(product.y)[at(product)];
    }

    DEVICE size_t at(const Product &product) const { return size_t(row) * product.width() + output; }

    // Adds up the warps' sums in their order.
    DEVICE float sum(const Product &product, const float *sums, int column) const {
        float sum = 0.0f;
        UNROLL for (int warp = 0; warp < WARPS; warp++)
            sum += sums[(warp * product.rows + row) * G * GROUP + column];
        return sum;
    }

    DEVICE void write(const Product &product, const float *sums, float inverse) const {
        float number = sum(product, sums, column) * inverse;
        if (product.bias) number += product.bias[output];
        if (product.gated()) {
            float other = sum(product, sums, column + GROUP) * inverse;
            if (product.bias) other += product.bias[product.width() + output];
            number = activate(product.outcome - GATED, number, other, product.factor);
        }
        if (product.outcome == F32) static_cast<float *>(product.y)[at(product)] = number;
        else if (product.outcome == ADDED) static_cast<float *>(product.y)[at(product)] = before + product.factor * number;
        else static_cast<bf16 *>(product.y)[at(product)] = to_bf16(number);
    }
};

template <int G> DEVICE void gemv(const Product &product) {
    using Is = Stage<G>;
    SHARED float squares[ROWS][WARPS];
    DYNAMIC_SHARED(x);
    let_next_start();
    unsigned char *rings = x + product.rows * product.line(), *ring = rings + warp_index() * RING_BYTES;
    float *sums = reinterpret_cast<float *>(rings + WARPS * RING_BYTES);
    Loader<G> loader(product, ring);
    for (int stage = 0; stage < Is::COUNT; stage++) loader.load();
    if (product.norm) prefetch(product.norm + min(int(threadIdx.x) * 32, product.inputs - 1));
    wait_for_earlier();
    product.norm ? norm_rows(x, squares, product) : copy_rows(x, product);
    __syncthreads();

    int place = 0, turn = 0;
    for (int group = 0; group < loader.groups; group += G) {
        Result<G> result(product, group);
        float d[G][4] = {};
        for (int stage = warp_index(); stage < loader.stages(); stage += WARPS) {
            copies_wait<Is::COUNT - 1>();
            __syncwarp();
            multiply<G>(d, product, x, ring + place, stage);
            // The loads that come next go where these weights were.
            __syncwarp();
            loader.load();
            place = place + Is::BYTES == Is::COUNT * Is::BYTES ? 0 : place + Is::BYTES;
        }
        // Two places take turns: who writes to one knows that all have read it, for they wrote to the other since.
        float *of_turn = sums + turn * (WARPS * product.rows * G * GROUP);
        float *mine = of_turn + (warp_index() * product.rows + lane_index() / 4) * G * GROUP + lane_index() % 4 * 2;
        if (lane_index() / 4 < product.rows)
            UNROLL for (int g = 0; g < G; g++)
                store8(mine + g * GROUP, Bytes8{float_to_bits(d[g][0]), float_to_bits(d[g][1])});
        __syncthreads();
        if (result.there) {
            float inverse = 1.0f, sum = 0.0f;
            if (product.norm) {
                UNROLL for (int part = 0; part < WARPS; part++) sum += squares[result.row][part];
                inverse = rsqrtf(sum / product.inputs + product.eps);
            }
            result.write(product, of_turn, inverse);
        }
        turn ^= 1;
    }
}

} // namespace

// Threads: 256. Grid: as many blocks as there are units by `share`. Dynamic shared memory: x, rings and sums as above.
// `x` is bf16 [rows][inputs]; with `norm`, f32 [x_rows][inputs], of which row r is row row_index[r] (zeros where there is
// none), or row r itself. `y` is f32, or bf16 where `outcome` is BF16 or GATED; with ADDED, `factor` times the result is
// added to what is there. `outputs` are the rows of weights, of which a gated product writes half. `inputs` is a multiple
// of 32.
#define GEMV(name, groups)                                                                                             \
    KERNEL_ABREAST(THREADS, 2)                                                                                         \
    name(void *y, const void *x, const bf16 *weight, const float *bias, const float *norm, const int *row_index,       \
         int rows, int x_rows, int outputs, int inputs, int share, int outcome, float offset, float eps,               \
         float factor) {                                                                                               \
        gemv<groups>(Product{x, weight, bias, norm, row_index, y, rows, x_rows, outputs, inputs, share, outcome,       \
                             offset, eps, factor});                                                                    \
    }                                                                                                                  \
    EXPORT(name)

GEMV(gemv_1, 1)
GEMV(gemv_2, 2)
GEMV(gemv_4, 4)
