// Blocks that run in pairs, on two multiprocessors that lie side by side: what one of them reads can be put into both
// ones' shared memory, and goes through the second cache once. Only in code for sm_90a, and in the emulator.
//
// A kernel of pairs is `KERNEL_OF_PAIRS(threads) name(arguments)`, followed by `EXPORT_PAIRS(name)`, and has no `SHARED`
// arrays: the emulator has one of each for both blocks. What lies at the same place of both ones' dynamic shared memory
// belongs together.
//
// How a tile is had: a `Gate` stands in shared memory, of both blocks; one thread says how many bytes are to come
// (`expect`), and asks for them (`bring_tile`); whoever reads them waits (`wait`). Tiles lie as wgmma.cuh says, and the
// matrix units may read them at once. A gate is passed again and again: `wait` for its first, third ... time has parity
// 0, for the others 1. So gates also tell who fills a place that nobody reads it any more.
#pragma once

#include "wgmma.cuh"

#ifdef __CUDACC__
#ifdef WARPGROUPS
#define KERNEL_OF_PAIRS(threads) extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(threads, 1)
#else
#define KERNEL_OF_PAIRS(threads) extern "C" __global__ void __launch_bounds__(threads, 1)
#endif
#define EXPORT_PAIRS(name)
// A matrix, as an argument of a kernel.
#define MATRIX const __grid_constant__ TensorMap
#else
#define KERNEL_OF_PAIRS(threads) KERNEL(threads)
#define EXPORT_PAIRS(name) EXPORT_CLUSTER(name, 2)
#define MATRIX const TensorMap
#endif

// A matrix of rows in device memory, of which boxes of 128 bytes by so many rows are copied: what the driver makes of it
// (`cuTensorMapEncodeTiled`). In the emulator `emulator::TileSource`. What is beyond the rows, or a row's end, is zeros.
struct alignas(128) TensorMap {
    uint64_t words[16];
};

#if defined(__CUDACC__) && defined(WARPGROUPS)
#define ON_PAIRS 1
#endif

// Which of its pair a block is.
DEVICE unsigned pair_rank() {
#ifdef __CUDACC__
    unsigned rank = 0;
#ifdef ON_PAIRS
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
#endif
    return rank;
#else
    return emulator::cluster_rank();
#endif
}

// All threads of both blocks meet, in the beginning: gates that `gates_are_there` has told of are there.
DEVICE void meet_pair_first() {
#ifdef __CUDACC__
#ifdef ON_PAIRS
    asm volatile("barrier.cluster.arrive.relaxed.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
#else
    emulator::cluster_barrier();
#endif
}

// And in the end: all that either has done to the other is done.
DEVICE void meet_pair() {
#ifdef __CUDACC__
#ifdef ON_PAIRS
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
#else
    emulator::cluster_barrier();
#endif
}

// The first `threads` threads of the block meet: whole warps.
template <int threads> DEVICE void meet_first() {
#ifdef __CUDACC__
    asm volatile("bar.sync 1, %0;" ::"n"(threads) : "memory");
#else
    emulator::barrier_of(threads);
#endif
}

// A group of four warps goes on with so many registers for each thread: more than the kernel began with, or fewer. All
// groups of a block together have as many as in the beginning, at most.
template <int registers, bool more> DEVICE void have_registers() {
#ifdef ON_PAIRS
    if constexpr (more) asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(registers));
    else asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(registers));
#endif
}

// What earlier kernels wrote is seen by tiles that are asked for from here on: `wait_for_earlier` speaks of a thread's
// own reads, and does not say that it speaks of these.
DEVICE void see_earlier_tiles() {
#ifdef ON_PAIRS
    asm volatile("fence.proxy.async.global;" ::: "memory");
#endif
}

// Nanoseconds; a tile takes some thousand of them, and other processes' turns on the device some millions.
constexpr uint64_t GATE_SHUT_NS = 10000000000;

struct Gate {
    uint64_t state;

