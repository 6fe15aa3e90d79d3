// The projection of a few rows, x W^T + b, with W as nn.Linear keeps it: nothing of it is packed that could be out of
// date. Part of additive_attention_kernels.h.

// Rows of W stand in a register tile where pixels do, and the rows of x, side by side in vectors, where weights do.
template <class A, class T>
struct Projection {
    int64_t rows, outputs, inputs;
    const T *x, *weight, *bias;  // (rows,inputs), (outputs,inputs), (outputs) or null
    T* out;                      // (rows,outputs)

    void operator()() const { rows <= lanes<A> ? run<1>() : run<2>(); }

   private:
    static constexpr int64_t block = 64;  // outputs of a unit of work: their sums stay in the L1 cache

    template <int N>  // vectors of a tile
    void run() const {
        constexpr int64_t width = N * lanes<A>;
        const int64_t groups = ceil_div(rows, width);
        const Buffer<A> columns(groups * inputs * width);
        transpose(columns.data(), groups, width);
        share_out(ceil_div(outputs, block) * groups, [&](Units& units) {
            constexpr int64_t tile_rows = tile_pixels<N>, length = chunk_length<A, A, N>;
            A* sums = static_cast<A*>(thread_scratch((block * width + tile_rows * length) * sizeof(A)));
            for (int64_t unit; units.take(unit);) {
                const int64_t group = unit % groups, first = unit / groups * block;
                const int64_t count = std::min(block, outputs - first);
                multiply<N>(sums, sums + block * width, columns.data() + group * inputs * width, first, count);
                write(sums, width, group * width, first, count);
            }
        });
    }

    // x as [group of rows][input][row], zeros for rows that are not there
    void transpose(A* columns, int64_t groups, int64_t width) const {
        torch::stable::parallel_for(0, groups * width, 8, [&](int64_t begin, int64_t end) {
            for (int64_t row = begin; row < end; ++row) {
                A* to = columns + row / width * inputs * width + row % width;
                for (int64_t i = 0; i < inputs; ++i)
                    to[i * width] = row < rows ? static_cast<A>(x[row * inputs + i]) : A(0);
            }
        });
    }

    // sums (count,width) of a group of rows and `count` outputs from `first` on
    template <int N>
    void multiply(A* sums, A* scratch, const A* columns, int64_t first, int64_t count) const {
        constexpr int64_t width = N * lanes<A>, tile_rows = tile_pixels<N>;
        for_tiles(inputs, chunk_length<A, A, N>, [&](int64_t i, int64_t length) {
            for_tiles(count, tile_rows, [&](int64_t row, int64_t size) {
                const A* from[tile_rows];
                for (int64_t r = 0; r < size; ++r)
                    from[r] = in_accumulator_type(weight + (first + row + r) * inputs + i, scratch + r * length, length);
                tile_kernel<A, A, N>(size)(sums + row * width, i > 0, from, 0, 1, length, columns + i * width);
            });
        });
    }

    static const A* in_accumulator_type(const T* from, A* scratch, int64_t length) {
        if constexpr (std::is_same_v<A, T>) {
            return from;
        } else {
            for (int64_t i = 0; i < length; i += lanes<A>) {
                const int64_t count = lanes_of<A>(length - i);
                store_lanes<A>(scratch + i, load_lanes<A>(from + i, count), count);
            }
            return scratch;
        }
    }

    void write(const A* sums, int64_t width, int64_t first_row, int64_t first, int64_t count) const {
        for (int64_t r = 0; r < std::min(width, rows - first_row); ++r) {
            T* to = out + (first_row + r) * outputs + first;
            for (int64_t o = 0; o < count; ++o)
                to[o] = static_cast<T>(sums[o * width + r] + (bias ? static_cast<A>(bias[first + o]) : A(0)));
        }
    }
};

template <class A, class T>
void project(T* out, const T* x, const T* weight, const T* bias, int64_t rows, int64_t outputs, int64_t inputs) {
    Projection<A, T>{rows, outputs, inputs, x, weight, bias, out}();
}
