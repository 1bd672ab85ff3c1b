// Runs kernels on a host, as a device would: blocks one after the other, or clusters of them, whose threads are coroutines
// that change over at barriers and shuffles. It is slow, and exact about what devices leave undefined: shared memory begins
// as what is no number, asynchronous copies land only when they are waited for, and threads take turns in changing
// order, so that a barrier left out shows.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};

namespace emulator {

dim3 thread_index();
dim3 block_index();
dim3 block_size();
dim3 grid_size();
unsigned char *dynamic_shared();

void block_barrier();
void warp_barrier();
// What lane `from` of the warp put in.
uint64_t exchange(uint64_t value, int from);
// The bits of the lanes whose `value` is true.
uint32_t ballot(bool value);

void copy_async(void *to, const void *from, size_t bytes);
void copies_commit();
void copies_wait(int pending);
void load_matrices(uint32_t (&to)[4], const void *row, bool transposed);
// Of bf16, or of halves.
void multiply_add(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, bool halves);

// The units of four warps: see wgmma.cuh. Sums are no numbers while products are under way, products read their
// operands both when they begin and when they are waited for, and what breaks a rule ends the launch with 2.
uint32_t shared_address(const void *pointer);
void show_copies();
void warpgroup_begin();
void warpgroup_multiply(float *d, int wide, uint64_t a, uint64_t b, bool kept, bool eight);
// The left factor is in registers, which must stay as they are; the right one is transposed.
void warpgroup_multiply_registers(float *d, int wide, const uint32_t *a, uint64_t b);
void warpgroup_commit();
void warpgroup_wait(int pending);

// Clusters of blocks, barriers in shared memory and tiles that come by themselves: see pairs.cuh. A tile is no numbers
// until it has come, which it does some time after it was asked for, and after others that were asked for later.
struct TileSource {
    const unsigned char *first;
    uint64_t rows, line, box_rows;
};
unsigned cluster_rank();
void cluster_barrier();
void barrier_begin(uint64_t *barrier, unsigned count);
void barrier_arrive(uint64_t *barrier, unsigned rank);
void barrier_expect(uint64_t *barrier, unsigned bytes);
void barrier_wait(uint64_t *barrier, unsigned parity);
void bring_tile(unsigned char *to, const TileSource &from, int column, int row, uint64_t *barrier, bool to_all);
// A barrier of the first so many threads of the block.
void barrier_of(unsigned threads);

template <class To, class From> To bit_cast(From from) {
    static_assert(sizeof(To) == sizeof(From), "as many bytes");
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}

uint16_t round_to_bf16(float number);
// Numbers that are no larger than a half can be.
uint16_t round_to_half(float number);
// The lower bits of a register.
float half_to_float(uint32_t half);

// Kernels by name.
using Call = void (*)(void **arguments);
struct Registration {
    Registration(const char *name, Call call, unsigned cluster);
};

template <class Kernel> struct Caller;
template <class... Arguments> struct Caller<void(Arguments...)> {
    template <void (*kernel)(Arguments...), size_t... places>
    static void spread(void **arguments, std::index_sequence<places...>) {
        kernel(*static_cast<std::remove_const_t<Arguments> *>(arguments[places])...);
    }
    template <void (*kernel)(Arguments...)> static void call(void **arguments) {
        spread<kernel>(arguments, std::index_sequence_for<Arguments...>());
    }
};

template <class T> T shuffle(T value, int from) {
    static_assert(sizeof(T) <= 8, "one register or two");
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof value);
    bits = exchange(bits, from);
    memcpy(&value, &bits, sizeof value);
    return value;
}

int lane();

} // namespace emulator

#define KERNEL(threads) extern "C" void
#define DEVICE inline
// `SHARED float x[8];` is a static of the block that runs. Blocks run one after the other on one thread.
#define SHARED static thread_local
#define DYNAMIC_SHARED(name) unsigned char *name = emulator::dynamic_shared()
#define EXPORT_CLUSTER(name, blocks)                                                                                   \
    static emulator::Registration registration_of_##name(                                                              \
        #name, &emulator::Caller<std::remove_pointer_t<decltype(&name)>>::call<name>, blocks);
#define EXPORT(name) EXPORT_CLUSTER(name, 1)

#define threadIdx (emulator::thread_index())
#define blockIdx (emulator::block_index())
#define blockDim (emulator::block_size())
#define gridDim (emulator::grid_size())

#define __restrict__ __restrict
#define __syncthreads() emulator::block_barrier()
#define __syncwarp(...) emulator::warp_barrier()
#define __threadfence() ((void)0)
#define __shfl_sync(mask, value, from) emulator::shuffle(value, from)
#define __shfl_xor_sync(mask, value, distance) emulator::shuffle(value, emulator::lane() ^ (distance))
#define __shfl_up_sync(mask, value, distance)                                                                          \
    emulator::shuffle(value, emulator::lane() - (distance) < 0 ? emulator::lane() : emulator::lane() - (distance))
#define __ballot_sync(mask, value) emulator::ballot(value)
#define __any_sync(mask, value) (emulator::ballot(value) != 0)
#define __popc(bits) __builtin_popcount(bits)
#define __ffs(bits) __builtin_ffs(bits)
#define __expf(x) expf(x)
#define __fdividef(x, y) ((x) / (y))
#define __float_as_uint(x) float_to_bits(x)
#define __uint_as_float(x) bits_to_float(x)

inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
template <class T> T min(T a, T b) { return b < a ? b : a; }
template <class T> T max(T a, T b) { return a < b ? b : a; }

template <class T> T atomicAdd(T *at, T value) {
    T old = *at;
    *at = T(old + value);
    return old;
}
template <class T> T atomicOr(T *at, T value) {
    T old = *at;
    *at = old | value;
    return old;
}
