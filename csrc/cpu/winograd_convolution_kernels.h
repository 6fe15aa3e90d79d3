// The convolution by Winograd's minimal filtering (../math/winograd.h) for one instruction set: 3 x 3 and 5 x 5 kernels with
// 2.25 to 4 times fewer multiplications. For each of its points there is a matrix product as in the direct convolution, of
// transformed patches by transformed weights. Included by convolution_kernels.h, so inside a namespace.

#include "winograd_kernels.h"

template <class A, int N, class W>
class WinogradConvolution final : public Convolution<A, A> {
   public:
    template <class Weight>
    WinogradConvolution(const ConvShape& shape, std::array<int64_t, 2> channels, int64_t groups, TileLimits<A> limits,
                        const Weight& weight)
        : shape_(shape),
          channels_(channels),
          groups_(groups),
          limits_(limits),
          weights_(groups * points * (channels[0] + channels[1]) * width),
          pack_taps_([=] { return PackedTaps<A, N, A>(shape, channels, groups, weight); }) {
        pack(weight);
    }

    // Whether the transformed weights are. Where not, use the direct convolution.
    bool is_finite() const { return finite_; }

    void operator()(Sources<A> sources, const Epilogue<A>& epilogue) const override {
        TileBlock sizes{};
        sizes.sources = sources[1] ? 2 : 1;
        for (int i = 0; i < sizes.sources; ++i) {
            sizes.padded[i] = round_up(channels_[i], lanes<A>);
            sizes.channels += channels_[i];
        }
        sizes.row = round_up(sizes.channels + lanes<A>, lanes<A>);  // vectors are written beyond the end
        // 32 tiles for each pass over the weights: 64 take as long ("square" of benchmarks/workloads.py, 265 ms with either)
        const WorkShares work(shape_, {W::rows, W::cols}, 32, groups_,
                              groups_ * points * sizes.channels * width * sizeof(A));
        const Blocks& blocks = work.blocks;
        const int64_t max_tiles = blocks.max_cells();
        const int64_t patch_pixels =
            blocks.max_images() * (blocks.max_rows() * W::rows + R - 1) * (blocks.max_cols() * W::cols + R - 1);
        parallel_for_dynamic(work.count(), [&](WorkQueue& queue) {
            TileBlock block = from_thread_scratch([&](Arena& arena) {
                TileBlock block = sizes;
                block.transformed = arena.take<A>(points * (max_tiles * block.row + cache_line<A>));
                block.sums = arena.take<A>(points * (max_tiles * width + cache_line<A>));
                block.out = arena.take<A>(W::outputs * width);
                block.start = arena.take<A>(width);
                for (int i = 0; i < 2; ++i) block.patches[i] = arena.take<A>(patch_pixels * block.padded[i]);
                block.use_winograd = arena.take<bool>(max_tiles);
                return block;
            });
            for (int64_t index; queue.take(index);) {
                const auto [at, begin, end] = work[index];
                block.at = at;
                block.tiles = at.cells();
                block.transformed_point = block.tiles * block.row + cache_line<A>;
                block.sums_point = block.tiles * width + cache_line<A>;
                block.patch_rows = at.rows * W::rows + R - 1;
                block.pitch = at.cols * W::cols + R - 1;
                transform_tiles(block, sources);
                for (int64_t group = begin; group < end; ++group) {
                    multiply_tiles(block, group);
                    epilogue.start(group, block.start, width);
                    for (int64_t tile = 0; tile < block.tiles; ++tile) finish_tile(block, group, tile, epilogue);
                }
            }
        });
    }

   private:
    static constexpr int P = tile_pixels<N>, R = W::taps, points = W::points;
    static constexpr int64_t width = N * lanes<A>;

    // What a thread makes of a block of tiles.
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
        bool* use_winograd;                     // [tile]: its values are within the limits

