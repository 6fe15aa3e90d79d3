// The kernels of the attention decoder's steps on a GPU, beside those of additive attention and the library's products.
// Equations: ../math and hybridops/formulas/attention_decoder.py. T storage type, A accumulator type.
#pragma once
#include "../attention_decoder_args.h"
#include "gates.cuh"

namespace hybridops {

// A matrix (B,·) of one step, with rows so far apart; data null = none.
template <class T>
struct StepRows {
    T* data;
    int64_t row;
};

// Which rows of the batch a step is not behind the end of.
struct RowEnds {
    const int64_t* lengths;  // (B), null = none ends
    int64_t step;

    HYBRIDOPS_INLINE bool alive(int64_t b) const { return !lengths || step < lengths[b]; }
};

// Of a matrix (B,columns): its row and column, and its number.
struct Element {
    int64_t b, column, at;
};

// A kernel with a thread for each element of a matrix (B,columns).
template <class A>
struct Pointwise {
    static constexpr int threads = 256, min_blocks_per_sm = 4;  // takes up to 42 of 64 registers
    struct Shared {};
    int64_t batch, columns;

    int64_t blocks() const { return ceil_div(batch * columns, threads); }

    // f(an element), in its thread
    template <class F>
    HYBRIDOPS_INLINE void element(const F& f) const {
        const int64_t at = int64_t{blockIdx.x} * threads + threadIdx.x;
        if (at < batch * columns) f(Element{at / columns, at % columns, at});
    }

    // The value of a part, of as many columns, of a row that has several; of no matrix, zero.
    template <class T>
    HYBRIDOPS_INLINE A value(const StepRows<T>& x, const Element& e, int part = 0) const {
        return x.data ? static_cast<A>(x.data[e.b * x.row + part * columns + e.column]) : A(0);
    }
    template <class T>
    HYBRIDOPS_INLINE void write(const StepRows<T>& x, const Element& e, A value, int part = 0) const {
        if (x.data) x.data[e.b * x.row + part * columns + e.column] = static_cast<T>(value);
    }
};

// ---- the cell --------------------------------------------------------------------------------------------------------

template <class T, class A>
struct CellForwardArgs {
    RowEnds ends;
    StepRows<const T> from_x, from_context, from_h;  // (B,GH): what the gates are the sums of
    T* h;                                            // (B,H): in, of the step before; out, of this one
    A* cell;                                         // the same, of an LSTM
    StepRows<T> output;                              // (B,H): h, or zeros behind a row's end
    StepRows<A> cells;                               // (B,H), data null = not wanted, as for the next two
    StepRows<T> gates, hidden_n;                     // (B,GH), (B,H) of a GRU
};

HYBRIDOPS_ENTRY(attention_decoder_lstm_kernel)

template <class T, class A>
struct LstmForward : Pointwise<A> {
    using Pointwise<A>::element, Pointwise<A>::value, Pointwise<A>::write;
    static auto entry() { return &attention_decoder_lstm_kernel<LstmForward>; }
    CellForwardArgs<T, A> a;

    HYBRIDOPS_INLINE void operator()(typename Pointwise<A>::Shared&) const {
        element([&](const Element& e) {
            const auto sum = [&](int gate) {
                return value(a.from_x, e, gate) + value(a.from_context, e, gate) + value(a.from_h, e, gate);
            };
            const A before = a.cell[e.at];
            const auto cell = lstm_cell(sum(1), sum(0), sum(2), before, false, Peephole<A>{});
            const auto out = lstm_output(sum(3), cell.c, false, Peephole<A>{});
            const bool alive = a.ends.alive(e.b);
            const A c = alive ? cell.c : before;
            if (alive) a.h[e.at] = static_cast<T>(out.h);
            a.cell[e.at] = c;
            write(a.output, e, alive ? out.h : A(0));
            write(a.cells, e, c);
            write(a.gates, e, cell.i, 0);
            write(a.gates, e, cell.f, 1);
            write(a.gates, e, cell.g, 2);
            write(a.gates, e, out.o, 3);
        });
    }
};

HYBRIDOPS_ENTRY(attention_decoder_gru_kernel)

template <class T, class A>
struct GruForward : Pointwise<A> {
    using Pointwise<A>::element, Pointwise<A>::value, Pointwise<A>::write;
    static auto entry() { return &attention_decoder_gru_kernel<GruForward>; }
    CellForwardArgs<T, A> a;

