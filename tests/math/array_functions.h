// The functions of simd.h and csrc/math over arrays. Included once for each kind of number, inside its namespace, which
// defines Simd, lanes, load_lanes, store_lanes, exp, sigmoid and tanh (so: no include guard, no other includes).
#include "../../csrc/math/additive_score.h"
#include "../../csrc/math/lstm_gates.h"

// F::apply(in, out, negative_slope) for each vector of the arrays.
template <class F, class A>
void over_arrays(const A* const* in, A* const* out, int64_t count, double negative_slope) {
    for (int64_t at = 0; at < count; at += lanes<A>) {
        const int64_t n = std::min<int64_t>(count - at, lanes<A>);
        Simd<A> x[F::inputs], y[F::outputs];
        for (int k = 0; k < F::inputs; ++k) x[k] = load_lanes<A>(in[k] + at, n);
        F::template apply<A>(x, y, negative_slope);
        for (int k = 0; k < F::outputs; ++k) store_lanes<A>(out[k] + at, y[k], n);
    }
}

template <int Inputs, int Outputs>
struct Arrays {
    static constexpr int inputs = Inputs, outputs = Outputs;
};

struct Exponential : Arrays<1, 1> {
    template <class A>
    HYBRIDOPS_INLINE static void apply(const Simd<A>* x, Simd<A>* y, double) {
        y[0] = exp(x[0]);
    }
};
struct Sigmoid : Arrays<1, 1> {
    template <class A>
    HYBRIDOPS_INLINE static void apply(const Simd<A>* x, Simd<A>* y, double) {
        y[0] = sigmoid(x[0]);
    }
};
struct HyperbolicTangent : Arrays<1, 1> {
    template <class A>
    HYBRIDOPS_INLINE static void apply(const Simd<A>* x, Simd<A>* y, double) {
        y[0] = tanh(x[0]);
    }
};

#ifdef HYBRIDOPS_VECTOR_BYTES
// e^(Factor x), as the factored tanh takes it
template <int Factor>
struct ExponentialOfMultiple : Arrays<1, 1> {
    template <class A>
    HYBRIDOPS_INLINE static void apply(const Simd<A>* x, Simd<A>* y, double) {
        const auto e = exp_parts<Factor>(x[0]);
        y[0] = e.scale * e.expm1 + e.scale;
    }
};
struct Reciprocal : Arrays<1, 1> {
    template <class A>
    HYBRIDOPS_INLINE static void apply(const Simd<A>* x, Simd<A>* y, double) {
        y[0] = reciprocal(x[0]);
    }
};
#endif

// Behind the other inputs those of the peephole, f, i, o; NaN where there is none, because it is not to be looked at.
template <class A, bool has_peephole>
HYBRIDOPS_INLINE Peephole<Simd<A>> peephole(const Simd<A>* p) {
    if constexpr (has_peephole) return {p[0], p[1], p[2]};
    const Simd<A> nan = Simd<A>{} + std::numeric_limits<A>::quiet_NaN();
    return {nan, nan, nan};
}

template <bool has_peephole>
struct LstmCellArrays : Arrays<has_peephole ? 7 : 4, 4> {  // a_f, a_i, a_g, c'
    template <class A>
    HYBRIDOPS_INLINE static void apply(const Simd<A>* x, Simd<A>* y, double) {
        const auto s = lstm_cell(x[0], x[1], x[2], x[3], has_peephole, peephole<A, has_peephole>(x + 4));
        y[0] = s.f, y[1] = s.i, y[2] = s.g, y[3] = s.c;
    }
};
template <bool has_peephole>
struct LstmOutputArrays : Arrays<has_peephole ? 5 : 2, 2> {  // a_o, c
    template <class A>
    HYBRIDOPS_INLINE static void apply(const Simd<A>* x, Simd<A>* y, double) {
        const auto s = lstm_output(x[0], x[1], has_peephole, peephole<A, has_peephole>(x + 2));
        y[0] = s.o, y[1] = s.h;
    }
};
template <bool has_peephole>
struct LstmBackwardArrays : Arrays<has_peephole ? 11 : 8, 5> {  // dh, dc, f, i, g, o, c, c'
    template <class A>
    HYBRIDOPS_INLINE static void apply(const Simd<A>* x, Simd<A>* y, double) {
        const auto d = lstm_backward(x[0], x[1], x[2], x[3], x[4], x[5], x[6], x[7], has_peephole,
                                     peephole<A, has_peephole>(x + 8));
        y[0] = d.da_f, y[1] = d.da_i, y[2] = d.da_g, y[3] = d.da_o, y[4] = d.dc_prev;
    }
};

template <Activation activation>
struct ActivationArrays : Arrays<1, 2> {  // value and slope
    template <class A>
    HYBRIDOPS_INLINE static void apply(const Simd<A>* z, Simd<A>* y, double negative_slope) {
        with_activation<A>(activation, negative_slope, [&](auto act) {
            y[0] = act.value(z[0]);
            y[1] = act.slope(z[0], y[0]);
        });
    }
};

struct SumOfQuotients : Arrays<8, 2> {  // v1, x1, ..., v4, x4
    template <class A>
    HYBRIDOPS_INLINE static void apply(const Simd<A>* x, Simd<A>* y, double) {
        const auto f = sum_of_quotients(x[0], x[1], x[2], x[3], x[4], x[5], x[6], x[7]);
        y[0] = f.numerator, y[1] = f.denominator;
    }
};

template <class F, class A>
constexpr ArrayFunction<A> array_function(const char* name) {
    return {name, F::inputs, F::outputs, &over_arrays<F, A>};
}

template <class A>
inline constexpr ArrayFunction<A> array_functions[] = {
    array_function<Exponential, A>("exp"),
    array_function<Sigmoid, A>("sigmoid"),
    array_function<HyperbolicTangent, A>("tanh"),
#ifdef HYBRIDOPS_VECTOR_BYTES
    array_function<ExponentialOfMultiple<2>, A>("exp_2x"),
    array_function<ExponentialOfMultiple<-2>, A>("exp_minus_2x"),
    array_function<Reciprocal, A>("reciprocal"),
#endif
    array_function<LstmCellArrays<false>, A>("lstm_cell"),
    array_function<LstmCellArrays<true>, A>("lstm_cell_peephole"),
    array_function<LstmOutputArrays<false>, A>("lstm_output"),
    array_function<LstmOutputArrays<true>, A>("lstm_output_peephole"),
    array_function<LstmBackwardArrays<false>, A>("lstm_backward"),
    array_function<LstmBackwardArrays<true>, A>("lstm_backward_peephole"),
    array_function<ActivationArrays<Activation::tanh>, A>("activation_tanh"),
    array_function<ActivationArrays<Activation::relu>, A>("activation_relu"),
    array_function<ActivationArrays<Activation::leaky_relu>, A>("activation_leaky_relu"),
    array_function<SumOfQuotients, A>("sum_of_quotients"),
};
