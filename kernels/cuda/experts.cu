// Mixtures of experts, all but the products (gemm_skinny.cu and gemm_tiled.cu): which experts a row goes through, the
// list of pairs by expert (experts.cuh), and the sum of what comes of a row's choices.
//
//   choose    logits f32 [rows][experts]       -> chosen i32, shares f32 [rows][top_k]
//   list      chosen i32 [rows][top_k]         -> list i32 [rows * top_k], offsets i32 [experts + 1]
//   combine   added f32 [rows * top_k][hidden] -> out f32 [rows][hidden]
//
// Choices come with the largest logit first, and of equals with the lower expert first. Rows of padding choose none:
// -1. All is in an order that follows from the row alone.
#include "experts.cuh"

namespace {

constexpr int FEW_ROWS = 64;   // that one kernel both chooses for and lists
constexpr int MOST_CHOICES = 16;
constexpr int EACH = MOST_EXPERTS / WARP; // logits of a lane
constexpr int MOST_WARPS = 32;

struct Router {
    const float *logits;
    const int *positions;
    int *chosen;
    float *shares;
    int rows, experts, top_k, of_chosen;
};

// Larger for larger floats, in the order that IEEE 754 gives to all of them; and back.
DEVICE uint32_t rank_of(float number) {
    uint32_t bits = float_to_bits(number);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
}
DEVICE float of_rank(uint32_t rank) { return bits_to_float(rank >> 31 ? rank & 0x7fffffffu : ~rank); }

DEVICE uint64_t warp_max_key(uint64_t key) {
    for (int distance = WARP / 2; distance > 0; distance /= 2) {
        uint64_t other = __shfl_xor_sync(ALL_LANES, key, distance);
        key = other > key ? other : key;
    }
    return key;
}

DEVICE int warp_count(int count) {
    for (int distance = WARP / 2; distance > 0; distance /= 2) count += __shfl_xor_sync(ALL_LANES, count, distance);
    return count;
}

// What the experts of a row have to do with it: lane c gets choice c and its share of the sum.
struct Choice {
    int expert;
    float share;
};

// By one warp. A choice is the largest of keys that have the logit's rank above and the expert, from the last, below.
DEVICE Choice choose(const Router &router, int row) {
    const float *logits = router.logits + size_t(row) * router.experts;
    Choice mine{-1, 0.0f};
    if (router.positions[row] < 0) return mine;
    uint32_t ranks[EACH];
    UNROLL for (int i = 0; i < EACH; i++) {
        int expert = lane_index() + WARP * i;
        ranks[i] = expert < router.experts ? rank_of(logits[expert]) : 0;
    }
    uint32_t left = 0; // a bit for each of the lane's experts that is not chosen yet
    UNROLL for (int i = 0; i < EACH; i++) left |= uint32_t(lane_index() + WARP * i < router.experts) << i;
    float largest = 0.0f, all = 0.0f;
    for (int choice = 0; choice < router.top_k; choice++) {
        uint64_t key = 0;
        UNROLL for (int i = 0; i < EACH; i++) {
            uint64_t candidate = uint64_t(ranks[i]) << 32 | uint32_t(~(lane_index() + WARP * i));
            if ((left >> i & 1) && candidate > key) key = candidate;
        }
        key = warp_max_key(key);
        int expert = int(~uint32_t(key));
        float logit = of_rank(uint32_t(key >> 32));
        if (choice == 0) {
            largest = logit;
            UNROLL for (int i = 0; i < EACH; i++)
                if (left >> i & 1) all += expf(of_rank(ranks[i]) - largest);
        }
        if (expert % WARP == lane_index()) left &= ~(1u << expert / WARP);
        if (choice == lane_index()) mine = Choice{expert, expf(logit - largest)};
    }
    mine.share /= warp_sum(router.of_chosen ? mine.share : all);
    return mine;
}

// Lists the pairs of one expert, by a block: each warp looks through one stretch of all pairs, twice.
DEVICE void list_expert(const int *chosen, int pairs, int expert, int experts, int *list, int *offsets) {
    SHARED int lower_of[MOST_WARPS], own_of[MOST_WARPS];
    int warps = int(blockDim.x) / WARP, stretch = (pairs + int(blockDim.x) - 1) / int(blockDim.x) * WARP;
    int begin = min(warp_index() * stretch, pairs), end = min(begin + stretch, pairs), lower = 0, own = 0;
    UNROLL_4 for (int pair = begin + lane_index(); pair < end; pair += WARP) {
        int other = chosen[pair];
        lower += other >= 0 && other < expert;
        own += other == expert;
    }
    lower = warp_count(lower);
    own = warp_count(own);
    if (lane_index() == 0) lower_of[warp_index()] = lower, own_of[warp_index()] = own;
    __syncthreads();
    lower = lane_index() < warps ? lower_of[lane_index()] : 0;
    own = lane_index() < warps ? own_of[lane_index()] : 0;
    int start = warp_count(lower), to = start + warp_count(lane_index() < warp_index() ? own : 0);
    own = warp_count(own);
    if (threadIdx.x == 0) {
        offsets[expert] = start;
        if (expert == experts - 1) offsets[experts] = start + own;
    }
    if (own == 0) return;
    for (int first = begin; first < end; first += WARP) {
        int pair = first + lane_index();
        bool mine = pair < end && chosen[pair] == expert;
        uint32_t all = __ballot_sync(ALL_LANES, mine);
        if (mine) list[to + __popc(all & ((1u << lane_index()) - 1))] = pair;
        to += __popc(all);
    }
}

} // namespace

