// Attention of stretches of prompts, over the paged cache that holds their keys and values already (see attention.cuh).
//
//   queries   bf16 [rows][heads * head_dim]; out alike
//   tiles     i32 [n_tiles][4]: the first row, how many rows (tokens), the position of the first, the slot. The rows
//             have consecutive positions; times the heads of a group they are at most ROWS
//
// Grid (kv_heads, n_tiles). A block's product has a row for each token and query head of the group, the heads of one
// token side by side, M times sixteen of them for each warp. It goes through the context in tiles of KEYS positions,
// counted from position 0, so that neither the cuts of a prompt nor the rows beside it matter. While one tile is worked
// on, the next is loaded:
//
//   shared    queries bf16 [ROWS][D], then twice keys and values, bf16 [2][KEYS][D] each
//
// A cache of e4m3 is widened to bf16 on the way from one place to another in shared memory, by whichever thread loaded
// it, once for all warps:
//
//   shared    queries bf16 [ROWS][D], keys and values bf16 [2][KEYS][D], keys and values e4m3 [2][KEYS][D]
#include "attention.cuh"

using namespace attention;

namespace {

// With more than 128 numbers in a head, registers suffice for one product of each warp.
template <int D> constexpr int M = D <= 128 ? 2 : 1;
template <int D> constexpr int ROWS = 16 * M<D> * WARPS;
template <int D> constexpr int KEYS = D <= 128 ? 64 : 32;

template <class Number> struct Prompt {
    bf16 *out;
    const bf16 *queries;
    Cache<Number> cache;
    const int *tiles;
    const float *sinks;
    int rows, heads, window;
    float scale, soft_cap;
};

// What a block does: some tokens of one sequence, and one KV head with its `group` of query heads. It lies in shared
// memory, for registers are few.
struct Task {
    int first_row, tokens, start, slot, kv_head, group;
    // What some row sees.
    Range seen;
    Rule rule;
    // Positions of each warp's first row and of its last; -1 where there is none.
    int lowest[WARPS], highest[WARPS];

