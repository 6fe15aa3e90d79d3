// Additive scores, forward and backward, for one instruction set; included by every_isa.h inside its namespace.

#include "../math/additive_score.h"

// |x| running maximum in which a NaN stays.
template <class V>
HYBRIDOPS_INLINE V max_magnitude(V most, V x) {
    const V magnitude = x < 0 ? -x : x;
    return (magnitude > most) | (magnitude != magnitude) ? magnitude : most;
}

template <class A>
A max_lane(Simd<A> x) {
    A most = x[0];
    for (int l = 1; l < lanes<A>; ++l) most = x[l] > most || x[l] != x[l] ? x[l] : most;
    return most;
}

// ---- forward ---------------------------------------------------------------------------------------------------------

inline constexpr int merge = 4;                             // positions along A that share a reciprocal
inline constexpr int key_tile = 4;                          // keys in a register tile
inline constexpr int64_t query_block = 16, key_block = 64;  // a unit of work: its query rows stay in the caches

// Columns of a row of exponentials: whole groups of merged vectors.
template <class A>
int64_t padded_width(int64_t width) {
    return (width + merge * lanes<A> - 1) / (merge * lanes<A>)*(merge * lanes<A>);
}

template <class A>
void set_padded_width(int64_t& padded, int64_t width) {
    padded = padded_width<A>(width);
}

template <class A, class T>
void exponentials(const ExponentialRows<A>& out, const T* x, int64_t width) {
    torch::stable::parallel_for(0, out.count, 4096 / (out.padded + 1) + 1, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
            Simd<A> most = {};
            for (int64_t a = 0; a < out.padded; a += lanes<A>) {
                const Simd<A> value = load_lanes<A>(x + row * width + a, std::clamp<int64_t>(width - a, 0, lanes<A>));
                most = max_magnitude(most, value);
                store(out.values + row * out.padded + a, exp(value + value));
            }
            out.bound[row] = max_lane<A>(most);
        }
    });
}

// The same in memory of its own.
template <class A>
struct OwnedExponentials {
    Buffer<A> values, bound;
    ExponentialRows<A> rows;

    template <class T>
    OwnedExponentials(const T* x, int64_t count, int64_t width)
        : values(count * padded_width<A>(width)),
          bound(count),
          rows{count, padded_width<A>(width), values.data(), bound.data()} {
        exponentials(rows, x, width);
    }
};

// scores[j] = sum(v) - 2 sum_a v_a / (1 + P_a Q_ja): for |q| + |k| within FactoredRange::merged.
template <class A, int keys>
HYBRIDOPS_INLINE void merged_scores(A* scores, const A* p, const A* q, const A* v, A v_sum, int64_t padded) {
    Simd<A> acc[keys] = {};
    for (int64_t a = 0; a < padded; a += merge * lanes<A>) {
        Simd<A> pa[merge], va[merge];
        for (int m = 0; m < merge; ++m) {
            pa[m] = load(p + a + m * lanes<A>);
            va[m] = load(v + a + m * lanes<A>);
        }
        for (int j = 0; j < keys; ++j) {
            Simd<A> x[merge];
            for (int m = 0; m < merge; ++m) x[m] = pa[m] * load(q + j * padded + a + m * lanes<A>) + 1;
            const auto f = sum_of_quotients(va[0], x[0], va[1], x[1], va[2], x[2], va[3], x[3]);
            acc[j] += f.numerator * reciprocal(f.denominator);
        }
    }
    for (int j = 0; j < keys; ++j) scores[j] = v_sum - 2 * sum_lanes<A>(acc[j]);
}

// The same without merging: for |q| + |k| within FactoredRange::single.
template <class A>
A single_score(const A* p, const A* q, const A* v, A v_sum, int64_t padded) {
    Simd<A> acc = {};
    for (int64_t a = 0; a < padded; a += lanes<A>) acc += load(v + a) * reciprocal(load(p + a) * load(q + a) + 1);
    return v_sum - 2 * sum_lanes<A>(acc);
}

