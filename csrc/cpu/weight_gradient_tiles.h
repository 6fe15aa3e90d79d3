// What the gradients of a convolution's weights are made of: register tiles of outer products, how the factors of a block of
// images are laid out for them, and who sums what. For one instruction set: included by
// direct_weight_gradient_kernels.h, so inside a namespace.

// A register tile is P channels of x, at most a vector of them, by N vectors of outputs. Its accumulators fill three quarters
// of the registers: with fewer the multipliers would wait for them.
inline constexpr int outer_accumulators = HYBRIDOPS_REGISTERS * 3 / 4;
constexpr int largest_divisor(int of, int most) { return of % most == 0 ? most : largest_divisor(of, most - 1); }
template <class A>
inline constexpr int outer_channels = largest_divisor(outer_accumulators, lanes<A>);
template <class A>
inline constexpr int outer_vectors = outer_accumulators / outer_channels<A>;
template <class A>
inline constexpr int64_t outer_width = outer_vectors<A> * lanes<A>;

// Of a block's factors: so many images of rows x cols pixels. Not finite: nothing is known of their products.
struct Extent {
    int64_t images, rows, cols;
    bool finite = true;
};

// sums (P,N,lanes) += sum over a block's pixels of x[p] * grad[n].
template <class A, int N, int P>
void outer_tile(A* sums, const A* x, int64_t x_image, int64_t x_row, const A* grad, const Extent& extent) {
    Simd<A> acc[P][N];
    clear(acc);
    for (int64_t image = 0; image < extent.images; ++image, x += x_image) {
        const A* begin = x;
        for (int64_t row = 0; row < extent.rows; ++row, begin += x_row) {
            const A* at = begin;
#pragma GCC unroll 4
            for (int64_t col = 0; col < extent.cols; ++col, at += P, grad += N * lanes<A>) {
                Simd<A> g[N];
                for (int n = 0; n < N; ++n) keep_in_register(g[n] = load(grad + n * lanes<A>));
                for (int p = 0; p < P; ++p) {
                    const Simd<A> factor = broadcast(at[p]);
                    for (int n = 0; n < N; ++n) acc[p][n] += factor * g[n];
                }
            }
        }
    }
    add_to_memory(sums, acc);
}

// Where the factors of a block lie: x as [panel of P channels][image][row][col][P], with room for whole vectors to be written,
// grad as [plane][group][pixel][N,lane], of the groups of one share.
template <class A>
struct OuterLayout {
    int64_t channels;              // of x, in one plane
    std::vector<int64_t> x_plane;  // where a plane of x begins
    int64_t x_size, x_panel, x_image, x_row;
    int64_t grad_plane, grad_group;  // a plane's may be 0: all the same
    int64_t patch_size;              // what laying out needs beside

    int64_t planes() const { return static_cast<int64_t>(x_plane.size()); }
    int64_t panels() const { return ceil_div(channels, outer_channels<A>); }
    int64_t padded_channels() const { return panels() * outer_channels<A>; }
    int64_t sum_at(int64_t group, int64_t plane, int64_t channel) const {
        return ((group * planes() + plane) * padded_channels() + channel) * outer_width<A>;
    }
};

// Who sums what of some blocks: a unit of work is a share of the sums for a part of the blocks. A share's units add their sums
// to the result part after part, so that the order of the additions is one for any number of threads. A unit waits only for
// some that were taken before it; nothing that it does may throw.
class SummedParts {
   public:
    struct Unit {
        int64_t share, begin, end;  // blocks
    };

    // at least two blocks a part, for its sums have to be cleared and added; no more parts than busy many threads
    SummedParts(int64_t blocks, int64_t shares)
        : blocks_(blocks),
          shares_(shares),
          parts_(std::clamp<int64_t>(ceil_div(16, shares), 1, std::max<int64_t>(blocks / 2, 1))),
          added_(shares) {}

    int64_t count() const { return parts_ * shares_; }
    Unit operator[](int64_t unit) const {
        const int64_t part = unit / shares_;
        return {unit % shares_, part * blocks_ / parts_, (part + 1) * blocks_ / parts_};
    }

