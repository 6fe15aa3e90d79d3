// Vectors of one instruction set, and exp, sigmoid and tanh on them. Included by every_isa.h inside that set's namespace
// (so: no include guard, no includes). Written with the compiler's vector extension, so that the same text is SSE2, NEON,
// AVX2 or AVX-512; the only intrinsics are minimum and maximum, the approximate reciprocal and the conversions
// of half precision.

#define HYBRIDOPS_INLINE inline __attribute__((always_inline))

template <class A>
struct SimdOf;
template <>
struct SimdOf<float> {
    typedef float type __attribute__((vector_size(HYBRIDOPS_VECTOR_BYTES)));
    typedef float four __attribute__((vector_size(4 * sizeof(float))));
    typedef float unaligned __attribute__((vector_size(HYBRIDOPS_VECTOR_BYTES), aligned(4), may_alias));
    typedef int32_t bits __attribute__((vector_size(HYBRIDOPS_VECTOR_BYTES)));
};
template <>
struct SimdOf<double> {
    typedef double type __attribute__((vector_size(HYBRIDOPS_VECTOR_BYTES)));
    typedef double four __attribute__((vector_size(4 * sizeof(double))));
    typedef double unaligned __attribute__((vector_size(HYBRIDOPS_VECTOR_BYTES), aligned(8), may_alias));
    typedef int64_t bits __attribute__((vector_size(HYBRIDOPS_VECTOR_BYTES)));
};
template <class A>
using Simd = typename SimdOf<A>::type;
template <class A>
using Four = typename SimdOf<A>::four;
template <class A>
inline constexpr int lanes = HYBRIDOPS_VECTOR_BYTES / sizeof(A);

template <class A>
HYBRIDOPS_INLINE Simd<A> load(const A* p) {
    return *reinterpret_cast<const typename SimdOf<A>::unaligned*>(p);
}
template <class A>
HYBRIDOPS_INLINE void store(A* p, Simd<A> x) {
    *reinterpret_cast<typename SimdOf<A>::unaligned*>(p) = x;
}
template <class A>
HYBRIDOPS_INLINE Simd<A> broadcast(A x) {
    return x - Simd<A>{};  // x + 0 would not be x for -0, and so not a plain broadcast
}

// Keeps a value that is used several times in a register: left alone, the compiler reads it from memory at every use.
template <class V>
HYBRIDOPS_INLINE void keep_in_register(V& x) {
#if defined(HYBRIDOPS_WIDE) && defined(HYBRIDOPS_EMULATE_AVX512)
    (void)x;  // two registers
#elif defined(__x86_64__)
    __asm__("" : "+v"(x));
#elif defined(__aarch64__)
    __asm__("" : "+w"(x));
#endif
}

// f(0), ..., f(count - 1) with constants, and so with indices of registers: of arrays that a loop indexes, the compiler may
// keep a copy in memory.
#define HYBRIDOPS_LAMBDA(...) [&](__VA_ARGS__) __attribute__((always_inline))
template <class F, int... i>
HYBRIDOPS_INLINE void unrolled(const F& f, std::integer_sequence<int, i...>) {
    (f(std::integral_constant<int, i>{}), ...);
}
template <int count, class F>
HYBRIDOPS_INLINE void unrolled(const F& f) {
    unrolled(f, std::make_integer_sequence<int, count>{});
}

// Accumulators, zero, and in registers, because the compiler would keep the zeros, and then the sums, in memory. So it would in loops
// over them that it does not unroll, and by itself it does not go far.
template <class V, int P, int N>
HYBRIDOPS_INLINE void clear(V (&sums)[P][N]) {
    unrolled<P * N>(HYBRIDOPS_LAMBDA(auto i) { keep_in_register(sums[i / N][i % N] = V{}); });
}

// Conversion of `lanes` numbers of storage type T, next to each other.
template <class T>
inline constexpr bool is_bfloat16 = std::is_same_v<T, torch::headeronly::BFloat16>;
template <class T>
inline constexpr bool is_half = std::is_same_v<T, torch::headeronly::Half>;
typedef uint16_t HalfBits __attribute__((vector_size(HYBRIDOPS_VECTOR_BYTES / 2), aligned(2), may_alias));

