// The projection of a few rows, x W^T + b, with W as nn.Linear keeps it: nothing of it is packed that could be out of
// date. Part of additive_attention_kernels.h.

// Every output is a dot product along a row of x and a row of W, both contiguous.
template <class A, class T, class Out = T>
struct Projection {
    int64_t rows, outputs, inputs;
    const A* x;       // (rows,inputs)
    const T* weight;  // (outputs,inputs)
    const T* bias;    // (outputs), null = none
    Out* out;         // (rows,outputs)

    void operator()() const {
        parallel_for_dynamic(ceil_div(outputs, unit), [&](WorkQueue& queue) {
            A* scratch = static_cast<A*>(thread_scratch(scratch_count() * sizeof(A)));
            for (int64_t first; queue.take(first);) run(first * unit, std::min((first + 1) * unit, outputs), scratch);
        });
    }

    // The outputs [begin, end), on this thread
    void run(int64_t begin, int64_t end, A* scratch) const {
        for (int64_t o = begin; o < end; o += tile_outputs) all_rows(o, scratch);
    }

    int64_t scratch_count() const { return std::is_same_v<A, T> ? 0 : tile_outputs * inputs; }

   private:
    // Accumulators of a tile fill three quarters of the registers; the rest hold x and W.
    static constexpr int tile_outputs = 4, tile_rows = HYBRIDOPS_REGISTERS * 3 / 4 / tile_outputs;
    static constexpr int64_t unit = 16;  // outputs that a thread takes at a time: a cache line of the result

    void all_rows(int64_t first, A* scratch) const {
        const int64_t count = std::min<int64_t>(tile_outputs, outputs - first);
        const A* w[tile_outputs];
        for (int o = 0; o < tile_outputs; ++o) {  // outputs that are not there repeat the last one
            const int64_t there = std::min<int64_t>(o, count - 1);
            w[o] = in_accumulator_type(weight + (first + there) * inputs, scratch + o * inputs);
        }
        for_tiles(rows, tile_rows, [&](int64_t row, int64_t size) { tile<tile_rows>(size, row, first, count, w); });
    }

    // The kernel for `size` rows, 1 <= size <= R.
    template <int R>
    void tile(int64_t size, int64_t row, int64_t first, int64_t count, const A* const* w) const {
        if constexpr (R > 1) {
            if (size < R) return tile<R - 1>(size, row, first, count, w);
        }
        Simd<A> sums[R][tile_outputs];
        clear(sums);
        const A* from = x + row * inputs;
        const int64_t whole = inputs / lanes<A> * lanes<A>;
        for (int64_t i = 0; i < whole; i += lanes<A>) {
            for (int o = 0; o < tile_outputs; ++o) __builtin_prefetch(w[o] + tile_outputs * inputs + i, 0, 2);
            accumulate<false>(sums, from, w, i);
        }
        if (whole < inputs) accumulate<true>(sums, from, w, whole);
        for (int r = 0; r < R; ++r) {
            Four<A> sum;
            sum_lanes_of_four<A>(sum, sums[r]);
            Out* to = out + (row + r) * outputs + first;
            for (int64_t o = 0; o < count; ++o)
                to[o] = static_cast<Out>(bias ? sum[o] + static_cast<A>(bias[first + o]) : sum[o]);
        }
    }

    template <bool Partial, int R>  // Partial: the last inputs, fewer than a vector has
    HYBRIDOPS_INLINE void accumulate(Simd<A> (&sums)[R][tile_outputs], const A* from, const A* const* w,
                                     int64_t i) const {
        Simd<A> of_w[tile_outputs];
        for (int o = 0; o < tile_outputs; ++o) of_w[o] = Partial ? load_lanes<A>(w[o] + i, inputs - i) : load(w[o] + i);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            const A* p = from + r * inputs + i;
            const Simd<A> of_x = Partial ? load_lanes<A>(p, inputs - i) : load(p);
#pragma GCC unroll 4
            for (int o = 0; o < tile_outputs; ++o) sums[r][o] += of_x * of_w[o];
        }
    }

    const A* in_accumulator_type(const T* from, A* scratch) const {
        if constexpr (std::is_same_v<A, T>) {
            return from;
        } else {
            widen(scratch, from, inputs);
            return scratch;
        }
    }

   public:
    static void widen(A* to, const T* from, int64_t count) {
        for (int64_t i = 0; i < count; i += lanes<A>) {
            const int64_t size = lanes_of<A>(count - i);
            store_lanes<A>(to + i, load_lanes<A>(from + i, size), size);
        }
    }
};

template <class A, class T>
void project(T* out, const T* x, const T* weight, const T* bias, int64_t rows, int64_t outputs, int64_t inputs) {
    if constexpr (std::is_same_v<A, T>) {
        Projection<A, T>{rows, outputs, inputs, x, weight, bias, out}();
    } else {
        const Buffer<A> wide(rows * inputs);
        Projection<A, T>::widen(wide.data(), x, rows * inputs);
        Projection<A, T>{rows, outputs, inputs, wide.data(), weight, bias, out}();
    }
}
