// All steps of the ConvLSTM as one kernel, forward or back, for problems so small that all blocks of a step are on the GPU
// at once: a block keeps its pixels, its channels and, in shared memory, its columns of the recurrent weights. Between two
// steps all blocks wait for one another, and what the next step convolves, halo included, goes through L2.
#pragma once
#include "conv_lstm_step.cuh"

namespace hybridops {

template <class T, class Args, class Tile>
struct PersistentSteps {
    static constexpr int threads = Tile::threads, resident = 1;
    struct Shared {
        Words pixels[Tile::stages][Tile::pixels * 4], weights[][Tile::columns * 4];
    };
    Convolution<T> convolution;  // of the first step; of h alone
    Args args;                   // likewise
    int64_t steps;
    unsigned* arrived;  // zero

    int64_t weight_bytes() const {
        return int64_t{convolution.chunks(convolution.h)} * sizeof(Words[Tile::columns * 4]);
    }

    HYBRIDOPS_INLINE void operator()(Shared& shared) const {
        const Part<Tile> part(args.shape);
        Convolution<T> c = convolution;
        const Patches<T, Tile, true> patches(c, part.pixel, args.shape.pixels);
        for (int k = 0; k < c.chunks(c.h); ++k) {
            const Words* from = c.template weights_of<Tile>(k, part.first_group);
            copy_words<threads, Tile::columns * 4>(shared.weights[k], from);
        }
        commit_copies();
        const auto weights = [&](int k) -> const Words* { return shared.weights[k]; };
        for (int64_t i = 0; i < steps; ++i) {
            if (i > 0) wait_for_all_blocks(arrived, static_cast<unsigned>(i));
            const Args step = args.at(i);
            Sums<Tile::m_tiles, Tile::n_tiles> sums;
            convolve(sums, c, part, patches, shared.pixels, [](int) {}, weights);
            finish<Tile, true>(step, sums, part);
            c.h.data = step.result();
        }
    }
};

}  // namespace hybridops