// sum_a v_a act(q_a + k_a) straight from the inputs.
template <class A, class T, class Act>
A direct_score(const T* q, const T* k, const T* v, int64_t width, const Act& act) {
    Simd<A> acc = {};
    for (int64_t a = 0; a < width; a += lanes<A>) {
        const int64_t count = std::min<int64_t>(lanes<A>, width - a);
        acc += load_lanes<A>(v + a, count) * act.value(load_lanes<A>(q + a, count) + load_lanes<A>(k + a, count));
    }
    return sum_lanes<A>(acc);
}

// Scores of the queries [s0, s1) and the keys [t0, t1) of batch entry b.
template <class A, class T>
struct TanhScores {
    const AdditiveScoresArgs<T, A>& a;
    ExponentialRows<A> p, q;
    const A* v;  // padded
    A v_sum;

    void operator()(int64_t b, int64_t s0, int64_t s1, int64_t t0, int64_t t1) const {
        const AdditiveShape& n = a.shape;
        const bool factored = v_sum - v_sum == 0;  // an infinite v times a difference of one would be NaN
        for (int64_t t = t0; t < t1; t += key_tile) {
            const int64_t keys = std::min<int64_t>(key_tile, t1 - t), key = b * n.keys + t;
            A key_bound = 0;
            for (int64_t j = 0; j < keys; ++j) {
                const A bound = q.bound[key + j];
                key_bound = bound > key_bound || bound != bound ? bound : key_bound;
            }
            for (int64_t s = s0; s < s1; ++s) {
                const int64_t query = b * n.queries + s;
                const A bound = p.bound[query] + key_bound;
                A* out = a.scores + query * n.keys + t;
                if (factored && bound <= FactoredRange<A>::merged && keys == key_tile) {
                    merged_scores<A, key_tile>(out, p.row(query), q.row(key), v, v_sum, p.padded);
                } else if (factored && bound <= FactoredRange<A>::merged) {
                    for (int64_t j = 0; j < keys; ++j)
                        merged_scores<A, 1>(out + j, p.row(query), q.row(key + j), v, v_sum, p.padded);
                } else if (factored && bound <= FactoredRange<A>::single) {
                    for (int64_t j = 0; j < keys; ++j)
                        out[j] = single_score(p.row(query), q.row(key + j), v, v_sum, p.padded);
                } else {
                    for (int64_t j = 0; j < keys; ++j)
                        out[j] =
                            direct_score<A>(a.q + query * n.width, a.k + (key + j) * n.width, a.v, n.width, Tanh{});
                }
            }
        }
    }
};

template <class A, class T, class Act>
struct DirectScores {
    const AdditiveScoresArgs<T, A>& a;
    Act act;

    void operator()(int64_t b, int64_t s0, int64_t s1, int64_t t0, int64_t t1) const {
        const AdditiveShape& n = a.shape;
        for (int64_t s = s0; s < s1; ++s)
            for (int64_t t = t0; t < t1; ++t) {
                const int64_t query = b * n.queries + s, key = b * n.keys + t;
                a.scores[query * n.keys + t] =
                    direct_score<A>(a.q + query * n.width, a.k + key * n.width, a.v, n.width, act);
            }
    }
};

