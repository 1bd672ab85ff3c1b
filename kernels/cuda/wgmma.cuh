// The matrix units of compute capability 9.0, which four warps use together: `wgmma`, with operands in shared memory,
// or the left one in registers, and the sums in registers. Only in code for sm_90a, where WARPGROUPS is defined, and in
// the emulator.
//
// An operand is a matrix of rows of 128 bytes, one below the other, eight of which make a kilobyte that begins at a
// multiple of one:
//
//     piece p  of sixteen bytes of row r lies in place p ^ (r % 8) of its row
//
// One of longer rows is several such matrices. A factor on the right may be transposed: then its rows are what is
// multiplied, and what lies side by side becomes different columns of the sums.
//
// How one is used: copies land (`copies_wait`), the thread that made them shows them to the units (`show_copies`), a
// barrier tells all that it has; then `warpgroup_begin`, products, `warpgroup_commit`; and nothing touches the sums,
// nor writes where the operands are, before `warpgroup_wait`.
#pragma once

#include "narrow.cuh"

#if !defined(__CUDACC__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define WARPGROUPS
#endif

constexpr int WARPGROUP = 128;        // threads
constexpr int MATRIX_LINE = 128;      // bytes of an operand's row
constexpr int MATRIX_ALIGNMENT = 1024; // of an operand's first row

#ifndef __CUDACC__
using emulator::shared_address;
#endif

// The first byte at or after `memory` where an operand may begin.
DEVICE unsigned char *matrix_aligned(unsigned char *memory) {
    return memory + (-shared_address(memory) & (MATRIX_ALIGNMENT - 1));
}

// Where piece `piece` of row `row` lies.
DEVICE int matrix_place(int row, int piece) { return row * MATRIX_LINE + (piece ^ row % 8) * 16; }

// What tells the units of an operand that begins with this row: its address, 1 (which means nothing here), 1,024 bytes
// from eight rows to the next eight, pieces in places as above. For inputs further on in the rows, add a sixteenth of
// their bytes.
DEVICE uint64_t matrix_at(const unsigned char *first_row) {
    uint64_t address = shared_address(first_row) >> 4 & 0x3fff;
    return address | uint64_t(1) << 16 | uint64_t(MATRIX_ALIGNMENT >> 4) << 32 | uint64_t(1) << 62;
}

// The same of a transposed operand, of 64 columns that lie together, the next 64 so many bytes further on. For the next
// sixteen rows, add a sixteenth of their bytes.
DEVICE uint64_t transposed_at(const unsigned char *first_row, int next) {
    return (matrix_at(first_row) & ~(uint64_t(0x3fff) << 16)) | uint64_t(next >> 4 & 0x3fff) << 16;
}

// Begins to copy eight bytes into shared memory, or zeros: as `copy_async16`, and through the first cache.
DEVICE void copy_async8(void *shared, const void *global, bool there) {
#ifdef __CUDACC__
    int bytes = there ? 8 : 0;
    asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(shared_address(shared)), "l"(global), "r"(bytes)
                 : "memory");
#else
    emulator::copy_async(shared, there ? global : nullptr, 8);
#endif
}

// What this thread's copies brought, and it has waited for, can be read by the matrix units.
DEVICE void show_copies() {
#ifdef __CUDACC__
#ifdef WARPGROUPS
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
#else
    emulator::show_copies();
#endif
}

// Before products: what was done with the registers of the sums is done.
DEVICE void warpgroup_begin() {
#ifdef __CUDACC__
#ifdef WARPGROUPS
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
#else
    emulator::warpgroup_begin();
#endif
}

// Ends a group of products.
DEVICE void warpgroup_commit() {
#ifdef __CUDACC__
#ifdef WARPGROUPS
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
#else
    emulator::warpgroup_commit();
#endif
}

// Waits until at most `pending` groups are under way. The sums of the others can be used after `settle`.
template <int pending> DEVICE void warpgroup_wait() {
#ifdef __CUDACC__
#ifdef WARPGROUPS
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(pending) : "memory");
#endif
#else
    emulator::warpgroup_wait(pending);
