// What every kernel is written with: names for what CUDA calls by long words, conversions, and the few instructions
// that have no C++ name. Kernels are compiled twice: by nvcc for devices, and by a C++ compiler for the emulator
// (emulator/emulator.hpp), which runs them on a host, thread by thread, so that tests need no device.
//
// A kernel is `KERNEL(threads) name(arguments)`, followed by `EXPORT(name)`. Arguments are pointers and numbers of at
// most eight bytes. It uses barriers, shuffles and the functions of this file, nothing else of CUDA's.
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef __CUDACC__
// At most so many threads in a block, and nothing but that many registers.
#define KERNEL(threads) extern "C" __global__ void __launch_bounds__(threads)
#define DEVICE __device__ __forceinline__
#define SHARED __shared__
// The shared memory whose size the launch says.
#define DYNAMIC_SHARED(name) extern __shared__ __align__(128) unsigned char name[]
#define EXPORT(name)
// Before a loop whose every round is written out: what is indexed by its counter then stays in registers.
#define UNROLL _Pragma("unroll")
// And before one of which no round is.
#define ROLLED _Pragma("unroll 1")
// And before one of which four are: registers would not suffice for all.
#define UNROLL_4 _Pragma("unroll 4")
// A kernel of which `blocks` blocks at once are to have their registers in one multiprocessor.
#define KERNEL_ABREAST(threads, blocks) extern "C" __global__ void __launch_bounds__(threads, blocks)
#else
#include "emulator/emulator.hpp"
#define UNROLL
#define ROLLED
#define UNROLL_4
#define KERNEL_ABREAST(threads, blocks) KERNEL(threads)
#endif

constexpr unsigned ALL_LANES = 0xffffffffu;
constexpr int WARP = 32;

// ------------------------------------------------------------------------------------------------------ number types

// The upper half of a 32-bit float.
struct bf16 {
    uint16_t bits;
};

// Sixteen and eight bytes that are read and written in one instruction.
struct alignas(16) Bytes16 {
    uint32_t x, y, z, w;
};
struct alignas(8) Bytes8 {
    uint32_t x, y;
};

DEVICE float bits_to_float(uint32_t bits) {
#ifdef __CUDACC__
    return __uint_as_float(bits);
#else
    return emulator::bit_cast<float>(bits);
#endif
}

DEVICE uint32_t float_to_bits(float number) {
#ifdef __CUDACC__
    return __float_as_uint(number);
#else
    return emulator::bit_cast<uint32_t>(number);
#endif
}

DEVICE float to_float(bf16 number) { return bits_to_float(uint32_t(number.bits) << 16); }
DEVICE float to_float(float number) { return number; }

// Of two bf16 in one register, the first (at the lower address) and the second.
DEVICE float low_float(uint32_t pair) { return bits_to_float(pair << 16); }
DEVICE float high_float(uint32_t pair) { return bits_to_float(pair & 0xffff0000u); }

// Rounds to the nearest, ties to even; what is no number stays none.
DEVICE bf16 to_bf16(float number) {
#ifdef __CUDACC__
    uint16_t bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(number));
    return bf16{bits};
#else
    return bf16{emulator::round_to_bf16(number)};
#endif
}

// Two at once; `first` is the lower half.
DEVICE uint32_t to_bf16_pair(float first, float second) {
#ifdef __CUDACC__
    uint32_t pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
    return pair;
#else
    return uint32_t(to_bf16(first).bits) | uint32_t(to_bf16(second).bits) << 16;
#endif
}

// Products and sums of 64 bits of which each is rounded: a compiler makes no single operation of two. And the one that
// is single.
DEVICE double multiply_alone(double a, double b) {
#ifdef __CUDACC__
    return __dmul_rn(a, b);
#else
    volatile double product = a * b;
    return product;
#endif
}

DEVICE double add_alone(double a, double b) {
#ifdef __CUDACC__
    return __dadd_rn(a, b);
#else
    volatile double sum = a + b;
    return sum;
#endif
}

DEVICE double multiply_add_double(double a, double b, double c) { return fma(a, b, c); }

// 2 to the power of `exponent`, within two units in the last place; 1 of 0, 0 of minus infinity and where the result would
// be subnormal.
DEVICE float power_of_two(float exponent) {
#ifdef __CUDACC__
    float power;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(exponent));
    return power;
