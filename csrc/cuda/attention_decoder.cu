// attention_decoder_forward and _backward on a GPU. A step launches two products of the library, of h with all weights that
// it meets, [W_h; W_q; W_β], and of the context with W_c; between them the kernels of additive attention, and one pointwise
// kernel for the cell. The backward of a step has two products by the same weights, not transposed. What a step works in is
// allocated before the first, and nothing waits for the GPU, so that a CUDA graph captures a call. In half precision products
// are rounded, as PyTorch's own cells round them.
//
// Where nothing else is said, steps come first, (S,B,·), so that what a step reads and writes is in one piece. `of h` (B,R) is
// what is made of a state by [W_h; W_q; W_β], or the gradients of that: R = GH + A, + D where there is a context gate.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <tuple>
#include <vector>

#include "../attention_decoder_checks.h"
#include "additive_attention_launch.h"
#include "aten.h"
#include "attention_decoder.cuh"

namespace hybridops {
namespace {

// ---- tensors ---------------------------------------------------------------------------------------------------------

// out = a b
void write_product(const Tensor& a, const Tensor& b, const Tensor& out) { call<1>("aten::mm", "out", a, b, out); }
void write_batched_product(const Tensor& a, const Tensor& b, const Tensor& out) {
    call<1>("aten::bmm", "out", a, b, out);
}

// Views: step s of (S,B,·), and of (B,S,·); some columns; some of the first dimension.
Tensor at_step(const Tensor& x, int64_t s) { return torch::stable::select(x, 0, s); }
Tensor at_second_step(const Tensor& x, int64_t s) { return torch::stable::select(x, 1, s); }
Tensor columns_of(Tensor x, int64_t first, int64_t count) {
    return torch::stable::narrow(x, x.dim() - 1, first, count);
}
Tensor stretch_of(Tensor x, int64_t first, int64_t count) { return torch::stable::narrow(x, 0, first, count); }

MaybeTensor dense_or_none(const MaybeTensor& x) { return x ? MaybeTensor(dense(*x)) : std::nullopt; }

void copy_or_clear(Tensor to, const MaybeTensor& from) {
    if (from) {
        torch::stable::copy_(to, *from);
    } else {
        torch::stable::zero_(to);
    }
}

struct Part {
    MaybeTensor rows;
    int64_t count;
};

// Writes the parts below each other, zeros for one that is none.
Tensor stacked(const Tensor& to, std::initializer_list<Part> parts) {
    int64_t first = 0;
    for (const Part& part : parts) {
        copy_or_clear(stretch_of(to, first, part.count), part.rows);
        first += part.count;
    }
    return to;
}

// Of x (B,·), whose rows may be apart
template <class T>
StepRows<T> rows(const Tensor& x) {
    return {data<T>(x), x.stride(0)};
}

// Of step s of x (B,S,·), in one piece; where that has no elements, none
template <class T>
StepRows<T> rows(const Tensor& x, int64_t s) {
    if (x.numel() == 0) return {};
    return {data<T>(x) + s * x.size(2), x.size(1) * x.size(2)};
}
template <class T>
StepRows<T> rows(const MaybeTensor& x, int64_t s) {
    return x ? rows<T>(*x, s) : StepRows<T>{};
}

// ---- what both directions have ---------------------------------------------------------------------------------------

class Decoder {
   protected:
    const Device device;
    const DecoderShape n;
    const DecoderTensors& x;
    const int64_t batch = n.batch, steps = n.steps;
    const bool lstm = n.cell == CellType::lstm, previous = n.query == QuerySource::previous,
               gated = x.w_beta.has_value();
    const ScalarType type = x.key.scalar_type(), acc = accumulator_type(x.key);
    // The columns of `of h`
    const int64_t query_first = n.gates(), gate_first = query_first + n.width, gate_size = gated ? n.channels : 0,
                  of_h_size = gate_first + gate_size;
    const Tensor w_c = dense(x.w_c);
    const Tensor w_of_h =
        stacked(made({of_h_size, n.hidden}), {{x.w_h, n.gates()}, {x.w_q, n.width}, {x.w_beta, gate_size}});
    const AttentionTensors memory{dense(x.key), dense(x.v),   dense(x.value),  attended(),
                                  n.scale,      n.activation, n.negative_slope};
    const MaybeTensor keep = dense_or_none(x.keep), lengths = dense_or_none(x.lengths);

    Decoder(const DecoderShape& n, const DecoderTensors& x) : device(x.key), n(n), x(x) {}

