// The direct convolution for one instruction set: an implicit matrix product. Channels-last patches of the inputs (padded,
// widened to the type of the factors) times weights packed so that P pixels x N vectors of output channels stay in registers
// while the reduction runs. Included by amx_convolution_kernels.h, so inside a namespace.

#include "convolution_tiles.h"

// Taps, packed as [source][group][ky][kx][channel / depth][N][lane][channel % depth]; zeros fill up each ky to a multiple
// of so many channels.
template <class A, int N, class E>
class PackedTaps {
   public:
    static constexpr int64_t width = N * lanes<A>, depth = Operands<A, E>::depth;

    template <class Weight>
    PackedTaps(const ConvShape& shape, std::array<int64_t, 2> channels, int64_t groups, const Weight& weight,
               int64_t row_multiple = depth)
        : kernel_h_(shape.kernel_h), kernel_w_(shape.kernel_w), row_multiple_(row_multiple), channels_(channels) {
        pack(0, 0, shape, groups, weight);
        pack(1, channels[0], shape, groups, weight);
    }

    // A source's channels where they are multiplied: zeros fill up the last operand.
    int64_t padded_channels(int source) const { return round_up(channels_[source], depth); }

    // A kernel's row of them: of each tap its channels, side by side.
    int64_t row_length(int source) const { return round_up(kernel_w_ * padded_channels(source), row_multiple_); }

    const E* tap(int source, int64_t group, int64_t tap) const {
        return packed_[source]->data() + offset(source, group, tap) * width;
    }

   private:
    int64_t offset(int source, int64_t group, int64_t tap) const {
        return (group * kernel_h_ + tap / kernel_w_) * row_length(source) + tap % kernel_w_ * padded_channels(source);
    }

    // Some operands at a time, in a small array first: rows of the weights, and the taps in the packed ones, often lie a
    // power of two apart, and would evict each other from the L1 cache.
    template <class Weight>
    void pack(int source, int64_t first, const ConvShape& shape, int64_t groups, const Weight& weight) {
        constexpr int64_t operand = width * depth;
        const int64_t operands = padded_channels(source) / depth;
        const int64_t taps = kernel_h_ * kernel_w_, row = row_length(source) * width;
        const int64_t together = std::clamp<int64_t>(16 * 1024 / (taps * operand * sizeof(E)), 1, 8);
        const int64_t blocks = ceil_div(operands, together);
        packed_[source].emplace(groups * kernel_h_ * row);
        E* const packed = packed_[source]->data();
        torch::stable::parallel_for(0, groups * blocks, 1, [&](int64_t begin, int64_t end) {
            std::vector<E> memory(together * taps * operand);  // the thread's scratch memory may be in use
            E* const block = memory.data();
            for (int64_t j = begin; j < end; ++j) {
                const int64_t group = j / blocks, o = j % blocks * together, count = std::min(together, operands - o);
                for (int64_t column = 0; column < width; ++column)
                    for (int64_t d = 0; d < count * depth; ++d) {
                        const int64_t c = o * depth + d;
                        const auto kernel = c < channels_[source] ? weight(group, column, first + c)
                                                                  : decltype(weight(group, column, c)){};
                        if (c + together * depth < channels_[source])  // rows of weights are far apart
                            __builtin_prefetch(weight(group, column, first + c + together * depth).data);
                        copy(block + d / depth * taps * operand + column * depth + d % depth, operand, kernel);
                    }
                for (int64_t k = 0; k < count * taps; ++k)
                    std::copy_n(block + k * operand, operand,
                                packed + offset(source, group, k % taps) * width + (o + k / taps) * operand);
                for (int64_t y = 0; o + count == operands && y < kernel_h_; ++y) {
                    E* const begin = packed + (group * kernel_h_ + y) * row;
                    std::fill(begin + kernel_w_ * operands * operand, begin + row, E(0));
                }
            }
        });
    }

    // The taps of one kernel, so far apart.
    template <class T>
    void copy(E* out, int64_t stride, const KernelTaps<T>& kernel) const {
        for (int64_t ky = 0; ky < kernel_h_; ++ky)
            for (int64_t kx = 0; kx < kernel_w_; ++kx, out += stride)
                *out = kernel.data ? static_cast<E>(kernel.data[ky * kernel.y + kx * kernel.x]) : E(0);
    }

    int64_t kernel_h_, kernel_w_, row_multiple_;
    std::array<int64_t, 2> channels_;
    std::optional<Buffer<E>> packed_[2];
};

// N vectors of outputs a group. E is the type of the factors: A, or what the processor multiplies and adds up to A by itself.
template <class A, int N, class E>
class DirectConvolution final : public Convolution<A, E> {
   public:
    template <class Weight>
    DirectConvolution(const ConvShape& shape, std::array<int64_t, 2> channels, int64_t groups, const Weight& weight)
        : shape_(shape), groups_(groups), taps_(shape, channels, groups, weight) {}

