// Gradients of the scores; part of additive_attention_kernels.h.
//
// A unit of work owns some columns a of one batch entry, for all queries and keys: dq and dk of these columns are its own,
// so that nothing is shared between threads and the sums have one order. With z = q + k and ds the gradient of a score:
//   dq_s = v sum_t ds act'(z)     dk_t = v sum_s ds act'(z)     dv = sum_st ds act(z)

template <class A>
struct Columns {    // lanes<A> columns of every query and key
    A *q, *k, *dk;  // (S,lanes), (T,lanes), (T,lanes)
};

// tanh of some queries and a key, from what stands in the columns: P = e^2q and K = e^-2k ...
template <class A, bool shared>  // two queries share a division; else each has its own
struct FactoredTanh {
    static constexpr bool exponentials = true;

    // tanh = 1 - 2 K / (K + P);  1/x = y / (xy),  1/y = x / (xy)
    template <int rows>
    HYBRIDOPS_INLINE void values(Simd<A> (&value)[rows], const Simd<A> (&p)[rows], Simd<A> k) const {
        constexpr bool pairs = shared && rows % 2 == 0;
        const Simd<A> k2 = -2 * k;
        for (int i = 0; i < rows; i += pairs ? 2 : 1) {
            if constexpr (pairs) {
                const Simd<A> x = p[i] + k, y = p[i + 1] + k, r = k2 / (x * y);
                value[i] = r * y + 1;
                value[i + 1] = r * x + 1;
            } else {
                value[i] = k2 / (p[i] + k) + 1;
            }
        }
    }
    HYBRIDOPS_INLINE Simd<A> chained(Simd<A> ds, Simd<A> by_value, Simd<A>, Simd<A>, Simd<A> value) const {
        return ds - by_value * value;
    }
};

// ... or any activation from q and k.
template <class A, class Act>
struct Direct {
    static constexpr bool exponentials = false;
    Act act;

    template <int rows>
    HYBRIDOPS_INLINE void values(Simd<A> (&value)[rows], const Simd<A> (&q)[rows], Simd<A> k) const {
        for (int i = 0; i < rows; ++i) value[i] = act.value(q[i] + k);
    }
    // ds act'(q + k); by_value = ds act(q + k)
    HYBRIDOPS_INLINE Simd<A> chained(Simd<A> ds, Simd<A>, Simd<A> q, Simd<A> k, Simd<A> value) const {
        return ds * act.slope(q + k, value);
    }
};

// `rows` queries from s on against the keys [0, end); dq (rows,lanes) out, dk added to, dv returned; dq and dk without the
// factor v.
template <class A, int rows, class Act>
HYBRIDOPS_INLINE Simd<A> pair_gradients(A* dq, const Columns<A>& c, const A* grad, int64_t s, int64_t keys, int64_t end,
                                        const Act& act) {
    // dv in two sums: one would be a chain of `rows` dependent additions a key, longer than all the other work
    Simd<A> q[rows], dq_acc[rows] = {}, dv[2] = {};
    for (int i = 0; i < rows; ++i) q[i] = load(c.q + (s + i) * lanes<A>);
    for (int64_t t = 0; t < end; ++t) {
        const Simd<A> k = load(c.k + t * lanes<A>);
        Simd<A> dk = load(c.dk + t * lanes<A>), value[rows];
        act.values(value, q, k);
        for (int i = 0; i < rows; ++i) {
            const Simd<A> ds = broadcast(grad[(s + i) * keys + t]), by_value = ds * value[i];
            const Simd<A> dz = act.chained(ds, by_value, q[i], k, value[i]);
            dq_acc[i] += dz;
            dk += dz;
            dv[i % 2] += by_value;
        }
        store(c.dk + t * lanes<A>, dk);
    }
    for (int i = 0; i < rows; ++i) store(dq + i * lanes<A>, dq_acc[i]);
    return dv[0] + dv[1];
}

