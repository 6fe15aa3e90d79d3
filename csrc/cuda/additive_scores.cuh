// The score kernel of additive attention on a GPU. T storage type, A accumulator type.
//
// The score is symmetric in queries and keys. So the kernel has `rows` and `others`, and the launcher decides which of the
// two the queries are.
//
// A block computes a tile of pairs, and a thread some of these in registers. Channels are staged through shared memory in
// chunks: as exponentials e^2x where the factored tanh is in range for the whole chunk, else as they are.
#pragma once
#include <limits>

#include "../additive_attention_args.h"
#include "device.cuh"

namespace hybridops {

#include "../math/additive_score.h"

// How large |q| + |k| may be for the factored tanh. Up to `merged`, a product of four 1 + PQ is finite; up to `paired`, of
// two; up to `single`, one of them, and its reciprocal is a normal number. Beyond that, and for NaN, tanh itself is
// computed. Up to |v| = `max_v` the numerators over these products are finite too: four terms 2 |v| (1 + PQ)^3 are at most
// 8 max_v (1 + e^21)^3 = 2e37. (csrc/cpu has such ranges for |q| and |k| each.)
template <class A>
struct QuotientRange;
template <>
struct QuotientRange<float> {
    static constexpr float merged = 10.5f;  // (1 + e^21)^4 = 3e36
    static constexpr float paired = 21.0f;  // (1 + e^42)^2 = 3e36
    static constexpr float single = 43.0f;  // 1 + e^86 = 2e37
    static constexpr float max_v = 1e9f;
};
template <>
struct QuotientRange<double> {
    static constexpr double merged = 80.0;   // (1 + e^160)^4 = 8e277
    static constexpr double paired = 170.0;  // (1 + e^340)^2 = 2e295
    static constexpr double single = 350.0;  // 1 + e^700 = 1e304
    static constexpr double max_v = 1e9;
};

template <class T>
struct Side {
    const T* data;  // (B,count,width)
    int64_t count;
    int64_t row;   // the stride from one to the next
    int64_t step;  // the stride along this side in a (B,S,T) tensor
};

template <class T>
struct Pairs {
    Side<T> rows, others;
    const T* v;  // (width)
    int64_t batch, width;
    bool vectors;  // whether four channels may be read at a time
};

// Four channels from a0 on, zeros past the last.
template <class A, class T>
HYBRIDOPS_INLINE Vec<A, 4> load_channels(const T* row, int64_t a0, int64_t width, bool vectors) {
    if (vectors && a0 < width) return load<A, 4>(row + a0);
    Vec<A, 4> x;
#pragma unroll
    for (int i = 0; i < 4; ++i) x[i] = a0 + i < width ? static_cast<A>(row[a0 + i]) : A(0);
    return x;
}

// The largest magnitudes among the rows and among the others.
template <class A>
struct Bounds {
    A row, other;
};

// The bounds of all threads of a block. It is a barrier too. Between two calls there must be another one.
template <int warps, class A>
HYBRIDOPS_INLINE Bounds<A> block_max(Bounds<A> valid_rows, Bounds<A> (&warp_bounds)[warps]) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
        valid_rows.row = max_magnitude(valid_rows.row, __shfl_xor_sync(~0u, valid_rows.row, distance));
        valid_rows.other = max_magnitude(valid_rows.other, __shfl_xor_sync(~0u, valid_rows.other, distance));
    }
    if (threadIdx.x % 32 == 0) warp_bounds[threadIdx.x / 32] = valid_rows;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < warps; ++i)
        valid_rows = {max_magnitude(valid_rows.row, warp_bounds[i].row),
                      max_magnitude(valid_rows.other, warp_bounds[i].other)};
    return valid_rows;
}

