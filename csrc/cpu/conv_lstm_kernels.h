// The two recurrences of the ConvLSTM for one instruction set; included by every_isa.h inside its namespace.
//
// A step is an implicit matrix product: channels-last patches of the inputs (padded, widened to the accumulator type)
// times weights packed so that P pixels x N vectors of output channels stay in registers while the reduction runs. The
// four gates of a block of channels are the N = 4 vectors of one register tile, so the LSTM step is the epilogue of the
// product; in the backward, the tile is N blocks of channels and the epilogue is the previous step's pointwise gradient.

#include "../math/lstm_gates.h"

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

// Gate n of the channels [group * lanes, ...): the forward's register tile.
template <class A, class T>
void pack_forward(A* out, const ConvWeights<T>& w, const ConvShape& shape, int64_t channels, int64_t hidden) {
    const int64_t groups = (hidden + lanes<A> - 1) / lanes<A>, taps = shape.kernel_h * shape.kernel_w;
    torch::stable::parallel_for(0, groups * taps, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            const int64_t group = i / taps, ky = i % taps / shape.kernel_w, kx = i % shape.kernel_w;
            A* row = out + i * channels * 4 * lanes<A>;
            for (int64_t c = 0; c < channels; ++c)
                for (int gate = 0; gate < 4; ++gate)
                    for (int l = 0; l < lanes<A>; ++l) {
                        const int64_t h = group * lanes<A> + l;
                        *row++ =
                            h < hidden
                                ? static_cast<A>(w.data[(gate * hidden + h) * w.out + c * w.in + ky * w.y + kx * w.x])
                                : A(0);
                    }
        }
    });
}

// The transposed convolution as a convolution: kernel turned round, inputs and outputs exchanged.
template <class A, int N, class T>
void pack_backward(A* out, const ConvWeights<T>& w, const ConvShape& shape, int64_t hidden) {
    constexpr int64_t width = N * lanes<A>;
    const int64_t groups = (hidden + width - 1) / width, taps = shape.kernel_h * shape.kernel_w;
    torch::stable::parallel_for(0, groups * taps, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            const int64_t group = i / taps, ky = shape.kernel_h - 1 - i % taps / shape.kernel_w;
            const int64_t kx = shape.kernel_w - 1 - i % shape.kernel_w;
            A* row = out + i * 4 * hidden * width;
            for (int64_t a = 0; a < 4 * hidden; ++a)
                for (int64_t h = group * width; h < (group + 1) * width; ++h)
                    *row++ = h < hidden ? static_cast<A>(w.data[a * w.out + h * w.in + ky * w.y + kx * w.x]) : A(0);
        }
    });
}

template <class A>
HYBRIDOPS_INLINE Peephole<Simd<A>> load_peephole(const PeepholeTensor<A>& p, int64_t pixel, int64_t channel,
                                                 int64_t count) {
    const A* at = p.data + pixel * p.pixel + channel;
    return {load_lanes<A>(at, count), load_lanes<A>(at + p.row, count), load_lanes<A>(at + 2 * p.row, count)};
}

template <class T, class A>
struct ForwardEpilogue {
    int64_t hidden, image_pixels;  // pixels of one image, to find the peephole's
    const A* bias;                 // [group][gate][lane]
    PeepholeTensor<A> peephole;
    const A* c_prev;  // null = zeros
    T* h;
    A* c;
    T* gates;  // null = not wanted

    void start(int64_t group, A* sums, int64_t width) const {
        std::copy(bias + group * width, bias + (group + 1) * width, sums);
    }

    void operator()(int64_t group, const int64_t* pixels, int64_t pixel_count, const A* sums) const {
        const int64_t channel = group * lanes<A>, count = std::min<int64_t>(lanes<A>, hidden - channel);
        for (int64_t i = 0; i < pixel_count; ++i, sums += 4 * lanes<A>) {
            const int64_t pixel = pixels[i], at = pixel * hidden + channel;
            Peephole<Simd<A>> p = {};
            if (peephole.data) p = load_peephole(peephole, pixel % image_pixels, channel, count);
            const auto s =
                lstm_forward(load(sums), load(sums + lanes<A>), load(sums + 2 * lanes<A>), load(sums + 3 * lanes<A>),
                             c_prev ? load_lanes<A>(c_prev + at, count) : Simd<A>{}, peephole.data, p);
            store_lanes<A>(h + at, s.h, count);
            store_lanes<A>(c + at, s.c, count);
            if (gates) {
                T* g = gates + pixel * 4 * hidden + channel;
                store_lanes<A>(g, s.f, count);
                store_lanes<A>(g + hidden, s.i, count);
                store_lanes<A>(g + 2 * hidden, s.g, count);
                store_lanes<A>(g + 3 * hidden, s.o, count);
            }
        }
    }
};

