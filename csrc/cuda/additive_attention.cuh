// The kernels of additive attention on a GPU. The score is symmetric in queries and keys, so that a kernel knows `rows`
// and `others`, and the launcher says which is which. T storage type, A accumulator type.
#pragma once
#include <limits>

#include "../additive_attention_args.h"
#include "device.cuh"

namespace hybridops {

#include "../math/additive_score.h"

template <class T>
struct Side {
    const T* data;  // (B,count,width)
    int64_t count;
    int64_t step;  // of a (B,S,T) tensor, from one to the next
};

template <class T>
struct Pairs {
    Side<T> rows, others;
    const T* v;  // (width)
    int64_t batch, width;
    bool vectors;  // whether four channels may be read at a time
};

// Four channels from a0 on, zeros behind the last.
template <class A, class T>
HYBRIDOPS_INLINE Lanes<A, 4> load_channels(const T* row, int64_t a0, int64_t width, bool vectors) {
    if (vectors && a0 < width) return load<A, 4>(row + a0);
    Lanes<A, 4> x;
#pragma unroll
    for (int i = 0; i < 4; ++i) x[i] = a0 + i < width ? static_cast<A>(row[a0 + i]) : A(0);
    return x;
}

// The largest magnitudes among the rows and among the others that a block has read.
template <class A>
struct Bounds {
    A row, other;
};

// Those of all threads, and a barrier; the next use needs one in between.
template <int warps, class A>
HYBRIDOPS_INLINE Bounds<A> of_block(Bounds<A> mine, Bounds<A> (&of_warps)[warps]) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
        mine.row = max_magnitude(mine.row, __shfl_xor_sync(~0u, mine.row, distance));
        mine.other = max_magnitude(mine.other, __shfl_xor_sync(~0u, mine.other, distance));
    }
    if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = mine;
    __syncthreads();
#pragma unroll
    for (int i = 0; i < warps; ++i)
        mine = {max_magnitude(mine.row, of_warps[i].row), max_magnitude(mine.other, of_warps[i].other)};
    return mine;
}

// ---- scores ----------------------------------------------------------------------------------------------------------
// A block computes a tile of pairs, a thread some of them in registers. Channels come through shared memory in chunks,
// as exponentials where the factored form is exact for the whole chunk, else as they are.

// How sum_a v_a act(x_a + y_a) is computed. Of four channels, without the sum of v in the factored forms, whose v is
// -2v.
struct Merged {  // x, y: exponentials
    template <class A>
    HYBRIDOPS_INLINE A operator()(const Lanes<A, 4>& x, const Lanes<A, 4>& y, const Lanes<A, 4>& v) const {
        const auto f = sum_of_quotients(v[0], x[0] * y[0] + 1, v[1], x[1] * y[1] + 1, v[2], x[2] * y[2] + 1, v[3],
                                        x[3] * y[3] + 1);
        return f.numerator * reciprocal(f.denominator);
    }
};

struct Single {
    template <class A>
    HYBRIDOPS_INLINE A operator()(const Lanes<A, 4>& x, const Lanes<A, 4>& y, const Lanes<A, 4>& v) const {
        A sum = 0;
#pragma unroll
        for (int i = 0; i < 4; ++i) sum += v[i] * reciprocal(x[i] * y[i] + 1);
        return sum;
    }
};

template <class Act>
struct Direct {  // x, y as they are
    Act act;
    template <class A>
    HYBRIDOPS_INLINE A operator()(const Lanes<A, 4>& x, const Lanes<A, 4>& y, const Lanes<A, 4>& v) const {
        A sum = 0;
#pragma unroll
        for (int i = 0; i < 4; ++i) sum += v[i] * act.value(x[i] + y[i]);
        return sum;
    }
};

