// Attention of stretches of prompts (see attention_prompt.cuh) by matrix units that each warp uses by itself.
//
// A warp has M times sixteen of the rows of a block's product. The block goes through the context in tiles of KEYS
// positions, counted from position 0, so that neither the cuts of a prompt nor the rows beside it matter. While one
// tile is worked on, the next is loaded:
//
//   shared    queries bf16 [ROWS][D], then twice keys and values, bf16 [2][KEYS][D] each
//
// A cache of e4m3 is widened to bf16 on the way from one place to another in shared memory, by whichever thread loaded
// it, once for all warps:
//
//   shared    queries bf16 [ROWS][D], keys and values bf16 [2][KEYS][D], keys and values e4m3 [2][KEYS][D]
#include "attention_prompt.cuh"

using namespace attention;

namespace {

// With more than 128 numbers in a head, registers suffice for one product of each warp.
template <int D> constexpr int M = D <= 128 ? 2 : 1;
template <int D> constexpr int ROWS = 16 * M<D> * WARPS;
template <int D> constexpr int KEYS = D <= 128 ? 64 : 32;

template <int D> using Task = attention::Task<WARPS, 16 * M<D>>;

template <class Number, int D>
DEVICE void load_queries(const Prompt<Number> &job, const Task<D> &task, unsigned char *to) {
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
    const Task<D> &task;
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

    DEVICE void take(const Task<D> &task, const unsigned char *queries, const unsigned char *keys, int tile) {
        int first = tile * KEYS<D>, end = first + KEYS<D>;
        // What no row of the warp sees changes nothing.
        if (!task.sees(warp_index(), first, end)) return;
        float scores[M<D>][KEYS<D> / 8][4];
        multiply_keys<D>(scores, queries, keys);
        cap(scores, task.rule);
        if (!task.sees_all(warp_index(), first, end)) hide_unseen(scores, task, first);
        rows.weigh(scores, task.rule.unit);
        rows.add(scores, keys + KEYS<D> * D * 2, opaque(lane_index()));
    }
};

template <class Number, int D> DEVICE void prompt(const Prompt<Number> &job) {
    DYNAMIC_SHARED(memory);
    SHARED Task<D> task;
    constexpr int QUERY_BYTES = ROWS<D> * D * 2, TILE_BYTES = 2 * KEYS<D> * D * 2;
    wait_for_earlier();
    let_next_start();
    task.begin(job);
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
    put(job, task, strip.rows);
}

} // namespace

#define PROMPT(name, Number, D, blocks) PROMPT_KERNEL(name, Number, D, THREADS, blocks)

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
