// The direct convolution of bfloat16 on AMX. A tile is up to 16 pixels by N vectors of outputs. Its factors lie as the tile
// registers take them: of each pixel the run of a kernel's row, in pieces of 32 elements, and piece after piece those of all
// pixels, so that 16 pixels of an image are one contiguous kilobyte for every tap. Included by convolution_kernels.h, so
// inside a namespace.

#include "direct_convolution_kernels.h"

#ifdef HYBRIDOPS_WIDE
template <int N>
class AmxConvolution final : public Convolution<float, torch::headeronly::BFloat16> {
   public:
    using E = torch::headeronly::BFloat16;

    template <class Weight>
    AmxConvolution(const ConvShape& shape, std::array<int64_t, 2> channels, int64_t groups, const Weight& weight)
        : shape_(shape),
          groups_(groups),
          unrolled_(few_pixels(shape.height * shape.width) ? shape.kernel_h : 1),
          taps_(shape, channels, groups, weight, register_depth) {}

    void operator()(Sources<E> sources, const Epilogue<float>& epilogue) const override {
        const int count = sources[1] ? 2 : 1;
        int64_t pieces = 0, weight_rows = 0, row_elements = 0;
        for (int i = 0; i < count; ++i) {
            pieces += unrolled_ * row_pieces(i);
            weight_rows += shape_.kernel_h * taps_.row_length(i);
            row_elements = std::max(row_elements, taps_.padded_channels(i));
        }
        // the factors of a block stay in the L2 cache
        const int64_t wanted = std::clamp<int64_t>((1 << 20) / (pieces * piece_bytes), 64, 512);
        const WorkShares work(shape_, {1, 1}, wanted, groups_, groups_ * weight_rows * width * sizeof(E));
        const Blocks& blocks = work.blocks;
        const Layout sizes = layout(blocks.max_images(), blocks.max_rows(), blocks.max_cols());
        parallel_for_dynamic(work.count(), [&](WorkQueue& queue) {
            const auto s = from_thread_scratch([&](Arena& arena) {
                return Scratch{
                    arena.take<Tile>(sizes.tiles()), arena.take<float>(sizes.tiles() * 16 * width),
                    arena.take<float>(width), arena.take<E>(pieces * sizes.plane()),
                    arena.take<E>((blocks.max_cols() + shape_.kernel_w - 1) * row_elements + register_depth)};
            });
            TileRegisters registers;
            for (int64_t index; queue.take(index);) {
                const auto [block, begin, end] = work[index];
                const Layout at = layout(block.images, block.rows, block.cols);
                for (int i = 0, first = 0; i < count; first += unrolled_ * row_pieces(i++))
                    lay_out(s.x + first * sizes.plane(), sizes.plane(), s.row, i, *sources[i], block, at);
                const int64_t tiles = number_pixels(s.tiles, block, at);
                for (int64_t group = begin; group < end; ++group) {
                    epilogue.start(group, s.start, width);
                    for (int64_t row = 0; row < tiles * 16; ++row) std::copy_n(s.start, width, s.sums + row * width);
                    multiply(registers, s, tiles, group, count, at, sizes.plane(), epilogue);
                }
            }
        });
    }

   private:
    static constexpr int64_t width = N * lanes<float>, piece_bytes = register_depth * sizeof(E);
    static constexpr int together = 4 / N;    // tiles whose sums are in registers at a time
    static constexpr int64_t chunk = 24 / N;  // pieces whose weights stay in the L1 cache

    // Of 16 pixels of an image at the most.
    struct Tile {
        int64_t x, count;  // its first pixel among the factors; how many
        int64_t image_pixel[16];
    };

    struct Scratch {
        Tile* tiles;
        float *sums, *start;  // [tile][16][width], [width]
        E *x, *row;
    };

    // How a block's factors lie: so many images of rows x cols pixels.
    struct Layout {
        int64_t images, rows, cols, image_rows;
        // Without rows of margin between the images, a tile may have pixels of several.
        bool dense() const { return image_rows == rows; }
        int64_t pixels() const { return images * image_rows * cols; }
        int64_t tiles() const {
            return dense() ? ceil_div(pixels(), register_rows) : images * ceil_div(rows * cols, register_rows);
        }
        int64_t plane() const {
            return (pixels() + register_rows) * register_depth;
        }  // a tile may reach beyond the last pixel
    };
    Layout layout(int64_t images, int64_t rows, int64_t cols) const {
        return {images, rows, cols, rows + shape_.kernel_h - unrolled_};
    }

    // Images that would leave more than a quarter of the tiles empty. Instead, each pixel then has the runs of all rows.
    static bool few_pixels(int64_t pixels) { return pixels < 64 && round_up(pixels, register_rows) * 3 > pixels * 4; }

    int64_t row_pieces(int source) const { return taps_.row_length(source) / register_depth; }

