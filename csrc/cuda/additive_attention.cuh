// The attention kernel on a GPU:
//   context = sum_t softmax(scale * scores + bias)_t value_t    over the keys t that the mask lets through
// The weights of the other keys are exactly zero; a query without any key has zeros for weights and context. NaN and inf
// do what they do in torch.softmax.
//
// A block has a tile of queries, and all keys or a split of them. It takes `key_block` keys at a time: their scores go to
// shared memory, are replaced there by exp(score - maximum so far), and are multiplied by the values. When the maximum
// rises, the sums so far are rescaled (online softmax: Milakov & Gimelshein 2018, arXiv:1805.02867). CombineSplits adds up
// the splits. It also computes the weights, if they are wanted.
#pragma once
#include <algorithm>
#include <limits>

#include "additive_scores.cuh"

namespace hybridops {

// The softmax of a query over the keys so far. A max_score of -inf is not subtracted, since -inf - -inf is NaN.
template <class A>
struct SoftmaxState {
    A max_score = -std::numeric_limits<A>::infinity(), exp_sum = 0;
    A attended = 0;  // 1 if the mask has let a key through

    static constexpr int size = 3;  // in memory
    static HYBRIDOPS_INLINE SoftmaxState load(const A* from) { return {from[0], from[1], from[2]}; }
    HYBRIDOPS_INLINE void store(A* to) const { to[0] = max_score, to[1] = exp_sum, to[2] = attended; }

    HYBRIDOPS_INLINE A shift() const { return max_score == -std::numeric_limits<A>::infinity() ? A(0) : max_score; }
    // The factor that normalizes sums of exponentials. With scores of -inf alone it is infinite, and 0 * inf = NaN as in
    // torch.softmax.
    HYBRIDOPS_INLINE A inverse() const { return attended == 0 ? A(0) : 1 / exp_sum; }
};

// The elements of query s from key t on; null stays null.
template <class T>
HYBRIDOPS_INLINE const T* row_ptr(const Broadcast<T>& x, int64_t b, int64_t s, int64_t t) {
    return x.data ? x.data + b * x.batch + s * x.query + t * x.key : nullptr;
}

template <class T, class A>
struct AttentionArgs {
    const T* value;  // (B,T,D)
    int64_t width;   // D
    bool vectors;    // whether 16 bytes of a value may be read at a time
    Broadcast<bool> mask;
    Broadcast<A> bias;
    A scale;
    int64_t splits, keys_per_split;  // how many splits the keys of a query have, and how many keys are in each
    A* scores;                       // (B,S,T), scaled and with bias; null = not wanted
    T* context;                      // (B,S,D), written if there is one split
    A* sums;                         // (splits,B,S,D), unused if a key_block has all keys: then null
    A* states;                       // (splits,B,S,3), null if no CombineSplits follows
};

// About one block for each of the 132 multiprocessors of an H100. A fixed number, so that sums have the same order, and the
// same bits, on every GPU. The backward, of which two blocks fit on a multiprocessor, aims at four times as many.
constexpr int64_t target_blocks = 128;

HYBRIDOPS_ENTRY(additive_attention_kernel)

template <class T, class A, class Act, class Tile>
struct AttentionForward {
    using Scores = ScoreTile<T, A, Act, Tile>;
    using State = SoftmaxState<A>;
    static constexpr int threads = Tile::threads, min_blocks_per_sm = Scores::min_blocks_per_sm, warps = threads / 32;
    static auto entry() { return &additive_attention_kernel<AttentionForward>; }
    // A thread accumulates 16 bytes of a value row for some queries, in up to 32 registers, in float64 too. With few
    // queries, warps take different keys.
    static constexpr int columns_per_thread = 16 / sizeof(T), max_rows_per_thread = sizeof(T) == 2 ? 4 : 8;
    static constexpr int rows_per_thread = Tile::rows < max_rows_per_thread ? Tile::rows : max_rows_per_thread;
    static constexpr int row_groups = Tile::rows / rows_per_thread, key_groups = warps / row_groups;
    static constexpr int columns = 32 * columns_per_thread;
    // Padded, so that threads with consecutive keys hit other banks.
    static constexpr int row_stride = Tile::rows == 1 ? 1 : Tile::rows + 4;
    // Keys at a time. Shared memory stays within the 48 KiB that a block has without cudaFuncSetAttribute.
    static constexpr int key_block = Tile::rows == 1 ? 512 : 512 / sizeof(A);
    static_assert(key_block % Tile::others == 0 && Tile::rows % rows_per_thread == 0 && warps % row_groups == 0);

    struct Shared {
        union {
            typename Scores::Shared tile;
            alignas(16) A sums[key_groups][Tile::rows][columns];
        };
        alignas(16) A weights[key_block][row_stride];  // scores, then exponentials
        A rescale[Tile::rows], inverse[Tile::rows];
    };

    Scores tile;  // rows are queries
    AttentionArgs<T, A> args;

