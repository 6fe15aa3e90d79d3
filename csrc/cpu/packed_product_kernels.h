// Products x W^T of a few rows x with a weight that is packed once and multiplied many times. For one instruction set:
// included behind register_tiles.h, so inside a namespace.

// lanes<A> outputs next to each other of a weight, or fewer at its end.
template <class T>
struct OutputVector {
    const T* first;  // its input 0
    int64_t count;
};

// Outputs in the order of the weight's rows, `vectors` of them a group.
template <class A, class T>
struct RowsInOrder {
    WeightMatrix<T> w;
    int64_t outputs, vectors;

    OutputVector<T> operator()(int64_t group, int64_t vector) const {
        const int64_t output = (group * vectors + vector) * lanes<A>;
        return {w.data + output * w.output, lanes_of<A>(outputs - output)};
    }
};

// The gates of lanes<A> hidden units, one a vector.
template <class A, class T>
struct GateRows {
    WeightMatrix<T> w;
    int64_t hidden;

    OutputVector<T> operator()(int64_t group, int64_t gate) const {
        const int64_t unit = group * lanes<A>;
        return {w.data + (gate * hidden + unit) * w.output, lanes_of<A>(hidden - unit)};
    }
};

// W packed for the register tiles, as [group][input / depth][N][lane][input % depth], filled up with zeros; in memory of an
// arena. Where that only counts, it is not to be packed.
template <class A, int N, class E>
class PackedWeight {
   public:
    static constexpr int64_t width = N * lanes<A>, depth = Operands<A, E>::depth;

    PackedWeight(Arena& arena, int64_t inputs, int64_t groups)
        : inputs_(inputs),
          padded_inputs_(round_up(inputs, has_tiles<E>() ? register_depth : depth)),
          groups_(groups),
          packed_(arena.take<E>(groups * padded_inputs_ * width)) {}

    // rows(group, vector) -> OutputVector
    template <class Rows>
    void pack(const Rows& rows) const {
        torch::stable::parallel_for(0, groups_, 1, [&](int64_t begin, int64_t end) {
            for (int64_t group = begin; group < end; ++group)
                for (int vector = 0; vector < N; ++vector) {
                    E* to = packed_ + group * padded_inputs() * width + vector * lanes<A> * depth;
                    const auto from = rows(group, vector);
                    const auto pack = [&](auto... strides) { pack_vector(to, from, rows.w, strides...); };
                    if (from.count < lanes<A>) {
                        pack();
                    } else if (rows.w.input == 1) {
                        pack(std::integral_constant<int64_t, 1>{}, rows.w.output);
                    } else if (rows.w.output == 1) {
                        pack(rows.w.input, std::integral_constant<int64_t, 1>{});
                    } else {
                        pack(rows.w.input, rows.w.output);
                    }
                }
        });
    }

    int64_t inputs() const { return inputs_; }
    int64_t groups() const { return groups_; }
    int64_t padded_inputs() const { return padded_inputs_; }  // where they are multiplied
    const E* group(int64_t group) const { return packed_ + group * padded_inputs() * width; }

   private:
    // Of the last outputs, fewer than there are lanes
    template <class T>
    void pack_vector(E* to, const OutputVector<T>& from, const WeightMatrix<T>& w) const {
        for (int64_t k = 0; k < padded_inputs(); ++k)
            for (int64_t lane = 0; lane < lanes<A>; ++lane)
                to[k / depth * width * depth + lane * depth + k % depth] =
                    k < inputs_ && lane < from.count ? static_cast<E>(from.first[lane * w.output + k * w.input]) : E(0);
    }

    // Strides that are 1 as constants; that of the outputs is in the inner loop, else a cache line of inputs is.
    template <class T, class Input, class Output>
    void pack_vector(E* to, const OutputVector<T>& from, const WeightMatrix<T>&, Input input, Output output) const {
        constexpr int64_t together = cache_line<T>;
        static_assert(together % depth == 0);
        const auto pack_operand = HYBRIDOPS_LAMBDA(int64_t k, int64_t lane) {
            E* const out = to + k * width + lane * depth;
            const T* const in = from.first + lane * output + k * input;
            for (int64_t d = 0; d < depth; ++d) out[d] = static_cast<E>(in[d * input]);
        };
        int64_t k = 0;
        if constexpr (!std::is_same_v<Output, int64_t>) {
            for (; k + depth <= inputs_; k += depth)
                for (int64_t lane = 0; lane < lanes<A>; ++lane) pack_operand(k, lane);
        } else {
            for (; k + together <= inputs_; k += together)
                for (int64_t lane = 0; lane < lanes<A>; ++lane)
                    for (int64_t i = 0; i < together; i += depth) pack_operand(k + i, lane);
        }
        for (; k < padded_inputs(); ++k)
            for (int64_t lane = 0; lane < lanes<A>; ++lane)
                to[k / depth * width * depth + lane * depth + k % depth] =
                    k < inputs_ ? static_cast<E>(from.first[lane * output + k * input]) : E(0);
    }

