// Launches of additive attention's kernels, for its own ops and for the decoder's, which have some at every step. Nothing is
// checked; a launch allocates nothing. Tensors are in one piece where nothing else is said.
#pragma once
#include <cstdint>
#include <optional>

#include "../additive_attention_args.h"
#include "device.cuh"

namespace hybridops {

struct AttentionTensors {
    Tensor k, v, value;          // (B,T,A), (A), (B,T,D)
    std::optional<Tensor> mask;  // (B,S,T), any strides
    double scale;
    Activation activation;
    double negative_slope;
};

// What one kernel of a launch leaves for the next.
struct AttentionWorkspace {
    Tensor sums, states, scores;
};
AttentionWorkspace attention_workspace(const AttentionTensors& x, int64_t queries, bool need_weights);

// context (B,S,D) and, unless it has no elements, weights (B,S,T), of q (BS,A), whose rows may be apart, and score_bias
// (B,S,T), any strides. The workspace is of as many queries.
void launch_attention(const Device& device, const AttentionTensors& x, const Tensor& q,
                      const std::optional<Tensor>& score_bias, const AttentionWorkspace& workspace,
                      const Tensor& context, const Tensor& weights);

// What launch_query_gradient works in, for keys k (B,T,A)
Tensor query_gradient_workspace(const Tensor& k);

// dq (B,A) of one query for each entry of the batch, from grad (B,T) acc; rows of q and dq (B,A) may be apart
void launch_query_gradient(const Device& device, const AttentionTensors& x, const Tensor& q, const Tensor& grad,
                           const Tensor& workspace, const Tensor& dq);

}  // namespace hybridops