    static int64_t blocks(int64_t batch, int64_t queries, int64_t splits) {
        return batch * ceil_div(queries, Tile::rows) * splits;
    }

    // As many splits as give about target_blocks, each of whole tiles.
    static int64_t keys_per_split(int64_t batch, int64_t queries, int64_t keys) {
        const int64_t tiles = ceil_div(keys, Tile::others);
        const int64_t splits = target_blocks / std::max<int64_t>(blocks(batch, queries, 1), 1);
        return std::max<int64_t>(ceil_div(tiles, std::max<int64_t>(splits, 1)), 1) * Tile::others;
    }

    HYBRIDOPS_INLINE void operator()(Shared& shared) const {
        const Pairs<T>& p = tile.pairs;
        const int64_t row_tiles = ceil_div(p.rows.count, Tile::rows), block = blockIdx.x, split = block % args.splits;
        const int64_t b = block / args.splits / row_tiles, row0 = block / args.splits % row_tiles * Tile::rows;
        const int64_t first = split * args.keys_per_split, left = p.others.count - first;
        const int64_t end = first + (left < args.keys_per_split ? left : args.keys_per_split);
        State states[ceil_div(Tile::rows, warps)];
        for (int64_t key0 = first; key0 < end; key0 += key_block) {
            const int count = end - key0 < key_block ? static_cast<int>(end - key0) : key_block;
            for (int other0 = 0; other0 < count; other0 += Tile::others)
                tile(shared.tile, b, row0, key0 + other0,
                     [&](int row, int other, A score) { shared.weights[other0 + other][row] = score; });
            __syncthreads();
            softmax(shared, states, b, row0, key0, count);
            __syncthreads();
            add_values(shared, b, split, row0, key0, count, key0 == first, key0 + count == end);
        }
#pragma unroll
        for (int i = 0; i < ceil_div(Tile::rows, warps); ++i) {
            const int row = threadIdx.x / 32 + i * warps;
            if (args.states && threadIdx.x % 32 == 0 && row < Tile::rows && row0 + row < p.rows.count)
                states[i].store(args.states + ((split * p.batch + b) * p.rows.count + row0 + row) * State::size);
        }
    }

    // Replaces scores by exponentials, a warp for each row. A thread reads again only what it wrote itself, so there is no
    // barrier in between.
    template <int n>
    HYBRIDOPS_INLINE void softmax(Shared& shared, State (&states)[n], int64_t b, int64_t row0, int64_t key0,
                                  int count) const {
        const int64_t queries = tile.pairs.rows.count, keys = tile.pairs.others.count;
        const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
        for (int i = 0; i < n; ++i) {
            const int row = warp + i * warps;
            const int64_t s = row0 + row;
            if (row >= Tile::rows || s >= queries) continue;  // the whole warp
            const bool* mask = row_ptr(args.mask, b, s, key0);
            const A* bias = row_ptr(args.bias, b, s, key0);
            A* scores = args.scores ? args.scores + (b * queries + s) * keys + key0 : nullptr;
            State& state = states[i];
            const State before = state;
            for (int t = lane; t < count; t += 32) {
                const bool allowed = !mask || mask[t * args.mask.key];
                const A score = shared.weights[t][row] * args.scale + (bias ? bias[t * args.bias.key] : A(0));
                if (scores) scores[t] = score;
                const A x = allowed ? score : -std::numeric_limits<A>::infinity();
                state.max_score = x > state.max_score ? x : state.max_score;
                state.attended = allowed ? A(1) : state.attended;
                shared.weights[t][row] = x;
            }
#pragma unroll
            for (int distance = 16; distance > 0; distance /= 2) {
                const A max_score = __shfl_xor_sync(~0u, state.max_score, distance);
                const A attended = __shfl_xor_sync(~0u, state.attended, distance);
                state.max_score = max_score > state.max_score ? max_score : state.max_score;
                state.attended = attended > state.attended ? attended : state.attended;
            }
            A sum = 0;
            for (int t = lane; t < count; t += 32) {
                const A e = exp(shared.weights[t][row] - state.shift());
                sum += e;
                shared.weights[t][row] = e;
            }
#pragma unroll
            for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(~0u, sum, distance);
            const A rescale = exp(before.max_score - state.shift());
            state.exp_sum = before.exp_sum * rescale + sum;
            if (lane == 0) {
                shared.rescale[row] = rescale;
                shared.inverse[row] = state.inverse();
            }
        }
    }