    Tensor made(const std::vector<int64_t>& sizes) const { return torch::stable::new_empty(x.key, sizes, type); }
    Tensor made_of_sums(const std::vector<int64_t>& sizes) const { return torch::stable::new_empty(x.key, sizes, acc); }
    // what is not wanted has no elements
    Tensor made_if(bool wanted, const std::vector<int64_t>& sizes) const {
        return made(wanted ? sizes : std::vector<int64_t>{0});
    }
    Tensor made_of_sums_if(bool wanted, const std::vector<int64_t>& sizes) const {
        return made_of_sums(wanted ? sizes : std::vector<int64_t>{0});
    }

    RowEnds ends(int64_t s) const { return {data<const int64_t>(lengths), s}; }

    // (entries,m,·) of (B,·), whose rows may be apart: of the m rows that share an entry of the memory
    Tensor by_entry(const Tensor& x) const {
        return torch::stable::view(x, {n.entries, n.rows_per_entry(), x.size(1)});
    }

    // (B,S,count) of some columns of (S,B,·), with zeros behind the ends of rows
    template <class T>
    Tensor steps_second(bool wanted, const Tensor& from, int64_t first, int64_t count) const {
        const Tensor to = made_if(wanted, {batch, steps, count});
        if (to.numel() == 0) return to;
        const StepsSecond<T, Accumulator<T>> kernel{{batch * steps, count},
                                                    data<const int64_t>(lengths),
                                                    batch,
                                                    steps,
                                                    {data<const T>(from) + first, from.size(2)},
                                                    data<T>(to)};
        device.launch(kernel, kernel.blocks());
        return to;
    }

   private:
    // (entries,m,T)
    MaybeTensor attended() const {
        if (!x.mask) return std::nullopt;
        const std::vector<int64_t> sizes{n.entries, n.rows_per_entry(), n.keys};
        return call<1>("aten::expand", "", torch::stable::unsqueeze(*x.mask, 1), sizes, false)[0];
    }
};

// ---- forward ---------------------------------------------------------------------------------------------------------

struct ForwardTensors {
    const Tensor& x_gates;
    const MaybeTensor &context0, &b_q, &b_h, &b_beta, &score_bias;
};

using ForwardResults =
    std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

template <class T>
class DecoderForward : Decoder {
   public:
    DecoderForward(const DecoderShape& n, const DecoderTensors& x, const ForwardTensors& given, bool save)
        : Decoder(n, x), given(given), save(save) {}

    ForwardResults run() {
        torch::stable::copy_(h, x.h0);
        if (lstm) torch::stable::copy_(cell, *x.cell0);
        copy_or_clear(at_step(contexts, 0), given.context0);
        if (n.keys == 0) torch::stable::zero_(ungated);  // which nothing writes
        for (int64_t s = 0; s < steps; ++s) {
            if (previous || s == 0) write_of_h(s);
            if (previous) attend(s, of_h_at(s));
            step_of_cell(s);
            if (previous) continue;
            write_of_h(s + 1);
            attend(s, of_h_at(s + 1));
        }
        const Tensor asking = save ? stretch_of(of_h, previous ? 0 : 1, steps) : of_h;
        return {output,
                h,
                cell,
                steps_second<T>(true, stretch_of(contexts, 1, steps), 0, n.channels),
                steps_second<T>(true, keep ? kept : alpha, 0, n.keys),
                cells,
                gates,
                hidden_n,
                steps_second<T>(save, asking, query_first, n.width),
                steps_second<T>(save && keep, alpha, 0, n.keys),
                beta,
                steps_second<T>(save && gated, ungated, 0, n.channels)};
    }

   private:
    using A = Accumulator<T>;

    const ForwardTensors& given;
    const bool save;
    const Tensor x_gates = dense(given.x_gates), w_c_transposed = torch::stable::transpose(w_c, 0, 1);
    const MaybeTensor b_of_h =
        stacked(made({of_h_size}), {{given.b_h, n.gates()}, {given.b_q, n.width}, {given.b_beta, gate_size}});

    // Results, of which h and the cell are in between those of the step
    Tensor h = made({batch, n.hidden}), cell = made_of_sums_if(lstm, {batch, n.hidden});
    const Tensor output = made({batch, steps, n.hidden}),
                 cells = made_of_sums_if(save && lstm, {batch, steps, n.hidden}),
                 gates = made_if(save, {batch, steps, n.gates()}),
                 hidden_n = made_if(save && !lstm, {batch, steps, n.hidden}),
                 beta = made_if(save && gated, {batch, steps, n.channels});

