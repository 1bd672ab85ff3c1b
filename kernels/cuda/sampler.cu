// The sampler's kernels that see every row, and the table that penalties read. See sampler.cuh.
#include "sampler.cuh"

namespace sampler {

// Marks tokens in one row of the table: times generated, and the top bit: in the prompt. One block.
KERNEL(1024)
history_begin(uint16_t *counts, const int *prompt, const int *output, int row, int vocab, int prompt_count,
              int output_count) {
    wait_for_earlier();
    let_next_start();
    size_t begin = size_t(row) * vocab;
    for (int token = threadIdx.x; token < vocab; token += blockDim.x) counts[begin + token] = 0;
    __syncthreads();
    // Tokens occur more than once, so they are added in memory, which works on 32 bits: two tokens' counts.
    auto *words = reinterpret_cast<uint32_t *>(counts);
    for (int i = threadIdx.x; i < output_count; i += blockDim.x) {
        if (uint32_t(output[i]) >= uint32_t(vocab)) continue;
        size_t place = begin + output[i];
        uint32_t shift = place % 2 * 16, one = 1u << shift;
        uint32_t before = atomicAdd(words + place / 2, one) >> shift & 0xffff;
        // Full: one less again. Between the two, all threads of the block together cannot reach beyond 16 bits.
        if (before >= 0x7fff) atomicAdd(words + place / 2, 0u - one);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < prompt_count; i += blockDim.x) {
        if (uint32_t(prompt[i]) >= uint32_t(vocab)) continue;
        size_t place = begin + prompt[i];
        atomicOr(words + place / 2, 0x8000u << (place % 2 * 16));
    }
}
EXPORT(history_begin)

// What a part contributes to reported probabilities: the largest logit, a sum of powers, and its likeliest tokens.
DEVICE void tell_part(const Job &job, const float (&logits)[EACH], int count) {
    SHARED float scratch[WARP];
    float best = -INFINITY, sum = 0.0f;
    for (float logit : logits) best = fmaxf(best, logit);
    best = block_max(best, scratch);
    for (float logit : logits)
        if (logit > -INFINITY) sum += expf(logit - best);
    sum = block_sum(sum, scratch);
    if (threadIdx.x == 0) {
        job.parts()[blockIdx.x].raw_best = best;
        job.parts()[blockIdx.x].raw_sum = sum;
    }
    Candidate under = BROKEN;
    for (int place = 0; place < count; place++) {
        Candidate mine = 0;
        for (int i = 0; i < EACH; i++) {
            if (token_at(i) >= job.vocab) continue;
            Candidate other = candidate_of(logits[i], token_at(i));
            if (other < under && other > mine) mine = other;
        }
        under = likeliest_of(mine);
        if (threadIdx.x == 0) job.likeliest()[blockIdx.x * count + place] = under;
    }
}

// The same of the row, out of the parts'.
DEVICE void tell_row(const Job &job, int count) {
    SHARED float scratch[WARP];
    bool part = int(threadIdx.x) < job.part_count();
    float mine = part ? job.parts()[threadIdx.x].raw_best : -INFINITY, sum = 0.0f;
    float best = block_max(mine, scratch);
    if (mine > -INFINITY) sum = job.parts()[threadIdx.x].raw_sum * expf(mine - best);
    float log = logf(block_sum(sum, scratch));
    if (threadIdx.x == 0) {
        job.state->raw_best = best;
        job.state->raw_log = log;
    }
    Candidate under = BROKEN;
    for (int place = 0; place < count; place++) {
        Candidate mine = 0;
        for (int i = threadIdx.x; i < job.part_count() * count; i += THREADS) {
            Candidate other = job.likeliest()[i];
            if (other < under && other > mine) mine = other;
        }
        under = likeliest_of(mine);
        if (threadIdx.x == 0) {
            // Small vocabularies may have fewer tokens.
            job.choice->ids[place] = under ? token_of(under) : -1;
            job.choice->logprobs[place] = under ? logit_of(under) - best - log : 0.0f;
        }
    }
}

// Changes those of the part's logits that edits name.
DEVICE void edit_part(const Job &job) {
    int begin = blockIdx.x * PART, end = min(begin + PART, job.vocab);
    for (int i = threadIdx.x; i < job.row->edit_count; i += THREADS) {
        SamplerEdit edit = job.edits[i];
        if (edit.token < begin || edit.token >= end) continue;
        float logit = job.logits[edit.token];
        job.saved[i] = logit;
        job.logits[edit.token] = edit.value == -INFINITY ? -INFINITY : logit + edit.value;
    }
}

KERNEL(THREADS) sampler_scan(SAMPLER_ARGUMENTS) {
    wait_for_earlier();
    let_next_start();
    Job job = SAMPLER_JOB;
    float values[EACH];
    load_part(job, values);
    const SamplerRow &row = *job.row;
    if (!job.there) return;
    bool broken = false;
    for (float value : values) broken |= value != value;
    int told = min(row.logprobs, TOLD);
    if (told >= 0) tell_part(job, values, told);
    if (row.edit_count > 0) {
        __syncthreads();
        edit_part(job);
        __syncthreads();
        load_part(job, values);
    }
    adjust_part(job, values);
    Candidate best = 0;
    UNROLL for (int i = 0; i < EACH; i++) {
        // -0 is equal to 0.
        Candidate other = candidate_of(values[i] == 0.0f ? 0.0f : values[i], token_at(i));
        if (values[i] > -INFINITY && other > best) best = other;
    }
    best = likeliest_of(broken ? BROKEN : best);
    if (threadIdx.x == 0) job.parts()[blockIdx.x].best = best;
    if (!last_to_arrive(job)) return;

    best = likeliest_of(int(threadIdx.x) < job.part_count() ? job.parts()[threadIdx.x].best : 0);
    if (told >= 0) tell_row(job, told);
    if (best == BROKEN) {
        settle(job, 0, NO_NUMBER);
    } else if (job.is_given()) {
        settle(job, row.given, CHOSEN);
    } else if (best == 0) {
        settle(job, 0, NOTHING_ALLOWED);
    } else if (job.greedy()) {
        settle(job, token_of(best), CHOSEN);
    } else if (threadIdx.x == 0) {
        job.state->best = logit_of(best);
        job.choice->status = CHOSEN;
    }
}
EXPORT(sampler_scan)

// The chosen token's probability and rank by the raw logits, which the choice has put back.
KERNEL(THREADS) sampler_rank(SAMPLER_ARGUMENTS) {
    wait_for_earlier();
    let_next_start();
    Job job = SAMPLER_JOB;
    const SamplerRow &row = *job.row;
    if (!job.there || row.logprobs < 0 || job.choice->status != CHOSEN) return;
    float values[EACH];
    load_part(job, values);
    float chosen = job.logits[job.choice->token];
    uint64_t above = 0, all;
    UNROLL for (float value : values) above += value > chosen;
    sum_before(above, all);
    if (threadIdx.x > 0) return;
    if (all > 0) atomicAdd(&job.choice->rank, int(all));
    if (blockIdx.x == 0) job.choice->logprob = chosen - job.state->raw_best - job.state->raw_log;
}
EXPORT(sampler_rank)

} // namespace sampler