template <class A, class T>
HYBRIDOPS_INLINE Simd<A> load_all(const T* p) {
    using Bits = typename SimdOf<A>::bits;
    if constexpr (std::is_same_v<A, T>) {
        return load(p);
    } else if constexpr (is_bfloat16<T>) {  // the upper half of a float
        return (Simd<A>)(__builtin_convertvector(*reinterpret_cast<const HalfBits*>(p), Bits) << 16);
    } else {
        Simd<A> x;
#if HYBRIDOPS_VECTOR_BYTES >= 32
        static_assert(is_half<T>);
        for (int l = 0; l < lanes<A>; l += 8)
            reinterpret_cast<__m256*>(&x)[l / 8] =
                _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + l)));
#else
        for (int l = 0; l < lanes<A>; ++l) x[l] = static_cast<A>(p[l]);
#endif
        return x;
    }
}
template <class A, class T>
HYBRIDOPS_INLINE void store_all(T* p, Simd<A> x) {
    using Bits = typename SimdOf<A>::bits;
    if constexpr (std::is_same_v<A, T>) {
        store(p, x);
    } else if constexpr (is_bfloat16<T>) {
        const Bits bits = (Bits)x, rounded = bits + (0x7fff + ((bits >> 16) & 1));  // to nearest, ties to even
        const Bits half = (x == x ? rounded : bits | 0x7fff0000) >> 16;             // a NaN stays one
        *reinterpret_cast<HalfBits*>(p) = __builtin_convertvector(half, HalfBits);
    } else {
#if HYBRIDOPS_VECTOR_BYTES >= 32
        static_assert(is_half<T>);
        for (int l = 0; l < lanes<A>; l += 8)
            _mm_storeu_si128(reinterpret_cast<__m128i*>(p + l),
                             _mm256_cvtps_ph(reinterpret_cast<const __m256*>(&x)[l / 8], _MM_FROUND_TO_NEAREST_INT));
#else
        for (int l = 0; l < lanes<A>; ++l) p[l] = static_cast<T>(x[l]);
#endif
    }
}

