// 'Same' convolutions of images for one instruction set, with an epilogue. Included by conv_lstm_kernels.h, so inside a
// namespace.
//
// A convolution is an implicit matrix product: channels-last patches of the inputs (padded, widened to the accumulator
// type) times weights packed so that P pixels x N vectors of output channels stay in registers while the reduction runs.
// 3 x 3 and 5 x 5 kernels can go through Winograd's minimal filtering (../math/winograd.h), with 2.25 to 4 times fewer
// multiplications: then there is one such product for each of its points, of transformed patches by transformed weights.

// Pixels of a register tile beside N vectors: accumulators fill three quarters of the registers (the rest hold weights
// and inputs); more than 8 pixels would run out of address registers.
template <int N>
inline constexpr int tile_pixels = std::min(HYBRIDOPS_REGISTERS * 3 / 4 / N, 8);

// Reduction steps after which the accumulators of a block are set aside: the weights of a chunk stay in the L1 cache
// while every pixel of the block passes over them, and the rounding error of a sum of sums is less than that of one.
template <class A, int N>
inline constexpr int64_t chunk_steps = std::min(16 * 1024 / (N * HYBRIDOPS_VECTOR_BYTES), std::max(32 * N, 64));

// partial (P,N,lanes) += the pixels' runs times the weights. `pixel[p]` points to the first element of pixel p's run; runs of
// the next kernel rows follow row_stride apart; weights follow each other.
template <class A, int N, int P>
void accumulate_tile(A* partial, const A* const* pixels, int64_t row_stride, int64_t rows, int64_t length, const A* w) {
    const A* pixel[P];
    for (int p = 0; p < P; ++p) pixel[p] = pixels[p];
    Simd<A> acc[P][N] = {};  // from zero: the error of a sum grows with its length
    for (int i = 0; i < P * N; ++i) hold(acc[i / N][i % N]);
    for (int64_t row = 0; row < rows; ++row) {
        for (int64_t j = row * row_stride; j < row * row_stride + length; ++j, w += N * lanes<A>) {
            // hold the smaller set in registers, stream the other
            if constexpr (P < N) {
                Simd<A> x[P];
                for (int p = 0; p < P; ++p) x[p] = broadcast(pixel[p][j]);
                for (int n = 0; n < N; ++n) {
                    Simd<A> weight = load(w + n * lanes<A>);
                    hold(weight);
                    for (int p = 0; p < P; ++p) acc[p][n] += x[p] * weight;
                }
            } else {
                Simd<A> weight[N];
                for (int n = 0; n < N; ++n) hold(weight[n] = load(w + n * lanes<A>));
                for (int p = 0; p < P; ++p) {
                    const Simd<A> x = broadcast(pixel[p][j]);
                    for (int n = 0; n < N; ++n) acc[p][n] += x * weight[n];
                }
            }
        }
    }
    for (int p = 0; p < P; ++p)
        for (int n = 0; n < N; ++n) {
            A* to = partial + (p * N + n) * lanes<A>;
            store(to, load(to) + acc[p][n]);
        }
}

template <class A>
using TileKernel = void (*)(A*, const A* const*, int64_t, int64_t, int64_t, const A*);

// The kernel for `count` pixels, 1 <= count <= P.
template <class A, int N, int P = tile_pixels<N>>
TileKernel<A> tile_kernel(int64_t count) {
    if constexpr (P > 1) {
        if (count < P) return tile_kernel<A, N, P - 1>(count);
    }
    return accumulate_tile<A, N, P>;
}

// f(first, count) for tiles of at most `most` that differ by one at the most: no short tail leaves the multipliers idle.
template <class F>
HYBRIDOPS_INLINE void for_tiles(int64_t total, int64_t most, const F& f) {
    const int64_t tiles = (total + most - 1) / most;
    for (int64_t tile = 0; tile < tiles; ++tile) {
        const int64_t first = tile * total / tiles;
        f(first, (tile + 1) * total / tiles - first);
    }
}

