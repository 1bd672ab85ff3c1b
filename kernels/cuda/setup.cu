// What is done before a model computes, or between its steps: weights that are made up, and the tables of the cache's
// blocks. Numbers of 64 bits come as two arguments each, the lower half first.
#include "narrow.cuh"

namespace {

constexpr uint64_t GOLDEN = 0x9e3779b97f4a7c15;
// Of the sum of four uniform integers below 65536: the mean, the root of the variance (65536^2 - 1) / 3, and one over
// it, both rounded to the nearest.
constexpr int MEAN = 131070;
constexpr double DEVIATION = 37837.22723720648, RECIPROCAL = 2.6428997921303014e-05;

DEVICE uint64_t join(int low, int high) { return uint64_t(uint32_t(high)) << 32 | uint32_t(low); }

DEVICE double to_double(uint64_t bits) {
#ifdef __CUDACC__
    return __longlong_as_double(static_cast<long long>(bits));
#else
    return emulator::bit_cast<double>(bits);
#endif
}

// Number `index` of a tensor, with mean 0 and deviation 1: SplitMix64 of the index, cut in four and summed. It has the
// bits of a division by the deviation: a product with the reciprocal and one correction round correctly here (all sums
// were tried).
DEVICE double scatter(uint64_t key, uint64_t index) {
    uint64_t z = key + (index + 1) * GOLDEN;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    z ^= z >> 31;
    uint32_t low = uint32_t(z), high = uint32_t(z >> 32);
    double sum = double(int((low & 0xffff) + (low >> 16) + (high & 0xffff) + (high >> 16)) - MEAN);
    double quotient = multiply_alone(sum, RECIPROCAL);
    return multiply_add_double(multiply_add_double(-quotient, DEVIATION, sum), RECIPROCAL, quotient);
}

DEVICE float narrow(float number, float) { return number; }
DEVICE bf16 narrow(float number, bf16) { return to_bf16(number); }

// to[i] = mean + sigma * scatter(first + i): four numbers for each thread.
template <class Number>
DEVICE void make_up(Number *to, uint64_t count, uint64_t key, uint64_t first, double mean, double sigma) {
    wait_for_earlier();
    let_next_start();
    uint64_t at = (uint64_t(blockIdx.x) * blockDim.x + threadIdx.x) * 4;
    if (at >= count) return;
    float numbers[4];
    for (int i = 0; i < 4; i++)
        numbers[i] = float(add_alone(mean, multiply_alone(sigma, scatter(key, first + at + i))));
    if (count - at >= 4) return store_four(to + at, numbers);
    for (uint64_t i = 0; i < count - at; i++) to[at + i] = narrow(numbers[i], Number());
}

} // namespace

// Grid (ceil(count / 4 / threads)).
#define MAKE_UP(name, type)                                                                                            \
    KERNEL(256)                                                                                                        \
    name(type *to, int count_low, int count_high, int key_low, int key_high, int first_low, int first_high,            \
         int mean_low, int mean_high, int sigma_low, int sigma_high) {                                                 \
        make_up(to, join(count_low, count_high), join(key_low, key_high), join(first_low, first_high),                 \
                to_double(join(mean_low, mean_high)), to_double(join(sigma_low, sigma_high)));                         \
    }                                                                                                                  \
    EXPORT(name)

MAKE_UP(make_up_bf16, bf16)
MAKE_UP(make_up_f32, float)

// Weights of eight bits, as stored.cuh lays them out: e4m3 of 64 times what deviates from the mean, which is 0; one
// scale for all. A thread makes four codes of an output, inputs 16 i + 8 j + 2 t + e of a unit. Grid (ceil(codes / 4 /
// threads)), outputs being rounded up to 32.
KERNEL(256)
make_up_e4m3(uint32_t *codes, uint16_t *scales, float *factors, int outputs, int inputs, int key_low, int key_high,
             int first_low, int first_high, int sigma_low, int sigma_high) {
    wait_for_earlier();
    let_next_start();
    uint64_t word = uint64_t(blockIdx.x) * blockDim.x + threadIdx.x, of_block = uint64_t(inputs) * 8;
    if (word >= (uint64_t(outputs) + 31) / 32 * of_block) return;
    // [32 outputs][unit][set][lane][half][i]
    int block = int(word / of_block), unit = int(word % of_block / 256), place = int(word % 256);
    int set = place / 128, lane = place / 4 % 32, half = place / 2 % 2, i = place % 2;
    int output = block * 32 + set * 16 + half * 8 + lane / 4, input = unit * 32 + 16 * i + lane % 4 * 2;
    float numbers[4] = {};
    if (output < outputs)
        for (int byte = 0; byte < 4; byte++) {
            uint64_t index = join(first_low, first_high) + uint64_t(output) * inputs + input + byte % 2 * 8 + byte / 2;
            numbers[byte] = float(64.0 * scatter(join(key_low, key_high), index));
        }
    codes[word] = to_e4m3_pair(numbers[0], numbers[1]) | to_e4m3_pair(numbers[2], numbers[3]) << 16;
    if (input > 0) return;
    // In any order: they are all alike.
    scales[block * 64 + output % 8 * 8 + output % 32 / 8] = 0x7b80;
    scales[block * 64 + output % 8 * 8 + output % 32 / 8 + 4] = 0;
    factors[output] = float(to_double(join(sigma_low, sigma_high)) / 64.0);
}
EXPORT(make_up_e4m3)

// Block `block` becomes block `index` of a slot's sequence: `updates` are triples (slot, index, block), no place twice;
// those outside the tables are left out. Grid (ceil(count / threads)).
KERNEL(128) update_tables(const int *updates, int count, int *tables, int slot_count, int table_stride) {
    wait_for_earlier();
    let_next_start();
    int at = int(blockIdx.x * blockDim.x + threadIdx.x);
    if (at >= count) return;
    const int *update = updates + 3 * size_t(at);
    int slot = update[0], index = update[1];
    if (unsigned(slot) >= unsigned(slot_count) || unsigned(index) >= unsigned(table_stride)) return;
    tables[size_t(slot) * table_stride + index] = update[2];
}
EXPORT(update_tables)
