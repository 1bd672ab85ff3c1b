// What the sampler's kernels share: their data, and what a token weighs.
//
//   sampler_scan    every step: checks the logits, applies edits, finds the likeliest; chooses for greedy rows
//   sampler_weigh   rows with a temperature: how much weight lies how far from the likeliest
//   sampler_draw    the same rows: finds the last token that the filters leave, and draws
//   sampler_rank    rows that report probabilities: the chosen token's
//
// Each is launched over (parts, rows); a part is 4096 tokens and one block. The block of a row that is last to arrive
// ends the row's work in this kernel. Blocks of other rows and other kinds of rows return at once.
//
//   logits    f32 [rows][vocab]        left as they were: what edits change is kept in `saved` and put back
//   rows      SamplerRow [rows]        what the host says of each row
//   choices   SamplerChoice [rows]     what it gets
//   last      i32 [slots]              chosen tokens, for the next step
//   counts    u16 [histories][vocab]   what penalties count: times generated; the top bit: in the prompt
//   masks     u32 []                   bits of tokens that may come; of one row ceil(vocab / 32)
//   edits     SamplerEdit []           of one row, no token twice
//   saved     f32 []                   beside the edits
//   scratch   of each row: State, Part [parts], likeliest u64 [parts][20], sums u64 [2048], list u64 [4096],
//             bins u32 [2048]; zeros before the first use
//
// Chance is one number of 53 bits, a function of seed, copy and position. Weights are whole numbers of 64 bits, so that
// sums do not depend on their order. Filters keep the likeliest so many, each in its own sense; so what all leave are
// all tokens from one on, in the order of likelihood.
#pragma once

#include "device.cuh"

namespace sampler {

constexpr int THREADS = 512;
constexpr int WARPS = THREADS / WARP;
constexpr int EACH = 8; // tokens of a thread
constexpr int PART = THREADS * EACH;
constexpr int PARTS = 128;     // most of them
constexpr int TOKEN_BITS = 19; // a vocabulary has at most 2^19 tokens
constexpr uint32_t TOKEN_MASK = (1u << TOKEN_BITS) - 1;
constexpr int TOLD = 20; // most likeliest tokens that are reported
// Bins of candidates by their distance from the likeliest, in units of the temperature: 32 of those. What is farther
// has a chance below 1.3e-14 and is no candidate.
constexpr int BINS = 2048;
constexpr float BINS_PER_UNIT = 64.0f;
constexpr int LIST = 4096;                        // candidates of one bin that are listed
constexpr float WEIGHT_ONE = 17592186044416.0f; // the likeliest candidate's weight, 2^44

// All of four bytes, in the order of `Row` in sampler.rs.
struct SamplerRow {
    int slot;                // where in `last` the token goes; -1: no row
    float temperature;       // 0: the likeliest, the lowest of equals
    uint32_t top_k;          // 0: all
    float top_p;             // 1: all
    float min_p;             // 0: all
    float repetition;        // penalties
    float presence;
    float frequency;
    uint32_t seed_low;
    uint32_t seed_high;
    uint32_t copy;
    uint32_t position;       // tokens that were generated before this
    int mask;                // where in `masks` the row's begins; -1: none
    int edits;               // where in `edits` the row's begin
    int edit_count;
    int history;             // which of `counts`; -1: no penalties, and nothing is counted
    int logprobs;            // so many of the likeliest are reported, besides the chosen; -1: none
    int given;               // a prompt's token, which is the choice whatever it is; `last` and counts stay. -1: none
    uint32_t spare[2];
};
static_assert(sizeof(SamplerRow) == 80, "as in Rust");

constexpr int CHOSEN = 0, NO_NUMBER = 1, NOTHING_ALLOWED = 2;

struct SamplerChoice {
    int token;  // -2 where none could be chosen
    int status; // one of the above
    float logprob;
    int rank; // 1: the likeliest
    int ids[TOLD];
    float logprobs[TOLD];
};
static_assert(sizeof(SamplerChoice) == 176, "as in Rust");

struct SamplerEdit {
    int token;
    float value; // added to the logit; -infinity bans the token
};

// A token and its logit in one number: of two, the likelier is the larger. 0 is none.
using Candidate = uint64_t;
constexpr Candidate BROKEN = ~Candidate(0); // a logit is no number

// How candidates of a row are found: all are drawn from; the last that is kept is in the window; or it must be searched
// for in the whole row.
constexpr int WAY_ALL = 0, WAY_WINDOW = 1, WAY_SEARCH = 2;

struct State {
    uint32_t arrived; // blocks of the running kernel
    uint32_t listed;
    int way;
    int first_bin, last_bin; // the window
    float best;              // the largest logit, after edits and penalties
    float raw_best, raw_log; // of the raw logits: the largest, and the log of the sum of exp(logit - largest)
    uint64_t total;          // weight of all candidates
    uint64_t above;          // weight of those in bins before the window
};

struct Part {
    Candidate best;
    uint64_t weight;
    float raw_best, raw_sum;
};

// One row's.
struct Job {
    float *logits;
    const SamplerRow *row;
    SamplerChoice *choice;
    int *last;
    uint16_t *counts;
    const uint32_t *mask;
    const SamplerEdit *edits;
    float *saved;
    State *state;
    int vocab;
    bool there;

