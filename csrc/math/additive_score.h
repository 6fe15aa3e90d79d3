// The additive score and its derivative (Bahdanau et al. 2015, arXiv:1409.0473), for a value type V with arithmetic,
// comparison by ?: and tanh(V). Included inside the namespace that defines them (so: no include guard).
//
// Factored tanh: with P = e^2q and Q = e^2k,  tanh(q+k) = 1 - 2r  with  r = 1/(1 + PQ):
// exponentials once a row, not once a pair, and one reciprocal can serve several pairs.

// v1/x1 + v2/x2 + v3/x3 + v4/x4 = numerator / denominator.
template <class V>
struct Fraction {
    V numerator, denominator;
};
template <class V>
HYBRIDOPS_INLINE Fraction<V> sum_of_quotients(V v1, V x1, V v2, V x2, V v3, V x3, V v4, V x4) {
    const V n12 = v1 * x2 + v2 * x1, d12 = x1 * x2;
    const V n34 = v3 * x4 + v4 * x3, d34 = x3 * x4;
    return {n12 * d34 + n34 * d12, d12 * d34};
}

// Where the sums of exponents may go, on a GPU: |q| + |k| at most `merged` keeps a product of four 1 + PQ finite, `paired` one of two,
// `single` one of them; beyond, and for NaN, the direct tanh is taken.
template <class A>
struct FactoredRange;
template <>
struct FactoredRange<float> {
    static constexpr float merged = 10.5f;  // (1 + e^21)^4 = 3e36
    static constexpr float paired = 21.0f;  // (1 + e^42)^2 = 3e36
    static constexpr float single = 43.0f;  // 1 + e^86 = 2e37
};
template <>
struct FactoredRange<double> {
    static constexpr double merged = 80.0;   // (1 + e^160)^4 = 8e277
    static constexpr double paired = 170.0;  // (1 + e^340)^2 = 2e295
    static constexpr double single = 350.0;  // 1 + e^700 = 1e304
};

// On the CPU the quotient by additions alone: r = K/(K + P) with K = e^-2k. So a pair costs no multiplication of its own, and a factor
// v_a of r is multiplied into K once a key. |q| and |k|, each for itself, may be as large as `merged` for a product of four
// K + P, between e^-2m and 2 e^2m, to stay finite and normal, with a factor of up to e^2m in front; `paired` and `single` as
// above.
template <class A>
struct QuotientRange;
template <>
struct QuotientRange<float> {
    static constexpr float merged = 10.0f;  // (2 e^20)^4 = 9e35
    static constexpr float paired = 20.0f;  // (2 e^40)^2 = 2e35
    static constexpr float single = 43.0f;  // 2 e^86 = 4e37
};
template <>
struct QuotientRange<double> {
    static constexpr double merged = 80.0;   // (2 e^160)^4 = 1e279
    static constexpr double paired = 170.0;  // (2 e^340)^2 = 9e295
    static constexpr double single = 350.0;  // 2 e^700 = 2e304
};

struct Tanh {
    template <class V>
    HYBRIDOPS_INLINE V value(V z) const {
        return tanh(z);
    }
    template <class V>
    HYBRIDOPS_INLINE V slope(V, V value) const {
        return 1 - value * value;
    }
};

// At the kink and for NaN, value and slope are what PyTorch's are. Relu is not LeakyRelu with slope 0: 0 * inf is NaN.
struct Relu {
    template <class V>
    HYBRIDOPS_INLINE V value(V z) const {
        return z < 0 ? V{} : z;
    }
    template <class V>
    HYBRIDOPS_INLINE V slope(V z, V) const {
        return z <= 0 ? V{} : V{} + 1;
    }
};

template <class A>
struct LeakyRelu {
    A negative_slope;
    template <class V>
    HYBRIDOPS_INLINE V value(V z) const {
        return z > 0 ? z : z * negative_slope;
    }
    template <class V>
    HYBRIDOPS_INLINE V slope(V z, V) const {
        return z > 0 ? V{} + 1 : V{} + negative_slope;
    }
};

// Calls f with the activation, as an object of its own type.
template <class A, class F>
void with_activation(Activation activation, double negative_slope, const F& f) {
    switch (activation) {
        case Activation::tanh: return f(Tanh{});
        case Activation::relu: return f(Relu{});
        case Activation::leaky_relu: return f(LeakyRelu<A>{static_cast<A>(negative_slope)});
    }
}
