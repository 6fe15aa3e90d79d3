// The gradient of a convolution's weights in bfloat16 on AMX: tiles of 16 outputs by 16 columns, a column being a channel at
// a tap in a row of the kernel, summed over 32 pixels at a time. Included by weight_gradient_kernels.h, so inside a namespace.

#include "direct_weight_gradient_kernels.h"

#ifdef HYBRIDOPS_WIDE
template <class E>
class AmxWeightGradient {
   public:
    using Args = ConvWeightGradientArgs<E, float>;

    explicit AmxWeightGradient(const Args& args)
        : a_(args),
          shape_(args.shape),
          channels_(args.channels()),
          blocks_(all_steps(args), {1, 1}, 512, 1, 0),
          unrolled_(steps_are_whole() ? 1 : shape_.kernel_h),
          output_tiles_(ceil_div(args.outputs, 16)),
          block_steps_(ceil_div(blocks_.max_cells(), register_depth)) {}

    // The gradients are laid out once for all; x again and again, a few channels and a block of the images at a time. Each unit
    // of work has the sums of some channels for all outputs, or as many as stay in the L2 cache.
    void run() const {
        const Buffer<E> gradients(blocks_.count() * output_tiles_ * block_steps_ * tile_elements);
        torch::stable::parallel_for(0, blocks_.count(), 1, [&](int64_t begin, int64_t end) {
            for (int64_t block = begin; block < end; ++block) lay_out_gradients(gradients.data(), block);
        });
        const int64_t most_columns = column_tiles(std::min(channels_, slice)), slices = ceil_div(channels_, slice);
        const int64_t output_shares = ceil_div(output_tiles_ * most_columns, sums_in_cache);
        const int64_t most_outputs = ceil_div(output_tiles_, output_shares);
        const int64_t row = (blocks_.max_cols() + shape_.kernel_w - 1) * std::min(channels_, slice) + 16;
        SummedParts summed(blocks_.count(), slices * output_shares);
        parallel_for_dynamic(summed.count(), [&](WorkQueue& queue) {
            const auto s = from_thread_scratch([&](Arena& arena) {
                return Scratch{arena.take<float>(most_outputs * most_columns * tile_sums),
                               arena.take<int32_t>(most_columns * 16),
                               arena.take<E>(most_columns / shape_.kernel_h * unrolled_ * plane()), arena.take<E>(row),
                               arena.take<int64_t>(block_steps_)};
            });
            const TileRegisters registers;
            for (int64_t unit; queue.take(unit);) {
                const auto [index, begin, end] = summed[unit];
                const int64_t output = index % output_shares, channel = index / output_shares * slice;
                const Share share{output * output_tiles_ / output_shares, (output + 1) * output_tiles_ / output_shares,
                                  channel, std::min(channel + slice, channels_)};
                std::fill_n(s.sums, (share.output_end - share.output) * column_tiles(share.channels()) * tile_sums,
                            0.0f);
                for (int64_t block = begin; block < end; ++block) {
                    lay_out_images(s, blocks_[block], share);
                    add_products(s, gradients.data(), block, share);
                }
                summed.in_order(unit, [&] { add_kernels(s, share); });
            }
        });
    }

   private:
    using Bits = SimdOf<float>::bits;
    static constexpr int64_t tile_elements = register_rows * register_depth, tile_sums = 16 * 16;
    static constexpr int64_t slice = 32;            // channels
    static constexpr int64_t sums_in_cache = 1200;  // tiles of 1 KB

    struct Share {
        int64_t output, output_end;  // tiles of 16
        int64_t channel, channel_end;
        int64_t channels() const { return channel_end - channel; }
    };

    struct Scratch {
        float* sums;      // [output tile][ky][column tile][16][16]
        int32_t* places;  // of one output's among them
        E *x, *row;       // [plane][pair of pixels][16][2]
        int64_t* steps;   // where 32 pixels of a block begin in a plane
    };

    int64_t row_tiles(int64_t channels) const { return ceil_div(shape_.kernel_w * channels, 16); }
    int64_t column_tiles(int64_t channels) const { return shape_.kernel_h * row_tiles(channels); }
    int64_t image_rows(int64_t rows) const { return rows + shape_.kernel_h - unrolled_; }  // of x as it is laid out
    int64_t plane() const {
        return round_up(blocks_.max_images() * image_rows(blocks_.max_rows()) * blocks_.max_cols(), register_depth) *
               16;
    }

    // Whether 32 pixels at a time are of one image, and pairs of them stay pairs a row further down. Else each pixel has what
    // all rows of the kernel multiply, and images follow each other without rows of margin.
    bool steps_are_whole() const {
        bool whole = true;
        for (int64_t i = 0; i < blocks_.count(); ++i) {
            const auto block = blocks_[i];
            whole &= block.cols % 2 == 0 && block.rows * block.cols % register_depth == 0;
        }
        return whole;
    }

