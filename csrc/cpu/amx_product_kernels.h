// Products of few rows with a packed weight in AMX's tile registers; part of packed_product_kernels.h.

// The tile registers, where products of E take them: for as long as `multiply` is called.
template <class E>
class ProductRegisters {
#ifdef HYBRIDOPS_WIDE
    std::optional<TileRegisters> registers_;

   public:
    ProductRegisters() {
        if (has_tiles<E>()) registers_.emplace();
    }
#else
   public:
    ProductRegisters() {}
#endif
};

#ifdef HYBRIDOPS_WIDE
// 16 rows at a time by N vectors of outputs. Rows that are not all as far apart from each other, or fewer than 16, go through
// a copy, as do the sums of fewer.
template <int N>
class TileProduct {
   public:
    using E = torch::headeronly::BFloat16;
    static constexpr int64_t width = N * lanes<float>;

    // sums (count,width) = rows x times the packed weights [input / 2][N][lane][2] of a group, or += with `add`
    void operator()(float* sums, bool add, const E* const* rows, int64_t count, const E* weights,
                    int64_t padded_inputs) {
        for (int64_t first = 0; first < count; first += register_rows, sums += register_rows * width) {
            const int64_t now = std::min(count - first, register_rows);
            if (now == register_rows) {
                whole(sums, add, rows + first, weights, padded_inputs);
                continue;
            }
            const E* filled[register_rows];
            for (int64_t i = 0; i < register_rows; ++i) filled[i] = rows[first + std::min(i, now - 1)];
            float some[register_rows * width];
            if (add) std::copy_n(sums, now * width, some);
            whole(some, add, filled, weights, padded_inputs);
            std::copy_n(some, now * width, sums);
        }
    }

   private:
    static void whole(float* sums, bool add, const E* const* rows, const E* weights, int64_t padded_inputs) {
        if (!add) std::fill_n(sums, register_rows * width, 0.0f);
        const int64_t stride = rows[1] - rows[0];
        bool apart = true;
        for (int i = 2; i < register_rows; ++i) apart = apart && rows[i] - rows[i - 1] == stride;
        alignas(64) E copy[2][register_rows * register_depth];  // of which one is read while the other is written
        const auto x = HYBRIDOPS_LAMBDA(int64_t step, int) {
            const int64_t k = step * register_depth;
            if (apart) return rows[0] + k;
            E* const to = copy[step % 2];
            for (int i = 0; i < register_rows; ++i) std::copy_n(rows[i] + k, register_depth, to + i * register_depth);
            return static_cast<const E*>(to);
        };
        add_tile_products<1, N>(
            padded_inputs / register_depth, HYBRIDOPS_LAMBDA(int, int n) { return sums + n * lanes<float>; }, width, x,
            apart ? stride : register_depth,
            HYBRIDOPS_LAMBDA(int64_t step, int n) {
                return weights + step * register_depth * width + n * 2 * lanes<float>;
            },
            2 * width);
    }
};
#endif
