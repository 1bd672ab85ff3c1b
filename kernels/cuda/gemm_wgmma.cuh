// What products by the matrix units of four warps share (wgmma.cuh): tiles, their parts, sums of parts, results.
//
// A block makes tiles of 128 rows and 128 to 256 outputs, one after the other, going along the inputs in steps of
// 128 bytes through a ring of stages in shared memory; each of its two groups of four warps makes 64 of the rows:
//
//     stage    x [128 rows], weights [outputs of the tile]: 128 bytes of each, in places as wgmma.cuh says
//
// While a step is multiplied, the one after it is there and those that follow are under way, also where they belong to
// the next tile. A stage is filled again two steps after it was multiplied: then all have waited for that.
//
// Where tiles are too few for the device, the inputs of a tile are divided into parts, and the last block of the tile
// to come adds the parts' sums up in their order.
//
//     sums     f32 [part][tile][group of 8 outputs][thread][4], room for the parts where there are several
//     counters i32 [tile], how many parts are there; zeros before the first launch, and after each
//
// Numbers of outputs are multiples of 8.
#pragma once

#include "wgmma.cuh"

namespace {

constexpr int THREADS = 2 * WARPGROUP;
constexpr int ROWS = 128;                         // of a tile
constexpr int LINE = MATRIX_LINE;                 // bytes of a row in a stage
constexpr int ACROSS = LINE / 16;                 // pieces of a row in a stage
constexpr int COPIED = THREADS / ACROSS;          // rows that the block copies at once
constexpr int ROOM = 226 << 10;                   // bytes of shared memory for stages
// Rows that are gone through together: as much of x as stays in the second cache while weights pass by.
constexpr int TOGETHER = 8 * ROWS;

struct Product {
    const unsigned char *x, *weight;
    const float *bias;
    float *sums;
    int *counters;
    int rows, outputs;
    // Bytes of a row of x and of the weights.
    int line, parts;

