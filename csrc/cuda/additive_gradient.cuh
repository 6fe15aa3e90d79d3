// The gradients of the scores on a GPU. With rows x, others y, z = x + y, and ds the gradients of the scores:
//   dx_r = v sum_o ds act'(z)     dy_o = v sum_r ds act'(z)     dv = sum_ro ds act(z)
// A block has 32 channels, some tiles of rows of one batch entry, and all others. So it has all terms of dx. Its parts of
// dy and dv go to memory of its own. SumParts adds up the parts of all blocks, without atomics: always in the same order.
#pragma once
#include "additive_scores.cuh"

namespace hybridops {

template <class T, class A>
struct ScoresBackwardArgs {
    Pairs<T> pairs;
    const A* grad;   // (B,S,T)
    int64_t splits;  // the number of blocks that share the tiles of rows of a batch entry
    T* d_rows;       // (B,rows,width), apart as the rows are; null = not wanted
    A* d_others;     // (splits,B,others,width), without the factor v
    A* dv;           // (splits,B,width), null = not wanted
};

// act(x + y) for n values of x and one y, and its slope. This one takes e^2x and e^2y.
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

// This one takes x and y.
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

HYBRIDOPS_ENTRY(additive_scores_backward_kernel)

template <class T, class A, class Act>
struct ScoresBackward {
    static constexpr int threads = 256,
                         min_blocks_per_sm = sizeof(A) == 4 ? 2 : 1;  // 128 registers without spills; in float64 168
    static auto entry() { return &additive_scores_backward_kernel<ScoresBackward>; }
    static constexpr int warps = threads / 32, columns = 32;
    static constexpr int rows_per_thread = 8, tile_rows = warps * rows_per_thread, tile_others = 16;
    static constexpr bool factored = std::is_same_v<Act, Tanh>;

    struct Shared {
        alignas(16) A grad[tile_others][tile_rows + 4];  // padded: consecutive others are in different banks
        A y[tile_others][columns];
        A sums[warps][tile_others][columns];
        Bounds<A> warp_bounds[warps];
    };

    ScoresBackwardArgs<T, A> args;
    Act act;

    static int64_t row_tiles(int64_t rows) { return ceil_div(rows, tile_rows); }
    static int64_t blocks(int64_t batch, int64_t width, int64_t splits) {
        return splits * batch * ceil_div(width, columns);
    }

    HYBRIDOPS_INLINE void operator()(Shared& shared) const {
        const Pairs<T>& p = args.pairs;
        const int64_t column_tiles = ceil_div(p.width, columns),
                      part = blockIdx.x / column_tiles;  // (split, batch entry)
        const int64_t split = part / p.batch, b = part % p.batch;
        const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        const int64_t column = blockIdx.x % column_tiles * columns + lane;
        const bool valid_column = column < p.width;
        const A v = valid_column ? static_cast<A>(p.v[column]) : A(0);

        A dv = 0;
        for (int64_t tile = split; tile < ceil_div(p.rows.count, tile_rows); tile += args.splits) {
            const int64_t row0 = tile * tile_rows + warp * rows_per_thread, left = p.rows.count - row0;
            const int valid_rows = left < 0 ? 0 : left < rows_per_thread ? static_cast<int>(left) : rows_per_thread;
            const int64_t first = (b * p.rows.count + row0) * p.rows.row + column;
            A x[rows_per_thread], e2x[rows_per_thread], dx[rows_per_thread] = {};
            A row_bound = 0;
#pragma unroll
            for (int i = 0; i < rows_per_thread; ++i) {
                x[i] = valid_column && i < valid_rows ? static_cast<A>(p.rows.data[first + i * p.rows.row]) : A(0);
                e2x[i] = factored ? exp(2 * x[i]) : A(0);
                row_bound = max_magnitude(row_bound, x[i]);
            }
            for (int64_t other0 = 0; other0 < p.others.count; other0 += tile_others) {
                const int64_t others = p.others.count - other0;
                const int count = others < tile_others ? static_cast<int>(others) : tile_others;
                if (stage(shared, b, tile * tile_rows, other0, column, row_bound)) {
                    pairs(shared, dx, dv, e2x, rows_per_thread, count, FactoredTanh<A>{});
                } else {
                    pairs(shared, dx, dv, x, valid_rows, count, DirectValues<A, Act>{act});
                }
                __syncthreads();
#pragma unroll
                for (int i = 0; i < tile_others; i += warps) {
                    const int o = warp + i;
                    if (o >= count || !valid_column) continue;
                    A* to = args.d_others + (part * p.others.count + other0 + o) * p.width + column;
                    A sum = 0;
#pragma unroll
                    for (int w = 0; w < warps; ++w) sum += shared.sums[w][o][lane];
                    *to = tile == split ? sum : *to + sum;
                }
            }
#pragma unroll
            for (int i = 0; i < rows_per_thread; ++i)
                if (args.d_rows && valid_column && i < valid_rows)
                    args.d_rows[first + i * p.rows.row] = static_cast<T>(v * dx[i]);
        }
        if (!args.dv) return;
        __syncthreads();
        shared.sums[warp][0][lane] = dv;
        __syncthreads();
        if (warp != 0 || !valid_column) return;
        A sum = 0;
#pragma unroll
        for (int w = 0; w < warps; ++w) sum += shared.sums[w][0][lane];
        args.dv[part * p.width + column] = sum;
    }