    // For so many that come each time. By one thread; `gates_are_there` and `meet_pair_first` follow.
    DEVICE void begin([[maybe_unused]] unsigned count) {
#ifdef __CUDACC__
#ifdef ON_PAIRS
        asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(&state)), "r"(count) : "memory");
#endif
#else
        emulator::barrier_begin(&state, count);
#endif
    }

    // One comes, and as many bytes are to come.
    DEVICE void expect([[maybe_unused]] unsigned bytes) {
#ifdef __CUDACC__
#ifdef ON_PAIRS
        asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(&state)), "r"(bytes)
                     : "memory");
#endif
#else
        emulator::barrier_expect(&state, bytes);
#endif
    }

    // One comes. What it wrote to shared memory before is seen by who waits.
    DEVICE void come() {
#ifdef __CUDACC__
#ifdef ON_PAIRS
        asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(&state)) : "memory");
#endif
#else
        emulator::barrier_arrive(&state, emulator::cluster_rank());
#endif
    }

    // One comes, to the gate of that block of the pair. The other block's threads see nothing by that of what it wrote;
    // that it has read, and products have ended, is told.
    DEVICE void come([[maybe_unused]] unsigned rank) {
#ifdef __CUDACC__
#ifdef ON_PAIRS
        asm volatile("{\n.reg .b32 there;\nmapa.shared::cluster.u32 there, %0, %1;\n"
                     "mbarrier.arrive.shared::cluster.b64 _, [there];\n}" ::"r"(shared_address(&state)),
                     "r"(rank)
                     : "memory");
#endif
#else
        emulator::barrier_arrive(&state, rank);
#endif
    }

    // Until all have come, and all bytes. Who waits longer than `GATE_SHUT_NS` ends the context: an error, where there
    // would be a device that hangs.
    DEVICE void wait([[maybe_unused]] unsigned parity) {
#ifdef __CUDACC__
#ifdef ON_PAIRS
        unsigned passed = 0;
        uint64_t since = 0;
        while (true) {
            asm volatile("{\n.reg .pred passed;\n"
                         "mbarrier.try_wait.parity.shared::cta.b64 passed, [%1], %2;\n"
                         "selp.b32 %0, 1, 0, passed;\n}"
                         : "=r"(passed)
                         : "r"(shared_address(&state)), "r"(parity)
                         : "memory");
            if (passed) break;
            uint64_t now;
            asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
            if (since == 0) since = now;
            if (now - since > GATE_SHUT_NS) __trap();
        }
#endif
#else
        emulator::barrier_wait(&state, parity);
#endif
    }
};

// By who has begun them, before anybody else uses them.
DEVICE void gates_are_there() {
#ifdef ON_PAIRS
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}

// The matrix will be asked for boxes: what the driver says of it is brought near. It may come before `wait_for_earlier`.
DEVICE void prefetch_matrix([[maybe_unused]] const TensorMap &matrix) {
#ifdef ON_PAIRS
    asm volatile("prefetch.tensormap [%0];" ::"l"(&matrix) : "memory");
#endif
}

// Asks for a box of a matrix, from a byte of the row `row` on, which is a multiple of 16. `to_both`: into both blocks, to
// each one's gate.
DEVICE void bring_tile(unsigned char *to, const TensorMap &matrix, int byte, int row, Gate &gate, bool to_both) {
#ifdef __CUDACC__
#ifdef ON_PAIRS
    uint64_t from = reinterpret_cast<uint64_t>(&matrix);
    uint32_t place = shared_address(to), at = shared_address(&gate.state);
    if (to_both)
        asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
                     ".multicast::cluster [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(place),
                     "l"(from), "r"(byte), "r"(row), "r"(at), "h"(uint16_t(3))
                     : "memory");
    else
        asm volatile("cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes"
                     " [%0], [%1, {%2, %3}], [%4];" ::"r"(place),
                     "l"(from), "r"(byte), "r"(row), "r"(at)
                     : "memory");
#endif
#else
    emulator::TileSource source;
    memcpy(&source, &matrix, sizeof source);
    emulator::bring_tile(to, source, byte, row, &gate.state, to_both);
#endif
}
