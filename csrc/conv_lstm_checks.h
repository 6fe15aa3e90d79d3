// What the ConvLSTM's ops make sure of, on the CPU and on a GPU alike; sizes as in library.cpp.
#pragma once
#include "checks.h"

namespace hybridops {

// (rows, inputs, KY, KX), of which any_size may be one
inline void check_weight(const Arguments& arguments, const char* name, const Tensor& w, int64_t rows, int64_t inputs) {
    arguments.like(name, w, {rows, inputs, any_size, any_size});
    for (const int dim : {2, 3}) arguments.require(w.size(dim) % 2 == 1, name, "have an odd kernel", w.size(dim));
}

inline void check_peephole(const Arguments& arguments, const std::optional<Tensor>& peephole, int64_t height,
                           int64_t width, int64_t hidden) {
    if (peephole && peephole->dim() == 2) {
        arguments.sums("peephole", peephole, {3, hidden}, Memory::contiguous);
    } else {
        arguments.sums("peephole", peephole, {3, height, width, hidden}, Memory::contiguous);
    }
}

inline Arguments check_forward(const char* op, const Tensor& x, const std::optional<Tensor>& h0,
                               const std::optional<Tensor>& c0, const Tensor& w_ih, const Tensor& w_hh,
                               const std::optional<Tensor>& bias, const std::optional<Tensor>& peephole) {
    const Arguments arguments(op, "x", x, {any_size, any_size, any_size, any_size, any_size});
    arguments.dims("w_hh", w_hh, 4);
    const int64_t batch = x.size(1), height = x.size(2), width = x.size(3), channels = x.size(4);
    const int64_t hidden = w_hh.size(1);
    arguments.require(channels > 0, "x", "have channels", channels);
    arguments.require(hidden > 0, "w_hh", "have inputs", hidden);
    check_weight(arguments, "w_hh", w_hh, 4 * hidden, hidden);
    arguments.like("w_ih", w_ih, {4 * hidden, channels, w_hh.size(2), w_hh.size(3)});
    arguments.like("h0", h0, {batch, height, width, hidden}, Memory::contiguous);
    arguments.sums("c0", c0, {batch, height, width, hidden}, Memory::contiguous);
    arguments.sums("bias", bias, {4 * hidden}, Memory::contiguous);
    check_peephole(arguments, peephole, height, width, hidden);
    return arguments;
}

inline void check_conv_lstm_forward(const Tensor& x, const std::optional<Tensor>& h0, const std::optional<Tensor>& c0,
                                    const Tensor& w_ih, const Tensor& w_hh, const std::optional<Tensor>& bias,
                                    const std::optional<Tensor>& peephole, int64_t save) {
    const Arguments arguments = check_forward("conv_lstm_forward", x, h0, c0, w_ih, w_hh, bias, peephole);
    arguments.require(save >= 0 && save <= 2, "save", "be 0, 1 or 2", save);  // the values of Save
}

// The upstream gradients; grad_cn is copied, and so may have any strides.
inline void check_gradients(const Arguments& arguments, const std::optional<Tensor>& grad_hs,
                            const std::optional<Tensor>& grad_hn, const std::optional<Tensor>& grad_cn, int64_t steps,
                            int64_t batch, int64_t height, int64_t width, int64_t hidden) {
    arguments.like("grad_hs", grad_hs, {steps, batch, height, width, hidden});
    arguments.sums("grad_hn", grad_hn, {batch, height, width, hidden}, Memory::contiguous);
    arguments.sums("grad_cn", grad_cn, {batch, height, width, hidden});
}

inline void check_conv_lstm_backward(const std::optional<Tensor>& grad_hs, const std::optional<Tensor>& grad_hn,
                                     const std::optional<Tensor>& grad_cn, const Tensor& gates, const Tensor& cs,
                                     const std::optional<Tensor>& c0, const Tensor& w_hh,
                                     const std::optional<Tensor>& peephole) {
    const Arguments arguments("conv_lstm_backward", "gates", gates, {any_size, any_size, any_size, any_size, any_size},
                              Memory::contiguous);
    const int64_t steps = gates.size(0), batch = gates.size(1), height = gates.size(2), width = gates.size(3);
    const int64_t hidden = gates.size(4) / 4;
    arguments.require(hidden > 0 && gates.size(4) % 4 == 0, "gates", "have 4H channels", gates.size(4));
    check_weight(arguments, "w_hh", w_hh, 4 * hidden, hidden);
    arguments.sums("cs", cs, {steps, batch, height, width, hidden}, Memory::contiguous);
    arguments.sums("c0", c0, {batch, height, width, hidden}, Memory::contiguous);
    check_gradients(arguments, grad_hs, grad_hn, grad_cn, steps, batch, height, width, hidden);
    check_peephole(arguments, peephole, height, width, hidden);
}

inline void check_conv_lstm_backward_from_states(const std::optional<Tensor>& grad_hs,
                                                 const std::optional<Tensor>& grad_hn,
                                                 const std::optional<Tensor>& grad_cn, const Tensor& x,
                                                 const std::optional<Tensor>& h0, const Tensor& hs, const Tensor& cs,
                                                 const std::optional<Tensor>& c0, const Tensor& w_ih,
                                                 const Tensor& w_hh, const std::optional<Tensor>& bias,
                                                 const std::optional<Tensor>& peephole) {
    const Arguments arguments = check_forward("conv_lstm_backward_from_states", x, h0, c0, w_ih, w_hh, bias, peephole);
    const int64_t steps = x.size(0), batch = x.size(1), height = x.size(2), width = x.size(3), hidden = w_hh.size(1);
    arguments.like("hs", hs, {steps, batch, height, width, hidden}, Memory::contiguous);
    arguments.sums("cs", cs, {steps, batch, height, width, hidden}, Memory::contiguous);
    check_gradients(arguments, grad_hs, grad_hn, grad_cn, steps, batch, height, width, hidden);
}

inline void check_input_gradient(const Tensor& da, const Tensor& weight, const Tensor& dx) {
    const Arguments arguments("conv_input_gradient", "da", da, {any_size, any_size, any_size, any_size, any_size},
                              Memory::contiguous);
    check_weight(arguments, "weight", weight, da.size(4), any_size);
    arguments.like("dx", dx, {da.size(0), da.size(1), da.size(2), da.size(3), weight.size(1)}, Memory::contiguous);
}

inline void check_weight_gradient(const Tensor& da, const Tensor& x, const std::optional<Tensor>& h, const Tensor& dw_x,
                                  const std::optional<Tensor>& dw_h) {
    const Arguments arguments("conv_weight_gradient", "da", da, {any_size, any_size, any_size, any_size, any_size},
                              Memory::contiguous);
    const int64_t steps = da.size(0), batch = da.size(1), height = da.size(2), width = da.size(3), outputs = da.size(4);
    arguments.like("x", x, {steps, batch, height, width, any_size});
    arguments.require(x.size(4) > 0, "x", "have channels", x.size(4));
    arguments.sums("dw_x", dw_x, {outputs, x.size(4), any_size, any_size}, Memory::contiguous);
    for (const int dim : {2, 3})
        arguments.require(dw_x.size(dim) % 2 == 1, "dw_x", "have an odd kernel", dw_x.size(dim));
    arguments.both_or_none("h", h.has_value(), "dw_h", dw_h.has_value());
    if (!h) return;
    arguments.like("h", h, {steps, batch, height, width, any_size});
    arguments.sums("dw_h", dw_h, {outputs, h->size(4), dw_x.size(2), dw_x.size(3)}, Memory::contiguous);
}

}  // namespace hybridops
