// Attention of rows that are one token each, over the paged cache (see attention.cuh, attention_units.cuh).
//
//   queries   bf16 [rows][heads * head_dim]; out alike
//   work      i32 [n_work][2]: a row, and a split of 256 positions of its context. All splits of a row stand one after
//             the other, from split 0 on. A row with position -1 has one, and gets zeros
//   sums      f32 [n_work][heads][head_dim], what each unit has found of rows that see more than one split
//   tops      f32 [n_work][heads][2], the largest score and the sum of weights that belong to it
//   counters  u32 [n_work][kv_heads]: what has finished of what is added up together; 0 before and after
//
// Tiles of 32 positions (16, where heads are long) go to the warps of a block in turn; each warp has loads of its own under way, also those of the
// units that come next, and waits for no other before a unit's end:
//
//   shared    for each warp bf16 or e4m3 [RING][keys, values][tile][D]; for all f32 [D / 8][32 lanes][4], and from
//             D = 256 on queries bf16 [16][D]
//
// What was written before the step (`wait_for_earlier`) is loaded while earlier kernels still run: which units there are, and
// all tiles of theirs but the last.
//
// A cache of e4m3 is widened to halves in registers, and so are queries and weights, four neighbours at once (`widen_alternate`): of each sixteen numbers
// of a head, the product's columns 2t, 2t + 1, 2t + 8 and 2t + 9 are 4t, 4t + 2, 4t + 1 and 4t + 3, in queries as well.
#include "attention_units.cuh"

using namespace attention;

namespace {

// Positions of a tile: as many as registers allow, for what is done once for a tile is then done less often.
template <int D> constexpr int KEYS = D <= 128 && D != 96 ? 32 : 16;
// Eights of them, of which a product has scores.
template <int D> constexpr int EIGHTS = KEYS<D> / 8;
// Tiles of keys, and of values, that a warp has room for.
template <class Number, int D>
constexpr int RING = (D <= 64 ? 128 : D <= 128 ? 64 : 32) / int(sizeof(Number)) / KEYS<D>;
template <class Number, int D> constexpr int TILE_BYTES = KEYS<D> * D * int(sizeof(Number));

// The first tile of `seen` that is this warp's.
template <int D> DEVICE int first_tile(const Range &seen) {
    int tile = seen.first / KEYS<D>;
    return tile + ((warp_index() - tile) & (WARPS - 1));
}

// Which units are a block's. Neighbours share what has to be read before their tiles can be: it takes some of them
// together, as many as do not leave other blocks without.
struct Turns {
    int units, together;

    DEVICE explicit Turns(int units) : units(units), together(4) {
        for (; together > 1; together /= 2) {
            int rounds = (units + together * int(gridDim.x) - 1) / (together * int(gridDim.x));
            if (size_t(rounds) * together * gridDim.x * 32 <= size_t(units) * 33) break;
        }
    }

