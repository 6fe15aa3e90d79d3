// One step of a GRU after its products (Cho et al. 2014, arXiv:1406.1078, with PyTorch's reset gate behind the product),
// forward and backward, for a value type V as in lstm_gates.h. Included inside a namespace (so: no include guard).
//
//   r = s(a_r)   z = s(a_z)   n = tanh(a_n + r a'_n)   h = (1 - z) n + z h'       a' = W_h h' + b_h, a_r and a_z with it

template <class V>
struct GruCell {
    V r, z, n, h;
};

template <class V>
HYBRIDOPS_INLINE GruCell<V> gru_cell(V a_r, V a_z, V a_n, V hidden_n, V h_prev) {
    GruCell<V> s;
    s.r = sigmoid(a_r);
    s.z = sigmoid(a_z);
    s.n = tanh(a_n + s.r * hidden_n);
    s.h = (1 - s.z) * s.n + s.z * h_prev;
    return s;
}

template <class V>
struct GruGradient {
    V da_r, da_z, da_n, dhidden_n, dh_prev;  // dh_prev: without what comes through the product
};

template <class V>
HYBRIDOPS_INLINE GruGradient<V> gru_backward(V dh, V r, V z, V n, V hidden_n, V h_prev) {
    GruGradient<V> d;
    d.da_n = dh * (1 - z) * (1 - n * n);
    d.dhidden_n = d.da_n * r;
    d.da_r = d.da_n * hidden_n * r * (1 - r);
    d.da_z = dh * (h_prev - n) * z * (1 - z);
    d.dh_prev = dh * z;
    return d;
}
