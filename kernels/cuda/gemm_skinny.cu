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
#include "gemm_skinny.cuh"

namespace {

// A lane's pieces of the weights, from one step to the next.
struct Weights {
    static constexpr int bytes = BLOCK * STEP * 2;
    static constexpr int stages(int tiles, int) { return tiles <= 2 ? 5 : 4; }

    const bf16 *from;
    int groups, left, inputs, to;

    DEVICE Weights(const Product &product, int first_step, int end) {
        int output = blockIdx.x * BLOCK + warp_index() / 2 * 32 + lane_index() / 4;
        int input = first_step * STEP + warp_index() % 2 * 32 + lane_index() % 4 * 8;
        from = product.weight + size_t(output) * product.inputs + input;
        groups = (product.outputs - output + 7) / 8;
        left = end - input;
        inputs = product.inputs;
        to = warp_index() * 32 * LINE + place(lane_index() / 4, lane_index() % 4);
    }

    // Of the step after so many others.
    DEVICE void copy(unsigned char *stage, int step) const {
        UNROLL for (int group = 0; group < 4; group++)
            copy_async16(stage + to + group * 8 * LINE, from + size_t(8 * group) * inputs + step * STEP,
                         group < groups && step * STEP < left);
    }
    DEVICE void advance(int steps) {
        from += steps * STEP;
        left -= steps * STEP;
    }

    // For each set, both groups of 8 outputs, then the same of the next 8 inputs.
    DEVICE void fragments(uint32_t (&a)[SETS][2][4], const unsigned char *stage) const {
        int lane = lane_index();
        stage += warp_index() * 32 * LINE;
        UNROLL for (int set = 0; set < SETS; set++)
            UNROLL for (int i = 0; i < 2; i++)
                load_matrices(a[set][i], stage + set * 16 * LINE + place(lane % 16, 2 * i + lane / 16));
    }
};

// Of the unit that blockIdx.z says.
template <int tiles, class Out>
DEVICE void skinny_of_expert(Out *y, Product product, const int *offsets, int experts) {
    wait_for_earlier();
    Unit unit;
    if (!take_unit<tiles>(product, unit, offsets, experts)) return;
    product.weight += size_t(unit.expert) * product.outputs * product.inputs;
    skinny<Weights, tiles>(y, product);
}

} // namespace

// Up to `most` rows. The dynamic shared memory is Ring<Weights, most / 8>'s stages.
#define SKINNY(most, out, Out)                                                                                         \
    KERNEL_ABREAST(THREADS, 2)                                                                                         \
    gemm_skinny_##most##_##out(Out *y, const bf16 *x, const bf16 *weight, const float *bias, float *sums,              \
                               int *counters, int rows, int outputs, int inputs) {                                     \
        skinny<Weights, most / 8>(y, Product{x, weight, bias, sums, counters, rows, outputs, inputs, rows});           \
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
