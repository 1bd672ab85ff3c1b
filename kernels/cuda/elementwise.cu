// What happens between the matrix products, row by row: embedding, norms with the residual stream, gated activations.
//
//   embed      table bf16 [vocab][hidden], token of a row          -> x f32 [rows][hidden]
//   add_norm   x f32 [rows][hidden] += delta f32 [rows][hidden]    -> out bf16 [rows][hidden], the norm of x
//   gated      bf16 [rows][gate 0..width | up 0..width]            -> out bf16 [rows][width]
//   round_rows bf16 [rows][inputs]                                 -> codes [rows][inputs], scales f32 [rows][inputs / 128]
//   shape_logits   f32 [count], scaled and capped where they stand
//
// `add_norm` and `gated` write codes (rounded.cuh) where they get `scales` for them.
//
// All are bound by memory: a thread moves four floats (16 bytes) or eight bf16 at a time, neighbours side by side. How
// a row is divided among threads depends on its width alone, so it is summed in one order whatever stands beside it.
#include "activation.cuh"
#include "rounded.cuh"

// ----------------------------------------------------------------------------------------------------------- embedding

// Grid (rows, ceil(hidden / 4 / threads)): four numbers for each thread. A token below 0 stands for the last one of the
// row's slot; one outside the vocabulary, or of a slot that is not there, reads row 0: padding may hold anything.
KERNEL(256)
embed(const bf16 *table, const int *tokens, const int *slots, const int *last, float *x, int hidden, int vocab,
      int slot_count, float scale) {
    // The first of a step, and the only one in this order: see device.cuh.
    wait_for_earlier();
    let_next_start();
    size_t row = blockIdx.x;
    int column = 4 * int(blockIdx.y * blockDim.x + threadIdx.x);
    if (column >= hidden) return;
    int token = tokens[row];
    if (token < 0) {
        int slot = slots[row];
        token = unsigned(slot) < unsigned(slot_count) ? last[slot] : 0;
    }
    if (unsigned(token) >= unsigned(vocab)) token = 0;
    float numbers[4];
    load_four(numbers, table + size_t(token) * hidden + column);
    for (float &number : numbers) number *= scale;
    store_four(x + row * hidden + column, numbers);
}
EXPORT(embed)

// --------------------------------------------------------------------------------------------------------------- norms

