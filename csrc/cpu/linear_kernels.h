// x W^T + b of a few rows with a weight that is packed once, for one instruction set; included by every_isa.h inside its
// namespace.

#include "register_tiles.h"

#include "projection_kernels.h"

#include "packed_product_kernels.h"

template <class A, class E>
PlainProduct<A, E> linear_in(std::byte* memory, int64_t outputs, int64_t inputs) {
    Arena arena(memory);
    return PlainProduct<A, E>(arena, outputs, inputs);
}

template <class T, class A = Accumulator<T>>
void set_linear_bytes(int64_t& bytes, int64_t outputs, int64_t inputs) {
    with_operands<T, A>([&](auto e) {
        Arena counted;
        PlainProduct<A, decltype(e)>(counted, outputs, inputs);
        bytes = counted.size();
    });
}

template <class T, class A = Accumulator<T>>
void pack_linear(std::byte* to, const WeightMatrix<T>& w, int64_t outputs, int64_t inputs) {
    with_operands<T, A>([&](auto e) { linear_in<A, decltype(e)>(to, outputs, inputs).pack(w); });
}

inline constexpr int64_t max_linear_rows = 48;  // whose sums stay in the L1 cache

// The rows of x as operands.
template <class T, class A, class E>
class LinearRows {
   public:
    explicit LinearRows(const LinearArgs<T>& a) : memory_(bytes(a)), rows_(a.rows) {
        Arena arena(memory_.data());
        const OperandRows<A, E> x(arena, a.rows, a.inputs);
        torch::stable::parallel_for(0, a.rows, max_linear_rows, [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) {
                x.set(i, a.x + i * a.inputs);
                rows_[i] = x[i];
            }
        });
    }

    // f(first, rows, operands), no more than max_linear_rows at a time
    template <class F>
    void in_pieces(const F& f) const {
        const int64_t rows = static_cast<int64_t>(rows_.size());
        for (int64_t first = 0; first < rows; first += max_linear_rows)
            f(first, std::min(rows - first, max_linear_rows), rows_.data() + first);
    }

   private:
    static int64_t bytes(const LinearArgs<T>& a) {
        Arena counted;
        OperandRows<A, E>(counted, a.rows, a.inputs);
        return counted.size();
    }

    Buffer<std::byte> memory_;
    std::vector<const E*> rows_;
};

// Threads share out the outputs: each reads its part of the weight once, and all of the rows.
template <class T, class A, class E>
void linear_with(const LinearArgs<T>& a, T* out) {
    const auto product = linear_in<A, E>(a.packed, a.outputs, a.inputs);
    const LinearRows<T, A, E> x(a);
    parallel_for_dynamic(product.groups(), [&](WorkQueue& queue) {
        const ProductRegisters<E> registers;
        A* sums = from_thread_scratch(
            [&](Arena& own) { return own.take<A>(product.sums(std::min(a.rows, max_linear_rows))); });
        for (int64_t group; queue.take(group);)
            x.in_pieces([&](int64_t first, int64_t rows, const E* const* operands) {
                product.one_group(sums, operands, nullptr, rows, group,
                                  [&](int64_t row, int64_t at, int64_t count, Simd<A> sum) {
                                      if (a.bias) sum += load_lanes<A>(a.bias + at, count);
                                      store_lanes<A>(out + (first + row) * a.outputs + at, sum, count);
                                  });
            });
    });
}

template <class T>
void linear(const LinearArgs<T>& a, T* out) {
    using A = Accumulator<T>;
    with_operands<T, A>([&](auto e) { linear_with<T, A, decltype(e)>(a, out); });
}

#include "likeliest_kernels.h"
