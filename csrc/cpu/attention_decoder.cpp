// attention_decoder_forward and attention_decoder_backward on the CPU: arguments are checked and outputs allocated here, the
// kernels of the processor's instruction set run.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <optional>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "../attention_decoder_args.h"
#include "../attention_decoder_checks.h"
#include "../tensors.h"
#include "cache_size.h"
#include "parallel.h"
#include "scratch.h"

#define HYBRIDOPS_KERNELS "attention_decoder_kernels.h"
#include "every_isa.h"

#include "packed_bytes.h"
#include "prepared_keys.h"

namespace hybridops {
namespace {

std::optional<Tensor> dense(const std::optional<Tensor>& x) {
    return x ? std::optional(hybridops::dense(*x)) : std::nullopt;
}

template <class T>
WeightMatrix<T> matrix(const Tensor& w) {
    return {data<const T>(w), w.stride(0), w.stride(1)};
}

template <class T>
DecoderWeights<T> weights(const Tensor& w_q, const Tensor& w_c, const Tensor& w_h,
                          const std::optional<Tensor>& w_beta) {
    return {matrix<T>(w_q), matrix<T>(w_c), matrix<T>(w_h), w_beta ? matrix<T>(*w_beta) : WeightMatrix<T>{},
            w_beta.has_value()};
}

PackedHeader packed_header(const DecoderShape& n, bool gated, ScalarType type) {
    return {static_cast<int64_t>(cpu_isa()),
            static_cast<int64_t>(type),
            static_cast<int64_t>(n.cell),
            n.width,
            n.hidden,
            n.channels,
            gated,
            0};
}

int64_t packed_bytes(const DecoderShape& n, bool gated, ScalarType type) {
    int64_t bytes = 0;
    HYBRIDOPS_DISPATCH_DTYPE(type, "attention_decoder_pack",
                             { HYBRIDOPS_ON_ISA(set_packed_bytes<scalar_t>(bytes, n, gated)); });
    return bytes;
}

void check_packed(const Arguments& arguments, const std::optional<Tensor>& packed, const DecoderShape& n, bool gated,
                  ScalarType type) {
    if (packed)
        hybridops::check_packed(arguments, *packed, packed_header(n, gated, type), packed_bytes(n, gated, type));
}

Tensor attention_decoder_pack(const Tensor& w_q, const Tensor& w_c, const Tensor& w_h,
                              const std::optional<Tensor>& w_beta, int64_t cell) {
    const DecoderShape n = check_decoder_pack(w_q, w_c, w_h, w_beta, cell);
    const ScalarType type = w_q.scalar_type();
    const bool gated = w_beta.has_value();
    const Tensor packed = with_header(packed_header(n, gated, type), packed_bytes(n, gated, type));
    HYBRIDOPS_DISPATCH_DTYPE(type, "attention_decoder_pack", {
        HYBRIDOPS_ON_ISA(pack_weights(behind_header(packed), n, weights<scalar_t>(w_q, w_c, w_h, w_beta)));
    });
    return packed;
}

// What both ops read, in one piece where they take it to be so.
struct Inputs {
    const DecoderShape shape;
    const DecoderTensors& x;
    const Tensor key = hybridops::dense(x.key), value = hybridops::dense(x.value), v = hybridops::dense(x.v),
                 h0 = hybridops::dense(x.h0);
    const std::optional<Tensor> cell0 = dense(x.cell0), lengths = dense(x.lengths);

