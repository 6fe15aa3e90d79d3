// What the attention's ops hand to their kernels. T storage type, A accumulator type; all tensors contiguous.
#pragma once
#include <cstdint>
#include <optional>

#include "tensors.h"

namespace hybridops {

enum class Activation { tanh = 0, relu = 1, leaky_relu = 2 };

struct AdditiveShape {
    int64_t batch, queries, keys, width;  // B, S, T, A
    Activation activation;
    double negative_slope;
};

// e^-2k of `count` keys, each padded with zeros of k to `padded` columns, and the largest |k| of each.
template <class A>
struct KeyExponentials {
    int64_t count, padded;
    A *values, *bound;
};

template <class T, class A>
struct AdditiveScoresArgs {
    AdditiveShape shape;
    const T *q, *k, *v;                // (B,S,A), (B,T,A), (A)
    KeyExponentials<A> prepared_keys;  // values null = none
    A* scores;                         // (B,S,T); null where the attention is asked for
};

// A (B,S,T) tensor by its strides; data null = none.
template <class T>
struct Broadcast {
    const T* data;
    int64_t batch, query, key;
};

template <class T>
Broadcast<T> broadcast_of(const std::optional<Tensor>& t) {
    return t ? Broadcast<T>{data<const T>(*t), t->stride(0), t->stride(1), t->stride(2)} : Broadcast<T>{};
}

template <class T, class A>
struct SoftmaxArgs {
    Broadcast<bool> mask;
    Broadcast<A> bias;
    A scale;
    T* weights;  // (B,S,T); null = not asked for
};

// What attention takes and gives besides the scores' arguments, on the CPU.
template <class T, class A>
struct ContextArgs {
    SoftmaxArgs<T, A> softmax;
    const T* value;  // (B,T,D)
    T* context;      // (B,S,D)
    int64_t channels;
};

template <class T, class A>
struct AdditiveScoresBackwardArgs {
    AdditiveShape shape;
    const A* grad;       // (B,S,T)
    const T *q, *k, *v;  // (B,S,A), (B,T,A), (A)
    T *dq, *dk, *dv;
};

}  // namespace hybridops
