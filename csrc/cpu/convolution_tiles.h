// What convolutions and their weight gradients are made of: images and their patches, blocks of them and who works on which,
// the epilogue. For one instruction set: included by direct_convolution_kernels.h, so inside a namespace.

#include "register_tiles.h"

inline constexpr int64_t max_finished = 16;  // pixels at a time: a register tile's, or those of Winograd's tile

// What becomes of the sums of a convolution.
template <class A>
struct Epilogue {
    // where the sums of a group of outputs begin
    virtual void start(int64_t group, A* sums, int64_t width) const {
        (void)group;
        std::fill(sums, sums + width, A(0));
    }
    // complete sums (count, width) of at most max_finished pixels, numbered through the batch
    virtual void finish(int64_t group, const int64_t* pixels, int64_t count, const A* sums) const = 0;
};

// The taps of one output channel for one input channel, by their strides; null = zeros.
template <class T>
struct KernelTaps {
    const T* data;
    int64_t y, x;

    T at(int64_t ky, int64_t kx) const { return data ? data[ky * y + kx * x] : T(0); }
};

// One input of a convolution, as operands of type E. The storage type is known behind row() alone.
template <class E>
struct Source {
    int64_t channels;
    // pixels [x0, x1) of a row of image b, channels-last, `stride` a pixel
    virtual void row(E* out, int64_t stride, int64_t b, int64_t y, int64_t x0, int64_t x1) const = 0;

   protected:
    explicit Source(int64_t channels) : channels(channels) {}
};

template <class E>
using Sources = std::array<const Source<E>*, 2>;  // the second may be null: zeros

// One 'same' convolution of up to two sources, whose weights are packed once. The sums of a few pixels at a time go to the
// epilogue. The order of summation does not depend on the blocks, so the result does not depend on the number of threads.
template <class A, class E>
struct Convolution {
    virtual ~Convolution() = default;
    virtual void operator()(Sources<E> sources, const Epilogue<A>& epilogue) const = 0;
};

// Images (b, c, y, x) by their strides.
template <class T, class E>
struct StridedSource final : Source<E> {
    const T* data;
    int64_t batch, channel, y, x;

    StridedSource(const T* data, int64_t batch, int64_t channel, int64_t y, int64_t x, int64_t channels)
        : Source<E>(channels), data(data), batch(batch), channel(channel), y(y), x(x) {}

    void row(E* out, int64_t stride, int64_t b, int64_t at, int64_t x0, int64_t x1) const override {
        const int64_t count = this->channels;
        const T* in = data + b * batch + at * y + x0 * x;
        if ((channel == 1 || count == 1) && x == count && stride == count) {
            convert(out, in, (x1 - x0) * count);
        } else if (channel == 1) {
            for (int64_t i = 0; i < x1 - x0; ++i) convert(out + i * stride, in + i * x, count);
        } else {
            for (int64_t c = 0; c < count; ++c)
                for (int64_t i = 0; i < x1 - x0; ++i) out[i * stride + c] = static_cast<E>(in[i * x + c * channel]);
        }
    }

    static void convert(E* out, const T* in, int64_t count) {
        if constexpr (std::is_same_v<T, E>) {
            std::copy(in, in + count, out);
        } else {
            int64_t i = 0;
            for (; i + lanes<E> <= count; i += lanes<E>) store(out + i, load_lanes<E>(in + i, lanes<E>));
            for (; i < count; ++i) out[i] = static_cast<E>(in[i]);
        }
    }
};

// One step of a sequence.
template <class E, class T>
StridedSource<T, E> images_at(const Strided<T>& x, int64_t t, int64_t channels) {
    return {x.data + t * x.time, x.batch, x.channel, x.y, x.x, channels};
}

// Channels-last images of a (B,Y,X,channels) array.
template <class E, class T>
StridedSource<T, E> channels_last(const T* data, const ConvShape& shape, int64_t channels) {
    const int64_t row = shape.width * channels;
    return {data, shape.height * row, 1, row, channels, channels};
}

// Copies rows x cols pixels from (y0, x0) on, the channels of the sources (null: none) side by side; zeros outside the image
// and in what `stride` leaves over beside the channels.
template <class E>
void copy_patch(E* out, std::initializer_list<const Source<E>*> sources, int64_t stride, const ConvShape& shape,
                int64_t b, int64_t y0, int64_t x0, int64_t rows, int64_t cols) {
    const int64_t from = std::clamp<int64_t>(x0, 0, shape.width),
                  to = std::clamp<int64_t>(x0 + cols, from, shape.width);
    for (int64_t y = y0; y < y0 + rows; ++y, out += cols * stride) {
        if (y < 0 || y >= shape.height || from == to) {
            std::fill(out, out + cols * stride, E(0));
            continue;
        }
        std::fill(out, out + (from - x0) * stride, E(0));
        std::fill(out + (to - x0) * stride, out + cols * stride, E(0));
        E *const inside = out + (from - x0) * stride, *channel = inside;
        for (const Source<E>* source : sources)
            if (source) {
                source->row(channel, stride, b, y, from, to);
                channel += source->channels;
            }
        const int64_t rest = stride - (channel - inside);
        for (int64_t x = 0; rest > 0 && x < to - from; ++x) std::fill_n(channel + x * stride, rest, E(0));
    }
}