// One input of a convolution. The storage type is known behind row() alone.
template <class A>
struct Source {
    int64_t channels;
    // pixels [x0, x1) of a row of image b as channels-last accumulators, `stride` a pixel
    virtual void row(A* out, int64_t stride, int64_t b, int64_t y, int64_t x0, int64_t x1) const = 0;

   protected:
    explicit Source(int64_t channels) : channels(channels) {}
};

// Images (b, c, y, x) by their strides.
template <class T, class A>
struct StridedSource final : Source<A> {
    const T* data;
    int64_t batch, channel, y, x;

    StridedSource(const T* data, int64_t batch, int64_t channel, int64_t y, int64_t x, int64_t channels)
        : Source<A>(channels), data(data), batch(batch), channel(channel), y(y), x(x) {}

    void row(A* out, int64_t stride, int64_t b, int64_t at, int64_t x0, int64_t x1) const override {
        const int64_t count = this->channels;
        const T* in = data + b * batch + at * y + x0 * x;
        if ((channel == 1 || count == 1) && x == count && stride == count) {
            convert(out, in, (x1 - x0) * count);
        } else if (channel == 1) {
            for (int64_t i = 0; i < x1 - x0; ++i) convert(out + i * stride, in + i * x, count);
        } else {
            for (int64_t c = 0; c < count; ++c)
                for (int64_t i = 0; i < x1 - x0; ++i) out[i * stride + c] = static_cast<A>(in[i * x + c * channel]);
        }
    }

    static void convert(A* out, const T* in, int64_t count) {
        int64_t i = 0;
        for (; i + lanes<A> <= count; i += lanes<A>) store(out + i, load_lanes<A>(in + i, lanes<A>));
        for (; i < count; ++i) out[i] = static_cast<A>(in[i]);
    }
};

// Channels-last images of a (B,Y,X,channels) array.
template <class A, class T>
StridedSource<T, A> channels_last(const T* data, const ConvShape& shape, int64_t channels) {
    const int64_t row = shape.width * channels;
    return {data, shape.height * row, 1, row, channels, channels};
}

// Copies rows x cols pixels from (y0, x0) on, zeros outside the image and in what `stride` leaves over beside the channels.
template <class A>
void copy_patch(A* out, const Source<A>& source, int64_t stride, const ConvShape& shape, int64_t b, int64_t y0,
                int64_t x0, int64_t rows, int64_t cols) {
    const int64_t from = std::clamp<int64_t>(x0, 0, shape.width),
                  to = std::clamp<int64_t>(x0 + cols, from, shape.width);
    for (int64_t y = y0; y < y0 + rows; ++y, out += cols * stride) {
        if (y < 0 || y >= shape.height || from == to) {
            std::fill(out, out + cols * stride, A(0));
            continue;
        }
        std::fill(out, out + (from - x0) * stride, A(0));
        std::fill(out + (to - x0) * stride, out + cols * stride, A(0));
        if (stride > source.channels)
            for (int64_t x = from - x0; x < to - x0; ++x)
                std::fill(out + x * stride + source.channels, out + (x + 1) * stride, A(0));
        source.row(out + (from - x0) * stride, stride, b, y, from, to);
    }
}

inline constexpr int64_t most_finished = 16;  // pixels at a time: a register tile's, or those of Winograd's tile

// What becomes of the sums of a convolution.
template <class A>
struct Epilogue {
    // where the sums of a group of outputs begin
    virtual void start(int64_t group, A* sums, int64_t width) const {
        (void)group;
        std::fill(sums, sums + width, A(0));
    }
    // complete sums (count, width) of at most most_finished pixels, numbered through the batch
    virtual void finish(int64_t group, const int64_t* pixels, int64_t count, const A* sums) const = 0;
};

