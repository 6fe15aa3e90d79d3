// Register tiles, of which matrix products are made here: P pixels (of an image, or rows of a matrix) x N vectors of
// outputs stay in registers while the reduction runs. For one instruction set: included inside its namespace.

// Operands of type E, `depth` of which side by side are multiplied and added at a time.
template <class A, class E>
struct Operands {
    using Vector = Simd<A>;
    static constexpr int depth = 1;
    static HYBRIDOPS_INLINE Vector all(const E* p) { return broadcast(*p); }
    static HYBRIDOPS_INLINE Vector each(const E* p) { return load(p); }
    static HYBRIDOPS_INLINE void accumulate(Simd<A>& sum, Vector x, Vector y) { sum += x * y; }
};
#ifdef HYBRIDOPS_WIDE
template <>
struct Operands<float, torch::headeronly::BFloat16> {
    using Vector = SimdOf<float>::bits;
    using E = torch::headeronly::BFloat16;
    static constexpr int depth = 2;
    static HYBRIDOPS_INLINE Vector all(const E* p) {
        int32_t pair;
        std::memcpy(&pair, p, sizeof(pair));
        return Vector{} + pair;
    }
    static HYBRIDOPS_INLINE Vector each(const E* p) {
        Vector pairs;
        std::memcpy(&pairs, p, sizeof(pairs));
        return pairs;
    }
    static HYBRIDOPS_INLINE void accumulate(Simd<float>& sum, Vector x, Vector y) {
        sum = add_bfloat16_products(sum, x, y);
    }
};
#endif

template <class T>
bool has_dot_product() {  // of the processor: two products of T an instruction
#ifdef HYBRIDOPS_WIDE
    return is_bfloat16<T> && cpu_isa() >= Isa::avx512_bf16;
#else
    return false;
#endif
}

#include "amx_tiles.h"

// f(E{}): with the type of the operands that products of tensors of type T are made of, A or T where the processor
// multiplies T.
template <class T, class A, class F>
void with_operands(const F& f) {
#ifdef HYBRIDOPS_WIDE
    if constexpr (is_bfloat16<T>) {
        if (has_dot_product<T>()) return f(T{});
    }
#endif
    f(A{});
}

// Sums start from zero and are then added to memory, because the error of a sum grows with its length.
template <class A, class V, int P, int N>
HYBRIDOPS_INLINE void add_to_memory(A* out, const V (&sums)[P][N]) {
#pragma GCC unroll 32
    for (int i = 0; i < P * N; ++i, out += lanes<A>) store(out, load(out) + sums[i / N][i % N]);
}

// Pixels of a register tile beside N vectors: accumulators fill three quarters of the registers (the rest hold weights
// and inputs); more than 8 pixels would run out of address registers.
template <int N>
inline constexpr int tile_pixels = std::min(HYBRIDOPS_REGISTERS * 3 / 4 / N, 8);

// Elements of the reduction after which the accumulators of a block are set aside: the weights of a chunk stay in the L1
// cache while every pixel of the block passes over them, and the rounding error of a sum of sums is less than that of one.
template <class A, class E, int N>
inline constexpr int64_t chunk_length =
    Operands<A, E>::depth * std::min(16 * 1024 / (N * HYBRIDOPS_VECTOR_BYTES), std::max(32 * N, 64));

