// A step of the ConvLSTM in one kernel, forward or backward: an implicit GEMM on tensor cores, and the pointwise part of
// the step (conv_lstm.cuh) as its epilogue. The product is of patches (pixels × k) and weights (k × columns). Patches are
// never stored as a matrix: a block copies each chunk of k from the images.
//
// k runs over the images x and h, the taps of the kernel, and the channels of an image. Channels come in chunks (mma.cuh);
// the last chunk is padded with zeros.
//
// Columns are in groups of 16 hidden channels. A group has a tile of 8 columns for each gate and half of the channels:
// channel 4q + 2 half + j of a group is column 2q + j of a tile. So the thread that holds columns 2q and 2q + 1 of every
// tile has all gates of four consecutive channels. The backward convolves da. Its columns are channels without gates, so
// it has one "gate".
#pragma once
#include "conv_lstm.cuh"
#include "mma.cuh"

namespace hybridops {

constexpr int channel_group = 16;  // hidden channels in a group of columns

// How the product is tiled: a block has `pixels` × `columns` of it, in warps_m × warps_n warps. A warp has m_tiles × n_tiles
// tiles of mma, 16 pixels × 8 columns each. Copies are `stages` deep.
template <int gates_, int warps_m_, int warps_n_, int m_tiles_, int groups_, int stages_>
struct Tile {
    static constexpr int gates = gates_, warps_n = warps_n_, m_tiles = m_tiles_, stages = stages_;
    static constexpr int min_blocks_per_sm = 2;  // leaves the 256 threads of a large tile 128 registers, without spills
    static constexpr int groups_per_warp = groups_, n_tiles = 2 * gates * groups_per_warp;
    static constexpr int threads = 32 * warps_m_ * warps_n;
    static constexpr int pixels = 16 * m_tiles * warps_m_, groups = groups_per_warp * warps_n;
    static constexpr int columns = channel_group * gates * groups;
};

// Images (pixels,channels) that are convolved, null = none.
template <class T>
struct Images {
    const T* data;
    int channels;
};

template <class T>
struct Convolution {
    Images<T> x, h;  // the convolutions of both are summed. In the backward x is null, and h is da of the next step
    const Words* weights;  // as PackWeights lays them out: of x, unless it is null, then of h
    int64_t groups;        // of columns
    int height, width, kernel_h, kernel_w;

    HYBRIDOPS_HOST_DEVICE int chunks(const Images<T>& images) const {
        return kernel_h * kernel_w * static_cast<int>(ceil_div(images.channels, chunk<T>));
    }
    HYBRIDOPS_HOST_DEVICE int chunks() const { return (x.data ? chunks(x) : 0) + (h.data ? chunks(h) : 0); }

    // The k-th chunk of the weights, from the first group of a block on.
    template <class Tile>
    HYBRIDOPS_INLINE const Words* weight_chunk(int k, int64_t first_group) const {
        return weights + (k * groups + first_group) * (channel_group * Tile::gates * 4);
    }
};

// Where a chunk of k is: the image (x or h), the tap, the first channel.
template <class T>
struct KIterator {
    const Convolution<T>& convolution;
    bool on_h;
    int tap_y = 0, tap_x = 0, channel = 0;

    HYBRIDOPS_INLINE explicit KIterator(const Convolution<T>& c) : convolution(c), on_h(!convolution.x.data) {}
    HYBRIDOPS_INLINE Images<T> images() const {
        return {on_h ? convolution.h.data : convolution.x.data, on_h ? convolution.h.channels : convolution.x.channels};
    }
    HYBRIDOPS_INLINE void advance() {
        channel += chunk<T>;
        if (channel < images().channels) return;
        channel = 0;
        if (++tap_x < convolution.kernel_w) return;
        tap_x = 0;
        if (++tap_y < convolution.kernel_h) return;
        tap_y = 0;
        on_h = true;
    }
};

// Copies the patches of a block's pixels to shared memory, a chunk of k at a time. A thread copies 16 bytes of some rows,
// always at the same place in the chunk.
template <class T, class Tile, bool vectors>
class PatchLoader {
   public:
    HYBRIDOPS_INLINE PatchLoader(const Convolution<T>& c, int64_t first_pixel, int64_t pixels) {
#pragma unroll
        for (int i = 0; i < rows; ++i) {
            pixel_[i] = first_pixel + (threadIdx.x + i * Tile::threads) / 4;
            x_[i] = static_cast<int>(pixel_[i] % c.width);
            // A pixel past the last image gets a y from which no tap of the kernel reaches into an image.
            y_[i] = pixel_[i] < pixels ? static_cast<int>(pixel_[i] / c.width % c.height) : -c.kernel_h;
        }
    }