    template <class Add>
    void in_order(int64_t unit, const Add& add) {
        std::atomic<int>& added = added_[unit % shares_];
        for (int before; (before = added) < unit / shares_;) added.wait(before);
        add();
        ++added;
        added.notify_all();
    }

   private:
    int64_t blocks_, shares_, parts_;
    std::vector<std::atomic<int>> added_;  // parts
};

// The images of all steps, which count through the steps.
template <class T, class A>
ConvShape all_steps(const ConvWeightGradientArgs<T, A>& args) {
    ConvShape all = args.shape;
    all.batch *= args.steps;
    return all;
}

// dW[o,c,ky,kx] += sum over images and pixels of grad[pixel,o] x[pixel + (ky,kx), c], c counting through the channels of up to
// two x. Both factors are laid out anew, a block of the images at a time, so that for each plane of the sum (a tap of the
// kernel, or a point of Winograd's) it is a matrix product whose factors are read in the order in which they lie.
template <class T, class A>
class WeightGradient {
   public:
    virtual ~WeightGradient() = default;

    // A unit of work is a share of the outputs for a part of the blocks.
    void run() const {
        const int64_t shares = this->shares(), planes = layout_.planes(), group_size = layout_.sum_at(1, 0, 0);
        const int64_t most = ceil_div(groups_, shares);
        SummedParts summed(blocks_.count(), shares);
        parallel_for_dynamic(summed.count(), [&](WorkQueue& queue) {
            const auto s = from_thread_scratch([&](Arena& arena) {
                return Scratch{arena.take<A>(layout_.patch_size), arena.take<A>(layout_.x_size),
                               arena.take<A>(std::max(planes * layout_.grad_plane, most * layout_.grad_group)),
                               arena.take<A>(most * group_size), arena.take<A>(taps() * lanes<A>)};
            });
            for (int64_t unit; queue.take(unit);) {
                const auto [index, begin, end] = summed[unit];
                const int64_t first = index * groups_ / shares;
                const Share share{first, (index + 1) * groups_ / shares - first};
                std::fill(s.sums, s.sums + share.count * group_size, A(0));
                bool finite = true;
                for (int64_t block = begin; block < end; ++block) finite &= add_products(blocks_[block], share, s);
                if (!finite) {
                    std::fill(s.sums, s.sums + share.count * group_size, A(0));
                    for (int64_t block = begin; block < end; ++block) sum_directly(blocks_[block], share, s);
                }
                summed.in_order(unit, [&] {
                    for (int64_t group = 0; group < share.count; ++group)
                        add_kernels(first + group, s.sums + group * group_size, finite, s.kernels);
                });
            }
        });
    }

   protected:
    static constexpr int64_t P = outer_channels<A>, width = outer_width<A>;
    static constexpr int64_t tile_cols = 4;  // of the tiles for 3 x 3 kernels

    // Groups of outputs, [first, first + count).
    struct Share {
        int64_t first, count;
    };

    // What a thread works with: the patches of a block, its factors, the sums [group][plane][padded channel][N,lane] of a
    // share, the kernels [tap][lane] of one channel.
    struct Scratch {
        A *patch, *x, *grad, *sums, *kernels;
    };

    WeightGradient(const ConvWeightGradientArgs<T, A>& args, Blocks::Cell cell, int64_t wanted_cells)
        : a_(args),
          shape_(args.shape),
          inputs_(args.channels()),
          groups_(ceil_div(args.outputs, width)),
          blocks_(all_steps(args), cell, wanted_cells, 1, 0) {}

    // Lays out the factors of a block for a share's outputs.
    virtual Extent lay_out(const Blocks::Block& block, Share share, const Scratch& s) const = 0;
    // For blocks of which some were not finite: adds to s.sums what `kernels` then takes for it.
    virtual void sum_directly(const Blocks::Block& block, Share share, const Scratch& s) const {
        (void)block, (void)share, (void)s;
    }
    // The kernels [tap][lane] of channel c for the outputs [o, o + lanes) of the group whose sums are given.
    virtual void kernels(A* out, const A* sums, bool finite, int64_t c, int64_t o) const = 0;