// The columns [a0, a0 + count) of batch entry b, from the keys [0, end); dv_out (lanes).
template <class A, class T, class Act>
void column_gradients(const AdditiveScoresBackwardArgs<T, A>& a, const Columns<A>& c, int64_t b, int64_t a0,
                      int64_t count, int64_t end, A* dv_out, const Act& act) {
    constexpr int rows = 6;  // what the registers hold
    const AdditiveShape& n = a.shape;
    if constexpr (Act::exponentials) {
        exponential_row<2>(c.q, c.q, n.queries * lanes<A>, n.queries * lanes<A>);
        exponential_row<-2>(c.k, c.k, end * lanes<A>, end * lanes<A>);
    }
    std::fill(c.dk, c.dk + n.keys * lanes<A>, A(0));
    const A* grad = a.grad + b * n.queries * n.keys;
    const Simd<A> v = load_lanes<A>(a.v + a0, count);
    Simd<A> dv = {};
    A dq[rows * lanes<A>];
    for (int64_t s = 0, step; s < n.queries; s += step) {
        step = n.queries - s >= rows ? rows : n.queries - s >= 2 ? 2 : 1;
        dv += step == rows ? pair_gradients<A, rows>(dq, c, grad, s, n.keys, end, act)
              : step == 2  ? pair_gradients<A, 2>(dq, c, grad, s, n.keys, end, act)
                           : pair_gradients<A, 1>(dq, c, grad, s, n.keys, end, act);
        for (int64_t i = 0; i < step; ++i)
            store_lanes<A>(a.dq + (b * n.queries + s + i) * n.width + a0, load(dq + i * lanes<A>) * v, count);
    }
    for (int64_t t = 0; t < n.keys; ++t)
        store_lanes<A>(a.dk + (b * n.keys + t) * n.width + a0, load(c.dk + t * lanes<A>) * v, count);
    store(dv_out, dv);
}

// Behind the last key that any query has a gradient of: behind a mask there are only zeros.
template <class A>
int64_t end_of_nonzeros(const A* grad, const AdditiveShape& n) {
    int64_t end = 0;
    for (int64_t s = 0; s < n.queries; ++s) {
        int64_t t = n.keys;
        while (t > end && grad[s * n.keys + t - 1] == 0) --t;
        end = t;
    }
    return end;
}

// dv: (B,columns), for each batch entry
template <class T, class A, class Act>
void gradients(const AdditiveScoresBackwardArgs<T, A>& a, A* dv, const Act& act) {
    const AdditiveShape& n = a.shape;
    const int64_t columns = ceil_div(n.width, lanes<A>);
    const Buffer<int64_t> ends(n.batch);
    torch::stable::parallel_for(0, n.batch, 1, [&](int64_t begin, int64_t end) {
        for (int64_t b = begin; b < end; ++b) ends.data()[b] = end_of_nonzeros(a.grad + b * n.queries * n.keys, n);
    });
    parallel_for_dynamic(n.batch * columns, [&](WorkQueue& queue) {
        A* scratch = static_cast<A*>(thread_scratch((n.queries + 2 * n.keys) * lanes<A> * sizeof(A)));
        const Columns<A> c{scratch, scratch + n.queries * lanes<A>, scratch + (n.queries + n.keys) * lanes<A>};
        for (int64_t unit; queue.take(unit);) {
            const int64_t b = unit / columns, a0 = unit % columns * lanes<A>;
            const int64_t count = lanes_of<A>(n.width - a0);
            const auto gather = [&](A* out, const T* in, int64_t length) {
                LargestMagnitude<A> most;
                for (int64_t i = 0; i < length; ++i) {
                    const Simd<A> x = load_lanes<A>(in + (b * length + i) * n.width + a0, count);
                    most.see(x);
                    store(out + i * lanes<A>, x);
                }
                return most.value();
            };
            const A q_bound = gather(c.q, a.q, n.queries), k_bound = gather(c.k, a.k, n.keys);
            const auto within = [&](A range) { return q_bound <= range && k_bound <= range; };
            // What is finite, times zero, is zero; else a NaN has to come
            const A largest_sum = q_bound + k_bound;
            const int64_t end = largest_sum - largest_sum == 0 ? ends.data()[b] : n.keys;
            const auto run = [&](const auto& form) {
                column_gradients(a, c, b, a0, count, end, dv + unit * lanes<A>, form);
            };
            if constexpr (std::is_same_v<Act, Tanh>) {
                // 1 - 2r is right to a last place of 1, which a small tanh is far below: dv would have few digits
                const bool small = largest_sum <= A(1) / 8;
                if (!small && within(QuotientRange<A>::paired)) {
                    run(FactoredTanh<A, true>{});
                    continue;
                }
                if (!small && within(QuotientRange<A>::single)) {
                    run(FactoredTanh<A, false>{});
                    continue;
                }
            }
            run(Direct<A, Act>{act});
        }
    });
}

template <class T, class A>
void additive_scores_backward(const AdditiveScoresBackwardArgs<T, A>& a) {
    const AdditiveShape& n = a.shape;
    const int64_t columns = round_up(n.width, lanes<A>);
    const Buffer<A> dv(n.batch * columns);
    with_activation<A>(n.activation, n.negative_slope, [&](auto act) { gradients(a, dv.data(), act); });
    for (int64_t i = 0; i < n.width; ++i) {
        A sum = 0;
        for (int64_t b = 0; b < n.batch; ++b) sum += dv.data()[b * columns + i];
        a.dv[i] = static_cast<T>(sum);
    }
}
