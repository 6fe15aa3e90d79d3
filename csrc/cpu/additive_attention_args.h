// What csrc/cpu/additive_attention.cpp hands to its kernels. T storage type, A accumulator type; all tensors contiguous.
#pragma once
#include <cstdint>

namespace hybridops {

enum class Activation { tanh = 0, relu = 1, leaky_relu = 2 };

struct AdditiveShape {
    int64_t batch, queries, keys, width;  // B, S, T, A
    Activation activation;
    double negative_slope;
};

template <class T, class A>
struct AdditiveScoresArgs {
    AdditiveShape shape;
    const T *q, *k, *v;  // (B,S,A), (B,T,A), (A)
    A* scores;           // (B,S,T)
};

template <class T, class A>
struct AdditiveScoresBackwardArgs {
    AdditiveShape shape;
    const A* grad;       // (B,S,T)
    const T *q, *k, *v;  // (B,S,A), (B,T,A), (A)
    T *dq, *dk, *dv;
};

}  // namespace hybridops
