// Which rows of a step an expert has, for the products that go through all chosen experts in one launch.
//
// A pair is a choice of a row: pair p is choice p % top_k of row p / top_k. Pairs are listed by expert, and by row
// within one:
//
//     list     i32 [pairs]        | pairs of expert 0 | pairs of expert 1 | ... | what rows of padding leave
//     offsets  i32 [experts + 1]  where each begins, and where the last ends
//
// How many pairs an expert has is known to the device alone, so a launch has blocks for as many units, each up to so
// many pairs of one expert, as there can be; those past the last do nothing.
#pragma once
#include "device.cuh"

constexpr int MOST_EXPERTS = 256;

// Some pairs of an expert, by their places in the list.
struct Unit {
    int expert, first, pairs;
};

// Unit `index` of up to `most` pairs each; no pairs where there is none. Every lane of a warp gets it.
DEVICE Unit find_unit(const int *offsets, int experts, int most, int index) {
    constexpr int each = MOST_EXPERTS / WARP;
    // A lane has some experts side by side; it counts their units.
    int begins[each + 1], units = 0, first = lane_index() * each;
    UNROLL for (int i = 0; i <= each; i++) begins[i] = offsets[min(first + i, experts)];
    UNROLL for (int i = 0; i < each; i++) units += (begins[i + 1] - begins[i] + most - 1) / most;
    int before = units;
    for (int distance = 1; distance < WARP; distance *= 2) {
        int lower = __shfl_up_sync(ALL_LANES, before, distance);
        if (lane_index() >= distance) before += lower;
    }
    before -= units;
    Unit unit{0, 0, 0};
    UNROLL for (int i = 0; i < each; i++) {
        int of_expert = (begins[i + 1] - begins[i] + most - 1) / most, turn = index - before;
        if (turn >= 0 && turn < of_expert) {
            int at = begins[i] + turn * most;
            unit = Unit{first + i, at, min(most, begins[i + 1] - at)};
        }
        before += of_expert;
    }
    // One lane has found it, or none.
    int finder = __ffs(int(__ballot_sync(ALL_LANES, unit.pairs > 0))) - 1;
    if (finder < 0) return Unit{0, 0, 0};
    return Unit{__shfl_sync(ALL_LANES, unit.expert, finder), __shfl_sync(ALL_LANES, unit.first, finder),
                __shfl_sync(ALL_LANES, unit.pairs, finder)};
}
