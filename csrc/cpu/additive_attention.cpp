// The additive_* ops on the CPU: arguments are checked and outputs allocated here, the kernels of the processor's
// instruction set run.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <optional>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "../additive_attention_args.h"
#include "../additive_attention_checks.h"
#include "../tensors.h"
#include "parallel.h"
#include "scratch.h"

#define HYBRIDOPS_KERNELS "additive_attention_kernels.h"
#include "every_isa.h"

#include "prepared_keys.h"

namespace hybridops {
namespace {

AdditiveShape shape_of(const Tensor& q, const Tensor& k, int64_t activation, double negative_slope) {
    return {q.size(0), q.size(1), k.size(1), q.size(2), static_cast<Activation>(activation), negative_slope};
}

std::tuple<Tensor, Tensor> additive_prepare_keys(const Tensor& k) {
    const Arguments arguments("additive_prepare_keys", "k", k, {any_size, any_size, any_size});
    const Tensor kc = dense(k);
    const int64_t padded = padded_width_for(k.scalar_type(), k.size(2));
    Tensor values = torch::stable::empty({k.size(0), k.size(1), padded}, accumulator_type(k));
    Tensor bound = torch::stable::empty({k.size(0), k.size(1)}, accumulator_type(k));
    HYBRIDOPS_DISPATCH_DTYPE(k.scalar_type(), "additive_prepare_keys", {
        using A = Accumulator<scalar_t>;
        const KeyExponentials<A> rows{bound.numel(), padded, data<A>(values), data<A>(bound)};
        HYBRIDOPS_ON_ISA(key_exponentials(rows, data<const scalar_t>(kc), k.size(2)));
    });
    return {values, bound};
}

// What the two forward ops have in common: `arguments` completes them for a storage and an accumulator type.
struct Inputs {
    const AdditiveShape shape;
    const Tensor q, k, v;
    const std::optional<Tensor>&key_exponentials, &key_bounds;

    Inputs(const Tensor& q, const Tensor& k, const Tensor& v, int64_t activation, double negative_slope,
           const std::optional<Tensor>& key_exponentials, const std::optional<Tensor>& key_bounds)
        : shape(shape_of(q, k, activation, negative_slope)),
          q(dense(q)),
          k(dense(k)),
          v(dense(v)),
          key_exponentials(key_exponentials),
          key_bounds(key_bounds) {}