namespace {

constexpr int MOST_WARPS = 32;

struct AddNorm {
    float *x;
    const float *delta, *delta_bias, *delta_weight, *weight, *bias;
    bf16 *out;
    float *scales;
    const int *row_index;
    int x_rows, hidden, centred;
    float eps, offset, residual_scale;
};

// The sum over the block behind one barrier: `scratch` serves no other sum of the kernel.
DEVICE float sum_of_block(float value, float (&scratch)[MOST_WARPS]) {
    value = warp_sum(value);
    if (lane_index() == 0) scratch[warp_index()] = value;
    __syncthreads();
    return warp_sum(lane_index() < int(blockDim.x) / WARP ? scratch[lane_index()] : 0.0f);
}

template <int VECTORS> DEVICE float squares(const float (&of)[VECTORS][4]) {
    float sum = 0.0f;
    for (int i = 0; i < VECTORS; i++)
        for (float number : of[i]) sum += number * number;
    return sum;
}

// What a thread holds of a row: vectors of four numbers, zeros past the row's end. A warp has 32 * VECTORS vectors in
// one piece, so that a thread's next is always 128 numbers on.
template <int VECTORS> struct Places {
    int hidden, first;
    DEVICE explicit Places(int hidden)
        : hidden(hidden), first(4 * (warp_index() * WARP * VECTORS + lane_index())) {}
    DEVICE int column(int i) const { return first + 4 * WARP * i; }
    DEVICE bool holds(int i) const { return column(i) < hidden; }
    DEVICE void load(float (&to)[VECTORS][4], const float *row) const {
        for (int i = 0; i < VECTORS; i++) {
            for (float &number : to[i]) number = 0.0f;
            if (holds(i)) load_four(to[i], row + column(i));
        }
    }
    DEVICE void prefetch(const float *row) const {
        for (int i = 0; i < VECTORS; i++)
            if (row && holds(i)) ::prefetch(row + column(i));
    }
    DEVICE void fetch(float *shared, const float *row) const {
        for (int i = 0; i < VECTORS; i++)
            if (holds(i)) copy_async16(shared + column(i), row + column(i), true);
        copies_commit();
    }
    template <class To> DEVICE void store(To *row, const float (&from)[VECTORS][4]) const {
        for (int i = 0; i < VECTORS; i++)
            if (holds(i)) store_four(row + column(i), from[i]);
    }
    // As codes. All lanes of a warp hold something, or none: `hidden` is a multiple of 128.
    DEVICE void store_codes(uint32_t *codes, float *scales, size_t row, const float (&from)[VECTORS][4]) const {
        // Pairs t and t + 4 of sixteen numbers are with lanes t / 2 and t / 2 + 2 of four.
        int lane = lane_index(), t = lane % 4, giver = lane - t + t / 2;
        for (int i = 0; i < VECTORS; i++) {
            if (!holds(i)) continue;
            uint32_t even = to_bf16_pair(from[i][0], from[i][1]), odd = to_bf16_pair(from[i][2], from[i][3]);
            float most = warp_max(fmaxf(largest(even), largest(odd)));
            uint32_t of[4];
            for (int from = 0; from < 4; from++) of[from] = __shfl_sync(ALL_LANES, from % 2 ? odd : even, giver + from / 2 * 2);
            size_t at = row * hidden + column(i);
            uint32_t first = t % 2 ? of[1] : of[0], second = t % 2 ? of[3] : of[2];
            codes[word_of_codes(at, t)] = four_codes(first, second, to_codes(most));
            if (lane == 0) scales[at / CODES_OF_SCALE] = scale_of(most);
        }
    }
    DEVICE void store_zeros(bf16 *row) const {
        for (int i = 0; i < VECTORS; i++)
            if (holds(i)) store8(row + column(i), Bytes8{0, 0});
    }
    // Numbers that few models have are loaded one vector at a time: registers are scarce.
    DEVICE void add(float (&to)[VECTORS][4], const float *row) const {
        for (int i = 0; i < VECTORS; i++) {
            if (!holds(i)) continue;
            float more[4];
            load_four(more, row + column(i));
            for (int j = 0; j < 4; j++) to[i][j] += more[j];
        }
    }
    DEVICE void scale(float (&to)[VECTORS][4], const float *row, float offset, float factor) const {
        for (int i = 0; i < VECTORS; i++) {
            if (!holds(i)) continue;
            float weight[4];
            load_four(weight, row + column(i));
            for (int j = 0; j < 4; j++) to[i][j] *= factor * (weight[j] + offset);
        }
    }
};

// Each number less the mean; what stands for nothing past the row's end stays 0.
template <int VECTORS>
DEVICE void centre(float (&x)[VECTORS][4], Places<VECTORS> places, float (&scratch)[MOST_WARPS]) {
    float sum = 0.0f;
    for (int i = 0; i < VECTORS; i++)
        for (float number : x[i]) sum += number;
    float mean = sum_of_block(sum, scratch) / places.hidden;
    for (int i = 0; i < VECTORS; i++)
        for (float &number : x[i]) number = places.holds(i) ? number - mean : 0.0f;
}

// x += residual_scale * f(delta + delta_bias), where f is the RMS norm by delta_weight, or nothing; then out is the
// norm of x by weight, or x as it is. The row stays in registers between. With `row_index`, row r of out is of row
// row_index[r] of x, zeros where there is no such row (-1); there is no delta then, and no codes.
template <int VECTORS> DEVICE void add_norm(const AddNorm &job) {
    SHARED float scratch[3][MOST_WARPS];
    Places<VECTORS> places(job.hidden);
    float x[VECTORS][4];
    // While the kernel before still runs, weights travel to where they take no registers; a thread reads its own alone.
    DYNAMIC_SHARED(shared);
    float *weight = reinterpret_cast<float *>(shared);
    if (job.weight) places.fetch(weight, job.weight);
    places.prefetch(job.delta_bias);
    places.prefetch(job.delta_weight);
    places.prefetch(job.bias);
    let_next_start();
    wait_for_earlier();
    size_t row = blockIdx.x;
    if (job.row_index) {
        int from = job.row_index[row];
        if (unsigned(from) >= unsigned(job.x_rows)) {
            copies_wait<0>();
            return places.store_zeros(job.out + row * job.hidden);
        }
        row = from;
    }
    places.load(x, job.x + row * job.hidden);
    if (job.delta) {
        float delta[VECTORS][4];
        places.load(delta, job.delta + row * job.hidden);
        if (job.delta_bias) places.add(delta, job.delta_bias);
        if (job.delta_weight) {
            float inverse = rsqrtf(sum_of_block(squares(delta), scratch[0]) / job.hidden + job.eps);
            places.scale(delta, job.delta_weight, job.offset, inverse);
        }
        for (int i = 0; i < VECTORS; i++)
            for (int j = 0; j < 4; j++) x[i][j] += job.residual_scale * delta[i][j];
        places.store(job.x + row * job.hidden, x);
    }
    if (!job.out) return;
    if (job.weight) {
        if (job.centred) centre(x, places, scratch[1]);
        float inverse = rsqrtf(sum_of_block(squares(x), scratch[2]) / job.hidden + job.eps);
        copies_wait<0>();
        places.scale(x, weight, job.offset, inverse);
    }
    if (job.bias) places.add(x, job.bias);
    if (job.scales) return places.store_codes(reinterpret_cast<uint32_t *>(job.out), job.scales, blockIdx.x, x);
    places.store(job.out + size_t(blockIdx.x) * job.hidden, x);
}

} // namespace