#else
    return exp2f(exponent);
#endif
}

// A product of 32 bits that is rounded before anything is added to it.
DEVICE float multiply_alone(float a, float b) {
#ifdef __CUDACC__
    return __fmul_rn(a, b);
#else
    volatile float product = a * b;
    return product;
#endif
}

// The upper 64 of the 128 bits of a product.
DEVICE uint64_t multiply_high(uint64_t a, uint64_t b) {
#ifdef __CUDACC__
    return __umul64hi(a, b);
#else
    return uint64_t(static_cast<unsigned __int128>(a) * b >> 64);
#endif
}

// ------------------------------------------------------------------------------------------------- loads and stores

// Sixteen bytes, aligned.
DEVICE Bytes16 load16(const void *from) { return *static_cast<const Bytes16 *>(from); }
DEVICE void store16(void *to, Bytes16 value) { *static_cast<Bytes16 *>(to) = value; }
DEVICE Bytes8 load8(const void *from) { return *static_cast<const Bytes8 *>(from); }
DEVICE void store8(void *to, Bytes8 value) { *static_cast<Bytes8 *>(to) = value; }

// Begins to bring what stands at an address into the second cache. It reads nothing, so it may come before
// `wait_for_earlier`.
DEVICE void prefetch([[maybe_unused]] const void *at) {
#ifdef __CUDACC__
    asm volatile("prefetch.global.L2 [%0];" ::"l"(at));
#endif
}

// Four numbers as floats; aligned to their sixteen or eight bytes.
DEVICE void load_four(float (&to)[4], const float *from) {
    Bytes16 got = load16(from);
    to[0] = bits_to_float(got.x), to[1] = bits_to_float(got.y);
    to[2] = bits_to_float(got.z), to[3] = bits_to_float(got.w);
}
DEVICE void load_four(float (&to)[4], const bf16 *from) {
    Bytes8 got = load8(from);
    to[0] = low_float(got.x), to[1] = high_float(got.x), to[2] = low_float(got.y), to[3] = high_float(got.y);
}
DEVICE void store_four(float *to, const float (&from)[4]) {
    uint32_t first = float_to_bits(from[0]), second = float_to_bits(from[1]);
    store16(to, Bytes16{first, second, float_to_bits(from[2]), float_to_bits(from[3])});
}
DEVICE void store_four(bf16 *to, const float (&from)[4]) {
    store8(to, Bytes8{to_bf16_pair(from[0], from[1]), to_bf16_pair(from[2], from[3])});
}

#ifdef __CUDACC__
DEVICE uint32_t shared_address(const void *pointer) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}
#endif

// Begins to copy sixteen bytes into shared memory, or zeros where `there` is false. Lands by `copies_wait`.
DEVICE void copy_async16(void *shared, const void *global, bool there) {
#ifdef __CUDACC__
    int bytes = there ? 16 : 0;
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global),
                 "r"(bytes)
                 : "memory");
#else
    emulator::copy_async(shared, there ? global : nullptr, 16);
#endif
}

// Ends a group of copies of this thread.
DEVICE void copies_commit() {
#ifdef __CUDACC__
    asm volatile("cp.async.commit_group;" ::: "memory");
#else
    emulator::copies_commit();
#endif
}

// Waits until at most `pending` groups of this thread are under way. Others' copies need a barrier besides.
template <int pending> DEVICE void copies_wait() {
#ifdef __CUDACC__
    asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
#else
    emulator::copies_wait(pending);
#endif
}

// What another block of the same launch wrote before a fence: past the first cache, which may hold what was there before.
DEVICE Bytes16 load_fresh16(const void *from) {
#ifdef __CUDACC__
    Bytes16 got;
    asm volatile("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(got.x), "=r"(got.y), "=r"(got.z), "=r"(got.w)
                 : "l"(from)
                 : "memory");
    return got;
#else
    return load16(from);
#endif
}
DEVICE float load_fresh(const float *from) {
#ifdef __CUDACC__
    float got;
    asm volatile("ld.global.cg.f32 %0, [%1];" : "=f"(got) : "l"(from) : "memory");
    return got;
#else
    return *from;
#endif
}

