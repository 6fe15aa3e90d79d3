// The gradient of a convolution's weights by Winograd's minimal filtering (../math/winograd.h) for one instruction set: that of
// output (kernel g * input d), * element by element, is kernel^T (output^T grad * input d). Included by
// weight_gradient_kernels.h, so inside a namespace.

template <class T, class A, class W>
class WinogradWeightGradient final : public WeightGradient<T, A> {
   public:
    explicit WinogradWeightGradient(const ConvWeightGradientArgs<T, A>& args)
        : WeightGradient<T, A>(args, {W::rows, W::cols}, wanted_tiles(args.channels())) {
        const int64_t tiles = blocks_.max_cells();
        layout_.channels = inputs_;
        layout_.x_image = layout_.x_row = 0;
        layout_.x_panel = tiles * P + lanes<A>;
        for (int64_t point = 0; point < points; ++point)
            layout_.x_plane.push_back(point * layout_.panels() * layout_.x_panel);
        layout_.x_size = points * layout_.panels() * layout_.x_panel;
        layout_.grad_group = tiles * width;
        layout_.grad_plane = ceil_div(this->groups_, this->shares()) * layout_.grad_group + cache_line<A>;
        layout_.patch_size =
            blocks_.max_images() * (blocks_.max_rows() * W::rows + R - 1) * pitch() * padded_channels();
    }

   private:
    using Base = WeightGradient<T, A>;
    using Base::P, Base::width, Base::shape_, Base::inputs_, Base::blocks_, Base::layout_;
    using typename Base::Scratch, typename Base::Share;
    using V = Simd<A>;
    static constexpr int R = W::taps, points = W::points;

    // about 128 tiles for each pass over the sums, fewer where they would not stay in the caches
    static int64_t wanted_tiles(int64_t channels) {
        const int64_t bytes = points * round_up(channels, P) * static_cast<int64_t>(sizeof(A));
        return std::clamp<int64_t>((4 << 20) / bytes, 64, 128);
    }

    // Of the patches:
    int64_t pitch() const { return blocks_.max_cols() * W::cols + R - 1; }
    int64_t padded_channels() const { return layout_.padded_channels() + lanes<A>; }  // whole vectors, zeros
    static int64_t patch_rows(const Blocks::Block& block) { return block.rows * W::rows + R - 1; }

    void copy_block(A* patch, const Blocks::Block& block) const {
        this->copy(patch, block, padded_channels(), patch_rows(block), pitch());
    }

    Extent lay_out(const Blocks::Block& block, Share share, const Scratch& s) const override {
        const int64_t channels = padded_channels(), pitch = this->pitch(), rows = patch_rows(block);
        copy_block(s.patch, block);
        const A largest_input = largest_magnitude(s.patch, block.images * rows * pitch * channels);
        LargestMagnitude<A> largest;
        for (int64_t tile = 0; tile < block.cells(); ++tile) {
            const auto place = block.place(tile);
            const int64_t row = place.row * W::rows, col = place.col * W::cols;
            for (int64_t panel = 0; panel < layout_.panels(); ++panel) {
                const A* corner = s.patch + ((place.image * rows + row) * pitch + col) * channels + panel * P;
                A* to = s.x + panel * layout_.x_panel + tile * P;
                transform<W::Y::input, W::X::input, V>(
                    [&](int y, int x) { return load(corner + (y * pitch + x) * channels); },
                    [&](int y, int x, V value) { store(to + layout_.x_plane[W::point(y, x)], value); });
            }
            for (int64_t o = 0; o < share.count * width; o += lanes<A>) {
                A* to = s.grad + o / width * layout_.grad_group + tile * width + o % width;
                transform<W::Y::output_gradient, W::X::output_gradient, V>(
                    [&](int y, int x) {
                        const V value = this->gradient(block, place.image, row + y, col + x, share.first * width + o);
                        largest.see(value);
                        return value;
                    },
                    [&](int y, int x, V value) { store(to + W::point(y, x) * layout_.grad_plane, value); });
            }
        }
        return {1, 1, block.cells(), std::max(largest_input, largest.value()) < largest_transformed<A>};
    }

    // The taps in the places of as many points: in transforms an inf or a NaN would spread over them all.
    void sum_directly(const Blocks::Block& block, Share share, const Scratch& s) const override {
        const int64_t rows = std::min(block.rows * W::rows, shape_.height - block.y),
                      cols = std::min(block.cols * W::cols, shape_.width - block.x);
        const int64_t channels = padded_channels(), pitch = this->pitch();
        copy_block(s.patch, block);
        for (int64_t pixel = 0; pixel < block.images * rows * cols; ++pixel)
            for (int64_t o = 0; o < share.count * width; o += lanes<A>) {
                const int64_t image = pixel / (rows * cols), y = pixel / cols % rows, col = pixel % cols;
                const V grad = this->gradient(block, image, y, col, share.first * width + o);
                const A* corner = s.patch + ((image * patch_rows(block) + y) * pitch + col) * channels;
                for (int64_t tap = 0; tap < R * R; ++tap)
                    for (int64_t c = 0; c < inputs_; ++c) {
                        A* sum = s.sums + layout_.sum_at(o / width, tap, c) + o % width;
                        store(sum, load(sum) + grad * corner[(tap / R * pitch + tap % R) * channels + c]);
                    }
            }
    }

    void kernels(A* out, const A* sums, bool finite, int64_t c, int64_t o) const override {
        if (!finite) {
            for (int tap = 0; tap < R * R; ++tap)
                store(out + tap * lanes<A>, load(sums + layout_.sum_at(0, tap, c) + o));
            return;
        }
        transform<W::Y::kernel_gradient, W::X::kernel_gradient, V>(
            [&](int y, int x) { return load(sums + layout_.sum_at(0, W::point(y, x), c) + o); },
            [&](int y, int x, V sum) { store(out + (y * R + x) * lanes<A>, sum); });
    }
};
