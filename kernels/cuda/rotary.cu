// From the projection of queries, keys and values to what attention reads: biases, norms of queries and keys, rotation,
// rounding to bf16, and the write of keys and values into the paged cache, in bf16 or in e4m3.
//
//   qkv       f32 [rows][queries: heads * dim | keys: kv_heads * dim | values: kv_heads * dim]
//   queries   bf16 [rows][heads * dim]
//   keys      bf16 or e4m3 [block][kv_head][32][dim]; values alike. Position p of slot s: line p % 32 of block
//             tables[s * table_stride + p / 32]. In e4m3 they are times `key_factor` and `value_factor`
//
// A block has heads of one row: queries, keys and values in their order in qkv. 4 to 32 lanes side by side have one
// head at a time, and a lane four numbers of each of its halves:
//
//   lane       0    1    2    3    0    1    2    3
//   head of 32 aaaa bbbb cccc dddd eeee ffff gggg hhhh
//              lower half          upper half             number i of both is a pair where all of a head is rotated
#include "narrow.cuh"

namespace {

constexpr int THREADS = 128;
constexpr int PAGE = 32;

struct Rotary {
    const float *qkv, *bias, *query_norm, *key_norm, *frequencies;
    const int *positions, *slots, *tables;
    bf16 *queries;
    int slot_count, table_stride, block_count, heads, kv_heads, head_dim, dims, interleaved, full;
    float factor, eps, offset;
};

// Where keys and values go.
template <class Number> struct Lines {
    Number *keys, *values;
    float key_factor, value_factor;
};

// Sine and cosine of any angle, within 1e-7: what is left of it after whole quarter turns, taken away in 64 bits, and
// Cephes' polynomials between -pi / 4 and pi / 4.
DEVICE void sine_cosine(float angle, float &sine, float &cosine) {
    double turns = rint(double(angle) * 0.63661977236758134308);
    float x = float(multiply_add_double(turns, -1.57079632679489661923, double(angle)));
    float z = x * x;
    float s = ((-1.9515295891e-4f * z + 8.3321608736e-3f) * z - 1.6666654611e-1f) * z * x + x;
    float c = ((2.4433157118e-5f * z - 1.3887316255e-3f) * z + 4.1666645683e-2f) * z * z - 0.5f * z + 1.0f;
    int quarter = int(turns);
    sine = quarter & 1 ? c : s;
    cosine = quarter & 1 ? s : c;
    if (quarter & 2) sine = -sine;
    if ((quarter + 1) & 2) cosine = -cosine;
}

// What number i of a head is multiplied by, [dim], and after these what its partner is multiplied by, [dim]. There are
// at most as many pairs as threads; `frequency` is that of the thread's.
DEVICE void fill_factors(float *factors, const Rotary &job, int position, float frequency) {
    int pairs = job.dims / 2, pair = threadIdx.x;
    if (pair < pairs) {
        float sine, cosine;
        sine_cosine(float(position) * frequency, sine, cosine);
        int first = job.interleaved ? 2 * pair : pair, second = job.interleaved ? first + 1 : pair + pairs;
        factors[first] = factors[second] = cosine * job.factor;
        factors[job.head_dim + first] = -sine * job.factor;
        factors[job.head_dim + second] = sine * job.factor;
    }
    for (int i = job.dims + pair; i < job.head_dim; i += THREADS) {
        factors[i] = 1.0f;
        factors[job.head_dim + i] = 0.0f;
    }
}

// One over the root of the mean square of numbers with their biases; the same in every block.
DEVICE float inverse_of_all(const float *from, const float *bias, int count, float eps, float *scratch) {
    float sum = 0.0f;
    for (int i = threadIdx.x; i < count; i += THREADS) {
        float number = bias ? from[i] + bias[i] : from[i];
        sum += number * number;
    }
    return rsqrtf(block_sum(sum, scratch) / count + eps);
}

// One head's part of a lane.
struct Part {
    float half[2][4];
    DEVICE static void prefetch(const float *from, int distance) {
        ::prefetch(from);
        ::prefetch(from + distance);
    }
    DEVICE void load(const float *from, int distance) {
        load_four(half[0], from);
        load_four(half[1], from + distance);
    }
    DEVICE void add(const float *from, int distance) {
        Part other;
        other.load(from, distance);
        for (int i = 0; i < 8; i++) half[i / 4][i % 4] += other.half[i / 4][i % 4];
    }
    DEVICE void scale(float inverse, const float *from, int distance, float offset) {
        Part weight;
        weight.load(from, distance);
        for (int i = 0; i < 8; i++) half[i / 4][i % 4] *= inverse * (weight.half[i / 4][i % 4] + offset);
    }
    DEVICE float squares() const {
        float sum = 0.0f;
        for (int i = 0; i < 8; i++) sum += half[i / 4][i % 4] * half[i / 4][i % 4];
        return sum;
    }
    DEVICE void store(bf16 *to, int distance, [[maybe_unused]] float factor = 1.0f) const {
        store_four(to, half[0]);
        store_four(to + distance, half[1]);
    }
    DEVICE void store(e4m3 *to, int distance, float factor) const {
        Part scaled;
        for (int i = 0; i < 8; i++) scaled.half[i / 4][i % 4] = half[i / 4][i % 4] * factor;
        store_four(to, scaled.half[0]);
        store_four(to + distance, scaled.half[1]);
    }
};

// The numbers that those of `part` are turned with. `staged` holds the head where they are another lane's.
DEVICE Part partners(const Part &part, const Rotary &job, const float *staged, int column) {
    Part other;
    for (int i = 0; i < 8; i++) {
        int half = i / 4, at = column + half * job.head_dim / 2 + i % 4;
        if (job.interleaved) {
            other.half[half][i % 4] = part.half[half][(i % 4) ^ 1];
        } else if (job.dims == job.head_dim) {
            other.half[half][i % 4] = part.half[1 - half][i % 4];
        } else {
            int distance = at >= job.dims ? 0 : at < job.dims / 2 ? job.dims / 2 : -job.dims / 2;
            other.half[half][i % 4] = staged[at + distance];
        }
    }
    return other;
}

// Rotates `part`, the lane's share of a head.
DEVICE void rotate(Part &part, const Rotary &job, const float *factors, const float *staged, int column) {
    Part other = partners(part, job, staged, column), own, others;
    own.load(factors + column, job.head_dim / 2);
    others.load(factors + job.head_dim + column, job.head_dim / 2);
    for (int i = 0; i < 8; i++) {
        float turned = other.half[i / 4][i % 4] * others.half[i / 4][i % 4];
        part.half[i / 4][i % 4] = part.half[i / 4][i % 4] * own.half[i / 4][i % 4] + turned;
    }
}

// LANES times 8 are at least `head_dim`.
template <int LANES, class Number> DEVICE void rotary_write(const Rotary &job, const Lines<Number> &lines) {
    SHARED float scratch[WARP];
    DYNAMIC_SHARED(shared);
    const int dim = job.head_dim, upper = dim / 2, heads = job.heads, total = heads + 2 * job.kv_heads;
    const int column = threadIdx.x % LANES * 4, member = threadIdx.x / LANES, step = gridDim.x * (THREADS / LANES);
    float *factors = reinterpret_cast<float *>(shared), *staged = factors + (2 + member) * dim;
    const size_t row = blockIdx.y;
    int head = blockIdx.x * (THREADS / LANES) + member;
    // While the kernel before still runs.
    float frequency = int(threadIdx.x) < job.dims / 2 ? job.frequencies[threadIdx.x] : 0.0f;
    if (job.query_norm && column < upper) {
        Part::prefetch(job.query_norm + column, upper);
        Part::prefetch(job.key_norm + column, upper);
    }
    if (job.bias && head < total && column < upper) Part::prefetch(job.bias + head * dim + column, upper);
    let_next_start();
    // The step's rows and tables were there before it began.
    int position = load_fresh(job.positions + row), slot = load_fresh(job.slots + row);
    // Nothing is written outside the cache, whatever the tables say.
    int block = -1;
    if (position >= 0 && unsigned(slot) < unsigned(job.slot_count) && position / PAGE < job.table_stride)
        block = load_fresh(job.tables + size_t(slot) * job.table_stride + position / PAGE);
    const bool kept = unsigned(block) < unsigned(job.block_count);
    const size_t line = (size_t(block) * job.kv_heads * PAGE + position % PAGE) * dim + column;
    if (job.dims > 0 && position >= 0) fill_factors(factors, job, position, frequency);
    wait_for_earlier();

    const float *from = job.qkv + row * (size_t(total) * dim);
    bf16 *queries = job.queries + row * (size_t(heads) * dim) + column;
    Part part, next;
    for (int i = 0; i < 8; i++) part.half[i / 4][i % 4] = next.half[i / 4][i % 4] = 0.0f;
    if (head < total && column < upper) next.load(from + head * dim + column, upper);
    if (position < 0) {
        for (; head < heads; head += step)
            if (column < upper) part.store(queries + head * dim, upper);
        return;
    }
    float of_queries = 0.0f, of_keys = 0.0f;
    if (job.full) {
        const float *bias = job.bias ? job.bias + heads * dim : nullptr;
        of_queries = inverse_of_all(from, job.bias, heads * dim, job.eps, scratch);
        of_keys = inverse_of_all(from + heads * dim, bias, job.kv_heads * dim, job.eps, scratch);
    }
    __syncthreads();

    const bool stages = !job.interleaved && job.dims > 0 && job.dims < dim;
    const float share = 1.0f / dim;
    // All lanes of a warp stay together: they shuffle.
    for (; head - member < total; head += step) {
        part = next;
        if (head + step < total && column < upper) next.load(from + (head + step) * dim + column, upper);
        bool there = head < total && column < upper, is_query = head < heads, is_value = head >= heads + job.kv_heads;
        if (there && job.bias) part.add(job.bias + head * dim + column, upper);
        if (job.query_norm) {
            float inverse = is_query ? of_queries : of_keys;
            if (!job.full) {
                float sum = part.squares();
                for (int distance = LANES / 2; distance > 0; distance /= 2)
                    sum += __shfl_xor_sync(ALL_LANES, sum, distance);
                inverse = rsqrtf(sum * share + job.eps);
            }
            int first = column + (job.full ? (is_query ? head : head - heads) * dim : 0);
            const float *weight = (is_query ? job.query_norm : job.key_norm) + first;
            if (there && !is_value) part.scale(inverse, weight, upper, job.offset);
        }
        if (stages) {
            // The head as it is now, for lanes whose partner another one has.
            if (there) store_four(staged + column, part.half[0]), store_four(staged + column + upper, part.half[1]);
            __syncwarp();
        }
        if (there && !is_value && job.dims > 0) rotate(part, job, factors, staged, column);
        if (stages) __syncwarp();
        if (there && is_query) part.store(queries + head * dim, upper);
        if (there && !is_query && kept) {
            int kv_head = head - heads - (is_value ? job.kv_heads : 0);
            Number *to = (is_value ? lines.values : lines.keys) + line + kv_head * (PAGE * dim);
            part.store(to, upper, is_value ? lines.value_factor : lines.key_factor);
        }
    }
}

} // namespace

