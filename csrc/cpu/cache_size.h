// How large the processor's last cache is.
#pragma once
#include <cstdint>

namespace hybridops {

// In bytes, as the system reports it, asked once; 32 MB, some processors' in recent years, where it does not.
int64_t last_cache_bytes();

}  // namespace hybridops
