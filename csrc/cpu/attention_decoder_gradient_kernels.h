// The backward of the attention decoder's loop; part of attention_decoder_kernels.h.

// The gradient of a query, without the factor v, from those of its scores with some keys:
//   dq = v sum_t ds_t act'(q + k_t)
// The gradient kernels' forms take several queries and a key. Here the keys take the queries' part, and the query the
// key's: what is antisymmetric in that, the value of a factored tanh, is only squared.
template <class A>
struct QueryGradient {
    A *dq, *q;        // (padded); q: as the form wants it
    const int* keys;  // (count) numbers of keys
    const A* ds;      // of each key's number
    int64_t count, padded;

    static constexpr int together = 4;  // keys

    template <class Form, class Key>  // key(t, a): a vector of a key, as the form wants it
    void operator()(const Form& form, const Key& key) const {
        std::fill(dq, dq + padded, A(0));
        int64_t i = 0;
        for (; i + together <= count; i += together) add<together>(form, key, i);
        for (; i < count; ++i) add<1>(form, key, i);
    }

   private:
    template <int rows, class Form, class Key>
    void add(const Form& form, const Key& key, int64_t first) const {
        Simd<A> of_score[rows];
        for (int i = 0; i < rows; ++i) of_score[i] = broadcast(ds[keys[first + i]]);
        for (int64_t at = 0; at < padded; at += lanes<A>) {
            Simd<A> k[rows], value[rows], sum = load(dq + at);
            const Simd<A> query = load(q + at);
            for (int i = 0; i < rows; ++i) k[i] = key(keys[first + i], at);
            form.values(value, k, query);
            for (int i = 0; i < rows; ++i)
                sum += form.chained(of_score[i], of_score[i] * value[i], k[i], query, value[i]);
            store(dq + at, sum);
        }
    }
};

// Transposed ones.
template <class A, class E>
struct BackwardWeights {
    PlainProduct<A, E> to_context, to_hidden, from_attention;

    BackwardWeights(Arena& arena, const DecoderShape& n, bool gated)
        : to_context(arena, n.channels, n.gates()),
          to_hidden(arena, n.hidden, n.gates()),
          from_attention(arena, n.hidden, n.width) {
        if (gated) from_attention.add_factor(arena, n.channels);
    }

    template <class T>
    void pack(const DecoderWeights<T>& w) const {
        to_context.pack(w.context.transposed());
        to_hidden.pack(w.h.transposed());
        from_attention.pack(w.q.transposed(), w.beta.transposed());
    }
};

template <class T, class A, class E>
class DecoderBackward {
   public:
    using Args = AttentionDecoderBackwardArgs<T, A>;

    DecoderBackward(const Args& a, const KeyExponentials<A>& keys, const BackwardWeights<A, E>& weights)
        : a(a), keys_(keys), w_(weights) {}

    void run() const {
        const RowBlocks blocks(n.batch, n.keys * (n.width * sizeof(A) + n.channels * sizeof(T)));
        parallel_for_dynamic(blocks.count, [&](WorkQueue& queue) {
            const ProductRegisters<E> registers;
            Scratch scratch = from_thread_scratch([&](Arena& arena) { return Scratch(arena, *this, blocks.rows()); });
            for (int64_t block; queue.take(block);) all_steps(blocks.first(block), blocks.first(block + 1), scratch);
        });
    }

   private:
    const Args& a;
    const DecoderShape& n = a.shape;
    const KeyExponentials<A>& keys_;  // values null: not of tanh
    const BackwardWeights<A, E>& w_;

    struct Scratch {
        LiveRows live;
        OperandRows<A, E> da, da_h, dq, dbeta;
        RowPointers<E> rows, other_rows;
        int64_t* key_counts;
        int* keys;      // (rows,T): those that may be attended
        A* key_bounds;  // of them, for each row
        A *dh, *dfed;   // (rows,H), (rows,D): of h_s and of c', by way of what comes later
        A *sums, *dungated, *dalpha, *q, *dq_sum, *widened;

        Scratch(Arena& arena, const DecoderBackward& f, int64_t count)
            : live(arena, count),
              da(arena, count, f.n.gates()),
              da_h(arena, f.gru() ? count : 0, f.n.gates()),
              dq(arena, count, f.n.width),
              dbeta(arena, f.gated() ? count : 0, f.n.channels),
              rows(arena, count),
              other_rows(arena, count) {
            key_counts = arena.take<int64_t>(count);
            keys = arena.take<int>(count * f.n.keys);
            key_bounds = arena.take<A>(count);
            dh = arena.take<A>(count * f.n.hidden);
            dfed = arena.take<A>(count * f.n.channels);
            sums = arena.take<A>(PlainProduct<A, E>::sums(count));
            dungated = arena.take<A>(round_up(f.n.channels, lanes<A>));
            dalpha = arena.take<A>(round_up(f.n.keys, lanes<A>));
            q = arena.take<A>(padded_width<A>(f.n.width));
            dq_sum = arena.take<A>(padded_width<A>(f.n.width));
            widened = arena.take<A>(Projection<A, T, A>{1, 0, f.n.channels}.scratch_count());
        }
    };

