// Products of more than 64 rows with weights that are codes of eight bits, by the matrix units of compute capability
// 9.0, which multiply such codes as they are, with rows that were rounded to them (rounded.cuh). How, is said in
// gemm_wgmma.cuh, and how weights lie in gemm_coded.cuh; a step is 128 inputs.
#include "gemm_coded.cuh"

namespace {

#ifdef WARPGROUPS

constexpr int WIDTH = 128; // outputs of a tile

// A thread's share of copying both matrices into stages, through all that the block works at.
struct Copy {
    const unsigned char *x, *weight;
    int next, rows, outputs, left, x_to, weight_from, weight_to;

    DEVICE Copy(const Coded &product) {
        x_to = matrix_place(threadIdx.x / ACROSS, threadIdx.x % ACROSS);
        // Of two units.
        int unit = threadIdx.x / 128;
        EightCodes eight(threadIdx.x % 128);
        weight_to = ROWS * LINE + (eight.to ^ unit * 32);
        weight_from = unit * UNIT + eight.from;
        next = blockIdx.x;
        begin(product);
    }

    // The next part of a tile, where there is one.
    DEVICE void begin(const Coded &product) {
        left = 0;
        if (next >= Work<WIDTH>::tiles(product) * product.parts) return;
        Work<WIDTH> work(product, next);
        int row = threadIdx.x / ACROSS;
        x = product.x + size_t(work.row + row) * product.line + work.first_step * LINE + threadIdx.x % ACROSS * 16;
        weight = product.weight + size_t(work.output) * product.line + work.first_step * (4 * UNIT) + weight_from;
        rows = product.rows - work.row - row;
        outputs = product.outputs - work.output;
        left = work.steps;
        next += gridDim.x;
    }

    // Weights of a step that comes `later`.
    DEVICE void copy_weight(const Coded &product, unsigned char *stage, int later) const {
        UNROLL for (int first = 0; first < WIDTH; first += BLOCK)
            UNROLL for (int half = 0; half < 2; half++)
                copy_async8(stage + first * LINE + (weight_to ^ half * 64),
                            weight + later * (4 * UNIT) + half * 2 * UNIT + size_t(first) * product.line,
                            first < outputs);
    }