    // What steps make, row s + 1 of the contexts being of step s. What is neither read later nor saved all write to one place.
    const Tensor of_h = made({save ? steps + 1 : 1, batch, of_h_size});
    const Tensor contexts = made({steps + 1, batch, n.channels});
    Tensor ungated = gated ? made({save ? steps : 1, batch, n.channels}) : stretch_of(contexts, 1, steps);
    const Tensor alpha = made({steps, batch, n.keys}), kept = made_if(keep.has_value(), {steps, batch, n.keys});
    const Tensor of_context = made({batch, n.gates()});

    // With dropout, values are weighted by what it leaves of the weights, which are then all that this kernel is asked for.
    const AttentionTensors attention = keep ? without_values() : memory;
    const AttentionWorkspace workspace = attention_workspace(attention, n.rows_per_entry(), true);

    AttentionTensors without_values() const {
        AttentionTensors weights_alone = memory;
        weights_alone.value = columns_of(memory.value, 0, 0);
        return weights_alone;
    }

    Tensor of_h_at(int64_t s) const { return at_step(of_h, save ? s : 0); }

    void write_of_h(int64_t s) const { call<1>("aten::linear", "out", h, w_of_h, b_of_h, of_h_at(s)); }

    void attend(int64_t s, const Tensor& of_h) const {
        const Tensor weights = at_step(alpha, s), query = columns_of(of_h, query_first, n.width);
        const Tensor context = at_step(ungated, gated && !save ? 0 : s);
        MaybeTensor bias;
        if (given.score_bias) bias = by_entry(at_second_step(*given.score_bias, s));
        launch_attention(device, attention, query, bias, workspace, context, weights);
        if (keep) {
            const Tensor left = at_step(kept, s);
            call<1>("aten::mul", "out", weights, at_second_step(*keep, s), left);
            write_batched_product(by_entry(left), memory.value, by_entry(context));
        }
        if (!gated) return;
        const ContextGate<T, A> gate{{batch, n.channels},
                                     rows<const T>(context),
                                     rows<const T>(columns_of(of_h, gate_first, n.channels)),
                                     rows<T>(at_step(contexts, s + 1)),
                                     rows<T>(beta, s)};
        device.launch(gate, gate.blocks());
    }

    void step_of_cell(int64_t s) const {
        write_product(at_step(contexts, previous ? s + 1 : s), w_c_transposed, of_context);
        const Pointwise<A> states{batch, n.hidden};
        const CellForwardArgs<T, A> args{ends(s),
                                         rows<const T>(x_gates, s),
                                         rows<const T>(of_context),
                                         rows<const T>(of_h_at(s)),
                                         data<T>(h),
                                         data<A>(cell),
                                         rows<T>(output, s),
                                         rows<A>(cells, s),
                                         rows<T>(gates, s),
                                         rows<T>(hidden_n, s)};
        if (lstm) {
            device.launch(LstmForward<T, A>{states, args}, states.blocks());
        } else {
            device.launch(GruForward<T, A>{states, args}, states.blocks());
        }
    }
};

// Exponentials of prepared keys are ignored, as by additive attention.
ForwardResults attention_decoder_forward(
    const Tensor& x_gates, const Tensor& key, const Tensor& value, const Tensor& v, const Tensor& h0,
    const MaybeTensor& cell0, const MaybeTensor& context0, const Tensor& w_q, const MaybeTensor& b_q, const Tensor& w_c,
    const Tensor& w_h, const MaybeTensor& b_h, const MaybeTensor& w_beta, const MaybeTensor& b_beta,
    const MaybeTensor& mask, const MaybeTensor& score_bias, const MaybeTensor& keep, const MaybeTensor& lengths,
    const MaybeTensor& key_exponentials, const MaybeTensor& key_bounds, const MaybeTensor& packed, double scale,
    int64_t activation, double negative_slope, int64_t cell, int64_t query, bool save) {
    const Arguments arguments("attention_decoder_forward", "x_gates", x_gates, {any_size, any_size, any_size});
    const DecoderTensors x{key,       value, v, h0, cell0, w_q, w_c, w_h, w_beta, mask, keep, lengths, key_exponentials,
                           key_bounds};
    const DecoderShape n = check_decoder_forward(arguments, x_gates, x, context0, b_q, b_h, b_beta, score_bias, scale,
                                                 activation, negative_slope, cell, query);
    arguments.given_or_not("packed", packed, false, "be None on a GPU");
    const ForwardTensors given{x_gates, context0, b_q, b_h, b_beta, score_bias};
    std::optional<ForwardResults> results;
    HYBRIDOPS_DISPATCH_DTYPE(x_gates.scalar_type(), "attention_decoder_forward",
                             { results = DecoderForward<scalar_t>(n, x, given, save).run(); });
    return *results;
}

// ---- backward --------------------------------------------------------------------------------------------------------

struct UpstreamGradients {
    const MaybeTensor &output, &h_n, &cell_n, &context, &weights;
};

using BackwardResults = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

template <class T>
class DecoderBackward : Decoder {
   public:
    DecoderBackward(const DecoderShape& n, const DecoderTensors& x, const DecoderSaved& saved,
                    const UpstreamGradients& grads)
        : Decoder(n, x), saved(saved), grads(grads) {}

