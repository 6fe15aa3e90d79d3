// What the attention's ops hand to their kernels. T storage type, A accumulator type; all tensors contiguous.
#pragma once
#include <cstdint>

namespace hybridops {

enum class Activation { tanh = 0, relu = 1, leaky_relu = 2 };

struct AdditiveShape {
    int64_t batch, queries, keys, width;  // B, S, T, A
    Activation activation;
    double negative_slope;
};

// e^2x of `count` rows, each padded with zeros of x to `padded` columns, and the largest |x| of each row.
template <class A>
struct ExponentialRows {
    int64_t count, padded;
    A *values, *bound;
    const A* row(int64_t i) const { return values + i * padded; }
};

template <class T, class A>
struct AdditiveScoresArgs {
    AdditiveShape shape;
    const T *q, *k, *v;                // (B,S,A), (B,T,A), (A)
    ExponentialRows<A> prepared_keys;  // values null = none
    A* scores;                         // (B,S,T)
};

// A (B,S,T) tensor by its strides; data null = none.
template <class T>
struct Broadcast {
    const T* data;
    int64_t batch, query, key;
};

template <class T, class A>
struct SoftmaxArgs {
    Broadcast<bool> mask;
    Broadcast<A> bias;
    A scale;
    T* weights;  // (B,S,T); may be the scores themselves
};

template <class T, class A>
struct AdditiveScoresBackwardArgs {
    AdditiveShape shape;
    const A* grad;       // (B,S,T)
    const T *q, *k, *v;  // (B,S,A), (B,T,A), (A)
    T *dq, *dk, *dv;
};

}  // namespace hybridops