// Images are cut into blocks of whole or part rows of cells, a cell being a pixel or a tile of them; small images make a block
// together. A block, or a share of the outputs for it, is a unit of work for a thread.
class Blocks {
   public:
    struct Cell {
        int64_t rows, cols;
    };
    struct Place {
        int64_t image, row, col;  // of a cell in its block
    };
    struct Block {
        int64_t image, images;  // the first one, and how many
        int64_t y, x;           // of the first pixel in each
        int64_t rows, cols;     // in cells, of each

        int64_t cells() const { return images * rows * cols; }
        Place place(int64_t cell) const { return {cell / (rows * cols), cell / cols % rows, cell % cols}; }
    };

    // Blocks of about so many cells; smaller ones, down to the least, where there would be fewer than the wanted units.
    Blocks(const ConvShape& s, Cell cell, int64_t wanted_cells, int64_t min_cells, int64_t wanted_units)
        : cell_(cell), batch_(s.batch), height_(ceil_div(s.height, cell.rows)), width_(ceil_div(s.width, cell.cols)) {
        across_ = ceil_div(width_, 64 / cell.cols);
        cols_ = ceil_div(width_, across_);
        rows_ = std::clamp<int64_t>(wanted_cells / cols_, 1, height_);
        if (rows_ == height_ && across_ == 1) images_ = std::clamp<int64_t>(wanted_cells / (rows_ * cols_), 1, s.batch);
        while (count() < wanted_units && max_cells() >= 2 * min_cells && images_ * rows_ > 1) {
            int64_t& size = images_ > 1 ? images_ : rows_;
            size = (size + 1) / 2;
        }
    }

    int64_t count() const { return ceil_div(batch_, images_) * down() * across_; }
    int64_t max_images() const { return images_; }
    int64_t max_rows() const { return rows_; }
    int64_t max_cols() const { return cols_; }
    int64_t max_cells() const { return images_ * rows_ * cols_; }
    Block operator[](int64_t index) const {
        const int64_t row = index / across_ % down() * rows_, col = index % across_ * cols_;
        const int64_t image = index / (across_ * down()) * images_;
        return {image,
                std::min(images_, batch_ - image),
                row * cell_.rows,
                col * cell_.cols,
                std::min(rows_, height_ - row),
                std::min(cols_, width_ - col)};
    }

   private:
    int64_t down() const { return ceil_div(height_, rows_); }

    Cell cell_;
    int64_t batch_, height_, width_, images_ = 1, rows_, cols_, across_;
};

// The numbers in the batch of a block's pixels, one after the other: without divisions, which would take longer than the
// convolution of few channels.
class PixelNumbers {
   public:
    PixelNumbers(const ConvShape& shape, const Blocks::Block& block)
        : shape_(shape), block_(block), pixel_(shape.pixel(block.image, block.y, block.x)) {}

    int64_t next() {
        const int64_t pixel = pixel_++;
        if (++col_ < block_.cols) return pixel;
        col_ = 0;
        pixel_ += shape_.width - block_.cols;
        if (++row_ < block_.rows) return pixel;
        row_ = 0;
        pixel_ += (shape_.height - block_.rows) * shape_.width;
        return pixel;
    }

   private:
    const ConvShape& shape_;
    const Blocks::Block& block_;
    int64_t pixel_, row_ = 0, col_ = 0;
};

// The patches of a block's images with a kernel's margins, one after the other, each of so many rows and pixels a row.
template <class E>
void copy_patches(E* out, std::initializer_list<const Source<E>*> sources, int64_t stride, const ConvShape& shape,
                  const Blocks::Block& block, int64_t rows, int64_t pitch) {
    for (int64_t i = 0; i < block.images; ++i)
        copy_patch(out + i * rows * pitch * stride, sources, stride, shape, block.image + i,
                   block.y - shape.kernel_h / 2, block.x - shape.kernel_w / 2, rows, pitch);
}

// Who computes what of a convolution: a unit of work is a block of images for a share of the groups of outputs. All blocks of a
// share come one after the other, so that its weights may stay in the L3 cache; each share reads the images anew.
struct WorkShares {
    struct Unit {
        Blocks::Block block;
        int64_t begin, end;  // groups
    };

    // weight_bytes: of all groups; reading them takes longer than computing under so many cells
    WorkShares(const ConvShape& shape, Blocks::Cell cell, int64_t wanted_cells, int64_t groups, int64_t weight_bytes,
               int64_t cells_outweigh = 32)
        : blocks(shape, cell, wanted_cells, weight_bytes > l2_weights ? cells_outweigh : 1, wanted_units()),
          groups_(groups),
          shares_(std::min(groups, std::max(blocks.count() > 1 ? ceil_div(weight_bytes, l3_weights) : 1,
                                            ceil_div(wanted_units(), blocks.count())))) {}

    int64_t count() const { return blocks.count() * shares_; }
    int64_t max_groups() const { return ceil_div(groups_, shares_); }
    Unit operator[](int64_t index) const {
        const int64_t share = index / blocks.count();
        return {blocks[index % blocks.count()], share * groups_ / shares_, (share + 1) * groups_ / shares_};
    }

    const Blocks blocks;

   private:
    // Weights that stay in the L2 cache are read again at no cost, and blocks may be small. Else blocks are
    // large enough to outweigh the reading, and the groups are shared out instead. (L2: 512 KB at least on the
    // processors of the last years. L3: some megabytes a core; 2 to 16 were measured alike on Zen 4.)
    static constexpr int64_t l2_weights = 512 << 10, l3_weights = 4 << 20;

    // every thread should find a few, where there are several
    static int64_t wanted_units() {
        const int64_t threads = torch::stable::get_num_threads();
        return threads == 1 ? 1 : 4 * threads;
    }

    int64_t groups_, shares_;
};
