// The gates of an LSTM and of a GRU, on a GPU.
#pragma once
#include "device.cuh"

namespace hybridops {

#include "../math/gru_gates.h"
#include "../math/lstm_gates.h"

}  // namespace hybridops
