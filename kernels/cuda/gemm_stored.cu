// Products with weights that are stored as codes: see stored.cuh for how they lie. Up to 64 rows go through the ring of
// gemm_skinny.cuh, whose stages hold codes and scales; a warp widens its own, and multiplies them as if they had been
// bf16. For more rows whole matrices are widened first.
//
//     stage    [warp][unit of codes, scales of two groups], x
//
// Each lane copies what it reads itself, but for the scales: those of a warp are copied by its first lanes. Groups
// larger than a unit are copied with each of their units; they come from the second cache then.
#include "gemm_skinny.cuh"
#include "stored.cuh"

namespace {

struct StoredProduct : Product {
    Matrix matrix;
};

// A lane's pieces of codes and scales, from one step to the next.
template <class Kind> struct Codes {
    static constexpr int unit = unit_bytes<Kind>, of_group = scale_bytes<Kind>, of_warp = unit + 2 * of_group;
    static constexpr int bytes = THREADS / WARP * of_warp;
    // As many as fit, where few tiles would wait for nothing but memory; and two blocks in a multiprocessor.
    static constexpr int stages(int tiles, int stage_bytes) { return (tiles <= 2 ? 73728 : 100352) / stage_bytes; }

    // What a launch says is read when it is needed: registers are short.
    const Matrix &of;
    const unsigned char *from, *scales;
    int input, left, to;

    DEVICE Codes(const StoredProduct &product, int first_step, int end) : of(product.matrix) {
        int down = blockIdx.x * (BLOCK / 32) + warp_index() / 2;
        input = first_step * STEP + warp_index() % 2 * 32;
        from = of.codes + (size_t(down) * (of.inputs / 32) + input / 32) * unit + lane_index() * PIECE;
        scales = of.scales + size_t(down) * of.groups() * of_group + lane_index() * PIECE;
        to = warp_index() * of_warp + lane_index() * PIECE;
        // Past the last outputs no input is there.
        left = down * 32 < of.outputs ? end - input : 0;
    }

    // Of the step after so many others.
    DEVICE void copy(unsigned char *stage, int step) const {
        bool there = step * STEP < left;
        stage += to;
        UNROLL for (int at = 0; at < unit; at += WARP * PIECE)
            copy_async16(stage + at, from + step * 2 * unit + at, there);
        if (lane_index() < of_group / PIECE << int(of.shift == 4))
            copy_async16(stage + unit, scales + unsigned((input + step * STEP) >> of.shift) * of_group, there);
    }
    DEVICE void advance(int steps) {
        from += steps * 2 * unit;
        input += steps * STEP;
        left -= steps * STEP;
    }

    DEVICE void fragments(uint32_t (&a)[SETS][2][4], const unsigned char *stage) const {
        const unsigned char *mine = stage + warp_index() * of_warp;
        widen_unit<Kind>(a, stage + to, mine + unit, of.shift == 4);
    }
};

// Of a mixture of experts, each of which has a matrix: see gemm_skinny.cu.
template <class Kind, int tiles>
DEVICE void stored_of_expert(void *y, int wide, StoredProduct product, const int *offsets, int experts) {
    wait_for_earlier();
    Unit unit;
    if (!take_unit<tiles>(product, unit, offsets, experts)) return;
    Matrix &matrix = product.matrix;
    size_t before = size_t(unit.expert) * (matrix.outputs / 32);
    matrix.codes += before * (matrix.inputs / 32) * unit_bytes<Kind>;
    matrix.scales += before * matrix.groups() * scale_bytes<Kind>;
    product.factors += before * 32;
    skinny<Codes<Kind>, tiles>(y, wide, product);
}

// What lane k of each four has at place l becomes what lane l has at place k.
DEVICE void exchange_four(uint32_t (&words)[4]) {
    UNROLL for (int distance = 1; distance <= 2; distance *= 2) {
        bool upper = lane_index() & distance;
        UNROLL for (int i = 0; i < 2; i++) {
            int low = distance == 1 ? 2 * i : i, high = low + distance;
            uint32_t other = __shfl_xor_sync(ALL_LANES, upper ? words[low] : words[high], distance);
            if (upper) words[low] = other;
            else words[high] = other;
        }
    }
}

DEVICE uint32_t times(uint32_t pair, float factor) {
    return to_bf16_pair(low_float(pair) * factor, high_float(pair) * factor);
}

// A warp's unit as rows of bf16, [outputs][inputs].
template <class Kind> DEVICE void widen_matrix(bf16 *to, const Matrix &matrix) {
    let_next_start();
    wait_for_earlier();
    int across = blockIdx.x * (blockDim.x / WARP) + warp_index(), down = blockIdx.y;
    if (across * 32 >= matrix.inputs) return;
    size_t unit = size_t(down) * (matrix.inputs / 32) + across;
    size_t group = size_t(down) * matrix.groups() + (across * 32 >> matrix.shift);
    uint32_t a[2][2][4];
    widen_unit<Kind>(a, matrix.codes + unit * unit_bytes<Kind> + lane_index() * 16, matrix.scales + group * scale_bytes<Kind>,
                     matrix.shift == 4);
    UNROLL for (int set = 0; set < 2; set++)
        UNROLL for (int half = 0; half < 2; half++) {
            int output = down * 32 + set * 16 + half * 8 + lane_index() / 4;
            float factor = matrix.factors[output];
            uint32_t words[4];
            UNROLL for (int j = 0; j < 4; j++) words[j] = times(a[set][j / 2][j % 2 * 2 + half], factor);
            exchange_four(words);
            if (output < matrix.outputs)
                store16(to + size_t(output) * matrix.inputs + across * 32 + lane_index() % 4 * 8,
                        Bytes16{words[0], words[1], words[2], words[3]});
        }
}

} // namespace

