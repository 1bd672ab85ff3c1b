// The sampler's kernels for rows with a temperature. See sampler.cuh.
//
// No token is sorted. sampler_weigh counts candidates, or sums their weights, in bins by their distance from the
// likeliest; so it is known in which bin the last one stands that top-k, or else top-p, keeps. sampler_draw lists the
// candidates of that bin (with top-k, of all up to it), searches the last one there, digit by digit, and draws in the
// order of tokens:
//
//   likeliest                                      bins -> least likely
//   |--- surely kept: summed by parts ---|-- window: listed --|------ surely not kept ------|
//
// Where the window holds more than the list, the search goes over the whole row instead.
#include "sampler.cuh"

namespace sampler {

constexpr int DIGIT = 9; // bits; a thread for each digit
static_assert(1 << DIGIT == THREADS, "a thread for each digit");
constexpr int FIRST_SHIFT = 45; // of a candidate, whose bits are 32 + TOKEN_BITS
static_assert(FIRST_SHIFT % DIGIT == 0 && FIRST_SHIFT + DIGIT >= 32 + TOKEN_BITS, "whole digits, all bits");
constexpr int BINS_EACH = BINS / THREADS;

// A count that no vocabulary exceeds is no filter.
DEVICE bool has_top_k(const Job &job) { return job.row->top_k > 0 && job.row->top_k < uint32_t(job.vocab); }
DEVICE bool has_top_p(const Job &job) { return job.row->top_p < 1.0f; }

// Of so much weight, top-p's part. It is rounded up: what reaches the real number reaches the whole one, and no other.
DEVICE uint64_t share_of(const Job &job, uint64_t total) {
    return uint64_t(ceil(double(job.row->top_p) * double(total)));
}

// The window is the bin where counts, or weights, reach `target`; with counts, also all before it, if they are not too
// many.
DEVICE void find_window(const Job &job, bool by_count, uint64_t target) {
    int first = threadIdx.x * BINS_EACH;
    uint32_t counts[BINS_EACH];
    uint64_t measures[BINS_EACH], mine = 0, total;
    UNROLL for (int i = 0; i < BINS_EACH; i++) {
        counts[i] = job.bins()[first + i];
        measures[i] = by_count ? counts[i] : job.sums()[first + i];
        mine += measures[i];
        // For the next step.
        job.bins()[first + i] = 0;
        job.sums()[first + i] = 0;
    }
    // Candidates down to that bin, and in it.
    uint64_t above = sum_before(mine, total), listed = total, last = total;
    // Where there are not so many candidates, all are listed, which one thread says.
    bool found = total < target && threadIdx.x == 0;
    int bin = BINS - 1;
    if (above < target && target <= above + mine) {
        UNROLL for (int i = 0; i < BINS_EACH; i++) {
            if (found) continue;
            found = target <= above + measures[i];
            bin = first + i;
            listed = above + counts[i];
            last = counts[i];
            if (!found) above += measures[i];
        }
    }
    if (!found) return;
    // Top-p after top-k sums what top-k leaves, so all of that is listed.
    bool alone = !by_count || (listed > LIST && !has_top_p(job));
    if (alone) listed = last;
    job.state->way = listed <= LIST ? WAY_WINDOW : WAY_SEARCH;
    job.state->first_bin = alone ? bin : 0;
    job.state->last_bin = bin;
    job.state->above = alone ? above : 0;
}

KERNEL(THREADS) sampler_weigh(SAMPLER_ARGUMENTS) {
    wait_for_earlier();
    let_next_start();
    Job job = SAMPLER_JOB;
    const SamplerRow &row = *job.row;
    if (!job.there || job.greedy() || job.choice->status != CHOSEN) return;
    // Top-k needs no weights: all that it leaves will be listed.
    bool by_count = has_top_k(job), by_weight = !by_count && has_top_p(job);
    SHARED uint32_t counted[BINS], low[BINS], high[BINS];
    if (by_count || by_weight) {
        for (int bin = threadIdx.x; bin < BINS; bin += THREADS) counted[bin] = low[bin] = high[bin] = 0;
        __syncthreads();
    }
    Scale scale = scale_of(job);
    // All tokens that weigh less than this are together less than what top-p leaves out, and need no bins.
    float least = (1.0f - row.top_p) * 0.5f / float(job.vocab);
    int deepest = by_weight ? min(BINS - 1, int(-BINS_PER_UNIT * logf(least)) + 1) : BINS - 1;
    // Without other filters, what is kept is known here.
    float kept = by_weight ? 0.0f : job.least_weight();
    uint64_t mine = 0, total;
    float values[EACH];
    load_part(job, values);
    adjust_part(job, values);
    UNROLL for (float value : values) {
        float distance = below(scale, value);
        int bin = bin_of(distance);
        if (bin == BINS) continue;
        if (by_count) {
            atomicAdd(&counted[bin], 1u);
            continue;
        }
        float weight = weight_of(distance);
        if (weight >= kept) mine += whole(weight);
        if (by_weight && bin <= deepest) {
            atomicAdd(&counted[bin], 1u);
            add_to(&low[bin], &high[bin], whole(weight));
        }
    }
    sum_before(mine, total);
    if (threadIdx.x == 0) job.parts()[blockIdx.x].weight = total;
    if (by_count || by_weight) {
        for (int bin = threadIdx.x; bin < BINS; bin += THREADS) {
            if (counted[bin] == 0) continue;
            atomicAdd(&job.bins()[bin], counted[bin]);
            if (by_weight) atomicAdd(&job.sums()[bin], low[bin] | static_cast<unsigned long long>(high[bin]) << 32);
        }
    }
    if (!last_to_arrive(job)) return;

    sum_before(int(threadIdx.x) < job.part_count() ? job.parts()[threadIdx.x].weight : 0, total);
    if (threadIdx.x == 0) {
        job.state->total = total;
        job.state->way = WAY_ALL;
    }
    __syncthreads();
    if (by_count || by_weight) find_window(job, by_count, by_count ? row.top_k : share_of(job, total));
}
EXPORT(sampler_weigh)

// Where candidates are looked for: in a list, or in the whole row.
struct Source {
    const Job &job;
    Scale scale;
    const Candidate *list; // null: the row
    int count;