// Images are cut into blocks of whole or part rows of cells, a cell being a square of pixels; a block is a unit of work
// for a thread.
struct Blocks {
    int64_t rows, cols, down, across, batch;  // in cells; blocks of an image down and across
    Blocks(const ConvShape& s, int64_t cell, int64_t wanted_cells, int64_t wanted_units,
           int64_t most_patch_pixels = std::numeric_limits<int64_t>::max()) {
        batch = s.batch;
        const int64_t height = (s.height + cell - 1) / cell, width = (s.width + cell - 1) / cell;
        cols = std::min(width, 64 / cell);
        across = (width + cols - 1) / cols;
        cols = (width + across - 1) / across;
        const int64_t fit = most_patch_pixels / (cols * cell + s.kernel_w - 1) - (s.kernel_h - 1);
        rows = std::max<int64_t>(1, std::min<int64_t>({height, wanted_cells / cols, fit / cell}));
        while (rows > 1 && batch * across * ((height + rows - 1) / rows) < wanted_units) rows = (rows + 1) / 2;
        down = (height + rows - 1) / rows;
    }
    int64_t units() const { return batch * down * across; }
};

// Σ_k coefficients[k] x[k * stride], once inlined and unrolled without the zeros and ones.
template <int Count, class V>
HYBRIDOPS_INLINE V combine(const double* coefficients, const V* x, int stride) {
    V sum = {};
    bool first = true;
#pragma GCC unroll 8
    for (int k = 0; k < Count; ++k) {
        if (coefficients[k] == 0) continue;
        const V term = x[k * stride] * static_cast<Element<V>>(coefficients[k]);
        sum = first ? term : sum + term;
        first = false;
    }
    return sum;
}

// out = matrix * in * matrix^T
template <const auto& matrix, class V, int Rows, int Cols>
HYBRIDOPS_INLINE void transform(const V (&in)[Cols][Cols], V (&out)[Rows][Rows]) {
    V half[Rows][Cols];
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
        for (int c = 0; c < Cols; ++c) half[r][c] = combine<Cols>(matrix.at[r], &in[0][c], Cols);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 8
        for (int c = 0; c < Rows; ++c) out[r][c] = combine<Cols>(matrix.at[c], half[r], 1);
}

// Outputs along a side of Winograd's tiles, at most `allowed`; 0 = direct. 4, and what is less exact than twice a plain sum's
// error, wait for that. So do tiles of 5 x 5 kernels that sum over few channels: there the plain sum is more exact.
inline int64_t winograd_tile(const ConvShape& shape, int64_t channels, int64_t allowed) {
    if (shape.kernel_h != shape.kernel_w) return 0;
    if (shape.kernel_h == 3) return allowed;
    return shape.kernel_h == 5 && (channels >= 48 || allowed >= 4) ? std::min<int64_t>(allowed, 2) : 0;
}

// f(Winograd<M,R>{}) for square kernels of 3 or 5 taps and tiles of M x M outputs; nothing if there is none for them.
template <class F>
void with_winograd(int64_t taps, int64_t outputs, const F& f) {
    if (taps == 3 && outputs == 2) f(Winograd<2, 3>{});
    if (taps == 3 && outputs == 4) f(Winograd<4, 3>{});
    if (taps == 5 && outputs == 2) f(Winograd<2, 5>{});
}

// Winograd's rounding error goes by the largest value of a tile, whichever outputs it is for, and an inf or NaN spreads over
// the whole tile. So tiles with values beyond these limits are summed directly.
template <class A>
struct TileLimits {
    A within;     // up to here all is well
    A times_rms;  // beyond it, up to so many times the tile's root mean square

    bool hold(A largest, A mean_square) const {
        if (!(largest < A(1e30)) || !(mean_square >= 0)) return false;
        return largest <= within || largest * largest <= times_rms * times_rms * mean_square;
    }
};

// The taps of one output channel for one input channel, by their strides; null = zeros.
template <class T>
struct KernelTaps {
    const T* data;
    int64_t y, x;

    T at(int64_t ky, int64_t kx) const { return data ? data[ky * y + kx * x] : T(0); }
};

// One 'same' convolution of up to two sources, N vectors of outputs a group. Weights are packed once.
template <class A, int N>
class Convolution {
   public:
    Convolution(const Convolution&) = delete;

