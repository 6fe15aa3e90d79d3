// Products x W^T of a few rows x with a weight that is packed once and multiplied many times. For one instruction set:
// included behind register_tiles.h, so inside a namespace.

#include "packed_taps.h"

// Columns of W^T, the outputs, go by groups of `width`; what is behind the last one is zero.
template <class T>
struct MatrixColumns {
    WeightMatrix<T> w;
    int64_t outputs, width;

    HYBRIDOPS_INLINE KernelTaps<T> operator()(int64_t group, int64_t column, int64_t input) const {
        const int64_t o = group * width + column;
        return {o < outputs ? w.data + o * w.output + input * w.input : nullptr, 0, 0};
    }
};

// Two weights of the same outputs, for two factors.
template <class Columns>
struct TwoFactors {
    Columns first, second;
    int64_t inputs;  // of the first

    HYBRIDOPS_INLINE auto operator()(int64_t group, int64_t column, int64_t input) const {
        return input < inputs ? first(group, column, input) : second(group, column, input - inputs);
    }
};

// Rows of a factor, as operands: each filled up with zeros to a whole one, and a cache line apart, because rows a multiple
// of 4 KB apart compete for the same places in the L1 cache.
template <class A, class E>
struct OperandRows {
    E* data;
    int64_t size, stride;

    OperandRows(Arena& arena, int64_t rows, int64_t size)
        : size(size), stride(round_up(size, cache_line<E>) + cache_line<E>) {
        data = arena.take<E>(rows * stride);
    }

    E* operator[](int64_t row) const { return data + row * stride; }

    template <class T>
    void set(int64_t row, const T* from) const {  // null = zeros
        E* to = (*this)[row];
        if (!from) {
            std::fill(to, to + stride, E(0));
            return;
        }
        if constexpr (std::is_same_v<T, E>) {
            std::copy(from, from + size, to);
        } else {
            Projection<A, T>::widen(to, from, size);
        }
        std::fill(to + size, to + stride, E(0));
    }
};

// N vectors of outputs a group, W of one or two factors.
template <class A, int N, class E>
class PackedProduct {
   public:
    static constexpr int64_t width = N * lanes<A>;

    template <class Columns>
    PackedProduct(std::array<int64_t, 2> inputs, int64_t groups, const Columns& columns)
        : groups_(groups), inputs_(inputs), taps_({1, 1}, inputs, groups, columns) {}

    int64_t groups() const { return groups_; }

    // sums (count,width) = rows of a factor times its weights for a group of outputs, or += with `add`. No epilogue is in
    // here: it takes registers from the tile, and over the sums, which stay in the L1 cache, it costs less.
    void operator()(A* sums, bool add, int factor, int64_t group, const E* const* rows, int64_t count) const {
        if (inputs_[factor] == 0 && !add) std::fill(sums, sums + count * width, A(0));
        const E* weights = taps_.tap(factor, group, 0);
        constexpr int64_t max = chunk_length<A, E, N> / depth;
        for_tiles(taps_.padded_channels(factor) / depth, max, [&](int64_t first, int64_t operands) {
            const int64_t begin = first * depth, length = operands * depth, size = length * width;
            const E* chunk = weights + begin * width;
            Prefetch<E> next(chunk + size, size, ceil_div(count, P));
            for_tiles(count, P, [&](int64_t row, int64_t tile_rows) {
                next.some();
                const E* x[P];
                for (int64_t p = 0; p < tile_rows; ++p) x[p] = rows[row + p] + begin;
                tile_kernel<A, E, N>(tile_rows)(sums + row * width, add || begin > 0, x, 0, 1, length, chunk);
            });
        });
    }

   private:
    static constexpr int P = tile_pixels<N>;
    static constexpr int64_t depth = Operands<A, E>::depth;
    int64_t groups_;
    std::array<int64_t, 2> inputs_;
    PackedTaps<A, N, E> taps_;
};

// Vectors of a group of outputs that have no order among themselves.
inline constexpr int plain_vectors = HYBRIDOPS_REGISTERS == 32 ? 4 : 2;

// Outputs in the order of the weight's rows.
template <class A, class E>
class PlainProduct {
   public:
    template <class T>
    PlainProduct(int64_t outputs, WeightMatrix<T> w, int64_t inputs)
        : outputs_(outputs), product_({inputs, 0}, groups(), MatrixColumns<T>{w, outputs, width}) {}

    template <class T>
    PlainProduct(int64_t outputs, WeightMatrix<T> first, int64_t inputs, WeightMatrix<T> second, int64_t other_inputs)
        : outputs_(outputs),
          product_({inputs, other_inputs}, groups(),
                   TwoFactors<MatrixColumns<T>>{{first, outputs, width}, {second, outputs, width}, inputs}) {}

    static int64_t sums(int64_t rows) { return rows * width; }

    // finish(row, output, count, sum) for every vector of outputs; second null = there is one factor.
    template <class Finish>
    void operator()(A* sums, const E* const* first, const E* const* second, int64_t rows, const Finish& finish) const {
        for (int64_t group = 0; group < groups(); ++group) {
            product_(sums, false, 0, group, first, rows);
            if (second) product_(sums, true, 1, group, second, rows);
            const int64_t begin = group * width, end = std::min(begin + width, outputs_);
            for (int64_t row = 0; row < rows; ++row)
                for (int64_t output = begin; output < end; output += lanes<A>)
                    finish(row, output, lanes_of<A>(end - output), load(sums + row * width + output - begin));
        }
    }

   private:
    static constexpr int64_t width = plain_vectors * lanes<A>;
    int64_t groups() const { return ceil_div(outputs_, width); }

    int64_t outputs_;
    PackedProduct<A, plain_vectors, E> product_;
};