    BackwardResults run() {
        copy_or_clear(dh, grads.h_n);
        if (lstm) copy_or_clear(dcell, grads.cell_n);
        for (Tensor* product : {&from_products, &dcontext_product}) torch::stable::zero_(*product);
        if (!previous) copy_or_clear(gates_of(at_step(d_of_h, steps)), std::nullopt);  // no step follows the last
        for (int64_t s = steps - 1; s >= 0; --s) {
            if (previous) through_cell(s);
            const Tensor d_row = at_step(d_of_h, previous ? s : s + 1);
            through_attention(s, d_row);
            write_product(d_row, w_of_h, from_products);
            if (!previous) through_cell(s);
        }
        if (!previous) write_product(gates_of(at_step(d_of_h, 0)), stretch_of(w_of_h, 0, n.gates()), from_products);
        const FirstStateGradient<T, A> first{
            {batch, n.hidden}, rows<const T>(from_products), rows<const A>(dh), rows<T>(dh0)};
        device.launch(first, first.blocks());
        const Tensor of_states = stretch_of(d_of_h, 0, steps), asking = stretch_of(d_of_h, previous ? 0 : 1, steps);
        const Tensor da_h = steps_second<T>(true, of_states, 0, n.gates()), none = made({0});
        return {lstm ? da_h : da,
                lstm ? none : da_h,
                steps_second<T>(true, asking, query_first, n.width),
                dungated,
                dscores,
                steps_second<T>(gated, asking, gate_first, n.channels),
                dh0,
                dcell,
                previous ? none : dcontext_product};
    }

   private:
    using A = Accumulator<T>;

    const DecoderSaved& saved;
    const UpstreamGradients& grads;
    const Tensor h0 = dense(x.h0), output = dense(saved.output), gates = dense(saved.gates),
                 queries = dense(saved.queries), alpha = dense(saved.alpha);
    const MaybeTensor cell0 = dense_or_none(x.cell0), cells = dense_or_none(saved.cells),
                      hidden_n = dense_or_none(saved.hidden_n), beta = dense_or_none(saved.beta),
                      ungated = dense_or_none(saved.ungated), grad_output = dense_or_none(grads.output),
                      grad_context = dense_or_none(grads.context), grad_weights = dense_or_none(grads.weights);

    // Row s is of h_s, with which the steps begin; of an LSTM it has da, too.
    const Tensor d_of_h = made({steps + 1, batch, of_h_size});

    // results
    const Tensor da = made_if(!lstm, {batch, steps, n.gates()}), dungated = made({batch, steps, n.channels}),
                 dscores = made_of_sums({batch, steps, n.keys}), dh0 = made({batch, n.hidden});
    Tensor dcell = made_of_sums_if(lstm, {batch, n.hidden}), dcontext_product = made({batch, n.channels});

    // The gradient of h of a step is `dh`, `from_products` and that of the output.
    Tensor dh = made_of_sums({batch, n.hidden}), from_products = made({batch, n.hidden});
    const Tensor dalpha = made({batch, n.keys, 1}), scaled = made_of_sums({batch, n.keys}),
                 query_workspace = query_gradient_workspace(memory.k);

    Tensor gates_of(const Tensor& d_row) const { return columns_of(d_row, 0, n.gates()); }

