// Products of many rows with a matrix of weights: y[rows][outputs] = x[rows][inputs] weight[outputs][inputs]^T, plus a
// bias[outputs] where there is one. For more than 64 rows, where it is the matrix units that cost.
//
// A block makes one tile of y, going along the inputs in steps of 32 through a ring of stages in shared memory; each
// of its warps makes a part of the tile in registers:
//
//     stage    x [rows of the tile][4 pieces], weights [outputs of the tile][4 pieces]: 16 bytes, 8 inputs each
//     piece p  of row r lies in place p ^ (r / 2 % 4): eight rows' pieces, read at once, lie in eight places of a
//              128-byte line's
//
// Every output is added up in one accumulator, by ascending inputs: its bits are the same whatever the tile and
// whatever the number of rows. The number of inputs is a multiple of 32.
//
// The same of a mixture of experts, for each unit of the list in experts.cuh: the rows of x are those of the unit's
// pairs, the weights those of its expert, weight[experts][outputs][inputs], and y has a row for each pair.
#include "experts.cuh"

namespace {

constexpr int STEP = 32;             // inputs of a stage
constexpr int PIECE = 16;            // bytes
constexpr int LINE = STEP * 2;       // bytes of a row in a stage
constexpr int ACROSS = LINE / PIECE; // pieces of a row in a stage
// Rows of tiles that are gone through together: as much of x as stays in the second cache while weights pass by.
constexpr int TOGETHER = 8;

struct Product {
    const bf16 *x, *weight;
    const float *bias;
    int rows, outputs, inputs;
    // Pairs of an expert, where that is what rows are: rows of y, and `sharers` of them together are of a row of x.
    const int *pairs = nullptr;
    int sharers = 1;
    // Did an earlier kernel make the weights?
    int fresh = 0;