    void operator()(Sources<E> sources, const Epilogue<A>& epilogue) const override {
        const int count = sources[1] ? 2 : 1;
        const int64_t channels[2] = {taps_.padded_channels(0), count == 2 ? taps_.padded_channels(1) : 0};
        const std::vector<Chunk> chunks = this->chunks(count);
        const int64_t pixel_bytes = (channels[0] + channels[1]) * sizeof(E);
        // About 256 pixels amortise the streaming of the weights. Fewer, where their patch would not stay in the L2 cache,
        // take as long: 361 ms with at most 256 KB and 353 with any, for 16 x 16 images of 384 + 384 channels on Zen 4.
        const WorkShares work(shape_, {1, 1}, 256, groups_,
                              groups_ * shape_.kernel_h * shape_.kernel_w * width * pixel_bytes);
        const Blocks& blocks = work.blocks;
        const int64_t max_pixels = blocks.max_cells();
        const int64_t patch_pixels =
            blocks.max_images() * (blocks.max_rows() + shape_.kernel_h - 1) * (blocks.max_cols() + shape_.kernel_w - 1);
        parallel_for_dynamic(work.count(), [&](WorkQueue& queue) {
            const auto s = from_thread_scratch([&](Arena& arena) {
                return Scratch{arena.take<int64_t>(max_pixels),
                               arena.take<int64_t>(max_pixels),
                               arena.take<A>(max_pixels * width),
                               arena.take<A>(width),
                               {arena.take<E>(patch_pixels * channels[0]), arena.take<E>(patch_pixels * channels[1])}};
            });
            for (int64_t index; queue.take(index);) {
                const auto [block, begin, end] = work[index];
                const int64_t pixels = block.cells(), pitch = block.cols + shape_.kernel_w - 1;
                for (int i = 0; i < count; ++i)
                    copy_patches(s.patches[i], {sources[i]}, channels[i], shape_, block,
                                 block.rows + shape_.kernel_h - 1, pitch);
                number_pixels(block, s);
                for (int64_t group = begin; group < end; ++group) {
                    epilogue.start(group, s.start, width);
                    for (int64_t q = 0; q < pixels; ++q) std::copy_n(s.start, width, s.sums + q * width);
                    for (const Chunk& chunk : chunks) {
                        const int64_t stride = channels[chunk.source];
                        const E* patch = s.patches[chunk.source] + chunk.row * pitch * stride + chunk.begin;
                        const E* weights =
                            taps_.tap(chunk.source, group, chunk.row * shape_.kernel_w) + chunk.begin * width;
                        const int64_t size = chunk.rows * chunk.length * width;
                        Prefetch<E> next_chunk(weights + size, size, ceil_div(pixels, P));
                        for_tiles(pixels, P, [&](int64_t q, int64_t count) {
                            next_chunk.some();
                            const E* pixel[P];
                            for (int64_t p = 0; p < count; ++p) pixel[p] = patch + s.patch_pixel[q + p] * stride;
                            tile_kernel<A, E, N>(count)(s.sums + q * width, true, pixel, pitch * stride, chunk.rows,
                                                        chunk.length, weights);
                            if (&chunk == &chunks.back())
                                epilogue.finish(group, s.image_pixel + q, count, s.sums + q * width);
                        });
                    }
                }
            }
        });
    }

   private:
    static constexpr int P = tile_pixels<N>;
    static constexpr int64_t width = N * lanes<A>, depth = Operands<A, E>::depth;

    // A part of the reduction: kernel rows [row, row + rows) of a source, elements [begin, begin + length) of each row's
    // contiguous run of kernel_w * channels.
    struct Chunk {
        int source;
        int64_t row, rows, begin, length;
    };

    // What a thread makes of a block.
    struct Scratch {
        int64_t *patch_pixel, *image_pixel;  // of each pixel: its corner in the patches, its number in the batch
        A *sums, *start;                     // [pixel][width], [width]
        E* patches[2];                       // [pixel][padded channel]
    };

    std::vector<Chunk> chunks(int sources) const {
        std::vector<Chunk> chunks;
        for (int i = 0; i < sources; ++i) {
            constexpr int64_t max = chunk_length<A, E, N>;
            const int64_t run = shape_.kernel_w * taps_.padded_channels(i);
            if (run == 0) continue;
            const int64_t rows = std::clamp<int64_t>(max / run, 1, shape_.kernel_h);
            for (int64_t row = 0; row < shape_.kernel_h; row += rows)
                for_tiles(run / depth, max / depth, [&](int64_t begin, int64_t length) {
                    chunks.push_back({i, row, std::min(rows, shape_.kernel_h - row), begin * depth, length * depth});
                });
        }
        return chunks;
    }

    void number_pixels(const Blocks::Block& block, const Scratch& s) const {
        const int64_t rows = block.rows + shape_.kernel_h - 1, pitch = block.cols + shape_.kernel_w - 1;
        for (int64_t image = 0, q = 0; image < block.images; ++image)
            for (int64_t y = 0; y < block.rows; ++y)
                for (int64_t x = 0; x < block.cols; ++x, ++q) {
                    s.patch_pixel[q] = (image * rows + y) * pitch + x;
                    s.image_pixel[q] = shape_.pixel(block.image + image, block.y + y, block.x + x);
                }
    }

    ConvShape shape_;
    int64_t groups_;
    PackedTaps<A, N, E> taps_;
};
