// Weights packed for the register tiles: those of a convolution, or of a matrix, which is one of a single tap. For one
// instruction set: included behind register_tiles.h, so inside a namespace.

// The taps of one output channel for one input channel, by their strides; null = zeros.
template <class T>
struct KernelTaps {
    const T* data;
    int64_t y, x;

    T at(int64_t ky, int64_t kx) const { return data ? data[ky * y + kx * x] : T(0); }
};

// Taps, packed as [source][group][ky][kx][channel / depth][N][lane][channel % depth].
template <class A, int N, class E>
class PackedTaps {
   public:
    static constexpr int64_t width = N * lanes<A>, depth = Operands<A, E>::depth;

    template <class Weight>
    PackedTaps(std::array<int64_t, 2> kernel, std::array<int64_t, 2> channels, int64_t groups, const Weight& weight)
        : kernel_(kernel), taps_(kernel[0] * kernel[1]), channels_(channels) {
        pack(0, 0, groups, weight);
        pack(1, channels[0], groups, weight);
    }

    // A source's channels where they are multiplied: zeros fill up the last operand.
    int64_t padded_channels(int source) const { return round_up(channels_[source], depth); }

    const E* tap(int source, int64_t group, int64_t tap) const {
        return packed_[source]->data() + (group * taps_ + tap) * padded_channels(source) * width;
    }

   private:
    // Some operands at a time, in a small array first: rows of the weights, and the taps in the packed ones, often lie a
    // power of two apart, and would evict each other from the L1 cache.
    template <class Weight>
    void pack(int source, int64_t first, int64_t groups, const Weight& weight) {
        constexpr int64_t operand = width * depth;
        const int64_t operands = padded_channels(source) / depth;
        const int64_t together = std::clamp<int64_t>(16 * 1024 / (taps_ * operand * sizeof(E)), 1, 8);
        const int64_t blocks = ceil_div(operands, together);
        packed_[source].emplace(groups * taps_ * operands * operand);
        torch::stable::parallel_for(0, groups * blocks, 1, [&](int64_t begin, int64_t end) {
            std::vector<E> memory(together * taps_ * operand);  // the thread's scratch memory may be in use
            E* const block = memory.data();
            for (int64_t j = begin; j < end; ++j) {
                const int64_t group = j / blocks, o = j % blocks * together, count = std::min(together, operands - o);
                for (int64_t column = 0; column < width; ++column)
                    for (int64_t d = 0; d < count * depth; ++d) {
                        const int64_t c = o * depth + d;
                        const auto kernel = c < channels_[source] ? weight(group, column, first + c)
                                                                  : decltype(weight(group, column, c)){};
                        E* out = block + d / depth * taps_ * operand + column * depth + d % depth;
                        for (int64_t ky = 0; ky < kernel_[0]; ++ky)
                            for (int64_t kx = 0; kx < kernel_[1]; ++kx, out += operand)
                                *out = static_cast<E>(kernel.at(ky, kx));
                    }
                for (int64_t k = 0; k < count * taps_; ++k)
                    std::copy_n(
                        block + k * operand, operand,
                        packed_[source]->data() + ((group * taps_ + k % taps_) * operands + o + k / taps_) * operand);
            }
        });
    }

    std::array<int64_t, 2> kernel_;
    int64_t taps_;
    std::array<int64_t, 2> channels_;
    std::optional<Buffer<E>> packed_[2];
};