// weights = softmax(scale * scores + bias) of one row, over the keys that the mask lets through; the others are exactly
// zero, and so is a row without any. NaN and inf do what they do in torch.softmax.
template <class A, class T>
void softmax_row(const SoftmaxArgs<T, A>& m, A* scores, T* weights, int64_t b, int64_t s, int64_t keys) {
    const A infinity = std::numeric_limits<A>::infinity();
    const bool* mask = m.mask.data ? m.mask.data + b * m.mask.batch + s * m.mask.query : nullptr;
    const A* bias = m.bias.data ? m.bias.data + b * m.bias.batch + s * m.bias.query : nullptr;
    const Simd<A> lowest = Simd<A>{} + (sizeof(A) == 4 ? A(-87) : A(-708));  // below, exp would not go on to zero
    Simd<A> most = broadcast(-infinity), sum = {};
    for (int64_t t = 0; t < keys; t += lanes<A>) {
        const int64_t count = std::min<int64_t>(lanes<A>, keys - t);
        Simd<A> x = load_lanes<A>(scores + t, count) * m.scale;
        if (bias) x += load_lanes<A>(bias + t * m.bias.key, count, m.bias.key);
        for (int64_t l = 0; mask && l < count; ++l) x[l] = mask[(t + l) * m.mask.key] ? x[l] : -infinity;
        for (int64_t l = count; l < lanes<A>; ++l) x[l] = -infinity;
        most = x > most ? x : most;
        store_lanes<A>(scores + t, x, count);
    }
    A top = most[0];
    for (int l = 1; l < lanes<A>; ++l) top = most[l] > top ? most[l] : top;
    bool empty = mask != nullptr;
    for (int64_t t = 0; empty && t < keys; ++t) empty = !mask[t * m.mask.key];
    if (empty) top = 0;
    for (int64_t t = 0; t < keys; t += lanes<A>) {
        const int64_t count = std::min<int64_t>(lanes<A>, keys - t);
        const Simd<A> x = load_lanes<A>(scores + t, count) - top;
        Simd<A> e = x < lowest ? Simd<A>{} : exp(x);
        for (int64_t l = count; l < lanes<A>; ++l) e[l] = 0;
        sum += e;
        store_lanes<A>(scores + t, e, count);
    }
    const A total = sum_lanes<A>(sum), inverse = empty ? A(0) : A(1) / total;
    for (int64_t t = 0; t < keys; t += lanes<A>) {
        const int64_t count = std::min<int64_t>(lanes<A>, keys - t);
        store_lanes<A>(weights + t, load_lanes<A>(scores + t, count) * inverse, count);
    }
    if (mask && !(inverse - inverse == 0))  // a NaN in the row: not where nothing may be attended
        for (int64_t t = 0; t < keys; ++t)
            if (!mask[t * m.mask.key]) weights[t] = static_cast<T>(A(0));
}

// Runs score_block over all queries and keys in parallel, and the softmax (null = none) over each row as soon as it is
// there: in the same unit of work where there are queries enough to share out, else (decoding) after all keys.
template <class A, class T, class ScoreBlock>
void for_each_block(const AdditiveScoresArgs<T, A>& a, const SoftmaxArgs<T, A>* softmax,
                    const ScoreBlock& score_block) {
    const AdditiveShape& n = a.shape;
    const auto softmax_rows = [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row)
            softmax_row(*softmax, a.scores + row * n.keys, softmax->weights + row * n.keys, row / n.queries,
                        row % n.queries, n.keys);
    };
    const int64_t down = (n.queries + query_block - 1) / query_block;
    const bool whole_rows = n.batch * down >= 4 * static_cast<int64_t>(torch::stable::get_num_threads());
    const int64_t across = whole_rows ? 1 : (n.keys + key_block - 1) / key_block;
    torch::stable::parallel_for(0, n.batch * down * across, 1, [&](int64_t begin, int64_t end) {
        for (int64_t unit = begin; unit < end; ++unit) {
            const int64_t b = unit / (down * across), s0 = unit / across % down * query_block;
            const int64_t s1 = std::min(s0 + query_block, n.queries);
            const int64_t t0 = unit % across * key_block;
            score_block(b, s0, s1, t0, whole_rows ? n.keys : std::min(t0 + key_block, n.keys));
            if (softmax && whole_rows) softmax_rows(b * n.queries + s0, b * n.queries + s1);
        }
    });
    if (softmax && !whole_rows) torch::stable::parallel_for(0, n.batch * n.queries, 16, softmax_rows);
}

// Scores, and where `softmax` is not null the weights; the scores are then scratch.
template <class T, class A>
void additive_scores_forward(const AdditiveScoresArgs<T, A>& a, const SoftmaxArgs<T, A>* softmax) {
    const AdditiveShape& n = a.shape;
    if (n.activation == Activation::relu) return for_each_block(a, softmax, DirectScores<A, T, Relu>{a, {}});
    if (n.activation == Activation::leaky_relu) {
        const LeakyRelu<A> act{static_cast<A>(n.negative_slope)};
        return for_each_block(a, softmax, DirectScores<A, T, LeakyRelu<A>>{a, act});
    }
    const OwnedExponentials<A> p(a.q, n.batch * n.queries, n.width);
    std::optional<OwnedExponentials<A>> q;
    if (!a.prepared_keys.values) q.emplace(a.k, n.batch * n.keys, n.width);
    Buffer<A> v(p.rows.padded);
    A v_sum = 0;
    for (int64_t i = 0; i < p.rows.padded; ++i) {
        v.data()[i] = i < n.width ? static_cast<A>(a.v[i]) : A(0);
        v_sum += v.data()[i];
    }
    for_each_block(a, softmax, TanhScores<A, T>{a, p.rows, q ? q->rows : a.prepared_keys, v.data(), v_sum});
}

