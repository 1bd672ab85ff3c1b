// Attention of stretches of prompts (see attention_prompt.cuh) by the matrix units of compute capability 9.0, which
// four warps use together (see wgmma.cuh).
//
// Each group of four warps has 64 of the rows of a block's product. The block goes through the context in tiles of KEYS
// positions, counted from position 0, so that neither the cuts of a prompt nor the rows beside it matter. What lies in
// shared memory is operands of the units: D numbers as D / 64 matrices of 64, one behind the other.
//
//   shared    queries [ROWS][D], then twice keys [KEYS][D], then twice values [KEYS][D], bf16
//
// While the scores of one tile become weights, the values of the tile before are multiplied with theirs; keys are
// loaded one tile ahead of values, and both while what was loaded before is multiplied.
//
// A cache of e4m3 is widened to bf16 in shared memory, by whichever thread loaded it, once for all warps, while the
// units multiply. It waits behind the rest for one tile more:
//
//   shared    keys, then values, e4m3 [KEYS][D]
#include "attention_prompt.cuh"
#include "wgmma.cuh"

using namespace attention;

namespace {

// With more than 128 numbers in a head, a thread's sums fill half of its registers; then there is one group.
template <int D> constexpr int BLOCK = D <= 128 ? 2 * WARPGROUP : WARPGROUP;
template <int D> constexpr int ROWS = BLOCK<D> / 2;
template <int D> constexpr int KEYS = D == 128 ? 128 : 64;
template <int D> using Task = attention::Task<BLOCK<D> / WARP, 16>;

// Numbers that are multiplied at once.
constexpr int DEEP = 16;

// Where a piece of a line lies in a tile of so many lines.
template <int lines> DEVICE int place(int line, int piece) {
    constexpr int across = MATRIX_LINE / 16;
    return piece / across * lines * MATRIX_LINE + matrix_place(line, piece % across);
}

template <class Number, int D>
DEVICE void load_queries(const Prompt<Number> &job, const Task<D> &task, unsigned char *to) {
    constexpr int pieces = D / 8;
    int dim = job.cache.head_dim;
    UNROLL_4
    for (int i = 0; i < ROWS<D> * pieces / BLOCK<D>; i++) {
        int at = i * BLOCK<D> + threadIdx.x, row = at / pieces, piece = at % pieces;
        bool there = task.there(row) && 8 * piece < dim;
        size_t from = there ? task.head(row, job.heads) * dim + 8 * piece : 0;
        copy_async16(to + place<ROWS<D>>(row, piece), job.queries + from, there);
    }
}

// Loads tiles of keys, or of values, one after the other.
template <class Number, int D> struct Loader {
    static constexpr int pieces = PIECES<Number, D>, NUMBERS = 16 / sizeof(Number);
    static constexpr bool WIDENS = sizeof(Number) == 1;
    // Lines that all threads load at once; of more than a block of the cache the last threads have none.
    static constexpr int AT_ONCE = BLOCK<D> / pieces < PAGE ? BLOCK<D> / pieces : PAGE;
    static constexpr bool ALL = AT_ONCE * pieces == BLOCK<D>;

    const Prompt<Number> &job;
    const Task<D> &task;
    // This thread's piece of the KV head's first line, in the first block of the cache.
    const Number *first_block;
    // The lane's entry of the sequence's table, of 32 that begin at a multiple of 32.
    int page = 0;

    DEVICE Loader(const Prompt<Number> &job, const Task<D> &task, const Number *numbers) : job(job), task(task) {
        int line = threadIdx.x / pieces, piece = threadIdx.x % pieces;
        first_block = numbers + job.cache.start(0, task.kv_head) + line * job.cache.head_dim + NUMBERS * piece;
    }

    // Positions that are not seen become zeros: what the cache holds there may be no number, and 0 times that is none.
    DEVICE void load(int tile, unsigned char *to, bool first) {
        constexpr int PAGES = KEYS<D> / PAGE;
        const Cache<Number> &cache = job.cache;
        int entry = tile * PAGES;
        if (first || entry % WARP == 0) {
            int at = entry / WARP * WARP + lane_index();
            bool there = at >= task.seen.first / PAGE && at <= (task.seen.end - 1) / PAGE;
            page = there ? cache.block(task.slot, at) : -1;
        }
        int line = threadIdx.x / pieces, piece = threadIdx.x % pieces;
        int of_block = cache.kv_heads * PAGE * cache.head_dim;
        bool has_piece = NUMBERS * piece < cache.head_dim;
        // Lines from the first on that is seen, and how many are.
        int seen = tile * KEYS<D> + line - task.seen.first;
        unsigned all = task.seen.end - task.seen.first;
        UNROLL
        for (int p = 0; p < PAGES; p++) {
            int block = __shfl_sync(ALL_LANES, page, entry % WARP + p);
            const Number *from = first_block + size_t(unsigned(max(block, 0))) * unsigned(of_block);
            bool has = has_piece && block >= 0;
            if (!ALL && threadIdx.x >= AT_ONCE * pieces) continue;
            UNROLL
            for (int i = 0; i < PAGE / AT_ONCE; i++) {
                int at = p * PAGE + i * AT_ONCE;
                unsigned char *there = to;
                there += WIDENS ? (line + at) * pieces * 16 + piece * 16 : place<KEYS<D>>(line + at, piece);
                copy_async16(there, from + i * AT_ONCE * cache.head_dim, has && unsigned(seen + at) < all);
            }
        }
    }

    // What this thread has loaded, as bf16.
    DEVICE void widen(unsigned char *to, const unsigned char *from) const {
        int line = threadIdx.x / pieces, piece = threadIdx.x % pieces;
        if (!ALL && threadIdx.x >= AT_ONCE * pieces) return;
        UNROLL_4
        for (int at = 0; at < KEYS<D>; at += AT_ONCE) {
            Bytes16 sixteen = load16(from + (line + at) * pieces * 16 + piece * 16);
            store16(to + place<KEYS<D>>(line + at, 2 * piece), widen_eight(sixteen.x, sixteen.y));
            store16(to + place<KEYS<D>>(line + at, 2 * piece + 1), widen_eight(sixteen.z, sixteen.w));
        }
    }
};

// The tiles in shared memory.
template <class Number, int D> struct Tiles {
    static constexpr int BYTES = KEYS<D> * D * 2;
    static constexpr bool WIDENS = sizeof(Number) == 1;

    Loader<Number, D> keys, values;
    unsigned char *memory;

    DEVICE unsigned char *keys_of(int tile) const { return memory + tile % 2 * BYTES; }
    DEVICE unsigned char *values_of(int tile) const { return memory + (2 + tile % 2) * BYTES; }
    DEVICE unsigned char *narrow() const { return memory + 4 * BYTES; }

    // Ends where the queries and the first tile of keys are there, after a barrier.
    DEVICE void begin(int first, int end) {
        keys.load(first, WIDENS ? narrow() : keys_of(first), true);
        copies_commit();
        if (WIDENS) {
            copies_wait<0>();
            keys.widen(keys_of(first), narrow());
            load_narrow(first + 1, end, true);
        }
        finish();
    }

    // After this, and a barrier, all that was loaded can be multiplied.
    DEVICE void finish() {
        if (!WIDENS) copies_wait<0>();
        show_copies();
    }

    DEVICE void load_narrow(int tile, int end, bool first) {
        if (tile < end) keys.load(tile, narrow(), false);
        if (tile <= end) values.load(tile - 1, narrow() + BYTES / 2, first);
        copies_commit();
    }

    // Brings the keys of the tile after this one and the values of this one, to be there after `finish`.
    DEVICE void bring(int tile, int end, bool first) {
        if constexpr (WIDENS) {
            copies_wait<0>();
            if (tile + 1 < end) keys.widen(keys_of(tile + 1), narrow());
            values.widen(values_of(tile), narrow() + BYTES / 2);
            load_narrow(tile + 2, end, false);
        } else {
            if (tile + 1 < end) keys.load(tile + 1, keys_of(tile + 1), false);
            values.load(tile, values_of(tile), first);
            copies_commit();
        }
    }
};

// The rows of one warp, and what its group multiplies.
template <int D> struct Strip {
    static constexpr int N = KEYS<D> / 8, ACROSS = MATRIX_LINE / 2;

    Rows<bf16, D, 1> rows;
    float scores[1][N][4];
    // Weights of a tile, rounded, as a product takes them.
    uint32_t weights[KEYS<D> / DEEP][4];

    // Before products.
    DEVICE void ready() {
        settle(rows.out[0]);
        settle(scores[0]);
        settle(weights);
        warpgroup_begin();
    }

    DEVICE void multiply_keys(uint64_t queries, uint64_t keys) {
        UNROLL
        for (int k = 0; k < D; k += DEEP) {
            int matrix = k / ACROSS, further = k % ACROSS * 2;
            warpgroup_multiply<bf16>(scores[0], queries + (matrix * ROWS<D> * MATRIX_LINE + further) / 16,
                                     keys + (matrix * KEYS<D> * MATRIX_LINE + further) / 16, k > 0);
        }
        warpgroup_commit();
    }

    DEVICE void multiply_values(uint64_t values) {
        UNROLL
        for (int k = 0; k < KEYS<D> / DEEP; k++)
            warpgroup_multiply(rows.out[0], weights[k], values + k * DEEP * MATRIX_LINE / 16);
        warpgroup_commit();
    }

    // What follows stays behind what `never` is made of.
    DEVICE static void keep_behind([[maybe_unused]] bool never) {
#ifdef __CUDACC__
#ifdef WARPGROUPS
        if (__any_sync(ALL_LANES, never)) asm volatile("nanosleep.u32 1;" ::: "memory");
#endif
#endif
    }

    // Makes scores to weights.
    DEVICE void weigh(const Task<D> &task, int tile, float (&shrink)[1][2]) {
        int first = tile * KEYS<D>;
        cap(scores, task.rule);
        if (!task.sees_all(warp_index(), first, first + KEYS<D>)) hide_unseen(scores, task, first);
        rows.weigh(scores, task.rule.unit, shrink);
        settle(scores[0]);
        // Weights are positive. A compiler that does not know so keeps what follows, a wait for the units, behind them.
        keep_behind(rows.sum[0][0] + rows.sum[0][1] < 0.0f);
    }

    DEVICE void round_weights() {
        UNROLL
        for (int at = 0; at < KEYS<D> / DEEP * 4; at++) {
            const float(&four)[4] = scores[0][at / 4 * 2 + at % 4 / 2];
            weights[at / 4][at % 4] = at % 2 == 0 ? to_bf16_pair(four[0], four[1]) : to_bf16_pair(four[2], four[3]);
        }
    }
};

template <class Number, int D> DEVICE void prompt(const Prompt<Number> &job) {
#ifdef WARPGROUPS
    DYNAMIC_SHARED(memory);
    SHARED Task<D> task;
    wait_for_earlier();
    let_next_start();
    task.begin(job);
    if (task.tokens == 0) return;
    int first = task.seen.first / KEYS<D>, end = (task.seen.end + KEYS<D> - 1) / KEYS<D>;
    unsigned char *queries = matrix_aligned(memory);
    load_queries<Number, D>(job, task, queries);
    Tiles<Number, D> tiles{{job, task, job.cache.keys}, {job, task, job.cache.values}, queries + ROWS<D> * D * 2};
    // The same in all lanes, as the compiler should know.
    int group = __shfl_sync(ALL_LANES, int(threadIdx.x) / WARPGROUP, 0);
    uint64_t queries_at = matrix_at(queries + group * 64 * MATRIX_LINE), keys_at = matrix_at(tiles.keys_of(0));
    uint64_t values_at = transposed_at(tiles.values_of(0), KEYS<D> * MATRIX_LINE);
    constexpr int NEXT = Tiles<Number, D>::BYTES / 16;

    Strip<D> strip{};
    strip.rows.begin();
    float shrink[1][2];
    tiles.begin(first, end);
    __syncthreads();
    strip.ready();
    strip.multiply_keys(queries_at, keys_at + first % 2 * NEXT);
    tiles.bring(first, end, true);
    warpgroup_wait<0>();
    settle(strip.scores[0]);
    strip.weigh(task, first, shrink);
    strip.round_weights();
    ROLLED for (int tile = first + 1; tile < end; tile++) {
        tiles.finish();
        // All copies of this tile have landed, and nobody multiplies the one before any more.
        __syncthreads();
        strip.ready();
        strip.multiply_keys(queries_at, keys_at + tile % 2 * NEXT);
        strip.multiply_values(values_at + (tile + 1) % 2 * NEXT);
        tiles.bring(tile, end, false);
        warpgroup_wait<1>();
        settle(strip.scores[0]);
        strip.weigh(task, tile, shrink);
        warpgroup_wait<0>();
        settle(strip.rows.out[0]);
        settle(strip.weights);
        strip.rows.shrink_by(shrink);
        strip.round_weights();
    }
    tiles.finish();
    __syncthreads();
    strip.ready();
    strip.multiply_values(values_at + (end + 1) % 2 * NEXT);
    warpgroup_wait<0>();
    settle(strip.rows.out[0]);
    settle(strip.weights);
    put(job, task, strip.rows);
#else
    __trap();
#endif
}

} // namespace

// Dynamic shared memory: 1 KB, and what is said above.
#define PROMPT(name, Number, D, blocks) PROMPT_KERNEL(name, Number, D, BLOCK<D>, blocks)

PROMPT(attention_wgmma_64, bf16, 64, 2)
PROMPT(attention_wgmma_128, bf16, 128, 1)
PROMPT(attention_wgmma_256, bf16, 256, 1)
// These want heads of a multiple of 16.
PROMPT(attention_wgmma_64_e4m3, e4m3, 64, 2)
PROMPT(attention_wgmma_128_e4m3, e4m3, 128, 1)
PROMPT(attention_wgmma_256_e4m3, e4m3, 256, 1)
