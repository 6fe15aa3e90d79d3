// The tile registers of AMX, in which matrices of bfloat16 are multiplied: 16 times the products a second of AVX512-BF16.
// For one instruction set: included by register_tiles.h, so inside a namespace.

template <class T>
bool has_tiles() {  // registers for matrices of T
#ifdef HYBRIDOPS_WIDE
    return is_bfloat16<T> && cpu_isa() == Isa::amx_bf16;
#else
    return false;
#endif
}

// A register has 16 rows of 64 bytes: 32 bfloat16, or 16 sums in float32.
inline constexpr int64_t register_rows = 16, register_depth = 32;

#ifdef HYBRIDOPS_WIDE
// The eight registers of a thread, set up for as long as this object lives: afterwards others may set them up for themselves.
// All else is for the time in between. In assembler, as add_bfloat16_products is.
class TileRegisters {
   public:
    TileRegisters() {
#ifndef HYBRIDOPS_EMULATE_AMX
        struct alignas(64) {
            uint8_t palette, start_row, zero[14];
            uint16_t row_bytes[16];
            uint8_t rows[16];
        } config{};
        config.palette = 1;
        std::fill_n(config.row_bytes, 8, 64);
        std::fill_n(config.rows, 8, 16);
        __asm__ volatile("ldtilecfg %0" : : "m"(config));
#endif
    }
    ~TileRegisters() {
#ifndef HYBRIDOPS_EMULATE_AMX
        __asm__ volatile("tilerelease");
#endif
    }
    TileRegisters(const TileRegisters&) = delete;
    TileRegisters& operator=(const TileRegisters&) = delete;

    // Rows are `stride` elements apart.
    template <int to, class T>
    static HYBRIDOPS_INLINE void load(const T* from, int64_t stride) {
#ifdef HYBRIDOPS_EMULATE_AMX
        for (int row = 0; row < register_rows; ++row) std::memcpy(at_[to][row], from + row * stride, 64);
#else
        __asm__ volatile("tileloadd (%1,%2,1), %%tmm%c0" : : "i"(to), "r"(from), "r"(stride * sizeof(T)) : "memory");
#endif
    }
    template <int from>
    static HYBRIDOPS_INLINE void store(float* to, int64_t stride) {
#ifdef HYBRIDOPS_EMULATE_AMX
        for (int row = 0; row < register_rows; ++row) std::memcpy(to + row * stride, at_[from][row], 64);
#else
        __asm__ volatile("tilestored %%tmm%c0, (%1,%2,1)"
                         :
                         : "i"(from), "r"(to), "r"(stride * sizeof(float))
                         : "memory");
#endif
    }

    // sums [row][column] += Σ_k x [row][k] y [k / 2][column][k % 2], in float32, without subnormal numbers
    template <int sums, int x, int y>
    static HYBRIDOPS_INLINE void multiply() {
#ifdef HYBRIDOPS_EMULATE_AMX
        for (int row = 0; row < register_rows; ++row) {
            Simd<float> sum = hybridops::avx512::load(reinterpret_cast<const float*>(at_[sums][row]));
            for (int k = 0; k < 16; ++k) {
                SimdOf<float>::bits pairs;
                std::memcpy(&pairs, at_[y][k], 64);
                sum = add_bfloat16_products(sum, SimdOf<float>::bits{} + at_[x][row][k], pairs);
            }
            std::memcpy(at_[sums][row], &sum, 64);
        }
#else
        __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(sums), "i"(x), "i"(y));
#endif
    }

#ifdef HYBRIDOPS_EMULATE_AMX
   private:
    static inline thread_local int32_t at_[8][16][16] = {};
#endif
};

// M x N registers of sums += the products of M x N factors, step after step; at most four sums. sums(m, n), x(step, m) and
// y(step, n) say where they lie, with rows as far apart as the strides. The caller has TileRegisters.
template <int M, int N, class Sums, class X, class Y>
HYBRIDOPS_INLINE void add_tile_products(int64_t steps, const Sums& sums, int64_t sums_stride, const X& x,
                                        int64_t x_stride, const Y& y, int64_t y_stride) {
    static_assert(M * N <= 4);
    constexpr int first_x = 4, first_y = 6;  // of two registers each
    using E = torch::headeronly::BFloat16;
    unrolled<M * N>(HYBRIDOPS_LAMBDA(auto i) { TileRegisters::load<i>(sums(i / N, i % N), sums_stride); });
    for (int64_t step = 0; step < steps; ++step) {
        const auto load_y = HYBRIDOPS_LAMBDA(auto n) {
            TileRegisters::load<first_y + n % 2>(static_cast<const E*>(y(step, n)), y_stride);
        };
        if constexpr (N <= 2) unrolled<N>(load_y);
        unrolled<M>(HYBRIDOPS_LAMBDA(auto m) {
            TileRegisters::load<first_x + m % 2>(static_cast<const E*>(x(step, m)), x_stride);
            unrolled<N>(HYBRIDOPS_LAMBDA(auto n) {
                if constexpr (N > 2) load_y(n);
                TileRegisters::multiply<m * N + n, first_x + m % 2, first_y + n % 2>();
            });
        });
    }
    unrolled<M * N>(HYBRIDOPS_LAMBDA(auto i) { TileRegisters::store<i>(sums(i / N, i % N), sums_stride); });
}
#endif