    void through_cell(int64_t s) const {
        const Tensor d_row = at_step(d_of_h, s);
        const Pointwise<A> states{batch, n.hidden};
        CellBackwardArgs<T, A> args{};
        args.ends = ends(s);
        args.from_products = rows<const T>(from_products);
        args.dh = data<A>(dh);
        args.grad_output = rows<const T>(grad_output, s);
        args.gates = rows<const T>(gates, s);
        args.da_h = rows<T>(d_row);
        if (lstm) {
            args.dcell = data<A>(dcell);
            args.cell = rows<const A>(cells, s);
            args.cell_before = s > 0 ? rows<const A>(cells, s - 1) : rows<const A>(*cell0);
            device.launch(LstmBackward<T, A>{states, args}, states.blocks());
        } else {
            args.hidden_n = rows<const T>(hidden_n, s);
            args.h_before = s > 0 ? rows<const T>(output, s - 1) : rows<const T>(h0);
            args.da = rows<T>(da, s);
            device.launch(GruBackward<T, A>{states, args}, states.blocks());
        }
        write_product(lstm ? gates_of(d_row) : at_second_step(da, s), w_c, dcontext_product);
    }

    // The gradients of the query and of the context gate go to d_row.
    void through_attention(int64_t s, const Tensor& d_row) const {
        const ContextBackward<T, A> context{{batch, n.channels},
                                            ends(s),
                                            rows<const T>(dcontext_product),
                                            rows<const T>(grad_context, s),
                                            rows<const T>(beta, s),
                                            rows<const T>(ungated, s),
                                            rows<T>(dungated, s),
                                            rows<T>(columns_of(d_row, gate_first, gate_size))};
        device.launch(context, context.blocks());
        const Tensor dcontext = torch::stable::unsqueeze(at_second_step(dungated, s), 2);
        write_batched_product(memory.value, dcontext, dalpha);
        const SoftmaxBackward<T, A> softmax{ends(s),
                                            n.keys,
                                            broadcast_of<bool>(memory.mask),
                                            rows<const T>(dalpha),
                                            rows<const T>(grad_weights, s),
                                            rows<const T>(keep, s),
                                            rows<const T>(alpha, s),
                                            static_cast<A>(n.scale),
                                            rows<A>(dscores, s),
                                            rows<A>(scaled)};
        device.launch(softmax, batch);
        launch_query_gradient(device, memory, at_second_step(queries, s), scaled, query_workspace,
                              columns_of(d_row, query_first, n.width));
    }
};

BackwardResults attention_decoder_backward(
    const MaybeTensor& grad_output, const MaybeTensor& grad_h_n, const MaybeTensor& grad_cell_n,
    const MaybeTensor& grad_context, const MaybeTensor& grad_weights, const Tensor& key, const Tensor& value,
    const Tensor& v, const Tensor& h0, const MaybeTensor& cell0, const Tensor& w_q, const Tensor& w_c,
    const Tensor& w_h, const MaybeTensor& w_beta, const MaybeTensor& mask, const MaybeTensor& keep,
    const MaybeTensor& lengths, const MaybeTensor& key_exponentials, const MaybeTensor& key_bounds,
    const Tensor& output, const MaybeTensor& cells, const Tensor& gates, const MaybeTensor& hidden_n,
    const Tensor& queries, const Tensor& alpha, const MaybeTensor& beta, const MaybeTensor& ungated, double scale,
    int64_t activation, double negative_slope, int64_t cell, int64_t query) {
    const Arguments arguments("attention_decoder_backward", "gates", gates, {any_size, any_size, any_size});
    const DecoderTensors x{key,       value, v, h0, cell0, w_q, w_c, w_h, w_beta, mask, keep, lengths, key_exponentials,
                           key_bounds};
    const DecoderSaved saved{output, gates, queries, alpha, cells, hidden_n, beta, ungated};
    const DecoderShape n =
        check_decoder_backward(arguments, grad_output, grad_h_n, grad_cell_n, grad_context, grad_weights, x, saved,
                               scale, activation, negative_slope, cell, query);
    const UpstreamGradients grads{grad_output, grad_h_n, grad_cell_n, grad_context, grad_weights};
    std::optional<BackwardResults> results;
    HYBRIDOPS_DISPATCH_DTYPE(gates.scalar_type(), "attention_decoder_backward",
                             { results = DecoderBackward<scalar_t>(n, x, saved, grads).run(); });
    return *results;
}

}  // namespace
}  // namespace hybridops

STABLE_TORCH_LIBRARY_IMPL(hybridops, HYBRIDOPS_DISPATCH_KEY, m) {
    m.impl("attention_decoder_forward", TORCH_BOX(&hybridops::attention_decoder_forward));
    m.impl("attention_decoder_backward", TORCH_BOX(&hybridops::attention_decoder_backward));
}