// Grid (parts, rows): a row's heads are divided over any number of parts. Dynamic shared memory: f32 [2][dim], and
// where only a part of a head is rotated, by halves, f32 [threads / lanes][dim] more. The bound on threads, of which
// there are 128, keeps registers at 64: eight blocks of a multiprocessor hide what a row waits for.
#define ROTARY_WRITE(name, lanes, Number)                                                                              \
    KERNEL(1024)                                                                                                       \
    name(const float *qkv, const float *bias, const float *query_norm, const float *key_norm,                          \
         const float *frequencies, const int *positions, const int *slots, const int *tables, bf16 *queries,           \
         Number *keys, Number *values, int slot_count, int table_stride, int block_count, int heads, int kv_heads,     \
         int head_dim, int dims, int interleaved, int full, float factor, float eps, float offset, float key_factor,   \
         float value_factor) {                                                                                         \
        Rotary job{qkv, bias, query_norm, key_norm, frequencies, positions, slots, tables, queries, slot_count,        \
                   table_stride, block_count, heads, kv_heads, head_dim, dims, interleaved, full, factor, eps,         \
                   offset};                                                                                            \
        rotary_write<lanes>(job, Lines<Number>{keys, values, key_factor, value_factor});                               \
    }                                                                                                                  \
    EXPORT(name)

ROTARY_WRITE(rotary_write_32, 4, bf16)
ROTARY_WRITE(rotary_write_64, 8, bf16)
ROTARY_WRITE(rotary_write_128, 16, bf16)
ROTARY_WRITE(rotary_write_256, 32, bf16)
// These want heads whose halves are multiples of 8.
ROTARY_WRITE(rotary_write_32_e4m3, 4, e4m3)
ROTARY_WRITE(rotary_write_64_e4m3, 8, e4m3)
ROTARY_WRITE(rotary_write_128_e4m3, 16, e4m3)
ROTARY_WRITE(rotary_write_256_e4m3, 32, e4m3)