// Grid (rows); threads times 4 times the number in the name are at least `hidden`. Dynamic shared memory: f32 [hidden]
// where there is a `weight`.
#define ADD_NORM(name, threads, vectors)                                                                               \
    KERNEL(threads)                                                                                                    \
    name(float *x, const float *delta, const float *delta_bias, const float *delta_weight, const float *weight,        \
         const float *bias, bf16 *out, float *scales, const int *row_index, int x_rows, int hidden, int centred,       \
         float eps, float offset, float residual_scale) {                                                              \
        add_norm<vectors>(AddNorm{x, delta, delta_bias, delta_weight, weight, bias, out, scales, row_index, x_rows,    \
                                  hidden, centred, eps, offset, residual_scale});                                      \
    }                                                                                                                  \
    EXPORT(name)

ADD_NORM(add_norm_1, 256, 1)
ADD_NORM(add_norm_2, 256, 2)
ADD_NORM(add_norm_4, 1024, 4)

// --------------------------------------------------------------------------------------------------- gated activations

namespace {

// Eight numbers of bf16 as floats, with their biases.
DEVICE void load_eight(float (&to)[8], const bf16 *from, const float *bias) {
    Bytes16 got = load16(from);
    uint32_t pairs[4] = {got.x, got.y, got.z, got.w};
    for (int i = 0; i < 4; i++) to[2 * i] = low_float(pairs[i]), to[2 * i + 1] = high_float(pairs[i]);
    if (bias) {
        float more[2][4];
        load_four(more[0], bias);
        load_four(more[1], bias + 4);
        for (int i = 0; i < 8; i++) to[i] += more[i / 4][i % 4];
    }
}

// Eight neighbours as codes; sixteen threads have those of a scale, and two have the pairs of a word.
DEVICE void store_eight_codes(uint32_t *codes, float *scales, size_t at, const uint32_t (&pairs)[4], bool there) {
    float most = fmaxf(fmaxf(largest(pairs[0]), largest(pairs[1])), fmaxf(largest(pairs[2]), largest(pairs[3])));
    for (int distance = CODES_OF_SCALE / 16; distance > 0; distance /= 2)
        most = fmaxf(most, __shfl_xor_sync(ALL_LANES, most, distance));
    bool upper = lane_index() & 1;
    for (int i = 0; i < 2; i++) {
        uint32_t other = __shfl_xor_sync(ALL_LANES, upper ? pairs[i] : pairs[2 + i], 1);
        uint32_t first = upper ? other : pairs[i], second = upper ? pairs[2 + i] : other;
        if (there) codes[word_of_codes(at, upper ? 2 + i : i)] = four_codes(first, second, to_codes(most));
    }
    if (there && at % CODES_OF_SCALE == 0) scales[at / CODES_OF_SCALE] = scale_of(most);
}

// Eight results for each thread, those of all rows in one sequence. Codes want a `width` that is a multiple of 128.
template <int KIND>
DEVICE void gate_rows(const bf16 *in, const float *bias, bf16 *out, float *scales, int rows, int width, float limit) {
    let_next_start();
    wait_for_earlier();
    unsigned at = blockIdx.x * blockDim.x + threadIdx.x, of_row = unsigned(width) / 8;
    unsigned row = at / of_row, column = at % of_row * 8;
    bool there = row < unsigned(rows);
    // Of those that share a scale all are there, or none; a warp may have both.
    if (!there && !scales) return;
    const bf16 *from = in + (there ? size_t(row) * 2 * width : 0) + column;
    float gate[8], up[8];
    load_eight(gate, from, bias ? bias + column : nullptr);
    load_eight(up, from + width, bias ? bias + width + column : nullptr);
    uint32_t pairs[4];
    for (int i = 0; i < 4; i++) {
        float first = activate<KIND>(gate[2 * i], up[2 * i], limit);
        pairs[i] = to_bf16_pair(first, activate<KIND>(gate[2 * i + 1], up[2 * i + 1], limit));
    }
    size_t to = size_t(row) * width + column;
    if (scales) return store_eight_codes(reinterpret_cast<uint32_t *>(out), scales, to, pairs, there);
    store16(out + to, Bytes16{pairs[0], pairs[1], pairs[2], pairs[3]});
}

} // namespace