    // weight(group, column, c) -> KernelTaps: c counts through the sources' channels, column through a group's width.
    // tile: outputs of Winograd's tiles along each dimension, 0 = direct
    template <class Weight>
    Convolution(const ConvShape& shape, std::array<int64_t, 2> channels, int64_t groups, int64_t tile,
                TileLimits<A> limits, const Weight& weight)
        : shape_(shape), channels_(channels), groups_(groups), limits_(limits) {
        pack_direct_ = [this, weight] { pack_direct(weight); };
        if constexpr (sizeof(A) == 4)
            with_winograd(shape.kernel_h, tile, [&](auto w) {
                using W = decltype(w);
                if (pack_winograd<W>(weight)) run_ = &Convolution::run_winograd<W>;
            });
        if (!run_) {
            run_ = &Convolution::run_direct;
            pack_direct_();
        }
    }

    // The sums of a few pixels at a time go to the epilogue. The order of summation does not depend on the blocks, so the
    // result does not depend on the number of threads. sources[1] may be null: zeros.
    void operator()(std::array<const Source<A>*, 2> sources, const Epilogue<A>& epilogue) const {
        (this->*run_)(sources, epilogue);
    }

   private:
    static constexpr int P = tile_pixels<N>;
    static constexpr int64_t width = N * lanes<A>;

    // A part of the reduction: kernel rows [row, row + rows) of a source, elements [begin, begin + length) of each row's
    // contiguous run of kernel_w * channels.
    struct Chunk {
        int source;
        int64_t row, rows, begin, length;
    };

    template <class Weight>
    void pack_direct(const Weight& weight) {  // [source][group][ky][kx][channel][N][lane]
        const int64_t taps = shape_.kernel_h * shape_.kernel_w;
        for (int i = 0; i < 2; ++i) {
            const int64_t channels = channels_[i], first = i * channels_[0];
            direct_[i].emplace(groups_ * taps * channels * width);
            torch::stable::parallel_for(0, groups_ * taps, 1, [&](int64_t begin, int64_t end) {
                A* out = direct_[i]->data() + begin * channels * width;
                for (int64_t j = begin; j < end; ++j)
                    for (int64_t c = first; c < first + channels; ++c)
                        for (int64_t column = 0; column < width; ++column)
                            *out++ = static_cast<A>(
                                weight(j / taps, column, c).at(j % taps / shape_.kernel_w, j % taps % shape_.kernel_w));
            });
        }
    }

    template <class W, class Weight>
    bool pack_winograd(const Weight& weight) {  // [group][point][channel][N][lane]; false: not finite
        using V = Simd<double>;
        typedef float Singles __attribute__((vector_size(HYBRIDOPS_VECTOR_BYTES / 2), aligned(4), may_alias));
        constexpr int R = W::taps, size = W::size;
        const int64_t channels = channels_[0] + channels_[1];
        winograd_.emplace(groups_ * size * size * channels * width);
        std::atomic<bool> finite = true;
        torch::stable::parallel_for(0, groups_ * channels, 4, [&](int64_t begin, int64_t end) {
            V checked = {};
            for (int64_t i = begin; i < end; ++i) {
                const int64_t group = i / channels, c = i % channels;
                A* out = winograd_->data() + (group * size * size * channels + c) * width;
                for (int64_t column = 0; column < width; column += lanes<double>, out += lanes<double>) {
                    V g[R][R], u[size][size];
                    for (int l = 0; l < lanes<double>; ++l) {
                        const auto taps = weight(group, column + l, c);
                        for (int y = 0; y < R; ++y)
                            for (int x = 0; x < R; ++x)
                                reinterpret_cast<double*>(&g[y][x])[l] = static_cast<double>(taps.at(y, x));
                    }
                    transform<W::kernel>(g, u);  // in double: an error here would be in every product
                    for (int point = 0; point < size * size; ++point) {
                        const V value = u[point / size][point % size];
                        checked += value * 0;
                        *reinterpret_cast<Singles*>(out + point * channels * width) =
                            __builtin_convertvector(value, Singles);
                    }
                }
            }
            if (sum_lanes<double>(checked) != 0) finite = false;  // NaN
        });
        return finite;
    }