    DEVICE int first() const { return blockIdx.x * together; }
    DEVICE int after(int unit) const {
        return (unit & (together - 1)) == together - 1 ? unit + 1 + (gridDim.x - 1) * together : unit + 1;
    }
};

// Loads a warp's tiles, unit after unit, ahead of their use.
template <class Number, int D> struct Loader {
    const Decode<Number> &job;
    unsigned char *ring;
    const Turns &turns;
    // The unit to go on with after this one.
    int next;
    // Of this unit: the next tile, where tiles end, what is seen; the lane's entry of the eight of the split.
    int tile, end, kv_head, page;
    Range seen;
    // The place in the ring.
    int place;

    DEVICE Loader(const Decode<Number> &job, unsigned char *ring, const Turns &turns)
        : job(job), ring(ring), turns(turns), next(turns.first()), tile(0), end(0), kv_head(0), page(0), seen{0, 0},
          place(0) {}

    DEVICE unsigned char *keys() const { return ring + place * 2 * TILE_BYTES<Number, D>; }
    DEVICE unsigned char *values() const { return keys() + TILE_BYTES<Number, D>; }

    template <bool early = false> DEVICE void seek() {
        while (tile >= end && next < turns.units) begin<early>(unit_at<early>(job, next));
    }

    // Before the kernel has waited: may the next tile be one that an earlier kernel of the step writes to? It writes the
    // row's last position alone.
    DEVICE bool is_fresh() {
        seek<true>();
        return tile + 1 >= end;
    }

    // Every call ends a group of copies, also where there is nothing left to load.
    DEVICE void load_keys() {
        seek();
        if (tile < end) copy(keys(), job.cache.keys);
        copies_commit();
    }
    DEVICE void load_values() {
        if (tile < end) copy(values(), job.cache.values);
        copies_commit();
        tile += WARPS;
        place = unsigned(place + 1) % RING<Number, D>;
    }

    template <bool early> DEVICE void begin(const Unit &unit) {
        next = turns.after(next);
        if (unit.seen.none()) return;
        seen = unit.seen;
        kv_head = unit.kv_head;
        tile = first_tile<D>(seen);
        end = (seen.end + KEYS<D> - 1) / KEYS<D>;
        int at = unit.split * PAGES_OF_SPLIT + lane_index() % PAGES_OF_SPLIT;
        bool there = at >= seen.first / PAGE && at <= (seen.end - 1) / PAGE;
        page = there ? job.cache.template block<early>(unit.slot, at) : -1;
    }

    DEVICE void copy(unsigned char *to, const Number *cache) {
        constexpr unsigned pieces = PIECES<Number, D>, NUMBERS = 16 / sizeof(Number), LINES = PAGE / KEYS<D>;
        int block = __shfl_sync(ALL_LANES, page, unsigned(tile) / LINES % PAGES_OF_SPLIT);
        unsigned lane = opaque(lane_index()), line = unsigned(tile) % LINES * KEYS<D>;
        const Number *from = cache + job.cache.start(block, kv_head);
        if constexpr (WARP % pieces == 0) {
            if (block >= 0 && job.cache.head_dim == D && seen.first <= tile * KEYS<D> &&
                (tile + 1) * KEYS<D> <= seen.end)
                return copy_whole(to, from + (line + lane / pieces % (WARP / pieces)) * D + lane % pieces * NUMBERS, lane);
        }
        int dim = block < 0 ? 0 : job.cache.head_dim;
        from += line * dim;
        // Positions that are not seen become zeros: what the cache holds there may be no number, and 0 times that is none.
        UNROLL
        for (unsigned i = 0; i < KEYS<D> * pieces / WARP; i++) {
            unsigned key = (i * WARP + lane) / pieces, piece = (i * WARP + lane) % pieces;
            bool there = int(NUMBERS * piece) < dim && seen.has(tile * KEYS<D> + key);
            copy_async16(to + 16 * piece_at<pieces>(key, piece), from + key * dim + NUMBERS * piece, there);
        }
    }

    // Lines of D numbers that are all there; `from` is the lane's piece of the first that it copies.
    DEVICE void copy_whole(unsigned char *to, const Number *from, unsigned lane) const {
        constexpr unsigned pieces = PIECES<Number, D>, at_once = WARP / pieces;
        unsigned key = lane / pieces % at_once, piece = lane % pieces, first = piece_at<pieces>(key, piece);
        UNROLL
        for (unsigned i = 0; i < KEYS<D> / at_once; i++) {
            unsigned at = piece_at<pieces>(key + i * at_once, piece);
            // The same, where a compiler sees what is known beforehand.
            if constexpr (pieces % 8 == 0) at = (first ^ i * at_once % 8) + i * at_once * pieces;
            copy_async16(to + 16 * at, from + i * at_once * D, true);
        }
    }
};

// The first numbers of two pairs of bf16, and the second ones, as halves: what a cache of e4m3 is widened to.
DEVICE uint32_t lower_halves(uint32_t first, uint32_t second) {
    return to_half_pair(within_half(low_float(first)), within_half(low_float(second)));
}
DEVICE uint32_t upper_halves(uint32_t first, uint32_t second) {
    return to_half_pair(within_half(high_float(first)), within_half(high_float(second)));
}

// Sixteen numbers in the order that a product with e4m3 has them.
DEVICE void alternate(Bytes16 &first, Bytes16 &second) {
    Bytes16 a = first, b = second;
    first = Bytes16{lower_halves(a.x, a.y), lower_halves(a.z, a.w), lower_halves(b.x, b.y), lower_halves(b.z, b.w)};
    second = Bytes16{upper_halves(a.x, a.y), upper_halves(a.z, a.w), upper_halves(b.x, b.y), upper_halves(b.z, b.w)};
}

// The queries of a group as the left factor of products, with zeros beyond the group: in registers where these suffice,
// else in shared memory.
template <class Number, int D> struct Queries {
    static constexpr bool STAGED = D > 128, ALTERNATE = sizeof(Number) == 1;
    unsigned char *stage;
    uint32_t held[STAGED ? 1 : D / 16][4];

    // By all threads of the block.
    DEVICE void load(const bf16 *from, int group, int head_dim) {
        if constexpr (STAGED) {
            for (int at = threadIdx.x; at < GROUP * D / 16; at += THREADS) {
                int head = at / (D / 16), piece = at % (D / 16) * 2;
                const bf16 *sixteen = from + head * head_dim + 8 * piece;
                Bytes16 first{0, 0, 0, 0}, second{0, 0, 0, 0};
                if (head < group && 8 * piece < head_dim) first = load16(sixteen);
                if (head < group && 8 * piece + 8 < head_dim) second = load16(sixteen + 8);
                if (ALTERNATE) alternate(first, second);
                store16(stage + 16 * piece_at<D / 8>(head, piece), first);
                store16(stage + 16 * piece_at<D / 8>(head, piece + 1), second);
            }
            __syncthreads();
        } else if constexpr (ALTERNATE) {
            int lane = lane_index();
            UNROLL
            for (int at = 0; at < D / 8; at++) {
                int head = lane / 4 + at % 2 * 8, column = at / 2 * 16 + lane % 4 * 4;
                bool there = head < group && column < head_dim;
                Bytes8 four = there ? load8(from + head * head_dim + column) : Bytes8{0, 0};
                held[at / 2][at % 2] = lower_halves(four.x, four.y);
                held[at / 2][at % 2 + 2] = upper_halves(four.x, four.y);
            }
        } else {
            int lane = lane_index();
            UNROLL
            for (int at = 0; at < D / 4; at++) {
                int head = lane / 4 + at % 2 * 8, column = at / 4 * 16 + at % 4 / 2 * 8 + lane % 4 * 2;
                bool there = head < group && column < head_dim;
                const bf16 *pair = from + head * head_dim + column;
                held[at / 4][at % 4] = there ? *reinterpret_cast<const uint32_t *>(pair) : 0;
            }
        }
    }

    DEVICE const uint32_t (&left(unsigned lane, int k))[4] {
        if constexpr (STAGED) load_matrices(held[0], left_lines<D / 8>(stage, lane, 0, 2 * k));
        return held[STAGED ? 0 : k];
    }

    DEVICE void multiply(float (&scores)[1][EIGHTS<D>][4], const unsigned char *keys) {
        unsigned lane = opaque(lane_index());
        UNROLL
        for (int at = 0; at < 4 * EIGHTS<D>; at++) scores[0][at / 4][at % 4] = 0.0f;
        UNROLL
        for (int k = 0; k < PIECES<Number, D> / 2; k++) {
            UNROLL
            for (int eight = 0; eight < EIGHTS<D>; eight += 2) {
                uint32_t right[4];
                load_matrices(right, right_lines<PIECES<Number, D>>(keys, lane, 8 * eight, 2 * k));
                if constexpr (ALTERNATE) {
                    UNROLL
                    for (int half = 0; half < 2; half++) {
                        uint32_t first[2], second[2];
                        widen_alternate(first, right[half]);
                        widen_alternate(second, right[2 + half]);
                        const uint32_t(&queries)[4] = left(lane, 2 * k + half);
                        multiply_add_half(scores[0][eight], queries, first[0], first[1]);
                        multiply_add_half(scores[0][eight + 1], queries, second[0], second[1]);
                    }
                } else {
                    const uint32_t(&queries)[4] = left(lane, k);
                    multiply_add(scores[0][eight], queries, right[0], right[1]);
                    multiply_add(scores[0][eight + 1], queries, right[2], right[3]);
                }
            }
        }
    }
};

template <int D> DEVICE void hide_unseen(float (&scores)[1][EIGHTS<D>][4], const Range &seen, int tile) {
    UNROLL
    for (int at = 0; at < 4 * EIGHTS<D>; at++) {
        int position = tile * KEYS<D> + at / 4 * 8 + lane_index() % 4 * 2 + at % 2;
        if (!seen.has(position)) scores[0][at / 4][at % 4] = -INFINITY;
    }
}

// Warp 0 gets the sums of all warps, added in the order 3, 2, 1, 0.
template <class Number, int D> DEVICE void gather(Rows<Number, D, 1> &rows, unsigned char *exchange) {
    SHARED float tops[WARPS][GROUP], sums[WARPS][GROUP];
    int lane = lane_index(), warp = warp_index();
    if (lane % 4 == 0) {
        UNROLL
        for (int half = 0; half < 2; half++) {
            tops[warp][lane / 4 + 8 * half] = rows.top[0][half];
            sums[warp][lane / 4 + 8 * half] = rows.sum[0][half];
        }
    }
    __syncthreads();
    UNROLL
    for (int half = 0; half < 2; half++) {
        int head = lane / 4 + 8 * half;
        float top = -INFINITY, sum = 0.0f, factor = 0.0f;
        for (int other = 0; other < WARPS; other++) top = fmaxf(top, tops[other][head]);
        for (int other = 0; other < WARPS; other++) sum += sums[other][head] * power_of_two(tops[other][head] - top);
        factor = power_of_two(rows.top[0][half] - top);
        UNROLL
        for (int n = 0; n < D / 8; n++) rows.out[0][n][2 * half] *= factor, rows.out[0][n][2 * half + 1] *= factor;
        rows.top[0][half] = top;
        rows.sum[0][half] = sum;
    }
    float *mine = reinterpret_cast<float *>(exchange) + 4 * lane;
    // Not written out: it would be long.
    ROLLED
    for (int giver = WARPS - 1; giver > 0; giver--) {
        if (warp == giver) {
            UNROLL
            for (int n = 0; n < D / 8; n++) store_four(mine + n * 4 * WARP, rows.out[0][n]);
        }
        __syncthreads();
        if (warp == giver - 1) {
            UNROLL
            for (int n = 0; n < D / 8; n++) {
                float other[4];
                load_four(other, mine + n * 4 * WARP);
                UNROLL
                for (int at = 0; at < 4; at++) rows.out[0][n][at] += other[at];
            }
        }
    }
}

// Warp 0 writes what a unit has found, or the row itself where it was the only one.
template <class Number, int D> DEVICE void put(const Rows<Number, D, 1> &rows, const Decode<Number> &job, const Unit &unit, bool whole) {
    int lane = lane_index(), group = job.group(), dim = job.cache.head_dim;
    bf16 *out = job.out + job.head(unit.row, unit.kv_head) * dim;
    size_t found = job.head(unit.item, unit.kv_head);
    float *sums = job.sums + found * dim, *tops = job.tops + found * 2;
    UNROLL
    for (int half = 0; half < 2; half++) {
        int head = lane / 4 + 8 * half;
        if (head >= group) continue;
        float top = rows.top[0][half], sum = rows.sum[0][half];
        float factor = 1.0f;
        if (whole) factor = last_factor(top, sum, job.sinks, unit.kv_head * group + head) * job.cache.value_scale;
        if (!whole && lane % 4 == 0) tops[2 * head] = top, tops[2 * head + 1] = sum;
        UNROLL
        for (int n = 0; n < D / 8; n++) {
            int column = rows.column(n), at = head * dim + column;
            if (column >= dim) continue;
            float first = rows.pair(0, n, half, 0), second = rows.pair(0, n, half, 1);
            if (whole) {
                *reinterpret_cast<uint32_t *>(out + at) = to_bf16_pair(first * factor, second * factor);
            } else {
                store8(sums + at, Bytes8{float_to_bits(first), float_to_bits(second)});
            }
        }
    }
}

// Loads the queries of a unit, or writes zeros for a row that is padding. What is seen.
template <class Number, int D> DEVICE Range begin(const Decode<Number> &job, const Unit &unit, Queries<Number, D> &queries) {
    size_t first = job.head(unit.row, unit.kv_head) * job.cache.head_dim;
    if (!unit.seen.none()) {
        queries.load(job.queries + first, job.group(), job.cache.head_dim);
    } else if (unit.row >= 0 && unit.position < 0) {
        int count = job.group() * job.cache.head_dim;
        for (int at = threadIdx.x; at < count; at += THREADS) job.out[first + at] = bf16{0};
    }
    return unit.seen;
}

template <class Number, int D> DEVICE void decode(const Decode<Number> &job) {
    DYNAMIC_SHARED(memory);
    let_next_start();
    Rule rule = rule_of(job.scale, job.soft_cap, job.window);
    Turns turns(min(load_fresh(job.n_work), job.most_work) * job.cache.kv_heads);
    int halves = job.group() > 8 ? 2 : 1;
    constexpr int PENDING = 2 * RING<Number, D> - 1, RING_BYTES = 2 * RING<Number, D> * TILE_BYTES<Number, D>;
    unsigned char *exchange = memory + WARPS * RING_BYTES;
    Loader<Number, D> loader(job, memory + warp_index() * RING_BYTES, turns);
    Queries<Number, D> queries;
    queries.stage = exchange + D / 8 * WARP * 16;
    for (int i = 0; i < RING<Number, D>; i++) {
        if (loader.is_fresh()) wait_for_earlier();
        loader.load_keys();
        loader.load_values();
    }
    wait_for_earlier();
    for (int index = turns.first(); index < turns.units; index = turns.after(index)) {
        Range seen = begin(job, unit_at(job, index), queries);
        if (seen.none()) continue;
        Rows<Number, D, 1> rows;
        rows.begin();
        for (int tile = first_tile<D>(seen); tile * KEYS<D> < seen.end; tile += WARPS) {
            float scores[1][EIGHTS<D>][4];
            copies_wait<PENDING>();
            __syncwarp();
            queries.multiply(scores, loader.keys());
            // The loads that come next go where these keys were.
            __syncwarp();
            const unsigned char *values = loader.values();
            loader.load_keys();
            cap(scores, rule);
            if (!seen.has(tile * KEYS<D>) || !seen.has(tile * KEYS<D> + KEYS<D> - 1)) hide_unseen<D>(scores, seen, tile);
            rows.weigh(scores, rule.unit, halves);
            copies_wait<PENDING>();
            __syncwarp();
            rows.add(scores, values, unsigned(opaque(lane_index())));
            __syncwarp();
            loader.load_values();
        }
        rows.end(rule.unit);
        gather(rows, exchange);
        // Read once more, for there are no registers to keep it in.
        Unit unit = unit_at(job, index);
        Range splits = splits_seen(unit.position, job.window);
        bool whole = splits.end - splits.first == 1;
        if (warp_index() == 0) put(rows, job, unit, whole);
        if (!whole) join(job, unit, splits);
    }
}

} // namespace

