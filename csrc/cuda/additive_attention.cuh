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

template <class T, class A>
struct ScoresArgs {
    Pairs<T> pairs;
    A* scores;  // (B,S,T)
};

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
    static constexpr int chunk = lanes * 4 > 32 ? lanes * 4 : 32;  // channels at a time
};
// 16 pairs a thread: nine reads of 16 bytes from shared memory for 224 multiply-adds.
using WideTile = ThreadTile<16, 16, 1, 4, 4>;
// For one row, or few: a warp a pair. What is read once is the limit here, not the arithmetic.
using NarrowTile = ThreadTile<1, 8, 32, 1, 4>;

template <class T, class A, class Act, class Tile>
struct ScoresForward {
    static constexpr int threads = Tile::threads;
    // The wide tile takes 167 registers: within 128, for two blocks, the compiler spills.
    static constexpr int resident = sizeof(A) == 4 && Tile::lanes > 1 ? 2 : 1;
    static constexpr int staged = Tile::rows + Tile::others + 1;  // rows, others, v
    static constexpr int v_row = staged - 1;
    static constexpr int vectors = Tile::chunk / 4;
    static constexpr int loads = (staged * vectors + threads - 1) / threads;  // of four channels, a thread
    static constexpr bool factored = std::is_same_v<Act, Tanh>;
    enum class Form { merged, single, direct };

    struct Shared {
        // four more than a chunk: eight threads that read eight rows read 32 different banks
        alignas(16) A channels[staged][Tile::chunk + 4];
        Bounds<A> of_warps[threads / 32];
    };

    ScoresArgs<T, A> args;
    Act act;

    static int64_t blocks(const Pairs<T>& p) {
        return p.batch * ceil_div(p.rows.count, Tile::rows) * ceil_div(p.others.count, Tile::others);
    }

    HYBRIDOPS_INLINE void operator()(Shared& shared) const {
        const Pairs<T>& p = args.pairs;
        const int64_t down = ceil_div(p.rows.count, Tile::rows), across = ceil_div(p.others.count, Tile::others);
        const int64_t block = blockIdx.x, b = block / (down * across);
        const int64_t row0 = block / across % down * Tile::rows, other0 = block % across * Tile::others;
        const int lane = threadIdx.x % Tile::lanes, other = threadIdx.x / Tile::lanes % Tile::other_threads;
        const int row = threadIdx.x / (Tile::lanes * Tile::other_threads);

        A scores[Tile::rows_each][Tile::others_each] = {};
        for (int64_t a0 = 0; a0 < p.width; a0 += Tile::chunk) {
            const Form form = stage(shared, b, row0, other0, a0);
            const int count = p.width - a0 < Tile::chunk ? static_cast<int>(p.width - a0) : Tile::chunk;
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
                const int64_t r = row0 + row + i * Tile::row_threads, o = other0 + other + j * Tile::other_threads;
                if (lane == 0 && r < p.rows.count && o < p.others.count)
                    args.scores[b * p.rows.count * p.others.count + r * p.rows.step + o * p.others.step] = score;
            }
        }
    }

    // Brings a chunk to shared memory, between barriers, and says in which form.
    HYBRIDOPS_INLINE Form stage(Shared& shared, int64_t b, int64_t row0, int64_t other0, int64_t a0) const {
        const Pairs<T>& p = args.pairs;
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

// ---- softmax ---------------------------------------------------------------------------------------------------------
// weights = softmax(scale * scores + bias) of a row, over the keys that the mask lets through; the others are exactly
// zero, and so is a row without any. NaN and inf do what they do in torch.softmax. A warp a row; each thread comes back
// to the elements that it wrote itself.

template <class T, class A>
struct MaskedSoftmax {
    static constexpr int threads = 256, resident = 4, rows_of_block = threads / 32;
    struct Shared {};

    SoftmaxArgs<T, A> args;
    A* scores;  // (B,S,T), overwritten; may be the weights
    int64_t rows, queries, keys;

    HYBRIDOPS_INLINE void operator()(Shared&) const {
        const int64_t row = int64_t{blockIdx.x} * rows_of_block + threadIdx.x / 32;
        if (row >= rows) return;
        const int64_t b = row / queries, s = row % queries;
        const bool* mask = args.mask.data ? args.mask.data + b * args.mask.batch + s * args.mask.query : nullptr;
        const A* bias = args.bias.data ? args.bias.data + b * args.bias.batch + s * args.bias.query : nullptr;
        const int lane = threadIdx.x % 32;
        A* x = scores + row * keys;
        T* weights = args.weights + row * keys;

        const A infinity = std::numeric_limits<A>::infinity();
        A most = -infinity, attended = 0;
        for (int64_t t = lane; t < keys; t += 32) {
            const bool may = !mask || mask[t * args.mask.key];
            const A value = may ? x[t] * args.scale + (bias ? bias[t * args.bias.key] : A(0)) : -infinity;
            most = value > most ? value : most;
            attended = may ? A(1) : attended;
            x[t] = value;
        }
#pragma unroll
        for (int distance = 16; distance > 0; distance /= 2) {
            const A other = __shfl_xor_sync(~0u, most, distance);
            most = other > most ? other : most;
            attended += __shfl_xor_sync(~0u, attended, distance);
        }
        if (attended == 0) most = 0;  // every exponential is zero then, not NaN
        A sum = 0;
        for (int64_t t = lane; t < keys; t += 32) {
            const A e = exp(x[t] - most);
            sum += e;
            x[t] = e;
        }
#pragma unroll
        for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(~0u, sum, distance);
        const A inverse = attended == 0 ? A(0) : 1 / sum;
        for (int64_t t = lane; t < keys; t += 32) {
            const bool may = !mask || mask[t * args.mask.key];  // a NaN in the row does not reach where none may look
            weights[t] = static_cast<T>(may ? x[t] * inverse : A(0));
        }
    }
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