// How 256 threads share a tile: in rows, in others, and `lanes` of them in the channels of a pair.
template <int row_threads_, int other_threads_, int lanes_, int rows_each_, int others_each_>
struct ThreadTile {
    static constexpr int row_threads = row_threads_, other_threads = other_threads_, lanes = lanes_;
    static constexpr int rows_each = rows_each_, others_each = others_each_;
    static constexpr int rows = row_threads * rows_each, others = other_threads * others_each;
    static constexpr int threads = row_threads * other_threads * lanes;
};
// 16 pairs a thread: nine reads of 16 bytes from shared memory for 224 multiply-adds. No more than 16 rows by 64
// others, or there would be fewer tiles than multiprocessors: four threads share the channels of a pair.
using WideTile = ThreadTile<4, 16, 4, 4, 4>;
// For one row, or few: a warp a pair. What is read once is the limit here, not the arithmetic.
using NarrowTile = ThreadTile<1, 8, 32, 1, 4>;

template <class T, class A, class Act, class Tile>
struct ScoreTile {
    static constexpr int threads = Tile::threads;
    // With 16 pairs a thread it takes up to 212 registers: within 128, for two blocks, the compiler spills.
    static constexpr int resident = sizeof(A) == 4 && Tile::others_each * Tile::rows_each < 16 ? 2 : 1;
    static constexpr int staged = Tile::rows + Tile::others + 1;  // rows, others, v
    static constexpr int v_row = staged - 1;
    static constexpr int least_chunk = 256 / sizeof(A);  // channels at a time
    static constexpr int chunk = Tile::lanes * 4 > least_chunk ? Tile::lanes * 4 : least_chunk;
    static constexpr int vectors = chunk / 4;
    static constexpr int loads = (staged * vectors + threads - 1) / threads;  // of four channels, a thread
    static constexpr bool factored = std::is_same_v<Act, Tanh>;
    enum class Form { merged, single, direct };

    struct Shared {
        // more than a chunk: eight threads that read 16 bytes each, of as many rows or as few as they have lanes, read
        // 32 different banks
        alignas(16) A channels[staged][chunk + 4 * Tile::lanes % 32];
        Bounds<A> of_warps[threads / 32];
    };

    Pairs<T> pairs;
    Act act;

    // Calls take(row, other, score) for each pair of the tile from (row0, other0) on, counted from there, in a thread.
    template <class Take>
    HYBRIDOPS_INLINE void operator()(Shared& shared, int64_t b, int64_t row0, int64_t other0, const Take& take) const {
        const Pairs<T>& p = pairs;
        const int lane = threadIdx.x % Tile::lanes, other = threadIdx.x / Tile::lanes % Tile::other_threads;
        const int row = threadIdx.x / (Tile::lanes * Tile::other_threads);

        A scores[Tile::rows_each][Tile::others_each] = {};
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
        for (int i = 0; i < Tile::rows_each; ++i) {
#pragma unroll
            for (int j = 0; j < Tile::others_each; ++j) {
                A score = scores[i][j];
#pragma unroll
                for (int distance = Tile::lanes / 2; distance > 0; distance /= 2)
                    score += __shfl_xor_sync(~0u, score, distance);
                if (lane == (i * Tile::others_each + j) % Tile::lanes)
                    take(row + i * Tile::row_threads, other + j * Tile::other_threads, score);
            }
        }
    }