    // 0 where there is none.
    DEVICE Candidate at(int place) const {
        if (place >= count) return 0;
        if (list) return list[place];
        float logit = adjusted(job, place, job.logits[place]);
        return bin_of(below(scale, logit)) < BINS ? candidate_of(logit, place) : 0;
    }

    // Each thread sees some of them, and waits for memory once for several.
    template <class Visit> DEVICE void each(Visit visit) const {
        constexpr int ABREAST = 4;
        for (int begin = threadIdx.x; begin < count; begin += ABREAST * THREADS) {
            Candidate some[ABREAST];
            UNROLL for (int i = 0; i < ABREAST; i++) some[i] = at(begin + i * THREADS);
            UNROLL for (int i = 0; i < ABREAST; i++)
                if (some[i]) visit(some[i]);
        }
    }

    DEVICE float weight(Candidate candidate) const { return weight_of(below(scale, logit_of(candidate))); }
};

// The candidate at which those from the likeliest on reach `target`, in number or in weight, where `above` have come
// before; 0 where all do not reach it.
DEVICE Candidate reach(const Source &source, bool by_count, uint64_t above, uint64_t target) {
    SHARED uint32_t counts[THREADS], low[THREADS], high[THREADS];
    SHARED uint64_t found_above;
    SHARED Candidate only;
    SHARED int found;
    Candidate prefix = 0;
    for (int shift = FIRST_SHIFT; shift >= 0; shift -= DIGIT) {
        counts[threadIdx.x] = low[threadIdx.x] = high[threadIdx.x] = 0;
        if (threadIdx.x == 0) found = -1;
        __syncthreads();
        source.each([&](Candidate candidate) {
            if (candidate >> (shift + DIGIT) != prefix) return;
            int digit = int(candidate >> shift) & (THREADS - 1);
            atomicAdd(&counts[digit], 1u);
            if (!by_count) add_to(&low[digit], &high[digit], whole(source.weight(candidate)));
        });
        __syncthreads();
        // The likeliest first.
        int digit = THREADS - 1 - int(threadIdx.x);
        uint64_t mine = by_count ? counts[digit] : low[digit] | uint64_t(high[digit]) << 32, all;
        uint64_t before = above + sum_before(mine, all);
        if (before < target && target <= before + mine) {
            found = digit;
            found_above = before;
        }
        __syncthreads();
        if (found >= 0) {
            prefix = prefix << DIGIT | uint32_t(found);
            above = found_above;
        }
        bool none = found < 0, lone = !none && counts[found] == 1;
        __syncthreads();
        if (none) return 0;
        if (!lone) continue;
        // The only one with these digits: no need of further ones.
        source.each([&](Candidate candidate) {
            if (candidate >> shift == prefix) only = candidate;
        });
        __syncthreads();
        return only;
    }
    return prefix;
}

// What top-k and top-p keep: all candidates from this one on up.
DEVICE Candidate last_kept(const Job &job, const Source &source) {
    uint64_t total = job.state->total, above = job.state->way == WAY_WINDOW ? job.state->above : 0;
    if (!has_top_k(job)) return reach(source, false, above, share_of(job, total));
    Candidate last = reach(source, true, above, job.row->top_k);
    if (!has_top_p(job)) return last;
    uint64_t mine = 0;
    source.each([&](Candidate candidate) {
        if (candidate >= last) mine += whole(source.weight(candidate));
    });
    sum_before(mine, total);
    // Of what top-k keeps, a share is reached within it.
    return reach(source, false, 0, share_of(job, total));
}

DEVICE uint64_t mix(uint64_t x) {
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

// A number below `total`, any as likely as any other: by seed, copy and position alone.
DEVICE uint64_t chance(const SamplerRow &row, uint64_t total) {
    uint64_t words[3] = {row.seed_low | uint64_t(row.seed_high) << 32, row.copy, row.position}, state = 0;
    for (uint64_t word : words) state = mix((state + 0x9e3779b97f4a7c15u) ^ mix(word));
    // Of the fraction, 53 bits count, as in a float of 64 bits.
    return multiply_high(total, state >> 11 << 11);
}

// Draws from the candidates down to `lowest`, in the order of tokens.
DEVICE int draw(const Job &job, const Source &source, Candidate lowest) {
    SHARED uint32_t low[PARTS], high[PARTS];
    SHARED int part, token;
    SHARED uint64_t part_rest;
    int index = threadIdx.x;
    float kept = job.least_weight();
    // Always found; even if not, what follows stays within the row.
    if (index == 0) part = token = 0;
    // Parts' sums are there, but for what was listed; where the whole row is searched, none is.
    if (index < job.part_count()) {
        uint64_t sum = job.state->way == WAY_SEARCH ? 0 : job.parts()[index].weight;
        low[index] = uint32_t(sum);
        high[index] = uint32_t(sum >> 32);
    }
    __syncthreads();
    source.each([&](Candidate candidate) {
        float weight = source.weight(candidate);
        int part = token_of(candidate) / PART;
        if (candidate >= lowest && weight >= kept) add_to(&low[part], &high[part], whole(weight));
    });
    __syncthreads();
    uint64_t mine = index < job.part_count() ? low[index] | uint64_t(high[index]) << 32 : 0, total;
    uint64_t before = sum_before(mine, total), rest = chance(*job.row, total);
    if (before <= rest && rest < before + mine) {
        part = index;
        part_rest = rest - before;
    }
    __syncthreads();

    int first = part * PART + index * EACH;
    uint64_t weights[EACH];
    mine = 0;
    UNROLL for (int i = 0; i < EACH; i++) {
        weights[i] = 0;
        if (first + i >= job.vocab) continue;
        float logit = adjusted(job, first + i, job.logits[first + i]), distance = below(source.scale, logit);
        if (bin_of(distance) == BINS || candidate_of(logit, first + i) < lowest) continue;
        float weight = weight_of(distance);
        if (weight >= kept) weights[i] = whole(weight);
        mine += weights[i];
    }
    before = sum_before(mine, total);
    UNROLL for (int i = 0; i < EACH; i++) {
        if (before <= part_rest && part_rest < before + weights[i]) token = first + i;
        before += weights[i];
    }
    __syncthreads();
    return token;
}

// Sums what is surely kept of the part, and lists what stands in the window.
DEVICE void gather(const Job &job, Scale scale) {
    int first_bin = job.state->first_bin, last_bin = job.state->last_bin;
    float kept = job.least_weight();
    uint64_t mine = 0, total;
    float logits[EACH];
    load_part(job, logits);
    adjust_part(job, logits);
    UNROLL for (int i = 0; i < EACH; i++) {
        float distance = below(scale, logits[i]);
        int bin = bin_of(distance);
        if (bin < first_bin) {
            float weight = weight_of(distance);
            if (weight >= kept) mine += whole(weight);
        } else if (bin <= last_bin) {
            // In any order: nothing that follows depends on it.
            uint32_t place = atomicAdd(&job.state->listed, 1u);
            if (place < LIST) job.list()[place] = candidate_of(logits[i], token_at(i));
        }
    }
    sum_before(mine, total);
    if (threadIdx.x == 0) job.parts()[blockIdx.x].weight = total;
}

KERNEL_ABREAST(THREADS, 2) sampler_draw(SAMPLER_ARGUMENTS) {
    wait_for_earlier();
    let_next_start();
    Job job = SAMPLER_JOB;
    if (!job.there || job.greedy() || job.choice->status != CHOSEN) return;
    SHARED Candidate list[LIST];
    int way = job.state->way;
    Source source{job, scale_of(job), list, 0};
    if (way == WAY_WINDOW) {
        gather(job, source.scale);
        if (!last_to_arrive(job)) return;
        source.count = min(int(job.state->listed), LIST);
        for (int i = threadIdx.x; i < source.count; i += THREADS) list[i] = job.list()[i];
        __syncthreads();
        if (threadIdx.x == 0) job.state->listed = 0;
    } else if (blockIdx.x > 0) {
        return;
    } else if (way == WAY_SEARCH) {
        source.list = nullptr;
        source.count = job.vocab;
    }
    Candidate lowest = way == WAY_ALL ? 0 : last_kept(job, source);
    settle(job, draw(job, source, lowest), CHOSEN);
}
EXPORT(sampler_draw)

} // namespace sampler