    // Sixteen elements of which `count` are there, as the lower halves of pairs.
    static Bits halves(const E* from, int64_t count) {
        if (count >= 16) return __builtin_convertvector(*reinterpret_cast<const HalfBits*>(from), Bits);
        uint16_t there[16] = {};
        std::memcpy(there, from, std::max<int64_t>(count, 0) * sizeof(E));
        return __builtin_convertvector(*reinterpret_cast<const HalfBits*>(there), Bits);
    }

    // gradients [block][output tile][step][16 outputs][32 pixels], zeros behind the last pixel
    void lay_out_gradients(E* gradients, int64_t index) const {
        const auto block = blocks_[index];
        const int64_t cells = block.cells();
        PixelNumbers numbers(shape_, block);
        for (int64_t first = 0; first < cells; first += register_depth) {
            const E* pixel[register_depth];
            for (int64_t p = 0; p < register_depth; ++p)
                pixel[p] = first + p < cells ? a_.da + numbers.next() * a_.outputs : pixel[0];
            for (int64_t tile = 0; tile < output_tiles_; ++tile) {
                const int64_t there = a_.outputs - tile * 16;
                Bits pairs[16];  // of pixels, for each output
                for (int64_t p = 0; p < register_depth; p += 2)
                    pairs[p / 2] = halves(pixel[p] + tile * 16, first + p < cells ? there : 0) |
                                   halves(pixel[p + 1] + tile * 16, first + p + 1 < cells ? there : 0) << 16;
                transpose(pairs, std::make_index_sequence<16>{});
                E* to = gradients +
                        ((index * output_tiles_ + tile) * block_steps_ + first / register_depth) * tile_elements;
                std::memcpy(to, pairs, sizeof(pairs));
            }
        }
    }

    // 16 x 16: exchanges quarters, then quarters of the quarters, down to single elements.
    template <int size = 8, size_t... l>
    static HYBRIDOPS_INLINE void transpose(Bits (&rows)[16], std::index_sequence<l...> all) {
#pragma GCC unroll 16
        for (int i = 0; i < 16; ++i) {
            if (i & size) continue;
            const Bits upper = rows[i], lower = rows[i + size];
            rows[i] = Bits{(l & size ? lower[l ^ size] : upper[l])...};
            rows[i + size] = Bits{(l & size ? lower[l] : upper[l ^ size])...};
        }
        if constexpr (size > 1) transpose<size / 2>(rows, all);
    }

    // Channels [begin, end) of an image of a factor.
    static StridedSource<E, E> channels_of(const typename Args::Factor& factor, int64_t step, int64_t begin,
                                           int64_t end) {
        const auto& x = factor.x;
        return {x.data + step * x.time + begin * x.channel, x.batch, x.channel, x.y, x.x, end - begin};
    }

    // For each pixel a run of channels at the taps of a row, in pieces of 16 of which two pixels' stand in pairs.
    void lay_out_images(const Scratch& s, const Blocks::Block& block, const Share& share) const {
        const int64_t channels = share.channels(), pieces = row_tiles(channels), rows = image_rows(block.rows);
        const int64_t pitch = block.cols + shape_.kernel_w - 1, of_first = a_.factors[0].channels;
        for (int64_t image = 0; image < block.images; ++image) {
            const int64_t step = (block.image + image) / shape_.batch, b = (block.image + image) % shape_.batch;
            const auto x = channels_of(a_.factors[0], step, std::min(share.channel, of_first),
                                       std::min(share.channel_end, of_first)),
                       h = channels_of(a_.factors[1], step, std::max(share.channel - of_first, int64_t(0)),
                                       std::max(share.channel_end - of_first, int64_t(0)));
            for (int64_t y = 0; y < block.rows + shape_.kernel_h - 1; ++y) {
                copy_patch<E>(s.row, {x.channels ? &x : nullptr, h.channels ? &h : nullptr}, channels, shape_, b,
                              block.y - shape_.kernel_h / 2 + y, block.x - shape_.kernel_w / 2, 1, pitch);
                for (int64_t ky = 0; ky < unrolled_; ++ky) {
                    if (y < ky || y - ky >= rows) continue;
                    const int64_t pixel = (image * rows + y - ky) * block.cols;
                    for (int64_t piece = 0; piece < pieces; ++piece)
                        for (int64_t col = 0; col < block.cols; ++col)
                            put(s.x + (ky * pieces + piece) * plane(), pixel + col,
                                halves(s.row + col * channels + piece * 16, 16));
                }
            }
        }
        const int64_t pixels = block.images * rows * block.cols;
        for (int64_t i = 0; i < unrolled_ * pieces; ++i)
            for (int64_t pixel = pixels; pixel < round_up(pixels, register_depth); ++pixel)
                put(s.x + i * plane(), pixel, Bits{});
    }

