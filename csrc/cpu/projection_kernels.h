// The projection of a few rows, x W^T + b, with W packed once for many calls; part of additive_attention_kernels.h.

// Groups of outputs, each for all rows of a block: as [group][input][output], zeros for outputs that are not there.
template <class A>
struct PackedProjection {
    static constexpr int vectors = 2, tile_rows = tile_pixels<vectors>;  // a register tile
    static constexpr int64_t width = vectors * lanes<A>, block_rows = 64;

    int64_t outputs, inputs;
    A* weights;

    template <class T>
    void pack(const T* weight) const {
        torch::stable::parallel_for(0, ceil_div(outputs, width), 1, [&](int64_t begin, int64_t end) {
            for (int64_t first = begin * width; first < end * width; first += lanes<A>) {
                A* out = weights + first / width * inputs * width + first % width;
                const int64_t count = lanes_of<A>(outputs - first);
                for (int64_t i = 0; i < inputs; ++i)
                    store(out + i * width, load_lanes<A>(weight + first * inputs + i, count, inputs));
            }
        });
    }

    // out (rows, outputs) = x (rows, inputs) W^T + bias (outputs; null = none)
    template <class T>
    void operator()(T* out, const A* x, const T* bias, int64_t rows) const {
        const int64_t groups = ceil_div(outputs, width);
        share_out(ceil_div(rows, block_rows) * groups, [&](Units& units) {
            A* sums = static_cast<A*>(thread_scratch(block_rows * width * sizeof(A)));
            for (int64_t unit; units.take(unit);) {
                const int64_t group = unit % groups, first = unit / groups * block_rows;
                const int64_t count = std::min(block_rows, rows - first);
                multiply(sums, x + first * inputs, weights + group * inputs * width, count);
                for (int64_t j = 0; j < width; j += lanes<A>) {
                    const int64_t column = group * width + j;
                    const int64_t size = lanes_of<A>(outputs - column);
                    const Simd<A> start = bias ? load_lanes<A>(bias + column, size) : Simd<A>{};
                    for (int64_t i = 0; i < count; ++i)
                        store_lanes<A>(out + (first + i) * outputs + column, load(sums + i * width + j) + start, size);
                }
            }
        });
    }

   private:
    // sums (rows, width) of one group
    void multiply(A* sums, const A* x, const A* group, int64_t rows) const {
        for_tiles(inputs, chunk_length<A, A, vectors>, [&](int64_t i, int64_t length) {
            const A* chunk = group + i * width;
            Prefetch<A> next_chunk(chunk + length * width, length * width, ceil_div(rows, tile_rows));
            for_tiles(rows, tile_rows, [&](int64_t row, int64_t count) {
                next_chunk.some();
                const A* from[tile_rows];
                for (int64_t r = 0; r < count; ++r) from[r] = x + (row + r) * inputs + i;
                tile_kernel<A, A, vectors>(count)(sums + row * width, i > 0, from, 0, 1, length, chunk);
            });
        });
    }
};

template <class A>
void set_projection_width(int64_t& width) {
    width = PackedProjection<A>::width;
}

template <class A, class T>
void pack_projection(A* packed, const T* weight, int64_t outputs, int64_t inputs) {
    PackedProjection<A>{outputs, inputs, packed}.pack(weight);
}

template <class A, class T>
void project(T* out, const T* x, A* packed, const T* bias, int64_t rows, int64_t outputs, int64_t inputs) {
    const PackedProjection<A> projection{outputs, inputs, packed};
    if constexpr (std::is_same_v<A, T>) {
        projection(out, x, bias, rows);
    } else {
        const Buffer<A> wide(rows * inputs);
        for (int64_t i = 0; i < rows * inputs; i += lanes<A>) {
            const int64_t count = lanes_of<A>(rows * inputs - i);
            store_lanes<A>(wide.data() + i, load_lanes<A>(x + i, count), count);
        }
        projection(out, wide.data(), bias, rows);
    }
}