    int64_t taps() const { return shape_.kernel_h * shape_.kernel_w; }

    // Into how many shares the groups go: the sums of one should stay in the L2 cache, but x is laid out anew for each, and
    // 64 outputs outweigh that. (64 KB to 1 MB of sums were measured alike on Zen 4. All in one share took 282 ms in place of
    // 212, for 32 images of 8 x 8 by 512 channels and 1024 outputs.)
    int64_t shares() const {
        const int64_t bytes = sizeof(A) * layout_.sum_at(groups_, 0, 0);
        return std::clamp<int64_t>(bytes / (256 << 10), 1, ceil_div(groups_ * width, 64));
    }

    // The patches of a block's images with the kernel's margins, one after the other, `stride` a pixel.
    void copy(A* patch, const Blocks::Block& block, int64_t stride, int64_t rows, int64_t cols) const {
        for (int64_t image = block.image; image < block.image + block.images; ++image, patch += rows * cols * stride) {
            const int64_t step = image / shape_.batch;
            const auto first = images_at<A>(a_.factors[0].x, step, a_.factors[0].channels),
                       second = images_at<A>(a_.factors[1].x, step, a_.factors[1].channels);
            copy_patch<A>(patch, {&first, second.channels ? &second : nullptr}, stride, shape_, image % shape_.batch,
                          block.y - shape_.kernel_h / 2, block.x - shape_.kernel_w / 2, rows, cols);
        }
    }

    // outputs [o, o + lanes) of the gradient at a pixel, zeros outside the image. Those of the pixel in its place in the next
    // tile come into the cache: a tile's pixels are read together, which the processor does not foresee.
    Simd<A> gradient(const Blocks::Block& block, int64_t image, int64_t y, int64_t x, int64_t o) const {
        if (block.y + y >= shape_.height || block.x + x >= shape_.width || o >= a_.outputs) return Simd<A>{};
        const T* from = a_.da + shape_.pixel(block.image + image, block.y + y, block.x + x) * a_.outputs + o;
        __builtin_prefetch(from + tile_cols * a_.outputs);
        return load_lanes<A>(from, lanes_of<A>(a_.outputs - o));
    }

    const ConvWeightGradientArgs<T, A>& a_;
    const ConvShape& shape_;
    const int64_t inputs_, groups_;  // channels of all x; of outputs
    const Blocks blocks_;            // of the images of all steps
    OuterLayout<A> layout_;

   private:
    // The products are taken while the factors are in the cache. Whether they were finite.
    bool add_products(const Blocks::Block& block, Share share, const Scratch& s) const {
        const Extent extent = lay_out(block, share, s);
        for (int64_t group = 0; group < share.count; ++group)
            for (int64_t plane = 0; plane < layout_.planes(); ++plane)
                for (int64_t panel = 0; panel < layout_.panels(); ++panel)
                    outer_tile<A, outer_vectors<A>, P>(
                        s.sums + layout_.sum_at(group, plane, panel * P),
                        s.x + layout_.x_plane[plane] + panel * layout_.x_panel, layout_.x_image, layout_.x_row,
                        s.grad + plane * layout_.grad_plane + group * layout_.grad_group, extent);
        return extent.finite;
    }

    void add_kernels(int64_t group, const A* sums, bool finite, A* room) const {
        for (int64_t o = 0; o < width; o += lanes<A>)
            for (int64_t c = 0; c < inputs_; ++c) {
                kernels(room, sums, finite, c, o);
                const bool second = c >= a_.factors[0].channels;
                const auto& factor = a_.factors[second];
                const int64_t first = group * width + o, channel = second ? c - a_.factors[0].channels : c;
                for (int64_t l = 0; l < lanes_of<A>(a_.outputs - first); ++l) {
                    A* out = factor.dw + ((first + l) * factor.channels + channel) * taps();
                    for (int64_t tap = 0; tap < taps(); ++tap) out[tap] += room[tap * lanes<A> + l];
                }
            }
    }
};
