// 'Same' convolutions of images for one instruction set: forward with an epilogue, transposed, and the gradient of the
// weights. Included by conv_lstm_kernels.h, so inside a namespace.
//
// A convolution is an implicit matrix product: channels-last patches of the inputs (padded, widened to the accumulator
// type) times weights packed so that P pixels x N vectors of output channels stay in registers while the reduction runs.

// Pixels of a register tile beside N vectors: accumulators fill three quarters of the registers (the rest hold weights
// and inputs); more than 8 pixels would run out of address registers.
template <int N>
inline constexpr int tile_pixels = std::min(HYBRIDOPS_REGISTERS * 3 / 4 / N, 8);

// Reduction steps after which the accumulators of a block are set aside: the weights of a chunk stay in the L1 cache
// while every pixel of the block passes over them.
template <class A, int N>
inline constexpr int64_t chunk_steps = 20 * 1024 / (N * HYBRIDOPS_VECTOR_BYTES);

// One input of a convolution: an image (b, c, y, x) by its strides and its packed weights.
template <class T, class A>
struct Source {
    const T* data;
    int64_t batch, channel, y, x;
    int64_t channels;
    const A* weights;  // [group][ky][kx][channel][N][lane]
};

// A part of the reduction: kernel rows [row, row + rows) of a source, elements [begin, begin + length) of each row's
// contiguous run of kernel_w * channels.
struct Chunk {
    int source;
    int64_t row, rows, begin, length;
};

