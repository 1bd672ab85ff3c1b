// The matrix units of four warps: the part of emulator.cpp that runs wgmma.cuh, and ends there.
#pragma once

namespace emulator {

uint32_t shared_address(const void *pointer) {
    return SHARED_BASE + uint32_t(static_cast<const unsigned char *>(pointer) - block->dynamic);
}

void show_copies() { thread->shown++; }
void warpgroup_begin() { thread->begun = true; }

static float eight_bits(unsigned char bits) {
    uint32_t sign = uint32_t(bits & 0x80) << 24, rest = bits & 0x7f;
    return bit_cast<float>(sign | (rest == 0x7f ? 0x7fc00000u : rest << 20)) * (rest == 0x7f ? 1.0f : 0x1p120f);
}

// Bytes of an operand that follow each other but for the order of pieces.
static void read_pieces(std::vector<unsigned char> &bytes, uint32_t start, int count, bool first) {
    for (uint32_t at = start; at < start + count; at += 16) {
        uint32_t place = (at ^ (at >> 7 & 7) << 4) - SHARED_BASE;
        if (place >= block->shared || place + 16 > block->shared)
            return complain("an operand is not in the block's shared memory");
        const Copied &copied = block->copied[place / 16];
        if (first && copied.thread >= 0 && block->threads[copied.thread].shown == copied.shown)
            return complain("an operand was copied and not shown to the matrix units");
        bytes.insert(bytes.end(), block->dynamic + place, block->dynamic + place + 16);
    }
}

// The parts of a descriptor that are addresses.
static uint32_t bytes_at(uint64_t descriptor, int bit) { return uint32_t(descriptor >> bit & 0x3fff) << 4; }

static bool is_known(uint64_t descriptor) {
    uint32_t start = bytes_at(descriptor, 0);
    if (descriptor >> 62 != 1) complain("an operand's pieces lie in places that are not known here");
    if ((start >> 7 & 7) != (descriptor >> 49 & 7)) complain("an operand begins at no multiple of 1,024 bytes");
    return !broken;
}

// The bytes of an operand's rows, by its descriptor.
static void read_operand(std::vector<unsigned char> &bytes, uint64_t descriptor, int rows, bool first) {
    if (!is_known(descriptor)) return;
    for (int row = 0; row < rows; row++) {
        uint32_t eight = row / 8 * bytes_at(descriptor, 32);
        read_pieces(bytes, bytes_at(descriptor, 0) + eight + row % 8 * 128, DEEP, first);
    }
}

// The same of a transposed one: of its 16 rows, 64 columns lie side by side, and the next 64 elsewhere.
static void read_transposed(std::vector<unsigned char> &bytes, uint64_t descriptor, int columns, bool first) {
    if (!is_known(descriptor)) return;
    constexpr int rows = DEEP / 2, together = 64;
    std::vector<unsigned char> read;
    for (int row = 0; row < rows; row++)
        for (int column = 0; column < columns; column += together) {
            uint32_t eight = row / 8 * bytes_at(descriptor, 32), next = column / together * bytes_at(descriptor, 16);
            read_pieces(read, bytes_at(descriptor, 0) + eight + row % 8 * 128 + next, together * 2, first);
        }
    read.resize(size_t(columns) * DEEP);
    for (int at = 0; at < columns * rows; at++) {
        const unsigned char *from = &read[(at % rows * columns + at / rows) * 2];
        bytes.insert(bytes.end(), from, from + 2);
    }
}

static std::vector<unsigned char> read_operands(const Operands &of, bool first) {
    std::vector<unsigned char> bytes;
    if (of.registers) {
        bytes.resize(64 * DEEP);
        read_transposed(bytes, of.b, of.wide * 8, first);
    } else {
        read_operand(bytes, of.a, 64, first);
        read_operand(bytes, of.b, of.wide * 8, first);
    }
    bytes.resize((64 + size_t(of.wide) * 8) * DEEP);
    return bytes;
}

// Where all lanes have put in the same, the numbers of the operands.
static std::shared_ptr<Operands> read_together(const Operands &mine) {
    Warpgroup &group = block->warpgroups[thread->index / WARPGROUP];
    if (!thread->begun) complain("products begin without `warpgroup_begin`");
    bool leads = thread->index % WARPGROUP == 0;
    if (leads) group.operands = std::make_shared<Operands>(mine);
    wait_at(group.barrier, WARPGROUP);
    std::shared_ptr<Operands> of = group.operands;
    if (of->a != mine.a || of->b != mine.b || of->wide != mine.wide || of->eight != mine.eight ||
        of->registers != mine.registers)
        complain("four warps, and not one product");
    if (leads) {
        of->bytes = read_operands(*of, true);
        for (size_t at = 0; at < of->bytes.size(); at += of->eight ? 1 : 2) {
            if (of->eight) {
                of->numbers.push_back(eight_bits(of->bytes[at]));
            } else {
                uint32_t upper = uint32_t(of->bytes[at]) | uint32_t(of->bytes[at + 1]) << 8;
                of->numbers.push_back(bit_cast<float>(upper << 16));
            }
        }
    }
    wait_at(group.barrier, WARPGROUP);
    return of;
}

// A product is under way: what the sums hold from now on is no number.
static void begin_product(const Multiplication &product) {
    float *d = product.d;
    int count = 4 * product.of->wide;
    std::vector<float> &sums = thread->sums[d];
    if (sums.empty()) {
        sums.assign(d, d + count);
        for (int at = 0; at < count; at++) d[at] = bit_cast<float>(TAKEN);
    }
    for (int at = 0; at < count; at++)
        if (bit_cast<uint32_t>(d[at]) != TAKEN) complain("sums are written while products are under way");
    thread->open_products.push_back(product);
}

void warpgroup_multiply(float *d, int wide, uint64_t a, uint64_t b, bool kept, bool eight) {
    Operands mine;
    mine.a = a, mine.b = b, mine.wide = wide, mine.eight = eight;
    begin_product(Multiplication{read_together(mine), d, kept});
}

void warpgroup_multiply_registers(float *d, int wide, const uint32_t *a, uint64_t b) {
    Operands mine;
    mine.b = b, mine.wide = wide, mine.registers = true;
    Multiplication product{read_together(mine), d, true};
    product.from = a;
    memcpy(product.a, a, sizeof product.a);
    int row = int(thread->index % WARPGROUP) / LANES * 16 + lane() / 4, column = lane() % 4 * 2;
    for (int at = 0; at < 8; at++)
        product.of->numbers[(row + at / 2 % 2 * 8) * 16 + column + at / 4 * 8 + at % 2] = half_of(a[at / 2], at % 2);
    // All lanes have put in theirs.
    wait_at(block->warpgroups[thread->index / WARPGROUP].barrier, WARPGROUP);
    begin_product(product);
}

void warpgroup_commit() {
    thread->products.push_back(std::move(thread->open_products));
    thread->open_products.clear();
}

static void finish(const Multiplication &product) {
    Operands &of = *product.of;
    if (!of.checked && of.bytes != read_operands(of, false)) complain("operands change while products are under way");
    of.checked = true;
    if (of.registers && memcmp(product.from, product.a, sizeof product.a) != 0)
        complain("registers of an operand change while products are under way");
    int deep = of.eight ? DEEP : DEEP / 2, first_row = int(thread->index % WARPGROUP) / LANES * 16 + lane() / 4;
    std::vector<float> &sums = thread->sums[product.d];
    for (int at = 0; at < 4 * of.wide; at++) {
        const float *left = &of.numbers[(first_row + at % 4 / 2 * 8) * deep];
        const float *right = &of.numbers[(64 + at / 4 * 8 + lane() % 4 * 2 + at % 2) * deep];
        float sum = 0;
        for (int k = 0; k < deep; k++) sum += left[k] * right[k];
        sums[at] = product.kept ? sums[at] + sum : sum;
    }
}

void warpgroup_wait(int pending) {
    thread->begun = false;
    while (thread->products.size() > size_t(pending)) {
        for (const Multiplication &product : thread->products.front()) finish(product);
        thread->products.erase(thread->products.begin());
    }
    auto under_way = [](float *d) {
        auto uses = [d](const Multiplication &product) { return product.d == d; };
        auto some = [&](const auto &group) { return std::any_of(group.begin(), group.end(), uses); };
        return some(thread->open_products) || std::any_of(thread->products.begin(), thread->products.end(), some);
    };
    for (auto at = thread->sums.begin(); at != thread->sums.end();) {
        if (under_way(at->first)) {
            ++at;
        } else {
            for (size_t i = 0; i < at->second.size(); i++) {
                if (bit_cast<uint32_t>(at->first[i]) != TAKEN) complain("sums were written before the products' end");
                at->first[i] = at->second[i];
            }
            at = thread->sums.erase(at);
        }
    }
}

} // namespace emulator
