// additive_scores_forward and additive_scores_backward on the CPU: outputs are allocated here, the kernels of the
// processor's instruction set run. Arguments were checked in hybridops/functional.py.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/Dispatch_v2.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cstdint>
#include <tuple>
#include <type_traits>
#include <utility>

#include "additive_attention_args.h"
#include "scratch.h"
#include "tensors.h"

#define HYBRIDOPS_KERNELS "additive_attention_kernels.h"
#include "every_isa.h"

namespace hybridops {
namespace {

AdditiveShape shape_of(const Tensor& q, const Tensor& k, int64_t activation, double negative_slope) {
    return {q.size(0), q.size(1), k.size(1), q.size(2), static_cast<Activation>(activation), negative_slope};
}

Tensor additive_scores_forward(const Tensor& q, const Tensor& k, const Tensor& v, int64_t activation,
                               double negative_slope) {
    const AdditiveShape shape = shape_of(q, k, activation, negative_slope);
    Tensor scores = torch::stable::empty({shape.batch, shape.queries, shape.keys}, accumulator_type(q));
    if (scores.numel() == 0) return scores;
    const Tensor qc = torch::stable::contiguous(q), kc = torch::stable::contiguous(k), vc = torch::stable::contiguous(v);
    THO_DISPATCH_V2(q.scalar_type(), "additive_scores_forward", AT_WRAP(([&] {
                        using A = Accumulator<scalar_t>;
                        const AdditiveScoresArgs<scalar_t, A> args{shape, data<const scalar_t>(qc),
                                                                   data<const scalar_t>(kc), data<const scalar_t>(vc),
                                                                   data<A>(scores)};
                        HYBRIDOPS_ON_ISA(additive_scores_forward(args));
                    })),
                    AT_FLOATING_TYPES, ScalarType::BFloat16, ScalarType::Half);
    return scores;
}

std::tuple<Tensor, Tensor, Tensor> additive_scores_backward(const Tensor& grad, const Tensor& q, const Tensor& k,
                                                            const Tensor& v, int64_t activation,
                                                            double negative_slope) {
    const AdditiveShape shape = shape_of(q, k, activation, negative_slope);
    const Tensor gc = torch::stable::contiguous(grad);
    const Tensor qc = torch::stable::contiguous(q), kc = torch::stable::contiguous(k), vc = torch::stable::contiguous(v);
    Tensor dq = torch::stable::empty(q.sizes(), q.scalar_type()), dk = torch::stable::empty(k.sizes(), k.scalar_type());
    Tensor dv = torch::stable::empty(v.sizes(), v.scalar_type());
    if (grad.numel() == 0) {
        torch::stable::zero_(dq);
        torch::stable::zero_(dk);
        torch::stable::zero_(dv);
        return {dq, dk, dv};
    }
    THO_DISPATCH_V2(q.scalar_type(), "additive_scores_backward", AT_WRAP(([&] {
                        using A = Accumulator<scalar_t>;
                        const AdditiveScoresBackwardArgs<scalar_t, A> args{
                            shape, data<const A>(gc), data<const scalar_t>(qc), data<const scalar_t>(kc),
                            data<const scalar_t>(vc), data<scalar_t>(dq), data<scalar_t>(dk), data<scalar_t>(dv)};
                        HYBRIDOPS_ON_ISA(additive_scores_backward(args));
                    })),
                    AT_FLOATING_TYPES, ScalarType::BFloat16, ScalarType::Half);
    return {dq, dk, dv};
}

}  // namespace
}  // namespace hybridops

STABLE_TORCH_LIBRARY_IMPL(hybridops, CPU, m) {
    m.impl("additive_scores_forward", TORCH_BOX(&hybridops::additive_scores_forward));
    m.impl("additive_scores_backward", TORCH_BOX(&hybridops::additive_scores_backward));
}
