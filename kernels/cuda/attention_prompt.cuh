// What both kernels of prompts' attention share, of which each has its own matrix units: what a block does, and how its
// results leave it. Keys and values of the prompts are in the paged cache already (see attention.cuh).
//
//   queries   bf16 [rows][heads * head_dim]; out alike
//   tiles     i32 [n_tiles][4]: the first row, how many rows (tokens), the position of the first, the slot. The rows
//             have consecutive positions; times the heads of a group they are at most those of a block's product
//
// Grid (kv_heads, n_tiles). A block's product has a row for each token and query head of the group, the heads of one
// token side by side.
#pragma once

#include "attention.cuh"

namespace attention {

template <class Number> struct Prompt {
    bf16 *out;
    const bf16 *queries;
    Cache<Number> cache;
    const int *tiles;
    const float *sinks;
    int rows, heads, window;
    float scale, soft_cap;
};

// What a block of so many warps, with so many rows each, does: some tokens of one sequence, and one KV head with its
// `group` of query heads. It lies in shared memory, for registers are few.
template <int warps, int of_warp> struct Task {
    static constexpr int ROWS = warps * of_warp;

    int first_row, tokens, start, slot, kv_head, group;
    // What some row sees.
    Range seen;
    Rule rule;
    // Positions of each warp's first row and of its last; -1 where there is none.
    int lowest[warps], highest[warps];

    // Of the product's rows, which are tokens, and their position; -1 for those that are none.
    DEVICE bool there(int row) const { return row < tokens * group; }
    DEVICE int position(int row) const { return there(row) ? start + row / group : -1; }
    // The query head of a row, of all heads of all rows.
    DEVICE size_t head(int row, int heads) const {
        return size_t(first_row + row / group) * heads + kv_head * group + row % group;
    }
    // Of all positions from `first` up to `end`: does a row of this warp see one, and do all rows see all?
    DEVICE bool sees(int warp, int first, int end) const {
        return first <= highest[warp] && end > first_seen(lowest[warp], rule.window);
    }
    DEVICE bool sees_all(int warp, int first, int end) const {
        return end <= lowest[warp] + 1 && first >= first_seen(highest[warp], rule.window);
    }

    // By all threads; a barrier stands behind it. A tile that is none, for it leads outside the rows, has no tokens.
    template <class Number> DEVICE void begin(const Prompt<Number> &job) {
        const int *tile = job.tiles + 4 * blockIdx.y;
        if (threadIdx.x == 0) {
            group = job.heads / job.cache.kv_heads;
            int most = tile[0] < 0 || tile[2] < 0 ? 0 : min(ROWS / group, job.rows - tile[0]);
            tokens = max(min(tile[1], most), 0);
            first_row = tile[0], start = tokens == 0 ? 0 : tile[2], slot = tile[3];
            kv_head = blockIdx.x;
            seen = Range{first_seen(start, job.window), start + tokens};
            rule = rule_of(job.scale, job.soft_cap, job.window);
            for (int warp = 0; warp < warps; warp++) {
                int first = warp * of_warp, last = min(first + of_warp, tokens * group) - 1;
                lowest[warp] = position(first);
                highest[warp] = first > last ? -1 : position(last);
            }
        }
        __syncthreads();
    }
};

// Makes minus infinity of scores of what a row does not see, in a tile of N times eight positions from `first`.
template <int warps, int of_warp, int M, int N>
DEVICE void hide_unseen(float (&scores)[M][N][4], const Task<warps, of_warp> &task, int first) {
    int widest = task.rule.window == 0 ? INT32_MAX : task.rule.window, key = first + lane_index() % 4 * 2;
    UNROLL
    for (int i = 0; i < 2 * M; i++) {
        int position = task.position(warp_index() * of_warp + 8 * i + lane_index() / 4);
        UNROLL
        for (int at = 0; at < 2 * N; at++) {
            int distance = position - key - at / 2 * 8 - at % 2;
            if (distance < 0 || distance >= widest) scores[i / 2][at / 2][i % 2 * 2 + at % 2] = -INFINITY;
        }
    }
}

// The rows of a warp, after the last tile.
template <class Number, int warps, int of_warp, int D, int M>
DEVICE void put(const Prompt<Number> &job, const Task<warps, of_warp> &task, Rows<bf16, D, M> &rows) {
    rows.end(task.rule.unit);
    UNROLL
    for (int at = 0; at < 2 * M; at++) {
        int row = warp_index() * of_warp + 8 * at + lane_index() / 4, i = at / 2, half = at % 2;
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

} // namespace attention

// A kernel of this name: `prompt<Number, D>` of whoever includes this, by blocks of so many threads, so many abreast.
#define PROMPT_KERNEL(name, Number, D, threads, blocks)                                                                \
    KERNEL_ABREAST(threads, blocks)                                                                                    \
    name(bf16 *out, const bf16 *queries, const Number *keys, const Number *values, const int *tables,                  \
         const int *tiles, const float *sinks, int rows, int slot_count, int table_stride, int block_count, int heads, \
         int kv_heads, int head_dim, int window, float scale, float soft_cap, float value_scale) {                     \
        Cache<Number> cache{keys, values, tables, slot_count, table_stride, block_count, kv_heads, head_dim,           \
                            value_scale};                                                                              \
        prompt<Number, D>(Prompt<Number>{out, queries, cache, tiles, sinks, rows, heads, window, scale, soft_cap});    \
    }                                                                                                                  \
    EXPORT(name)