    // Loads a tile's gradients and others to shared memory, between two barriers. Returns whether the others are
    // exponentials: they are where the factored tanh is in range for all pairs of the tile.
    HYBRIDOPS_INLINE bool stage(Shared& shared, int64_t b, int64_t row0, int64_t other0, int64_t column,
                                A row_bound) const {
        const Pairs<T>& p = args.pairs;
        const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        constexpr int others_per_warp = tile_others / warps;
        A y[others_per_warp];
        Bounds<A> bounds = {row_bound, 0};
#pragma unroll
        for (int i = 0; i < others_per_warp; ++i) {
            const int64_t o = other0 + warp + i * warps;
            const bool valid = o < p.others.count && column < p.width;
            y[i] = valid ? static_cast<A>(p.others.data[(b * p.others.count + o) * p.others.row + column]) : A(0);
            bounds.other = max_magnitude(bounds.other, y[i]);
        }
        bool in_range = false;
        if constexpr (factored) {
            bounds = block_max(bounds, shared.warp_bounds);
            in_range = bounds.row + bounds.other <= QuotientRange<A>::paired;
        } else {
            __syncthreads();  // the previous tile has been read
        }
#pragma unroll
        for (int i = 0; i < others_per_warp; ++i) shared.y[warp + i * warps][lane] = in_range ? exp(2 * y[i]) : y[i];
        const A* grad = args.grad + b * p.rows.count * p.others.count;
        for (int i = threadIdx.x; i < tile_rows * tile_others; i += threads) {
            // Consecutive threads read consecutive addresses.
            const int r = p.rows.step == 1 ? i % tile_rows : i / tile_others;
            const int o = p.rows.step == 1 ? i / tile_rows : i % tile_others;
            const bool valid = row0 + r < p.rows.count && other0 + o < p.others.count;
            shared.grad[o][r] = valid ? grad[(row0 + r) * p.rows.step + (other0 + o) * p.others.step] : A(0);
        }
        __syncthreads();
        return in_range;
    }

    // Adds the pairs of a warp's rows and the others of a tile. Rows from `valid_rows` on do not exist. With the factored
    // tanh they add zeros; otherwise they are left out, since a zero gradient times an infinite activation is NaN.
    template <class Form>
    static HYBRIDOPS_INLINE void pairs(Shared& shared, A (&dx)[rows_per_thread], A& dv, const A (&x)[rows_per_thread],
                                       int valid_rows, int count, const Form& form) {
        const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
        for (int o = 0; o < count; ++o) {
            const A y = shared.y[o][lane];
            A value[rows_per_thread], dy = 0;
            form.values(value, x, y);
#pragma unroll
            for (int i = 0; i < rows_per_thread; i += 4) {
                const auto ds = load<A, 4>(&shared.grad[o][warp * rows_per_thread + i]);
#pragma unroll
                for (int m = 0; m < 4; ++m) {
                    if (i + m >= valid_rows) continue;
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

HYBRIDOPS_ENTRY(additive_sum_parts_kernel)

// A row of `width` of out = v * sum of that row of all parts. Without the factor if v is null.
template <class T, class A>
struct SumParts {
    static constexpr int threads = 256, min_blocks_per_sm = 4;  // takes 28 of 64 registers
    static auto entry() { return &additive_sum_parts_kernel<SumParts>; }
    struct Shared {};

    const A* parts;  // (number, count)
    int64_t number, count;
    const T* v;
    int64_t width;
    T* out;       // (count), in rows
    int64_t row;  // that are so far apart

    HYBRIDOPS_INLINE void operator()(Shared&) const {
        const int64_t i = int64_t{blockIdx.x} * threads + threadIdx.x;
        if (i >= count) return;
        A sum = 0;
        for (int64_t part = 0; part < number; ++part) sum += parts[part * count + i];
        const int64_t column = i % width;
        out[i / width * row + column] = static_cast<T>(v ? static_cast<A>(v[column]) * sum : sum);
    }
};

}  // namespace hybridops