#endif
}

// Nothing of what the compiler does with the sums moves past here.
template <int wide> DEVICE void settle([[maybe_unused]] float (&d)[wide][4]) {
#ifdef __CUDACC__
    UNROLL for (int j = 0; j < wide; j++)
        UNROLL for (int i = 0; i < 4; i++) asm volatile("" : "+f"(d[j][i])::"memory");
#endif
}

// The same of operands in registers, which stay what they are until here.
template <int deep> DEVICE void settle([[maybe_unused]] uint32_t (&a)[deep][4]) {
#ifdef __CUDACC__
    UNROLL for (int k = 0; k < deep; k++)
        UNROLL for (int i = 0; i < 4; i++) asm volatile("" : "+r"(a[k][i])::"memory");
#endif
}

#if defined(__CUDACC__) && defined(WARPGROUPS)
// The registers of the sums, as text and as operands.
#define SUMS_8 "{%0, %1, %2, %3, %4, %5, %6, %7"
#define SUMS_16 SUMS_8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define SUMS_32                                                                                                        \
    "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, "  \
    "%24, %25, %26, %27, %28, %29, %30, %31"
#define SUMS_64                                                                                                        \
    SUMS_32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, "   \
            "%52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define SUMS_80                                                                                                        \
    SUMS_64 ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"
#define SUMS_96                                                                                                        \
    SUMS_64 ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, %82, %83, "   \
            "%84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define SUMS_112                                                                                                       \
    SUMS_96 ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111"
#define SUMS_128                                                                                                       \
    SUMS_112 ", %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define SUM_1(j) "+f"(d[j][0]), "+f"(d[j][1]), "+f"(d[j][2]), "+f"(d[j][3])
#define SUM_4(j) SUM_1(j), SUM_1(j + 1), SUM_1(j + 2), SUM_1(j + 3)
#define SUM_8(j) SUM_4(j), SUM_4(j + 4)
#define SUM_16(j) SUM_8(j), SUM_8(j + 8)
// `x`, `y` and `sum` are the numbers of the operands after the sums.
#define MULTIPLY(shape, types, sums, x, y, keep, end, ...)                                                             \
    asm volatile("{\n.reg .pred kept;\nsetp.ne.b32 kept, %" keep ", 0;\n"                                              \
                 "wgmma.mma_async.sync.aligned." shape ".f32." types " " sums "}, %" x ", %" y ", kept, 1, 1" end      \
                 ";\n}"                                                                                                \
                 : __VA_ARGS__                                                                                         \
                 : "l"(a), "l"(b), "r"(int(kept)))
// `x0` to `x3` and `y` are the numbers of the operands after the sums.
#define MULTIPLY_REGISTERS(shape, sums, x0, x1, x2, x3, y, ...)                                                        \
    asm volatile("{\n.reg .pred kept;\nsetp.eq.u32 kept, 0, 0;\n"                                                      \
                 "wgmma.mma_async.sync.aligned." shape ".f32.bf16.bf16 " sums "}, {%" x0 ", %" x1 ", %" x2 ", %" x3   \
                 "}, %" y ", kept, 1, 1, 1;\n}"                                                                        \
                 : __VA_ARGS__                                                                                         \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))
#endif