    void run_direct(std::array<const Source<A>*, 2> sources, const Epilogue<A>& epilogue) const {
        std::vector<Chunk> chunks;
        int64_t channels = 0;
        for (int i = 0; i < 2 && sources[i]; ++i) {
            channels += channels_[i];
            const int64_t run = shape_.kernel_w * channels_[i];
            const int64_t rows = std::clamp<int64_t>(chunk_steps<A, N> / run, 1, shape_.kernel_h);
            const int64_t parts = rows > 1 ? 1 : (run + chunk_steps<A, N> - 1) / chunk_steps<A, N>;
            for (int64_t row = 0; row < shape_.kernel_h; row += rows)
                for (int64_t part = 0; part < parts; ++part)
                    chunks.push_back({i, row, std::min(rows, shape_.kernel_h - row), part * run / parts,
                                      (part + 1) * run / parts - part * run / parts});
        }
        // about 256 pixels amortise the streaming of the weights; the padded patch should stay in the L2 cache
        const Blocks blocks(shape_, 1, 256, units_wanted(), 192 * 1024 / (channels * sizeof(A)));
        torch::stable::parallel_for(0, blocks.units(), 1, [&](int64_t begin, int64_t end) {
            const int64_t most = blocks.rows * blocks.cols;
            const int64_t patch_pixels = (blocks.rows + shape_.kernel_h - 1) * (blocks.cols + shape_.kernel_w - 1);
            int64_t* patch_pixel = static_cast<int64_t*>(thread_scratch(
                2 * sizeof(int64_t) * most + sizeof(A) * ((most + 1) * width + patch_pixels * channels)));
            int64_t* image_pixel = patch_pixel + most;
            A *partial = reinterpret_cast<A*>(image_pixel + most), *start = partial + most * width;
            A* patches[2] = {start + width, start + width + patch_pixels * channels_[0]};
            for (int64_t unit = begin; unit < end; ++unit) {
                const int64_t b = unit / (blocks.down * blocks.across);
                const int64_t y0 = unit / blocks.across % blocks.down * blocks.rows;
                const int64_t x0 = unit % blocks.across * blocks.cols;
                const int64_t rows = std::min(blocks.rows, shape_.height - y0);
                const int64_t cols = std::min(blocks.cols, shape_.width - x0);
                const int64_t pixels = rows * cols, pitch = cols + shape_.kernel_w - 1;
                for (int i = 0; i < 2 && sources[i]; ++i)
                    copy_patch(patches[i], *sources[i], channels_[i], shape_, b, y0 - shape_.kernel_h / 2,
                               x0 - shape_.kernel_w / 2, rows + shape_.kernel_h - 1, pitch);
                for (int64_t y = 0, q = 0; y < rows; ++y)
                    for (int64_t x = 0; x < cols; ++x, ++q) {
                        patch_pixel[q] = y * pitch + x;
                        image_pixel[q] = (b * shape_.height + y0 + y) * shape_.width + x0 + x;
                    }
                for (int64_t group = 0; group < groups_; ++group) {
                    epilogue.start(group, start, width);
                    for (int64_t q = 0; q < pixels; ++q) std::copy(start, start + width, partial + q * width);
                    for (const Chunk& chunk : chunks) {
                        const int64_t channels = channels_[chunk.source];
                        const A* patch = patches[chunk.source] + chunk.row * pitch * channels + chunk.begin;
                        const A* weights =
                            direct_[chunk.source]->data() +
                            ((group * shape_.kernel_h + chunk.row) * shape_.kernel_w * channels + chunk.begin) * width;
                        for_tiles(pixels, P, [&](int64_t q, int64_t count) {
                            const A* pixel[P];
                            for (int64_t p = 0; p < count; ++p) pixel[p] = patch + patch_pixel[q + p] * channels;
                            tile_kernel<A, N>(count)(partial + q * width, pixel, pitch * channels, chunk.rows,
                                                     chunk.length, weights);
                            if (&chunk == &chunks.back())
                                epilogue.finish(group, image_pixel + q, count, partial + q * width);
                        });
                    }
                }
            }
        });
    }