    HYBRIDOPS_INLINE void operator()(typename Pointwise<A>::Shared&) const {
        element([&](const Element& e) {
            const auto sum = [&](int gate) { return value(a.from_x, e, gate) + value(a.from_context, e, gate); };
            const auto of_h = [&](int gate) { return value(a.from_h, e, gate); };
            const A hidden_n = of_h(2);
            const auto cell = gru_cell(sum(0) + of_h(0), sum(1) + of_h(1), sum(2), hidden_n, static_cast<A>(a.h[e.at]));
            const bool alive = a.ends.alive(e.b);
            if (alive) a.h[e.at] = static_cast<T>(cell.h);
            write(a.output, e, alive ? cell.h : A(0));
            write(a.gates, e, cell.r, 0);
            write(a.gates, e, cell.z, 1);
            write(a.gates, e, cell.n, 2);
            write(a.hidden_n, e, hidden_n);
        });
    }
};

// The gradient of h comes in three parts: from the products of the later steps, from what of it no product gives, and from
// the output.
template <class T, class A>
struct CellBackwardArgs {
    RowEnds ends;
    StepRows<const T> from_products;       // (B,H)
    A *dh, *dcell;                         // (B,H): in, the second part, and dc; out, those of the step before
    StepRows<const T> grad_output, gates;  // (B,H), (B,GH)
    StepRows<const A> cell, cell_before;   // (B,H), of an LSTM
    StepRows<const T> hidden_n, h_before;  // (B,H), of a GRU
    StepRows<T> da, da_h;                  // (B,GH) of the sums, zeros behind a row's end; da_h of a GRU
};

HYBRIDOPS_ENTRY(attention_decoder_lstm_backward_kernel)

template <class T, class A>
struct LstmBackward : Pointwise<A> {
    using Pointwise<A>::element, Pointwise<A>::value, Pointwise<A>::write;
    static auto entry() { return &attention_decoder_lstm_backward_kernel<LstmBackward>; }
    CellBackwardArgs<T, A> a;

    HYBRIDOPS_INLINE void operator()(typename Pointwise<A>::Shared&) const {
        element([&](const Element& e) {
            const auto gate = [&](int i) { return value(a.gates, e, i); };
            const A kept = a.dh[e.at] + value(a.from_products, e);
            auto d = lstm_backward(kept + value(a.grad_output, e), a.dcell[e.at], gate(1), gate(0), gate(2), gate(3),
                                   value(a.cell, e), value(a.cell_before, e), false, Peephole<A>{});
            const bool alive = a.ends.alive(e.b);
            if (!alive) d = {0, 0, 0, 0, a.dcell[e.at]};
            a.dh[e.at] = alive ? A(0) : kept;
            a.dcell[e.at] = d.dc_prev;
            write(a.da_h, e, d.da_i, 0);
            write(a.da_h, e, d.da_f, 1);
            write(a.da_h, e, d.da_g, 2);
            write(a.da_h, e, d.da_o, 3);
        });
    }
};

HYBRIDOPS_ENTRY(attention_decoder_gru_backward_kernel)

template <class T, class A>
struct GruBackward : Pointwise<A> {
    using Pointwise<A>::element, Pointwise<A>::value, Pointwise<A>::write;
    static auto entry() { return &attention_decoder_gru_backward_kernel<GruBackward>; }
    CellBackwardArgs<T, A> a;

    HYBRIDOPS_INLINE void operator()(typename Pointwise<A>::Shared&) const {
        element([&](const Element& e) {
            const auto gate = [&](int i) { return value(a.gates, e, i); };
            const A kept = a.dh[e.at] + value(a.from_products, e);
            auto d = gru_backward(kept + value(a.grad_output, e), gate(0), gate(1), gate(2), value(a.hidden_n, e),
                                  value(a.h_before, e));
            if (!a.ends.alive(e.b)) d = {0, 0, 0, 0, kept};
            a.dh[e.at] = d.dh_prev;
            const auto write_gates = [&](const StepRows<T>& da, A of_n) {
                write(da, e, d.da_r, 0);
                write(da, e, d.da_z, 1);
                write(da, e, of_n, 2);
            };
            write_gates(a.da, d.da_n);
            write_gates(a.da_h, d.dhidden_n);
        });
    }
};

HYBRIDOPS_ENTRY(attention_decoder_first_state_kernel)

// dh0 (B,H) = the two parts of the gradient of h that are left before the first step.
template <class T, class A>
struct FirstStateGradient : Pointwise<A> {
    using Pointwise<A>::element, Pointwise<A>::value, Pointwise<A>::write;
    static auto entry() { return &attention_decoder_first_state_kernel<FirstStateGradient>; }
    StepRows<const T> from_products;
    StepRows<const A> dh;
    StepRows<T> dh0;

    HYBRIDOPS_INLINE void operator()(typename Pointwise<A>::Shared&) const {
        element([&](const Element& e) { write(dh0, e, value(from_products, e) + value(dh, e)); });
    }
};

// ---- the context -----------------------------------------------------------------------------------------------------

HYBRIDOPS_ENTRY(attention_decoder_context_gate_kernel)

// context (B,D) = ungated ∘ β, β = σ(from_h)
template <class T, class A>
struct ContextGate : Pointwise<A> {
    using Pointwise<A>::element, Pointwise<A>::value, Pointwise<A>::write;
    static auto entry() { return &attention_decoder_context_gate_kernel<ContextGate>; }
    StepRows<const T> ungated, from_h;
    StepRows<T> context, beta;  // beta null = not wanted

