// What csrc/cuda/mma.cuh takes from PTX, in plain C++. A product reads the registers of all 32 lanes, arranged as the PTX
// ISA says. A copy happens at once where threads run forward, and in the other orders as late as possible, when it is
// waited for. So what a missing wait or barrier hides in one order shows in another.
#pragma once
#include "shim.h"

inline float __uint_as_float(uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, sizeof(x));
    return x;
}

namespace hybridops {

inline uint32_t tf32(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof(x));
    if (std::isfinite(x)) bits += 0x1000;  // to nearest, ties away from zero
    return bits & ~0x1FFFu;
}

// The dot product of the values in two registers.
template <class T>
float dot(uint32_t a, uint32_t b) {
    if constexpr (std::is_same_v<T, float>) {
        return __uint_as_float(a & ~0x1FFFu) * __uint_as_float(b & ~0x1FFFu);
    } else {
        T x[2], y[2];
        std::memcpy(x, &a, sizeof(a));
        std::memcpy(y, &b, sizeof(b));
        return static_cast<float>(x[0]) * static_cast<float>(y[0]) +
               static_cast<float>(x[1]) * static_cast<float>(y[1]);
    }
}

template <class T, int m_tiles, int n_tiles>
void multiply_accumulate(Accumulators<m_tiles, n_tiles>& sums, const Fragments<m_tiles, n_tiles>& own,
                         std::source_location at = std::source_location::current()) {
    shim::Fibre& self = shim::grid.fibre(threadIdx.x);
    self.shown = &own;
    shim::grid.wait(shim::State::at_warp_barrier, at);
    const unsigned warp = threadIdx.x / 32 * 32, g = threadIdx.x % 32 / 4, q = threadIdx.x % 4;
    const auto of_lane = [&](unsigned lane) -> const Fragments<m_tiles, n_tiles>& {
        return *static_cast<const Fragments<m_tiles, n_tiles>*>(shim::grid.fibre(warp + lane).shown);
    };
    for (unsigned p = 0; p < 4; ++p) {  // parts of k; lane (g, p) has row g of a, lane (column, p) a column of b
        const auto& a = of_lane(4 * g + p);
        for (unsigned column = 2 * q; column < 2 * q + 2; ++column) {
            const auto& b = of_lane(4 * column + p);
            for (int i = 0; i < m_tiles; ++i)
                for (int j = 0; j < n_tiles; ++j)
                    for (int row = 0; row < 2; ++row)
                        for (int word = 0; word < 4; ++word)
                            sums.at[i][j][2 * row + column % 2] += dot<T>(a.a[i][row].word[word], b.b[j].word[word]);
        }
    }
    shim::grid.wait(shim::State::at_warp_barrier, at);  // the other lanes still read
}

inline void copy_async(Words* to, const void* from, bool predicate) {
    const shim::Copy copy{to, predicate ? from : nullptr};
    if (shim::order() == "forward") {
        copy.run();
    } else {
        shim::grid.fibre(threadIdx.x).open_copies.push_back(copy);
    }
}

inline void commit_copies() {
    shim::Fibre& self = shim::grid.fibre(threadIdx.x);
    self.copies.push_back(std::move(self.open_copies));
    self.open_copies.clear();
}

template <int n>
void wait_for_copies() {
    auto& copies = shim::grid.fibre(threadIdx.x).copies;
    for (; copies.size() > n; copies.pop_front())
        for (const shim::Copy& copy : copies.front()) copy.run();
}

}  // namespace hybridops