    // Brings a chunk to shared memory, between barriers, and says in which form.
    HYBRIDOPS_INLINE Form stage(Shared& shared, int64_t b, int64_t row0, int64_t other0, int64_t a0) const {
        const Pairs<T>& p = pairs;
        Lanes<A, 4> x[loads];
        Bounds<A> bounds = {0, 0};
#pragma unroll
        for (int i = 0; i < loads; ++i) {
            const int index = threadIdx.x + i * threads, line = index / vectors;
            const bool is_row = line < Tile::rows, is_v = line == v_row;
            // (by value: a reference to one of two would have both copied to local memory)
            const int64_t side_count = is_row ? p.rows.count : p.others.count;
            const T* side = is_row ? p.rows.data : p.others.data;
            const int64_t at = is_row ? row0 + line : other0 + line - Tile::rows;
            const bool there = line < staged && (is_v || at < side_count);
            const T* from = is_v ? p.v : side + (b * side_count + at) * p.width;
            x[i] = there ? load_channels<A>(from, a0 + index % vectors * 4, p.width, p.vectors) : Lanes<A, 4>{};
            if constexpr (factored) {
                A most = 0;
#pragma unroll
                for (int m = 0; m < 4; ++m) most = max_magnitude(most, x[i][m]);
                // Times the (1 + PQ)^3 of a merged numerator, a larger v, or an infinite one, would overflow.
                if (is_v) most = most <= A(1e9) ? A(0) : std::numeric_limits<A>::infinity();
                bounds.row = max_magnitude(bounds.row, is_row ? most : A(0));
                bounds.other = max_magnitude(bounds.other, is_row ? A(0) : most);
            }
        }
        Form form = Form::direct;
        if constexpr (factored) {
            bounds = of_block(bounds, shared.of_warps);
            const A bound = bounds.row + bounds.other;
            if (bound <= FactoredRange<A>::single) form = Form::single;
            if (bound <= FactoredRange<A>::merged) form = Form::merged;
        } else {
            __syncthreads();  // the chunk before has been read
        }
#pragma unroll
        for (int i = 0; i < loads; ++i) {
            const int index = threadIdx.x + i * threads, line = index / vectors;
            if (form != Form::direct) {
#pragma unroll
                for (int m = 0; m < 4; ++m) x[i][m] = line == v_row ? -2 * x[i][m] : exp(2 * x[i][m]);
            }
            if (line < staged) store(&shared.channels[line][index % vectors * 4], x[i]);
        }
        __syncthreads();
        return form;
    }

    // Adds the pairs' sums over a chunk: with `sums_v`, of the factored forms, sum(v) is missing in what `term` gives.
    template <bool sums_v, class Term>
    static HYBRIDOPS_INLINE void add(A (&scores)[Tile::rows_each][Tile::others_each], const Shared& shared, int row,
                                     int other, int lane, int count, const Term& term) {
        // Added up by itself first: sum(v) and the quotients cancel in part, and their rounding stays that of a chunk.
        A sums[Tile::rows_each][Tile::others_each] = {}, sum_v = 0;
        for (int a = 4 * lane; a < count; a += 4 * Tile::lanes) {
            const auto v = load<A, 4>(&shared.channels[v_row][a]);
            if constexpr (sums_v) sum_v += A(-0.5) * (v[0] + v[1] + v[2] + v[3]);
            Lanes<A, 4> y[Tile::others_each];
#pragma unroll
            for (int j = 0; j < Tile::others_each; ++j)
                y[j] = load<A, 4>(&shared.channels[Tile::rows + other + j * Tile::other_threads][a]);
#pragma unroll
            for (int i = 0; i < Tile::rows_each; ++i) {
                const auto x = load<A, 4>(&shared.channels[row + i * Tile::row_threads][a]);
#pragma unroll
                for (int j = 0; j < Tile::others_each; ++j) sums[i][j] += term(x, y[j], v);
            }
        }
#pragma unroll
        for (int i = 0; i < Tile::rows_each; ++i) {
#pragma unroll
            for (int j = 0; j < Tile::others_each; ++j) scores[i][j] += sums[i][j] + sum_v;
        }
    }
};

template <class T, class A, class Act, class Tile>
struct ScoresForward {
    using Scores = ScoreTile<T, A, Act, Tile>;
    using Shared = typename Scores::Shared;
    static constexpr int threads = Tile::threads, resident = Scores::resident;

    Scores tile;
    A* scores;  // (B,S,T)

    static int64_t blocks(const Pairs<T>& p) {
        return p.batch * ceil_div(p.rows.count, Tile::rows) * ceil_div(p.others.count, Tile::others);
    }

    HYBRIDOPS_INLINE void operator()(Shared& shared) const {
        const Pairs<T>& p = tile.pairs;
        const int64_t down = ceil_div(p.rows.count, Tile::rows), across = ceil_div(p.others.count, Tile::others);
        const int64_t block = blockIdx.x, b = block / (down * across);
        const int64_t row0 = block / across % down * Tile::rows, other0 = block % across * Tile::others;
        A* to = scores + b * p.rows.count * p.others.count;
        tile(shared, b, row0, other0, [&](int row, int other, A score) {
            const int64_t r = row0 + row, o = other0 + other;
            if (r < p.rows.count && o < p.others.count) to[r * p.rows.step + o * p.others.step] = score;
        });
    }
};

