// Products of more than 64 rows with weights that are codes of eight bits, as those of gemm_wgmma_e4m3.cu and with the same
// bits, by pairs of blocks. A pair makes a tile of 128 rows and twice `width` outputs; each block brings half of the rows
// of x, both get all of these, and each has its own weights: so rows go through the second cache once for twice as many
// outputs. How, is said in gemm_pairs.cuh, and how weights lie in gemm_coded.cuh; a step is 128 inputs.
//
// Weights lie as warps that multiply by themselves want them, so they do not come as tiles: 128 threads copy them to
// their places.
#include "gemm_coded.cuh"
#include "gemm_pairs.cuh"

namespace {

template <int width> using PairWork = Work<2 * width>;

// What the threads do that do not multiply.
template <int width> struct Bringer {
    using At = Place<width>;
    // Steps whose copies may be under way when the next one's begin.
    static constexpr int late = At::stages - 2;
    const TensorMap &x;
    const Coded &product;
    const PairRing<width> &ring;
    int thread, rank;
    EightCodes eight;
    At told;
    int untold;

    DEVICE Bringer(const TensorMap &x, const Coded &product, const PairRing<width> &ring)
        : x(x), product(product), ring(ring), thread(threadIdx.x - THREADS), rank(pair_rank()), eight(thread), untold(0) {}

    DEVICE void bring_weight(const Steps<PairWork<width>> &step, const At &place) {
        int output = step.output + rank * width;
        const unsigned char *from = product.weight + size_t(output) * product.line + step.byte * (4 * UNIT / LINE) + eight.from;
        unsigned char *stage = ring.at(place) + ROWS * LINE;
        ROLLED for (int first = 0; first < width; first += BLOCK) {
            UNROLL for (int unit = 0; unit < 4; unit++)
                copy_async8(stage + (eight.to ^ unit * 32), from + unit * UNIT, output + first < product.outputs);
            from += size_t(BLOCK) * product.line;
            stage += BLOCK * LINE;
        }
        copies_commit();
        untold++;
    }

    DEVICE void bring_x(const Steps<PairWork<width>> &step, const At &place) const {
        constexpr int half = ROWS / 2;
        if (thread > 0) return;
        Gate &gate = ring.filled[place.stage];
        gate.expect(ROWS * LINE);
        bring_tile(ring.at(place) + rank * half * LINE, x, step.byte, step.row + rank * half, gate, true);
    }

    // All copies but those of the latest steps have landed, which is told.
    template <int latest> DEVICE void tell() {
        if (untold <= latest) return;
        copies_wait<latest>();
        show_copies();
        // One for all of the warp.
        __syncwarp();
        for (; untold > latest; untold--, told.advance())
            if (lane_index() == 0) ring.filled[told.stage].come();
    }

    DEVICE void bring() {
        // The first of each stage: weights are nobody's output, and need not wait.
        int first = 0;
        At place;
        for (Steps<PairWork<width>> step(product); step.there() && first < At::stages; step.advance(), place.advance(), first++)
            bring_weight(step, place);
        wait_for_earlier(), see_earlier_tiles();
        place = At();
        for (Steps<PairWork<width>> step(product); step.there(); step.advance(), place.advance(), first--) {
            if (first <= 0) ring.empty[place.stage].wait(place.parity ^ 1);
            // Both blocks wait for it.
            bring_x(step, place);
            if (first <= 0) bring_weight(step, place);
            // Before the first stages are there, all of them are under way.
            if (first <= 1) tell<late>();
        }
        tell<0>();
    }
};

template <bool grouped, int width, class Out>
DEVICE void multiply(Out *y, const Coded &product, const PairRing<width> &ring) {
    using At = Place<width>;
    wait_for_earlier();
    // The same in all lanes, as the compiler should know.
    int group = __shfl_sync(ALL_LANES, int(threadIdx.x) / WARPGROUP, 0);
    uint64_t x_at = matrix_at(ring.stages + group * (ROWS / 2) * LINE), weight_at = matrix_at(ring.stages + ROWS * LINE);
    int tiles = PairWork<width>::tiles(product), rank = int(pair_rank());
    At place;
    for (int index = blockIdx.x / 2; index < tiles * product.parts; index += gridDim.x / 2) {
        PairWork<width> work(product, index);
        int output = work.output + rank * width;
        float sums[width / 8][4] = {};
        for (int step = work.first_step; step < work.first_step + work.steps; step++) {
            float d[width / 8][4];
            ring.filled[place.stage].wait(place.parity);
            unsigned at = place.stage * At::stage_bytes;
            warpgroup_begin();
            UNROLL for (unsigned piece = 0; piece < LINE; piece += 32)
                warpgroup_multiply<e4m3>(d, x_at + (at + piece) / 16, weight_at + (at + piece) / 16, piece > 0);
            warpgroup_commit();
            Scales<grouped, width> scales(product, work.row, output, step);
            warpgroup_wait<0>();
            ring.release(int(place.stage));
            settle(d);
            // The other group's products are under way meanwhile.
            scales.add(sums, d);
            place.advance();
        }
        bool whole = product.parts == 1 || add_parts<width, meet_first<THREADS>>(sums, product, 2 * work.tile + rank,
                                                                                 2 * tiles, work.part, ring.before);
        if (!whole) continue;
        scale_outputs<grouped, width>(sums, product, output);
        store<width>(y, product, work.row, output, sums);
    }
}

template <bool grouped, int width, class Out> DEVICE void multiply_by_pairs(Out *y, const TensorMap &x, const Coded &product) {
#ifdef WARPGROUPS
    if (threadIdx.x == THREADS) prefetch_matrix(x);
    // A stage is filled when all warps that copy weights say so, and the one that asks for rows.
    as_pair<width, true>(
        WARPGROUP / WARP + 1, [&](const PairRing<width> &ring) { multiply<grouped, width>(y, product, ring); },
        [&](const PairRing<width> &ring) { Bringer<width>(x, product, ring).bring(); });
#else
    __trap();
#endif
}

} // namespace

// Tiles of 128 x twice `width`. Threads: 384. Dynamic shared memory: 1 KB, the stages, and two gates of each and 8 bytes.
// The grid is an even number of blocks, at most two for each part of a tile. Boxes have 64 rows of x. `inputs` is a
// multiple of 128. With groups, shift is 7 or more; else all inputs are one.
#define PAIRS_E4M3(width, name, grouped, Out)                                                                          \
    KERNEL_OF_PAIRS(PAIR_THREADS)                                                                                      \
    gemm_pairs_e4m3_##width##_##name(MATRIX x, Out *y, const float *x_scales, const e4m3 *codes,                       \
                                     const unsigned char *scales, const float *factors, const float *bias,             \
                                     float *sums, int *counters, int parts, int rows, int outputs, int inputs,         \
                                     int shift) {                                                                      \
        Product of{nullptr, reinterpret_cast<const unsigned char *>(codes), bias, sums, counters, rows, outputs,       \
                   inputs, parts};                                                                                     \
        multiply_by_pairs<grouped, width>(y, x, Coded{of, scales, factors, x_scales, shift});                          \
    }                                                                                                                  \
    EXPORT_PAIRS(gemm_pairs_e4m3_##width##_##name)

// Scales of groups leave no registers for more.
PAIRS_E4M3(160, f32, false, float)
PAIRS_E4M3(160, bf16, false, bf16)
PAIRS_E4M3(160, groups_f32, true, float)
PAIRS_E4M3(160, groups_bf16, true, bf16)
PAIRS_E4M3(192, f32, false, float)
PAIRS_E4M3(192, bf16, false, bf16)