// Ways to compute sum_a v_a act(x_a + y_a) over four channels. In the factored ones, v is -2v, and the sum of v is left
// out: tanh = 1 - 2r.
struct Merged {  // one reciprocal for four channels; x, y: exponentials
    template <class A>
    HYBRIDOPS_INLINE A operator()(const Vec<A, 4>& x, const Vec<A, 4>& y, const Vec<A, 4>& v) const {
        const auto f = sum_of_quotients(v[0], x[0] * y[0] + 1, v[1], x[1] * y[1] + 1, v[2], x[2] * y[2] + 1, v[3],
                                        x[3] * y[3] + 1);
        return f.numerator * reciprocal(f.denominator);
    }
};

struct Single {  // one reciprocal for each channel; x, y: exponentials
    template <class A>
    HYBRIDOPS_INLINE A operator()(const Vec<A, 4>& x, const Vec<A, 4>& y, const Vec<A, 4>& v) const {
        A sum = 0;
#pragma unroll
        for (int i = 0; i < 4; ++i) sum += v[i] * reciprocal(x[i] * y[i] + 1);
        return sum;
    }
};

template <class Act>
struct Direct {  // the activation itself
    Act act;
    template <class A>
    HYBRIDOPS_INLINE A operator()(const Vec<A, 4>& x, const Vec<A, 4>& y, const Vec<A, 4>& v) const {
        A sum = 0;
#pragma unroll
        for (int i = 0; i < 4; ++i) sum += v[i] * act.value(x[i] + y[i]);
        return sum;
    }
};

// How the 256 threads of a block share a tile: row_threads × other_threads, with threads_per_pair for the channels of each
// pair. A thread computes rows_per_thread × others_per_thread pairs.
template <int row_threads_, int other_threads_, int threads_per_pair_, int rows_per_thread_, int others_per_thread_>
struct ThreadTile {
    static constexpr int row_threads = row_threads_, other_threads = other_threads_,
                         threads_per_pair = threads_per_pair_;
    static constexpr int rows_per_thread = rows_per_thread_, others_per_thread = others_per_thread_;
    static constexpr int rows = row_threads * rows_per_thread, others = other_threads * others_per_thread;
    static constexpr int threads = row_threads * other_threads * threads_per_pair;
};
// 16 pairs a thread: 9 reads of 16 bytes from shared memory for 224 multiply-adds. A tile is 16 × 64 pairs, with four
// threads for the channels of a pair. Larger tiles would often be fewer than there are multiprocessors.
using WideTile = ThreadTile<4, 16, 4, 4, 4>;
// For one row, or few: a warp for each pair. Here memory is the limit, not arithmetic: nothing is read twice.
using NarrowTile = ThreadTile<1, 8, 32, 1, 4>;

template <class T, class A, class Act, class Tile>
struct ScoreTile {
    static constexpr int threads = Tile::threads;
    // With 16 pairs a thread it takes up to 212 registers (make cuda-check). Two blocks would leave it 128, and it spills.
    static constexpr int min_blocks_per_sm =
        sizeof(A) == 4 && Tile::others_per_thread * Tile::rows_per_thread < 16 ? 2 : 1;
    static constexpr int staged_rows = Tile::rows + Tile::others + 1;  // rows, others, v
    static constexpr int v_row = staged_rows - 1;
    static constexpr int min_chunk = 256 / sizeof(A);  // channels; more bytes would not fit into 48 KiB in attention
    static constexpr int chunk = Tile::threads_per_pair * 4 > min_chunk ? Tile::threads_per_pair * 4 : min_chunk;
    static constexpr int vectors = chunk / 4;
    static constexpr int loads_per_thread =
        (staged_rows * vectors + threads - 1) / threads;  // of four channels, a thread
    static constexpr bool factored = std::is_same_v<Act, Tanh>;
    enum class Form { merged, single, direct };

    struct Shared {
        // Rows are padded so that eight threads that read 16 bytes each read 32 different banks, whether they are of one
        // pair, and read one row, or of several.
        alignas(16) A channels[staged_rows][chunk + 4 * Tile::threads_per_pair % 32];
        Bounds<A> warp_bounds[threads / 32];
    };

