// What convolutions and their weight gradients are made of: register tiles, blocks of images and patches of them. For one
// instruction set: included by convolution_kernels.h, so inside a namespace.

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
    static HYBRIDOPS_INLINE void accumulate(Simd<float>& sum, Vector x, Vector y) { add_bfloat16_products(sum, x, y); }
};
#endif

// Sums start from zero and are then added to memory, because the error of a sum grows with its length.
template <class A, class V, int P, int N>
HYBRIDOPS_INLINE void add_to_memory(A* out, const V (&sums)[P][N]) {
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
// p's run; runs of the next kernel rows follow row_stride apart; weights follow each other.
template <class A, class E, int N, int P>
void accumulate_tile(A* partial, bool add, const E* const* pixels, int64_t row_stride, int64_t rows, int64_t length,
                     const E* w) {
    using Op = Operands<A, E>;
    using Vector = typename Op::Vector;
    const E* pixel[P];
    for (int p = 0; p < P; ++p) pixel[p] = pixels[p];
    Simd<A> sums[P][N];
    clear(sums);
    const auto weights = [&](int n) { return Op::each(w + n * lanes<A> * Op::depth); };
    for (int64_t row = 0; row < rows; ++row) {
        const int64_t begin = row * row_stride;
#pragma GCC unroll 2  // fewer instructions a multiplication: they count where another thread shares the core
        for (int64_t j = begin; j < begin + length; j += Op::depth, w += N * lanes<A> * Op::depth) {
            // hold the smaller set in registers, stream the other
            if constexpr (P < N) {
                Vector x[P];
                for (int p = 0; p < P; ++p) x[p] = Op::all(pixel[p] + j);
                for (int n = 0; n < N; ++n) {
                    Vector weight = weights(n);
                    hold(weight);
                    for (int p = 0; p < P; ++p) Op::accumulate(sums[p][n], x[p], weight);
                }
            } else {
                Vector weight[N];
                for (int n = 0; n < N; ++n) hold(weight[n] = weights(n));
                for (int p = 0; p < P; ++p) {
                    const Vector x = Op::all(pixel[p] + j);
                    for (int n = 0; n < N; ++n) Op::accumulate(sums[p][n], x, weight[n]);
                }
            }
        }
    }
    if (add) {
        add_to_memory(partial, sums);
    } else {
        for (int i = 0; i < P * N; ++i) store(partial + i * lanes<A>, sums[i / N][i % N]);
    }
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

// Brings what is read next into the L2 cache, some of it at a time: in between, what is there is read again and again, and
// the processor does not see what follows.
template <class E>
class Prefetch {
   public:
    Prefetch(const E* next, int64_t size, int64_t times) : next_(next), lines_(ceil_div(size, times * cache_line<E>)) {}

    HYBRIDOPS_INLINE void some() {
        for (int64_t i = 0; i < lines_; ++i, next_ += cache_line<E>) __builtin_prefetch(next_, 0, 2);
    }

   private:
    const E* next_;
    int64_t lines_;
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

// One input of a convolution, as operands of type E. The storage type is known behind row() alone.
template <class E>
struct Source {
    int64_t channels;
    // pixels [x0, x1) of a row of image b, channels-last, `stride` a pixel
    virtual void row(E* out, int64_t stride, int64_t b, int64_t y, int64_t x0, int64_t x1) const = 0;

   protected:
    explicit Source(int64_t channels) : channels(channels) {}
};

// Images (b, c, y, x) by their strides.
template <class T, class E>
struct StridedSource final : Source<E> {
    const T* data;
    int64_t batch, channel, y, x;

    StridedSource(const T* data, int64_t batch, int64_t channel, int64_t y, int64_t x, int64_t channels)
        : Source<E>(channels), data(data), batch(batch), channel(channel), y(y), x(x) {}

    void row(E* out, int64_t stride, int64_t b, int64_t at, int64_t x0, int64_t x1) const override {
        const int64_t count = this->channels;
        const T* in = data + b * batch + at * y + x0 * x;
        if ((channel == 1 || count == 1) && x == count && stride == count) {
            convert(out, in, (x1 - x0) * count);
        } else if (channel == 1) {
            for (int64_t i = 0; i < x1 - x0; ++i) convert(out + i * stride, in + i * x, count);
        } else {
            for (int64_t c = 0; c < count; ++c)
                for (int64_t i = 0; i < x1 - x0; ++i) out[i * stride + c] = static_cast<E>(in[i * x + c * channel]);
        }
    }

    static void convert(E* out, const T* in, int64_t count) {
        if constexpr (std::is_same_v<T, E>) {
            std::copy(in, in + count, out);
        } else {
            int64_t i = 0;
            for (; i + lanes<E> <= count; i += lanes<E>) store(out + i, load_lanes<E>(in + i, lanes<E>));
            for (; i < count; ++i) out[i] = static_cast<E>(in[i]);
        }
    }
};

// One step of a sequence.
template <class E, class T>
StridedSource<T, E> images_at(const Strided<T>& x, int64_t t, int64_t channels) {
    return {x.data + t * x.time, x.batch, x.channel, x.y, x.x, channels};
}

// Channels-last images of a (B,Y,X,channels) array.
template <class E, class T>
StridedSource<T, E> channels_last(const T* data, const ConvShape& shape, int64_t channels) {
    const int64_t row = shape.width * channels;
    return {data, shape.height * row, 1, row, channels, channels};
}

// Copies rows x cols pixels from (y0, x0) on, the channels of the sources (null: none) side by side; zeros outside the image
// and in what `stride` leaves over beside the channels.
template <class E>
void copy_patch(E* out, std::initializer_list<const Source<E>*> sources, int64_t stride, const ConvShape& shape,
                int64_t b, int64_t y0, int64_t x0, int64_t rows, int64_t cols) {
    const int64_t from = std::clamp<int64_t>(x0, 0, shape.width),
                  to = std::clamp<int64_t>(x0 + cols, from, shape.width);
    for (int64_t y = y0; y < y0 + rows; ++y, out += cols * stride) {
        if (y < 0 || y >= shape.height || from == to) {
            std::fill(out, out + cols * stride, E(0));
            continue;
        }
        std::fill(out, out + (from - x0) * stride, E(0));
        std::fill(out + (to - x0) * stride, out + cols * stride, E(0));
        E *const inside = out + (from - x0) * stride, *channel = inside;
        for (const Source<E>* source : sources)
            if (source) {
                source->row(channel, stride, b, y, from, to);
                channel += source->channels;
            }
        const int64_t rest = stride - (channel - inside);
        for (int64_t x = 0; rest > 0 && x < to - from; ++x) std::fill_n(channel + x * stride, rest, E(0));
    }
}

// Images are cut into blocks of whole or part rows of cells, a cell being a pixel or a tile of them; a block is a unit of
// work for a thread.
class Blocks {
   public:
    struct Cell {
        int64_t rows, cols;
    };
    struct Block {
        int64_t image, y, x;  // of its first pixel
        int64_t rows, cols;   // in cells
    };

    Blocks(const ConvShape& s, Cell cell, int64_t wanted_cells, int64_t wanted_units,
           int64_t most_patch_pixels = std::numeric_limits<int64_t>::max())
        : cell_(cell), height_(ceil_div(s.height, cell.rows)), width_(ceil_div(s.width, cell.cols)) {
        across_ = ceil_div(width_, 64 / cell.cols);
        cols_ = ceil_div(width_, across_);
        const int64_t fit = most_patch_pixels / (cols_ * cell.cols + s.kernel_w - 1) - (s.kernel_h - 1);
        rows_ = std::max<int64_t>(1, std::min<int64_t>({height_, wanted_cells / cols_, fit / cell.rows}));
        while (rows_ > 1 && s.batch * across_ * ceil_div(height_, rows_) < wanted_units) rows_ = (rows_ + 1) / 2;
        down_ = ceil_div(height_, rows_);
    }

    int64_t of_image() const { return down_ * across_; }
    int64_t most_rows() const { return rows_; }
    int64_t most_cols() const { return cols_; }
    Block operator[](int64_t index) const {
        const int64_t row = index / across_ % down_ * rows_, col = index % across_ * cols_;
        return {index / of_image(), row * cell_.rows, col * cell_.cols, std::min(rows_, height_ - row),
                std::min(cols_, width_ - col)};
    }

   private:
    Cell cell_;
    int64_t height_, width_, rows_, cols_, down_, across_;
};