    bool gru() const { return n.cell == CellType::gru; }
    bool gated() const { return a.w.gated; }

    void all_steps(int64_t first, int64_t end, Scratch& x) const {
        for (int64_t b = first; b < end; ++b) {
            A* dh = x.dh + (b - first) * n.hidden;
            if (a.grad_h_n) {
                Projection<A, T>::widen(dh, a.grad_h_n + b * n.hidden, n.hidden);
            } else {
                std::fill_n(dh, n.hidden, A(0));
            }
            std::fill_n(x.dfed + (b - first) * n.channels, n.channels, A(0));
            list_keys(b, b - first, x);
        }
        for (int64_t s = n.steps - 1; s >= 0; --s) {
            x.live.choose(first, end, s, a.lengths, [&](int64_t b) { clear(b, s); });
            if (x.live.count == 0) continue;
            if (n.query == QuerySource::current) attend(s, x);
            cell(s, x);
            if (n.query == QuerySource::previous) attend(s, x);
        }
        for (int64_t b = first; b < end; ++b) {
            write(a.dh0 + b * n.hidden, x.dh + (b - first) * n.hidden, n.hidden);
            if (a.dcontext0) write(a.dcontext0 + b * n.channels, x.dfed + (b - first) * n.channels, n.channels);
        }
    }

    static void write(T* to, const A* from, int64_t size) {
        for (int64_t i = 0; i < size; i += lanes<A>) {
            const int64_t count = lanes_of<A>(size - i);
            store_lanes<A>(to + i, load_lanes<A>(from + i, count), count);
        }
    }

    void list_keys(int64_t b, int64_t row, Scratch& x) const {
        int64_t count = 0;
        A bound = 0;
        for (int64_t t = 0; t < n.keys; ++t) {
            if (a.mask.data && !a.mask.data[b * a.mask.batch + t * a.mask.key]) continue;
            x.keys[row * n.keys + count++] = static_cast<int>(t);
            if (!keys_.values) continue;
            const A of_key = keys_.bound[b * n.keys + t];
            bound = of_key > bound || of_key != of_key ? of_key : bound;
        }
        x.key_counts[row] = count;
        x.key_bounds[row] = bound;
    }

    void clear(int64_t b, int64_t s) const {
        const int64_t row = b * n.steps + s;
        clear_row(a.da, row, n.gates());
        clear_row(a.da_h, row, n.gates());
        clear_row(a.dq, row, n.width);
        clear_row(a.dcontext, row, n.channels);
        clear_row(a.dbeta, row, n.channels);
        clear_row(a.dscores, row, n.keys);
    }

    // From dh of h_s: da, dfed of c' and dh of h_{s-1}, but for what comes to it from this step's query.
    void cell(int64_t s, Scratch& x) const {
        for (int64_t i = 0; i < x.live.count; ++i) {
            const int64_t b = x.live.batch[i], row = x.live.block[i], at = b * n.steps + s;
            gru() ? gru_gradient(b, s, row, x) : lstm_gradient(b, s, row, x);
            x.da.set(row, a.da + at * n.gates());
            if (gru()) x.da_h.set(row, a.da_h + at * n.gates());
        }
        const E* const* da = x.rows(x.da, x.live);
        w_.to_context(x.sums, da, nullptr, x.live.count, [&](int64_t i, int64_t at, int64_t count, Simd<A> sum) {
            store_lanes<A>(x.dfed + x.live.block[i] * n.channels + at, sum, count);
        });
        const E* const* da_h = gru() ? x.rows(x.da_h, x.live) : da;
        w_.to_hidden(x.sums, da_h, nullptr, x.live.count, adder(x.dh, n.hidden, x.live));
    }

    // Finish of a product whose sums are added to rows of a block.
    auto adder(A* to, int64_t width, const LiveRows& live) const {
        return [=, &live](int64_t i, int64_t at, int64_t count, Simd<A> sum) {
            A* out = to + live.block[i] * width + at;
            store_lanes<A>(out, load_lanes<A>(out, count) + sum, count);
        };
    }

