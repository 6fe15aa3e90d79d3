// What ops make sure of about keys whose exponentials were prepared. Included behind every_isa.h, because how they stand in
// memory depends on the instruction set.
#pragma once
#include "../additive_attention_args.h"
#include "../checks.h"

namespace hybridops {

// What this processor's instruction set makes of A: what was prepared for wider or narrower vectors has another.
inline int64_t padded_width_for(ScalarType type, int64_t width) {
    int64_t padded = 0;
    if (type == ScalarType::Double) {
        HYBRIDOPS_ON_ISA(set_padded_width<double>(padded, width));
    } else {
        HYBRIDOPS_ON_ISA(set_padded_width<float>(padded, width));
    }
    return padded;
}

// Rows of one padded width are the same for all instruction sets, but for the last bits.
inline void check_prepared(const Arguments& arguments, const Tensor& k, const std::optional<Tensor>& key_exponentials,
                           const std::optional<Tensor>& key_bounds) {
    arguments.both_or_none("key_exponentials", key_exponentials.has_value(), "key_bounds", key_bounds.has_value());
    if (!key_exponentials) return;
    const int64_t batch = k.size(0), keys = k.size(1), padded = padded_width_for(k.scalar_type(), k.size(2));
    arguments.sums("key_exponentials", key_exponentials, {batch, keys, padded}, Memory::contiguous);
    arguments.sums("key_bounds", key_bounds, {batch, keys}, Memory::contiguous);
}

}  // namespace hybridops