// ---- attention -------------------------------------------------------------------------------------------------------
// context = sum_t softmax(scale * scores + bias)_t value_t over the keys t that the mask lets through; the others'
// weights are exactly zero, and all is of a query that has none. NaN and inf do what they do in torch.softmax.
//
// A block has some queries, and all keys or a share of them. It takes a stretch of keys at a time: scores into shared
// memory, there the exponentials of their distance to the largest so far, then their products with the values. A larger
// maximum shrinks the sums so far (Milakov & Gimelshein 2018, arXiv:1805.02867). What shares of the keys give is put
// together by FinishAttention, which also turns scores into weights where these are wanted.

// Of a query, over the keys so far. Where `highest` is -inf it is not subtracted.
template <class A>
struct SoftmaxState {
    A highest = -std::numeric_limits<A>::infinity(), total = 0;
    A attended = 0;  // 1 if the mask has let a key through

    static constexpr int size = 3;  // in memory
    static HYBRIDOPS_INLINE SoftmaxState load(const A* from) { return {from[0], from[1], from[2]}; }
    HYBRIDOPS_INLINE void store(A* to) const { to[0] = highest, to[1] = total, to[2] = attended; }

    HYBRIDOPS_INLINE A shift() const { return highest == -std::numeric_limits<A>::infinity() ? A(0) : highest; }
    // What a sum over exponentials is to be multiplied with. Scores of -inf alone: infinity, and 0 * infinity = NaN.
    HYBRIDOPS_INLINE A inverse() const { return attended == 0 ? A(0) : 1 / total; }
};

// Its elements for a query, from a key on; null if there are none.
template <class T>
HYBRIDOPS_INLINE const T* row_of(const Broadcast<T>& x, int64_t b, int64_t s, int64_t t) {
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
    int64_t splits, share;  // among how many blocks the keys of a query are shared out, and how many each has
    A* scores;              // (B,S,T), scaled and with their bias; null: not wanted
    T* context;             // (B,S,D), written where there is one split
    A* sums;                // (splits,B,S,D), null where a stretch has all keys
    A* states;              // (splits,B,S,3), null where no FinishAttention follows
};

template <class T, class A, class Act, class Tile>
struct AttentionForward {
    using Scores = ScoreTile<T, A, Act, Tile>;
    using State = SoftmaxState<A>;
    static constexpr int threads = Tile::threads, resident = Scores::resident, warps = threads / 32;
    // 16 bytes of a value in a thread, for some queries: the sums of products are 32 registers, in float64 too. With
    // few queries, warps have different keys.
    static constexpr int columns_each = 16 / sizeof(T), most_rows_each = sizeof(T) == 2 ? 4 : 8;
    static constexpr int rows_each = Tile::rows < most_rows_each ? Tile::rows : most_rows_each;
    static constexpr int row_groups = Tile::rows / rows_each, key_groups = warps / row_groups;
    static constexpr int columns = 32 * columns_each;
    static constexpr int row_stride = Tile::rows == 1 ? 1 : Tile::rows + 4;  // for threads with a key each: other banks
    static constexpr int stretch = Tile::rows == 1 ? 512 : 512 / sizeof(A);
    static_assert(stretch % Tile::others == 0 && Tile::rows % rows_each == 0 && warps % row_groups == 0);

    struct Shared {
        union {
            typename Scores::Shared tile;
            alignas(16) A sums[key_groups][Tile::rows][columns];
        };
        alignas(16) A weights[stretch][row_stride];  // first scores
        A shrink[Tile::rows], inverse[Tile::rows];
    };

    Scores tile;  // rows are queries
    AttentionArgs<T, A> args;

    static int64_t blocks(const Pairs<T>& p, int64_t splits) {
        return p.batch * ceil_div(p.rows.count, Tile::rows) * splits;
    }