    template <class T, class A>
    void set(AttentionDecoderInputs<T, A>& to) const {
        to.shape = shape;
        to.key = data<const T>(key);
        to.value = data<const T>(value);
        to.v = data<const T>(v);
        to.prepared_keys = {shape.entries * shape.keys, x.key_exponentials ? x.key_exponentials->size(2) : 0,
                            data<A>(x.key_exponentials), data<A>(x.key_bounds)};
        to.h0 = data<const T>(h0);
        to.cell0 = data<const A>(cell0);
        to.w = weights<T>(x.w_q, x.w_c, x.w_h, x.w_beta);
        if (x.mask) to.mask = {data<const bool>(*x.mask), x.mask->stride(0), 0, x.mask->stride(1)};
        to.keep = broadcast_of<T>(x.keep);
        to.lengths = data<const int64_t>(lengths);
    }
};

// Sizes of outputs; what is not wanted has none.
Tensor empty(bool wanted, std::vector<int64_t> sizes, ScalarType type) {
    return torch::stable::empty(wanted ? sizes : std::vector<int64_t>{0}, type);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>
attention_decoder_forward(const Tensor& x_gates, const Tensor& key, const Tensor& value, const Tensor& v,
                          const Tensor& h0, const std::optional<Tensor>& cell0, const std::optional<Tensor>& context0,
                          const Tensor& w_q, const std::optional<Tensor>& b_q, const Tensor& w_c, const Tensor& w_h,
                          const std::optional<Tensor>& b_h, const std::optional<Tensor>& w_beta,
                          const std::optional<Tensor>& b_beta, const std::optional<Tensor>& mask,
                          const std::optional<Tensor>& score_bias, const std::optional<Tensor>& keep,
                          const std::optional<Tensor>& lengths, const std::optional<Tensor>& key_exponentials,
                          const std::optional<Tensor>& key_bounds, const std::optional<Tensor>& packed, double scale,
                          int64_t activation, double negative_slope, int64_t cell, int64_t query, bool save) {
    const Arguments arguments("attention_decoder_forward", "x_gates", x_gates, {any_size, any_size, any_size});
    const DecoderTensors x{key,       value, v, h0, cell0, w_q, w_c, w_h, w_beta, mask, keep, lengths, key_exponentials,
                           key_bounds};
    const DecoderShape n = check_decoder_forward(arguments, x_gates, x, context0, b_q, b_h, b_beta, score_bias, scale,
                                                 activation, negative_slope, cell, query);
    check_prepared(arguments, key, key_exponentials, key_bounds);
    check_packed(arguments, packed, n, w_beta.has_value(), x_gates.scalar_type());
    const Inputs inputs{n, x};
    const Tensor xc = hybridops::dense(x_gates);
    const auto fed = dense(context0), b_qc = dense(b_q), b_hc = dense(b_h), b_betac = dense(b_beta);

    const ScalarType type = x_gates.scalar_type(), acc = accumulator_type(x_gates);
    const bool lstm = n.cell == CellType::lstm, gated = w_beta.has_value();
    const int64_t B = n.batch, S = n.steps, kept = save ? S : 1;
    Tensor output = empty(true, {B, S, n.hidden}, type), h_n = empty(true, {B, n.hidden}, type);
    Tensor cell_n = empty(lstm, {B, n.hidden}, acc), context = empty(true, {B, S, n.channels}, type);
    Tensor weights = empty(true, {B, S, n.keys}, type), cells = empty(save && lstm, {B, S, n.hidden}, acc);
    Tensor gates = empty(save, {B, S, n.gates()}, type), hidden_n = empty(save && !lstm, {B, S, n.hidden}, type);
    Tensor alpha = empty(save && keep, {B, S, n.keys}, type);
    // of one step at a time where they are not wanted
    Tensor queries = empty(true, {B, kept, n.width}, type);
    Tensor beta = empty(gated, {B, kept, n.channels}, type), ungated = empty(gated, {B, kept, n.channels}, type);
    if (B > 0)
        HYBRIDOPS_DISPATCH_DTYPE(type, "attention_decoder_forward", {
            using A = Accumulator<scalar_t>;
            AttentionDecoderForwardArgs<scalar_t, A> args{};
            inputs.set(args);
            args.x_gates = data<const scalar_t>(xc);
            args.context0 = data<const scalar_t>(fed);
            args.b_q = data<const scalar_t>(b_qc);
            args.b_h = data<const scalar_t>(b_hc);
            args.b_beta = data<const scalar_t>(b_betac);
            args.score_bias = broadcast_of<A>(score_bias);
            args.output = data<scalar_t>(output);
            args.h_n = data<scalar_t>(h_n);
            args.cell_n = data<A>(cell_n);
            args.context = data<scalar_t>(context);
            args.weights = data<scalar_t>(weights);
            args.cells = data<A>(cells);
            args.gates = data<scalar_t>(gates);
            args.hidden_n = data<scalar_t>(hidden_n);
            args.alpha = data<scalar_t>(alpha);
            if (packed) args.packed = behind_header(*packed);
            args.queries = {data<scalar_t>(queries), kept, n.width};
            args.beta = {data<scalar_t>(beta), kept, n.channels};
            args.ungated = {data<scalar_t>(ungated), kept, n.channels};
            HYBRIDOPS_ON_ISA(attention_decoder_forward(args));
        });
    for (Tensor* working : {&queries, &beta, &ungated})
        if (!save) *working = empty(false, {}, type);
    return {output, h_n, cell_n, context, weights, cells, gates, hidden_n, queries, alpha, beta, ungated};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> attention_decoder_backward(
    const std::optional<Tensor>& grad_output, const std::optional<Tensor>& grad_h_n,
    const std::optional<Tensor>& grad_cell_n, const std::optional<Tensor>& grad_context,
    const std::optional<Tensor>& grad_weights, const Tensor& key, const Tensor& value, const Tensor& v,
    const Tensor& h0, const std::optional<Tensor>& cell0, const Tensor& w_q, const Tensor& w_c, const Tensor& w_h,
    const std::optional<Tensor>& w_beta, const std::optional<Tensor>& mask, const std::optional<Tensor>& keep,
    const std::optional<Tensor>& lengths, const std::optional<Tensor>& key_exponentials,
    const std::optional<Tensor>& key_bounds, const Tensor& output, const std::optional<Tensor>& cells,
    const Tensor& gates, const std::optional<Tensor>& hidden_n, const Tensor& queries, const Tensor& alpha,
    const std::optional<Tensor>& beta, const std::optional<Tensor>& ungated, double scale, int64_t activation,
    double negative_slope, int64_t cell, int64_t query) {
    const Arguments arguments("attention_decoder_backward", "gates", gates, {any_size, any_size, any_size});
    const DecoderTensors x{key,       value, v, h0, cell0, w_q, w_c, w_h, w_beta, mask, keep, lengths, key_exponentials,
                           key_bounds};
    const DecoderSaved saved{output, gates, queries, alpha, cells, hidden_n, beta, ungated};
    const DecoderShape n =
        check_decoder_backward(arguments, grad_output, grad_h_n, grad_cell_n, grad_context, grad_weights, x, saved,
                               scale, activation, negative_slope, cell, query);
    check_prepared(arguments, key, key_exponentials, key_bounds);
    const Inputs inputs{n, x};
    const auto output_grad = dense(grad_output), h_n_grad = dense(grad_h_n), context_grad = dense(grad_context),
               weights_grad = dense(grad_weights), hidden_nc = dense(hidden_n), betac = dense(beta),
               ungatedc = dense(ungated), cellsc = dense(cells);
    const Tensor outputc = hybridops::dense(output), gatesc = hybridops::dense(gates),
                 queriesc = hybridops::dense(queries), alphac = hybridops::dense(alpha);

    const ScalarType type = gates.scalar_type(), acc = accumulator_type(gates);
    const bool lstm = n.cell == CellType::lstm, gated = w_beta.has_value();
    const int64_t B = n.batch, S = n.steps;
    Tensor da = empty(true, {B, S, n.gates()}, type), da_h = empty(!lstm, {B, S, n.gates()}, type);
    Tensor dq = empty(true, {B, S, n.width}, type), dcontext = empty(true, {B, S, n.channels}, type);
    Tensor dscores = empty(true, {B, S, n.keys}, acc), dbeta = empty(gated, {B, S, n.channels}, type);
    Tensor dh0 = empty(true, {B, n.hidden}, type), dcell = empty(lstm, {B, n.hidden}, acc);
    Tensor dcontext0 = empty(n.query == QuerySource::current, {B, n.channels}, type);
    if (grad_cell_n) {
        torch::stable::copy_(dcell, *grad_cell_n);
    } else {
        torch::stable::zero_(dcell);
    }
    if (B > 0)
        HYBRIDOPS_DISPATCH_DTYPE(type, "attention_decoder_backward", {
            using A = Accumulator<scalar_t>;
            AttentionDecoderBackwardArgs<scalar_t, A> args{};
            inputs.set(args);
            args.grad_output = data<const scalar_t>(output_grad);
            args.grad_h_n = data<const scalar_t>(h_n_grad);
            args.grad_context = data<const scalar_t>(context_grad);
            args.grad_weights = data<const scalar_t>(weights_grad);
            args.output = data<const scalar_t>(outputc);
            args.gates = data<const scalar_t>(gatesc);
            args.hidden_n = data<const scalar_t>(hidden_nc);
            args.queries = data<const scalar_t>(queriesc);
            args.alpha = data<const scalar_t>(alphac);
            args.beta = data<const scalar_t>(betac);
            args.ungated = data<const scalar_t>(ungatedc);
            args.cells = data<const A>(cellsc);
            args.da = data<scalar_t>(da);
            args.da_h = data<scalar_t>(da_h);
            args.dq = data<scalar_t>(dq);
            args.dcontext = data<scalar_t>(dcontext);
            args.dbeta = data<scalar_t>(dbeta);
            args.dscores = data<A>(dscores);
            args.dh0 = data<scalar_t>(dh0);
            args.dcell = data<A>(dcell);
            args.dcontext0 = data<scalar_t>(dcontext0);
            HYBRIDOPS_ON_ISA(attention_decoder_backward(args));
        });
    return {da, da_h, dq, dcontext, dscores, dbeta, dh0, dcell, dcontext0};
}

}  // namespace
}  // namespace hybridops

STABLE_TORCH_LIBRARY_IMPL(hybridops, CPU, m) {
    m.impl("attention_decoder_pack", TORCH_BOX(&hybridops::attention_decoder_pack));
    m.impl("attention_decoder_forward", TORCH_BOX(&hybridops::attention_decoder_forward));
    m.impl("attention_decoder_backward", TORCH_BOX(&hybridops::attention_decoder_backward));
}
