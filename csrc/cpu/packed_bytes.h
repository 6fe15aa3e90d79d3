// Weights packed for many calls: bytes, before which stands what they are good for.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "../checks.h"
#include "../tensors.h"
#include "isa.h"
#include "scratch.h"

namespace hybridops {

// Instruction set, dtype and sizes; as many bytes as a cache line has, so that what follows is aligned.
using PackedHeader = std::array<int64_t, 8>;

inline Tensor with_header(const PackedHeader& header, int64_t bytes) {
    Tensor packed = torch::stable::empty({bytes + static_cast<int64_t>(sizeof(header))}, ScalarType::Byte);
    ask_for_huge_pages(data<std::byte>(packed), packed.numel());
    std::memcpy(data<std::byte>(packed), header.data(), sizeof(header));
    return packed;
}

inline void check_packed(const Arguments& arguments, const Tensor& packed, const PackedHeader& header, int64_t bytes) {
    arguments.bytes("packed", packed, {bytes + static_cast<int64_t>(sizeof(header))});
    const bool same = std::memcmp(data<const std::byte>(packed), header.data(), sizeof(header)) == 0;
    arguments.require(same, "packed", "be packed for this instruction set, dtype and sizes", 0);
}

inline std::byte* behind_header(const Tensor& packed) {
    return const_cast<std::byte*>(data<const std::byte>(packed)) + sizeof(PackedHeader);
}

}  // namespace hybridops
