// Softmax of scores, and its product with the values; part of additive_attention_kernels.h.

// softmax(scale * scores + bias) of one row, over the keys that the mask lets through; the others are exactly zero, and so
// is a row without any. NaN and inf do what they do in torch.softmax.
template <class A, class T>
struct Softmax {
    const SoftmaxArgs<T, A>& m;
    int64_t queries, keys;
    A largest_score;  // none is larger, before scale and bias

    // In place, and to m.weights where that is asked for; `query` of those of all batch entries
    void operator()(A* row, int64_t query) const {
        const int64_t b = query / queries, s = query % queries;
        const bool* mask = m.mask.data ? m.mask.data + b * m.mask.batch + s * m.mask.query : nullptr;
        const A* bias = m.bias.data ? m.bias.data + b * m.bias.batch + s * m.bias.query : nullptr;
        // A sum of e^60 can neither overflow nor vanish: then the row's maximum need not be known
        const bool bounded = !bias && std::abs(m.scale) * largest_score <= 60;
        const A total = bounded ? sum_bounded(row, mask) : sum_below_maximum(row, mask, bias);
        const A inverse = total == 0 && mask && none(mask) ? A(0) : A(1) / total;
        each_vector([&](int64_t t, int64_t) { store(row + t, load(row + t) * inverse); });
        if (mask && !(inverse - inverse == 0))  // a NaN in the row: not where nothing may be attended
            for (int64_t t = 0; t < keys; ++t) row[t] = mask[t * m.mask.key] ? row[t] : A(0);
        if (!m.weights) return;
        T* weights = m.weights + query * keys;
        each_vector([&](int64_t t, int64_t count) { store_lanes<A>(weights + t, load(row + t), count); });
    }

   private:
    HYBRIDOPS_INLINE void each_vector(auto&& work) const {
        for (int64_t t = 0; t < keys; t += lanes<A>) work(t, std::min<int64_t>(lanes<A>, keys - t));
    }

    // `other` in the lanes of keys that may not be attended or are not there
    HYBRIDOPS_INLINE Simd<A> allowed(Simd<A> x, A other, const bool* mask, int64_t t, int64_t count) const {
        for (int64_t l = 0; mask && l < count; ++l) x[l] = mask[(t + l) * m.mask.key] ? x[l] : other;
        for (int64_t l = count; l < lanes<A>; ++l) x[l] = other;
        return x;
    }

    A sum_bounded(A* row, const bool* mask) const {
        Simd<A> sum = {};
        each_vector([&](int64_t t, int64_t count) {
            const Simd<A> e = allowed(exp(load(row + t) * m.scale), A(0), mask, t, count);
            sum += e;
            store(row + t, e);
        });
        return sum_lanes<A>(sum);
    }

    A sum_below_maximum(A* row, const bool* mask, const A* bias) const {
        const A infinity = std::numeric_limits<A>::infinity();
        Simd<A> most = broadcast(-infinity), sum = {};
        each_vector([&](int64_t t, int64_t count) {
            Simd<A> x = load(row + t) * m.scale;
            if (bias) x += load_lanes<A>(bias + t * m.bias.key, count, m.bias.key);
            x = allowed(x, -infinity, mask, t, count);
            most = x > most ? x : most;
            store(row + t, x);
        });
        A top = most[0];
        for (int l = 1; l < lanes<A>; ++l) top = most[l] > top ? most[l] : top;
        if (mask && none(mask)) top = 0;
        const Simd<A> lowest = Simd<A>{} + (sizeof(A) == 4 ? A(-87) : A(-708));  // below, exp would not go on to zero
        each_vector([&](int64_t t, int64_t count) {
            const Simd<A> x = load(row + t) - top;
            const Simd<A> e = allowed(x < lowest ? Simd<A>{} : exp(x), A(0), nullptr, t, count);
            sum += e;
            store(row + t, e);
        });
        return sum_lanes<A>(sum);
    }

    bool none(const bool* mask) const {
        for (int64_t t = 0; t < keys; ++t)
            if (mask[t * m.mask.key]) return false;
        return true;
    }
};

// context[s] = sum_t weights[s,t] value[t]
template <class A, class T>
struct Context {
    static constexpr int rows = 6, vectors = 2;  // a register tile
    static constexpr int wide = 8;               // vectors of a tile of one row
    static constexpr int64_t panel = vectors * lanes<A>, strip = wide * lanes<A>;

    const ContextArgs<T, A>& c;
    int64_t queries, keys;

    int64_t scratch() const { return keys * panel; }

    // The channels [d0, d1) of some queries; weights (queries, stride)
    void operator()(const Pairs& pairs, int64_t d0, int64_t d1, const A* weights, int64_t stride, A* scratch) const {
        const int64_t count = pairs.s1 - pairs.s0;
        const T* value = c.value + pairs.b * keys * c.channels;
        T* context = c.context + (pairs.b * queries + pairs.s0) * c.channels;
        int64_t d = d0;
        // Values for few are read where they are
        if (count <= few_queries)
            for (; d + strip <= d1; d += strip)
                for (int64_t i = 0; i < count; ++i)
                    tile<1, wide>(context + i * c.channels + d, strip, weights + i * stride, stride, value + d,
                                  c.channels);
        // Others are put next to each other first: rows far apart crowd a few sets of the caches
        for (; d < d1; d += panel) {
            const int64_t width = std::min(panel, d1 - d);
            for (int64_t t = 0; t < keys; ++t)
                for (int i = 0; i < vectors; ++i)
                    store(scratch + t * panel + i * lanes<A>,
                          load_lanes<A>(value + t * c.channels + d + i * lanes<A>,
                                        std::clamp<int64_t>(width - i * lanes<A>, 0, lanes<A>)));
            const auto rows_from = [&](auto size, int64_t i) {
                tile<size, vectors>(context + i * c.channels + d, width, weights + i * stride, stride, scratch, panel);
                return i + size;
            };
            int64_t i = 0;
            while (i + rows <= count) i = rows_from(std::integral_constant<int, rows>{}, i);
            if (i + 4 <= count) i = rows_from(std::integral_constant<int, 4>{}, i);
            if (i + 2 <= count) i = rows_from(std::integral_constant<int, 2>{}, i);
            if (i < count) rows_from(std::integral_constant<int, 1>{}, i);
        }
    }

   private:
    // `width` channels of `count` rows; x (keys, x_stride)
    template <int count, int size, class X>
    HYBRIDOPS_INLINE void tile(T* context, int64_t width, const A* weights, int64_t stride, const X* x,
                               int64_t x_stride) const {
        Simd<A> acc[count][size];
        clear(acc);
        for (int64_t t = 0; t < keys; ++t) {
            Simd<A> xt[size];
            for (int j = 0; j < size; ++j) xt[j] = load_all<A>(x + t * x_stride + j * lanes<A>);
            for (int i = 0; i < count; ++i) {
                const Simd<A> weight = broadcast(weights[i * stride + t]);
                for (int j = 0; j < size; ++j) acc[i][j] += weight * xt[j];
            }
        }
        for (int i = 0; i < count; ++i)
            for (int j = 0; j < size; ++j)
                store_lanes<A>(context + i * c.channels + j * lanes<A>, acc[i][j],
                               std::clamp<int64_t>(width - j * lanes<A>, 0, lanes<A>));
    }
};