// partial (P,N,lanes) += the pixels' runs times the weights. `pixel[p]` points to the first element of pixel p's run; runs of
// the next kernel rows follow row_stride apart; weights follow each other.
template <class A, int N, int P>
void accumulate_tile(A* partial, const A* const* pixels, int64_t row_stride, int64_t rows, int64_t length, const A* w) {
    const A* pixel[P];
    Simd<A> acc[P][N];
    for (int p = 0; p < P; ++p) {
        pixel[p] = pixels[p];
        for (int n = 0; n < N; ++n) acc[p][n] = load(partial + (p * N + n) * lanes<A>);
    }
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
        for (int n = 0; n < N; ++n) store(partial + (p * N + n) * lanes<A>, acc[p][n]);
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

// Images are cut into blocks of whole or part rows; a block is a unit of work for a thread.
struct Blocks {
    int64_t rows, cols, down, across;
    Blocks(const ConvShape& s, int64_t bytes_per_pixel) {
        // about 256 pixels amortise the streaming of the weights; the padded patch should stay in the L2 cache; and
        // every thread should find a few units.
        constexpr int64_t pixels = 256, patch_bytes = 192 * 1024;
        cols = std::min<int64_t>(s.width, 64);
        across = (s.width + cols - 1) / cols;
        cols = (s.width + across - 1) / across;
        const int64_t fit = patch_bytes / (bytes_per_pixel * (cols + s.kernel_w - 1)) - (s.kernel_h - 1);
        rows = std::max<int64_t>(1, std::min<int64_t>({s.height, pixels / cols, fit}));
        const int64_t wanted = 4 * static_cast<int64_t>(torch::stable::get_num_threads());
        while (rows > 1 && s.batch * across * ((s.height + rows - 1) / rows) < wanted) rows = (rows + 1) / 2;
        down = (s.height + rows - 1) / rows;
    }
};

// Copies the patch under a block of output pixels, zeros outside the image, to channels-last accumulators.
template <class A, class T>
void copy_patch(A* out, const Source<T, A>& s, const ConvShape& shape, int64_t b, int64_t y0, int64_t x0, int64_t rows,
                int64_t cols) {
    const int64_t pitch = (cols + shape.kernel_w - 1) * s.channels;
    const int64_t first_x = x0 - shape.kernel_w / 2, last_x = first_x + cols + shape.kernel_w - 1;
    const int64_t from = std::max<int64_t>(first_x, 0), to = std::min(last_x, shape.width);
    for (int64_t r = 0; r < rows + shape.kernel_h - 1; ++r, out += pitch) {
        const int64_t y = y0 - shape.kernel_h / 2 + r;
        if (y < 0 || y >= shape.height || from >= to) {
            std::fill(out, out + pitch, A(0));
            continue;
        }
        std::fill(out, out + (from - first_x) * s.channels, A(0));
        std::fill(out + (to - first_x) * s.channels, out + pitch, A(0));
        const T* in = s.data + b * s.batch + y * s.y + from * s.x;
        A* inside = out + (from - first_x) * s.channels;
        if (s.channel == 1 || s.channels == 1) {
            for (int64_t x = 0; x < to - from; ++x)
                for (int64_t c = 0; c < s.channels; ++c) inside[x * s.channels + c] = static_cast<A>(in[x * s.x + c]);
        } else {
            for (int64_t c = 0; c < s.channels; ++c)
                for (int64_t x = 0; x < to - from; ++x)
                    inside[x * s.channels + c] = static_cast<A>(in[x * s.x + c * s.channel]);
        }
    }
}

// One 'same' convolution of up to two sources, N vectors of outputs a group. The sums of a few pixels at a time, complete,
// go to epilogue(group, image_pixel, count, sums (count, N*lanes)). The order of summation does not depend on the blocks,
// so the result does not depend on the number of threads.
template <class A, int N, class T, class Epilogue>
void convolve(const ConvShape& shape, const Source<T, A>* sources, int source_count, int64_t groups,
              const Epilogue& epilogue) {
    constexpr int P = tile_pixels<N>;
    constexpr int64_t width = N * lanes<A>;
    std::vector<Chunk> chunks;
    int64_t channels = 0;
    for (int i = 0; i < source_count; ++i) {
        channels += sources[i].channels;
        const int64_t run = shape.kernel_w * sources[i].channels;
        const int64_t rows = std::clamp<int64_t>(chunk_steps<A, N> / run, 1, shape.kernel_h);
        const int64_t parts = rows > 1 ? 1 : (run + chunk_steps<A, N> - 1) / chunk_steps<A, N>;
        for (int64_t row = 0; row < shape.kernel_h; row += rows)
            for (int64_t part = 0; part < parts; ++part)
                chunks.push_back({i, row, std::min(rows, shape.kernel_h - row), part * run / parts,
                                  (part + 1) * run / parts - part * run / parts});
    }
    const Blocks blocks(shape, channels * static_cast<int64_t>(sizeof(A)));
    const int64_t units = shape.batch * blocks.down * blocks.across;
    torch::stable::parallel_for(0, units, 1, [&](int64_t begin, int64_t end) {
        const int64_t most = blocks.rows * blocks.cols;
        const int64_t patch_pixels = (blocks.rows + shape.kernel_h - 1) * (blocks.cols + shape.kernel_w - 1);
        A* partial = static_cast<A*>(
            thread_scratch(sizeof(A) * (most * width + patch_pixels * channels) + 2 * sizeof(int64_t) * most));
        A* patches[2] = {partial + most * width, partial + most * width + patch_pixels * sources[0].channels};
        int64_t* patch_pixel = reinterpret_cast<int64_t*>(partial + most * width + patch_pixels * channels);
        int64_t* image_pixel = patch_pixel + most;
        for (int64_t unit = begin; unit < end; ++unit) {
            const int64_t b = unit / (blocks.down * blocks.across);
            const int64_t y0 = unit / blocks.across % blocks.down * blocks.rows;
            const int64_t x0 = unit % blocks.across * blocks.cols;
            const int64_t rows = std::min(blocks.rows, shape.height - y0);
            const int64_t cols = std::min(blocks.cols, shape.width - x0);
            const int64_t pixels = rows * cols, pitch = cols + shape.kernel_w - 1;
            for (int i = 0; i < source_count; ++i) copy_patch(patches[i], sources[i], shape, b, y0, x0, rows, cols);
            for (int64_t y = 0, q = 0; y < rows; ++y)
                for (int64_t x = 0; x < cols; ++x, ++q) {
                    patch_pixel[q] = y * pitch + x;
                    image_pixel[q] = (b * shape.height + y0 + y) * shape.width + x0 + x;
                }
            const int64_t tiles = (pixels + P - 1) / P;
            for (int64_t group = 0; group < groups; ++group) {
                for (int64_t q = 0; q < pixels; ++q) epilogue.start(group, partial + q * width, width);
                for (size_t i = 0; i < chunks.size(); ++i) {
                    const Chunk& chunk = chunks[i];
                    const Source<T, A>& s = sources[chunk.source];
                    const A* patch = patches[chunk.source] + chunk.row * pitch * s.channels + chunk.begin;
                    const A* weights =
                        s.weights +
                        ((group * shape.kernel_h + chunk.row) * shape.kernel_w * s.channels + chunk.begin) * width;
                    for (int64_t tile = 0; tile < tiles; ++tile) {
                        // tiles differ by at most one pixel: no short tail that would leave the multipliers idle
                        const int64_t q = tile * pixels / tiles, count = (tile + 1) * pixels / tiles - q;
                        const A* pixel[P];
                        for (int64_t p = 0; p < count; ++p) pixel[p] = patch + patch_pixel[q + p] * s.channels;
                        tile_kernel<A, N>(count)(partial + q * width, pixel, pitch * s.channels, chunk.rows,
                                                 chunk.length, weights);
                        if (i + 1 == chunks.size()) epilogue(group, image_pixel + q, count, partial + q * width);
                    }
                }
            }
        }
    });
}

// The transposed convolution as a convolution: kernel turned round, its inputs and outputs exchanged. weights (in, out,
// ky, kx); outputs in groups of N vectors.
template <class A, int N, class T>
void pack_transposed(A* out, const ConvWeights<T>& w, const ConvShape& shape, int64_t inputs, int64_t outputs) {
    constexpr int64_t width = N * lanes<A>;
    const int64_t groups = (outputs + width - 1) / width, taps = shape.kernel_h * shape.kernel_w;
    torch::stable::parallel_for(0, groups * taps, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            const int64_t group = i / taps, ky = shape.kernel_h - 1 - i % taps / shape.kernel_w;
            const int64_t kx = shape.kernel_w - 1 - i % shape.kernel_w;
            A* row = out + i * inputs * width;
            for (int64_t c = 0; c < inputs; ++c)
                for (int64_t o = group * width; o < (group + 1) * width; ++o)
                    *row++ = o < outputs ? static_cast<A>(w.data[c * w.out + o * w.in + ky * w.y + kx * w.x]) : A(0);
        }
    });
}

