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
        const std::vector<Piece> pieces = this->pieces(sources[1] ? 2 : 1);
        const int64_t total = static_cast<int64_t>(pieces.size()), planes = pieces.back().plane + 1;
        const int64_t channels = std::max(taps_.padded_channels(0), sources[1] ? taps_.padded_channels(1) : 0);
        // Weights that do not stay in the L2 cache are read once a block; else the factors of a block stay there.
        const int64_t weight_bytes = groups_ * total * piece_bytes * width;
        const int64_t wanted =
            weight_bytes > l2_bytes ? 512 : std::clamp<int64_t>(l2_bytes / (planes * piece_bytes), 64, 512);
        const WorkShares work(shape_, {1, 1}, wanted, groups_, weight_bytes, 256);
        const Blocks& blocks = work.blocks;
        const Layout sizes = layout(blocks.max_images(), blocks.max_rows(), blocks.max_cols());
        // All groups go over as many planes as stay in the L2 cache, then over the next.
        const int64_t passes = ceil_div(planes * sizes.plane() * static_cast<int64_t>(sizeof(E)), l2_bytes);
        const int64_t most_groups = passes > 1 ? work.max_groups() : 1, tile_sums = register_rows * width;
        parallel_for_dynamic(work.count(), [&](WorkQueue& queue) {
            const auto s = from_thread_scratch([&](Arena& arena) {
                return Scratch{arena.take<Tile>(sizes.tiles()),
                               arena.take<Step>(total),
                               arena.take<float>(most_groups * sizes.tiles() * tile_sums),
                               arena.take<float>(width),
                               arena.take<E>(planes * sizes.plane()),
                               arena.take<E>((blocks.max_cols() + shape_.kernel_w - 1) * channels + register_depth)};
            });
            const TileRegisters registers;
            for (int64_t index; queue.take(index);) {
                const auto [block, begin, end] = work[index];
                const Layout at = layout(block.images, block.rows, block.cols);
                for (int i = 0; i < 2 && sources[i]; ++i)
                    lay_out(s.x + i * planes_of(0) * sizes.plane(), sizes.plane(), s.row, i, *sources[i], block, at);
                const int64_t tiles = number_pixels(s.tiles, block, at);
                for (int64_t pass = 0; pass < passes; ++pass) {
                    const int64_t from = pass * total / passes, to = (pass + 1) * total / passes;
                    for (int64_t group = begin; group < end; ++group) {
                        float* const sums = s.sums + (passes > 1 ? (group - begin) * tiles * tile_sums : 0);
                        if (pass == 0) {
                            epilogue.start(group, s.start, width);
                            for (int64_t row = 0; row < tiles * register_rows; ++row)
                                std::copy_n(s.start, width, sums + row * width);
                        }
                        for (int64_t i = from; i < to; ++i)
                            s.steps[i - from] = {
                                s.x + pieces[i].plane * sizes.plane() + pieces[i].row * at.cols * register_depth,
                                taps_.tap(pieces[i].source, group, 0) + pieces[i].weights * register_depth * width};
                        multiply(sums, s, tiles, to - from);
                        for (int64_t t = 0; pass + 1 == passes && t < tiles; ++t)
                            epilogue.finish(group, s.tiles[t].image_pixel, s.tiles[t].count, sums + t * tile_sums);
                    }
                }
            }
        });
    }

   private:
    static constexpr int64_t width = N * lanes<float>, piece_bytes = register_depth * sizeof(E);
    static constexpr int64_t l2_bytes = 1 << 20;    // of its 2 MB on all processors with AMX
    static constexpr int together = 4 / N;          // tiles whose sums are in registers at a time
    static constexpr int64_t chunk = 24 / N;        // pieces whose weights stay in the L1 cache
    static constexpr int64_t most_prefetched = 24;  // lines beside a tile: with more it would wait for them

    // 32 elements of a source's runs.
    struct Piece {
        int source;
        int64_t plane, row;  // where it lies among the factors: so many rows of the images further down
        int64_t weights;     // its number among those of the source
    };

    // Of 16 pixels of an image at the most.
    struct Tile {
        int64_t x, count;  // its first pixel among the factors; how many
        int64_t image_pixel[register_rows];
    };

    // One piece of all pixels, and its weights.
    struct Step {
        const E *x, *weights;
    };

    struct Scratch {
        Tile* tiles;
        Step* steps;
        float *sums, *start;  // [group][tile][16][width], [width]
        E *x, *row;           // [plane][pixel][32]; pixels of one row of an image
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
        // a tile may reach beyond the last pixel
        int64_t plane() const { return (pixels() + register_rows) * register_depth; }
    };
    Layout layout(int64_t images, int64_t rows, int64_t cols) const {
        return {images, rows, cols, rows + shape_.kernel_h - unrolled_};
    }

    // Images that would leave more than a quarter of the tiles empty. Instead, each pixel then has the runs of all rows.
    static bool few_pixels(int64_t pixels) { return pixels < 64 && round_up(pixels, register_rows) * 3 > pixels * 4; }

    int64_t row_pieces(int source) const { return taps_.row_length(source) / register_depth; }

    int64_t planes_of(int source) const { return unrolled_ * row_pieces(source); }

    // In the order in which they are added up: all rows of taps for some channels, then for the next.
    std::vector<Piece> pieces(int sources) const {
        std::vector<Piece> pieces;
        for (int i = 0; i < sources; ++i)
            for_tiles(row_pieces(i), chunk, [&](int64_t begin, int64_t length) {
                for (int64_t ky = 0; ky < shape_.kernel_h; ++ky)
                    for (int64_t piece = begin; piece < begin + length; ++piece) {
                        const int64_t number = ky * row_pieces(i) + piece, first = i * planes_of(0);
                        pieces.push_back(unrolled_ > 1 ? Piece{i, first + number, 0, number}
                                                       : Piece{i, first + piece, ky, number});
                    }
            });
        return pieces;
    }

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
        PixelNumbers numbers(shape_, block);
        for (int64_t image = 0; image < images; ++image)
            for_tiles(pixels, register_rows, [&](int64_t begin, int64_t count) {
                tiles->x = image * at.image_rows * at.cols + begin;
                tiles->count = count;
                for (int64_t p = 0; p < count; ++p) tiles->image_pixel[p] = numbers.next();
                ++tiles;
            });
        return tiles - first;
    }

    // A chunk of the steps after the other, for all tiles.
    static void multiply(float* sums, const Scratch& s, int64_t tiles, int64_t steps) {
        for_tiles(steps, chunk, [&](int64_t begin, int64_t length) {
            const Step* const next = s.steps + begin + length;
            const int64_t lines = std::min(length, steps - begin - length) * width;  // of the next chunk's weights
            int64_t line = 0, some = ceil_div(lines, ceil_div(tiles, together));
            if (some > most_prefetched) some = 0;
            for (int64_t tile = 0; tile < tiles; tile += together) {
                for (const int64_t end = std::min(line + some, lines); line < end; ++line)
                    __builtin_prefetch(next[line / width].weights + line % width * register_depth, 0, 2);
                multiply_tiles<together>(tiles - tile, sums + tile * register_rows * width, s.tiles + tile,
                                         s.steps + begin, length);
            }
        });
    }

    // sums [tile][16][width] += the products of some steps, for as many tiles as there are, at most T.
    template <int T>
    static void multiply_tiles(int64_t count, float* sums, const Tile* tiles, const Step* steps, int64_t length) {
        if constexpr (T > 1) {
            if (count < T) return multiply_tiles<T - 1>(count, sums, tiles, steps, length);
        }
        add_tile_products<T, N>(
            length, HYBRIDOPS_LAMBDA(int t, int n) { return sums + t * register_rows * width + n * lanes<float>; },
            width, HYBRIDOPS_LAMBDA(int64_t step, int t) { return steps[step].x + tiles[t].x * register_depth; },
            register_depth,
            HYBRIDOPS_LAMBDA(int64_t step, int n) { return steps[step].weights + n * 2 * lanes<float>; }, 2 * width);
    }

    ConvShape shape_;
    int64_t groups_, unrolled_;  // rows of taps of which each pixel has its own copy: 1, or all
    PackedTaps<float, N, E> taps_;
};
#endif