    // The next step, where there is one.
    DEVICE void copy(const Coded &product, unsigned char *stage, bool with_weight) {
        if (left == 0) begin(product);
        if (left == 0) return;
        UNROLL for (int first = 0; first < ROWS; first += COPIED)
            copy_async16(stage + first * LINE + x_to, x + size_t(first) * product.line, first < rows);
        if (with_weight) copy_weight(product, stage, 0);
        x += LINE;
        weight += 4 * UNIT;
        left--;
    }
};

// The block's way along the inputs of one part of a tile after the other. The products of a step are under way while those
// of the step before, which are in other registers, are added to the sums.
template <bool grouped> struct Walk {
    using Is = Ring<WIDTH>;
    const Coded &product;
    unsigned char *ring;
    Copy copy;
    uint64_t x_at, weight_at;
    unsigned stage, filled;

    DEVICE Walk(const Coded &product, unsigned char *ring)
        : product(product), ring(ring), copy(product), stage(0), filled(Is::ahead * Is::stage_bytes) {
        // The same in all lanes, as the compiler should know.
        int group = __shfl_sync(ALL_LANES, int(threadIdx.x) / WARPGROUP, 0);
        x_at = matrix_at(ring + group * (ROWS / 2) * LINE);
        weight_at = matrix_at(ring + ROWS * LINE);
    }

    DEVICE void begin() {
        // Weights are nobody's output: they need not wait.
        int early = min(Is::ahead, copy.left);
        ROLLED for (int step = 0; step < early; step++) copy.copy_weight(product, ring + step * Is::stage_bytes, step);
        wait_for_earlier();
        ROLLED for (int step = 0; step < Is::ahead; step++) {
            copy.copy(product, ring + step * Is::stage_bytes, step >= early);
            copies_commit();
        }
    }

    // Begins the products of a step; then what came of the one before is added, where there is one.
    DEVICE void take(float (&sums)[WIDTH / 8][4], float (&now)[WIDTH / 8][4], float (&before)[WIDTH / 8][4],
                     const Work<WIDTH> &work, int step) {
        copies_wait<Is::ahead - 1>();
        show_copies();
        // This step's stage is there, and all have waited for the products of the stage that is filled next.
        __syncthreads();
        warpgroup_begin();
        UNROLL for (unsigned piece = 0; piece < LINE; piece += 32)
            warpgroup_multiply<e4m3>(now, x_at + (stage + piece) / 16, weight_at + (stage + piece) / 16, piece > 0);
        warpgroup_commit();
        copy.copy(product, ring + filled, true);
        copies_commit();
        stage = Is::after(stage);
        filled = Is::after(filled);
        if (step == work.first_step) return;
        Scales<grouped, WIDTH> scales(product, work.row, work.output, step - 1);
        warpgroup_wait<1>();
        settle(before);
        scales.add(sums, before);
    }

    // The last of a part.
    DEVICE void end(float (&sums)[WIDTH / 8][4], float (&now)[WIDTH / 8][4], const Work<WIDTH> &work) const {
        Scales<grouped, WIDTH> scales(product, work.row, work.output, work.first_step + work.steps - 1);
        warpgroup_wait<0>();
        settle(now);
        scales.add(sums, now);
    }
};

template <bool grouped, class Out> DEVICE void multiply(Out *y, const Coded &product) {
    DYNAMIC_SHARED(memory);
    let_next_start();
    Walk<grouped> walk(product, matrix_aligned(memory));
    walk.begin();
    int all = Work<WIDTH>::tiles(product) * product.parts;
    for (int index = blockIdx.x; index < all; index += gridDim.x) {
        Work<WIDTH> work(product, index);
        float sums[WIDTH / 8][4] = {}, even[WIDTH / 8][4] = {}, odd[WIDTH / 8][4] = {};
        int step = work.first_step, end = step + work.steps;
        while (true) {
            walk.take(sums, even, odd, work, step);
            if (++step == end) {
                walk.end(sums, even, work);
                break;
            }
            walk.take(sums, odd, even, work, step);
            if (++step == end) {
                walk.end(sums, odd, work);
                break;
            }
        }
        if (product.parts > 1 && !add_parts(sums, product, work)) continue;
        scale_outputs<grouped, WIDTH>(sums, product, work.output);
        store<WIDTH>(y, product, work.row, work.output, sums);
    }
}

#define PRODUCT_OF_CODES(grouped)                                                                                      \
    multiply<grouped>(y, Coded{{reinterpret_cast<const unsigned char *>(x),                                            \
                                reinterpret_cast<const unsigned char *>(codes), bias, sums, counters, rows, outputs,   \
                                inputs, parts},                                                                        \
                               scales, factors, x_scales, shift})
#else
#define PRODUCT_OF_CODES(grouped) __trap()
#endif

} // namespace

// Tiles of 128 x 128. Threads: 256. Dynamic shared memory: 1 KB, and the stages of Ring<128>. The grid is at most a
// block for each part of a tile. `inputs` is a multiple of 128. With groups, shift is 7 or more; else all inputs are one.
#define WGMMA_E4M3(name, grouped, Out)                                                                                 \
    KERNEL_ABREAST(THREADS, 1)                                                                                         \
    gemm_wgmma_e4m3_##name(Out *y, const e4m3 *x, const float *x_scales, const e4m3 *codes,                            \
                           const unsigned char *scales, const float *factors, const float *bias, float *sums,          \
                           int *counters, int parts, int rows, int outputs, int inputs, int shift) {                   \
        PRODUCT_OF_CODES(grouped);                                                                                     \
    }                                                                                                                  \
    EXPORT(gemm_wgmma_e4m3_##name)

WGMMA_E4M3(f32, false, float)
WGMMA_E4M3(bf16, false, bf16)
WGMMA_E4M3(groups_f32, true, float)
WGMMA_E4M3(groups_bf16, true, bf16)