// ---- backward --------------------------------------------------------------------------------------------------------
// A unit of work owns some columns a of one batch entry, for all queries and keys: dq and dk of these columns are its own,
// so that nothing is shared between threads and the sums have one order. With z = q + k and ds the gradient of a score:
//   dq_s = v sum_t ds act'(z)     dk_t = v sum_s ds act'(z)     dv = sum_st ds act(z)

template <class A>
struct Columns {    // lanes<A> columns of every query and key
    A *q, *k, *dk;  // (S,lanes), (T,lanes), (T,lanes)
};

// The activation of some queries and a key, from what stands in the columns: e^2q and e^2k ...
template <class A>
struct FactoredTanh {
    static constexpr bool exponentials = true;

    // Two share a reciprocal: 1/x = y * 1/(xy), 1/y = x * 1/(xy).
    template <int rows>
    HYBRIDOPS_INLINE void values(Simd<A> (&value)[rows], const Simd<A> (&p)[rows], Simd<A> q) const {
        if constexpr (rows == 1) {
            value[0] = 1 - 2 * reciprocal(p[0] * q + 1);
        } else {
            for (int i = 0; i < rows; i += 2) {
                const Simd<A> x = p[i] * q + 1, y = p[i + 1] * q + 1, r = -2 * reciprocal(x * y);
                value[i] = r * y + 1;
                value[i + 1] = r * x + 1;
            }
        }
    }
    HYBRIDOPS_INLINE Simd<A> slope(Simd<A>, Simd<A>, Simd<A> value) const { return 1 - value * value; }
};

// ... or q and k.
template <class A, class Act>
struct Direct {
    static constexpr bool exponentials = false;
    Act act;

    template <int rows>
    HYBRIDOPS_INLINE void values(Simd<A> (&value)[rows], const Simd<A> (&q)[rows], Simd<A> k) const {
        for (int i = 0; i < rows; ++i) value[i] = act.value(q[i] + k);
    }
    HYBRIDOPS_INLINE Simd<A> slope(Simd<A> q, Simd<A> k, Simd<A> value) const { return act.slope(q + k, value); }
};

// `rows` queries from s on against every key; dq (rows,lanes) out, dk added to, dv returned; dq and dk without the factor v.
template <class A, int rows, class Act>
HYBRIDOPS_INLINE Simd<A> pair_gradients(A* dq, const Columns<A>& c, const A* grad, int64_t s, int64_t keys,
                                        const Act& act) {
    // dv in two sums: one would be a chain of `rows` dependent additions a key, longer than all the other work
    Simd<A> q[rows], dq_acc[rows] = {}, dv[2] = {};
    for (int i = 0; i < rows; ++i) q[i] = load(c.q + (s + i) * lanes<A>);
    for (int64_t t = 0; t < keys; ++t) {
        const Simd<A> k = load(c.k + t * lanes<A>);
        Simd<A> dk = load(c.dk + t * lanes<A>), value[rows];
        act.values(value, q, k);
        for (int i = 0; i < rows; ++i) {
            const Simd<A> ds = broadcast(grad[(s + i) * keys + t]), slope = act.slope(q[i], k, value[i]);
            dq_acc[i] += ds * slope;
            dk += ds * slope;
            dv[i % 2] += ds * value[i];
        }
        store(c.dk + t * lanes<A>, dk);
    }
    for (int i = 0; i < rows; ++i) store(dq + i * lanes<A>, dq_acc[i]);
    return dv[0] + dv[1];
}