    template <class T, class A>
    AdditiveScoresArgs<T, A> arguments(A* scores) const {
        const KeyExponentials<A> prepared{shape.batch * shape.keys, key_exponentials ? key_exponentials->size(2) : 0,
                                          data<A>(key_exponentials), data<A>(key_bounds)};
        return {shape, data<const T>(q), data<const T>(k), data<const T>(v), prepared, scores};
    }
};

Tensor additive_scores_forward(const Tensor& q, const Tensor& k, const Tensor& v, int64_t activation,
                               double negative_slope, const std::optional<Tensor>& key_exponentials,
                               const std::optional<Tensor>& key_bounds) {
    check_prepared(check_pairs("additive_scores_forward", q, k, v, activation), k, key_exponentials, key_bounds);
    const Inputs inputs(q, k, v, activation, negative_slope, key_exponentials, key_bounds);
    Tensor scores = torch::stable::empty({q.size(0), q.size(1), k.size(1)}, accumulator_type(q));
    if (scores.numel() == 0) return scores;
    HYBRIDOPS_DISPATCH_DTYPE(q.scalar_type(), "additive_scores_forward", {
        using A = Accumulator<scalar_t>;
        const auto args = inputs.arguments<scalar_t>(data<A>(scores));
        const ContextArgs<scalar_t, A>* attention = nullptr;
        HYBRIDOPS_ON_ISA(additive_forward(args, attention));
    });
    return scores;
}

// context (...,D) and weights (...,T) of queries (...,A), which are (B,S,A) by number
std::tuple<Tensor, Tensor> attend(const Inputs& inputs, std::vector<int64_t> queries, const Tensor& value,
                                  const std::optional<Tensor>& mask, const std::optional<Tensor>& score_bias,
                                  double scale, bool need_weights) {
    const AdditiveShape& n = inputs.shape;
    const Tensor values = dense(value);
    queries.back() = value.size(2);
    Tensor context = torch::stable::empty(queries, value.scalar_type());
    queries.back() = need_weights ? n.keys : 0;
    Tensor weights = torch::stable::empty(queries, value.scalar_type());
    if (n.batch * n.queries * n.keys == 0) {
        torch::stable::zero_(context);
        return {context, weights};
    }
    HYBRIDOPS_DISPATCH_DTYPE(value.scalar_type(), "additive_attention_forward", {
        using A = Accumulator<scalar_t>;
        const auto args = inputs.arguments<scalar_t>(static_cast<A*>(nullptr));
        const SoftmaxArgs<scalar_t, A> softmax{broadcast_of<bool>(mask), broadcast_of<A>(score_bias),
                                               static_cast<A>(scale), data<scalar_t>(weights)};
        const ContextArgs<scalar_t, A> attention{softmax, data<const scalar_t>(values), data<scalar_t>(context),
                                                 value.size(2)};
        HYBRIDOPS_ON_ISA(additive_forward(args, &attention));
    });
    return {context, weights};
}

std::tuple<Tensor, Tensor> additive_attention_forward(const Tensor& q, const Tensor& k, const Tensor& v,
                                                      const Tensor& value, const std::optional<Tensor>& mask,
                                                      const std::optional<Tensor>& score_bias, double scale,
                                                      int64_t activation, double negative_slope,
                                                      const std::optional<Tensor>& key_exponentials,
                                                      const std::optional<Tensor>& key_bounds, bool need_weights) {
    check_prepared(check_attention(q, k, v, value, mask, score_bias, activation), k, key_exponentials, key_bounds);
    const Inputs inputs(q, k, v, activation, negative_slope, key_exponentials, key_bounds);
    return attend(inputs, {q.size(0), q.size(1), 0}, value, mask, score_bias, scale, need_weights);
}

// Gives the number of queries, m B or m B S.
int64_t check_step(const Tensor& query, const Tensor& projection, const std::optional<Tensor>& projection_bias,
                   const Tensor& k, const Tensor& v, const Tensor& value, const std::optional<Tensor>& mask,
                   int64_t activation, const std::optional<Tensor>& key_exponentials,
                   const std::optional<Tensor>& key_bounds) {
    const Arguments arguments("additive_attention_step", "k", k, {any_size, any_size, any_size});
    const int64_t batch = k.size(0), keys = k.size(1), outputs = k.size(2);
    arguments.like("projection", projection, {outputs, any_size});
    if (query.dim() == 2) {
        arguments.like("query", query, {any_size, projection.size(1)});
    } else {
        arguments.like("query", query, {any_size, any_size, projection.size(1)});
    }
    const int64_t entries = query.size(0), rows = query.dim() == 2 ? entries : entries * query.size(1);
    arguments.require(batch ? entries % batch == 0 : entries == 0, "query", "be of a multiple of the keys' batch",
                      entries);
    arguments.like("projection_bias", projection_bias, {outputs});
    if (v.dim() == 2) {  // as the weight of a linear layer
        arguments.like("v", v, {1, outputs});
    } else {
        arguments.like("v", v, {outputs});
    }
    arguments.like("value", value, {batch, keys, any_size});
    arguments.booleans("mask", mask, {batch, batch ? rows / batch : any_size, keys});
    arguments.require(activation >= 0 && activation <= 2, "activation", "be 0, 1 or 2", activation);
    check_prepared(arguments, k, key_exponentials, key_bounds);
    return rows;
}

std::tuple<Tensor, Tensor> additive_attention_step(const Tensor& query, const Tensor& projection,
                                                   const std::optional<Tensor>& projection_bias, const Tensor& k,
                                                   const Tensor& v, const Tensor& value,
                                                   const std::optional<Tensor>& mask, double scale, int64_t activation,
                                                   double negative_slope, const std::optional<Tensor>& key_exponentials,
                                                   const std::optional<Tensor>& key_bounds, bool need_weights) {
    const int64_t rows =
        check_step(query, projection, projection_bias, k, v, value, mask, activation, key_exponentials, key_bounds);
    const int64_t batch = k.size(0), width = k.size(2), inputs = projection.size(1);
    const Tensor x = dense(query), weight = dense(projection);
    Tensor q = torch::stable::empty({batch, batch ? rows / batch : 0, width}, query.scalar_type());
    std::optional<Tensor> bias;
    if (projection_bias) bias = dense(*projection_bias);
    if (rows > 0)
        HYBRIDOPS_DISPATCH_DTYPE(query.scalar_type(), "additive_attention_step", {
            using A = Accumulator<scalar_t>;
            HYBRIDOPS_ON_ISA(project<A>(data<scalar_t>(q), data<const scalar_t>(x), data<const scalar_t>(weight),
                                        data<const scalar_t>(bias), rows, width, inputs));
        });
    const Inputs keys(q, k, v, activation, negative_slope, key_exponentials, key_bounds);
    std::vector<int64_t> queries(query.sizes().begin(), query.sizes().end());
    return attend(keys, queries, value, mask, std::nullopt, scale, need_weights);
}

std::tuple<Tensor, Tensor, Tensor> additive_scores_backward(const Tensor& grad, const Tensor& q, const Tensor& k,
                                                            const Tensor& v, int64_t activation,
                                                            double negative_slope) {
    check_scores_backward(grad, q, k, v, activation);
    const AdditiveShape shape = shape_of(q, k, activation, negative_slope);
    const Tensor gc = dense(grad);
    const Tensor qc = dense(q), kc = dense(k), vc = dense(v);
    Tensor dq = torch::stable::empty(q.sizes(), q.scalar_type()), dk = torch::stable::empty(k.sizes(), k.scalar_type());
    Tensor dv = torch::stable::empty(v.sizes(), v.scalar_type());
    if (grad.numel() == 0) {
        torch::stable::zero_(dq);
        torch::stable::zero_(dk);
        torch::stable::zero_(dv);
        return {dq, dk, dv};
    }
    HYBRIDOPS_DISPATCH_DTYPE(q.scalar_type(), "additive_scores_backward", {
        using A = Accumulator<scalar_t>;
        const AdditiveScoresBackwardArgs<scalar_t, A> args{shape,
                                                           data<const A>(gc),
                                                           data<const scalar_t>(qc),
                                                           data<const scalar_t>(kc),
                                                           data<const scalar_t>(vc),
                                                           data<scalar_t>(dq),
                                                           data<scalar_t>(dk),
                                                           data<scalar_t>(dv)};
        HYBRIDOPS_ON_ISA(additive_scores_backward(args));
    });
    return {dq, dk, dv};
}

}  // namespace
}  // namespace hybridops

STABLE_TORCH_LIBRARY_IMPL(hybridops, CPU, m) {
    m.impl("additive_prepare_keys", TORCH_BOX(&hybridops::additive_prepare_keys));
    m.impl("additive_attention_forward", TORCH_BOX(&hybridops::additive_attention_forward));
    m.impl("additive_attention_step", TORCH_BOX(&hybridops::additive_attention_step));
    m.impl("additive_scores_forward", TORCH_BOX(&hybridops::additive_scores_forward));
    m.impl("additive_scores_backward", TORCH_BOX(&hybridops::additive_scores_backward));
}