    // Transformed patches of a block [point][tile][channel], sums [point][tile][width].
    template <class W>
    void run_winograd(std::array<const Source<A>*, 2> sources, const Epilogue<A>& epilogue) const {
        constexpr int M = W::outputs, R = W::taps, size = W::size, points = size * size;
        using V = Simd<A>;
        const int64_t all_channels = channels_[0] + channels_[1];
        const int64_t channels = sources[1] ? all_channels : channels_[0];
        // in the patches channels fill whole vectors; a transformed row has room for what is written beyond its end
        int64_t padded[2] = {};
        for (int i = 0; i < 2 && sources[i]; ++i) padded[i] = (channels_[i] + lanes<A> - 1) / lanes<A> * lanes<A>;
        const int64_t row = (channels + 2 * lanes<A> - 1) / lanes<A> * lanes<A>;
        const int64_t bytes = points * row * static_cast<int64_t>(sizeof(A));
        // at least 32 tiles for each pass over the weights, more where they stay in the L2 cache
        const Blocks blocks(shape_, M, std::clamp<int64_t>(256 * 1024 / bytes, 32, 64), units_wanted());
        torch::stable::parallel_for(0, blocks.units(), 1, [&](int64_t begin, int64_t end) {
            const int64_t most = blocks.rows * blocks.cols;
            const int64_t patch_pixels = (blocks.rows * M + R - 1) * (blocks.cols * M + R - 1);
            A* transformed = static_cast<A*>(
                thread_scratch(sizeof(A) * (points * most * (row + width) + patch_pixels * (padded[0] + padded[1]) +
                                            (M * M + 1) * width) +
                               most));
            A *sums = transformed + points * most * row, *out = sums + points * most * width;
            A *start = out + M * M * width, *patches[2] = {start + width, start + width + patch_pixels * padded[0]};
            bool* good = reinterpret_cast<bool*>(patches[1] + patch_pixels * padded[1]);
            for (int64_t unit = begin; unit < end; ++unit) {
                const int64_t b = unit / (blocks.down * blocks.across);
                const int64_t y0 = unit / blocks.across % blocks.down * blocks.rows * M;
                const int64_t x0 = unit % blocks.across * blocks.cols * M;
                const int64_t tile_rows = std::min(blocks.rows, (shape_.height - y0 + M - 1) / M);
                const int64_t tile_cols = std::min(blocks.cols, (shape_.width - x0 + M - 1) / M);
                const int64_t tiles = tile_rows * tile_cols, pitch = tile_cols * M + R - 1;
                std::fill(good, good + tiles, true);
                for (int i = 0; i < 2 && sources[i]; ++i) {
                    copy_patch(patches[i], *sources[i], padded[i], shape_, b, y0 - R / 2, x0 - R / 2,
                               tile_rows * M + R - 1, pitch);
                    for (int64_t tile = 0; tile < tiles; ++tile) {
                        const A* corner = patches[i] + (tile / tile_cols * pitch + tile % tile_cols) * M * padded[i];
                        good[tile] &= transform_tile<W>(transformed + tile * row + i * channels_[0], tiles * row,
                                                        corner, pitch * padded[i], padded[i]);
                    }
                }
                for (int64_t group = 0; group < groups_; ++group) {
                    epilogue.start(group, start, width);
                    std::fill(sums, sums + points * tiles * width, A(0));
                    for (int point = 0; point < points; ++point)
                        for_tiles(channels, chunk_steps<A, N>, [&](int64_t c, int64_t length) {
                            const A* weights =
                                winograd_->data() + ((group * points + point) * all_channels + c) * width;
                            for_tiles(tiles, P, [&](int64_t tile, int64_t count) {
                                const A* pixel[P];
                                for (int64_t p = 0; p < count; ++p)
                                    pixel[p] = transformed + (point * tiles + tile + p) * row + c;
                                tile_kernel<A, N>(count)(sums + (point * tiles + tile) * width, pixel, 0, 1, length,
                                                         weights);
                            });
                        });
                    for (int64_t tile = 0; tile < tiles; ++tile) {
                        const int64_t y = tile / tile_cols * M, x = tile % tile_cols * M;
                        int64_t pixels[M * M], count = 0;
                        A* to[M * M];  // where the sums of an output go; null outside the image
                        for (int i = 0; i < M * M; ++i) {
                            const int64_t image_y = y0 + y + i / M, image_x = x0 + x + i % M;
                            const bool inside = image_y < shape_.height && image_x < shape_.width;
                            to[i] = inside ? out + count * width : nullptr;
                            if (inside) pixels[count++] = (b * shape_.height + image_y) * shape_.width + image_x;
                        }
                        if (good[tile]) {
                            for (int n = 0; n < N; ++n) {
                                V in[size][size], result[M][M];
                                for (int i = 0; i < points; ++i)
                                    in[i / size][i % size] = load(sums + (i * tiles + tile) * width + n * lanes<A>);
                                transform<W::output>(in, result);
                                const V first = load(start + n * lanes<A>);
                                for (int i = 0; i < M * M; ++i)
                                    if (to[i]) store(to[i] + n * lanes<A>, result[i / M][i % M] + first);
                            }
                        } else {
                            for (int i = 0; i < M * M; ++i) {
                                if (!to[i]) continue;
                                std::copy(start, start + width, to[i]);
                                sum_directly(to[i], group, patches, padded, pitch, y + i / M, x + i % M,
                                             sources[1] ? 2 : 1);
                            }
                        }
                        epilogue.finish(group, pixels, count, out);
                    }
                }
            }
        });
    }

