// 'Same' convolutions of images for one instruction set, with an epilogue. Included by conv_lstm_kernels.h, so inside a
// namespace.
//
// A convolution is an implicit matrix product: channels-last patches of the inputs (padded, widened to the accumulator
// type) times weights packed so that P pixels x N vectors of output channels stay in registers while the reduction runs.
// 3 x 3 and 5 x 5 kernels can go through Winograd's minimal filtering (../math/winograd.h), with 2.25 to 4 times fewer
// multiplications: then there is one such product for each of its points, of transformed patches by transformed weights.

#include "convolution_tiles.h"
#include "winograd_kernels.h"

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

// The taps of one output channel for one input channel, by their strides; null = zeros.
template <class T>
struct KernelTaps {
    const T* data;
    int64_t y, x;

    T at(int64_t ky, int64_t kx) const { return data ? data[ky * y + kx * x] : T(0); }
};

// One 'same' convolution of up to two sources, N vectors of outputs a group. Weights are packed once. E is the type of the
// factors: A, or what the processor multiplies and adds up to A by itself.
template <class A, int N, class E = A>
class Convolution {
   public:
    using Sources = std::array<const Source<E>*, 2>;  // the second may be null: zeros
    Convolution(const Convolution&) = delete;

    // weight(group, column, c) -> KernelTaps: c counts through the sources' channels, column through a group's width.
    // tile: winograd_tile's, 0 = direct
    template <class Weight>
    Convolution(const ConvShape& shape, std::array<int64_t, 2> channels, int64_t groups, int64_t tile,
                TileLimits<A> limits, const Weight& weight)
        : shape_(shape), channels_(channels), groups_(groups), limits_(limits) {
        pack_direct_ = [this, weight] { pack_direct(weight); };
        if constexpr (std::is_same_v<E, float>)
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
    // result does not depend on the number of threads.
    void operator()(Sources sources, const Epilogue<A>& epilogue) const { (this->*run_)(sources, epilogue); }

   private:
    static constexpr int P = tile_pixels<N>;
    static constexpr int64_t width = N * lanes<A>, depth = Operands<A, E>::depth;

    // A part of the reduction: kernel rows [row, row + rows) of a source, elements [begin, begin + length) of each row's
    // contiguous run of kernel_w * channels.
    struct Chunk {
        int source;
        int64_t row, rows, begin, length;
    };

    // A source's channels where they are multiplied directly: zeros fill up the last operand.
    int64_t depth_channels(int source) const { return round_up(channels_[source], depth); }

    template <class Weight>
    void pack_direct(const Weight& weight) {  // [source][group][ky][kx][channel / depth][N][lane][channel % depth]
        const int64_t taps = shape_.kernel_h * shape_.kernel_w, operand = width * depth;
        // Some operands at a time, in a place of their own: rows of the weights, and taps here, lie powers of two apart.
        const int64_t together = std::clamp<int64_t>(16 * 1024 / (taps * operand * sizeof(E)), 1, 8);
        for (int i = 0; i < 2; ++i) {
            const int64_t channels = depth_channels(i), operands = channels / depth, first = i * channels_[0];
            const int64_t blocks = ceil_div(operands, together);
            direct_[i].emplace(groups_ * taps * channels * width);
            torch::stable::parallel_for(0, groups_ * blocks, 1, [&](int64_t begin, int64_t end) {
                E* const block = static_cast<E*>(thread_scratch(together * taps * operand * sizeof(E)));
                for (int64_t j = begin; j < end; ++j) {
                    const int64_t group = j / blocks, o = j % blocks * together,
                                  count = std::min(together, operands - o);
                    for (int64_t column = 0; column < width; ++column)
                        for (int64_t d = 0; d < count * depth; ++d) {
                            const int64_t c = o * depth + d;
                            const auto kernel = c < channels_[i] ? weight(group, column, first + c)
                                                                 : decltype(weight(group, column, c)){};
                            E* out = block + d / depth * taps * operand + column * depth + d % depth;
                            for (int64_t ky = 0; ky < shape_.kernel_h; ++ky)
                                for (int64_t kx = 0; kx < shape_.kernel_w; ++kx, out += operand)
                                    *out = static_cast<E>(kernel.at(ky, kx));
                        }
                    for (int64_t k = 0; k < count * taps; ++k)
                        std::copy_n(
                            block + k * operand, operand,
                            direct_[i]->data() + ((group * taps + k % taps) * operands + o + k / taps) * operand);
                }
            });
        }
    }

    template <class W, class Weight>
    bool pack_winograd(const Weight& weight) {  // [group][point][channel][N][lane]; false: not finite
        using V = Simd<double>;
        typedef float Singles __attribute__((vector_size(HYBRIDOPS_VECTOR_BYTES / 2), aligned(4), may_alias));
        constexpr int R = W::taps, points = W::points;
        const int64_t channels = channels_[0] + channels_[1];
        winograd_.emplace(groups_ * points * channels * width);
        std::atomic<bool> finite = true;
        torch::stable::parallel_for(0, groups_ * channels, 4, [&](int64_t begin, int64_t end) {
            V checked = {};
            for (int64_t i = begin; i < end; ++i) {
                const int64_t group = i / channels, c = i % channels;
                A* out = winograd_->data() + (group * points * channels + c) * width;
                for (int64_t column = 0; column < width; column += lanes<double>, out += lanes<double>) {
                    V g[R][R];
                    for (int l = 0; l < lanes<double>; ++l) {
                        const auto taps = weight(group, column + l, c);
                        for (int y = 0; y < R; ++y)
                            for (int x = 0; x < R; ++x)
                                reinterpret_cast<double*>(&g[y][x])[l] = static_cast<double>(taps.at(y, x));
                    }
                    // in double: an error here would be in every product
                    transform<W::Y::kernel, W::X::kernel, V>(
                        [&](int y, int x) { return g[y][x]; },
                        [&](int y, int x, V value) {
                            checked += value * 0;
                            *reinterpret_cast<Singles*>(out + W::point(y, x) * channels * width) =
                                __builtin_convertvector(value, Singles);
                        });
                }
            }
            if (sum_lanes<double>(checked) != 0) finite = false;  // NaN
        });
        return finite;
    }

    std::vector<Chunk> chunks(int sources) const {
        std::vector<Chunk> chunks;
        for (int i = 0; i < sources; ++i) {
            const int64_t channels = depth_channels(i), run = shape_.kernel_w * channels, most = chunk_length<A, E, N>;
            if (run == 0) continue;
            const int64_t rows = std::clamp<int64_t>(most / run, 1, shape_.kernel_h);
            for (int64_t row = 0; row < shape_.kernel_h; row += rows) {
                const auto add = [&](int64_t begin, int64_t length) {
                    chunks.push_back({i, row, std::min(rows, shape_.kernel_h - row), begin * depth, length * depth});
                };
                for_tiles(run / depth, most / depth, add);
            }
        }
        return chunks;
    }

    void run_direct(Sources sources, const Epilogue<A>& epilogue) const {
        const int count = sources[1] ? 2 : 1;
        const int64_t channels[2] = {depth_channels(0), count == 2 ? depth_channels(1) : 0};
        const std::vector<Chunk> chunks = this->chunks(count);
        // about 256 pixels amortise the streaming of the weights; the padded patch should stay in the L2 cache
        const int64_t bytes =
            groups_ * shape_.kernel_h * shape_.kernel_w * (channels[0] + channels[1]) * width * sizeof(E);
        const Blocks blocks(shape_, {1, 1}, 256, least_cells(bytes), units_wanted(),
                            256 * 1024 / ((channels[0] + channels[1]) * sizeof(E)));
        const int64_t shares = this->shares(bytes, blocks.count());
        share_out(blocks.count() * shares, [&](Units& units) {
            const int64_t most = blocks.most_cells();
            const int64_t patch_pixels = blocks.most_images() * (blocks.most_rows() + shape_.kernel_h - 1) *
                                         (blocks.most_cols() + shape_.kernel_w - 1);
            int64_t* patch_pixel =
                static_cast<int64_t*>(thread_scratch(2 * sizeof(int64_t) * most + sizeof(A) * (most + 1) * width +
                                                     sizeof(E) * patch_pixels * (channels[0] + channels[1])));
            int64_t* image_pixel = patch_pixel + most;
            A *partial = reinterpret_cast<A*>(image_pixel + most), *start = partial + most * width;
            E* first_patch = reinterpret_cast<E*>(start + width);
            E* patches[2] = {first_patch, first_patch + patch_pixels * channels[0]};
            for (int64_t unit; units.take(unit);) {
                const auto block = blocks[unit % blocks.count()];
                const int64_t share = unit / blocks.count();
                const int64_t pixels = block.cells();
                const int64_t rows = block.rows + shape_.kernel_h - 1, pitch = block.cols + shape_.kernel_w - 1;
                for (int i = 0; i < count; ++i)
                    copy_patches(patches[i], {sources[i]}, channels[i], shape_, block, rows, pitch);
                for (int64_t image = 0, q = 0; image < block.images; ++image)
                    for (int64_t y = 0; y < block.rows; ++y)
                        for (int64_t x = 0; x < block.cols; ++x, ++q) {
                            patch_pixel[q] = (image * rows + y) * pitch + x;
                            image_pixel[q] = pixel_at(block.image + image, block.y + y, block.x + x);
                        }
                for (int64_t group = share * groups_ / shares; group < (share + 1) * groups_ / shares; ++group) {
                    epilogue.start(group, start, width);
                    for (int64_t q = 0; q < pixels; ++q) std::copy(start, start + width, partial + q * width);
                    for (const Chunk& chunk : chunks) {
                        const int64_t stride = channels[chunk.source];
                        const E* patch = patches[chunk.source] + chunk.row * pitch * stride + chunk.begin;
                        const E* weights =
                            direct_[chunk.source]->data() +
                            ((group * shape_.kernel_h + chunk.row) * shape_.kernel_w * stride + chunk.begin) * width;
                        const int64_t size = chunk.rows * chunk.length * width;
                        Prefetch<E> next_chunk(weights + size, size, ceil_div(pixels, P));
                        for_tiles(pixels, P, [&](int64_t q, int64_t count) {
                            next_chunk.some();
                            const E* pixel[P];
                            for (int64_t p = 0; p < count; ++p) pixel[p] = patch + patch_pixel[q + p] * stride;
                            tile_kernel<A, E, N>(count)(partial + q * width, true, pixel, pitch * stride, chunk.rows,
                                                        chunk.length, weights);
                            if (&chunk == &chunks.back())
                                epilogue.finish(group, image_pixel + q, count, partial + q * width);
                        });
                    }
                }
            }
        });
    }

    // What a thread makes of a block of Winograd's tiles.
    struct TileBlock {
        Blocks::Block at;
        int sources;
        int64_t tiles;
        int64_t patch_rows, pitch;              // pixels of an image's patch, and of a row of it
        int64_t padded[2];                      // channels of the patches, whole vectors
        int64_t channels, row;                  // channels of all sources; room for them in the transformed tiles
        int64_t transformed_point, sums_point;  // strides
        A* patches[2];                          // [pixel][padded channel]
        A *transformed, *sums;                  // [point][tile][row], [point][tile][width]
        A *start, *out;                         // [width], [output][width]
        bool* good;                             // [tile]: within the limits

        int64_t pixel(int64_t image, int64_t y, int64_t x) const {  // of the patches
            return (image * patch_rows + y) * pitch + x;
        }
    };

    template <class W>
    void run_winograd(Sources sources, const Epilogue<A>& epilogue) const {
        constexpr int R = W::taps, points = W::points;
        TileBlock sizes{};
        sizes.sources = sources[1] ? 2 : 1;
        for (int i = 0; i < sizes.sources; ++i) {
            sizes.padded[i] = round_up(channels_[i], lanes<A>);
            sizes.channels += channels_[i];
        }
        sizes.row = round_up(sizes.channels + lanes<A>, lanes<A>);  // vectors are written beyond the end
        const int64_t bytes = points * sizes.row * static_cast<int64_t>(sizeof(A));
        const int64_t weight_bytes = groups_ * points * sizes.channels * width * sizeof(A);
        // at least 32 tiles for each pass over the weights, more where they stay in the L2 cache
        const Blocks blocks(shape_, {W::rows, W::cols}, std::clamp<int64_t>(256 * 1024 / bytes, 32, 64),
                            least_cells(weight_bytes), units_wanted());
        const int64_t shares = this->shares(weight_bytes, blocks.count());
        const int64_t most = blocks.most_cells();
        const int64_t patch_pixels =
            blocks.most_images() * (blocks.most_rows() * W::rows + R - 1) * (blocks.most_cols() * W::cols + R - 1);
        share_out(blocks.count() * shares, [&](Units& units) {
            TileBlock block = sizes;
            block.transformed = static_cast<A*>(thread_scratch(
                sizeof(A) * (points * (most * (block.row + width) + 2 * cache_line<A>)+(W::outputs + 1) * width +
                             patch_pixels * (block.padded[0] + block.padded[1])) +
                most));
            block.sums = block.transformed + points * (most * block.row + cache_line<A>);
            block.out = block.sums + points * (most * width + cache_line<A>);
            block.start = block.out + W::outputs * width;
            block.patches[0] = block.start + width;
            block.patches[1] = block.patches[0] + patch_pixels * block.padded[0];
            block.good = reinterpret_cast<bool*>(block.patches[1] + patch_pixels * block.padded[1]);
            for (int64_t unit; units.take(unit);) {
                const int64_t share = unit / blocks.count();
                block.at = blocks[unit % blocks.count()];
                block.tiles = block.at.cells();
                block.transformed_point = block.tiles * block.row + cache_line<A>;
                block.sums_point = block.tiles * width + cache_line<A>;
                block.patch_rows = block.at.rows * W::rows + R - 1;
                block.pitch = block.at.cols * W::cols + R - 1;
                transform_tiles<W>(block, sources);
                for (int64_t group = share * groups_ / shares; group < (share + 1) * groups_ / shares; ++group) {
                    multiply_tiles<W>(block, group);
                    epilogue.start(group, block.start, width);
                    for (int64_t tile = 0; tile < block.tiles; ++tile) finish_tile<W>(block, group, tile, epilogue);
                }
            }
        });
    }

    template <class W>
    void transform_tiles(const TileBlock& block, Sources sources) const {
        std::fill(block.good, block.good + block.tiles, true);
        for (int i = 0; i < block.sources; ++i) {
            const int64_t stride = block.padded[i];
            copy_patches(block.patches[i], {sources[i]}, stride, shape_, block.at, block.patch_rows, block.pitch);
            const bool all_good = limits_.allow(
                largest_magnitude(block.patches[i], block.at.images * block.patch_rows * block.pitch * stride));
            for (int64_t tile = 0; tile < block.tiles; ++tile) {
                const auto at = block.at.place(tile);
                const A* from = block.patches[i] + block.pixel(at.image, at.row * W::rows, at.col * W::cols) * stride;
                transform_tile<W>(block.transformed + tile * block.row + i * channels_[0], block.transformed_point,
                                  from, block.pitch * stride, stride, channels_[i]);
                if (!all_good) block.good[tile] &= allowed<W>(from, block.pitch * stride, stride, channels_[i]);
            }
        }
    }

    // One tile of one source.
    template <class W>
    void transform_tile(A* out, int64_t point_stride, const A* corner, int64_t row_stride, int64_t pixel_stride,
                        int64_t channels) const {
        for (int64_t c = 0; c < channels; c += lanes<A>)
            transform<W::Y::input, W::X::input, Simd<A>>(
                [&](int y, int x) { return load(corner + y * row_stride + x * pixel_stride + c); },
                [&](int y, int x, Simd<A> v) { store(out + W::point(y, x) * point_stride + c, v); });
    }

    // Whether it is within the limits.
    template <class W>
    bool allowed(const A* corner, int64_t row_stride, int64_t pixel_stride, int64_t channels) const {
        constexpr int cols = W::X::inputs;
        LargestMagnitude<A> largest;
        Simd<A> squares = {};
        for (int64_t c = 0; c < channels; c += lanes<A>)
            for (int i = 0; i < W::inputs; ++i) {
                const Simd<A> value = load(corner + i / cols * row_stride + i % cols * pixel_stride + c);
                largest.see(value);
                squares += value * value;
            }
        return limits_.allow(largest.value(), sum_lanes<A>(squares) / (W::inputs * channels));
    }

    template <class W>
    void multiply_tiles(const TileBlock& block, int64_t group) const {
        for (int point = 0; point < W::points; ++point)
            for_tiles(block.channels, chunk_length<A, A, N>, [&](int64_t c, int64_t length) {
                const A* weights =
                    winograd_->data() + ((group * W::points + point) * (channels_[0] + channels_[1]) + c) * width;
                Prefetch<A> next_chunk(weights + length * width, length * width, ceil_div(block.tiles, P));
                for_tiles(block.tiles, P, [&](int64_t tile, int64_t count) {
                    next_chunk.some();
                    const A *first = block.transformed + point * block.transformed_point + tile * block.row + c,
                            *pixel[P];
                    for (int64_t p = 0; p < count; ++p) pixel[p] = first + p * block.row;
                    tile_kernel<A, A, N>(count)(block.sums + point * block.sums_point + tile * width, c > 0, pixel, 0,
                                                1, length, weights);
                });
            });
    }

    template <class W>
    void finish_tile(const TileBlock& block, int64_t group, int64_t tile, const Epilogue<A>& epilogue) const {
        constexpr int rows = W::rows, cols = W::cols, outputs = W::outputs;
        using V = Simd<A>;
        const auto at = block.at.place(tile);
        const int64_t y = at.row * rows, x = at.col * cols;
        int64_t pixels[outputs], count = 0;
        A* to[outputs];  // where the sums of an output go; null outside the image
        for (int i = 0; i < outputs; ++i) {
            const int64_t image_y = block.at.y + y + i / cols, image_x = block.at.x + x + i % cols;
            const bool inside = image_y < shape_.height && image_x < shape_.width;
            to[i] = inside ? block.out + count * width : nullptr;
            if (inside) pixels[count++] = pixel_at(block.at.image + at.image, image_y, image_x);
        }
        if (block.good[tile]) {
            for (int64_t lane = 0; lane < width; lane += lanes<A>) {
                const A* sums = block.sums + tile * width + lane;
                const V first = load(block.start + lane);
                transform<W::Y::output, W::X::output, V>(
                    [&](int y, int x) { return load(sums + W::point(y, x) * block.sums_point); },
                    [&](int y, int x, V sum) {
                        if (A* out = to[y * cols + x]) store(out + lane, sum + first);
                    });
            }
        } else {
            for (int i = 0; i < outputs; ++i)
                if (to[i]) sum_directly(to[i], block, group, block.pixel(at.image, y + i / cols, x + i % cols));
        }
        epilogue.finish(group, pixels, count, block.out);
    }

    // One pixel, from its corner in the patches on.
    void sum_directly(A* sums, const TileBlock& block, int64_t group, int64_t corner) const {
        std::call_once(direct_packed_, pack_direct_);
        std::copy(block.start, block.start + width, sums);
        const int64_t taps = shape_.kernel_h * shape_.kernel_w;
        for (int i = 0; i < block.sources; ++i)
            for (int64_t tap = 0; tap < taps; ++tap) {
                const int64_t at = corner + tap / shape_.kernel_w * block.pitch + tap % shape_.kernel_w;
                const A* pixel = block.patches[i] + at * block.padded[i];
                accumulate_tile<A, A, N, 1>(sums, true, &pixel, 0, 1, channels_[i],
                                            direct_[i]->data() + (group * taps + tap) * channels_[i] * width);
            }
    }

    int64_t pixel_at(int64_t image, int64_t y, int64_t x) const {
        return (image * shape_.height + y) * shape_.width + x;
    }

    // every thread should find a few
    static int64_t units_wanted() { return 4 * static_cast<int64_t>(torch::stable::get_num_threads()); }

    // Below so many pixels, or tiles of them, reading the weights again for more blocks would take longer than computing,
    // unless they stay in the L2 cache.
    static int64_t least_cells(int64_t weight_bytes) { return weight_bytes > 512 * 1024 ? 32 : 1; }

    // Into how many shares the groups go, each of which reads the images anew. Its weights should stay in the L3 cache from
    // block to block.
    int64_t shares(int64_t weight_bytes, int64_t blocks) const {
        return std::min(groups_, std::max(ceil_div(weight_bytes, 4 << 20), ceil_div(units_wanted(), blocks)));
    }

    ConvShape shape_;
    std::array<int64_t, 2> channels_;
    int64_t groups_;
    TileLimits<A> limits_;
    std::optional<Buffer<E>> direct_[2];
    std::optional<Buffer<A>> winograd_;
    std::function<void()> pack_direct_;
    mutable std::once_flag direct_packed_;
    void (Convolution::*run_)(Sources, const Epilogue<A>&) const = nullptr;
};
