// Clusters of blocks, barriers in shared memory, and tiles that come by themselves: the part of emulator.cpp that runs
// pairs.cuh, and ends there.
#pragma once

namespace emulator {

namespace {

// What stands in shared memory. Of a barrier: how many come, how many are to come yet; of bytes the same, which may be
// there before they are expected; and how often all had come.
struct CountedBarrier {
    uint16_t count, pending;
    int32_t bytes : 31;
    uint32_t phase : 1;
};
static_assert(sizeof(CountedBarrier) == sizeof(uint64_t), "as on the device");

constexpr uint16_t NOT_BEGUN = 0xffff;
constexpr size_t LINE = 128, PIECE = 16;

template <class Change> void change(uint64_t *at, Change how) {
    CountedBarrier barrier;
    memcpy(&barrier, at, sizeof barrier);
    if (barrier.count == NOT_BEGUN) return complain("a barrier is used that was not begun");
    how(barrier);
    if (barrier.pending == 0 && barrier.bytes == 0) {
        barrier.phase++;
        barrier.pending = barrier.count;
    }
    memcpy(at, &barrier, sizeof barrier);
    events++;
}

// The same place in another block's shared memory.
template <class T> T *in_block(T *here, Block &other) {
    size_t at = size_t(reinterpret_cast<unsigned char *>(here) - block->dynamic);
    if (at + sizeof(T) > block->shared) complain("what a cluster shares is not in its blocks' shared memory");
    return reinterpret_cast<T *>(other.dynamic + at);
}

// A block that has ended may have left its multiprocessor to another.
void check_runs(const Block &other) {
    if (other.live == 0) complain("something comes to a block that has ended");
}

void land_tile(const Arrival &arrival) {
    check_runs(*arrival.block);
    const TileSource &from = arrival.from;
    for (uint64_t line = 0; line < from.box_rows; line++)
        for (size_t piece = 0; piece < LINE / PIECE; piece++) {
            unsigned char *to = arrival.to + line * LINE + (piece ^ line % 8) * PIECE;
            uint64_t row = uint64_t(arrival.row) + line, column = uint64_t(arrival.column) + piece * PIECE;
            if (row < from.rows && column < from.line) {
                memcpy(to, from.first + row * from.line + column, PIECE);
            } else {
                memset(to, 0, PIECE);
            }
        }
    int bytes = int(from.box_rows * LINE);
    change(arrival.barrier, [bytes](CountedBarrier &barrier) { barrier.bytes -= bytes; });
}

// Every now and then one that is under way comes, the last asked for as often as the first.
void land_some(unsigned pass) {
    std::vector<Arrival> &all = cluster->arrivals;
    for (unsigned turn = 0; turn < 2 && !all.empty(); turn++) {
        auto next = (pass + turn) % 3 == 0 ? all.begin() : all.end() - 1;
        land_tile(*next);
        all.erase(next);
    }
}

} // namespace

unsigned cluster_rank() { return block->rank; }
void cluster_barrier() { wait_at(cluster->barrier, cluster->live); }

void barrier_begin(uint64_t *barrier, unsigned count) {
    CountedBarrier begun{uint16_t(count), uint16_t(count), 0, 0};
    memcpy(barrier, &begun, sizeof begun);
}

void barrier_arrive(uint64_t *barrier, unsigned rank) {
    if (rank >= cluster->blocks.size()) return complain("there is no such block in the cluster");
    check_runs(cluster->blocks[rank]);
    change(in_block(barrier, cluster->blocks[rank]), [](CountedBarrier &at) {
        if (at.pending == 0) complain("more come to a barrier than it counts");
        at.pending--;
    });
}

void barrier_expect(uint64_t *barrier, unsigned bytes) {
    change(barrier, [bytes](CountedBarrier &at) {
        if (at.pending == 0) complain("more come to a barrier than it counts");
        at.pending--;
        at.bytes += int(bytes);
    });
}

void barrier_wait(uint64_t *barrier, unsigned parity) {
    auto passed = [&] {
        CountedBarrier at;
        memcpy(&at, barrier, sizeof at);
        return at.phase != parity;
    };
    while (!passed()) yield();
}

void bring_tile(unsigned char *to, const TileSource &from, int column, int row, uint64_t *barrier, bool to_all) {
    if (shared_address(to) % 1024 != 0) complain("a tile goes to no multiple of 1,024 bytes");
    if (to + from.box_rows * LINE > block->dynamic + block->shared) complain("a tile is larger than shared memory");
    for (Block &other : cluster->blocks) {
        if (!to_all && &other != block) continue;
        unsigned char *there = in_block(to, other);
        memset(there, 0xff, from.box_rows * LINE);
        for (size_t at = 0; at < from.box_rows * LINE; at += 16)
            other.copied[size_t(there + at - other.dynamic) / 16] = Copied();
        cluster->arrivals.push_back(Arrival{&other, there, in_block(barrier, other), from, column, row});
    }
}

void barrier_of(unsigned threads) {
    if (thread->index >= threads) complain("a thread comes to a barrier of others");
    wait_at(block->some, threads);
}

} // namespace emulator
