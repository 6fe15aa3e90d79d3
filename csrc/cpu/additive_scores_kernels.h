// Scores of a block of queries and keys; part of additive_attention_kernels.h.

struct Pairs {  // the queries [s0, s1) and the keys [t0, t1) of batch entry b
    int64_t b, s0, s1, t0, t1;
};

// Those of them before key `end`.
inline Pairs before(Pairs pairs, int64_t end) {
    pairs.t1 = std::max(pairs.t0, std::min(pairs.t1, end));
    return pairs;
}

// The quotient by additions alone: r = K/(K + P) with K = e^-2k. So a pair costs no multiplication of its own, and a factor
// v_a of r is multiplied into K once a key. |q| and |k|, each for itself, may be as large as `merged` for a product of four
// K + P, between e^-2m and 2 e^2m, to stay finite and normal, with a factor of up to e^2m in front; `paired` for one of
// two, `single` for one; beyond, and for NaN, the direct tanh is taken.
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

inline constexpr int64_t few_queries = 2;  // hardly share what is computed of a key

// ---- exponentials ----------------------------------------------------------------------------------------------------

inline constexpr int merge = 4;     // positions along A that share a reciprocal
inline constexpr int key_tile = 4;  // keys in a register tile: their sums are a Four

// Columns of a row of exponentials: whole groups of merged vectors.
template <class A>
int64_t padded_width(int64_t width) {
    return round_up(width, merge * lanes<A>);
}

template <class A>
void set_padded_width(int64_t& padded, int64_t width) {
    padded = padded_width<A>(width);
}

// out = e^(Factor x), zeros of x behind it up to `padded`; gives max|x|. The exponential need not be right, and is not,
// beyond QuotientRange::single, where nobody looks at it.
template <int Factor, class A, class T>
A exponential_row(A* out, const T* x, int64_t width, int64_t padded) {
    LargestMagnitude<A> most;
    const auto take = [&](int64_t a, Simd<A> value) {
        most.see(value);
        const auto e = exp_parts<Factor>(value);
        store(out + a, e.scale * e.expm1 + e.scale);
    };
    int64_t a = 0;
    for (; a + lanes<A> <= width; a += lanes<A>) take(a, load_all<A>(x + a));
    for (; a < padded; a += lanes<A>) take(a, load_lanes<A>(x + a, std::max<int64_t>(width - a, 0)));
    return most.value();
}

template <class A, class T>
void key_exponentials(const KeyExponentials<A>& out, const T* k, int64_t width) {
    torch::stable::parallel_for(0, out.count, 4096 / (out.padded + 1) + 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i)
            out.bound[i] = exponential_row<-2>(out.values + i * out.padded, k + i * width, width, out.padded);
    });
}

// The same in memory of its own.
template <class A>
struct OwnedExponentials {
    Buffer<A> values, bound;
    KeyExponentials<A> rows;

    template <class T>
    OwnedExponentials(const T* k, int64_t count, int64_t width)
        : values(count * padded_width<A>(width)),
          bound(count),
          rows{count, padded_width<A>(width), values.data(), bound.data()} {
        key_exponentials(rows, k, width);
    }
};

// v, padded and scaled by a power of two so that its largest element is near one, as QuotientRange takes for granted.
template <class A>
struct ScoreVector {
    int64_t padded;
    Buffer<A> scaled;
    A unit, sum, magnitude;  // v = unit * scaled; sum(v); sum|v|

    template <class T>
    ScoreVector(const T* v, int64_t width) : padded(padded_width<A>(width)), scaled(padded) {
        double all = 0, all_magnitudes = 0;  // an error of the sum would be one of every score
        A most = 0;
        for (int64_t i = 0; i < width; ++i) {
            const A value = static_cast<A>(v[i]);
            all += value;
            all_magnitudes += std::abs(value);
            most = std::max(most, std::abs(value));
        }
        sum = static_cast<A>(all);
        magnitude = static_cast<A>(all_magnitudes);
        int exponent = 0;
        std::frexp(most, &exponent);
        unit = std::ldexp(A(1), exponent);
        for (int64_t i = 0; i < padded; ++i) scaled.data()[i] = i < width ? static_cast<A>(v[i]) / unit : A(0);
    }
};

// ---- tiles -----------------------------------------------------------------------------------------------------------

// sums[j] = sum_a v_a K_ja / (K_ja + P_a), for |q| and |k| within QuotientRange::merged; `weighted` gives v K.
template <class A, class Weighted>
HYBRIDOPS_INLINE void merged_sums(Four<A>& sums, const A* p, const A* const (&k)[key_tile], const Weighted& weighted,
                                  int64_t padded) {
    Simd<A> acc[key_tile] = {};
    for (int64_t a = 0; a < padded; a += merge * lanes<A>) {
        Simd<A> pa[merge];
        for (int m = 0; m < merge; ++m) pa[m] = load(p + a + m * lanes<A>);
        for (int j = 0; j < key_tile; ++j) {
            Simd<A> x[merge], vk[merge];
            for (int m = 0; m < merge; ++m) {
                const int64_t at = a + m * lanes<A>;
                const Simd<A> ka = load(k[j] + at);
                x[m] = ka + pa[m];
                vk[m] = weighted(j, at, ka);
            }
            const auto f = sum_of_quotients(vk[0], x[0], vk[1], x[1], vk[2], x[2], vk[3], x[3]);
            acc[j] += f.numerator / f.denominator;
        }
    }
    sum_lanes_of_four<A>(sums, acc);
}

