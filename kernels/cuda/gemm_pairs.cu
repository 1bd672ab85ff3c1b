// Products of more than 128 rows with a matrix of weights, as those of gemm_wgmma.cu and with the same bits, by pairs of
// blocks. A pair makes a tile of 256 rows; each block has 128 of them, brings half of the weights, and both get all of
// these: so a step's weights go through the second cache once for 256 rows, and not for 128. That cache limits products
// of many rows: a block of gemm_wgmma.cu has 48 KB for 4.2 million operations out of it, one of a pair 32.
//
// How, is said in gemm_pairs.cuh; a step is 64 inputs.
#include "gemm_pairs.cuh"

namespace {

constexpr int PAIR_ROWS = 2 * ROWS;
template <int width> using PairWork = Work<width, PAIR_ROWS>;

// What one thread of each block does. `late`: an earlier kernel of the step writes the weights.
template <int width>
DEVICE void bring(const TensorMap &x, const TensorMap &weight, const Product &product, const PairRing<width> &ring,
                  bool late) {
    using At = Place<width>;
    unsigned rank = pair_rank();
    auto bring_x = [&](const Steps<PairWork<width>> &step, const At &place) {
        bring_tile(ring.at(place), x, step.byte, step.row + int(rank) * ROWS, ring.filled[place.stage], false);
    };
    auto bring_weight = [&](const Steps<PairWork<width>> &step, const At &place) {
        ring.filled[place.stage].expect(At::stage_bytes);
        int half = int(rank) * (width / 2);
        bring_tile(ring.at(place) + (ROWS + half) * LINE, weight, step.byte, step.output + half,
                   ring.filled[place.stage], true);
    };
    if (late) wait_for_earlier(), see_earlier_tiles();
    // The first of each stage: weights that are nobody's output need not wait.
    int first = 0;
    At place;
    for (Steps<PairWork<width>> step(product); step.there() && first < At::stages; step.advance(), place.advance(), first++)
        bring_weight(step, place);
    wait_for_earlier(), see_earlier_tiles();
    place = At();
    for (Steps<PairWork<width>> step(product); step.there(); step.advance(), place.advance(), first--) {
        if (first <= 0) {
            ring.empty[place.stage].wait(place.parity ^ 1);
            bring_weight(step, place);
        }
        bring_x(step, place);
    }
}

template <int width, class Out> DEVICE void multiply(Out *y, const Product &product, const PairRing<width> &ring) {
    using At = Place<width>;
    wait_for_earlier();
    // The same in all lanes, as the compiler should know.
    int group = __shfl_sync(ALL_LANES, int(threadIdx.x) / WARPGROUP, 0);
    uint64_t x_at = matrix_at(ring.stages + group * (ROWS / 2) * LINE), weight_at = matrix_at(ring.stages + ROWS * LINE);
    int tiles = PairWork<width>::tiles(product), rank = int(pair_rank());
    At place;
    for (int index = blockIdx.x / 2; index < tiles * product.parts; index += gridDim.x / 2) {
        PairWork<width> work(product, index);
        float d[width / 8][4] = {};
        int read = -1;
        for (int steps = work.steps; steps > 0; steps--) {
            ring.filled[place.stage].wait(place.parity);
            unsigned at = place.stage * At::stage_bytes;
            warpgroup_begin();
            UNROLL for (unsigned piece = 0; piece < LINE; piece += 32)
                warpgroup_multiply<bf16>(d, x_at + (at + piece) / 16, weight_at + (at + piece) / 16, true);
            warpgroup_commit();
            warpgroup_wait<1>();
            if (read >= 0) ring.release(read);
            read = int(place.stage);
            place.advance();
        }
        warpgroup_wait<0>();
        ring.release(read);
        settle(d);
        bool whole = product.parts == 1 ||
                     add_parts<width, meet_first<THREADS>>(d, product, 2 * work.tile + rank, 2 * tiles, work.part, ring.before);
        if (whole) store<width>(y, product, work.row + rank * ROWS, work.output, d);
    }
}

template <int width, class Out>
DEVICE void multiply_by_pairs(Out *y, const TensorMap &x, const TensorMap &weight, const Product &product, bool late) {
#ifdef WARPGROUPS
    bool brings = threadIdx.x == THREADS;
    if (brings) prefetch_matrix(x), prefetch_matrix(weight);
    as_pair<width, true>(
        1, [&](const PairRing<width> &ring) { multiply<width>(y, product, ring); },
        [&](const PairRing<width> &ring) {
            if (brings) bring<width>(x, weight, product, ring, late);
        });
#else
    __trap();
#endif
}

} // namespace

// Tiles of 256 x `width`. Threads: 384. Dynamic shared memory: 1 KB, the stages, and two gates of each and 8 bytes. The grid
// is an even number of blocks, at most two for each part of a tile. Boxes have 128 rows of x, and width / 2 of the weights. `line`: bytes of a row of
// both, a multiple of 128.
#define PAIRS(width, out, Out)                                                                                         \
    KERNEL_OF_PAIRS(PAIR_THREADS)                                                                                      \
    gemm_pairs_##width##_##out(MATRIX x, MATRIX weight, Out *y, const float *bias, float *sums, int *counters,         \
                               int parts, int late, int rows, int outputs, int line) {                                 \
        Product product{nullptr, nullptr, bias, sums, counters, rows, outputs, line, parts};                           \
        multiply_by_pairs<width>(y, x, weight, product, late);                                                         \
    }                                                                                                                  \
    EXPORT_PAIRS(gemm_pairs_##width##_##out)

PAIRS(128, f32, float)
PAIRS(128, bf16, bf16)
PAIRS(192, f32, float)
PAIRS(192, bf16, bf16)
PAIRS(224, f32, float)
PAIRS(224, bf16, bf16)
PAIRS(256, f32, float)
PAIRS(256, bf16, bf16)
