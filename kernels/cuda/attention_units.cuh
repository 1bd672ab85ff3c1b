// Units of the work of decode attention (attention_decode.cu), and how what they have found becomes rows.
//
// A unit is an entry of `work` and a KV head. The grid may have any size, for the blocks take the units, or a few
// neighbours, in turn; `n_work` lies in device memory, so that a captured launch serves any lengths. Who finishes the
// last of sixteen splits of a row adds them up, and who finishes the last of these sums puts the row together, both in
// order of splits.
#pragma once

#include "attention.cuh"

namespace attention {

// Heads of a group at most.
constexpr int GROUP = 16;
// Splits that are added up together.
constexpr int TOGETHER = 16;
// Sums that a thread has under way then.
constexpr int AT_ONCE = 8;

template <class Number> struct Decode {
    bf16 *out;
    float *sums, *tops;
    unsigned *counters;
    const bf16 *queries;
    Cache<Number> cache;
    const int *slots, *positions, *work, *n_work;
    const float *sinks;
    int rows, most_work, heads, window;
    float scale, soft_cap;

    DEVICE int group() const { return heads / cache.kv_heads; }
    // The first head of a KV head's group, of all heads of all rows (or of all entries of `work`).
    DEVICE size_t head(int row, int kv_head) const { return size_t(row) * heads + kv_head * group(); }
};

// A KV head of an entry of `work`. One that leads to no row has nothing that is seen.
struct Unit {
    int item, kv_head, row, position, slot, split;
    Range seen;
};

// `early`: before the kernel has waited for those before it.
template <bool early = false, class Number> DEVICE Unit unit_at(const Decode<Number> &job, int index) {
    Unit unit;
    unit.item = index / job.cache.kv_heads;
    unit.kv_head = index % job.cache.kv_heads;
    unit.row = load_int<early>(job.work + 2 * unit.item);
    unit.split = load_int<early>(job.work + 2 * unit.item + 1);
    bool there = unsigned(unit.row) < unsigned(job.rows) && unit.split >= 0;
    // Both at once: each takes as long as the way to the second cache.
    unit.position = there ? load_int<early>(job.positions + unit.row) : -1;
    unit.slot = there ? load_int<early>(job.slots + unit.row) : -1;
    if (!there) unit.row = -1;
    unit.seen = seen_of_split(unit.position, job.window, max(unit.split, 0));
    return unit;
}

// ------------------------------------------------------------------------------------------------- from units to rows

// Have all `count` that use this counter finished, with this block? By all threads, once each of them has written.
DEVICE bool is_last(unsigned *counter, int count) {
    SHARED int last;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        last = atomicAdd(counter, 1u) == unsigned(count - 1);
        if (last) *counter = 0;
    }
    __syncthreads();
    if (!last) return false;
    __threadfence();
    return true;
}

// Entries of `work` whose sums belong together: the first, and each `step` further on.
struct Parts {
    int first, step, count;
};

// Some numbers of a row, relative to the power of two of its largest score so far; and the sum of its weights.
struct Sum {
    float top, weights, of[4];
};

// Adds up to AT_ONCE more, loads of which are all under way at once. Where there are fewer, the last is loaded again.
DEVICE void add_some(Sum &all, const float *tops, size_t step, const float *sums, size_t stride, int count) {
    Bytes16 part[AT_ONCE];
    float top[AT_ONCE], weights[AT_ONCE];
    UNROLL
    for (int i = 0; i < AT_ONCE; i++) {
        int s = min(i, count - 1);
        part[i] = load_fresh16(sums + s * stride);
        top[i] = load_fresh(tops + s * step);
        weights[i] = load_fresh(tops + s * step + 1);
    }
    float largest = all.top;
    UNROLL
    for (int i = 0; i < AT_ONCE; i++) largest = fmaxf(largest, top[i]);
    float shrink = power_of_two(all.top - largest);
    all.top = largest;
    all.weights *= shrink;
    UNROLL
    for (int j = 0; j < 4; j++) all.of[j] *= shrink;
    UNROLL
    for (int i = 0; i < AT_ONCE; i++) {
        float weight = i < count ? power_of_two(top[i] - largest) : 0.0f;
        all.weights += weight * weights[i];
        all.of[0] += weight * bits_to_float(part[i].x), all.of[1] += weight * bits_to_float(part[i].y);
        all.of[2] += weight * bits_to_float(part[i].z), all.of[3] += weight * bits_to_float(part[i].w);
    }
}

// Adds up what was found of a row, by all threads, and in the order of parts: to the row itself where that is `all`,
// else to what stands for its first part from now on.
template <class Number> DEVICE void add_up(const Decode<Number> &job, const Unit &unit, const Parts &parts, bool all) {
    SHARED float largest[GROUP], weights[GROUP];
    int group = job.group(), dim = job.cache.head_dim;
    size_t found = job.head(parts.first, unit.kv_head);
    float *tops = job.tops + found * 2, *sums = job.sums + found * dim;
    size_t step = 2 * size_t(job.heads) * parts.step, stride = size_t(job.heads) * dim * parts.step;
    for (int at = 4 * threadIdx.x; at < group * dim; at += 4 * THREADS) {
        int head = at / dim;
        Sum sum{-INFINITY, 0.0f, {0.0f, 0.0f, 0.0f, 0.0f}};
        for (int from = 0; from < parts.count; from += AT_ONCE)
            add_some(sum, tops + from * step + 2 * head, step, sums + from * stride + at, stride, parts.count - from);
        if (all) {
            float factor = last_factor(sum.top, sum.weights, job.sinks, unit.kv_head * group + head);
            UNROLL
            for (int i = 0; i < 4; i++) sum.of[i] *= factor * job.cache.value_scale;
            store_four(job.out + job.head(unit.row, unit.kv_head) * dim + at, sum.of);
        } else {
            store_four(sums + at, sum.of);
            if (at % dim == 0) largest[head] = sum.top, weights[head] = sum.weights;
        }
    }
    if (all) return;
    // Everyone has read those of the parts.
    __syncthreads();
    for (int head = threadIdx.x; head < group; head += THREADS) {
        tops[2 * head] = largest[head];
        tops[2 * head + 1] = weights[head];
    }
}

// For a unit of a row that has others, after warp 0 has put what it found. Whoever finishes the last of TOGETHER splits
// adds these up, and whoever finishes the last of those sums, the row: of a long context one block would read for long
// while all others wait. Which are added up together follows from what the row sees alone.
template <class Number> DEVICE void join(const Decode<Number> &job, const Unit &unit, const Range &splits) {
    int count = splits.end - splits.first, before = unit.split - splits.first, first = unit.item - before;
    if (first < 0 || first + count > job.most_work) return;
    int begin = before / TOGETHER * TOGETHER, groups = (count + TOGETHER - 1) / TOGETHER;
    Parts parts{first + begin, 1, min(TOGETHER, count - begin)};
    // Splits count at their first entry; sums, whose row has then more than one, at its second.
    int counter = parts.first;
    ROLLED
    for (bool all = groups == 1;; all = true) {
        if (!is_last(job.counters + size_t(counter) * job.cache.kv_heads + unit.kv_head, parts.count)) return;
        add_up(job, unit, parts, all);
        if (all) return;
        parts = Parts{first, TOGETHER, groups};
        counter = first + 1;
    }
}

} // namespace attention
