// conv_lstm_forward and conv_lstm_backward on the CPU: outputs are allocated here, the kernels of the processor's
// instruction set run. Arguments are laid out in hybridops/native/conv_lstm.py and checked by ../conv_lstm_checks.h.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <initializer_list>
#include <limits>
#include <memory>
#include <mutex>
#include <optional>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "../conv_lstm_args.h"
#include "../conv_lstm_checks.h"
#include "../math/winograd.h"
#include "../tensors.h"
#include "parallel.h"
#include "scratch.h"

#define HYBRIDOPS_KERNELS "conv_lstm_kernels.h"
#include "every_isa.h"

namespace hybridops {
namespace {

template <class T>
ConvWeights<T> weights(const Tensor& w) {
    return {data<const T>(w), w.stride(0), w.stride(1), w.stride(2), w.stride(3)};
}

template <class T>
Strided<T> strided(const Tensor& x) {  // (T,B,Y,X,C)
    return {data<const T>(x), x.stride(0), x.stride(1), x.stride(4), x.stride(2), x.stride(3)};
}

Tensor empty(std::initializer_list<int64_t> sizes, ScalarType type) {
    Tensor t = torch::stable::empty(sizes, type);
    ask_for_huge_pages(t.mutable_data_ptr(), t.numel() * t.element_size());
    return t;
}

// What both forward ops read.
template <class T, class A>
ConvLstmForwardArgs<T, A> forward_args(const Tensor& x, const std::optional<Tensor>& h0,
                                       const std::optional<Tensor>& c0, const Tensor& w_ih, const Tensor& w_hh,
                                       const std::optional<Tensor>& bias, const std::optional<Tensor>& peephole,
                                       int64_t winograd) {
    ConvLstmForwardArgs<T, A> args{};
    args.shape = {x.size(1), x.size(2), x.size(3), w_hh.size(2), w_hh.size(3)};
    args.steps = x.size(0);
    args.inputs = x.size(4);
    args.hidden = w_hh.size(1);
    args.x = strided<T>(x);
    args.h0 = data<const T>(h0);
    args.c0 = data<const A>(c0);
    args.w_ih = weights<T>(w_ih);
    args.w_hh = weights<T>(w_hh);
    args.bias = data<const A>(bias);
    args.peephole = peephole_tensor<A>(peephole);
    args.winograd = winograd;
    return args;
}

std::tuple<Tensor, Tensor, Tensor> conv_lstm_forward(const Tensor& x, const std::optional<Tensor>& h0,
                                                     const std::optional<Tensor>& c0, const Tensor& w_ih,
                                                     const Tensor& w_hh, const std::optional<Tensor>& bias,
                                                     const std::optional<Tensor>& peephole, int64_t save,
                                                     bool /*reduced_precision*/, int64_t winograd) {
    check_conv_lstm_forward(x, h0, c0, w_ih, w_hh, bias, peephole, save);
    const int64_t steps = x.size(0), hidden = w_hh.size(1);
    const Save kept{save};
    const auto images = [&](int64_t count, int64_t channels, ScalarType type) {
        return empty({count, x.size(1), x.size(2), x.size(3), channels}, type);
    };
    Tensor hs = images(steps, hidden, x.scalar_type());
    Tensor cs = images(kept == Save::nothing ? 1 : steps, hidden, accumulator_type(x));
    Tensor gs = images(kept == Save::gates ? steps : 0, 4 * hidden, x.scalar_type());
    if (hs.numel() == 0) return {hs, cs, gs};
    HYBRIDOPS_DISPATCH_DTYPE(x.scalar_type(), "conv_lstm_forward", {
        using A = Accumulator<scalar_t>;
        auto args = forward_args<scalar_t, A>(x, h0, c0, w_ih, w_hh, bias, peephole, winograd);
        args.hs = data<scalar_t>(hs);
        args.cs = data<A>(cs);
        args.all_cells = kept != Save::nothing;
        args.gates = data<scalar_t>(gs);
        HYBRIDOPS_ON_ISA(conv_lstm_forward(args));
    });
    return {hs, cs, gs};
}

// da may be the tensor of the gates: an element's gates are read before its gradients are written.
std::tuple<Tensor, Tensor, Tensor> backward(const std::optional<Tensor>& grad_hs, const std::optional<Tensor>& grad_hn,
                                            const std::optional<Tensor>& grad_cn, const Tensor& gates, const Tensor& cs,
                                            const std::optional<Tensor>& c0, const Tensor& w_hh,
                                            const std::optional<Tensor>& peephole, bool need_dh0, int64_t winograd,
                                            Tensor da) {
    const int64_t hidden = w_hh.size(1);
    const ConvShape shape{gates.size(1), gates.size(2), gates.size(3), w_hh.size(2), w_hh.size(3)};
    const auto state = [&](bool wanted) {
        return torch::stable::empty({wanted ? shape.batch : 0, shape.height, shape.width, hidden}, cs.scalar_type());
    };
    Tensor dh0 = state(need_dh0), dc = state(true);
    if (shape.pixels() == 0) return {da, dh0, dc};
    if (grad_cn) {
        torch::stable::copy_(dc, *grad_cn);
    } else {
        torch::stable::zero_(dc);
    }
    HYBRIDOPS_DISPATCH_DTYPE(gates.scalar_type(), "conv_lstm_backward", {
        using A = Accumulator<scalar_t>;
        ConvLstmBackwardArgs<scalar_t, A> args{};
        args.shape = shape;
        args.steps = gates.size(0);
        args.hidden = hidden;
        if (grad_hs) args.grad_hs = strided<scalar_t>(*grad_hs);
        args.grad_hn = data<const A>(grad_hn);
        args.gates = data<const scalar_t>(gates);
        args.cs = data<const A>(cs);
        args.c0 = data<const A>(c0);
        args.w_hh = weights<scalar_t>(w_hh);
        args.peephole = peephole_tensor<A>(peephole);
        args.winograd = winograd;
        args.da = data<scalar_t>(da);
        args.dh0 = data<A>(dh0);
        args.dc = data<A>(dc);
        HYBRIDOPS_ON_ISA(conv_lstm_backward(args));
    });
    return {da, dh0, dc};
}

std::tuple<Tensor, Tensor, Tensor> conv_lstm_backward(const std::optional<Tensor>& grad_hs,
                                                      const std::optional<Tensor>& grad_hn,
                                                      const std::optional<Tensor>& grad_cn, const Tensor& gates,
                                                      const Tensor& cs, const std::optional<Tensor>& c0,
                                                      const Tensor& w_hh, const std::optional<Tensor>& peephole,
                                                      bool need_dh0, bool /*reduced_precision*/, int64_t winograd) {
    check_conv_lstm_backward(grad_hs, grad_hn, grad_cn, gates, cs, c0, w_hh, peephole);
    return backward(
        grad_hs, grad_hn, grad_cn, gates, cs, c0, w_hh, peephole, need_dh0, winograd,
        empty({gates.size(0), gates.size(1), gates.size(2), gates.size(3), gates.size(4)}, gates.scalar_type()));
}

std::tuple<Tensor, Tensor, Tensor> conv_lstm_backward_from_states(
    const std::optional<Tensor>& grad_hs, const std::optional<Tensor>& grad_hn, const std::optional<Tensor>& grad_cn,
    const Tensor& x, const std::optional<Tensor>& h0, const Tensor& hs, const Tensor& cs,
    const std::optional<Tensor>& c0, const Tensor& w_ih, const Tensor& w_hh, const std::optional<Tensor>& bias,
    const std::optional<Tensor>& peephole, bool need_dh0, bool /*reduced_precision*/, int64_t winograd) {
    check_conv_lstm_backward_from_states(grad_hs, grad_hn, grad_cn, x, h0, hs, cs, c0, w_ih, w_hh, bias, peephole);
    Tensor gates = empty({hs.size(0), hs.size(1), hs.size(2), hs.size(3), 4 * hs.size(4)}, hs.scalar_type());
    if (gates.numel() > 0) {
        HYBRIDOPS_DISPATCH_DTYPE(x.scalar_type(), "conv_lstm_backward_from_states", {
            using A = Accumulator<scalar_t>;
            auto args = forward_args<scalar_t, A>(x, h0, c0, w_ih, w_hh, bias, peephole, winograd);
            args.gates = data<scalar_t>(gates);
            args.given_hs = data<const scalar_t>(hs);
            args.given_cs = data<const A>(cs);
            HYBRIDOPS_ON_ISA(conv_lstm_forward(args));
        });
    }
    return backward(grad_hs, grad_hn, grad_cn, gates, cs, c0, w_hh, peephole, need_dh0, winograd, gates);
}

void conv_input_gradient(const Tensor& da, const Tensor& w, bool /*reduced_precision*/, int64_t winograd, Tensor dx) {
    check_input_gradient(da, w, dx);
    if (dx.numel() == 0) return;
    const ConvShape shape{da.size(0) * da.size(1), da.size(2), da.size(3), w.size(2), w.size(3)};
    HYBRIDOPS_DISPATCH_DTYPE(da.scalar_type(), "conv_input_gradient", {
        using A = Accumulator<scalar_t>;
        const ConvInputGradientArgs<scalar_t, A> args{
            shape, w.size(1), w.size(0), data<const scalar_t>(da), weights<scalar_t>(w), winograd, data<scalar_t>(dx)};
        HYBRIDOPS_ON_ISA(conv_input_gradient(args));
    });
}

void conv_weight_gradient(const Tensor& da, const Tensor& x, const std::optional<Tensor>& h, bool /*reduced_precision*/,
                          int64_t winograd, Tensor dw_x, std::optional<Tensor> dw_h) {
    check_weight_gradient(da, x, h, dw_x, dw_h);
    if (da.numel() == 0 || dw_x.numel() == 0) return;
    HYBRIDOPS_DISPATCH_DTYPE(da.scalar_type(), "conv_weight_gradient", {
        using A = Accumulator<scalar_t>;
        ConvWeightGradientArgs<scalar_t, A> args{};
        args.shape = {da.size(1), da.size(2), da.size(3), dw_x.size(2), dw_x.size(3)};
        args.steps = da.size(0);
        args.outputs = da.size(4);
        args.da = data<const scalar_t>(da);
        args.factors[0] = {x.size(4), strided<scalar_t>(x), data<A>(dw_x)};
        if (h) args.factors[1] = {h->size(4), strided<scalar_t>(*h), data<A>(dw_h)};
        args.winograd = winograd;
        HYBRIDOPS_ON_ISA(conv_weight_gradient(args));
    });
}

}  // namespace
}  // namespace hybridops

STABLE_TORCH_LIBRARY_IMPL(hybridops, CPU, m) {
    m.impl("conv_lstm_forward", TORCH_BOX(&hybridops::conv_lstm_forward));
    m.impl("conv_lstm_backward_from_states", TORCH_BOX(&hybridops::conv_lstm_backward_from_states));
    m.impl("conv_lstm_backward", TORCH_BOX(&hybridops::conv_lstm_backward));
    m.impl("conv_input_gradient", TORCH_BOX(&hybridops::conv_input_gradient));
    m.impl("conv_weight_gradient", TORCH_BOX(&hybridops::conv_weight_gradient));
}