    int64_t inputs_, padded_inputs_, groups_;
    E* packed_;
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

#include "amx_product_kernels.h"

// The register tile of `count` rows, 1 <= count <= P, while `next` comes into the L2 cache, `step` elements an operand. Not
// all at once between the tiles: so many at a time the processor cannot wait for.
template <class A, class E, int N, int P = tile_pixels<N>>
void multiply_tile(int64_t count, A* sums, bool add, const E* const* rows, int64_t length, const E* w, const E* next,
                   int64_t step) {
    if constexpr (P > 1) {
        if (count < P) return multiply_tile<A, E, N, P - 1>(count, sums, add, rows, length, w, next, step);
    }
    accumulate_tile_with<A, E, N, P>(
        sums, add, rows, 0, 1, length, w, HYBRIDOPS_LAMBDA() {
            __builtin_prefetch(next, 0, 2);
            __builtin_prefetch(next + step / 2, 0, 2);
            next += step;
        });
}

// sums (count,width) = rows x times W^T of a group of outputs, or += with `add`. No epilogue is in here: it takes registers
// from the tile, and over the sums, which stay in the L1 cache, it costs less. The caller has ProductRegisters.
template <class A, int N, class E>
void multiply(A* sums, bool add, const E* const* rows, int64_t count, const PackedWeight<A, N, E>& w, int64_t group) {
    constexpr int64_t width = N * lanes<A>, depth = Operands<A, E>::depth;
    constexpr int P = tile_pixels<N>;
    if (w.inputs() == 0 && !add) std::fill(sums, sums + count * width, A(0));
#ifdef HYBRIDOPS_WIDE
    if constexpr (is_bfloat16<E>) {
        if (has_tiles<E>()) return TileProduct<N>{}(sums, add, rows, count, w.group(group), w.padded_inputs());
    }
#endif
    const int64_t tiles = ceil_div(count, P), step = ceil_div(width * depth, tiles);
    for_tiles(w.padded_inputs() / depth, chunk_length<A, E, N> / depth, [&](int64_t first, int64_t operands) {
        const int64_t begin = first * depth, length = operands * depth;
        const E *chunk = w.group(group) + begin * width, *next = chunk + length * width;
        for_tiles(count, P, [&](int64_t row, int64_t tile_rows) {
            const E* x[P];
            for (int64_t p = 0; p < tile_rows; ++p) x[p] = rows[row + p] + begin;
            multiply_tile<A, E, N>(tile_rows, sums + row * width, add || begin > 0, x, length, chunk, next, step);
            next += operands * step;
        });
    });
}

// Vectors of a group of outputs that have no order among themselves.
inline constexpr int plain_vectors = HYBRIDOPS_REGISTERS == 32 ? 4 : 2;

// x W^T, and y V^T added where there is a second factor.
template <class A, class E>
class PlainProduct {
   public:
    static constexpr int64_t width = plain_vectors * lanes<A>;  // outputs of a group

    PlainProduct(Arena& arena, int64_t outputs, int64_t inputs)
        : outputs_(outputs), w_(arena, inputs, ceil_div(outputs, width)) {}

    void add_factor(Arena& arena, int64_t inputs) { second_.emplace(arena, inputs, w_.groups()); }

    template <class T>
    void pack(const WeightMatrix<T>& w) const {
        w_.pack(RowsInOrder<A, T>{w, outputs_, plain_vectors});
    }
    template <class T>
    void pack(const WeightMatrix<T>& w, const WeightMatrix<T>& second) const {
        pack(w);
        if (second_) second_->pack(RowsInOrder<A, T>{second, outputs_, plain_vectors});
    }

    static int64_t sums(int64_t rows) { return rows * width; }

    int64_t groups() const { return w_.groups(); }

    // finish(row, output, count, sum) for every vector of outputs
    template <class Finish>
    void operator()(A* sums, const E* const* x, const E* const* y, int64_t rows, const Finish& finish) const {
        for (int64_t group = 0; group < groups(); ++group) one_group(sums, x, y, rows, group, finish);
    }

    template <class Finish>
    void one_group(A* sums, const E* const* x, const E* const* y, int64_t rows, int64_t group,
                   const Finish& finish) const {
        multiply(sums, false, x, rows, w_, group);
        if (second_) multiply(sums, true, y, rows, *second_, group);
        const int64_t begin = group * width, end = std::min(begin + width, outputs_);
        for (int64_t row = 0; row < rows; ++row)
            for (int64_t output = begin; output < end; output += lanes<A>)
                finish(row, output, lanes_of<A>(end - output), load(sums + row * width + output - begin));
    }

   private:
    int64_t outputs_;
    PackedWeight<A, plain_vectors, E> w_;
    std::optional<PackedWeight<A, plain_vectors, E>> second_;
};