    HYBRIDOPS_INLINE void copy(Words* to, const KIterator<T>& k) const {
        const Images<T> images = k.images();
        const int dy = k.tap_y - k.convolution.kernel_h / 2, dx = k.tap_x - k.convolution.kernel_w / 2;
        const int channel = k.channel + threadIdx.x % 4 * values;
#pragma unroll
        for (int i = 0; i < rows; ++i) {
            const int y = y_[i] + dy, x = x_[i] + dx;
            const bool inside =
                0 <= y && y < k.convolution.height && 0 <= x && x < k.convolution.width && channel < images.channels;
            const int64_t pixel = pixel_[i] + dy * k.convolution.width + dx;
            const T* from = images.data + (inside ? pixel * images.channels + channel : 0);
            Words* row = to + threadIdx.x + i * Tile::threads;
            if constexpr (vectors) {
                copy_async(row, from, inside);
            } else {
                const int valid = inside ? images.channels - channel : 0;
#pragma unroll
                for (int j = 0; j < values; ++j) reinterpret_cast<T*>(row)[j] = j < valid ? from[j] : T(0);
            }
        }
    }

   private:
    static constexpr int values = chunk<T> / 4, rows = Tile::pixels * 4 / Tile::threads;
    static_assert(rows * Tile::threads == Tile::pixels * 4);
    int64_t pixel_[rows];
    int y_[rows], x_[rows];
};

// The tile of a block: its first pixel and group of columns, and where the thread is in it.
template <class Tile>
struct TileCoord {
    int64_t pixel, first_group;
    int lane = threadIdx.x % 32, warp_n = threadIdx.x / 32 % Tile::warps_n, warp_m = threadIdx.x / 32 / Tile::warps_n;

    // Neighbouring blocks have the same pixels, so that these are read from L2.
    HYBRIDOPS_INLINE explicit TileCoord(const StepShape& shape) {
        const int64_t parts = ceil_div(shape.hidden, channel_group * Tile::groups);
        pixel = blockIdx.x / parts * Tile::pixels;
        first_group = blockIdx.x % parts * Tile::groups;
    }
    HYBRIDOPS_HOST_DEVICE static int64_t blocks(const StepShape& shape) {
        return ceil_div(shape.pixels, Tile::pixels) * ceil_div(shape.hidden, channel_group * Tile::groups);
    }
};

// Copies to shared memory, by all threads of a block.
template <int threads, int words>
HYBRIDOPS_INLINE void copy_words(Words* to, const Words* from) {
    for (int i = threadIdx.x; i < words; i += threads) copy_async(to + i, from + i, true);
}

// sums = the convolution. copy_weights(k) starts the copy of the k-th chunk of the weights, if one is needed; weights(k) is
// where the chunk is afterwards.
template <class T, class Tile, bool vectors, class CopyWeights, class Weights>
HYBRIDOPS_INLINE void convolve(Accumulators<Tile::m_tiles, Tile::n_tiles>& sums, const Convolution<T>& convolution,
                               const TileCoord<Tile>& coord, const PatchLoader<T, Tile, vectors>& patches,
                               Words (&pixels)[Tile::stages][Tile::pixels * 4], const CopyWeights& copy_weights,
                               const Weights& weights) {
    const int chunks = convolution.chunks();
    KIterator<T> next(convolution);
    int copied = 0;
    const auto copy_next = [&] {
        if (copied < chunks) {
            patches.copy(pixels[copied % Tile::stages], next);
            copy_weights(copied);
            next.advance();
            ++copied;
        }
        commit_copies();  // of an empty group too, because wait_for_copies() counts groups
    };
    for (int stage = 0; stage < Tile::stages - 1; ++stage) copy_next();
    sums = {};
    for (int k = 0; k < chunks; ++k) {
        wait_for_copies<Tile::stages - 2>();
        // Chunk k has arrived for all threads, and none reads chunk k - 1 any more, which the next copy overwrites.
        __syncthreads();
        copy_next();
        Fragments<Tile::m_tiles, Tile::n_tiles> f;
        // Thread (g, q) loads the q-th 16 bytes of row g, so lane i loads the i-th word of the tile.
#pragma unroll
        for (int i = 0; i < 2 * Tile::m_tiles; ++i) {
            Words& row = f.a[i / 2][i % 2];
            row = pixels[k % Tile::stages][(coord.warp_m * 2 * Tile::m_tiles + i) * 32 + coord.lane];
            if constexpr (std::is_same_v<T, float>)
#pragma unroll
                for (uint32_t& word : row.word) word = tf32(__uint_as_float(word));
        }
#pragma unroll
        for (int j = 0; j < Tile::n_tiles; ++j)
            f.b[j] = weights(k)[(coord.warp_n * Tile::n_tiles + j) * 32 + coord.lane];
        multiply_accumulate<T>(sums, f);
    }
}

// The pointwise part of the step.
template <class Tile, bool vectors, class Args>
HYBRIDOPS_INLINE void epilogue(const Args& args, const Accumulators<Tile::m_tiles, Tile::n_tiles>& sums,
                               const TileCoord<Tile>& coord) {
#pragma unroll
    for (int row = 0; row < 2 * Tile::m_tiles; ++row)
#pragma unroll
        for (int group = 0; group < Tile::groups_per_warp; ++group) {
            const int64_t pixel = coord.pixel + (coord.warp_m * 2 * Tile::m_tiles + row) * 8 + coord.lane / 4;
            const int64_t first =
                (coord.first_group + coord.warp_n * Tile::groups_per_warp + group) * channel_group + coord.lane % 4 * 4;
            if (pixel >= args.shape.pixels) continue;
            constexpr int n = vectors ? 4 : 1;
#pragma unroll
            for (int channel = 0; channel < 4; channel += n) {
                if (first + channel >= args.shape.hidden) continue;
                Vec<float, n> a[Tile::gates];
#pragma unroll
                for (int gate = 0; gate < Tile::gates; ++gate)
#pragma unroll
                    for (int i = 0; i < n; ++i) {
                        const int j = channel + i, tile = (group * Tile::gates + gate) * 2 + j / 2;
                        a[gate][i] = sums.at[row / 2][tile][row % 2 * 2 + j % 2];
                    }
                args(args.shape.offsets(pixel, first + channel), a);
            }
        }
}

HYBRIDOPS_ENTRY(conv_lstm_step_kernel)
HYBRIDOPS_ENTRY(conv_lstm_step_backward_kernel)

// Args: StepForwardArgs or StepBackwardArgs. vectors: whether the channels of a pixel are whole, aligned vectors of 16 bytes.
template <class T, class Args, class Tile, bool vectors>
struct FusedStep {
    static constexpr int threads = Tile::threads, min_blocks_per_sm = Tile::min_blocks_per_sm;
    static auto entry() {
        if constexpr (Args::backward) {
            return &conv_lstm_step_backward_kernel<FusedStep>;
        } else {
            return &conv_lstm_step_kernel<FusedStep>;
        }
    }
    struct Shared {
        Words pixels[Tile::stages][Tile::pixels * 4], weights[Tile::stages][Tile::columns * 4];
    };
    Convolution<T> convolution;
    Args args;