    DEVICE bool is_given() const { return row->given >= 0; }
    // Is the token known without a draw?
    DEVICE bool greedy() const { return is_given() || !(row->temperature > 0.0f); }
    // The least weight that is kept; the likeliest candidate has it.
    DEVICE float least_weight() const { return fminf(row->min_p, 1.0f); }
    DEVICE int part_count() const { return (vocab + PART - 1) / PART; }
    // What follows the state in the scratch memory.
    DEVICE Part *parts() const { return reinterpret_cast<Part *>(state + 1); }
    DEVICE Candidate *likeliest() const { return reinterpret_cast<Candidate *>(parts() + part_count()); }
    DEVICE unsigned long long *sums() const {
        return reinterpret_cast<unsigned long long *>(likeliest() + part_count() * TOLD);
    }
    DEVICE Candidate *list() const { return reinterpret_cast<Candidate *>(sums() + BINS); }
    DEVICE uint32_t *bins() const { return reinterpret_cast<uint32_t *>(list() + LIST); }
};

#define SAMPLER_ARGUMENTS                                                                                              \
    float *logits, const SamplerRow *rows, SamplerChoice *choices, int *last, uint16_t *counts, const uint32_t *masks, \
        const SamplerEdit *edits, float *saved, unsigned char *scratch, int vocab, int slots, int histories,           \
        int mask_words, int edit_count
#define SAMPLER_JOB                                                                                                    \
    job_of(logits, rows, choices, last, counts, masks, edits, saved, scratch, vocab, slots, histories, mask_words,     \
           edit_count)

DEVICE bool within(int begin, int count, int length) { return begin >= 0 && count >= 0 && begin <= length - count; }

// The block's. Four lengths say what rows may refer to; a row that refers to more is none.
DEVICE Job job_of(SAMPLER_ARGUMENTS) {
    int index = blockIdx.y;
    const SamplerRow *row = rows + index;
    Job job;
    job.there = within(row->slot, 1, slots) && row->history < histories && row->given < vocab &&
                (row->mask < 0 || within(row->mask, (vocab + 31) / 32, mask_words)) &&
                (row->edit_count == 0 || within(row->edits, row->edit_count, edit_count));
    job.logits = logits + size_t(index) * vocab;
    job.row = row;
    job.choice = choices + index;
    job.last = last;
    job.counts = row->history >= 0 ? counts + size_t(row->history) * vocab : nullptr;
    job.mask = row->mask >= 0 ? masks + row->mask : nullptr;
    job.edits = edits + row->edits;
    job.saved = saved + row->edits;
    job.vocab = vocab;
    size_t bytes = sizeof(State) + job.part_count() * (sizeof(Part) + TOLD * sizeof(Candidate)) +
                   BINS * (sizeof(uint64_t) + sizeof(uint32_t)) + LIST * sizeof(Candidate);
    job.state = reinterpret_cast<State *>(scratch + index * bytes);
    return job;
}

// ------------------------------------------------------------------------------------------------------- candidates

DEVICE Candidate candidate_of(float logit, int token) {
    uint32_t bits = float_to_bits(logit);
    // Numbers' order as whole numbers': -0 before 0.
    uint32_t order = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return Candidate(order) << TOKEN_BITS | (TOKEN_MASK - uint32_t(token));
}

DEVICE int token_of(Candidate candidate) { return int(TOKEN_MASK - uint32_t(candidate & TOKEN_MASK)); }

DEVICE float logit_of(Candidate candidate) {
    uint32_t order = uint32_t(candidate >> TOKEN_BITS);
    return bits_to_float(order & 0x80000000u ? order & 0x7fffffffu : ~order);
}

// A logit as masks and penalties leave it; edits are in it already.
DEVICE float adjusted(const Job &job, int token, float logit) {
    if (job.mask && (job.mask[token / 32] >> (token % 32) & 1) == 0) return -INFINITY;
    if (!job.counts) return logit;
    uint32_t count = job.counts[token];
    if (count == 0) return logit;
    if (job.row->repetition != 1.0f) logit = logit > 0.0f ? logit / job.row->repetition : logit * job.row->repetition;
    uint32_t times = count & 0x7fff;
    // Rounded as the CPU's: likelihoods that are equal there are equal here.
    if (times > 0) logit -= job.row->presence + multiply_alone(job.row->frequency, float(times));
    return logit;
}

// What weighs candidates of a row.
struct Scale {
    float best, inverse;
};

DEVICE Scale scale_of(const Job &job) {
    // The smallest temperatures have no inverse.
    return Scale{job.state->best, fminf(1.0f / job.row->temperature, 3.0e38f)};
}

// Where a logit stands below the best, in units of the temperature; 0 is the best, also where that is infinite.
DEVICE float below(Scale scale, float logit) {
    return logit == scale.best ? 0.0f : (logit - scale.best) * scale.inverse;
}

// BINS where it is no candidate.
DEVICE int bin_of(float below) {
    float place = below * -BINS_PER_UNIT;
    return place < float(BINS) ? int(place) : BINS;
}

DEVICE float weight_of(float below) { return expf(below); }
DEVICE uint64_t whole(float weight) { return uint64_t(weight * WEIGHT_ONE); }

// ------------------------------------------------------------------------------------------------------ whole blocks

// What the threads before this one have together. `total` becomes the sum of all.
DEVICE uint64_t sum_before(uint64_t value, uint64_t &total) {
    SHARED uint64_t warps[WARPS];
    uint64_t sum = value;
    for (int distance = 1; distance < WARP; distance *= 2) {
        uint64_t other = __shfl_up_sync(ALL_LANES, sum, distance);
        if (lane_index() >= distance) sum += other;
    }
    __syncthreads();
    if (lane_index() == WARP - 1) warps[warp_index()] = sum;
    __syncthreads();
    uint64_t before = sum - value;
    total = 0;
    for (int warp = 0; warp < WARPS; warp++) {
        if (warp < warp_index()) before += warps[warp];
        total += warps[warp];
    }
    return before;
}

// The largest of all threads'.
DEVICE Candidate likeliest_of(Candidate mine) {
    SHARED Candidate warps[WARPS];
    for (int distance = WARP / 2; distance > 0; distance /= 2) {
        Candidate other = __shfl_xor_sync(ALL_LANES, mine, distance);
        if (other > mine) mine = other;
    }
    __syncthreads();
    if (lane_index() == 0) warps[warp_index()] = mine;
    __syncthreads();
    for (int warp = 0; warp < WARPS; warp++)
        if (warps[warp] > mine) mine = warps[warp];
    return mine;
}

// Is this block of the row the last? Then it can read what the others wrote.
DEVICE bool last_to_arrive(const Job &job) {
    SHARED bool last;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        last = atomicAdd(&job.state->arrived, 1u) + 1 == uint32_t(job.part_count());
        if (last) job.state->arrived = 0;
    }
    __syncthreads();
    __threadfence();
    return last;
}