// The same without merging: for |q| and |k| within QuotientRange::single.
template <class A, class Weighted>
HYBRIDOPS_INLINE void single_sums(Four<A>& sums, const A* p, const A* const (&k)[key_tile], const Weighted& weighted,
                                  int64_t padded) {
    Simd<A> acc[key_tile] = {};
    for (int64_t a = 0; a < padded; a += lanes<A>)
        for (int j = 0; j < key_tile; ++j) {
            const Simd<A> ka = load(k[j] + a);
            acc[j] += weighted(j, a, ka) / (ka + load(p + a));
        }
    sum_lanes_of_four<A>(sums, acc);
}

// sum_a v_a act(q_a + k_a) straight from the inputs.
template <class A, class T, class Act>
A direct_score(const T* q, const T* k, const T* v, int64_t width, const Act& act) {
    Simd<A> acc = {};
    for (int64_t a = 0; a < width; a += lanes<A>) {
        const int64_t count = lanes_of<A>(width - a);
        acc += load_lanes<A>(v + a, count) * act.value(load_lanes<A>(q + a, count) + load_lanes<A>(k + a, count));
    }
    return sum_lanes<A>(acc);
}

// ---- blocks: out[i * stride + j] is the score of query s0 + i and key t0 + j ---------------------------------------------

template <class A, class T>
struct TanhScores {
    const AdditiveScoresArgs<T, A>& a;
    KeyExponentials<A> keys;  // values null = of this block's keys they are computed here
    const ScoreVector<A>& v;

    int64_t scratch(int64_t queries) const { return (queries + 2 * key_tile) * v.padded + queries; }

    void operator()(const Pairs& pairs, A* out, int64_t stride, A* scratch) const {
        const AdditiveShape& n = a.shape;
        const int64_t queries = pairs.s1 - pairs.s0;
        A *own = scratch, *tile_vk = own + key_tile * v.padded, *p = tile_vk + key_tile * v.padded;
        A* bound = p + queries * v.padded;
        const T* q = a.q + (pairs.b * n.queries + pairs.s0) * n.width;
        for (int64_t i = 0; i < queries; ++i)
            bound[i] = exponential_row<2>(p + i * v.padded, q + i * n.width, n.width, v.padded);

        // v's unit and twice any score are finite; an infinite v times a difference would be NaN
        const bool factored = v.magnitude <= std::numeric_limits<A>::max() / 4;
        const A* k[key_tile];
        const auto weigh = [&](int j, int64_t at, Simd<A> key) {
            // few queries wait for memory: the processor sees no further than a key's row
            __builtin_prefetch(k[j] + key_tile * v.padded + at, 0, 2);
            return key * load(v.scaled.data() + at);
        };
        const auto read = [&](int j, int64_t at, Simd<A>) { return load(tile_vk + j * v.padded + at); };
        for (int64_t t = pairs.t0; t < pairs.t1; t += key_tile) {
            const int64_t count = std::min<int64_t>(key_tile, pairs.t1 - t), key = pairs.b * n.keys + t;
            const A key_bound = exponentials(k, own, key, count);
            const auto within = [&](int64_t i, A range) { return factored && bound[i] <= range && key_bound <= range; };
            const auto scores = [&](const auto& weighted) {
                for (int64_t i = 0; i < queries; ++i) {
                    A* to = out + i * stride + (t - pairs.t0);
                    Four<A> sums;
                    if (within(i, QuotientRange<A>::merged)) {
                        merged_sums(sums, p + i * v.padded, k, weighted, v.padded);
                    } else if (within(i, QuotientRange<A>::single)) {
                        single_sums(sums, p + i * v.padded, k, weighted, v.padded);
                    } else {
                        for (int64_t j = 0; j < count; ++j)
                            to[j] = direct_score<A>(q + i * n.width, a.k + (key + j) * n.width, a.v, n.width, Tanh{});
                        continue;
                    }
                    sums = v.sum - 2 * v.unit * sums;
                    if (count == key_tile) {
                        std::memcpy(to, &sums, sizeof(sums));
                    } else {
                        for (int64_t j = 0; j < count; ++j) to[j] = sums[j];
                    }
                }
            };
            if (queries <= few_queries) {
                scores(weigh);
                continue;
            }
            for (int j = 0; j < key_tile; ++j)
                for (int64_t at = 0; at < v.padded; at += lanes<A>)
                    store(tile_vk + j * v.padded + at, weigh(j, at, load(k[j] + at)));
            scores(read);
        }
    }

   private:
    // k: those of `count` keys from `key` on, where they are or in `own`, and the last one's again for keys that are not
    // there. Gives the largest |k|.
    A exponentials(const A* (&k)[key_tile], A* own, int64_t key, int64_t count) const {
        A most = 0;
        for (int64_t j = 0; j < count; ++j) {
            A bound;
            if (keys.values) {
                k[j] = keys.values + (key + j) * v.padded;
                bound = keys.bound[key + j];
            } else {
                k[j] = own + j * v.padded;
                bound =
                    exponential_row<-2>(own + j * v.padded, a.k + (key + j) * a.shape.width, a.shape.width, v.padded);
            }
            most = bound > most || bound != bound ? bound : most;
        }
        std::fill(k + count, k + key_tile, k[count - 1]);
        return most;
    }
};

template <class A, class T, class Act>
struct DirectScores {
    const AdditiveScoresArgs<T, A>& a;
    Act act;

    int64_t scratch(int64_t) const { return 0; }

    void operator()(const Pairs& pairs, A* out, int64_t stride, A*) const {
        const AdditiveShape& n = a.shape;
        const T *q = a.q + pairs.b * n.queries * n.width, *k = a.k + pairs.b * n.keys * n.width;
        for (int64_t s = pairs.s0; s < pairs.s1; ++s)
            for (int64_t t = pairs.t0; t < pairs.t1; ++t)
                out[(s - pairs.s0) * stride + (t - pairs.t0)] =
                    direct_score<A>(q + s * n.width, k + t * n.width, a.v, n.width, act);
    }
};
