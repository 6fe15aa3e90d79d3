// What the attention decoder's ops hand to their kernels. T storage type, A accumulator type; tensors are contiguous where
// no strides stand beside them. Equations and symbols: hybridops/formulas/attention_decoder.py.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>

#include "additive_attention_args.h"
#include "tensors.h"

namespace hybridops {

enum class CellType { lstm = 0, gru = 1 };             // gates i f g o, or r z n
enum class QuerySource { previous = 0, current = 1 };  // the query is of h_{s-1}, or of h_s

struct DecoderShape {
    int64_t batch, steps, keys, hidden, channels, width;  // B, S, T, H, D, A
    int64_t entries;  // of the memory; more rows than that share it, those of an entry next to each other
    CellType cell;
    QuerySource query;
    double scale;
    Activation activation;
    double negative_slope;

    int64_t rows_per_entry() const { return entries ? batch / entries : 1; }
    int64_t gates() const { return (cell == CellType::lstm ? 4 : 3) * hidden; }
};

// A weight (outputs, inputs) by its strides; data null = none.
template <class T>
struct WeightMatrix {
    const T* data;
    int64_t output, input;

    WeightMatrix transposed() const { return {data, input, output}; }
};

template <class T>
struct DecoderWeights {
    WeightMatrix<T> q, context, h, beta;  // (A,H), (GH,D), (GH,H), (D,H)
    bool gated;                           // whether there is beta, which may have no elements
};

// (B,S,width), or (B,1,width) that every step overwrites; data null = not wanted.
template <class T>
struct PerStep {
    T* data;
    int64_t steps, width;

    T* at(int64_t b, int64_t s) const { return data + (b * steps + std::min(s, steps - 1)) * width; }
};

// What both directions read.
template <class T, class A>
struct AttentionDecoderInputs {
    DecoderShape shape;
    const T *key, *value, *v;          // (entries,T,A), (entries,T,D), (A)
    KeyExponentials<A> prepared_keys;  // values null = none
    const T* h0;                       // (B,H)
    const A* cell0;                    // (B,H)
    DecoderWeights<T> w;
    Broadcast<bool> mask;    // (entries,T)
    Broadcast<T> keep;       // (B,S,T)
    const int64_t* lengths;  // (B)
};

template <class T, class A>
struct AttentionDecoderForwardArgs : AttentionDecoderInputs<T, A> {
    const T *x_gates, *context0;        // (B,S,GH), (B,D) null = zeros
    const T *b_q, *b_h, *b_beta;        // (A), (GH), (D), null = zeros
    Broadcast<A> score_bias;            // (B,S,T)
    T *output, *h_n;                    // (B,S,H), (B,H)
    A* cell_n;                          // (B,H)
    T *context, *weights;               // (B,S,D), (B,S,T)
    A* cells;                           // (B,S,H), null = not wanted, and so the next two
    T *gates, *hidden_n;                // (B,S,GH), (B,S,H)
    T* alpha;                           // (B,S,T), null = not wanted: the weights are the same
    std::byte* packed;                  // what attention_decoder_pack made of the weights; null = none
    PerStep<T> queries, beta, ungated;  // widths A, D, D
};

template <class T, class A>
struct AttentionDecoderBackwardArgs : AttentionDecoderInputs<T, A> {
    const T *grad_output, *grad_h_n, *grad_context, *grad_weights;  // null = zeros
    const T *output, *gates, *hidden_n, *queries, *alpha, *beta, *ungated;
    const A* cells;
    T *da, *da_h, *dq, *dcontext, *dbeta;  // (B,S,·); da_h and dbeta null = not wanted
    A* dscores;                            // (B,S,T)
    T* dh0;                                // (B,H)
    A* dcell;                              // (B,H): in, the gradient of cell_n; out, that of cell0
    T* dcontext0;                          // (B,D), null = not wanted
};

}  // namespace hybridops