#ifdef HYBRIDOPS_WIDE
// sum + x * y for pairs of bfloat16 in each lane, as AVX512-BF16 does it: in float32, without subnormal numbers. In
// assembler, because the intrinsic wants callers that are themselves compiled for processors that have the instruction.
HYBRIDOPS_INLINE Simd<float> add_bfloat16_products(Simd<float> sum, SimdOf<float>::bits x, SimdOf<float>::bits y) {
#ifdef HYBRIDOPS_EMULATE_AVX512
    sum += (Simd<float>)(x & -0x10000) * (Simd<float>)(y & -0x10000);
    sum += (Simd<float>)(x << 16) * (Simd<float>)(y << 16);
#else
    __asm__("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(x), "v"(y));
#endif
    return sum;
}
#endif

// In registers: a vector read from where its elements were just written one by one would have to wait for them.
template <class A, class T, size_t... l>
HYBRIDOPS_INLINE Simd<A> load_strided(const T* p, int64_t stride, std::index_sequence<l...>) {
    return Simd<A>{static_cast<A>(p[l * stride])...};
}

// How many of a vector's lanes there is something for, `left` elements from its first on.
template <class A>
HYBRIDOPS_INLINE int64_t lanes_of(int64_t left) {
    return std::clamp<int64_t>(left, 0, lanes<A>);
}

// `count` elements of storage type T, `stride` apart, as accumulators; the other lanes are zero.
template <class A, class T>
HYBRIDOPS_INLINE Simd<A> load_lanes(const T* p, int64_t count, int64_t stride = 1) {
    if (count == lanes<A>)
        return stride == 1 ? load_all<A>(p) : load_strided<A>(p, stride, std::make_index_sequence<lanes<A>>{});
    Simd<A> x = {};
    for (int64_t l = 0; l < count; ++l) x[l] = static_cast<A>(p[l * stride]);
    return x;
}
template <class A, class T>
HYBRIDOPS_INLINE void store_lanes(T* p, Simd<A> x, int64_t count) {
    if (count == lanes<A>) return store_all<A>(p, x);
    for (int64_t l = 0; l < count; ++l) p[l] = static_cast<T>(x[l]);
}

// Always summed in this order, pairwise, so that the result does not depend on the compiler.
template <class A>
HYBRIDOPS_INLINE A sum_lanes(Simd<A> x) {
    A part[lanes<A>];
    store(part, x);
    for (int width = lanes<A> / 2; width > 0; width /= 2)
        for (int l = 0; l < width; ++l) part[l] += part[l + width];
    return part[0];
}

template <class V>
using Element = std::remove_cv_t<std::remove_reference_t<decltype(std::declval<V&>()[0])>>;

// Running maximum of |x|, NaN above all, by the bits of |x|, which are ordered as the numbers are and compared in one cycle.
template <class A>
class LargestMagnitude {
    using Bits = typename SimdOf<A>::bits;
    Bits max_ = {};

   public:
    HYBRIDOPS_INLINE void see(Simd<A> x) {
        const Bits magnitude = (Bits)x & std::numeric_limits<Element<Bits>>::max();
        max_ = magnitude > max_ ? magnitude : max_;
    }
    A value() const {
        Element<Bits> largest = max_[0];
        for (int l = 1; l < lanes<A>; ++l) largest = std::max<Element<Bits>>(largest, max_[l]);
        A x;
        std::memcpy(&x, &largest, sizeof(x));
        return x;
    }
};

// x, but no less than `low` or no more than `high`; NaN stays NaN.
template <class V>
HYBRIDOPS_INLINE V clamp_min(V x, Element<V> low) {
#if defined(HYBRIDOPS_X86) && HYBRIDOPS_VECTOR_BYTES == 32
    if constexpr (std::is_same_v<Element<V>, float>)  // the compiler does not see that these do the same
        return (V)_mm256_max_ps(_mm256_set1_ps(low), (__m256)x);
#endif
    const V lowest = V{} + low;
    return x < lowest ? lowest : x;
}
template <class V>
HYBRIDOPS_INLINE V clamp_max(V x, Element<V> high) {
#if defined(HYBRIDOPS_X86) && HYBRIDOPS_VECTOR_BYTES == 32
    if constexpr (std::is_same_v<Element<V>, float>) return (V)_mm256_min_ps(_mm256_set1_ps(high), (__m256)x);
#endif
    const V highest = V{} + high;
    return x > highest ? highest : x;
}

// Coefficients of (e^r - 1) / r for |r| <= ln(2)/2. float32: the polynomial whose relative error in e^r is the least, 4e-9
// with coefficients in float32; float64: the Taylor series, whose first omitted term is 0.3466^14/14! = 4e-18.
template <class A>
inline constexpr auto expm1_series = [] {
    std::array<A, 13> series = {1};
    for (int k = 1; k < 13; ++k) series[k] = series[k - 1] / (k + 1);
    return series;
}();
template <>
inline constexpr std::array<float, 6> expm1_series<float> = {
    1, 0.49999994f, 0.16666518f, 0.041668423f, 0.008369064f, 0.001381388f};

// e^(Factor x) = 2^n * (1 + q): n = round(Factor x / ln 2), q = expm1 of what remains. Factor is 1, 2, -1 or the like, and in
// the constants. n has to be an exponent; with AnyLarge it stays at the largest one, and q grows until the result is inf.
template <class V>
struct ExpParts {
    V scale, expm1;
};
template <int Factor, bool AnyLarge = false, class V>
HYBRIDOPS_INLINE ExpParts<V> exp_parts(V x) {
    using A = Element<V>;
    using Bits = typename SimdOf<A>::bits;
    constexpr bool single = sizeof(A) == 4;
    constexpr int mantissa = single ? 23 : 52, bias = single ? 127 : 1023;
    // 1.5 * 2^mantissa + bias: added to n, the last bits are the exponent of 2^n
    constexpr A to_exponent = (single ? A(12582912.) : A(6755399441055744.)) + bias;
    constexpr A ln2_high = (single ? A(0.693359375) : A(6.93147180369123816490e-01)) / Factor;
    constexpr A ln2_low = (single ? A(-2.12194440e-4) : A(1.90821492927058770002e-10)) / Factor;
    V exponent = x * A(1.44269504088896340736 * Factor) + to_exponent;
    if constexpr (AnyLarge) exponent = clamp_max(exponent, to_exponent + bias);
    const V n = exponent - to_exponent;
    const V r = (x - n * ln2_high) - n * ln2_low;  // the rest of the logarithm / Factor
    constexpr auto coefficients = [] {
        auto series = expm1_series<A>;
        A power = 1;
        for (A& coefficient : series) coefficient *= power *= Factor;
        return series;
    }();
    V series = V{} + coefficients.back();
    for (int k = static_cast<int>(coefficients.size()) - 2; k >= 0; --k) series = series * r + coefficients[k];
    return {(V)((Bits)exponent << mantissa), series * r};
}

template <class A>
inline constexpr A min_exponential = sizeof(A) == 4 ? A(-87.3) : A(-708.);  // e^it is a normal number, just

// Within 2 ulp, but for the last half binade before it overflows (hundreds). Where it would be subnormal, it stays at about
// the smallest normal number instead of going on to zero.
template <class V>
HYBRIDOPS_INLINE V exp(V x) {
    const auto e = exp_parts<1, true>(clamp_min(x, min_exponential<Element<V>>));
    return e.scale * e.expm1 + e.scale;
}

template <class V>
HYBRIDOPS_INLINE V sigmoid(V x) {
    const auto e = exp_parts<-1, true>(clamp_max(x, -min_exponential<Element<V>>));
    return 1 / (e.scale * e.expm1 + (e.scale + 1));
}

// expm1(2x) / (expm1(2x) + 2): relative accuracy holds near zero too.
template <class V>
HYBRIDOPS_INLINE V tanh(V x) {
    using A = Element<V>;
    constexpr A saturated = sizeof(A) == 4 ? 10 : 20;  // tanh of it rounds to 1
    const auto e = exp_parts<2>(clamp_max(clamp_min(x, -saturated), saturated));
    return (e.scale * e.expm1 + (e.scale - 1)) / (e.scale * e.expm1 + (e.scale + 1));
}

// 1/x for finite normal x (an infinite x may give NaN): an approximation and one Newton step where that is cheaper than a
// division, about 1 ulp.
template <class V>
HYBRIDOPS_INLINE V reciprocal(V x) {
#if defined(HYBRIDOPS_WIDE) && !defined(HYBRIDOPS_EMULATE_AVX512)
    if constexpr (std::is_same_v<Element<V>, float>) {
        const V r = (V)_mm512_maskz_rcp14_ps(-1, (__m512)x);
        return r * (2 - x * r);
    }
#endif
    return 1 / x;
}

// The two halves of every group of `part` lanes added up: the first group of a, that of b, the second of a, and so on. In
// this order most numbers stay within their 128 bits, where a processor moves them fastest.
template <int part, class V, size_t... l>
HYBRIDOPS_INLINE V fold(V a, V b, std::index_sequence<l...>) {
    constexpr size_t half = part / 2;
    constexpr auto from = [](size_t i) { return i / half / 2 * part + i % half; };
    const auto pick = [&](size_t i, size_t at) { return i / half % 2 ? b[at] : a[at]; };
    return V{pick(l, from(l))...} + V{pick(l, from(l) + half)...};
}

// Every group of 2 * width lanes summed, in each of its lanes.
template <int width, class V, size_t... l>
HYBRIDOPS_INLINE V sum_groups(V x, std::index_sequence<l...> all) {
    if constexpr (width == 0) {
        return x;
    } else {
        return sum_groups<width / 2>(x + V{x[l ^ width]...}, all);
    }
}

// sum_lanes of each of four, to the same bits.
template <class A>
HYBRIDOPS_INLINE void sum_lanes_of_four(Four<A>& sums, const Simd<A> (&x)[4]) {
    constexpr int n = lanes<A>;
    if constexpr (n < 4) {
        for (int i = 0; i < 4; ++i) sums[i] = sum_lanes<A>(x[i]);
    } else {
        constexpr std::make_index_sequence<n> all;
        const Simd<A> folded = fold<n / 2>(fold<n>(x[0], x[2], all), fold<n>(x[1], x[3], all), all);
        const Simd<A> sum = sum_groups<n / 8>(folded, all);
        sums = Four<A>{sum[0], sum[n / 4], sum[n / 2], sum[n / 4 * 3]};
    }
}
