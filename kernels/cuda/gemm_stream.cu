// Products of up to 64 rows with a matrix of weights, by the matrix units of compute capability 9.0 and pairs of blocks.
// Weights stream through shared memory and are the left factor, rows of x the right one:
//
//     y[rows][outputs] = (weight[outputs][inputs] x[rows][inputs]^T)^T, plus a bias[outputs] where there is one
//
// A pair makes a tile of 256 outputs, of which each block has 128; each brings half of the rows of x, both get all. How, is
// said in gemm_pairs.cuh; here the 128 rows of a stage are weights, and a step is 64 inputs.
//
// All steps of all tiles stand in one row, of which each pair has an equal share: so all multiprocessors read as many
// weights. A tile that several shares meet in is added up by the last to come, in their order:
//
//     sums     f32 [share][its first tile, its last][block][rows / 8][thread][4]
//     counters i32 [tile][block], how many shares are there; zeros before the first launch, and after each
//
// The bits of a result depend on the number of shares alone, which follows from the shape of the weights.
#include "gemm_pairs.cuh"

namespace {

constexpr int STREAM_THREADS = THREADS + WARP;

#ifdef WARPGROUPS

constexpr int PAIR_OUTPUTS = 2 * ROWS;

// Some shares: from `first` up to, and without, `end`.
struct Range {
    int first, end;
};

// Which steps are whose.
struct Shares {
    // Of a tile, of all, and of how many.
    int steps, all, count;

    DEVICE Shares(const Product &product, int count)
        : steps(product.steps()), all(steps * ((product.outputs + PAIR_OUTPUTS - 1) / PAIR_OUTPUTS)), count(count) {}