// partial (P,N,lanes) = the pixels' runs times the weights, or += with `add`. `pixel[p]` points to the first element of pixel
// p's run; runs of the next kernel rows follow row_stride apart; weights follow each other. `each_operand` is called beside
// every operand's products.
template <class A, class E, int N, int P, class EachOperand>
HYBRIDOPS_INLINE void accumulate_tile_with(A* partial, bool add, const E* const* pixels, int64_t row_stride,
                                           int64_t rows, int64_t length, const E* w, const EachOperand& each_operand) {
    using Op = Operands<A, E>;
    using Vector = typename Op::Vector;
    const E* pixel[P];
    for (int p = 0; p < P; ++p) pixel[p] = pixels[p];
    Simd<A> sums[P][N];
    clear(sums);
    const auto add_products = HYBRIDOPS_LAMBDA(int64_t j) {
        const auto weights = HYBRIDOPS_LAMBDA(int n) { return Op::each(w + n * lanes<A> * Op::depth); };
        // hold the smaller set in registers, stream the other
        if constexpr (P < N) {
            Vector x[P];
            unrolled<P>(HYBRIDOPS_LAMBDA(auto p) { x[p] = Op::all(pixel[p] + j); });
            unrolled<N>(HYBRIDOPS_LAMBDA(auto n) {
                Vector weight = weights(n);
                keep_in_register(weight);
                unrolled<P>(HYBRIDOPS_LAMBDA(auto p) { Op::accumulate(sums[p][n], x[p], weight); });
            });
        } else {
            Vector weight[N];
            unrolled<N>(HYBRIDOPS_LAMBDA(auto n) { keep_in_register(weight[n] = weights(n)); });
            unrolled<P>(HYBRIDOPS_LAMBDA(auto p) {
                const Vector x = Op::all(pixel[p] + j);
                unrolled<N>(HYBRIDOPS_LAMBDA(auto n) { Op::accumulate(sums[p][n], x, weight[n]); });
            });
        }
        w += N * lanes<A> * Op::depth;
        each_operand();
    };
    for (int64_t row = 0; row < rows; ++row) {
        const int64_t begin = row * row_stride, end = begin + length;
        if constexpr (Op::depth > 1) {  // GCC would keep the sums of an unrolled loop over assembler in memory
            for (int64_t j = begin; j < end; j += Op::depth) add_products(j);
        } else {
#pragma GCC unroll 2  // fewer instructions a multiplication: they count where another thread shares the core
            for (int64_t j = begin; j < end; ++j) add_products(j);
        }
    }
    unrolled<P * N>(HYBRIDOPS_LAMBDA(auto i) {
        A* const out = partial + i * lanes<A>;
        store(out, add ? load(out) + sums[i / N][i % N] : sums[i / N][i % N]);
    });
}

template <class A, class E, int N, int P>
void accumulate_tile(A* partial, bool add, const E* const* pixels, int64_t row_stride, int64_t rows, int64_t length,
                     const E* w) {
    accumulate_tile_with<A, E, N, P>(partial, add, pixels, row_stride, rows, length, w, HYBRIDOPS_LAMBDA(){});
}

template <class A, class E>
using TileKernel = void (*)(A*, bool, const E* const*, int64_t, int64_t, int64_t, const E*);

// The kernel for `count` pixels, 1 <= count <= P.
template <class A, class E, int N, int P = tile_pixels<N>>
TileKernel<A, E> tile_kernel(int64_t count) {
    if constexpr (P > 1) {
        if (count < P) return tile_kernel<A, E, N, P - 1>(count);
    }
    return accumulate_tile<A, E, N, P>;
}

// Also what is left between planes that are written and read together: otherwise they often are a multiple of 4 KB apart,
// and compete for the same places in the L1 cache.
template <class E>
inline constexpr int64_t cache_line = 64 / sizeof(E);

// Brings what is read next, rows of some elements, into the L2 cache, some of it at each of a number of times: in between,
// what is there is read again and again, and the processor does not see what follows.
template <class E>
class Prefetch {
   public:
    Prefetch(const E* next, int64_t length, int64_t stride, int64_t rows, int64_t times)
        : next_(next), end_(next + rows * stride), length_(length), stride_(stride), rows_(ceil_div(rows, times)) {}
    Prefetch(const E* next, int64_t size, int64_t times)
        : Prefetch(next, 1, cache_line<E>, ceil_div(size, cache_line<E>), times) {}

    HYBRIDOPS_INLINE void some() {
        for (int64_t row = 0; row < rows_ && next_ < end_; ++row, next_ += stride_)
            for (int64_t i = 0; i < length_; i += cache_line<E>) __builtin_prefetch(next_ + i, 0, 2);
    }

   private:
    const E *next_, *end_;
    int64_t length_, stride_, rows_;
};

// f(first, count) for tiles of at most `most` that differ by one at the most: no short tail leaves the multipliers idle.
template <class F>
HYBRIDOPS_INLINE void for_tiles(int64_t total, int64_t most, const F& f) {
    const int64_t tiles = ceil_div(total, most);
    for (int64_t tile = 0; tile < tiles; ++tile) {
        const int64_t first = tile * total / tiles;
        f(first, (tile + 1) * total / tiles - first);
    }
}
