// What the attention's ops make sure of, on the CPU and on a GPU alike; sizes as in library.cpp.
#pragma once
#include "checks.h"

namespace hybridops {

// The prepared keys are not among them: to a GPU they are nothing.
inline Arguments check_pairs(const char* op, const Tensor& q, const Tensor& k, const Tensor& v, int64_t activation) {
    const Arguments arguments(op, "q", q, {any_size, any_size, any_size});
    arguments.like("k", k, {q.size(0), any_size, q.size(2)});
    arguments.like("v", v, {q.size(2)});
    arguments.require(activation >= 0 && activation <= 2, "activation", "be 0, 1 or 2", activation);
    return arguments;
}

inline void check_scores_backward(const Tensor& grad, const Tensor& q, const Tensor& k, const Tensor& v,
                                  int64_t activation) {
    const Arguments arguments = check_pairs("additive_scores_backward", q, k, v, activation);
    arguments.sums("grad", grad, {q.size(0), q.size(1), k.size(1)});
}

inline Arguments check_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& value,
                                 const std::optional<Tensor>& mask, const std::optional<Tensor>& score_bias,
                                 int64_t activation) {
    const Arguments arguments = check_pairs("additive_attention_forward", q, k, v, activation);
    const int64_t batch = q.size(0), queries = q.size(1), keys = k.size(1);
    arguments.like("value", value, {batch, keys, any_size});
    arguments.booleans("mask", mask, {batch, queries, keys});
    arguments.sums("score_bias", score_bias, {batch, queries, keys});
    return arguments;
}

}  // namespace hybridops
