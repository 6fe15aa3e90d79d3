// The activations of the additive score (Bahdanau et al. 2015, arXiv:1409.0473) and their derivatives, for a value type V
// with arithmetic, comparisons in ?: and tanh(V). It is included inside the namespace that defines these, so it has no
// include guard.
//
// The factored tanh: with P = e^2q and Q = e^2k,  tanh(q+k) = 1 - 2r  with  r = 1/(1 + PQ). So there is one exponential
// for each row of q and k, not for each pair, and one reciprocal can serve several pairs.

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

// At the kink and for NaN, value and slope are those of PyTorch. Relu is not LeakyRelu with slope 0, since 0 * inf is NaN.
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