// The columns [a0, a0 + count) of batch entry b; dv_out (lanes).
template <class A, class T, class Act>
void column_gradients(const AdditiveScoresBackwardArgs<T, A>& a, const Columns<A>& c, int64_t b, int64_t a0,
                      int64_t count, A* dv_out, const Act& act) {
    constexpr int rows = 4;
    const AdditiveShape& n = a.shape;
    if constexpr (Act::exponentials) {
        for (int64_t i = 0; i < n.queries; ++i) store(c.q + i * lanes<A>, exp(2 * load(c.q + i * lanes<A>)));
        for (int64_t i = 0; i < n.keys; ++i) store(c.k + i * lanes<A>, exp(2 * load(c.k + i * lanes<A>)));
    }
    std::fill(c.dk, c.dk + n.keys * lanes<A>, A(0));
    const A* grad = a.grad + b * n.queries * n.keys;
    const Simd<A> v = load_lanes<A>(a.v + a0, count);
    Simd<A> dv = {};
    A dq[rows * lanes<A>];
    for (int64_t s = 0, step; s < n.queries; s += step) {
        step = n.queries - s >= rows ? rows : 1;
        dv += step == rows ? pair_gradients<A, rows>(dq, c, grad, s, n.keys, act)
                           : pair_gradients<A, 1>(dq, c, grad, s, n.keys, act);
        for (int64_t i = 0; i < step; ++i)
            store_lanes<A>(a.dq + (b * n.queries + s + i) * n.width + a0, load(dq + i * lanes<A>) * v, count);
    }
    for (int64_t t = 0; t < n.keys; ++t)
        store_lanes<A>(a.dk + (b * n.keys + t) * n.width + a0, load(c.dk + t * lanes<A>) * v, count);
    store(dv_out, dv);
}

template <class T, class A>
void additive_scores_backward(const AdditiveScoresBackwardArgs<T, A>& a) {
    const AdditiveShape& n = a.shape;
    const int64_t columns = (n.width + lanes<A> - 1) / lanes<A>;
    Buffer<A> dv(n.batch * columns * lanes<A>);
    torch::stable::parallel_for(0, n.batch * columns, 1, [&](int64_t begin, int64_t end) {
        A* scratch = static_cast<A*>(thread_scratch((n.queries + 2 * n.keys) * lanes<A> * sizeof(A)));
        const Columns<A> c{scratch, scratch + n.queries * lanes<A>, scratch + (n.queries + n.keys) * lanes<A>};
        for (int64_t unit = begin; unit < end; ++unit) {
            const int64_t b = unit / columns, a0 = unit % columns * lanes<A>;
            const int64_t count = std::min<int64_t>(lanes<A>, n.width - a0);
            const auto gather = [&](A* out, const T* in, int64_t length) {
                Simd<A> most = {};
                for (int64_t i = 0; i < length; ++i) {
                    const Simd<A> x = load_lanes<A>(in + (b * length + i) * n.width + a0, count);
                    most = max_magnitude(most, x);
                    store(out + i * lanes<A>, x);
                }
                return max_lane<A>(most);
            };
            const A bound = gather(c.q, a.q, n.queries) + gather(c.k, a.k, n.keys);
            A* dv_out = dv.data() + unit * lanes<A>;
            if (n.activation == Activation::relu) {
                column_gradients(a, c, b, a0, count, dv_out, Direct<A, Relu>{});
            } else if (n.activation == Activation::leaky_relu) {
                const LeakyRelu<A> act{static_cast<A>(n.negative_slope)};
                column_gradients(a, c, b, a0, count, dv_out, Direct<A, LeakyRelu<A>>{act});
            } else if (bound <= FactoredRange<A>::paired) {
                column_gradients(a, c, b, a0, count, dv_out, FactoredTanh<A>{});
            } else {
                column_gradients(a, c, b, a0, count, dv_out, Direct<A, Tanh>{});
            }
        }
    });
    for (int64_t i = 0; i < n.width; ++i) {
        A sum = 0;
        for (int64_t b = 0; b < n.batch; ++b) sum += dv.data()[b * columns * lanes<A> + i];
        a.dv[i] = static_cast<T>(sum);
    }
}
