// Softmax of scores, and its product with the values; part of additive_attention_kernels.h.

#include "register_tiles.h"

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
        const A divisor = total == 0 && mask && none(mask) ? A(1) : total;
        // a quotient, not a product with the inverse: the weight of one key alone is 1
        each_vector([&](int64_t t, int64_t) { store(row + t, load(row + t) / divisor); });
        const A inverse = A(1) / divisor;
        if (mask && !(inverse - inverse == 0))  // a NaN in the row: not where nothing may be attended
            for (int64_t t = 0; t < keys; ++t) row[t] = mask[t * m.mask.key] ? row[t] : A(0);
        if (!m.weights) return;
        T* weights = m.weights + query * keys;
        each_vector([&](int64_t t, int64_t count) { store_lanes<A>(weights + t, load(row + t), count); });
    }

   private:
    HYBRIDOPS_INLINE void each_vector(auto&& work) const {
        for (int64_t t = 0; t < keys; t += lanes<A>) work(t, lanes_of<A>(keys - t));
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
    static constexpr int vectors = 2, rows = tile_pixels<vectors>;  // a register tile
    static constexpr int64_t panel = vectors * lanes<A>, strip = 4 * panel;

    const ContextArgs<T, A>& c;
    int64_t queries, keys;

    int64_t scratch() const { return std::max(keys * panel, few_queries * round_up(c.channels, lanes<A>)); }

    // The channels [d0, d1) of some queries, from the keys [0, t1); weights (queries, stride)
    void operator()(const Pairs& pairs, int64_t d0, int64_t d1, const A* weights, int64_t stride, A* scratch) const {
        const int64_t count = pairs.s1 - pairs.s0;
        const T* value = c.value + pairs.b * keys * c.channels;
        T* context = c.context + (pairs.b * queries + pairs.s0) * c.channels;
        if (count <= few_queries) return few(context, value, pairs.t1, count, d0, d1, weights, stride, scratch);
        int64_t d = d0;
        // Values are put next to each other by the first tile: rows far apart crowd a few sets of the caches. The processor
        // sees no pattern in them: a panel is brought near while the one before is multiplied, and nearer before its use.
        for (; d < d1; d += panel) {
            const int64_t width = std::min(panel, d1 - d), next_width = std::min(panel, d1 - d - width);
            Prefetch<T> next(value + d + width, next_width, c.channels, next_width > 0 ? pairs.t1 : 0,
                             ceil_div(count, rows));
            const auto pack = [&](auto whole) {
                return [&, whole](int64_t t, int j) {
                    const T* row = value + t * c.channels + d;
                    if (j == 0) __builtin_prefetch(row + rows_ahead * c.channels + width - 1, 0, 2);
                    const Simd<A> x = whole ? load_all<A>(row + j * lanes<A>)
                                            : load_lanes<A>(row + j * lanes<A>, lanes_of<A>(width - j * lanes<A>));
                    store(scratch + t * panel + j * lanes<A>, x);
                    return x;
                };
            };
            const auto packed = [&](int64_t t, int j) { return load(scratch + t * panel + j * lanes<A>); };
            for_tiles(count, rows, [&](int64_t i, int64_t size) {
                next.some();
                const auto tiles = [&](const auto& values) {
                    tile_of(size, context + i * c.channels + d, width, weights + i * stride, stride, pairs.t1, values);
                };
                if (i > 0)
                    tiles(packed);
                else if (width == panel)
                    tiles(pack(std::true_type{}));
                else
                    tiles(pack(std::false_type{}));
            });
        }
    }

   private:
    // For few queries, values are read once: where they are and in their order, some keys at a time, while the next ones are
    // brought near. Sums have the order of the tile's, to the same bits.
    void few(T* context, const T* value, int64_t end, int64_t count, int64_t d0, int64_t d1, const A* weights,
             int64_t stride, A* sums) const {
        const int64_t width = round_up(d1 - d0, lanes<A>);
        std::fill(sums, sums + count * width, A(0));
        value += d0;
        int64_t t = 0;
        for (; t + keys_together <= end; t += keys_together)
            for (int64_t i = 0; i < count; ++i)
                add_keys<keys_together>(sums + i * width, value + t * c.channels, weights + i * stride + t, d1 - d0);
        for (; t < end; ++t)
            for (int64_t i = 0; i < count; ++i)
                add_keys<1>(sums + i * width, value + t * c.channels, weights + i * stride + t, d1 - d0);
        for (int64_t i = 0; i < count; ++i)
            for (int64_t d = 0; d < d1 - d0; d += lanes<A>)
                store_lanes<A>(context + i * c.channels + d0 + d, load(sums + i * width + d), lanes_of<A>(d1 - d0 - d));
    }

    template <int size>
    void add_keys(A* sums, const T* value, const A* weights, int64_t width) const {
        Simd<A> weight[size];
        for (int i = 0; i < size; ++i) weight[i] = broadcast(weights[i]);
        const auto add = HYBRIDOPS_LAMBDA(int64_t d, const auto& vector) {
            Simd<A> sum = load(sums + d);
            for (int i = 0; i < size; ++i) sum += weight[i] * vector(value + i * c.channels + d);
            store(sums + d, sum);
        };
        int64_t d = 0;
        for (; d + lanes<A> <= width; d += lanes<A>)
            add(
                d, HYBRIDOPS_LAMBDA(const T* at) {
                    __builtin_prefetch(at + size * c.channels, 0, 2);
                    return load_all<A>(at);
                });
        if (d < width) add(d, HYBRIDOPS_LAMBDA(const T* at) { return load_lanes<A>(at, width - d); });
    }

    static constexpr int keys_together = 8;
    static constexpr int64_t rows_ahead = 16;  // more would push each other out of a cache's set

    template <int P = rows, class... Arguments>
    HYBRIDOPS_INLINE void tile_of(int64_t size, Arguments&&... arguments) const {
        if constexpr (P > 1) {
            if (size < P) return tile_of<P - 1>(size, arguments...);
        }
        tile<P>(arguments...);
    }

    // `width` channels of `size` rows; value(t, j) is the j-th vector of them
    template <int size, class Value>
    void tile(T* context, int64_t width, const A* weights, int64_t stride, int64_t end, const Value& value) const {
        Simd<A> sums[size][vectors];
        clear(sums);
        for (int64_t t = 0; t < end; ++t) {
            Simd<A> x[vectors];
            for (int j = 0; j < vectors; ++j) x[j] = value(t, j);
            for (int i = 0; i < size; ++i) {
                const Simd<A> weight = broadcast(weights[i * stride + t]);
                for (int j = 0; j < vectors; ++j) sums[i][j] += weight * x[j];
            }
        }
        for (int i = 0; i < size; ++i)
            for (int j = 0; j < vectors; ++j)
                store_lanes<A>(context + i * c.channels + j * lanes<A>, sums[i][j], lanes_of<A>(width - j * lanes<A>));
    }
};