    DEVICE int steps() const { return line / LINE; }
};

template <int width> struct Ring {
    static constexpr int stage_bytes = (ROWS + width) * LINE;
    static constexpr int stages = ROOM / stage_bytes;
    // Steps whose copies are under way or there when one begins.
    static constexpr int ahead = stages - 2;
    static_assert(ahead >= 2, "one step is multiplied, and one lands");

    DEVICE static unsigned after(unsigned stage) {
        return stage + stage_bytes == stages * stage_bytes ? 0 : stage + stage_bytes;
    }
};

// A part of a tile, which has `high` rows: a block's, or those of a pair of blocks.
template <int width, int high = ROWS> struct Work {
    int tile, part, row, output, first_step, steps;

    DEVICE static int tiles(const Product &product) {
        return (product.rows + high - 1) / high * ((product.outputs + width - 1) / width);
    }

    // Down a column of tiles, then the next column; `TOGETHER` rows down at most. The parts of a tile are neighbours.
    DEVICE Work(const Product &product, int index) {
        constexpr int most = TOGETHER / high;
        int down = (product.rows + high - 1) / high, across = (product.outputs + width - 1) / width;
        tile = index / product.parts;
        part = index % product.parts;
        int band = tile / (most * across), in_band = tile % (most * across);
        int height = min(most, down - band * most);
        row = (band * most + in_band % height) * high;
        output = in_band / height * width;
        int all = product.steps();
        first_step = all * part / product.parts;
        steps = all * (part + 1) / product.parts - first_step;
    }
};

// Is this the last of the blocks that make the same tile? Then the others' sums can be read. By as many threads as `meet`
// lets meet; `before` is theirs.
template <void (*meet)()> DEVICE bool is_last(int *counter, int parts, int *before) {
    meet();
    // One thread's fences are those of all that it has met, and meets.
    if (threadIdx.x == 0) {
        __threadfence();
        *before = atomicAdd(counter, 1);
        __threadfence();
        if (*before == parts - 1) *counter = 0;
    }
    meet();
    return *before == parts - 1;
}

DEVICE void load_fresh_four(float (&to)[4], const float *from) {
    Bytes16 got = load_fresh16(from);
    to[0] = bits_to_float(got.x), to[1] = bits_to_float(got.y);
    to[2] = bits_to_float(got.z), to[3] = bits_to_float(got.w);
}

// Puts this part's sums, of 128 rows of a tile, where the last of the parts to come finds them; that one gets those of
// all. `tile` counts by 128 rows.
template <int width, void (*meet)()>
DEVICE bool add_parts(float (&d)[width / 8][4], const Product &product, int tile, int tiles, int part, int *before) {
    size_t of_tile = size_t(ROWS) * width, of_part = of_tile * tiles;
    float *sums = product.sums + tile * of_tile + threadIdx.x * 4;
    UNROLL for (int j = 0; j < width / 8; j++) store_four(sums + part * of_part + j * THREADS * 4, d[j]);
    if (!is_last<meet>(product.counters + tile, product.parts, before)) return false;
    UNROLL for (int j = 0; j < width / 8; j++) load_fresh_four(d[j], sums + j * THREADS * 4);
    ROLLED for (int other = 1; other < product.parts; other++) {
        sums += of_part;
        UNROLL for (int j = 0; j < width / 8; j++) {
            float more[4];
            load_fresh_four(more, sums + j * THREADS * 4);
            UNROLL for (int i = 0; i < 4; i++) d[j][i] += more[i];
        }
    }
    return true;
}

// The same where a block makes a tile by itself.
DEVICE void meet_block() { __syncthreads(); }
template <int width> DEVICE bool add_parts(float (&d)[width / 8][4], const Product &product, const Work<width> &work) {
    SHARED int before;
    return add_parts<width, meet_block>(d, product, work.tile, Work<width>::tiles(product), work.part, &before);
}

// Of four registers in each of four neighbouring lanes, lane t gets the t-th of every lane.
DEVICE void exchange(uint32_t (&four)[4]) {
    UNROLL for (int distance = 1; distance <= 2; distance *= 2) {
        bool upper = lane_index() & distance;
        UNROLL for (int i = 0; i < 4; i++) {
            if (i & distance) continue;
            uint32_t got = __shfl_xor_sync(ALL_LANES, upper ? four[i] : four[i + distance], distance);
            (upper ? four[i] : four[i + distance]) = got;
        }
    }
}

// Four groups of eight outputs of a row, of which a lane has two of each; the first is output `output`.
DEVICE void store_groups(float *y, const Product &product, int row, int output, const float (&d)[4][2]) {
    if (row >= product.rows) return;
    float *to = y + size_t(row) * product.outputs + output + lane_index() % 4 * 2;
    UNROLL for (int j = 0; j < 4; j++)
        if (output + 8 * j < product.outputs)
            store8(to + 8 * j, Bytes8{float_to_bits(d[j][0]), float_to_bits(d[j][1])});
}
DEVICE void store_groups(bf16 *y, const Product &product, int row, int output, const float (&d)[4][2]) {
    uint32_t four[4];
    UNROLL for (int j = 0; j < 4; j++) four[j] = to_bf16_pair(d[j][0], d[j][1]);
    exchange(four);
    output += lane_index() % 4 * 8;
    if (row < product.rows && output < product.outputs)
        store16(y + size_t(row) * product.outputs + output, Bytes16{four[0], four[1], four[2], four[3]});
}

// 128 rows of a tile, from `first_row` on.
template <int width, class Out>
DEVICE void store(Out *y, const Product &product, int first_row, int first_output, const float (&d)[width / 8][4]) {
    int row = first_row + warp_index() * 16 + lane_index() / 4;
    UNROLL for (int j = 0; j < width / 8; j += 4) {
        float upper[4][2], lower[4][2];
        UNROLL for (int i = 0; i < 4; i++) {
            int output = first_output + 8 * (j + i) + lane_index() % 4 * 2;
            UNROLL for (int one = 0; one < 2; one++) {
                float bias = product.bias && output < product.outputs ? product.bias[output + one] : 0.0f;
                upper[i][one] = d[j + i][one] + bias;
                lower[i][one] = d[j + i][2 + one] + bias;
            }
        }
        store_groups(y, product, row, first_output + 8 * j, upper);
        store_groups(y, product, row + 8, first_output + 8 * j, lower);
    }
}

} // namespace
