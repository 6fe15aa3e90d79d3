// Minimal filtering F(M,R): M outputs of a filter of R taps from M + R - 1 products instead of M * R (Winograd 1980; Lavin
// & Gray 2015, arXiv:1509.09308, nest it for M x M outputs of an R x R kernel; rows may have another M than columns):
//
//   y = output ((kernel g) * (input d))        d: M + R - 1 inputs, g: R taps, * element by element
//
// The matrices follow from the points at which the polynomials are evaluated (Toom-Cook). The last point is infinity. For
// six products, the usual points are 0, ±1, ±2. With 1/2 in place of 2 the rounding error is 0.72 times as large (root mean
// square in float32: 4 x 4 outputs of 3 x 3 kernels, summed over 64 channels of normally distributed values). On a CPU the
// matrix for six inputs is applied in factors that follow from these points (../cpu/winograd_kernels.h).
#pragma once

namespace hybridops {

template <int Rows, int Cols>
struct Matrix {
    static constexpr int rows = Rows, cols = Cols;
    double at[Rows][Cols] = {};

    constexpr Matrix<Cols, Rows> transposed() const {
        Matrix<Cols, Rows> t;
        for (int r = 0; r < Rows; ++r)
            for (int c = 0; c < Cols; ++c) t.at[c][r] = at[r][c];
        return t;
    }
};

template <int M, int R>
struct ToomCook {
    static constexpr int size = M + R - 1;
    static_assert(size <= 6, "no points chosen for more");
    Matrix<size, size> input;
    Matrix<size, R> kernel;
    Matrix<M, size> output;

    constexpr ToomCook() {
        constexpr double points[5] = {0, 1, -1, 0.5, -2};
        constexpr int last = size - 1;  // the point at infinity
        for (int i = 0; i < size; ++i) {
            // The coefficients of the product of (x - point) over all points but point i, and its value at point i.
            double scale = 1;
            int degree = 0;
            input.at[i][0] = 1;
            for (int j = 0; j < last; ++j) {
                if (j == i) continue;
                ++degree;
                for (int k = degree; k >= 0; --k)
                    input.at[i][k] = (k > 0 ? input.at[i][k - 1] : 0) - points[j] * (k < degree ? input.at[i][k] : 0);
                if (i < last) scale *= points[i] - points[j];
            }
            double power = 1;
            for (int k = 0; k < size && i < last; ++k, power *= points[i]) {
                if (k < R) kernel.at[i][k] = power / scale;
                if (k < M) output.at[k][i] = power;
            }
        }
        kernel.at[last][R - 1] = output.at[M - 1][last] = 1;
    }
};

// The matrices of M outputs of a filter, and those of its gradients, which are their transposes. A filter may be split into
// shorter ones, side by side: that takes more products than all taps at once, and is more exact.
template <int M, int... Parts>
struct MinimalFilter {
    static constexpr int outputs = M, taps = (Parts + ...), inputs = M + taps - 1, size = (... + (M + Parts - 1));

    struct All {
        Matrix<size, inputs> input;
        Matrix<size, taps> kernel;
        Matrix<M, size> output;

        constexpr All() {
            int row = 0, tap = 0;
            (add(ToomCook<M, Parts>{}, row, tap), ...);
        }

        template <int R>
        constexpr void add(const ToomCook<M, R>& part, int& row, int& tap) {
            for (int i = 0; i < part.size; ++i, ++row) {
                for (int k = 0; k < part.size; ++k) input.at[row][tap + k] = part.input.at[i][k];
                for (int k = 0; k < R; ++k) kernel.at[row][tap + k] = part.kernel.at[i][k];
                for (int m = 0; m < M; ++m) output.at[m][row] = part.output.at[m][i];
            }
            tap += R;
        }
    };

    static constexpr All all{};
    static constexpr Matrix<size, inputs> input = all.input;
    static constexpr Matrix<size, taps> kernel = all.kernel;
    static constexpr Matrix<M, size> output = all.output;
    static constexpr Matrix<taps, size> kernel_gradient = all.kernel.transposed();
    static constexpr Matrix<size, M> output_gradient = all.output.transposed();
};

// A square kernel in two dimensions: filter Y along its columns, filter X along its rows.
template <class ColumnFilter, class RowFilter>
struct Winograd {
    using Y = ColumnFilter;
    using X = RowFilter;
    static_assert(Y::taps == X::taps);
    static constexpr int rows = Y::outputs, cols = X::outputs, outputs = rows * cols, taps = X::taps;
    static constexpr int inputs = Y::inputs * X::inputs, points = Y::size * X::size;
    static constexpr int point(int y, int x) { return y * X::size + x; }
};

}  // namespace hybridops