    HYBRIDOPS_INLINE void operator()(typename Pointwise<A>::Shared&) const {
        element([&](const Element& e) {
            const A gate = sigmoid(value(from_h, e));
            write(context, e, gate * value(ungated, e));
            write(beta, e, gate);
        });
    }
};

HYBRIDOPS_ENTRY(attention_decoder_context_backward_kernel)

// dungated (B,D), of the context before its gate, and where there is one dbeta (B,D), of the gate before its σ; zeros
// behind a row's end.
template <class T, class A>
struct ContextBackward : Pointwise<A> {
    using Pointwise<A>::element, Pointwise<A>::value, Pointwise<A>::write;
    static auto entry() { return &attention_decoder_context_backward_kernel<ContextBackward>; }
    RowEnds ends;
    StepRows<const T> from_product, grad_context;  // what the context's gradient is the sum of
    StepRows<const T> beta, ungated;               // null = no gate
    StepRows<T> dungated, dbeta;

    HYBRIDOPS_INLINE void operator()(typename Pointwise<A>::Shared&) const {
        element([&](const Element& e) {
            const A grad = ends.alive(e.b) ? value(from_product, e) + value(grad_context, e) : A(0);
            const A gate = beta.data ? value(beta, e) : A(1);
            write(dungated, e, grad * gate);
            write(dbeta, e, grad * value(ungated, e) * gate * (1 - gate));
        });
    }
};

// ---- the softmax -----------------------------------------------------------------------------------------------------

HYBRIDOPS_ENTRY(attention_decoder_softmax_backward_kernel)

// dscores (B,T) = α∘(dα - Σ_t α∘dα) with dα = keep∘(from_product + grad_weights), 0 where masked or behind a row's end; and
// scale times that. A block has a row. Masked keys are left out, not multiplied by their weight of zero: their gradient may be
// infinite.
template <class T, class A>
struct SoftmaxBackward {
    static constexpr int threads = 256, min_blocks_per_sm = 4, warps = threads / 32;  // takes up to 56 of 64
    static auto entry() { return &attention_decoder_softmax_backward_kernel<SoftmaxBackward>; }
    struct Shared {
        A sums[warps];
    };
    RowEnds ends;
    int64_t keys;
    Broadcast<bool> mask;  // (B,1,T)
    StepRows<const T> from_product, grad_weights, keep, alpha;
    A scale;
    StepRows<A> dscores, scaled;

    HYBRIDOPS_INLINE void operator()(Shared& shared) const {
        const int64_t b = blockIdx.x;
        A sum = 0;
        for (int64_t t = threadIdx.x; t < keys; t += threads)
            if (attended(b, t)) sum += static_cast<A>(alpha.data[b * alpha.row + t]) * gradient(b, t);
        sum = block_sum(shared, sum);
        for (int64_t t = threadIdx.x; t < keys; t += threads) {
            const A d = attended(b, t) ? static_cast<A>(alpha.data[b * alpha.row + t]) * (gradient(b, t) - sum) : A(0);
            dscores.data[b * dscores.row + t] = d;
            scaled.data[b * scaled.row + t] = scale * d;
        }
    }

    HYBRIDOPS_INLINE bool attended(int64_t b, int64_t t) const {
        return ends.alive(b) && (!mask.data || mask.data[b * mask.batch + t * mask.key]);
    }

    HYBRIDOPS_INLINE A gradient(int64_t b, int64_t t) const {
        A d = static_cast<A>(from_product.data[b * from_product.row + t]);
        if (grad_weights.data) d += static_cast<A>(grad_weights.data[b * grad_weights.row + t]);
        return keep.data ? d * static_cast<A>(keep.data[b * keep.row + t]) : d;
    }

    static HYBRIDOPS_INLINE A block_sum(Shared& shared, A sum) {
#pragma unroll
        for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(~0u, sum, distance);
        if (threadIdx.x % 32 == 0) shared.sums[threadIdx.x / 32] = sum;
        __syncthreads();
        sum = 0;
#pragma unroll
        for (int i = 0; i < warps; ++i) sum += shared.sums[i];
        return sum;
    }
};

// ---- results ---------------------------------------------------------------------------------------------------------

HYBRIDOPS_ENTRY(attention_decoder_steps_second_kernel)

// (B,S,columns) from some columns of (S,B,·), in which steps lie in one piece; zeros behind a row's end.
template <class T, class A>
struct StepsSecond : Pointwise<A> {  // of a matrix (B S,columns)
    using Pointwise<A>::element;
    static auto entry() { return &attention_decoder_steps_second_kernel<StepsSecond>; }
    const int64_t* lengths;
    int64_t rows, steps;  // B, S
    StepRows<const T> from;
    T* to;

    HYBRIDOPS_INLINE void operator()(typename Pointwise<A>::Shared&) const {
        element([&](const Element& e) {
            const int64_t b = e.b / steps, s = e.b % steps;
            to[e.at] = RowEnds{lengths, s}.alive(b) ? from.data[(s * rows + b) * from.row + e.column] : T(0);
        });
    }
};

}  // namespace hybridops