    Pairs<T> pairs;
    Act act;

    // Computes the tile from (row0, other0) on. Calls emit(row, other, score) once for each pair, in one of its threads;
    // row and other count from (row0, other0).
    template <class Take>
    HYBRIDOPS_INLINE void operator()(Shared& shared, int64_t b, int64_t row0, int64_t other0, const Take& emit) const {
        const Pairs<T>& p = pairs;
        const int lane = threadIdx.x % Tile::threads_per_pair,
                  other = threadIdx.x / Tile::threads_per_pair % Tile::other_threads;
        const int row = threadIdx.x / (Tile::threads_per_pair * Tile::other_threads);

        A scores[Tile::rows_per_thread][Tile::others_per_thread] = {};
        for (int64_t a0 = 0; a0 < p.width; a0 += chunk) {
            const Form form = stage(shared, b, row0, other0, a0);
            const int count = p.width - a0 < chunk ? static_cast<int>(p.width - a0) : chunk;
            if (form == Form::merged) {
                add<true>(scores, shared, row, other, lane, count, Merged{});
            } else if (form == Form::single) {
                add<true>(scores, shared, row, other, lane, count, Single{});
            } else {
                add<false>(scores, shared, row, other, lane, count, Direct<Act>{act});
            }
        }
#pragma unroll
        for (int i = 0; i < Tile::rows_per_thread; ++i) {
#pragma unroll
            for (int j = 0; j < Tile::others_per_thread; ++j) {
                A score = scores[i][j];
#pragma unroll
                for (int distance = Tile::threads_per_pair / 2; distance > 0; distance /= 2)
                    score += __shfl_xor_sync(~0u, score, distance);
                if (lane == (i * Tile::others_per_thread + j) % Tile::threads_per_pair)
                    emit(row + i * Tile::row_threads, other + j * Tile::other_threads, score);
            }
        }
    }

    // Loads a chunk to shared memory, between two barriers, and returns in which form.
    HYBRIDOPS_INLINE Form stage(Shared& shared, int64_t b, int64_t row0, int64_t other0, int64_t a0) const {
        const Pairs<T>& p = pairs;
        Vec<A, 4> x[loads_per_thread];
        Bounds<A> bounds = {0, 0};
#pragma unroll
        for (int i = 0; i < loads_per_thread; ++i) {
            const int index = threadIdx.x + i * threads, line = index / vectors;
            const bool is_row = line < Tile::rows, is_v = line == v_row;
            // By value: a reference to one of the two sides would have both copied to local memory.
            const int64_t side_count = is_row ? p.rows.count : p.others.count;
            const T* side = is_row ? p.rows.data : p.others.data;
            const int64_t side_row = is_row ? p.rows.row : p.others.row;
            const int64_t at = is_row ? row0 + line : other0 + line - Tile::rows;
            const bool valid = line < staged_rows && (is_v || at < side_count);
            const T* from = is_v ? p.v : side + (b * side_count + at) * side_row;
            x[i] = valid ? load_channels<A>(from, a0 + index % vectors * 4, p.width, p.vectors) : Vec<A, 4>{};
            if constexpr (factored) {
                A largest = 0;
#pragma unroll
                for (int m = 0; m < 4; ++m) largest = max_magnitude(largest, x[i][m]);
                // A v that is too large rules out the factored forms.
                if (is_v) largest = largest <= QuotientRange<A>::max_v ? A(0) : std::numeric_limits<A>::infinity();
                bounds.row = max_magnitude(bounds.row, is_row ? largest : A(0));
                bounds.other = max_magnitude(bounds.other, is_row ? A(0) : largest);
            }
        }
        Form form = Form::direct;
        if constexpr (factored) {
            bounds = block_max(bounds, shared.warp_bounds);
            const A bound = bounds.row + bounds.other;
            if (bound <= QuotientRange<A>::single) form = Form::single;
            if (bound <= QuotientRange<A>::merged) form = Form::merged;
        } else {
            __syncthreads();  // the previous chunk has been read
        }
#pragma unroll
        for (int i = 0; i < loads_per_thread; ++i) {
            const int index = threadIdx.x + i * threads, line = index / vectors;
            if (form != Form::direct) {
#pragma unroll
                for (int m = 0; m < 4; ++m) x[i][m] = line == v_row ? -2 * x[i][m] : exp(2 * x[i][m]);
            }
            if (line < staged_rows) store(&shared.channels[line][index % vectors * 4], x[i]);
        }
        __syncthreads();
        return form;
    }

