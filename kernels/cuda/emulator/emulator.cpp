// See emulator.hpp.
#include "emulator.hpp"

#include <algorithm>
#include <cstdio>
#include <map>
#include <memory>
#include <string>
#include <sys/mman.h>
#include <ucontext.h>
#include <vector>

namespace emulator {
namespace {

constexpr size_t STACK = 256 << 10;
constexpr int LANES = 32;
constexpr int WARPGROUP = 128;
// Where dynamic shared memory begins: at no multiple of what operands of the matrix units need.
constexpr uint32_t SHARED_BASE = 1152;
// Bytes of a row of such an operand that are multiplied at once.
constexpr int DEEP = 32;
// What stands in sums while products are under way: no number.
constexpr uint32_t TAKEN = 0x7ffadbad;

struct Copy {
    void *to;
    const void *from;
    size_t bytes;
};

// What a product of four warps multiplies, as it was when the product began. `registers`: `a` is in these, and `b` is
// transposed.
struct Operands {
    uint64_t a = 0, b = 0;
    int wide = 0;
    bool eight = false, registers = false, checked = false;
    std::vector<unsigned char> bytes;
    std::vector<float> numbers;
};

struct Multiplication {
    std::shared_ptr<Operands> of;
    float *d;
    bool kept;
    // This lane's part of the left factor, where that is in registers.
    const uint32_t *from = nullptr;
    uint32_t a[4] = {};
};

struct Kernel {
    Call call;
    // Blocks that run together.
    unsigned cluster;
};

// Where all of a group wait until the last has come.
struct Barrier {
    unsigned arrived = 0, generation = 0;
};

std::map<std::string, Kernel> &kernels() {
    static std::map<std::string, Kernel> all;
    return all;
}

} // namespace

struct Thread {
    unsigned index = 0;
    bool done = false;
    void *stack_pointer = nullptr;
    void *stack = nullptr;
    std::vector<std::vector<Copy>> groups;
    std::vector<Copy> open;
    // How often it has shown its copies to the matrix units.
    unsigned shown = 0;
    bool begun = false;
    std::vector<std::vector<Multiplication>> products;
    std::vector<Multiplication> open_products;
    // Sums that belong to products under way, by where they are.
    std::map<float *, std::vector<float>> sums;
};

namespace {

struct Warp {
    Barrier barrier;
    unsigned live = 0;
    uint64_t slots[LANES] = {};
    uint32_t fragments[LANES][6] = {};
    const void *rows[LANES] = {};
};

struct Warpgroup {
    Barrier barrier;
    std::shared_ptr<Operands> operands;
};

// Who copied sixteen bytes to shared memory, and how often it had shown its copies by then.
struct Copied {
    int thread = -1;
    unsigned shown = 0;
};

struct Block {
    dim3 index, size, grid;
    // Its place in the cluster.
    unsigned rank = 0, shared = 0;
    std::vector<Warpgroup> warpgroups;
    std::vector<Copied> copied;
    std::vector<Thread> threads;
    std::vector<Warp> warps;
    Barrier barrier;
    // Of some of its threads.
    Barrier some;
    unsigned live = 0;
    unsigned char *dynamic = nullptr;
    Call call = nullptr;
    void **arguments = nullptr;
};

// A tile that is under way to one block's shared memory.
struct Arrival {
    Block *block;
    unsigned char *to;
    uint64_t *barrier;
    TileSource from;
    int column, row;
};

// Blocks that run together.
struct Cluster {
    std::vector<Block> blocks;
    Barrier barrier;
    unsigned live = 0;
    std::vector<Arrival> arrivals;
};

thread_local Cluster *cluster = nullptr;
thread_local Block *block = nullptr;
thread_local Thread *thread = nullptr;
thread_local void *scheduler = nullptr;
thread_local bool broken = false;
// Counts what others may have waited for.
thread_local uint64_t events = 0;

// A rule of the device is broken: said once.
void complain(const char *what) {
    if (!broken) fprintf(stderr, "a kernel breaks a rule of the device: %s\n", what);
    broken = true;
}

// Changes over from one coroutine to another: what a called function must keep is put on the old stack and taken from
// the new one.
#if defined(__x86_64__)
extern "C" void emulator_switch(void **from, void *to);
asm(R"(
.text
.globl emulator_switch
.type emulator_switch, @function
emulator_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size emulator_switch, .-emulator_switch
)");

void *prepare(void *stack, void (*entry)()) {
    auto top = reinterpret_cast<uintptr_t>(stack) + STACK;
    auto *at = reinterpret_cast<uint64_t *>(top & ~uintptr_t(15));
    *--at = 0; // a return address for `entry`, which never returns
    *--at = reinterpret_cast<uint64_t>(entry);
    for (int saved = 0; saved < 6; saved++) *--at = 0;
    return at;
}
#else
// The portable way, through the C library.
void emulator_switch(void **from, void *to) {
    ucontext_t here;
    *from = &here;
    swapcontext(&here, static_cast<ucontext_t *>(to));
}

void *prepare(void *stack, void (*entry)()) {
    auto *context = static_cast<ucontext_t *>(stack);
    getcontext(context);
    context->uc_stack.ss_sp = static_cast<char *>(stack) + sizeof(ucontext_t);
    context->uc_stack.ss_size = STACK - sizeof(ucontext_t);
    context->uc_link = nullptr;
    makecontext(context, entry, 0);
    return context;
}
#endif

void yield() { emulator_switch(&thread->stack_pointer, scheduler); }

void open_if_all(Barrier &barrier, unsigned live) {
    events++;
    if (barrier.arrived > 0 && barrier.arrived == live) {
        barrier.arrived = 0;
        barrier.generation++;
    }
}

void wait_at(Barrier &barrier, unsigned live) {
    unsigned generation = barrier.generation;
    barrier.arrived++;
    open_if_all(barrier, live);
    while (barrier.generation == generation) yield();
}

Warp &warp() { return block->warps[thread->index / LANES]; }

void entry() {
    block->call(block->arguments);
    if (!thread->products.empty() || !thread->open_products.empty()) complain("products are not waited for");
    thread->done = true;
    // Who has left is not waited for.
    open_if_all(block->barrier, --block->live);
    open_if_all(warp().barrier, --warp().live);
    open_if_all(cluster->barrier, --cluster->live);
    yield();
}

void land(const std::vector<Copy> &group) {
    for (const Copy &copy : group) {
        if (copy.from) {
            memcpy(copy.to, copy.from, copy.bytes);
        } else {
            memset(copy.to, 0, copy.bytes);
        }
        size_t at = size_t(static_cast<unsigned char *>(copy.to) - block->dynamic);
        if (at < block->shared) block->copied[at / 16] = Copied{int(thread->index), thread->shown};
    }
}

struct Stacks {
    std::vector<void *> all;
    void *at(size_t index) {
        while (all.size() <= index) {
            void *stack = mmap(nullptr, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
            if (stack == MAP_FAILED) abort();
            all.push_back(stack);
        }
        return all[index];
    }
    ~Stacks() {
        for (void *stack : all) munmap(stack, STACK);
    }
};

void begin_block(Block &running, Stacks &stacks) {
    unsigned count = running.size.x;
    running.threads.assign(count, Thread());
    running.warps.assign((count + LANES - 1) / LANES, Warp());
    running.warpgroups.assign((count + WARPGROUP - 1) / WARPGROUP, Warpgroup());
    running.copied.assign((running.shared + 15) / 16, Copied());
    running.live = count;
    for (unsigned index = 0; index < count; index++) {
        Thread &made = running.threads[index];
        made.index = index;
        made.stack = stacks.at(running.rank * count + index);
        made.stack_pointer = prepare(made.stack, entry);
        running.warps[index / LANES].live++;
    }
}

void land_some(unsigned pass);

void run_cluster(Cluster &running) {
    static thread_local Stacks stacks;
    constexpr unsigned PASSES_OF_NOTHING = 64;
    for (Block &one : running.blocks) begin_block(one, stacks);
    unsigned of_block = running.blocks[0].size.x, count = of_block * unsigned(running.blocks.size()), idle = 0;
    running.live = count;
    cluster = &running;
    // Forwards and backwards in turn: a result that depends on who runs first changes.
    for (unsigned pass = running.blocks[0].index.x + running.blocks[0].index.y; running.live > 0; pass++) {
        uint64_t before = events;
        for (unsigned step = 0; step < count; step++) {
            unsigned next = pass % 2 == 0 ? step : count - 1 - step;
            block = &running.blocks[next / of_block];
            thread = &block->threads[next % of_block];
            if (!thread->done) emulator_switch(&scheduler, thread->stack_pointer);
        }
        land_some(pass);
        idle = events == before ? idle + 1 : 0;
        if (idle > PASSES_OF_NOTHING) return complain("all threads wait, and nothing is to come");
    }
    if (!running.arrivals.empty()) complain("blocks end while tiles are under way to them");
}

} // namespace

dim3 thread_index() { return dim3{thread->index, 0, 0}; }
dim3 block_index() { return block->index; }
dim3 block_size() { return block->size; }
dim3 grid_size() { return block->grid; }
unsigned char *dynamic_shared() { return block->dynamic; }
int lane() { return int(thread->index % LANES); }

void block_barrier() { wait_at(block->barrier, block->live); }
void warp_barrier() { wait_at(warp().barrier, warp().live); }

uint64_t exchange(uint64_t value, int from) {
    Warp &mine = warp();
    mine.slots[lane()] = value;
    warp_barrier();
    uint64_t got = mine.slots[from & (LANES - 1)];
    warp_barrier();
    return got;
}

uint32_t ballot(bool value) {
    Warp &mine = warp();
    mine.slots[lane()] = value;
    warp_barrier();
    uint32_t bits = 0;
    for (int other = 0; other < LANES; other++) bits |= uint32_t(mine.slots[other] != 0) << other;
    warp_barrier();
    return bits;
}

void copy_async(void *to, const void *from, size_t bytes) { thread->open.push_back(Copy{to, from, bytes}); }

void copies_commit() {
    thread->groups.push_back(std::move(thread->open));
    thread->open.clear();
}

void copies_wait(int pending) {
    while (thread->groups.size() > size_t(pending)) {
        land(thread->groups.front());
        thread->groups.erase(thread->groups.begin());
    }
}

void load_matrices(uint32_t (&to)[4], const void *row, bool transposed) {
    Warp &mine = warp();
    mine.rows[lane()] = row;
    warp_barrier();
    int at = lane();
    for (int matrix = 0; matrix < 4; matrix++) {
        uint32_t pair = 0;
        for (int half = 0; half < 2; half++) {
            int line = transposed ? 2 * (at % 4) + half : at / 4, column = transposed ? at / 4 : 2 * (at % 4) + half;
            pair |= uint32_t(static_cast<const uint16_t *>(mine.rows[matrix * 8 + line])[column]) << (16 * half);
        }
        to[matrix] = pair;
    }
    warp_barrier();
}

static float half_of(uint32_t pair, int half) {
    return bit_cast<float>(half == 0 ? pair << 16 : pair & 0xffff0000u);
}

void multiply_add(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, bool halves) {
    auto number = [halves](uint32_t pair, int which) {
        return halves ? half_to_float(pair >> 16 * which) : half_of(pair, which);
    };
    Warp &mine = warp();
    uint32_t put[6] = {a[0], a[1], a[2], a[3], b0, b1};
    memcpy(mine.fragments[lane()], put, sizeof put);
    warp_barrier();
    int group = lane() / 4, pair = lane() % 4;
    for (int which = 0; which < 4; which++) {
        int row = group + 8 * (which / 2), column = 2 * pair + which % 2;
        float sum = 0;
        for (int k = 0; k < 16; k++) {
            int owner_a = row % 8 * 4 + k % 8 / 2, owner_b = column * 4 + k % 8 / 2;
            float left = number(mine.fragments[owner_a][row / 8 + 2 * (k / 8)], k % 2);
            float right = number(mine.fragments[owner_b][4 + k / 8], k % 2);
            sum += left * right;
        }
        d[which] += sum;
    }
    warp_barrier();
}

uint16_t round_to_bf16(float number) {
    uint32_t bits = bit_cast<uint32_t>(number);
    if (number != number) return uint16_t(bits >> 16 | 0x40);
    return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

uint16_t round_to_half(float number) {
    uint32_t bits = bit_cast<uint32_t>(number), sign = bits >> 16 & 0x8000;
    if (number != number) return uint16_t(sign | 0x7e00);
    float size = fabsf(number);
    // Below 2^-14 the steps are those of floats from 2^-1 on.
    if (size < 0x1p-14f) return uint16_t(sign | (bit_cast<uint32_t>(size + 0.5f) - bit_cast<uint32_t>(0.5f)));
    uint32_t large = bit_cast<uint32_t>(size);
    return uint16_t(sign | (((large + 0xfff + (large >> 13 & 1)) >> 13) - (112 << 10)));
}

float half_to_float(uint32_t half) {
    // Beyond the largest: infinite, or no number.
    if ((half & 0x7c00) == 0x7c00) return bit_cast<float>((half & 0x8000) << 16 | 0x7f800000u | (half & 0x3ff) << 13);
    return bit_cast<float>((half & 0x8000) << 16 | (half & 0x7fff) << 13) * 0x1p112f;
}

Registration::Registration(const char *name, Call call, unsigned cluster) { kernels()[name] = Kernel{call, cluster}; }

} // namespace emulator

#include "warpgroups.hpp"
#include "clusters.hpp"

// Runs a kernel to its end. `grid` has three numbers; `arguments` a pointer to each argument. 0 where all went well; 1
// where there is no kernel of this name; 2 where it broke a rule of the device, which is said on the standard error.
extern "C" int tensorgate_emulate(const char *name, const unsigned *grid, unsigned threads, unsigned shared,
                                  void **arguments) {
    using namespace emulator;
    auto found = kernels().find(name);
    if (found == kernels().end()) return 1;
    broken = false;
    unsigned together = found->second.cluster, room = (shared + 127) / 128 * 128;
    if (grid[0] % together != 0) return 2;
    std::unique_ptr<unsigned char[]> memory(new unsigned char[size_t(room) * together + 128]);
    auto *dynamic = reinterpret_cast<unsigned char *>((reinterpret_cast<uintptr_t>(memory.get()) + 127) & ~uintptr_t(127));
    for (unsigned z = 0; z < grid[2]; z++)
        for (unsigned y = 0; y < grid[1]; y++)
            for (unsigned x = 0; x < grid[0]; x += together) {
                Cluster running;
                running.blocks.resize(together);
                for (unsigned rank = 0; rank < together; rank++) {
                    Block &one = running.blocks[rank];
                    one.rank = rank;
                    one.index = dim3{x + rank, y, z};
                    one.size = dim3{threads, 1, 1};
                    one.grid = dim3{grid[0], grid[1], grid[2]};
                    one.dynamic = dynamic + size_t(room) * rank;
                    one.shared = shared;
                    one.call = found->second.call;
                    one.arguments = arguments;
                }
                memset(dynamic, 0xff, size_t(room) * together);
                run_cluster(running);
            }
    return broken ? 2 : 0;
}
