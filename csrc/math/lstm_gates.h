// One step of the ConvLSTM after its convolutions (Shi et al. 2015, arXiv:1506.04214, eq. 3), forward and backward. The
// value type V has +, -, * and the functions sigmoid(V) and tanh(V): a SIMD vector on a CPU, a float on a GPU. It is
// included inside the namespace that defines these, so it has no include guard. HYBRIDOPS_INLINE is its "inline".
//
//   f = s(a_f + p_f c')   i = s(a_i + p_i c')   g = tanh(a_g)   c = f c' + i g   o = s(a_o + p_o c)   h = o tanh(c)

template <class V>
struct Peephole {
    V f, i, o;
};

template <class V>
struct LstmCell {
    V f, i, g, c;
};

// Without a peephole its terms are left out. Multiplied by zero, an infinite cell would become NaN.
template <class V>
HYBRIDOPS_INLINE LstmCell<V> lstm_cell(V a_f, V a_i, V a_g, V c_prev, bool has_peephole, const Peephole<V>& p) {
    if (has_peephole) {
        a_f = a_f + p.f * c_prev;
        a_i = a_i + p.i * c_prev;
    }
    LstmCell<V> s;
    s.f = sigmoid(a_f);
    s.i = sigmoid(a_i);
    s.g = tanh(a_g);
    s.c = s.f * c_prev + s.i * s.g;
    return s;
}

template <class V>
struct LstmOutput {
    V o, h;
};

template <class V>
HYBRIDOPS_INLINE LstmOutput<V> lstm_output(V a_o, V c, bool has_peephole, const Peephole<V>& p) {
    if (has_peephole) a_o = a_o + p.o * c;
    const V o = sigmoid(a_o);
    return {o, o * tanh(c)};
}

template <class V>
struct LstmGradient {
    V da_f, da_i, da_g, da_o, dc_prev;
};

// dh, dc: the gradients of h and, from the later steps, of c. f, i, g, o, c: the results of the forward step.
template <class V>
HYBRIDOPS_INLINE LstmGradient<V> lstm_backward(V dh, V dc, V f, V i, V g, V o, V c, V c_prev, bool has_peephole,
                                               const Peephole<V>& p) {
    const V tanh_c = tanh(c);
    LstmGradient<V> d;
    d.da_o = dh * tanh_c * o * (1 - o);
    dc = dc + dh * o * (1 - tanh_c * tanh_c);
    if (has_peephole) dc = dc + p.o * d.da_o;
    d.da_f = dc * c_prev * f * (1 - f);
    d.da_i = dc * g * i * (1 - i);
    d.da_g = dc * i * (1 - g * g);
    d.dc_prev = dc * f;
    if (has_peephole) d.dc_prev = d.dc_prev + p.f * d.da_f + p.i * d.da_i;
    return d;
}