template <class T, class A>
void conv_lstm_forward(const ConvLstmForwardArgs<T, A>& a) {
    const int64_t groups = (a.hidden + lanes<A> - 1) / lanes<A>, taps = a.shape.kernel_h * a.shape.kernel_w;
    const int64_t tap_size = groups * taps * 4 * lanes<A>, state = a.shape.pixels() * a.hidden;
    Buffer<A> w_ih(tap_size * a.inputs), w_hh(tap_size * a.hidden), bias(groups * 4 * lanes<A>);
    pack_forward(w_ih.data(), a.w_ih, a.shape, a.inputs, a.hidden);
    pack_forward(w_hh.data(), a.w_hh, a.shape, a.hidden, a.hidden);
    for (int64_t i = 0; i < groups * 4 * lanes<A>; ++i) {
        const int64_t gate = i / lanes<A> % 4, h = i / (4 * lanes<A>)*lanes<A> + i % lanes<A>;
        bias.data()[i] = a.bias && h < a.hidden ? a.bias[gate * a.hidden + h] : A(0);
    }
    const T* h = a.h0;
    const A* c = a.c0;
    for (int64_t t = 0; t < a.steps; ++t) {
        const int64_t row = a.shape.width * a.hidden;
        const Source<T, A> sources[2] = {
            {a.x.data + t * a.x.time, a.x.batch, a.x.channel, a.x.y, a.x.x, a.inputs, w_ih.data()},
            {h, a.shape.height * row, 1, row, a.hidden, a.hidden, w_hh.data()}};
        const ForwardEpilogue<T, A> epilogue{a.hidden,
                                             a.shape.height * a.shape.width,
                                             bias.data(),
                                             a.peephole,
                                             c,
                                             a.hs + t * state,
                                             a.cs + (a.all_cells ? t * state : 0),
                                             a.gates ? a.gates + t * 4 * state : nullptr};
        convolve<A, 4>(a.shape, sources, h ? 2 : 1, groups, epilogue);  // no h: the first step from zeros
        h = epilogue.h;
        c = epilogue.c;
    }
}

// The pointwise gradient of one step, behind the sums dh = W_hh^T * da of the step after it.
template <class T, class A>
struct BackwardEpilogue {
    int64_t hidden, height, width;
    Strided<T> grad_hs;  // data null = zeros; else at this step
    const T* gates;
    const A *c, *c_prev;  // c_prev null = zeros
    PeepholeTensor<A> peephole;
    T* da;
    A* dc;
    int64_t group_channels;

    void start(int64_t, A* sums, int64_t width) const { std::fill(sums, sums + width, A(0)); }

    void operator()(int64_t group, const int64_t* pixels, int64_t pixel_count, const A* sums) const {
        const int64_t first = group * group_channels, end = std::min(first + group_channels, hidden);
        for (int64_t i = 0; i < pixel_count; ++i, sums += group_channels)
            for (int64_t channel = first; channel < end; channel += lanes<A>)
                step(pixels[i], channel, std::min<int64_t>(lanes<A>, end - channel), load(sums + channel - first));
    }