template <class A, class U>
struct StoreEpilogue {
    int64_t channels;
    U* out;  // (pixels, channels)
    int64_t group_channels;

    void start(int64_t, A* sums, int64_t width) const { std::fill(sums, sums + width, A(0)); }

    void operator()(int64_t group, const int64_t* pixels, int64_t pixel_count, const A* sums) const {
        const int64_t first = group * group_channels, count = std::min(group_channels, channels - first);
        for (int64_t i = 0; i < pixel_count; ++i, sums += group_channels)
            for (int64_t c = 0; c < count; ++c) out[pixels[i] * channels + first + c] = static_cast<U>(sums[c]);
    }
};

// f(std::integral_constant<int, N>): how many vectors of outputs make the best register tile for this many.
template <class A, class F>
void with_group_vectors(int64_t outputs, const F& f) {
    if (outputs <= lanes<A>) return f(std::integral_constant<int, 1>{});
    if constexpr (HYBRIDOPS_REGISTERS == 32) {
        if (outputs > 2 * lanes<A>) return f(std::integral_constant<int, 4>{});
    }
    f(std::integral_constant<int, 2>{});
}

// sums (P,N,lanes) += over the pixels, P neighbours of a pixel's run in the patch times N vectors of its gradient.
template <class A, int N, int P>
void weight_gradient_tile(A* sums, const A* patch, const int64_t* run_begin, const A* grad, int64_t pixels) {
    Simd<A> acc[P][N] = {};  // from zero for each block of pixels: the error of a sum grows with its length
    for (int64_t q = 0; q < pixels; ++q, grad += N * lanes<A>) {
        Simd<A> g[N];
        for (int n = 0; n < N; ++n) hold(g[n] = load(grad + n * lanes<A>));
        for (int p = 0; p < P; ++p) {
            const Simd<A> x = broadcast(patch[run_begin[q] + p]);
            for (int n = 0; n < N; ++n) acc[p][n] += x * g[n];
        }
    }
    for (int p = 0; p < P; ++p)
        for (int n = 0; n < N; ++n) {
            A* to = sums + (p * N + n) * lanes<A>;
            store(to, load(to) + acc[p][n]);
        }
}

template <class A>
using WeightGradientTile = void (*)(A*, const A*, const int64_t*, const A*, int64_t);