// Adds to a number of 64 bits in shared memory, whose halves stand apart: 32 bits are what memory adds fast.
DEVICE void add_to(uint32_t *low, uint32_t *high, uint64_t value) {
    uint32_t part = uint32_t(value);
    uint32_t carried = atomicAdd(low, part) + part < part ? 1 : 0;
    uint32_t rest = uint32_t(value >> 32) + carried;
    if (rest > 0) atomicAdd(high, rest);
}

// The token of each of a thread's places in the block's part.
DEVICE int token_at(int place) { return int(blockIdx.x) * PART + place * THREADS + int(threadIdx.x); }

// The thread's logits; minus infinity beyond the vocabulary.
DEVICE void load_part(const Job &job, float (&logits)[EACH]) {
    UNROLL for (int i = 0; i < EACH; i++) logits[i] = token_at(i) < job.vocab ? job.logits[token_at(i)] : -INFINITY;
}

DEVICE void adjust_part(const Job &job, float (&logits)[EACH]) {
    if (!job.mask && !job.counts) return;
    UNROLL for (int i = 0; i < EACH; i++)
        if (token_at(i) < job.vocab) logits[i] = adjusted(job, token_at(i), logits[i]);
}

// Ends a row: the choice is put down, and logits are as they were.
DEVICE void settle(const Job &job, int token, int status) {
    for (int edit = threadIdx.x; edit < job.row->edit_count; edit += THREADS) {
        int edited = job.edits[edit].token;
        if (uint32_t(edited) < uint32_t(job.vocab)) job.logits[edited] = job.saved[edit];
    }
    if (threadIdx.x > 0) return;
    bool chosen = status == CHOSEN;
    job.choice->token = chosen ? token : -2;
    job.choice->status = status;
    job.choice->logprob = 0.0f;
    job.choice->rank = 1;
    if (job.is_given()) return;
    // The next step may be under way before the host learns that this failed: its token must be one.
    job.last[job.row->slot] = chosen ? token : 0;
    if (chosen && job.counts && (job.counts[token] & 0x7fff) != 0x7fff) job.counts[token]++;
}

} // namespace sampler