    void lay_out(E* x, int64_t plane, E* row, int index, const Source<E>& source, const Blocks::Block& block,
                 const Layout& at) const {
        using Bits = SimdOf<float>::bits;
        const int64_t channels = taps_.padded_channels(index), pieces = row_pieces(index);
        const int64_t pitch = block.cols + shape_.kernel_w - 1, rest = shape_.kernel_w * channels % register_depth;
        Bits last = Bits{} - 1;  // what belongs to the run in its last piece: pairs of elements
        for (int64_t l = rest / 2; rest && l < 16; ++l) last[l] = 0;
        for (int64_t image = 0; image < block.images; ++image)
            for (int64_t y = 0; y < block.rows + shape_.kernel_h - 1; ++y) {
                copy_patch(row, {&source}, channels, shape_, block.image + image, block.y - shape_.kernel_h / 2 + y,
                           block.x - shape_.kernel_w / 2, 1, pitch);
                for (int64_t ky = 0; ky < unrolled_; ++ky) {
                    if (y < ky || y - ky >= at.image_rows) continue;
                    E* to = x + ky * pieces * plane + (image * at.image_rows + y - ky) * at.cols * register_depth;
                    for (int64_t piece = 0; piece < pieces; ++piece, to += plane) {
                        const Bits kept = piece + 1 < pieces ? Bits{} - 1 : last;
                        for (int64_t col = 0; col < at.cols; ++col) {
                            Bits pairs;
                            std::memcpy(&pairs, row + col * channels + piece * register_depth, piece_bytes);
                            pairs &= kept;
                            std::memcpy(to + col * register_depth, &pairs, piece_bytes);
                        }
                    }
                }
            }
    }

    // The tiles of a block; how many.
    int64_t number_pixels(Tile* tiles, const Blocks::Block& block, const Layout& at) const {
        const Tile* const first = tiles;
        const int64_t images = at.dense() ? 1 : at.images, pixels = block.cells() / images;
        for (int64_t image = 0; image < images; ++image)
            for_tiles(pixels, register_rows, [&](int64_t begin, int64_t count) {
                tiles->x = image * at.image_rows * at.cols + begin;
                tiles->count = count;
                for (int64_t p = 0; p < count; ++p) {
                    const auto place = block.place(image * pixels + begin + p);
                    tiles->image_pixel[p] =
                        shape_.pixel(block.image + place.image, block.y + place.row, block.x + place.col);
                }
                ++tiles;
            });
        return tiles - first;
    }

    // The pieces of both sources, a chunk of them after the other.
    void multiply(TileRegisters& registers, const Scratch& s, int64_t tiles, int64_t group, int count, const Layout& at,
                  int64_t plane, const Epilogue<float>& epilogue) const {
        const int64_t pieces[2] = {shape_.kernel_h * row_pieces(0), count == 2 ? shape_.kernel_h * row_pieces(1) : 0};
        const int64_t first_plane[2] = {0, unrolled_ * row_pieces(0)};
        const int64_t total = pieces[0] + pieces[1];
        for_tiles(total, chunk, [&](int64_t begin, int64_t length) {
            Step steps[chunk];
            for (int64_t i = 0; i < length; ++i) {
                const int source = begin + i >= pieces[0];
                const int64_t piece = begin + i - (source ? pieces[0] : 0);
                const int64_t ky = piece / row_pieces(source), in_row = piece % row_pieces(source);
                steps[i].x = unrolled_ > 1
                                 ? s.x + (first_plane[source] + piece) * plane
                                 : s.x + (first_plane[source] + in_row) * plane + ky * at.cols * register_depth;
                steps[i].weights = taps_.tap(source, group, 0) + piece * register_depth * width;
            }
            for (int64_t tile = 0; tile < tiles; tile += together) {
                const int64_t now = std::min<int64_t>(together, tiles - tile);
                multiply_tiles<together>(now, registers, s.sums + tile * 16 * width, s.tiles + tile, steps, length);
                for (int64_t t = tile; begin + length == total && t < tile + now; ++t)
                    epilogue.finish(group, s.tiles[t].image_pixel, s.tiles[t].count, s.sums + t * 16 * width);
            }
        });
    }

    // One piece of all pixels, and its weights.
    struct Step {
        const E *x, *weights;
    };

    // sums [tile][16][width] += the products of some steps, for `count` tiles, at most T of them.
    template <int T>
    static void multiply_tiles(int64_t count, TileRegisters& registers, float* sums, const Tile* tiles,
                               const Step* steps, int64_t length) {
        if constexpr (T > 1) {
            if (count < T) return multiply_tiles<T - 1>(count, registers, sums, tiles, steps, length);
        }
        add_tile_products<T, N>(
            registers, length, HYBRIDOPS_LAMBDA(int t, int n) { return sums + t * 16 * width + n * lanes<float>; },
            width, HYBRIDOPS_LAMBDA(int64_t step, int t) { return steps[step].x + tiles[t].x * register_depth; },
            HYBRIDOPS_LAMBDA(int64_t step, int n) { return steps[step].weights + n * 2 * lanes<float>; }, 2 * width);
    }

    ConvShape shape_;
    int64_t groups_, unrolled_;  // rows of taps of which each pixel has its own copy: 1, or all
    PackedTaps<float, N, E> taps_;
};
#endif