    HYBRIDOPS_INLINE void operator()(Shared& shared) const {
        const TileCoord<Tile> coord(args.shape);
        const PatchLoader<T, Tile, vectors> patches(convolution, coord.pixel, args.shape.pixels);
        const auto stage = [&](int k) -> Words* { return shared.weights[k % Tile::stages]; };
        const auto copy = [&](int k) {
            const Words* from = convolution.template weight_chunk<Tile>(k, coord.first_group);
            copy_words<threads, Tile::columns * 4>(stage(k), from);
        };
        Accumulators<Tile::m_tiles, Tile::n_tiles> sums;
        convolve(sums, convolution, coord, patches, shared.pixels, copy, stage);
        epilogue<Tile, vectors>(args, sums, coord);
    }
};

HYBRIDOPS_ENTRY(conv_lstm_pack_weights_kernel)

// Copies weights to the order in which convolve() reads them: (chunks of k, groups, columns of a group, chunk), padded with
// zeros.
template <class T>
struct PackWeights {
    static constexpr int threads = 256, min_blocks_per_sm = 1;  // takes 28 registers: no limit needed
    static auto entry() { return &conv_lstm_pack_weights_kernel<PackWeights>; }
    struct Shared {};
    const T* from;
    int64_t channel, gate, k, y, x;  // strides of `from`; k is the channel that is summed over
    int64_t hidden, gates, channels, kernel_h, kernel_w, groups;
    T* to;

    HYBRIDOPS_HOST_DEVICE int64_t size() const {
        return kernel_h * kernel_w * ceil_div(channels, chunk<T>) * groups * channel_group * gates * chunk<T>;
    }

    HYBRIDOPS_INLINE void operator()(Shared&) const {
        const int64_t at = int64_t{blockIdx.x} * threads + threadIdx.x;
        if (at >= size()) return;
        int64_t rest = at;
        const auto next = [&](int64_t extent) {
            const int64_t index = rest % extent;
            rest /= extent;
            return index;
        };
        const int64_t value = next(chunk<T>), column = next(8), half = next(2), gate_index = next(gates);
        const int64_t channel_index = next(groups) * channel_group + column / 2 * 4 + half * 2 + column % 2;
        const int64_t k_index = next(ceil_div(channels, chunk<T>)) * chunk<T> + value;
        const int64_t tap_x = next(kernel_w), tap_y = rest;
        T weight(0);
        if (channel_index < hidden && k_index < channels)
            weight = from[channel_index * channel + gate_index * gate + k_index * k + tap_y * y + tap_x * x];
        if constexpr (std::is_same_v<T, float>) weight = __uint_as_float(tf32(weight));
        to[at] = weight;
    }
};

}  // namespace hybridops