    // f(first, count) for every vector of a row; the count a constant where it is whole
    template <class F>
    static HYBRIDOPS_INLINE void each_vector(int64_t size, const F& f) {
        int64_t at = 0;
        for (; at + lanes<A> <= size; at += lanes<A>) f(at, std::integral_constant<int64_t, lanes<A>>{});
        if (at < size) f(at, size - at);
    }

    Simd<A> upstream(const T* grad, int64_t at, int64_t count) const {
        return grad ? load_lanes<A>(grad + at, count) : Simd<A>{};
    }

    void lstm_gradient(int64_t b, int64_t s, int64_t row, Scratch& x) const {
        const int64_t step = b * n.steps + s;
        const A* before = s ? a.cells + (step - 1) * n.hidden : a.cell0 + b * n.hidden;
        each_vector(n.hidden, [&](int64_t u, auto count) {
            const int64_t at = step * n.hidden + u;
            const T* gates = a.gates + step * 4 * n.hidden + u;
            const auto gate = HYBRIDOPS_LAMBDA(int g) { return load_lanes<A>(gates + g * n.hidden, count); };
            A *dh = x.dh + row * n.hidden + u, *dcell = a.dcell + b * n.hidden + u;
            const auto d = lstm_backward(load_lanes<A>(dh, count) + upstream(a.grad_output, at, count),
                                         load_lanes<A>(dcell, count), gate(1), gate(0), gate(2), gate(3),
                                         load_lanes<A>(a.cells + at, count), load_lanes<A>(before + u, count), false,
                                         Peephole<Simd<A>>{});
            T* da = a.da + step * 4 * n.hidden + u;
            store_lanes<A>(da, d.da_i, count);
            store_lanes<A>(da + n.hidden, d.da_f, count);
            store_lanes<A>(da + 2 * n.hidden, d.da_g, count);
            store_lanes<A>(da + 3 * n.hidden, d.da_o, count);
            store_lanes<A>(dcell, d.dc_prev, count);
            store_lanes<A>(dh, Simd<A>{}, count);
        });
    }

    void gru_gradient(int64_t b, int64_t s, int64_t row, Scratch& x) const {
        const int64_t step = b * n.steps + s;
        const T* before = s ? a.output + (step - 1) * n.hidden : a.h0 + b * n.hidden;
        each_vector(n.hidden, [&](int64_t u, auto count) {
            const int64_t at = step * n.hidden + u;
            const T* gates = a.gates + step * 3 * n.hidden + u;
            const auto gate = HYBRIDOPS_LAMBDA(int g) { return load_lanes<A>(gates + g * n.hidden, count); };
            A* dh = x.dh + row * n.hidden + u;
            const auto d =
                gru_backward(load_lanes<A>(dh, count) + upstream(a.grad_output, at, count), gate(0), gate(1), gate(2),
                             load_lanes<A>(a.hidden_n + at, count), load_lanes<A>(before + u, count));
            T *da = a.da + step * 3 * n.hidden + u, *da_h = a.da_h + step * 3 * n.hidden + u;
            for (T* out : {da, da_h}) {
                store_lanes<A>(out, d.da_r, count);
                store_lanes<A>(out + n.hidden, d.da_z, count);
            }
            store_lanes<A>(da + 2 * n.hidden, d.da_n, count);
            store_lanes<A>(da_h + 2 * n.hidden, d.dhidden_n, count);
            store_lanes<A>(dh, d.dh_prev, count);
        });
    }

    // From dfed: dcontext, dbeta, dscores, dq, and what they add to dh of h'.
    void attend(int64_t s, Scratch& x) const {
        for (int64_t i = 0; i < x.live.count; ++i) {
            const int64_t b = x.live.batch[i], row = x.live.block[i], step = b * n.steps + s;
            context_gradient(step, row, x);
            score_gradients(b, s, row, x);
            query_gradient(b, step, row, x);
            x.dq.set(row, a.dq + step * n.width);
            if (gated()) x.dbeta.set(row, a.dbeta + step * n.channels);
        }
        w_.from_attention(x.sums, x.rows(x.dq, x.live), gated() ? x.other_rows(x.dbeta, x.live) : nullptr, x.live.count,
                          adder(x.dh, n.hidden, x.live));
    }

    void context_gradient(int64_t step, int64_t row, Scratch& x) const {
        each_vector(n.channels, [&](int64_t d, auto count) {
            const int64_t at = step * n.channels + d;
            Simd<A> grad = load_lanes<A>(x.dfed + row * n.channels + d, count) + upstream(a.grad_context, at, count);
            if (gated()) {
                const Simd<A> beta = load_lanes<A>(a.beta + at, count);
                const Simd<A> dbeta = grad * load_lanes<A>(a.ungated + at, count) * beta * (1 - beta);
                store_lanes<A>(a.dbeta + at, dbeta, count);
                grad = grad * beta;
            }
            store(x.dungated + d, grad);
            store_lanes<A>(a.dcontext + at, grad, count);
        });
    }