    static void put(E* plane, int64_t pixel, Bits elements) {
        E* const to = plane + pixel / 2 * 32;
        Bits pairs;
        std::memcpy(&pairs, to, sizeof(pairs));
        pairs = pixel % 2 ? pairs | elements << 16 : elements;
        std::memcpy(to, &pairs, sizeof(pairs));
    }

    void add_products(const Scratch& s, const E* gradients, int64_t index, const Share& share) const {
        const auto block = blocks_[index];
        const int64_t rows = image_rows(block.rows), cells = unrolled_ > 1 ? block.cells() : block.rows * block.cols;
        const int64_t steps = ceil_div(block.cells(), register_depth);
        for (int64_t step = 0; step < steps; ++step) {
            const int64_t cell = step * register_depth;
            s.steps[step] = (cell / cells * rows * block.cols + cell % cells) * 16;
        }
        const int64_t pieces = row_tiles(share.channels()), columns = shape_.kernel_h * pieces;
        const auto column = [&](int64_t i) {
            return unrolled_ > 1 ? s.x + i * plane() : s.x + i % pieces * plane() + i / pieces * block.cols * 16;
        };
        for (int64_t output = share.output; output < share.output_end;) {
            const E* gradient = gradients + (index * output_tiles_ + output) * block_steps_ * tile_elements;
            float* sums = s.sums + (output - share.output) * columns * tile_sums;
            const int64_t now = std::min<int64_t>(2, share.output_end - output);
            for (int64_t i = 0; i < columns; i += 4 / now) {
                const E* x[4];
                const int64_t count = std::min(4 / now, columns - i);
                for (int64_t n = 0; n < count; ++n) x[n] = column(i + n);
                if (now == 2) {
                    multiply_tiles<2, 2>(count, sums + i * tile_sums, columns, gradient, x, s.steps, steps);
                } else {
                    multiply_tiles<1, 4>(count, sums + i * tile_sums, columns, gradient, x, s.steps, steps);
                }
            }
            output += now;
        }
    }

    // M tiles of outputs, `count` tiles of columns, at most N.
    template <int M, int N>
    void multiply_tiles(int64_t count, float* sums, int64_t columns, const E* gradient, const E* const* x,
                        const int64_t* at, int64_t steps) const {
        if constexpr (N > 1) {
            if (count < N) return multiply_tiles<M, N - 1>(count, sums, columns, gradient, x, at, steps);
        }
        const int64_t gradient_tile = block_steps_ * tile_elements;
        add_tile_products<M, N>(
            steps, HYBRIDOPS_LAMBDA(int m, int n) { return sums + (m * columns + n) * tile_sums; }, 16,
            HYBRIDOPS_LAMBDA(int64_t step, int m) { return gradient + m * gradient_tile + step * tile_elements; },
            register_depth, HYBRIDOPS_LAMBDA(int64_t step, int n) { return x[n] + at[step]; }, 32);
    }

    void add_kernels(const Scratch& s, const Share& share) const {
        const int64_t channels = share.channels(), pieces = row_tiles(channels), columns = shape_.kernel_h * pieces;
        const int64_t taps = shape_.kernel_h * shape_.kernel_w, of_first = a_.factors[0].channels;
        for (int64_t i = 0; i < channels * taps; ++i) {  // where the sums [channel][ky][kx] of an output are
            const int64_t ky = i % taps / shape_.kernel_w, column = i % shape_.kernel_w * channels + i / taps;
            s.places[i] = static_cast<int32_t>((ky * pieces + column / 16) * tile_sums + column % 16);
        }
        const int64_t second = std::clamp<int64_t>(of_first - share.channel, 0, channels);  // the first channel of it
        for (int64_t o = share.output * 16; o < std::min(share.output_end * 16, a_.outputs); ++o) {
            const float* sums = s.sums + (o / 16 - share.output) * columns * tile_sums + o % 16 * 16;
            add(a_.factors[0], o, share.channel, sums, s.places, second * taps);
            add(a_.factors[1], o, share.channel + second - of_first, sums, s.places + second * taps,
                (channels - second) * taps);
        }
    }

    // `count` sums, from those of a channel on. The rows of outputs are far apart.
    void add(const typename Args::Factor& factor, int64_t output, int64_t channel, const float* sums,
             const int32_t* places, int64_t count) const {
        if (count == 0) return;
        const int64_t row = factor.channels * shape_.kernel_h * shape_.kernel_w;
        float* const out = factor.dw + output * row + channel * shape_.kernel_h * shape_.kernel_w;
        for (int64_t i = 0; i < count; i += cache_line<float>) __builtin_prefetch(out + 2 * row + i, 1);
        for (int64_t i = 0; i < count; ++i) out[i] += sums[places[i]];
    }

    const Args& a_;
    const ConvShape& shape_;
    const int64_t channels_;  // of all x
    const Blocks blocks_;     // of the images of all steps
    const int64_t unrolled_;  // rows of taps of which each pixel has its own copy: 1, or all
    const int64_t output_tiles_, block_steps_;
};
#endif