    // Of the product's rows, which are tokens, and their position; -1 for those that are none.
    DEVICE bool there(int row) const { return row < tokens * group; }
    DEVICE int position(int row) const { return there(row) ? start + row / group : -1; }
    // The query head of a row, of all heads of all rows.
    DEVICE size_t head(int row, int heads) const {
        return size_t(first_row + row / group) * heads + kv_head * group + row % group;
    }
};

template <class Number, int D> DEVICE void load_queries(const Prompt<Number> &job, const Task &task, unsigned char *to) {
    constexpr int pieces = D / 8;
    int dim = job.cache.head_dim;
    UNROLL
    for (int i = 0; i < ROWS<D> * pieces / THREADS; i++) {
        int at = i * THREADS + threadIdx.x, row = at / pieces, piece = at % pieces;
        bool there = task.there(row) && 8 * piece < dim;
        size_t from = there ? task.head(row, job.heads) * dim + 8 * piece : 0;
        copy_async16(to + 16 * piece_at<pieces>(row, piece), job.queries + from, there);
    }
}

// Loads tiles of keys and values, one after the other.
template <class Number, int D> struct Loader {
    static constexpr int pieces = PIECES<Number, D>, NUMBERS = 16 / sizeof(Number);
    // Pieces of a block of the cache for each thread, of which the last is not every thread's.
    static constexpr int EACH = (PAGE * pieces + THREADS - 1) / THREADS;
    static constexpr bool EVEN = PAGE * pieces % THREADS == 0;

    const Prompt<Number> &job;
    const Task &task;
    // The lane's entry of the sequence's table, of 32 that begin at a multiple of 32.
    int page;

    // Where a piece is put: as the products want it, or, where it is still to be widened, in order.
    DEVICE static int place(int line, int piece) {
        return sizeof(Number) == 1 ? line * pieces + piece : piece_at<pieces>(line, piece);
    }

    // Positions that are not seen become zeros: what the cache holds there may be no number, and 0 times that is none.
    DEVICE void load(int tile, unsigned char *keys, bool first) {
        constexpr int PAGES = KEYS<D> / PAGE;
        int entry = tile * PAGES;
        if (first || entry % WARP == 0) {
            int at = entry / WARP * WARP + lane_index();
            bool there = at >= task.seen.first / PAGE && at <= (task.seen.end - 1) / PAGE;
            page = there ? job.cache.block(task.slot, at) : -1;
        }
        unsigned char *values = keys + KEYS<D> * D * sizeof(Number);
        int thread = opaque(threadIdx.x);
        UNROLL
        for (int p = 0; p < PAGES; p++) {
            int block = __shfl_sync(ALL_LANES, page, entry % WARP + p), dim = block < 0 ? 0 : job.cache.head_dim;
            size_t from = job.cache.start(block, task.kv_head);
            UNROLL
            for (int i = 0; i < EACH; i++) {
                int at = i * THREADS + thread, key = at / pieces, piece = at % pieces, line = p * PAGE + key;
                if (!EVEN && at >= PAGE * pieces) continue;
                bool there = NUMBERS * piece < dim && task.seen.has(tile * KEYS<D> + line);
                size_t offset = from + key * dim + NUMBERS * piece;
                copy_async16(keys + 16 * place(line, piece), job.cache.keys + offset, there);
                copy_async16(values + 16 * place(line, piece), job.cache.values + offset, there);
            }
        }
    }

    // What this thread has loaded of keys and values, as bf16.
    DEVICE void widen(unsigned char *to, const unsigned char *from) const {
        static_assert(sizeof(Number) == 1, "bf16 are as wide as they get");
        int thread = opaque(threadIdx.x);
        UNROLL
        for (int i = 0; i < 2 * KEYS<D> / PAGE * EACH; i++) {
            int at = i % EACH * THREADS + thread, line = i / EACH * PAGE + at / pieces, piece = at % pieces;
            if (!EVEN && at >= PAGE * pieces) continue;
            Bytes16 sixteen = load16(from + 16 * place(line, piece));
            // The values' lines follow those of the keys.
            store16(to + 16 * piece_at<D / 8>(line, 2 * piece), widen_eight(sixteen.x, sixteen.y));
            store16(to + 16 * piece_at<D / 8>(line, 2 * piece + 1), widen_eight(sixteen.z, sixteen.w));
        }
    }
};

template <int D, int N>
DEVICE void multiply_keys(float (&scores)[M<D>][N][4], const unsigned char *queries, const unsigned char *keys) {
    int lane = opaque(lane_index());
    UNROLL
    for (int at = 0; at < M<D> * N * 4; at++) scores[at / (4 * N)][at / 4 % N][at % 4] = 0.0f;
    UNROLL_4
    for (int k = 0; k < D / 16; k++) {
        uint32_t left[M<D>][4];
        UNROLL
        for (int i = 0; i < M<D>; i++) load_matrices(left[i], left_lines<D / 8>(queries, lane, 16 * i, 2 * k));
        UNROLL
        for (int n = 0; n < N / 2; n++) {
            uint32_t right[4];
            load_matrices(right, right_lines<D / 8>(keys, lane, 16 * n, 2 * k));
            UNROLL
            for (int i = 0; i < M<D>; i++) {
                multiply_add(scores[i][2 * n], left[i], right[0], right[1]);
                multiply_add(scores[i][2 * n + 1], left[i], right[2], right[3]);
            }
        }
    }
}

// The rows of one warp.
template <int D> struct Strip {
    Rows<bf16, D, M<D>> rows;

    DEVICE void hide_unseen(float (&scores)[M<D>][KEYS<D> / 8][4], const Task &task, int tile) const {
        int widest = task.rule.window == 0 ? INT32_MAX : task.rule.window, key = tile * KEYS<D> + lane_index() % 4 * 2;
        UNROLL
        for (int i = 0; i < 2 * M<D>; i++) {
            int position = task.position(warp_index() * 16 * M<D> + 8 * i + lane_index() / 4);
            UNROLL
            for (int at = 0; at < KEYS<D> / 4; at++) {
                int distance = position - key - at / 2 * 8 - at % 2;
                if (distance < 0 || distance >= widest) scores[i / 2][at / 2][i % 2 * 2 + at % 2] = -INFINITY;
            }
        }
    }

    DEVICE void take(const Task &task, const unsigned char *queries, const unsigned char *keys, int tile) {
        int first = tile * KEYS<D>, end = first + KEYS<D>, window = task.rule.window;
        int lowest = task.lowest[warp_index()], highest = task.highest[warp_index()];
        // What no row of the warp sees changes nothing.
        if (first > highest || end <= first_seen(lowest, window)) return;
        bool all = end <= lowest + 1 && first >= first_seen(highest, window);
        float scores[M<D>][KEYS<D> / 8][4];
        multiply_keys<D>(scores, queries, keys);
        cap(scores, task.rule);
        if (!all) hide_unseen(scores, task, tile);
        rows.weigh(scores, task.rule.unit);
        rows.add(scores, keys + KEYS<D> * D * 2);
    }

    template <class Number> DEVICE void put(const Prompt<Number> &job, const Task &task) {
        rows.end(task.rule.unit);
        UNROLL
        for (int at = 0; at < 2 * M<D>; at++) {
            int row = warp_index() * 16 * M<D> + 8 * at + lane_index() / 4, i = at / 2, half = at % 2;
            if (!task.there(row)) continue;
            int head = task.kv_head * task.group + row % task.group;
            float factor = last_factor(rows.top[i][half], rows.sum[i][half], job.sinks, head);
            factor *= job.cache.value_scale;
            bf16 *out = job.out + task.head(row, job.heads) * job.cache.head_dim;
            UNROLL
            for (int n = 0; n < D / 8; n++) {
                int column = 8 * n + lane_index() % 4 * 2;
                const float(&four)[4] = rows.out[i][n];
                if (column < job.cache.head_dim)
                    *reinterpret_cast<uint32_t *>(out + column) =
                        to_bf16_pair(four[2 * half] * factor, four[2 * half + 1] * factor);
            }
        }
    }
};

// A tile that is none, for it leads outside the rows, has no tokens.
template <class Number, int D> DEVICE void begin(Task &task, const Prompt<Number> &job) {
    const int *tile = job.tiles + 4 * blockIdx.y;
    if (threadIdx.x == 0) {
        task.group = job.heads / job.cache.kv_heads;
        int most = tile[0] < 0 || tile[2] < 0 ? 0 : min(ROWS<D> / task.group, job.rows - tile[0]);
        task.tokens = max(min(tile[1], most), 0);
        task.first_row = tile[0], task.start = task.tokens == 0 ? 0 : tile[2], task.slot = tile[3];
        task.kv_head = blockIdx.x;
        task.seen = Range{first_seen(task.start, job.window), task.start + task.tokens};
        task.rule = rule_of(job.scale, job.soft_cap, job.window);
        for (int warp = 0; warp < WARPS; warp++) {
            int first = warp * 16 * M<D>, last = min(first + 16 * M<D>, task.tokens * task.group) - 1;
            task.lowest[warp] = task.position(first);
            task.highest[warp] = first > last ? -1 : task.position(last);
        }
    }
    __syncthreads();
}

template <class Number, int D> DEVICE void prompt(const Prompt<Number> &job) {
    DYNAMIC_SHARED(memory);
    SHARED Task task;
    constexpr int QUERY_BYTES = ROWS<D> * D * 2, TILE_BYTES = 2 * KEYS<D> * D * 2;
    wait_for_earlier();
    let_next_start();
    begin<Number, D>(task, job);
    Loader<Number, D> loader{job, task, 0};
    int tile = task.seen.first / KEYS<D>;
    load_queries<Number, D>(job, task, memory);
    constexpr bool WIDENS = sizeof(Number) == 1;
    unsigned char *tiles = memory + QUERY_BYTES, *narrow = tiles + TILE_BYTES;
    loader.load(tile, WIDENS ? narrow : tiles + tile % 2 * TILE_BYTES, true);
    copies_commit();
    Strip<D> strip;
    strip.rows.begin();
    const unsigned char *queries = memory + warp_index() * 16 * M<D> * D * 2;
    for (; tile * KEYS<D> < task.seen.end; tile++) {
        unsigned char *now = tiles + tile % 2 * TILE_BYTES, *then = tiles + (tile + 1) % 2 * TILE_BYTES;
        copies_wait<0>();
        // All copies of this tile have landed, and nobody works on the one before any more.
        __syncthreads();
        if constexpr (WIDENS) {
            now = tiles, then = narrow;
            loader.widen(now, narrow);
        }
        if ((tile + 1) * KEYS<D> < task.seen.end) loader.load(tile + 1, then, false);
        copies_commit();
        if (WIDENS) __syncthreads();
        strip.take(task, queries, now, tile);
    }
    strip.put(job, task);
}

} // namespace