// Grid (ceil(rows / 8)): a warp for each row.
KERNEL(256)
experts_choose(const float *logits, const int *positions, int *chosen, float *shares, int rows, int experts, int top_k,
               int of_chosen) {
    wait_for_earlier();
    let_next_start();
    int row = int(blockIdx.x) * 8 + warp_index();
    if (row >= rows) return;
    Choice choice = choose(Router{logits, positions, chosen, shares, rows, experts, top_k, of_chosen}, row);
    if (lane_index() >= top_k) return;
    size_t pair = size_t(row) * top_k + lane_index();
    chosen[pair] = choice.expert;
    shares[pair] = choice.share;
}
EXPORT(experts_choose)

// Grid (experts).
KERNEL(1024) experts_list(const int *chosen, int *list, int *offsets, int pairs, int experts) {
    wait_for_earlier();
    let_next_start();
    list_expert(chosen, pairs, int(blockIdx.x), experts, list, offsets);
}
EXPORT(experts_list)

// Both, for up to 64 rows. Grid (experts): each block chooses for all rows, which takes less time than a second kernel.
KERNEL(1024)
experts_choose_and_list(const float *logits, const int *positions, int *chosen, float *shares, int *list, int *offsets,
                        int rows, int experts, int top_k, int of_chosen) {
    SHARED int all[FEW_ROWS * MOST_CHOICES];
    wait_for_earlier();
    let_next_start();
    Router router{logits, positions, chosen, shares, rows, experts, top_k, of_chosen};
    for (int row = warp_index(); row < rows; row += int(blockDim.x) / WARP) {
        Choice choice = choose(router, row);
        if (lane_index() >= top_k) continue;
        int pair = row * top_k + lane_index();
        all[pair] = choice.expert;
        if (blockIdx.x == 0) chosen[pair] = choice.expert, shares[pair] = choice.share;
    }
    __syncthreads();
    list_expert(all, rows * top_k, int(blockIdx.x), experts, list, offsets);
}
EXPORT(experts_choose_and_list)

// Of every row the sum of its choices' results times their shares, in the order of choice; 0 where it chose none. Grid
// (rows, ceil(hidden / 4 / threads)): four numbers for each thread.
KERNEL(256)
experts_combine(const float *added, const int *chosen, const float *shares, float *out, int top_k, int hidden) {
    wait_for_earlier();
    let_next_start();
    int column = 4 * int(blockIdx.y * blockDim.x + threadIdx.x);
    if (column >= hidden) return;
    size_t first = size_t(blockIdx.x) * top_k;
    float sum[4] = {};
    UNROLL_4 for (int choice = 0; choice < top_k; choice++) {
        if (chosen[first + choice] < 0) continue;
        float more[4], share = shares[first + choice];
        load_four(more, added + (first + choice) * hidden + column);
        for (int i = 0; i < 4; i++) sum[i] += share * more[i];
    }
    store_four(out + size_t(blockIdx.x) * hidden + column, sum);
}
EXPORT(experts_combine)
