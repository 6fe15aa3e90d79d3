// All steps of the ConvLSTM in one cooperative kernel, forward or backward. For small problems, whose blocks of a step all
// run at once. A block keeps the same pixels and channels, and its columns of the recurrent weights in shared memory.
// Between two steps there is a grid barrier, and what the next step convolves, with the pixels of other blocks around its
// own, goes through L2.
#pragma once
#include "conv_lstm_step.cuh"

namespace hybridops {

HYBRIDOPS_COOPERATIVE_ENTRY(conv_lstm_persistent_kernel)
HYBRIDOPS_COOPERATIVE_ENTRY(conv_lstm_persistent_backward_kernel)

template <class T, class Args, class Tile>
struct PersistentSteps {
    static constexpr int threads = Tile::threads, min_blocks_per_sm = 1;  // shared memory is the limit, not registers
    static auto entry() {
        if constexpr (Args::backward) {
            return &conv_lstm_persistent_backward_kernel<PersistentSteps>;
        } else {
            return &conv_lstm_persistent_kernel<PersistentSteps>;
        }
    }
    struct Shared {
        Words pixels[Tile::stages][Tile::pixels * 4], weights[][Tile::columns * 4];
    };
    Convolution<T> convolution;  // of the first step: of h alone, without x
    Args args;                   // of the first step
    int64_t steps;
    unsigned* barrier_counter;  // of grid_barrier(), zero

    int64_t weight_bytes() const {
        return int64_t{convolution.chunks(convolution.h)} * sizeof(Words[Tile::columns * 4]);
    }

    HYBRIDOPS_INLINE void operator()(Shared& shared) const {
        const TileCoord<Tile> coord(args.shape);
        Convolution<T> c = convolution;
        const PatchLoader<T, Tile, true> patches(c, coord.pixel, args.shape.pixels);
        for (int k = 0; k < c.chunks(c.h); ++k) {
            const Words* from = c.template weight_chunk<Tile>(k, coord.first_group);
            copy_words<threads, Tile::columns * 4>(shared.weights[k], from);
        }
        commit_copies();
        const auto weights = [&](int k) -> const Words* { return shared.weights[k]; };
        for (int64_t i = 0; i < steps; ++i) {
            if (i > 0) grid_barrier(barrier_counter, static_cast<unsigned>(i));
            const Args step = args.at(i);
            Accumulators<Tile::m_tiles, Tile::n_tiles> sums;
            convolve(sums, c, coord, patches, shared.pixels, [](int) {}, weights);
            epilogue<Tile, true>(step, sums, coord);
            c.h.data = step.next_conv_input();
        }
    }
};

}  // namespace hybridops