    DEVICE size_t y_row(int row) const { return pairs ? pairs[row] : row; }
};

// Where piece `piece` of row `row` lies in a stage.
DEVICE int place(int row, int piece) { return row * LINE + (piece ^ (row / 2 % 4)) * PIECE; }

// The tile of block `block`: down a column of tiles, then the next column; `TOGETHER` tiles down at most.
template <int tile_rows, int tile_outputs> DEVICE void place_of_block(const Product &product, int &row, int &output) {
    int down = (product.rows + tile_rows - 1) / tile_rows, across = (product.outputs + tile_outputs - 1) / tile_outputs;
    int band = int(blockIdx.x) / (TOGETHER * across), in_band = int(blockIdx.x) % (TOGETHER * across);
    int height = min(TOGETHER, down - band * TOGETHER);
    row = (band * TOGETHER + in_band % height) * tile_rows;
    output = in_band / height * tile_outputs;
}

// A thread's share of copying `count` rows of a matrix, of which `there` exist, into a stage.
template <int count, int threads> struct Copy {
    static_assert(count * ACROSS % threads == 0 && threads % (8 * ACROSS) == 0, "whole rounds, that alternate alike");
    const bf16 *from;
    int inputs, there, to;

    DEVICE Copy(const bf16 *matrix, int first, int all, int of_inputs) {
        int row = threadIdx.x / ACROSS, piece = threadIdx.x % ACROSS;
        inputs = of_inputs;
        from = matrix + size_t(first + row) * inputs + piece * 8;
        there = all - first - row;
        to = place(row, piece);
    }

    // The next step.
    DEVICE void copy(unsigned char *stage) {
        constexpr int rows = threads / ACROSS;
        UNROLL for (int first = 0; first < count; first += rows)
            copy_async16(stage + to + first * LINE, from + size_t(first) * inputs, first < there);
        from += STEP;
    }
};

// The same of rows of x. Those of pairs lie anywhere.
template <int count, int threads> struct CopyRows : Copy<count, threads> {
    DEVICE CopyRows(const Product &product, int row)
        : Copy<count, threads>(product.x, row, product.rows, product.inputs) {}
};

template <int count, int threads> struct CopyPairs {
    static constexpr int rows = threads / ACROSS;
    const bf16 *from[count / rows];
    int there, to;

    DEVICE CopyPairs(const Product &product, int) {
        int row = threadIdx.x / ACROSS, piece = threadIdx.x % ACROSS;
        there = product.rows - row;
        to = place(row, piece);
        UNROLL for (int i = 0; i < count / rows; i++) {
            int of_x = i * rows < there ? product.pairs[row + i * rows] / product.sharers : 0;
            from[i] = product.x + size_t(of_x) * product.inputs + piece * 8;
        }
    }

    DEVICE void copy(unsigned char *stage) {
        UNROLL for (int i = 0; i < count / rows; i++) {
            copy_async16(stage + to + i * rows * LINE, from[i], i * rows < there);
            from[i] += STEP;
        }
    }
};

// What a warp holds of 16 inputs: `high` x 16 rows of x, `wide` x 8 outputs.
template <int high, int wide> struct Fragments {
    uint32_t x[high][4], weight[wide / 2][4];

    // `x_rows` and `weight_rows` begin at the warp's own rows, whose numbers are multiples of 8.
    DEVICE void load(const unsigned char *x_rows, const unsigned char *weight_rows, int half) {
        int lane = lane_index(), row = lane % 8;
        // Of x: both groups of 8 rows, then the same of the next 8 inputs. Of the weights: the other way round.
        const unsigned char *of_x = x_rows + place(row + lane / 8 % 2 * 8, half * 2 + lane / 16);
        const unsigned char *of_weight = weight_rows + place(row + lane / 16 * 8, half * 2 + lane / 8 % 2);
        UNROLL for (int i = 0; i < high; i++) load_matrices(x[i], of_x + i * 16 * LINE);
        UNROLL for (int j = 0; j < wide / 2; j++) load_matrices(weight[j], of_weight + j * 16 * LINE);
    }

    DEVICE void multiply(float (&d)[high][wide][4]) const {
        UNROLL for (int i = 0; i < high; i++)
            UNROLL for (int j = 0; j < wide; j++)
                multiply_add(d[i][j], x[i], weight[j / 2][j % 2 * 2], weight[j / 2][j % 2 * 2 + 1]);
    }
};

DEVICE void store_pair(float *to, float first, float second) {
    store8(to, Bytes8{float_to_bits(first), float_to_bits(second)});
}
DEVICE void store_pair(bf16 *to, float first, float second) {
    *reinterpret_cast<uint32_t *>(to) = to_bf16_pair(first, second);
}
DEVICE void store_one(float *to, float value) { *to = value; }
DEVICE void store_one(bf16 *to, float value) { *to = to_bf16(value); }

// Outputs `output` and the next, which may not be there, of a row.
template <class Out>
DEVICE void finish(Out *y, const Product &product, size_t row, int output, float first, float second) {
    if (output >= product.outputs) return;
    bool both = output + 1 < product.outputs;
    if (product.bias) {
        first += product.bias[output];
        if (both) second += product.bias[output + 1];
    }
    Out *to = y + row * product.outputs + output;
    if (product.outputs % 2 == 0) return store_pair(to, first, second);
    store_one(to, first);
    if (both) store_one(to + 1, second);
}

// The tile from `row` and `output` on.
template <template <int, int> class CopyX, int tile_rows, int tile_outputs, int warp_rows, int warp_outputs, int stages,
          class Out>
DEVICE void tiled(Out *y, const Product &product, int row, int output) {
    constexpr int across = tile_outputs / warp_outputs, threads = tile_rows / warp_rows * across * WARP;
    constexpr int stage_bytes = (tile_rows + tile_outputs) * LINE, x_bytes = tile_rows * LINE;
    constexpr int high = warp_rows / 16, wide = warp_outputs / 8;
    DYNAMIC_SHARED(ring);
    let_next_start();
    int steps = product.inputs / STEP;
    Copy<tile_outputs, threads> weight(product.weight, output, product.outputs, product.inputs);
    // Weights need not wait where they are nobody's output.
    if (product.fresh) wait_for_earlier();
    for (int step = 0; step < stages - 1 && step < steps; step++)
        weight.copy(ring + step * stage_bytes + x_bytes);
    wait_for_earlier();
    CopyX<tile_rows, threads> x(product, row);
    for (int step = 0; step < stages - 1; step++) {
        if (step < steps) x.copy(ring + step * stage_bytes);
        copies_commit();
    }
    copies_wait<stages - 2>();
    __syncthreads();

    int my_row = warp_index() / across * warp_rows, my_output = warp_index() % across * warp_outputs;
    const unsigned char *my_x = ring + my_row * LINE, *my_weight = ring + x_bytes + my_output * LINE;
    float d[high][wide][4] = {};
    // Half a step is read while the half before is multiplied.
    Fragments<high, wide> first, second;
    first.load(my_x, my_weight, 0);
    int stage = 0, filled = (stages - 1) * stage_bytes;
    for (int step = 0; step < steps; step++) {
        second.load(my_x + stage, my_weight + stage, 1);
        // Into the stage of the step before, which all have read: a barrier was after.
        if (step + stages - 1 < steps) {
            x.copy(ring + filled);
            weight.copy(ring + filled + x_bytes);
        }
        copies_commit();
        filled = stage;
        stage = stage + stage_bytes == stages * stage_bytes ? 0 : stage + stage_bytes;
        first.multiply(d);
        copies_wait<stages - 2>();
        __syncthreads();
        // After the last step this reads what is not used.
        first.load(my_x + stage, my_weight + stage, 0);
        second.multiply(d);
    }

    row += my_row + lane_index() / 4;
    output += my_output + lane_index() % 4 * 2;
    UNROLL for (int i = 0; i < high; i++)
        UNROLL for (int lower = 0; lower < 2; lower++) {
            int of_product = row + 16 * i + 8 * lower;
            if (of_product >= product.rows) continue;
            size_t to = product.y_row(of_product);
            UNROLL for (int j = 0; j < wide; j++)
                finish(y, product, to, output + 8 * j, d[i][j][2 * lower], d[i][j][2 * lower + 1]);
        }
}

} // namespace