// d[64][8 wide] (+)= a[64][32 bytes] b[8 wide][32 bytes]^T in f32, of bf16 or e4m3; what d held counts where `kept`.
// With g = lane / 4 and t = lane % 4, a lane of the group's warp w holds, of d, rows 16 w + g and 8 more, columns 8 j +
// 2 t and the next:
//     d[j] = {row g, next column, row g + 8, next column}
template <class Number, int wide>
DEVICE void warpgroup_multiply([[maybe_unused]] float (&d)[wide][4], [[maybe_unused]] uint64_t a,
                               [[maybe_unused]] uint64_t b, [[maybe_unused]] bool kept) {
    constexpr bool eight = sizeof(Number) == 1;
    static_assert(wide == 16 || wide == 24 || wide == 32 || (wide == 20 && eight) ||
                      ((wide == 2 || wide == 4 || wide == 8 || wide == 28) && !eight),
                  "a shape that is written out below");
#ifdef __CUDACC__
#ifdef WARPGROUPS
    if constexpr (wide == 2)
        MULTIPLY("m64n16k16", "bf16.bf16", SUMS_8, "8", "9", "10", ", 0, 0", SUM_1(0), SUM_1(1));
    else if constexpr (wide == 4)
        MULTIPLY("m64n32k16", "bf16.bf16", SUMS_16, "16", "17", "18", ", 0, 0", SUM_4(0));
    else if constexpr (wide == 8)
        MULTIPLY("m64n64k16", "bf16.bf16", SUMS_32, "32", "33", "34", ", 0, 0", SUM_8(0));
    else if constexpr (wide == 16 && eight)
        MULTIPLY("m64n128k32", "e4m3.e4m3", SUMS_64, "64", "65", "66", "", SUM_16(0));
    else if constexpr (wide == 16)
        MULTIPLY("m64n128k16", "bf16.bf16", SUMS_64, "64", "65", "66", ", 0, 0", SUM_16(0));
    else if constexpr (wide == 20)
        MULTIPLY("m64n160k32", "e4m3.e4m3", SUMS_80, "80", "81", "82", "", SUM_16(0), SUM_4(16));
    else if constexpr (wide == 24 && eight)
        MULTIPLY("m64n192k32", "e4m3.e4m3", SUMS_96, "96", "97", "98", "", SUM_16(0), SUM_4(16), SUM_4(20));
    else if constexpr (wide == 24)
        MULTIPLY("m64n192k16", "bf16.bf16", SUMS_96, "96", "97", "98", ", 0, 0", SUM_16(0), SUM_4(16), SUM_4(20));
    else if constexpr (wide == 28)
        MULTIPLY("m64n224k16", "bf16.bf16", SUMS_112, "112", "113", "114", ", 0, 0", SUM_16(0), SUM_8(16), SUM_4(24));
    else if constexpr (eight)
        MULTIPLY("m64n256k32", "e4m3.e4m3", SUMS_128, "128", "129", "130", "", SUM_16(0), SUM_16(16));
    else
        MULTIPLY("m64n256k16", "bf16.bf16", SUMS_128, "128", "129", "130", ", 0, 0", SUM_16(0), SUM_16(16));
#endif
#else
    emulator::warpgroup_multiply(&d[0][0], wide, a, b, kept, eight);
#endif
}

// d[64][8 wide] += a[64][16] b[16][8 wide] of bf16, with b transposed (`transposed_at`). With d as above, a lane holds,
// of a, rows g, g + 8, g, g + 8 at columns 2 t, 2 t, 2 t + 8, 2 t + 8 and the next of each.
template <int wide>
DEVICE void warpgroup_multiply([[maybe_unused]] float (&d)[wide][4], [[maybe_unused]] const uint32_t (&a)[4],
                               [[maybe_unused]] uint64_t b) {
    static_assert(wide == 8 || wide == 16 || wide == 32, "a shape that is written out below");
#ifdef __CUDACC__
#ifdef WARPGROUPS
    if constexpr (wide == 8)
        MULTIPLY_REGISTERS("m64n64k16", SUMS_32, "32", "33", "34", "35", "36", SUM_8(0));
    else if constexpr (wide == 16)
        MULTIPLY_REGISTERS("m64n128k16", SUMS_64, "64", "65", "66", "67", "68", SUM_16(0));
    else
        MULTIPLY_REGISTERS("m64n256k16", SUMS_128, "128", "129", "130", "131", "132", SUM_16(0), SUM_16(16));
#endif
#else
    emulator::warpgroup_multiply_registers(&d[0][0], wide, a, b);
#endif
}