// Grid (ceil(rows * width / 8 / threads)); `width` is a multiple of 8, `bias` of both halves or null.
#define GATED(name, kind)                                                                                              \
    KERNEL(256) name(const bf16 *in, const float *bias, bf16 *out, float *scales, int rows, int width, float limit) {  \
        gate_rows<kind>(in, bias, out, scales, rows, width, limit);                                                    \
    }                                                                                                                  \
    EXPORT(name)

GATED(gated_silu, SILU)
GATED(gated_gelu, GELU)
GATED(gated_gelu_tanh, GELU_TANH)
GATED(gated_clamped_swiglu, CLAMPED_SWIGLU)

// --------------------------------------------------------------------------------------------------------------- codes

// What another kernel has left as bf16: a warp for each 128 numbers. Grid (ceil(rows * inputs / 128 / warps)); `inputs` is
// a multiple of 128.
KERNEL(256) round_rows(uint32_t *codes, float *scales, const bf16 *x, int rows, int inputs) {
    wait_for_earlier();
    let_next_start();
    size_t group = size_t(blockIdx.x) * (blockDim.x / WARP) + warp_index();
    if (group >= size_t(rows) * (inputs / CODES_OF_SCALE)) return;
    // A lane makes one word, of two pairs.
    int lane = lane_index(), t = lane % 8 / 2;
    size_t at = group * CODES_OF_SCALE + lane / 8 * 32 + lane % 2 * 16;
    const uint32_t *from = reinterpret_cast<const uint32_t *>(x + at);
    uint32_t first = from[t], second = from[t + 4];
    float most = warp_max(fmaxf(largest(first), largest(second)));
    codes[word_of_codes(at, t)] = four_codes(first, second, to_codes(most));
    if (lane == 0) scales[group] = scale_of(most);
}
EXPORT(round_rows)

// -------------------------------------------------------------------------------------------------------------- logits

// logits *= scale, then cap * tanh(logits / cap) where `cap` is above 0. Grid (ceil(count / 4 / threads)).
KERNEL(256) shape_logits(float *logits, int count, float scale, float cap) {
    let_next_start();
    wait_for_earlier();
    size_t at = (size_t(blockIdx.x) * blockDim.x + threadIdx.x) * 4;
    if (at >= size_t(count)) return;
    int some = count - int(at) < 4 ? count - int(at) : 4;
    float numbers[4] = {};
    if (some == 4) load_four(numbers, logits + at);
    for (int i = 0; i < 4; i++) {
        if (some < 4 && i < some) numbers[i] = logits[at + i];
        numbers[i] *= scale;
        if (cap > 0.0f) numbers[i] = cap * tanhf(numbers[i] / cap);
        if (some < 4 && i < some) logits[at + i] = numbers[i];
    }
    if (some == 4) store_four(logits + at, numbers);
}
EXPORT(shape_logits)
