// What products by pairs of blocks share: a ring of stages, and gates that say what is in it.
//
//   stage     x [128 rows], weights [outputs of the tile]: 128 bytes of each, in places as wgmma.cuh says
//   filled    a gate of each stage: all that belongs there has come
//   empty     a gate of each stage: the warps that multiply, of both blocks, have read what was there
//
// One group of four warps of a block brings, two multiply; neither waits for the other but at these gates, also from one
// tile to the next.
#pragma once

#include "gemm_wgmma.cuh"
#include "pairs.cuh"

namespace {

constexpr int WARPS = THREADS / WARP; // that multiply
constexpr int PAIR_THREADS = THREADS + WARPGROUP;

// Where a step is in the ring.
template <int width> struct Place {
    static constexpr int stage_bytes = (ROWS + width) * LINE, stages = ROOM / stage_bytes;
    unsigned stage = 0, parity = 0;

    DEVICE void advance() {
        if (++stage == stages) stage = 0, parity ^= 1;
    }
};

template <int width> struct PairRing {
    using At = Place<width>;
    unsigned char *stages;
    Gate *filled, *empty;
    // Of those that multiply: how many parts of a tile were there before.
    int *before;

    DEVICE explicit PairRing(unsigned char *memory) : stages(matrix_aligned(memory)) {
        filled = reinterpret_cast<Gate *>(stages + At::stages * At::stage_bytes);
        empty = filled + At::stages;
        before = reinterpret_cast<int *>(empty + At::stages);
    }

    // By all threads of both blocks. So many come to say that a stage is filled.
    DEVICE void begin(int fillers) const {
        if (threadIdx.x == 0) {
            for (int stage = 0; stage < At::stages; stage++) {
                filled[stage].begin(fillers);
                empty[stage].begin(2 * WARPS);
            }
            gates_are_there();
        }
        meet_pair_first();
    }

    DEVICE unsigned char *at(const At &place) const { return stages + place.stage * At::stage_bytes; }
    // This warp has read a stage: both blocks are told.
    DEVICE void release(int stage) const {
        if (lane_index() < 2) empty[stage].come(lane_index());
    }
};

// What a kernel of pairs does: who has it to do multiplies, and the others bring, of whom so many say that a stage is
// filled. `hands_over`: those that multiply take registers over from the others.
template <int width, bool hands_over, class Multiply, class Bring>
DEVICE void as_pair(int fillers, Multiply multiply, Bring bring) {
    DYNAMIC_SHARED(memory);
    let_next_start();
    PairRing<width> ring(memory);
    ring.begin(fillers);
    if (threadIdx.x < THREADS) {
        if (hands_over) have_registers<232, true>();
        multiply(ring);
    } else {
        if (hands_over) have_registers<40, false>();
        bring(ring);
    }
    __syncwarp();
    // Nobody leaves while the other may put something into its shared memory.
    meet_pair();
}

// The steps of all parts of tiles that a pair works at.
template <class PairWork> struct Steps {
    const Product &product;
    int next, left, row, output, byte;

    DEVICE explicit Steps(const Product &product) : product(product), next(blockIdx.x / 2), left(0) { seek(); }

    DEVICE void seek() {
        if (left > 0 || next >= PairWork::tiles(product) * product.parts) return;
        PairWork work(product, next);
        left = work.steps, row = work.row, output = work.output, byte = work.first_step * LINE;
        next += gridDim.x / 2;
    }
    DEVICE bool there() const { return left > 0; }
    DEVICE void advance() {
        byte += LINE;
        left--;
        seek();
    }
};

} // namespace