template <class A, int N, int P = tile_pixels<N>>
WeightGradientTile<A> weight_gradient_kernel(int64_t count) {
    if constexpr (P > 1) {
        if (count < P) return weight_gradient_kernel<A, N, P - 1>(count);
    }
    return weight_gradient_tile<A, N, P>;
}

// dW[o,c,ky,kx] = sum over images and pixels of grad[pixel,o] x[pixel + (ky,kx), c]. A unit of work owns some outputs and
// one kernel row, for all images: no sums are shared between threads, and they have one order.
template <class A, class T>
void weight_gradient(A* out, const ConvShape& shape, const T* grad, int64_t outputs, const Strided<T>& x, int64_t steps,
                     int64_t channels) {
    constexpr int N = 2, P = tile_pixels<N>;
    // pixels of a tile: their places in the patch lie far apart, and more would not stay in the L1 cache together
    constexpr int64_t width = N * lanes<A>, tile_length = 64;
    const int64_t images = steps * shape.batch, run = shape.kernel_w * channels;
    const ConvShape row_shape{1, shape.height, shape.width, 1, shape.kernel_w};
    // many outputs a unit, so that few units make the same patches; a few units for every thread
    int64_t groups = (outputs + width - 1) / width, share = 8;
    const int64_t wanted = 2 * static_cast<int64_t>(torch::stable::get_num_threads());
    while (share > 1 && (groups + share - 1) / share * shape.kernel_h < wanted) share /= 2;
    const int64_t parts = (groups + share - 1) / share;
    const int64_t cols = shape.width, pitch = cols + shape.kernel_w - 1;
    const int64_t rows = std::clamp<int64_t>(256 / cols, 1, shape.height), most = rows * cols;
    torch::stable::parallel_for(0, parts * shape.kernel_h, 1, [&](int64_t begin, int64_t end) {
        A* sums = static_cast<A*>(
            thread_scratch(sizeof(A) * (share * run * width + most * share * width + rows * pitch * channels) +
                           sizeof(int64_t) * most));
        A *gradients = sums + share * run * width, *patch = gradients + most * share * width;
        int64_t* run_begin = reinterpret_cast<int64_t*>(patch + rows * pitch * channels);
        for (int64_t unit = begin; unit < end; ++unit) {
            const int64_t ky = unit % shape.kernel_h, first = unit / shape.kernel_h * share * width;
            const int64_t count = std::min(share * width, outputs - first);
            const int64_t own_groups = (count + width - 1) / width;
            std::fill(sums, sums + own_groups * run * width, A(0));
            for (int64_t image = 0; image < images; ++image) {
                const int64_t t = image / shape.batch, b = image % shape.batch;
                const Source<T, A> source{x.data + t * x.time + b * x.batch, 0, x.channel, x.y, x.x, channels, nullptr};
                for (int64_t y0 = 0; y0 < shape.height; y0 += rows) {
                    const int64_t block_rows = std::min(rows, shape.height - y0), pixels = block_rows * cols;
                    copy_patch(patch, source, row_shape, 0, y0 + ky - shape.kernel_h / 2, 0, block_rows, cols);
                    const T* g = grad + ((image * shape.height + y0) * cols) * outputs + first;
                    for (int64_t q = 0; q < pixels; ++q, g += outputs) {
                        run_begin[q] = (q / cols * pitch + q % cols) * channels;
                        for (int64_t o = 0; o < own_groups * width; o += lanes<A>)
                            store(gradients + (o / width * most + q) * width + o % width,
                                  load_lanes<A>(g + o, std::clamp<int64_t>(count - o, 0, lanes<A>)));
                    }
                    for (int64_t q = 0; q < pixels; q += tile_length)
                        for (int64_t group = 0; group < own_groups; ++group)
                            for (int64_t j = 0; j < run; j += P)
                                weight_gradient_kernel<A, N>(std::min<int64_t>(P, run - j))(
                                    sums + (group * run + j) * width, patch + j, run_begin + q,
                                    gradients + (group * most + q) * width, std::min(tile_length, pixels - q));
                }
            }
            const int64_t taps = shape.kernel_h * shape.kernel_w;
            for (int64_t o = 0; o < count; ++o)
                for (int64_t j = 0; j < run; ++j)
                    out[((first + o) * channels + j % channels) * taps + ky * shape.kernel_w + j / channels] =
                        sums[(o / width * run + j) * width + o % width];
        }
    });
}