        int64_t pixel(int64_t image, int64_t y, int64_t x) const {  // of the patches
            return (image * patch_rows + y) * pitch + x;
        }
    };

    template <class Weight>
    void pack(const Weight& weight) {
        using V = Simd<double>;
        typedef float Singles __attribute__((vector_size(HYBRIDOPS_VECTOR_BYTES / 2), aligned(4), may_alias));
        const int64_t channels = channels_[0] + channels_[1];
        std::atomic<bool> finite = true;
        torch::stable::parallel_for(0, groups_ * channels, 4, [&](int64_t begin, int64_t end) {
            V checked = {};
            for (int64_t i = begin; i < end; ++i) {
                const int64_t group = i / channels, c = i % channels;
                A* out = weights_.data() + (group * points * channels + c) * width;
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
        finite_ = finite;
    }

    void transform_tiles(const TileBlock& block, Sources<A> sources) const {
        std::fill(block.use_winograd, block.use_winograd + block.tiles, true);
        for (int i = 0; i < block.sources; ++i) {
            const int64_t stride = block.padded[i];
            copy_patches(block.patches[i], {sources[i]}, stride, shape_, block.at, block.patch_rows, block.pitch);
            const bool all_within = limits_.allow(
                largest_magnitude(block.patches[i], block.at.images * block.patch_rows * block.pitch * stride));
            for (int64_t tile = 0; tile < block.tiles; ++tile) {
                const auto at = block.at.place(tile);
                const A* from = block.patches[i] + block.pixel(at.image, at.row * W::rows, at.col * W::cols) * stride;
                transform_tile(block.transformed + tile * block.row + i * channels_[0], block.transformed_point, from,
                               block.pitch * stride, stride, channels_[i]);
                if (!all_within) block.use_winograd[tile] &= allowed(from, block.pitch * stride, stride, channels_[i]);
            }
        }
    }

    // One tile of one source.
    void transform_tile(A* out, int64_t point_stride, const A* corner, int64_t row_stride, int64_t pixel_stride,
                        int64_t channels) const {
        for (int64_t c = 0; c < channels; c += lanes<A>)
            transform<W::Y::input, W::X::input, Simd<A>>(
                [&](int y, int x) { return load(corner + y * row_stride + x * pixel_stride + c); },
                [&](int y, int x, Simd<A> v) { store(out + W::point(y, x) * point_stride + c, v); });
    }

    // Whether it is within the limits.
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

    void multiply_tiles(const TileBlock& block, int64_t group) const {
        for (int point = 0; point < points; ++point)
            for_tiles(block.channels, chunk_length<A, A, N>, [&](int64_t c, int64_t length) {
                const A* weights =
                    weights_.data() + ((group * points + point) * (channels_[0] + channels_[1]) + c) * width;
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
            if (inside) pixels[count++] = shape_.pixel(block.at.image + at.image, image_y, image_x);
        }
        if (block.use_winograd[tile]) {
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
        std::call_once(taps_packed_, [this] { taps_.emplace(pack_taps_()); });
        std::copy_n(block.start, width, sums);
        for (int i = 0; i < block.sources; ++i)
            for (int64_t tap = 0; tap < R * R; ++tap) {
                const A* pixel = block.patches[i] + (corner + tap / R * block.pitch + tap % R) * block.padded[i];
                accumulate_tile<A, A, N, 1>(sums, true, &pixel, 0, 1, channels_[i], taps_->tap(i, group, tap));
            }
    }

    ConvShape shape_;
    std::array<int64_t, 2> channels_;
    int64_t groups_;
    TileLimits<A> limits_;
    Buffer<A> weights_;  // [group][point][channel][N][lane]
    bool finite_;
    // For tiles beyond the limits, which hardly ever come: packed when the first one does.
    std::function<PackedTaps<A, N, A>()> pack_taps_;
    mutable std::optional<PackedTaps<A, N, A>> taps_;
    mutable std::once_flag taps_packed_;
};
