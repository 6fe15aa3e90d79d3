#include "cache_size.h"

#include <fstream>

namespace hybridops {

namespace {

int64_t reported() {
    std::ifstream file("/sys/devices/system/cpu/cpu0/cache/index3/size");  // Linux: a number and its unit, as 32768K
    int64_t size = 0;
    char unit = 0;
    file >> size >> unit;
    return unit == 'K' ? size << 10 : unit == 'M' ? size << 20 : 0;
}

}  // namespace

int64_t last_cache_bytes() {
    static const int64_t bytes = [] {
        const int64_t size = reported();
        return size > 0 ? size : int64_t{32} << 20;
    }();
    return bytes;
}

}  // namespace hybridops
