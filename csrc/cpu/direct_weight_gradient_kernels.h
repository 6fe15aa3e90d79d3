// The gradient of a convolution's weights for one instruction set, directly: a matrix product for each tap. Included by
// amx_weight_gradient_kernels.h, so inside a namespace.

#include "weight_gradient_tiles.h"

template <class T, class A>
class DirectWeightGradient final : public WeightGradient<T, A> {
   public:
    // about 64 pixels: their gradients stay in the L1 cache while all channels pass over them, and no sum is longer before it
    // is added to the others (as chunk_length in register_tiles.h)
    explicit DirectWeightGradient(const ConvWeightGradientArgs<T, A>& args)
        : WeightGradient<T, A>(args, {1, 1}, 64), rows_of_taps_(inputs_ < lanes<A>) {
        const int64_t kernel_h = shape_.kernel_h, kernel_w = shape_.kernel_w;
        layout_.channels = inputs_ * (rows_of_taps_ ? kernel_w : 1);
        for (int64_t ky = 0; ky < kernel_h; ++ky)
            for (int64_t kx = 0; kx < (rows_of_taps_ ? 1 : kernel_w); ++kx)
                layout_.x_plane.push_back((ky * cols() + kx) * P);
        layout_.x_row = cols() * P;
        layout_.x_image = patch_rows() * layout_.x_row;
        layout_.x_panel = blocks_.max_images() * layout_.x_image + lanes<A>;
        layout_.x_size = layout_.panels() * layout_.x_panel;
        layout_.grad_plane = 0;
        layout_.grad_group = blocks_.max_cells() * width;
        layout_.patch_size = blocks_.max_images() * patch_rows() * pitch() * inputs_ + layout_.channels + lanes<A>;
    }

   private:
    using Base = WeightGradient<T, A>;
    using Base::P, Base::width, Base::shape_, Base::inputs_, Base::blocks_, Base::layout_;
    using typename Base::Scratch, typename Base::Share;

    int64_t pitch() const { return blocks_.max_cols() + shape_.kernel_w - 1; }
    int64_t patch_rows() const { return blocks_.max_rows() + shape_.kernel_h - 1; }
    int64_t cols() const { return rows_of_taps_ ? blocks_.max_cols() : pitch(); }  // of x as it is laid out

    Extent lay_out(const Blocks::Block& block, Share share, const Scratch& s) const override {
        const int64_t pitch = this->pitch(), cols = this->cols();
        // of all images, one after the other: less than a whole block's rows there are in none but the only one
        const int64_t rows = block.images * patch_rows() - (blocks_.max_rows() - block.rows);
        this->copy(s.patch, block, inputs_, block.rows + shape_.kernel_h - 1, pitch);
        for (int64_t panel = 0; panel < layout_.panels(); ++panel)
            for (int64_t y = 0; y < rows; ++y)
                for (int64_t col = 0; col < cols; ++col)
                    store(s.x + panel * layout_.x_panel + y * layout_.x_row + col * P,
                          load(s.patch + (y * pitch + col) * inputs_ + panel * P));
        for (int64_t pixel = 0; pixel < block.cells(); ++pixel) {
            const auto [image, y, col] = block.place(pixel);
            for (int64_t o = 0; o < share.count * width; o += lanes<A>)
                store(s.grad + o / width * layout_.grad_group + pixel * width + o % width,
                      this->gradient(block, image, y, col, share.first * width + o));
        }
        return {block.images, block.rows, block.cols};
    }

    void kernels(A* out, const A* sums, bool, int64_t c, int64_t o) const override {
        for (int64_t tap = 0; tap < this->taps(); ++tap) {
            const int64_t plane = rows_of_taps_ ? tap / shape_.kernel_w : tap;
            const int64_t channel = rows_of_taps_ ? tap % shape_.kernel_w * inputs_ + c : c;
            store(out + tap * lanes<A>, load(sums + layout_.sum_at(0, plane, channel) + o));
        }
    }

    // Few channels leave most of a panel empty: then a row of the kernel, which lies contiguous, takes their place.
    const bool rows_of_taps_;
};