    // How many keys a block is to have: so many that there is a block for every multiprocessor, by a number that is not
    // the machine's: the same sums on all.
    static int64_t share(const Pairs<T>& p) {
        const int64_t tiles = ceil_div(p.others.count, Tile::others), splits = 128 / blocks(p, 1);
        return ceil_div(tiles, splits > 1 ? splits : 1) * Tile::others;
    }

    HYBRIDOPS_INLINE void operator()(Shared& shared) const {
        const Pairs<T>& p = tile.pairs;
        const int64_t down = ceil_div(p.rows.count, Tile::rows), block = blockIdx.x, split = block % args.splits;
        const int64_t b = block / args.splits / down, row0 = block / args.splits % down * Tile::rows;
        const int64_t first = split * args.share, left = p.others.count - first;
        const int64_t end = first + (left < args.share ? left : args.share);
        State states[ceil_div(Tile::rows, warps)];
        for (int64_t key0 = first; key0 < end; key0 += stretch) {
            const int count = end - key0 < stretch ? static_cast<int>(end - key0) : stretch;
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

    // From scores to exponentials: a warp a row, and a thread comes back to what it wrote itself.
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
            const bool* mask = row_of(args.mask, b, s, key0);
            const A* bias = row_of(args.bias, b, s, key0);
            A* scores = args.scores ? args.scores + (b * queries + s) * keys + key0 : nullptr;
            State& state = states[i];
            const State before = state;
            for (int t = lane; t < count; t += 32) {
                const bool may = !mask || mask[t * args.mask.key];
                const A score = shared.weights[t][row] * args.scale + (bias ? bias[t * args.bias.key] : A(0));
                if (scores) scores[t] = score;
                const A x = may ? score : -std::numeric_limits<A>::infinity();
                state.highest = x > state.highest ? x : state.highest;
                state.attended = may ? A(1) : state.attended;
                shared.weights[t][row] = x;
            }
#pragma unroll
            for (int distance = 16; distance > 0; distance /= 2) {
                const A highest = __shfl_xor_sync(~0u, state.highest, distance);
                const A attended = __shfl_xor_sync(~0u, state.attended, distance);
                state.highest = highest > state.highest ? highest : state.highest;
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
            const A shrink = exp(before.highest - state.shift());
            state.total = before.total * shrink + sum;
            if (lane == 0) {
                shared.shrink[row] = shrink;
                shared.inverse[row] = state.inverse();
            }
        }
    }

    // Adds the products of a stretch's weights with its values to the sums, which become the context where no other
    // keys follow, here or elsewhere. Ends with a barrier.
    HYBRIDOPS_INLINE void add_values(Shared& shared, int64_t b, int64_t split, int64_t row0, int64_t key0, int count,
                                     bool is_first, bool is_last) const {
        const int64_t queries = tile.pairs.rows.count;
        const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        const int group = warp % key_groups, first_row = warp / key_groups * rows_each;
        const T* values = args.value + (b * tile.pairs.others.count + key0) * args.width;
        for (int64_t column0 = 0; column0 < args.width; column0 += columns) {
            const int64_t column = column0 + lane * columns_each, left = args.width - column;
            Lanes<A, columns_each> sums[rows_each] = {};
            if (args.vectors && left > 0) {
                add_products(sums, shared, group, first_row, count,
                             [&](int t) { return load<A, columns_each>(values + t * args.width + column); });
            } else if (left > 0) {
                add_products(sums, shared, group, first_row, count, [&](int t) {
                    Lanes<A, columns_each> value;
#pragma unroll
                    for (int d = 0; d < columns_each; ++d)
                        value[d] = d < left ? static_cast<A>(values[t * args.width + column + d]) : A(0);
                    return value;
                });
            }
#pragma unroll
            for (int i = 0; i < rows_each; ++i) store(&shared.sums[group][first_row + i][lane * columns_each], sums[i]);
            __syncthreads();
            for (int i = threadIdx.x; i < Tile::rows * columns; i += threads) {
                const int row = i / columns;
                const int64_t s = row0 + row, d = column0 + i % columns;
                if (s >= queries || d >= args.width) continue;
                const int64_t at = (b * queries + s) * args.width + d;
                const int64_t of_split = split * tile.pairs.batch * queries * args.width + at;
                A sum = is_first ? A(0) : args.sums[of_split] * shared.shrink[row];
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
    static HYBRIDOPS_INLINE void add_products(Lanes<A, columns_each> (&sums)[rows_each], const Shared& shared,
                                              int group, int first_row, int count, const Value& value_of) {
#pragma unroll 4
        for (int t = group; t < count; t += key_groups) {
            const Lanes<A, columns_each> value = value_of(t);
            const auto weights = load<A, rows_each>(&shared.weights[t][first_row]);
#pragma unroll
            for (int i = 0; i < rows_each; ++i) {
#pragma unroll
                for (int d = 0; d < columns_each; ++d) sums[i][d] += weights[i] * value[d];
            }
        }
    }
};

// A row of the context, where the keys are shared out, and of the weights, where they are wanted: a thread an element
// of the one, then of the other.
template <class T, class A>
struct FinishAttention {
    static constexpr int threads = 256, resident = 4;
    struct Shared {};

    int64_t batch, queries, keys, width;  // B, S, T, D
    int64_t splits;
    const A *sums, *states;  // (splits,B,S,D), (splits,B,S,3)
    const A* scores;         // (B,S,T)
    Broadcast<bool> mask;
    T *context, *weights;  // (B,S,D), (B,S,T); null: nothing to do

    HYBRIDOPS_INLINE void operator()(Shared&) const {
        const int64_t rows = batch * queries, across = ceil_div(columns(), threads), row = blockIdx.x / across;
        const int64_t column = blockIdx.x % across * threads + threadIdx.x, t = column - (context ? width : 0);
        if (column >= columns()) return;
        using State = SoftmaxState<A>;
        State all;
        for (int64_t i = 0; i < splits; ++i) {
            const State one = State::load(states + (i * rows + row) * State::size);
            all.highest = one.highest > all.highest ? one.highest : all.highest;
            all.attended = one.attended > all.attended ? one.attended : all.attended;
        }
        A sum = 0;
        for (int64_t i = 0; i < splits; ++i) {
            const State one = State::load(states + (i * rows + row) * State::size);
            const A shrink = exp(one.highest - all.shift());
            all.total += one.total * shrink;
            if (t < 0) sum += sums[(i * rows + row) * width + column] * shrink;
        }
        if (t < 0) {
            context[row * width + column] = static_cast<T>(sum * all.inverse());
        } else {
            const bool* may = row_of(mask, row / queries, row % queries, t);
            // a NaN in the row does not reach where none may look
            const A weight = !may || *may ? exp(scores[row * keys + t] - all.shift()) * all.inverse() : A(0);
            weights[row * keys + t] = static_cast<T>(weight);
        }
    }

    constexpr int64_t columns() const { return (context ? width : 0) + (weights ? keys : 0); }
};

// ---- backward --------------------------------------------------------------------------------------------------------
// A block owns 32 columns a of some tiles of rows of one batch entry, against all others. With z = x + y:
//   dx_r = v sum_o ds act'(z)     dy_o = v sum_r ds act'(z)     dv = sum_ro ds act(z)
// dx is complete in a block; what it has of dy and dv goes to memory of its own and is added up by SumParts, in one
// order.

template <class T, class A>
struct ScoresBackwardArgs {
    Pairs<T> pairs;
    const A* grad;   // (B,S,T)
    int64_t splits;  // blocks that share the tiles of rows
    T* d_rows;       // (B,rows,width)
    A* d_others;     // (splits,B,others,width), without the factor v
    A* dv;           // (splits,B,width)
};

// The values of act for a few x and a y, and its slope: from e^2x and e^2y ...
template <class A>
struct FactoredTanh {
    // Two share a reciprocal: 1/a = b * 1/(ab), 1/b = a * 1/(ab).
    template <int n>
    HYBRIDOPS_INLINE void values(A (&value)[n], const A (&x)[n], A y) const {
        static_assert(n % 2 == 0);
#pragma unroll
        for (int i = 0; i < n; i += 2) {
            const A a = x[i] * y + 1, b = x[i + 1] * y + 1, r = -2 * reciprocal(a * b);
            value[i] = r * b + 1;
            value[i + 1] = r * a + 1;
        }
    }
    HYBRIDOPS_INLINE A slope(A, A, A value) const { return 1 - value * value; }
};

// ... or from x and y.
template <class A, class Act>
struct DirectValues {
    Act act;
    template <int n>
    HYBRIDOPS_INLINE void values(A (&value)[n], const A (&x)[n], A y) const {
#pragma unroll
        for (int i = 0; i < n; ++i) value[i] = act.value(x[i] + y);
    }
    HYBRIDOPS_INLINE A slope(A x, A y, A value) const { return act.slope(x + y, value); }
};

template <class T, class A, class Act>
struct ScoresBackward {
    static constexpr int threads = 256, resident = sizeof(A) == 4 ? 2 : 1;
    static constexpr int warps = threads / 32, columns = 32;
    static constexpr int rows_each = 8, tile_rows = warps * rows_each, tile_others = 16;
    static constexpr bool factored = std::is_same_v<Act, Tanh>;

    struct Shared {
        alignas(16) A grad[tile_others][tile_rows + 4];  // neighbouring others lie in different banks
        A y[tile_others][columns];
        A sums[warps][tile_others][columns];
        Bounds<A> of_warps[warps];
    };

    ScoresBackwardArgs<T, A> args;
    Act act;

    static int64_t row_tiles(const Pairs<T>& p) { return ceil_div(p.rows.count, tile_rows); }
    static int64_t blocks(const Pairs<T>& p, int64_t splits) { return splits * p.batch * ceil_div(p.width, columns); }

    HYBRIDOPS_INLINE void operator()(Shared& shared) const {
        const Pairs<T>& p = args.pairs;
        const int64_t across = ceil_div(p.width, columns), part = blockIdx.x / across;  // (split, batch entry)
        const int64_t split = part / p.batch, b = part % p.batch;
        const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        const int64_t column = blockIdx.x % across * columns + lane;
        const bool here = column < p.width;
        const A v = here ? static_cast<A>(p.v[column]) : A(0);

        A dv = 0;
        for (int64_t tile = split; tile < ceil_div(p.rows.count, tile_rows); tile += args.splits) {
            const int64_t row0 = tile * tile_rows + warp * rows_each, left = p.rows.count - row0;
            const int mine = left < 0 ? 0 : left < rows_each ? static_cast<int>(left) : rows_each;
            const int64_t first = (b * p.rows.count + row0) * p.width + column;
            A x[rows_each], e2x[rows_each], dx[rows_each] = {};
            A most_row = 0;
#pragma unroll
            for (int i = 0; i < rows_each; ++i) {
                x[i] = here && i < mine ? static_cast<A>(p.rows.data[first + i * p.width]) : A(0);
                e2x[i] = factored ? exp(2 * x[i]) : A(0);
                most_row = max_magnitude(most_row, x[i]);
            }
            for (int64_t other0 = 0; other0 < p.others.count; other0 += tile_others) {
                const int64_t others = p.others.count - other0;
                const int count = others < tile_others ? static_cast<int>(others) : tile_others;
                if (stage(shared, b, tile * tile_rows, other0, column, most_row)) {
                    pairs(shared, dx, dv, e2x, rows_each, count, FactoredTanh<A>{});
                } else {
                    pairs(shared, dx, dv, x, mine, count, DirectValues<A, Act>{act});
                }
                __syncthreads();
#pragma unroll
                for (int i = 0; i < tile_others; i += warps) {
                    const int o = warp + i;
                    if (o >= count || !here) continue;
                    A* to = args.d_others + (part * p.others.count + other0 + o) * p.width + column;
                    A sum = 0;
#pragma unroll
                    for (int w = 0; w < warps; ++w) sum += shared.sums[w][o][lane];
                    *to = tile == split ? sum : *to + sum;
                }
            }
#pragma unroll
            for (int i = 0; i < rows_each; ++i)
                if (here && i < mine) args.d_rows[first + i * p.width] = static_cast<T>(v * dx[i]);
        }
        __syncthreads();
        shared.sums[warp][0][lane] = dv;
        __syncthreads();
        if (warp != 0 || !here) return;
        A sum = 0;
#pragma unroll
        for (int w = 0; w < warps; ++w) sum += shared.sums[w][0][lane];
        args.dv[part * p.width + column] = sum;
    }

    // Brings a tile's gradients and others to shared memory, between barriers: these as exponentials, which is said,
    // where the factored form is exact for them and all rows.
    HYBRIDOPS_INLINE bool stage(Shared& shared, int64_t b, int64_t row0, int64_t other0, int64_t column,
                                A most_row) const {
        const Pairs<T>& p = args.pairs;
        const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        constexpr int each = tile_others / warps;
        A y[each];
        Bounds<A> bounds = {most_row, 0};
#pragma unroll
        for (int i = 0; i < each; ++i) {
            const int64_t o = other0 + warp + i * warps;
            const bool there = o < p.others.count && column < p.width;
            y[i] = there ? static_cast<A>(p.others.data[(b * p.others.count + o) * p.width + column]) : A(0);
            bounds.other = max_magnitude(bounds.other, y[i]);
        }
        bool in_range = false;
        if constexpr (factored) {
            bounds = of_block(bounds, shared.of_warps);
            in_range = bounds.row + bounds.other <= FactoredRange<A>::paired;
        } else {
            __syncthreads();  // the tile before has been read
        }
#pragma unroll
        for (int i = 0; i < each; ++i) shared.y[warp + i * warps][lane] = in_range ? exp(2 * y[i]) : y[i];
        const A* grad = args.grad + b * p.rows.count * p.others.count;
        for (int i = threadIdx.x; i < tile_rows * tile_others; i += threads) {
            // neighbouring threads take neighbours in memory
            const int r = p.rows.step == 1 ? i % tile_rows : i / tile_others;
            const int o = p.rows.step == 1 ? i / tile_rows : i % tile_others;
            const bool there = row0 + r < p.rows.count && other0 + o < p.others.count;
            shared.grad[o][r] = there ? grad[(row0 + r) * p.rows.step + (other0 + o) * p.others.step] : A(0);
        }
        __syncthreads();
        return in_range;
    }

    // A warp's rows against the others of a tile. Rows from `mine` on are not there: they add zeros in the factored
    // form, but a zero gradient times an infinite value of an activation would be NaN.
    template <class Form>
    static HYBRIDOPS_INLINE void pairs(Shared& shared, A (&dx)[rows_each], A& dv, const A (&x)[rows_each], int mine,
                                       int count, const Form& form) {
        const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        for (int o = 0; o < count; ++o) {
            const A y = shared.y[o][lane];
            A value[rows_each], dy = 0;
            form.values(value, x, y);
#pragma unroll
            for (int i = 0; i < rows_each; i += 4) {
                const auto ds = load<A, 4>(&shared.grad[o][warp * rows_each + i]);
#pragma unroll
                for (int m = 0; m < 4; ++m) {
                    if (i + m >= mine) continue;
                    const A dz = ds[m] * form.slope(x[i + m], y, value[i + m]);
                    dx[i + m] += dz;
                    dy += dz;
                    dv += ds[m] * value[i + m];
                }
            }
            shared.sums[warp][o][lane] = dy;
        }
    }
};

// out[i] = v[i % width] * (the sum of part[i] over all parts), without v where it is null
template <class T, class A>
struct SumParts {
    static constexpr int threads = 256, resident = 4;
    struct Shared {};

    const A* parts;  // (number, count)
    int64_t number, count;
    const T* v;
    int64_t width;
    T* out;  // (count)

    HYBRIDOPS_INLINE void operator()(Shared&) const {
        const int64_t i = int64_t{blockIdx.x} * threads + threadIdx.x;
        if (i >= count) return;
        A sum = 0;
        for (int64_t part = 0; part < number; ++part) sum += parts[part * count + i];
        out[i] = static_cast<T>(v ? static_cast<A>(v[i % width]) * sum : sum);
    }
};

}  // namespace hybridops