// A tile of `rows` x `outputs`, of which a warp makes `high` x `wide`. Dynamic shared memory: stages x (rows + outputs)
// x 64 bytes; threads: 32 for each warp.
#define TILED(rows, outputs, high, wide, stages, abreast, out, Out)                                                    \
    KERNEL_ABREAST(rows / high * (outputs / wide) * WARP, abreast)                                                     \
    gemm_tiled_##rows##x##outputs##_##out(Out *y, const bf16 *x, const bf16 *weight, const float *bias, int m, int n,  \
                                          int k, int fresh) {                                                          \
        Product product{x, weight, bias, m, n, k, nullptr, 1, fresh};                                                  \
        int row, output;                                                                                               \
        place_of_block<rows, outputs>(product, row, output);                                                           \
        tiled<CopyRows, rows, outputs, high, wide, stages>(y, product, row, output);                                   \
    }                                                                                                                  \
    EXPORT(gemm_tiled_##rows##x##outputs##_##out)

TILED(64, 64, 32, 32, 6, 4, f32, float)
TILED(64, 64, 32, 32, 6, 4, bf16, bf16)
TILED(128, 128, 64, 64, 4, 2, f32, float)
TILED(128, 128, 64, 64, 4, 2, bf16, bf16)
TILED(128, 256, 64, 64, 4, 1, f32, float)
TILED(128, 256, 64, 64, 4, 1, bf16, bf16)

// Of experts. Grid (units, tiles across): blocks that read the same weights come one after the other.
#define TILED_EXPERTS(rows, outputs, high, wide, stages, abreast, out, Out)                                            \
    KERNEL_ABREAST(rows / high * (outputs / wide) * WARP, abreast)                                                     \
    gemm_tiled_experts_##rows##x##outputs##_##out(Out *y, const bf16 *x, const bf16 *weight, const float *bias,        \
                                                  const int *list, const int *offsets, int sharers, int experts,       \
                                                  int n, int k) {                                                      \
        wait_for_earlier();                                                                                            \
        Unit unit = find_unit(offsets, experts, rows, blockIdx.x);                                                     \
        if (unit.pairs == 0) return;                                                                                   \
        const bf16 *of_expert = weight + size_t(unit.expert) * n * k;                                                  \
        const float *its_bias = bias ? bias + unit.expert * n : nullptr;                                               \
        Product product{x, of_expert, its_bias, unit.pairs, n, k, list + unit.first, sharers};                         \
        tiled<CopyPairs, rows, outputs, high, wide, stages>(y, product, 0, blockIdx.y * outputs);                      \
    }                                                                                                                  \
    EXPORT(gemm_tiled_experts_##rows##x##outputs##_##out)

TILED_EXPERTS(64, 64, 32, 32, 6, 4, f32, float)
TILED_EXPERTS(64, 64, 32, 32, 6, 4, bf16, bf16)
TILED_EXPERTS(128, 128, 64, 64, 4, 2, f32, float)
TILED_EXPERTS(128, 128, 64, 64, 4, 2, bf16, bf16)
