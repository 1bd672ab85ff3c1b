// Gated activations: what a gate and an up projection become.
#pragma once

#include "device.cuh"

namespace {

// As launchers number them.
enum Kind { SILU, GELU, GELU_TANH, CLAMPED_SWIGLU };

// x times the logistic function of y. A power that overflows gives x / inf = 0.
DEVICE float times_sigmoid(float x, float y) { return __fdividef(x, 1.0f + __expf(-y)); }

template <int KIND> DEVICE float activate(float gate, float up, float limit) {
    if (KIND == SILU) return times_sigmoid(gate, gate) * up;
    // By the complement, which keeps its digits where gelu is small: 1 + erf(z) = erfc(-z).
    if (KIND == GELU) return 0.5f * gate * erfcf(-0.70710678f * gate) * up;
    if (KIND == GELU_TANH) {
        // (1 + tanh(z)) / 2 is the logistic function of 2 z.
        float doubled = 1.5957691f * (gate + 0.044715f * gate * gate * gate);
        return times_sigmoid(gate, doubled) * up;
    }
    gate = fminf(gate, limit);
    up = fminf(fmaxf(up, -limit), limit);
    return times_sigmoid(gate, 1.702f * gate) * (up + 1.0f);
}

} // namespace