#define PROMPT(name, Number, D, blocks)                                                                                \
    KERNEL_ABREAST(THREADS, blocks)                                                                                    \
    name(bf16 *out, const bf16 *queries, const Number *keys, const Number *values, const int *tables,                  \
         const int *tiles, const float *sinks, int rows, int slot_count, int table_stride, int block_count, int heads, \
         int kv_heads, int head_dim, int window, float scale, float soft_cap, float value_scale) {                     \
        Cache<Number> cache{keys, values, tables, slot_count, table_stride, block_count, kv_heads, head_dim,           \
                            value_scale};                                                                              \
        prompt<Number, D>(Prompt<Number>{out, queries, cache, tiles, sinks, rows, heads, window, scale, soft_cap});    \
    }                                                                                                                  \
    EXPORT(name)

PROMPT(attention_prompt_32, bf16, 32, 3)
PROMPT(attention_prompt_64, bf16, 64, 2)
PROMPT(attention_prompt_96, bf16, 96, 2)
PROMPT(attention_prompt_128, bf16, 128, 2)
PROMPT(attention_prompt_256, bf16, 256, 2)
// These want heads of a multiple of 16.
PROMPT(attention_prompt_32_e4m3, e4m3, 32, 3)
PROMPT(attention_prompt_64_e4m3, e4m3, 64, 2)
PROMPT(attention_prompt_96_e4m3, e4m3, 96, 2)
PROMPT(attention_prompt_128_e4m3, e4m3, 128, 2)
PROMPT(attention_prompt_256_e4m3, e4m3, 256, 2)