#define DECODE(name, Number, D, blocks)                                                                                \
    KERNEL_ABREAST(THREADS, blocks)                                                                                    \
    name(bf16 *out, float *sums, float *tops, unsigned *counters, const bf16 *queries, const Number *keys,             \
         const Number *values, const int *tables, const int *slots, const int *positions, const int *work,             \
         const int *n_work, const float *sinks, int rows, int most_work, int slot_count, int table_stride,             \
         int block_count, int heads, int kv_heads, int head_dim, int window, float scale, float soft_cap,              \
         float value_scale) {                                                                                          \
        Cache<Number> cache{keys, values, tables, slot_count, table_stride, block_count, kv_heads, head_dim,           \
                            value_scale};                                                                              \
        decode<Number, D>(Decode<Number>{out, sums, tops, counters, queries, cache, slots, positions, work, n_work,    \
                                         sinks, rows, most_work, heads, window, scale, soft_cap});                     \
    }                                                                                                                  \
    EXPORT(name)

// How many blocks a multiprocessor of an H200 has room for: see `blocks_at_once` of the launcher.
DECODE(attention_decode_32, bf16, 32, 4)
DECODE(attention_decode_64, bf16, 64, 3)
DECODE(attention_decode_96, bf16, 96, 3)
DECODE(attention_decode_128, bf16, 128, 3)
DECODE(attention_decode_256, bf16, 256, 2)
// These want heads of a multiple of 16.
DECODE(attention_decode_32_e4m3, e4m3, 32, 4)
DECODE(attention_decode_64_e4m3, e4m3, 64, 3)
DECODE(attention_decode_96_e4m3, e4m3, 96, 3)
DECODE(attention_decode_128_e4m3, e4m3, 128, 3)
DECODE(attention_decode_256_e4m3, e4m3, 256, 2)

// For tests, of what a host must know as well: i32 [n][4] of the first position that a row at each position sees, the
// first of its splits and their end, and how many positions it sees of the last.
KERNEL(THREADS) attention_splits(int *out, const int *positions, int n, int window) {
    wait_for_earlier();
    let_next_start();
    for (int i = threadIdx.x; i < n; i += THREADS) {
        Range splits = splits_seen(positions[i], window);
        Range last = seen_of_split(positions[i], window, splits.end - 1);
        out[4 * i] = first_seen(positions[i], window);
        out[4 * i + 1] = splits.first;
        out[4 * i + 2] = splits.end;
        out[4 * i + 3] = last.end - last.first;
    }
}
EXPORT(attention_splits)