    // Adds weights times values of a key_block to the sums. After the last one, and without splits, they become the context.
    // Ends with a barrier.
    HYBRIDOPS_INLINE void add_values(Shared& shared, int64_t b, int64_t split, int64_t row0, int64_t key0, int count,
                                     bool is_first, bool is_last) const {
        const int64_t queries = tile.pairs.rows.count;
        const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        const int group = warp % key_groups, first_row = warp / key_groups * rows_per_thread;
        const T* values = args.value + (b * tile.pairs.others.count + key0) * args.width;
        for (int64_t column0 = 0; column0 < args.width; column0 += columns) {
            const int64_t column = column0 + lane * columns_per_thread, left = args.width - column;
            Vec<A, columns_per_thread> sums[rows_per_thread] = {};
            if (args.vectors && left > 0) {
                add_products(sums, shared, group, first_row, count,
                             [&](int t) { return load<A, columns_per_thread>(values + t * args.width + column); });
            } else if (left > 0) {
                add_products(sums, shared, group, first_row, count, [&](int t) {
                    Vec<A, columns_per_thread> value;
#pragma unroll
                    for (int d = 0; d < columns_per_thread; ++d)
                        value[d] = d < left ? static_cast<A>(values[t * args.width + column + d]) : A(0);
                    return value;
                });
            }
#pragma unroll
            for (int i = 0; i < rows_per_thread; ++i)
                store(&shared.sums[group][first_row + i][lane * columns_per_thread], sums[i]);
            __syncthreads();
            for (int i = threadIdx.x; i < Tile::rows * columns; i += threads) {
                const int row = i / columns;
                const int64_t s = row0 + row, d = column0 + i % columns;
                if (s >= queries || d >= args.width) continue;
                const int64_t at = (b * queries + s) * args.width + d;
                const int64_t of_split = split * tile.pairs.batch * queries * args.width + at;
                A sum = is_first ? A(0) : args.sums[of_split] * shared.rescale[row];
#pragma unroll
                for (int g = 0; g < key_groups; ++g) sum += shared.sums[g][row][i % columns];
                if (is_last && args.splits == 1) {
                    args.context[at] = static_cast<T>(sum * shared.inverse[row]);
                } else {
                    args.sums[of_split] = sum;
                }
            }
            __syncthreads();
        }
    }

    template <class Value>
    static HYBRIDOPS_INLINE void add_products(Vec<A, columns_per_thread> (&sums)[rows_per_thread], const Shared& shared,
                                              int group, int first_row, int count, const Value& value_of) {
#pragma unroll 4  // so that several loads of values are in flight
        for (int t = group; t < count; t += key_groups) {
            const Vec<A, columns_per_thread> value = value_of(t);
            const auto weights = load<A, rows_per_thread>(&shared.weights[t][first_row]);
#pragma unroll
            for (int i = 0; i < rows_per_thread; ++i) {
#pragma unroll
                for (int d = 0; d < columns_per_thread; ++d) sums[i][d] += weights[i] * value[d];
            }
        }
    }
};

HYBRIDOPS_ENTRY(additive_attention_combine_kernel)

// Computes a row of the context from the splits, and a row of the weights from the scores, or only one of the two. A thread
// has one element: those of the context come first, then the weights.
template <class T, class A>
struct CombineSplits {
    static constexpr int threads = 256, min_blocks_per_sm = 4;  // takes 56 of 64 registers in float32
    static auto entry() { return &additive_attention_combine_kernel<CombineSplits>; }
    struct Shared {};

    int64_t batch, queries, keys, width;  // B, S, T, D
    int64_t splits;
    const A *sums, *states;  // (splits,B,S,D), (splits,B,S,3)
    const A* scores;         // (B,S,T)
    Broadcast<bool> mask;
    T *context, *weights;  // (B,S,D), (B,S,T); null = not wanted

    HYBRIDOPS_INLINE void operator()(Shared&) const {
        const int64_t rows = batch * queries, column_tiles = ceil_div(columns(), threads),
                      row = blockIdx.x / column_tiles;
        const int64_t column = blockIdx.x % column_tiles * threads + threadIdx.x, t = column - (context ? width : 0);
        if (column >= columns()) return;
        using State = SoftmaxState<A>;
        State all;
        for (int64_t i = 0; i < splits; ++i) {
            const State one = State::load(states + (i * rows + row) * State::size);
            all.max_score = one.max_score > all.max_score ? one.max_score : all.max_score;
            all.attended = one.attended > all.attended ? one.attended : all.attended;
        }
        A sum = 0;
        for (int64_t i = 0; i < splits; ++i) {
            const State one = State::load(states + (i * rows + row) * State::size);
            const A rescale = exp(one.max_score - all.shift());
            all.exp_sum += one.exp_sum * rescale;
            if (t < 0) sum += sums[(i * rows + row) * width + column] * rescale;
        }
        if (t < 0) {
            context[row * width + column] = static_cast<T>(sum * all.inverse());
        } else {
            const bool* allowed = row_ptr(mask, row / queries, row % queries, t);
            // The weight of a masked key is zero, even if there is a NaN in the row.
            const A weight = !allowed || *allowed ? exp(scores[row * keys + t] - all.shift()) * all.inverse() : A(0);
            weights[row * keys + t] = static_cast<T>(weight);
        }
    }

    constexpr int64_t columns() const { return (context ? width : 0) + (weights ? keys : 0); }
};

}  // namespace hybridops