    // Keys that may not be attended are left out, not multiplied by their weight of zero: their gradient may be infinite.
    void score_gradients(int64_t b, int64_t s, int64_t row, Scratch& x) const {
        const int64_t step = b * n.steps + s, count = x.key_counts[row];
        const int* keys = x.keys + row * n.keys;
        const Projection<A, T, A> products{1,          count ? keys[count - 1] + 1 : 0,   n.channels,
                                           x.dungated, a.value + b * n.keys * n.channels, nullptr,
                                           x.dalpha};
        products.run(0, products.outputs, x.widened);
        const T* alpha = a.alpha + step * n.keys;
        const T* keep = a.keep.data ? a.keep.data + b * a.keep.batch + s * a.keep.query : nullptr;
        A mean = 0;
        for (int64_t i = 0; i < count; ++i) {
            const int t = keys[i];
            A grad = x.dalpha[t];
            if (a.grad_weights) grad += static_cast<A>(a.grad_weights[step * n.keys + t]);
            if (keep) grad *= static_cast<A>(keep[t * a.keep.key]);
            x.dalpha[t] = grad;
            mean += static_cast<A>(alpha[t]) * grad;
        }
        A* dscores = a.dscores + step * n.keys;
        std::fill_n(dscores, n.keys, A(0));
        for (int64_t i = 0; i < count; ++i) {
            const int t = keys[i];
            dscores[t] = static_cast<A>(alpha[t]) * (x.dalpha[t] - mean);
            x.dalpha[t] = static_cast<A>(n.scale) * dscores[t];
        }
    }

    void query_gradient(int64_t b, int64_t step, int64_t row, Scratch& x) const {
        const int64_t padded = padded_width<A>(n.width);
        const QueryGradient<A> gradient{x.dq_sum, x.q, x.keys + row * n.keys, x.dalpha, x.key_counts[row], padded};
        const T* q = a.queries + step * n.width;
        const auto direct = [&](const auto& act) {
            for (int64_t at = 0; at < padded; at += lanes<A>)
                store(x.q + at, load_lanes<A>(q + at, lanes_of<A>(n.width - at)));
            gradient(Direct<A, std::decay_t<decltype(act)>>{act}, [&](int t, int64_t at) {
                return load_lanes<A>(a.key + (b * n.keys + t) * n.width + at, lanes_of<A>(n.width - at));
            });
        };
        with_activation<A>(n.activation, n.negative_slope, [&](auto act) {
            if constexpr (std::is_same_v<decltype(act), Tanh>) {
                const A bound = exponential_row<2>(x.q, q, n.width, padded);
                const auto within = [&](A range) { return bound <= range && x.key_bounds[row] <= range; };
                const auto key = [&](int t, int64_t at) {
                    const A* k = keys_.values + (b * n.keys + t) * padded + at;
                    __builtin_prefetch(k + QueryGradient<A>::together * padded, 0, 2);
                    return load(k);
                };
                if (within(QuotientRange<A>::paired)) return gradient(FactoredTanh<A, true>{}, key);
                if (within(QuotientRange<A>::single)) return gradient(FactoredTanh<A, false>{}, key);
            }
            direct(act);
        });
        for (int64_t at = 0; at < n.width; at += lanes<A>) {
            const int64_t count = lanes_of<A>(n.width - at);
            store_lanes<A>(a.dq + step * n.width + at, load(x.dq_sum + at) * load_lanes<A>(a.v + at, count), count);
        }
    }
};

template <class T, class A>
void attention_decoder_backward(const AttentionDecoderBackwardArgs<T, A>& a) {
    const DecoderShape& n = a.shape;
    std::optional<OwnedExponentials<A>> own;
    if (n.activation == Activation::tanh && !a.prepared_keys.values) own.emplace(a.key, n.batch * n.keys, n.width);
    const KeyExponentials<A> keys = own ? own->rows : a.prepared_keys;
    with_operands<T, A>([&](auto e) {
        using Weights = BackwardWeights<A, decltype(e)>;
        Arena counted;
        Weights(counted, n, a.w.gated);
        const Buffer<std::byte> memory(counted.size());
        Arena arena(memory.data());
        const Weights weights(arena, n, a.w.gated);
        weights.pack(a.w);
        DecoderBackward<T, A, decltype(e)>(a, keys, weights).run();
    });
}