    // `all` times `count` is less than 2^31.
    DEVICE int first_of(int share) const { return unsigned(all) * unsigned(share) / unsigned(count); }
    DEVICE int that_has(int step) const { return (unsigned(step + 1) * unsigned(count) - 1) / unsigned(all); }
};

// What one thread of each block does. `late`: an earlier kernel of the step writes the weights.
template <int rows>
DEVICE void bring(const TensorMap &x, const TensorMap &weight, const Shares &shares, const PairRing<rows> &ring, bool late) {
    using At = Place<rows>;
    constexpr int half = rows / 2;
    int rank = int(pair_rank()), share = blockIdx.x / 2;
    int begin = shares.first_of(share), end = shares.first_of(share + 1);
    auto bring_weight = [&](int step, const At &place) {
        ring.filled[place.stage].expect(At::stage_bytes);
        int output = (step / shares.steps * 2 + rank) * ROWS;
        bring_tile(ring.at(place), weight, step % shares.steps * LINE, output, ring.filled[place.stage], false);
    };
    if (late) wait_for_earlier(), see_earlier_tiles();
    // The first of each stage: weights that are nobody's output need not wait.
    int early = min(end, begin + At::stages);
    At place;
    for (int step = begin; step < early; step++, place.advance()) bring_weight(step, place);
    wait_for_earlier(), see_earlier_tiles();
    place = At();
    for (int step = begin; step < end; step++, place.advance()) {
        if (step >= early) {
            ring.empty[place.stage].wait(place.parity ^ 1);
            bring_weight(step, place);
        }
        bring_tile(ring.at(place) + (ROWS + rank * half) * LINE, x, step % shares.steps * LINE, rank * half,
                   ring.filled[place.stage], true);
    }
}

// Puts what this share has of a tile where the last to come finds it; that one gets the sum of all.
template <int rows>
DEVICE bool add_shares(float (&d)[rows / 8][4], const Product &product, const Shares &shares, int tile, Range of, int *before) {
    constexpr int together = 64 / rows; // as many as there are registers for
    constexpr size_t of_place = 2 * ROWS * rows;
    int rank = int(pair_rank()), share = blockIdx.x / 2;
    float *sums = product.sums + rank * (ROWS * rows) + threadIdx.x * 4;
    // It is the last tile of those that begin before it, which only the first can; and the first of all others.
    bool before_it = shares.first_of(of.first) < tile * shares.steps;
    auto place = [&](int other) { return sums + (2 * other + (before_it && other == of.first)) * of_place; };
    UNROLL for (int j = 0; j < rows / 8; j++) store_four(place(share) + j * THREADS * 4, d[j]);
    if (!is_last<meet_first<THREADS>>(product.counters + 2 * tile + rank, of.end - of.first, before)) return false;
    UNROLL for (int j = 0; j < rows / 8; j++)
        UNROLL for (int i = 0; i < 4; i++) d[j][i] = 0.0f;
    ROLLED for (int first = of.first; first < of.end; first += together) {
        float some[together][rows / 8][4];
        UNROLL for (int at = 0; at < together; at++)
            UNROLL for (int j = 0; j < rows / 8; j++)
                load_fresh_four(some[at][j], place(min(first + at, of.end - 1)) + j * THREADS * 4);
        UNROLL for (int at = 0; at < together; at++)
            UNROLL for (int j = 0; j < rows / 8; j++)
                UNROLL for (int i = 0; i < 4; i++)
                    if (first + at < of.end) d[j][i] += some[at][j][i];
    }
    return true;
}

DEVICE void put(float *to, float number) { *to = number; }
DEVICE void put(bf16 *to, float number) { *to = to_bf16(number); }

// A block's 128 outputs of all rows: a lane has outputs lane / 4 and 8 more of its warp's sixteen.
template <int rows, class Out>
DEVICE void store_outputs(Out *y, const Product &product, int first, const float (&d)[rows / 8][4]) {
    UNROLL for (int half = 0; half < 2; half++) {
        int output = first + warp_index() * 16 + half * 8 + lane_index() / 4;
        if (output >= product.outputs) continue;
        float bias = product.bias ? product.bias[output] : 0.0f;
        UNROLL for (int j = 0; j < rows / 8; j++)
            UNROLL for (int one = 0; one < 2; one++) {
                int row = 8 * j + lane_index() % 4 * 2 + one;
                if (row < product.rows) put(y + size_t(row) * product.outputs + output, d[j][2 * half + one] + bias);
            }
    }
}

template <int rows, class Out>
DEVICE void multiply(Out *y, const Product &product, const Shares &shares, const PairRing<rows> &ring) {
    using At = Place<rows>;
    wait_for_earlier();
    // The same in all lanes, as the compiler should know.
    int group = __shfl_sync(ALL_LANES, int(threadIdx.x) / WARPGROUP, 0);
    uint64_t weight_at = matrix_at(ring.stages + group * (ROWS / 2) * LINE), x_at = matrix_at(ring.stages + ROWS * LINE);
    int share = blockIdx.x / 2, step = shares.first_of(share), end = shares.first_of(share + 1);
    At place;
    while (step < end) {
        int tile = step / shares.steps, stop = min(end, (tile + 1) * shares.steps);
        float d[rows / 8][4] = {};
        int read = -1;
        for (; step < stop; step++) {
            ring.filled[place.stage].wait(place.parity);
            unsigned at = place.stage * At::stage_bytes;
            warpgroup_begin();
            UNROLL for (unsigned piece = 0; piece < LINE; piece += 32)
                warpgroup_multiply<bf16>(d, weight_at + (at + piece) / 16, x_at + (at + piece) / 16, true);
            warpgroup_commit();
            warpgroup_wait<1>();
            if (read >= 0) ring.release(read);
            read = int(place.stage);
            place.advance();
        }
        warpgroup_wait<0>();
        ring.release(read);
        settle(d);
        Range of{shares.that_has(tile * shares.steps), shares.that_has((tile + 1) * shares.steps - 1) + 1};
        bool whole = of.end - of.first == 1 || add_shares<rows>(d, product, shares, tile, of, ring.before);
        if (whole) store_outputs<rows>(y, product, (2 * tile + int(pair_rank())) * ROWS, d);
    }
}

#endif

template <int rows, class Out>
DEVICE void stream(Out *y, const TensorMap &x, const TensorMap &weight, const Product &product, int count, bool late) {
#ifdef WARPGROUPS
    bool brings = threadIdx.x == THREADS;
    if (brings) prefetch_matrix(x), prefetch_matrix(weight);
    Shares shares(product, count);
    as_pair<rows, false>(
        1, [&](const PairRing<rows> &ring) { multiply<rows>(y, product, shares, ring); },
        [&](const PairRing<rows> &ring) {
            if (brings) bring<rows>(x, weight, shares, ring, late);
        });
#else
    __trap();
#endif
}

} // namespace

// Up to `most` rows. Threads: 288. Dynamic shared memory: 1 KB, the stages, and two gates of each and 8 bytes. The grid is
// two blocks for each share. Boxes have half of `most` rows of x, and 128 of the weights. `line`: bytes of a row of both,
// a multiple of 128.
#define STREAM(most, out, Out)                                                                                         \
    KERNEL_OF_PAIRS(STREAM_THREADS)                                                                                    \
    gemm_stream_##most##_##out(MATRIX x, MATRIX weight, Out *y, const float *bias, float *sums, int *counters,         \
                               int shares, int late, int rows, int outputs, int line) {                                \
        Product product{nullptr, nullptr, bias, sums, counters, rows, outputs, line, 1};                               \
        stream<most>(y, x, weight, product, shares, late);                                                             \
    }                                                                                                                  \
    EXPORT_PAIRS(gemm_stream_##most##_##out)

STREAM(16, f32, float)
STREAM(16, bf16, bf16)
STREAM(32, f32, float)
STREAM(32, bf16, bf16)
STREAM(64, f32, float)
STREAM(64, bf16, bf16)
