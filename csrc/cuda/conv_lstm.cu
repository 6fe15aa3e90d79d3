// The ConvLSTM's ops on a GPU: they allocate the outputs and launch the kernels. choose() in conv_lstm_sequence.cuh says how
// the steps are computed: by library convolutions with the kernels of conv_lstm.cuh in between, or by fused kernels.
// Everything runs on the caller's stream without synchronization, so a call can be captured in a CUDA graph. The arguments
// are checked by ../conv_lstm_checks.h.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <cstdint>
#include <optional>
#include <tuple>
#include <vector>

#include "../conv_lstm_checks.h"
#include "conv_lstm_sequence.cuh"

namespace hybridops {
namespace {

using Sizes = std::vector<int64_t>;

Tensor permuted(const Tensor& x, const Sizes& order) { return call<1>("aten::permute", "", x, order)[0]; }

// A view of (N,Y,X,C) as (N,C,Y,X), the order of the library, and back; and of (T,B,Y,X,C) as T*B images.
Tensor channels_second(const Tensor& images) { return permuted(images, {0, 3, 1, 2}); }
Tensor channels_last(const Tensor& images) { return dense(permuted(images, {0, 2, 3, 1})); }
Tensor as_images(const Tensor& x) { return torch::stable::flatten(x, 0, 1); }

// The weight in channels-last order: converted once, where the library would do it in every call.
Tensor channels_last_weight(const Tensor& weight) {
    return torch::stable::contiguous(weight, torch::headeronly::MemoryFormat::ChannelsLast);
}

Sizes same_padding(int64_t kernel_h, int64_t kernel_w) { return {kernel_h / 2, kernel_w / 2}; }

// weight * images, or the transposed convolution, which takes gradients of outputs to those of images; both are (N,Y,X,·).
Tensor convolution(const Tensor& images, const Tensor& weight, bool transposed) {
    const Sizes ones{1, 1}, zeros{0, 0}, padding = same_padding(weight.size(2), weight.size(3));
    const Tensor out = call<1>("aten::convolution", "", channels_second(images), weight, std::nullopt, ones, padding,
                               ones, transposed, zeros, int64_t{1})[0];
    // The result has another dtype where a caller's backward runs under autocast, which applies to this op too.
    return channels_last(torch::stable::to(out, images.scalar_type()));
}

StepShape step_shape(const Tensor& states) {  // (..,Y,X,H)
    const int64_t area = states.size(-3) * states.size(-2), hidden = states.size(-1);
    return {states.numel() / hidden, area, hidden};
}

// The pointwise part of a step, after a library convolution whose result is `convolved`, null = zeros.
template <template <class, class, int> class Step, class Args, class T>
void launch_pointwise(const Device& device, const Args& args, const T* convolved) {
    const auto launch = [&](auto step, int n) { device.launch(step, ceil_div(args.shape.states() / n, step.threads)); };
    if (can_vectorize(args) && aligned<4>(convolved)) {
        launch(Step<T, Accumulator<T>, 4>{args, convolved}, 4);
    } else {
        launch(Step<T, Accumulator<T>, 1>{args, convolved}, 1);
    }
}

std::tuple<Tensor, Tensor, Tensor> conv_lstm_forward(const Tensor& x, const MaybeTensor& h0, const MaybeTensor& c0,
                                                     const Tensor& w_ih, const Tensor& w_hh, const MaybeTensor& bias,
                                                     const MaybeTensor& peephole, int64_t save, bool reduced_precision,
                                                     int64_t /*winograd*/) {
    check_conv_lstm_forward(x, h0, c0, w_ih, w_hh, bias, peephole, save);
    const Device device(x);
    const int64_t steps = x.size(0), hidden = w_hh.size(1);
    const Save kept{save};
    const auto images = [&](int64_t count, int64_t channels, ScalarType type) {
        return torch::stable::new_empty(x, {count, x.size(1), x.size(2), x.size(3), channels}, type);
    };
    Tensor hs = images(steps, hidden, x.scalar_type());
    Tensor cs = images(kept == Save::nothing ? 1 : steps, hidden, accumulator_type(x));
    Tensor gs = images(0, 4 * hidden, x.scalar_type());
    if (hs.numel() == 0) return {hs, cs, kept == Save::gates ? images(steps, 4 * hidden, x.scalar_type()) : gs};

    const Tensor inputs = dense(x);
    HYBRIDOPS_DISPATCH_DTYPE(x.scalar_type(), "conv_lstm_forward", {
        using A = Accumulator<scalar_t>;
        StepForwardArgs<scalar_t, A> args{};
        args.shape = step_shape(torch::stable::select(hs, 0, 0));
        args.bias = data<const A>(bias);
        args.peephole = peephole_tensor<A>(peephole);
        args.c_prev = data<const A>(c0);
        args.h = data<scalar_t>(hs);
        args.c = data<A>(cs);
        args.all_cells = kept != Save::nothing;
        auto sequence = make_sequence<scalar_t>(args, w_hh, x.size(2), x.size(3), inputs, h0, steps);
        const Plan plan = choose(device, sequence, reduced_precision);
        Tensor from_x;
        if (plan != Plan::fused) {
            // (T,B,Y,X,4H): one large convolution instead of T small ones. The gates are later written over it.
            from_x = torch::stable::view(convolution(as_images(inputs), channels_last_weight(w_ih), false),
                                         {steps, x.size(1), x.size(2), x.size(3), 4 * hidden});
            args.from_x = data<const scalar_t>(from_x);
            sequence.convolution.x = {};
        }
        if (kept == Save::gates) {
            gs = plan == Plan::fused ? images(steps, 4 * hidden, x.scalar_type()) : from_x;
            args.gates = data<scalar_t>(gs);
        }
        sequence.args = args;
        if (plan != Plan::library) {
            run_sequence(device, plan, sequence, plan == Plan::fused ? Weights{w_ih, w_hh} : Weights{w_hh});
        } else {
            const Tensor recurrent = channels_last_weight(w_hh);
            MaybeTensor h = h0;
            for (int64_t t = 0; t < steps; ++t) {
                MaybeTensor from_h;
                if (h) from_h = convolution(*h, recurrent, false);
                launch_pointwise<StepForward>(device, args.at(t), data<const scalar_t>(from_h));
                h = torch::stable::select(hs, 0, t);
            }
        }
    });
    return {hs, cs, gs};
}

// da may be the tensor of the gates: a thread reads the gates of its elements before it writes their gradients.
std::tuple<Tensor, Tensor, Tensor> backward(const Device& device, const MaybeTensor& grad_hs,
                                            const MaybeTensor& grad_hn, const MaybeTensor& grad_cn, const Tensor& gates,
                                            const Tensor& cs, const MaybeTensor& c0, const Tensor& w_hh,
                                            const MaybeTensor& peephole, bool need_dh0, bool reduced_precision,
                                            Tensor da) {
    const int64_t steps = gates.size(0), hidden = w_hh.size(1);
    const auto state = [&](bool wanted) {
        return torch::stable::new_empty(cs, {wanted ? gates.size(1) : 0, gates.size(2), gates.size(3), hidden});
    };
    Tensor dh0 = state(need_dh0), dc = state(true);
    if (dc.numel() == 0) return {da, dh0, dc};
    if (grad_cn) {
        torch::stable::copy_(dc, *grad_cn);
    } else {
        torch::stable::zero_(dc);
    }
    MaybeTensor grads;
    if (grad_hs) grads = dense(*grad_hs);
    HYBRIDOPS_DISPATCH_DTYPE(gates.scalar_type(), "conv_lstm_backward", {
        using A = Accumulator<scalar_t>;
        StepBackwardArgs<scalar_t, A> args{};
        args.shape = step_shape(dc);
        args.grad_h = data<const scalar_t>(grads);
        args.dh_last = data<const A>(grad_hn);
        args.gates = data<const scalar_t>(gates);
        args.c = data<const A>(cs);
        args.c_prev = data<const A>(c0);
        args.peephole = peephole_tensor<A>(peephole);
        args.dc = data<A>(dc);
        args.da = data<scalar_t>(da);
        args.steps = steps;
        const auto sequence =
            make_sequence<scalar_t>(args, w_hh, gates.size(2), gates.size(3), std::nullopt, std::nullopt, steps);
        const Plan plan = choose(device, sequence, reduced_precision);
        if (plan != Plan::library) {
            run_sequence(device, plan, sequence, {w_hh});
        } else {
            const Tensor recurrent = channels_last_weight(w_hh);
            MaybeTensor dh;
            for (int64_t i = 0; i < steps; ++i) {
                if (i > 0) dh = convolution(torch::stable::select(da, 0, steps - i), recurrent, true);
                launch_pointwise<StepBackward>(device, args.at(i), data<const scalar_t>(dh));
            }
        }
        if (need_dh0)
            torch::stable::copy_(dh0, convolution(torch::stable::select(da, 0, 0), channels_last_weight(w_hh), true));
    });
    return {da, dh0, dc};
}

std::tuple<Tensor, Tensor, Tensor> conv_lstm_backward(const MaybeTensor& grad_hs, const MaybeTensor& grad_hn,
                                                      const MaybeTensor& grad_cn, const Tensor& gates, const Tensor& cs,
                                                      const MaybeTensor& c0, const Tensor& w_hh,
                                                      const MaybeTensor& peephole, bool need_dh0,
                                                      bool reduced_precision, int64_t /*winograd*/) {
    check_conv_lstm_backward(grad_hs, grad_hn, grad_cn, gates, cs, c0, w_hh, peephole);
    return backward(Device(gates), grad_hs, grad_hn, grad_cn, gates, cs, c0, w_hh, peephole, need_dh0,
                    reduced_precision, torch::stable::empty_like(gates));
}

// All states are known, so the gates of all steps are computed at once, from two convolutions.
std::tuple<Tensor, Tensor, Tensor> conv_lstm_backward_from_states(
    const MaybeTensor& grad_hs, const MaybeTensor& grad_hn, const MaybeTensor& grad_cn, const Tensor& x,
    const MaybeTensor& h0, const Tensor& hs, const Tensor& cs, const MaybeTensor& c0, const Tensor& w_ih,
    const Tensor& w_hh, const MaybeTensor& bias, const MaybeTensor& peephole, bool need_dh0, bool reduced_precision,
    int64_t /*winograd*/) {
    check_conv_lstm_backward_from_states(grad_hs, grad_hn, grad_cn, x, h0, hs, cs, c0, w_ih, w_hh, bias, peephole);
    const Device device(x);
    const int64_t steps = hs.size(0), hidden = hs.size(4);
    const Sizes shape{steps, hs.size(1), hs.size(2), hs.size(3), 4 * hidden};
    if (hs.numel() == 0)
        return backward(device, grad_hs, grad_hn, grad_cn, torch::stable::new_empty(hs, shape), cs, c0, w_hh, peephole,
                        need_dh0, reduced_precision, torch::stable::new_empty(hs, shape));
    const Tensor gates =
        torch::stable::view(convolution(as_images(dense(x)), channels_last_weight(w_ih), false), shape);
    const Tensor recurrent = channels_last_weight(w_hh);
    HYBRIDOPS_DISPATCH_DTYPE(x.scalar_type(), "conv_lstm_backward_from_states", {
        using A = Accumulator<scalar_t>;
        const int64_t size = hs.numel() / steps;
        // Computes the gates of `number` steps from `first` on, in place, from the states of the previous steps.
        const auto compute = [&](int64_t first, int64_t number, const MaybeTensor& h_prev, const A* c_prev) {
            MaybeTensor from_h;
            if (h_prev) from_h = convolution(*h_prev, recurrent, false);
            StepForwardArgs<scalar_t, A> args{};
            const int64_t area = hs.size(2) * hs.size(3);
            args.shape = {number * size / hidden, area, hidden};
            args.gates = data<scalar_t>(gates) + first * 4 * size;
            args.from_x = args.gates;
            args.bias = data<const A>(bias);
            args.peephole = peephole_tensor<A>(peephole);
            args.c_prev = c_prev;
            launch_pointwise<StepForward>(device, args, data<const scalar_t>(from_h));
        };
        compute(0, 1, h0, data<const A>(c0));
        if (steps > 1) {
            Tensor states = hs;
            compute(1, steps - 1, as_images(torch::stable::narrow(states, 0, 0, steps - 1)), data<const A>(cs));
        }
    });
    return backward(device, grad_hs, grad_hn, grad_cn, gates, cs, c0, w_hh, peephole, need_dh0, reduced_precision,
                    gates);
}

void conv_input_gradient(const Tensor& da, const Tensor& w, bool /*reduced_precision*/, int64_t /*winograd*/,
                         Tensor dx) {
    check_input_gradient(da, w, dx);
    const Device device(da);
    if (dx.numel() == 0) return;
    const Sizes shape{da.size(0), da.size(1), da.size(2), da.size(3), w.size(1)};
    torch::stable::copy_(dx, torch::stable::view(convolution(as_images(da), channels_last_weight(w), true), shape));
}

void add_weight_gradient(const Device& device, const Tensor& da, const Tensor& x, Tensor dw) {
    if (da.numel() == 0 || dw.numel() == 0) return;
    const int64_t kernel_h = dw.size(2), kernel_w = dw.size(3);
    const Sizes ones{1, 1}, zeros{0, 0};
    const std::array<bool, 3> output_mask{false, true, false};
    const Tensor images = channels_second(as_images(dense(x)));
    const Tensor like_weight =
        torch::stable::new_empty(da, {dw.size(0), dw.size(1), kernel_h, kernel_w});  // only its shape is read
    const auto gradients =
        call<3>("aten::convolution_backward", "", channels_second(as_images(da)), images, like_weight, std::nullopt,
                ones, same_padding(kernel_h, kernel_w), ones, false, zeros, int64_t{1},
                torch::headeronly::HeaderOnlyArrayRef<bool>(output_mask.data(), output_mask.size()));
    // The gradient may have another dtype where a caller's backward runs under autocast.
    const Tensor part = dense(torch::stable::to(gradients[1], da.scalar_type()));
    HYBRIDOPS_DISPATCH_DTYPE(da.scalar_type(), "conv_weight_gradient", {
        using A = Accumulator<scalar_t>;
        const AddInPlace<scalar_t, A> add{data<const scalar_t>(part), data<A>(dw), dw.numel()};
        device.launch(add, ceil_div(add.count, add.threads));
    });
}

void conv_weight_gradient(const Tensor& da, const Tensor& x, const MaybeTensor& h, bool /*reduced_precision*/,
                          int64_t /*winograd*/, Tensor dw_x, MaybeTensor dw_h) {
    check_weight_gradient(da, x, h, dw_x, dw_h);
    const Device device(da);
    add_weight_gradient(device, da, x, dw_x);
    if (h) add_weight_gradient(device, da, *h, *dw_h);
}

}  // namespace
}  // namespace hybridops

STABLE_TORCH_LIBRARY_IMPL(hybridops, HYBRIDOPS_DISPATCH_KEY, m) {
    m.impl("conv_lstm_forward", TORCH_BOX(&hybridops::conv_lstm_forward));
    m.impl("conv_lstm_backward", TORCH_BOX(&hybridops::conv_lstm_backward));
    m.impl("conv_lstm_backward_from_states", TORCH_BOX(&hybridops::conv_lstm_backward_from_states));
    m.impl("conv_input_gradient", TORCH_BOX(&hybridops::conv_input_gradient));
    m.impl("conv_weight_gradient", TORCH_BOX(&hybridops::conv_weight_gradient));
}
