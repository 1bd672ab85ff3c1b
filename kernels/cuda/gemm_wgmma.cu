// Products of more than 64 rows with a matrix of weights, by the matrix units of compute capability 9.0:
// y[rows][outputs] = x[rows][inputs] weight[outputs][inputs]^T, plus a bias[outputs] where there is one. How, is said
// in gemm_wgmma.cuh; a step is 64 inputs.
//
// Every output, of every part, is added up in one accumulator by ascending inputs, 16 at a time as the unit does it:
// its bits depend on the number of parts alone, not on the tile nor on other rows. They are not those of other kernels.
#include "gemm_wgmma.cuh"

namespace {

// A thread's share of copying both matrices into stages, through all that the block works at.
template <int width> struct Copy {
    const unsigned char *x, *weight;
    int next, rows, outputs, left, to;

    DEVICE Copy(const Product &product) {
        to = matrix_place(threadIdx.x / ACROSS, threadIdx.x % ACROSS);
        next = blockIdx.x;
        begin(product);
    }

    // The next part of a tile, where there is one.
    DEVICE void begin(const Product &product) {
        left = 0;
        if (next >= Work<width>::tiles(product) * product.parts) return;
        Work<width> work(product, next);
        int row = threadIdx.x / ACROSS;
        size_t input = work.first_step * LINE + threadIdx.x % ACROSS * 16;
        x = product.x + size_t(work.row + row) * product.line + input;
        weight = product.weight + size_t(work.output + row) * product.line + input;
        rows = product.rows - work.row - row;
        outputs = product.outputs - work.output - row;
        left = work.steps;
        next += gridDim.x;
    }

    // Weights of a step that comes `later`.
    DEVICE void copy_weight(const Product &product, unsigned char *stage, int later) const {
        UNROLL for (int first = 0; first < width; first += COPIED)
            copy_async16(stage + (ROWS + first) * LINE + to, weight + later * LINE + size_t(first) * product.line,
                         first < outputs);
    }

    // The next step, where there is one.
    DEVICE void copy(const Product &product, unsigned char *stage, bool with_weight) {
        if (left == 0) begin(product);
        if (left == 0) return;
        UNROLL for (int first = 0; first < ROWS; first += COPIED)
            copy_async16(stage + first * LINE + to, x + size_t(first) * product.line, first < rows);
        if (with_weight) copy_weight(product, stage, 0);
        x += LINE;
        weight += LINE;
        left--;
    }
};

template <int width, class Out> DEVICE void multiply(Out *y, const Product &product, bool late) {
#ifdef WARPGROUPS
    using Is = Ring<width>;
    DYNAMIC_SHARED(memory);
    let_next_start();
    unsigned char *ring = matrix_aligned(memory);
    Copy<width> copy(product);
    // Weights that are nobody's output need not wait.
    int early = late ? 0 : min(Is::ahead, copy.left);
    ROLLED for (int step = 0; step < early; step++) copy.copy_weight(product, ring + step * Is::stage_bytes, step);
    wait_for_earlier();
    ROLLED for (int step = 0; step < Is::ahead; step++) {
        copy.copy(product, ring + step * Is::stage_bytes, step >= early);
        copies_commit();
    }

    // The same in all lanes, as the compiler should know.
    int group = __shfl_sync(ALL_LANES, int(threadIdx.x) / WARPGROUP, 0);
    uint64_t x_at = matrix_at(ring + group * (ROWS / 2) * LINE), weight_at = matrix_at(ring + ROWS * LINE);
    unsigned stage = 0, filled = Is::ahead * Is::stage_bytes;
    int all = Work<width>::tiles(product) * product.parts;
    for (int index = blockIdx.x; index < all; index += gridDim.x) {
        Work<width> work(product, index);
        float d[width / 8][4] = {};
        int steps = work.steps;
        do {
            copies_wait<Is::ahead - 1>();
            show_copies();
            // This step's stage is there, and all have waited for the products of the stage that is filled next.
            __syncthreads();
            warpgroup_begin();
            UNROLL for (unsigned piece = 0; piece < LINE; piece += 32)
                warpgroup_multiply<bf16>(d, x_at + (stage + piece) / 16, weight_at + (stage + piece) / 16, true);
            warpgroup_commit();
            copy.copy(product, ring + filled, true);
            copies_commit();
            stage = Is::after(stage);
            filled = Is::after(filled);
            warpgroup_wait<1>();
        } while (--steps > 0);
        warpgroup_wait<0>();
        settle(d);
        if (product.parts == 1 || add_parts(d, product, work)) store<width>(y, product, work.row, work.output, d);
    }
#else
    __trap();
#endif
}

} // namespace

// Tiles of 128 x `width`. Threads: 256. Dynamic shared memory: 1 KB, and the stages of Ring<width>. The grid is at most
// a block for each part of a tile; fewer do several. `late`: an earlier kernel of the step writes the weights. `inputs`
// is a multiple of 64.
#define WGMMA(width, out, Out)                                                                                         \
    KERNEL_ABREAST(THREADS, 1)                                                                                         \
    gemm_wgmma_##width##_##out(Out *y, const bf16 *x, const bf16 *weight, const float *bias, float *sums,              \
                               int *counters, int parts, int late, int rows, int outputs, int inputs) {                \
        Product product{reinterpret_cast<const unsigned char *>(x), reinterpret_cast<const unsigned char *>(weight),   \
                        bias, sums, counters, rows, outputs, inputs * 2, parts};                                       \
        multiply<width>(y, product, late);                                                                             \
    }                                                                                                                  \
    EXPORT(gemm_wgmma_##width##_##out)

WGMMA(128, f32, float)
WGMMA(128, bf16, bf16)
WGMMA(192, f32, float)
WGMMA(192, bf16, bf16)
WGMMA(224, f32, float)
WGMMA(224, bf16, bf16)
WGMMA(256, f32, float)
WGMMA(256, bf16, bf16)