    // every thread should find a few
    static int64_t units_wanted() { return 4 * static_cast<int64_t>(torch::stable::get_num_threads()); }

    // One tile of one source; false if it is beyond the limits.
    template <class W>
    bool transform_tile(A* out, int64_t point_stride, const A* corner, int64_t row_stride, int64_t channels) const {
        constexpr int size = W::size;
        using V = Simd<A>;
        V largest = {}, squares = {};
        for (int64_t c = 0; c < channels; c += lanes<A>) {
            V d[size][size], v[size][size];
            for (int y = 0; y < size; ++y)
                for (int x = 0; x < size; ++x) {
                    const V value = d[y][x] = load(corner + y * row_stride + x * channels + c);
                    squares += value * value;
                    largest = value > largest ? value : largest;
                    largest = -value > largest ? -value : largest;
                }
            transform<W::input>(d, v);
            for (int i = 0; i < size * size; ++i) store(out + i * point_stride + c, v[i / size][i % size]);
        }
        A most = 0;
        for (int l = 0; l < lanes<A>; ++l) most = std::max(most, largest[l]);
        return limits_.hold(most, sum_lanes<A>(squares) / (size * size * channels));  // a NaN is in the squares
    }

    void sum_directly(A* sums, int64_t group, A* const* patches, const int64_t* strides, int64_t pitch, int64_t y,
                      int64_t x, int sources) const {
        std::call_once(direct_packed_, pack_direct_);
        for (int i = 0; i < sources; ++i)
            for (int64_t tap = 0; tap < shape_.kernel_h * shape_.kernel_w; ++tap) {
                const A* pixel =
                    patches[i] + ((y + tap / shape_.kernel_w) * pitch + x + tap % shape_.kernel_w) * strides[i];
                accumulate_tile<A, N, 1>(
                    sums, &pixel, 0, 1, channels_[i],
                    direct_[i]->data() + (group * shape_.kernel_h * shape_.kernel_w + tap) * channels_[i] * width);
            }
    }

    ConvShape shape_;
    std::array<int64_t, 2> channels_;
    int64_t groups_;
    TileLimits<A> limits_;
    std::optional<Buffer<A>> direct_[2], winograd_;
    std::function<void()> pack_direct_;
    mutable std::once_flag direct_packed_;
    void (Convolution::*run_)(std::array<const Source<A>*, 2>, const Epilogue<A>&) const = nullptr;
};
