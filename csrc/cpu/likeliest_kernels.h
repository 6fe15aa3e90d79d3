// log softmax of x W^T + b and its largest elements, without the scores in memory. For one instruction set: included by
// linear_kernels.h.

// The largest of the numbers that a row was shown, the largest first; of equal ones, that with the smaller index first, so
// that the list does not depend on their order. Memory of the caller's. What is not there yet is -inf at index `none`.
template <class A>
struct LargestOfRow {
    static constexpr int64_t none = std::numeric_limits<int64_t>::max();

    A* values;
    int64_t* indices;
    int64_t count;

    void clear() const {
        std::fill(values, values + count, -std::numeric_limits<A>::infinity());
        std::fill(indices, indices + count, none);
    }

    A least() const { return values[count - 1]; }

    void show(A value, int64_t index) const {
        if (!before(value, index, count - 1)) return;
        int64_t at = count - 1;
        for (; at > 0 && before(value, index, at - 1); --at) {
            values[at] = values[at - 1];
            indices[at] = indices[at - 1];
        }
        values[at] = value;
        indices[at] = index;
    }

    // Those that were never above -inf come last, in order.
    void fill_up() const {
        int64_t at = 0, next = 0;
        while (at < count && indices[at] != none) ++at;
        for (const int64_t known = at; at < count; ++next)
            if (std::find(indices, indices + known, next) == indices + known) indices[at++] = next;
    }

   private:
    bool before(A value, int64_t index, int64_t at) const {
        return value > values[at] || (value == values[at] && index < indices[at]);
    }
};

// All rows' lists, in memory of an arena.
template <class A>
struct LargestOfRows {
    A* values;
    int64_t* indices;
    int64_t rows, count;

    LargestOfRows(Arena& arena, int64_t rows, int64_t count)
        : values(arena.take<A>(rows * count)), indices(arena.take<int64_t>(rows * count)), rows(rows), count(count) {}
    LargestOfRows(A* values, int64_t* indices, int64_t rows, int64_t count)
        : values(values), indices(indices), rows(rows), count(count) {}

    LargestOfRow<A> operator[](int64_t row) const { return {values + row * count, indices + row * count, count}; }

    void clear() const {
        for (int64_t row = 0; row < rows; ++row) (*this)[row].clear();
    }

    void show(const LargestOfRows& other) const {
        for (int64_t i = 0; i < rows * count; ++i)
            if (other.indices[i] != LargestOfRow<A>::none) (*this)[i / count].show(other.values[i], other.indices[i]);
    }
};

// The largest of some numbers, and Σ e^(x - largest): parts of a softmax. Where all are -inf, so is the largest; a NaN is in
// the sum.
template <class A>
struct SoftmaxPart {
    A largest, sum;
};

template <class A>
HYBRIDOPS_INLINE SoftmaxPart<A> softmax_part(const A* x, int64_t vectors) {
    constexpr A lowest = -std::numeric_limits<A>::infinity();
    Simd<A> largest = Simd<A>{} + lowest;
    for (int64_t v = 0; v < vectors; ++v) {
        const Simd<A> next = load(x + v * lanes<A>);
        largest = next > largest ? next : largest;
    }
    A part[lanes<A>];
    store(part, largest);
    for (int width = lanes<A> / 2; width > 0; width /= 2)
        for (int l = 0; l < width; ++l) part[l] = part[l + width] > part[l] ? part[l + width] : part[l];
    const A shift = part[0] == lowest ? A(0) : part[0];
    Simd<A> sum = {};
    for (int64_t v = 0; v < vectors; ++v) sum += exp(load(x + v * lanes<A>) - shift);
    return {part[0], sum_lanes<A>(sum)};
}

// Of all parts, in their order: the largest, and the logarithm of the sum. NaN where torch.log_softmax has NaN.
template <class A>
SoftmaxPart<A> log_sum(const SoftmaxPart<A>* parts, int64_t count) {
    A largest = -std::numeric_limits<A>::infinity(), sum = 0;
    for (int64_t i = 0; i < count; ++i) largest = std::max(largest, parts[i].largest);
    for (int64_t i = 0; i < count; ++i) sum += parts[i].sum * std::exp(parts[i].largest - largest);
    return {largest, std::log(sum)};
}

// A thread takes groups of outputs, as in `linear`, and keeps the largest of what it saw; parts of the softmax are those of a
// group, whoever took it, so that the sum is always the same.
template <class T, class A, class E>
void likeliest_with(const LinearArgs<T>& a, int64_t count, A* values, int64_t* indices) {
    using Product = PlainProduct<A, E>;
    const auto product = linear_in<A, E>(a.packed, a.outputs, a.inputs);
    const LinearRows<T, A, E> x(a);
    const int64_t groups = product.groups();
    const Buffer<SoftmaxPart<A>> memory(a.rows * groups);
    SoftmaxPart<A>* const parts = memory.data();
    const LargestOfRows<A> found(values, indices, a.rows, count);
    found.clear();
    std::mutex adding;
    parallel_for_dynamic(groups, [&](WorkQueue& queue) {
        const ProductRegisters<E> registers;
        struct Scratch {
            A *sums, *scores;
            LargestOfRows<A> seen;
        };
        const Scratch own = from_thread_scratch([&](Arena& arena) {
            A* sums = arena.take<A>(Product::sums(std::min(a.rows, max_linear_rows)));
            return Scratch{sums, arena.take<A>(Product::width), LargestOfRows<A>(arena, a.rows, count)};
        });
        own.seen.clear();
        for (int64_t group; queue.take(group);) {
            const int64_t begin = group * Product::width;
            x.in_pieces([&](int64_t first, int64_t rows, const E* const* operands) {
                product.one_group(own.sums, operands, nullptr, rows, group,
                                  [&](int64_t row, int64_t at, int64_t lanes_there, Simd<A> score) {
                                      if (a.bias) score += load_lanes<A>(a.bias + at, lanes_there);
                                      for (int64_t l = lanes_there; l < lanes<A>; ++l)
                                          score[l] = -std::numeric_limits<A>::infinity();
                                      store(own.scores + at - begin, score);
                                      if (at + lanes<A> < std::min(begin + Product::width, a.outputs)) return;
                                      const int64_t there = at + lanes_there - begin;
                                      const auto part = softmax_part(own.scores, ceil_div(there, lanes<A>));
                                      parts[(first + row) * groups + group] = part;
                                      const auto seen = own.seen[first + row];
                                      if (!(part.largest > seen.least())) return;
                                      for (int64_t i = 0; i < there; ++i)
                                          if (own.scores[i] > seen.least()) seen.show(own.scores[i], begin + i);
                                  });
            });
        }
        const std::lock_guard<std::mutex> lock(adding);
        found.show(own.seen);
    });
    for (int64_t row = 0; row < a.rows; ++row) {
        found[row].fill_up();
        const auto total = log_sum(parts + row * groups, groups);
        for (int64_t i = 0; i < count; ++i)
            values[row * count + i] = (values[row * count + i] - total.largest) - total.sum;
    }
}

template <class T, class A = Accumulator<T>>
void likeliest(const LinearArgs<T>& a, int64_t count, A* values, int64_t* indices) {
    with_operands<T, A>([&](auto e) { likeliest_with<T, A, decltype(e)>(a, count, values, indices); });
}