    void step(int64_t pixel, int64_t channel, int64_t count, Simd<A> dh) const {
        if (grad_hs.data) {
            const int64_t b = pixel / (height * width), y = pixel / width % height, x = pixel % width;
            dh += load_lanes<A>(
                grad_hs.data + b * grad_hs.batch + y * grad_hs.y + x * grad_hs.x + channel * grad_hs.channel, count,
                grad_hs.channel);
        }
        const int64_t at = pixel * hidden + channel;
        const T* gate = gates + pixel * 4 * hidden + channel;
        Peephole<Simd<A>> p = {};
        if (peephole.data) p = load_peephole(peephole, pixel % (height * width), channel, count);
        const auto d = lstm_backward(dh, load_lanes<A>(dc + at, count), load_lanes<A>(gate, count),
                                     load_lanes<A>(gate + hidden, count), load_lanes<A>(gate + 2 * hidden, count),
                                     load_lanes<A>(gate + 3 * hidden, count), load_lanes<A>(c + at, count),
                                     c_prev ? load_lanes<A>(c_prev + at, count) : Simd<A>{}, peephole.data, p);
        T* out = da + pixel * 4 * hidden + channel;
        store_lanes<A>(out, d.da_f, count);
        store_lanes<A>(out + hidden, d.da_i, count);
        store_lanes<A>(out + 2 * hidden, d.da_g, count);
        store_lanes<A>(out + 3 * hidden, d.da_o, count);
        store_lanes<A>(dc + at, d.dc_prev, count);
    }
};

template <class A>
struct StoreEpilogue {
    int64_t hidden;
    A* out;
    int64_t group_channels;

    void start(int64_t, A* sums, int64_t width) const { std::fill(sums, sums + width, A(0)); }

    void operator()(int64_t group, const int64_t* pixels, int64_t pixel_count, const A* sums) const {
        const int64_t first = group * group_channels, count = std::min(group_channels, hidden - first);
        for (int64_t i = 0; i < pixel_count; ++i, sums += group_channels)
            std::copy(sums, sums + count, out + pixels[i] * hidden + first);
    }
};

template <class A, int N, class T>
void run_conv_lstm_backward(const ConvLstmBackwardArgs<T, A>& a) {
    constexpr int64_t group_channels = N * lanes<A>;
    const int64_t groups = (a.hidden + group_channels - 1) / group_channels;
    const int64_t pixels = a.shape.pixels(), state = pixels * a.hidden, row = a.shape.width * 4 * a.hidden;
    Buffer<A> w(groups * a.shape.kernel_h * a.shape.kernel_w * 4 * a.hidden * group_channels);
    pack_backward<A, N>(w.data(), a.w_hh, a.shape, a.hidden);
    const auto da_source = [&](int64_t t) {
        return Source<T, A>{a.da + t * 4 * state, a.shape.height * row, 1, row, 4 * a.hidden, 4 * a.hidden, w.data()};
    };
    for (int64_t t = a.steps - 1; t >= 0; --t) {
        Strided<T> grad_hs = a.grad_hs;
        if (grad_hs.data) grad_hs.data += t * grad_hs.time;
        const BackwardEpilogue<T, A> epilogue{a.hidden,
                                              a.shape.height,
                                              a.shape.width,
                                              grad_hs,
                                              a.gates + t * 4 * state,
                                              a.cs + t * state,
                                              t ? a.cs + (t - 1) * state : a.c0,
                                              a.peephole,
                                              a.da + t * 4 * state,
                                              a.dc,
                                              group_channels};
        if (t + 1 < a.steps) {
            const Source<T, A> source = da_source(t + 1);
            convolve<A, N>(a.shape, &source, 1, groups, epilogue);
        } else {  // nothing comes from behind but the gradient of h_n
            torch::stable::parallel_for(0, pixels, 256, [&](int64_t begin, int64_t end) {
                for (int64_t pixel = begin; pixel < end; ++pixel)
                    for (int64_t channel = 0; channel < a.hidden; channel += lanes<A>) {
                        const int64_t count = std::min<int64_t>(lanes<A>, a.hidden - channel);
                        epilogue.step(
                            pixel, channel, count,
                            a.grad_hn ? load_lanes<A>(a.grad_hn + pixel * a.hidden + channel, count) : Simd<A>{});
                    }
            });
        }
    }
    if (a.dh0) {
        const Source<T, A> source = da_source(0);
        convolve<A, N>(a.shape, &source, 1, groups, StoreEpilogue<A>{a.hidden, a.dh0, group_channels});
    }
}

template <class T, class A>
void conv_lstm_backward(const ConvLstmBackwardArgs<T, A>& a) {
    if (a.hidden <= lanes<A>) return run_conv_lstm_backward<A, 1>(a);
    if constexpr (HYBRIDOPS_REGISTERS == 32) {
        if (a.hidden > 2 * lanes<A>) return run_conv_lstm_backward<A, 4>(a);
    }
    run_conv_lstm_backward<A, 2>(a);
}