    // Adds the sums over a chunk to the scores. `sums_v`: for the factored forms, whose terms lack the sum of v.
    template <bool sums_v, class Term>
    static HYBRIDOPS_INLINE void add(A (&scores)[Tile::rows_per_thread][Tile::others_per_thread], const Shared& shared,
                                     int row, int other, int lane, int count, const Term& term) {
        // A chunk is summed separately first. sum(v) and the quotients partly cancel, so the rounding error of a chunk stays
        // one of its own size.
        A sums[Tile::rows_per_thread][Tile::others_per_thread] = {}, sum_v = 0;
        for (int a = 4 * lane; a < count; a += 4 * Tile::threads_per_pair) {
            const auto v = load<A, 4>(&shared.channels[v_row][a]);
            if constexpr (sums_v) sum_v += A(-0.5) * (v[0] + v[1] + v[2] + v[3]);
            Vec<A, 4> y[Tile::others_per_thread];
#pragma unroll
            for (int j = 0; j < Tile::others_per_thread; ++j)
                y[j] = load<A, 4>(&shared.channels[Tile::rows + other + j * Tile::other_threads][a]);
#pragma unroll
            for (int i = 0; i < Tile::rows_per_thread; ++i) {
                const auto x = load<A, 4>(&shared.channels[row + i * Tile::row_threads][a]);
#pragma unroll
                for (int j = 0; j < Tile::others_per_thread; ++j) sums[i][j] += term(x, y[j], v);
            }
        }
#pragma unroll
        for (int i = 0; i < Tile::rows_per_thread; ++i) {
#pragma unroll
            for (int j = 0; j < Tile::others_per_thread; ++j) scores[i][j] += sums[i][j] + sum_v;
        }
    }
};

HYBRIDOPS_ENTRY(additive_scores_kernel)

template <class T, class A, class Act, class Tile>
struct ScoresForward {
    using Scores = ScoreTile<T, A, Act, Tile>;
    using Shared = typename Scores::Shared;
    static constexpr int threads = Tile::threads, min_blocks_per_sm = Scores::min_blocks_per_sm;
    static auto entry() { return &additive_scores_kernel<ScoresForward>; }

    Scores tile;
    A* scores;  // (B,S,T)

    static int64_t blocks(const Pairs<T>& p) {
        return p.batch * ceil_div(p.rows.count, Tile::rows) * ceil_div(p.others.count, Tile::others);
    }

    HYBRIDOPS_INLINE void operator()(Shared& shared) const {
        const Pairs<T>& p = tile.pairs;
        const int64_t row_tiles = ceil_div(p.rows.count, Tile::rows),
                      column_tiles = ceil_div(p.others.count, Tile::others);
        const int64_t block = blockIdx.x, b = block / (row_tiles * column_tiles);
        const int64_t row0 = block / column_tiles % row_tiles * Tile::rows,
                      other0 = block % column_tiles * Tile::others;
        A* to = scores + b * p.rows.count * p.others.count;
        tile(shared, b, row0, other0, [&](int row, int other, A score) {
            const int64_t r = row0 + row, o = other0 + other;
            if (r < p.rows.count && o < p.others.count) to[r * p.rows.step + o * p.others.step] = score;
        });
    }
};

}  // namespace hybridops