// Up to `most` rows. `wide`: is y f32, or bf16? The dynamic shared memory is Ring<Codes<Kind>, most / 8>'s stages.
#define STORED(most, kind, Kind)                                                                                       \
    KERNEL_ABREAST(THREADS, 2)                                                                                         \
    gemm_stored_##kind##_##most(void *y, const bf16 *x, const unsigned char *codes, const unsigned char *scales,       \
                                const float *factors, const float *bias, float *sums, int *counters, int rows,         \
                                int outputs, int inputs, int shift, int wide) {                                        \
        Product of{x, nullptr, bias, sums, counters, rows, outputs, inputs, rows, nullptr, 1, factors};                \
        StoredProduct product{of, Matrix{codes, scales, factors, outputs, inputs, shift}};                             \
        skinny<Codes<Kind>, most / 8>(y, wide, product);                                                               \
    }                                                                                                                  \
    EXPORT(gemm_stored_##kind##_##most)

// Of experts: units of up to `most` of all `pairs`. Outputs are multiples of 32. Of the largest units one block has the
// registers of a multiprocessor to itself; few experts have so many rows.
#define STORED_EXPERTS(most, kind, Kind)                                                                               \
    KERNEL_ABREAST(THREADS, most == 64 ? 1 : 2)                                                                        \
    gemm_stored_experts_##kind##_##most(void *y, const bf16 *x, const unsigned char *codes,                            \
                                        const unsigned char *scales, const float *factors, const float *bias,          \
                                        float *sums, int *counters, const int *list, const int *offsets, int pairs,    \
                                        int sharers, int experts, int outputs, int inputs, int shift, int wide) {      \
        Product of{x, nullptr, bias, sums, counters, 0, outputs, inputs, pairs, list, sharers, factors};               \
        StoredProduct product{of, Matrix{codes, scales, factors, outputs, inputs, shift}};                             \
        stored_of_expert<Kind, most / 8>(y, wide, product, offsets, experts);                                          \
    }                                                                                                                  \
    EXPORT(gemm_stored_experts_##kind##_##most)

// Grid (inputs / 32 / warps of a block, outputs / 32), both rounded up.
#define STORED_KIND(kind, Kind)                                                                                        \
    STORED(8, kind, Kind)                                                                                              \
    STORED(16, kind, Kind)                                                                                             \
    STORED(32, kind, Kind)                                                                                             \
    STORED(64, kind, Kind)                                                                                             \
    STORED_EXPERTS(8, kind, Kind)                                                                                      \
    STORED_EXPERTS(16, kind, Kind)                                                                                     \
    STORED_EXPERTS(32, kind, Kind)                                                                                     \
    STORED_EXPERTS(64, kind, Kind)                                                                                     \
    KERNEL(THREADS) stored_widen_##kind(bf16 *to, const unsigned char *codes, const unsigned char *scales,             \
                                        const float *factors, int outputs, int inputs, int shift) {                    \
        widen_matrix<Kind>(to, Matrix{codes, scales, factors, outputs, inputs, shift});                                \
    }                                                                                                                  \
    EXPORT(stored_widen_##kind)

STORED_KIND(int8, Int8)
STORED_KIND(uint8, Uint8)
STORED_KIND(e4m3, E4m3)
STORED_KIND(int4, Int4)
STORED_KIND(uint4, Uint4)
STORED_KIND(e2m1, E2m1)