DEVICE int load_fresh(const int *from) {
#ifdef __CUDACC__
    int got;
    asm volatile("ld.global.cg.s32 %0, [%1];" : "=r"(got) : "l"(from) : "memory");
    return got;
#else
    return *from;
#endif
}
// The same where `early`: before `wait_for_earlier` only the second cache is sure to have what was written before the step.
template <bool early> DEVICE int load_int(const int *from) { return early ? load_fresh(from) : *from; }

// ------------------------------------------------------------------------------------------------------ matrix units

// Four 8x8 matrices of 16-bit numbers out of shared memory. Lane l gives the address of row l % 8 of matrix l / 8
// (sixteen bytes, aligned); register j then holds, of matrix j, row l / 4, columns 2 (l % 4) and the next.
DEVICE void load_matrices(uint32_t (&to)[4], const void *row) {
#ifdef __CUDACC__
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_address(row))
                 : "memory");
#else
    emulator::load_matrices(to, row, false);
#endif
}

// The same of the transposed matrices: register j holds rows 2 (l % 4) and the next of column l / 4.
DEVICE void load_matrices_transposed(uint32_t (&to)[4], const void *row) {
#ifdef __CUDACC__
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_address(row))
                 : "memory");
#else
    emulator::load_matrices(to, row, true);
#endif
}

// d[16x8] += a[16x16] b[16x8], in f32. With g = lane / 4 and t = lane % 4, a lane holds
//   a  rows g, g + 8, g, g + 8 at columns 2t, 2t, 2t + 8, 2t + 8 and the next of each
//   b  rows 2t and 2t + 8 and the next of each, at column g
//   d  row g at columns 2t and 2t + 1, then row g + 8 there
DEVICE void multiply_add(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#ifdef __CUDACC__
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
    emulator::multiply_add(d, a, b0, b1, false);
#endif
}

// The same where a and b are halves.
DEVICE void multiply_add_half(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
#ifdef __CUDACC__
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#else
    emulator::multiply_add(d, a, b0, b1, true);
#endif
}

// --------------------------------------------------------------------------------------------------------- reductions

DEVICE int lane_index() { return threadIdx.x % WARP; }
DEVICE int warp_index() { return threadIdx.x / WARP; }

// Every lane gets the result, which is the same whatever the lane: the order of additions is fixed.
DEVICE float warp_sum(float value) {
    for (int distance = WARP / 2; distance > 0; distance /= 2) value += __shfl_xor_sync(ALL_LANES, value, distance);
    return value;
}

DEVICE float warp_max(float value) {
    for (int distance = WARP / 2; distance > 0; distance /= 2)
        value = fmaxf(value, __shfl_xor_sync(ALL_LANES, value, distance));
    return value;
}

// The same over all threads of the block, whose number is a multiple of 32; `scratch` has room for 32 floats. Barriers
// stand before and after.
DEVICE float block_sum(float value, float *scratch) {
    value = warp_sum(value);
    __syncthreads();
    if (lane_index() == 0) scratch[warp_index()] = value;
    __syncthreads();
    float part = lane_index() < int(blockDim.x) / WARP ? scratch[lane_index()] : 0.0f;
    return warp_sum(part);
}

DEVICE float block_max(float value, float *scratch) {
    value = warp_max(value);
    __syncthreads();
    if (lane_index() == 0) scratch[warp_index()] = value;
    __syncthreads();
    float part = lane_index() < int(blockDim.x) / WARP ? scratch[lane_index()] : -INFINITY;
    return warp_max(part);
}

// ------------------------------------------------------------------------------------- kernels that overlap each other

// Waits until all that earlier kernels of the stream wrote can be read. Every kernel calls it, in every thread, before
// it reads or writes anything that another kernel of the step writes or reads; weights may be read before. So may what is
// written before a step begins: its tokens' slots and positions, tables of blocks, lists of work, and what the cache holds
// of earlier positions; past the first cache (`load_int`, asynchronous copies), which nothing has emptied yet. For the first
// kernel of a step (`embed`) lets the next start only after it has waited, so all that comes after it finds that written.
DEVICE void wait_for_earlier() {
#if defined(__CUDACC__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// The next kernel may be put on the device while this one runs. Where it stands before `wait_for_earlier`, products that
// follow get their weights under way meanwhile; what they wait for then is this kernel, and so all before it.
DEVICE void let_next_start() {
#if defined(__CUDACC__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
