// The gradient of a convolution's weights for one instruction set: dW[o,c,ky,kx] += sum over images and pixels of
// grad[pixel,o] x[pixel + (ky,kx), c], c counting through the channels of up to two x. Included by conv_lstm_kernels.h after
// convolution_kernels.h.
//
// Both factors are laid out anew, piece by piece of the images, so that for each plane of the sum (a tap of the kernel, or
// a point of Winograd's) it is a matrix product whose factors are read in the order in which they lie.

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

// Of a piece: so many images of rows x cols pixels.
struct Extent {
    int64_t images, rows, cols;
    bool finite = true;
};

// sums (P,N,lanes) += sum over a piece's pixels of x[p] * grad[n].
template <class A, int N, int P>
void outer_tile(A* sums, const A* x, int64_t x_image, int64_t x_row, const A* grad, const Extent& piece) {
    Simd<A> acc[P][N];
    clear(acc);
    for (int64_t image = 0; image < piece.images; ++image, x += x_image) {
        const A* begin = x;
        for (int64_t row = 0; row < piece.rows; ++row, begin += x_row) {
            const A* at = begin;
#pragma GCC unroll 4
            for (int64_t col = 0; col < piece.cols; ++col, at += P, grad += N * lanes<A>) {
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

// Where the factors of a piece lie: x as [panel of P channels][image][row][col][P], with room for whole vectors to be written,
// grad as [plane][group][pixel][N,lane], of the groups of one share.
template <class A>
struct OuterLayout {
    int64_t channels;              // of x, in one plane
    std::vector<int64_t> x_plane;  // where a plane of x begins
    int64_t x_size, x_panel, x_image, x_row;
    int64_t grad_plane, grad_group;  // a plane's may be 0: all the same
    int64_t patch_size;              // what packing needs beside

    int64_t planes() const { return static_cast<int64_t>(x_plane.size()); }
    int64_t panels() const { return ceil_div(channels, outer_channels<A>); }
    int64_t padded_channels() const { return panels() * outer_channels<A>; }
    int64_t sum_at(int64_t group, int64_t plane, int64_t channel) const {
        return ((group * planes() + plane) * padded_channels() + channel) * outer_width<A>;
    }
};

// Groups of outputs, [first, first + count).
struct Share {
    int64_t first, count;
};

// Into how many shares the groups go: the sums of one should stay in the L2 cache, but x is laid out anew for each, and 64
// outputs outweigh that.
template <class A>
int64_t shares_of(int64_t groups, int64_t planes, int64_t channels) {
    const int64_t width = outer_width<A>, bytes = sizeof(A) * planes * channels * groups * width;
    return std::clamp<int64_t>(bytes / (256 << 10), 1, ceil_div(groups * width, 64));
}

// For each group of outputs its sums [plane][padded channel][N,lane]. A unit of work is a share of the outputs for a part of
// the pieces; its factors are laid out by pack(piece, share, patch, x, grad), which tells their extent, and multiplied while
// they are in the cache. Where they were not finite, sum_again(piece, share, patch, sums) does without transforms. In the end
// add(group, sums, finite, room) adds the unit's sums to the result, with `room` to work in: for a share, part after part, so
// that the order of the additions is one for any number of threads. A unit waits only for some that were taken before it, and
// nothing that it calls throws.
template <class A, class Pack, class SumAgain, class Add>
void sum_of_products(const OuterLayout<A>& layout, int64_t groups, int64_t shares, int64_t pieces, int64_t room_size,
                     const Pack& pack, const SumAgain& sum_again, const Add& add) {
    constexpr int N = outer_vectors<A>, P = outer_channels<A>;
    const int64_t planes = layout.planes(), group_size = layout.sum_at(1, 0, 0), most = ceil_div(groups, shares);
    const int64_t grad_size = std::max(planes * layout.grad_plane, most * layout.grad_group);
    // at least two pieces a part, for its sums have to be cleared and added; no more parts than busy many threads
    const int64_t parts = std::clamp<int64_t>(ceil_div(16, shares), 1, std::max<int64_t>(pieces / 2, 1));
    std::vector<std::atomic<int>> added(shares);  // parts
    parallel_for_dynamic(parts * shares, [&](WorkQueue& queue) {
        A* const patch = static_cast<A*>(thread_scratch(
            sizeof(A) * (layout.patch_size + layout.x_size + grad_size + most * group_size + room_size)));
        A *const x = patch + layout.patch_size, *const grad = x + layout.x_size, *const sums = grad + grad_size,
                 *const room = sums + most * group_size;
        for (int64_t unit; queue.take(unit);) {
            const int64_t part = unit / shares, share = unit % shares, first = share * groups / shares;
            const Share mine{first, (share + 1) * groups / shares - first};
            const int64_t begin = part * pieces / parts, end = (part + 1) * pieces / parts;
            bool finite = true;
            std::fill(sums, sums + mine.count * group_size, A(0));
            for (int64_t piece = begin; piece < end; ++piece) {
                const Extent extent = pack(piece, mine, patch, x, grad);
                finite &= extent.finite;
                for (int64_t group = 0; group < mine.count; ++group)
                    for (int64_t plane = 0; plane < planes; ++plane)
                        for (int64_t panel = 0; panel < layout.panels(); ++panel)
                            outer_tile<A, N, P>(sums + layout.sum_at(group, plane, panel * P),
                                                x + layout.x_plane[plane] + panel * layout.x_panel, layout.x_image,
                                                layout.x_row,
                                                grad + plane * layout.grad_plane + group * layout.grad_group, extent);
            }
            if (!finite) {
                std::fill(sums, sums + mine.count * group_size, A(0));
                for (int64_t piece = begin; piece < end; ++piece) sum_again(piece, mine, patch, sums);
            }
            for (int before; (before = added[share]) < part;) added[share].wait(before);
            for (int64_t group = 0; group < mine.count; ++group)
                add(first + group, sums + group * group_size, finite, room);
            ++added[share];
            added[share].notify_all();
        }
    });
}

template <class T, class A>
class WeightGradient {
   public:
    explicit WeightGradient(const ConvWeightGradientArgs<T, A>& args)
        : a(args), shape(args.shape), inputs(args.channels()), groups(ceil_div(args.outputs, width)) {}

    void run() const {
        bool tiled = false;
        if constexpr (sizeof(A) == 4)
            if (inputs >= lanes<A>)  // else most of a vector of transformed inputs would be empty
                with_winograd(shape.kernel_h, weight_tile(shape, a.winograd), [&](auto w) {
                    winograd<decltype(w)>();
                    tiled = true;
                });
        if (!tiled) direct();
    }

   private:
    static constexpr int64_t P = outer_channels<A>, width = outer_width<A>;
    static constexpr int64_t tile_cols = 4;  // of the tiles for 3 x 3 kernels

    // The patches of a block's images with the kernel's margins, one after the other, `stride` a pixel.
    void copy(const Blocks::Block& at, A* patch, int64_t stride, int64_t rows, int64_t cols) const {
        for (int64_t image = at.image; image < at.image + at.images; ++image, patch += rows * cols * stride) {
            const int64_t step = image / shape.batch;
            const auto first = images_at<A>(a.factors[0].x, step, a.factors[0].channels),
                       second = images_at<A>(a.factors[1].x, step, a.factors[1].channels);
            copy_patch<A>(patch, {&first, second.channels ? &second : nullptr}, stride, shape, image % shape.batch,
                          at.y - shape.kernel_h / 2, at.x - shape.kernel_w / 2, rows, cols);
        }
    }

    // Images count through the steps.
    ConvShape all_steps() const {
        ConvShape all = shape;
        all.batch *= a.steps;
        return all;
    }

    // outputs [o, o + lanes) of the gradient at a pixel, zeros outside the image. Those of the pixel in its place in the next
    // tile come into the cache: a tile's pixels are read together, which the processor does not foresee.
    Simd<A> gradient(const Blocks::Block& at, int64_t image, int64_t y, int64_t x, int64_t o) const {
        if (at.y + y >= shape.height || at.x + x >= shape.width || o >= a.outputs) return Simd<A>{};
        const int64_t row = (at.image + image) * shape.height + at.y + y;
        const T* from = a.da + (row * shape.width + at.x + x) * a.outputs + o;
        __builtin_prefetch(from + tile_cols * a.outputs);
        return load_lanes<A>(from, lanes_of<A>(a.outputs - o));
    }

    int64_t taps() const { return shape.kernel_h * shape.kernel_w; }

    // kernels_of(c, o, out) gives the kernels [tap][lane] of channel c for the group's outputs [o, o + lanes).
    template <class KernelsOf>
    void add_kernels(int64_t group, A* kernels, const KernelsOf& kernels_of) const {
        for (int64_t o = 0; o < width; o += lanes<A>)
            for (int64_t c = 0; c < inputs; ++c) {
                kernels_of(c, o, kernels);
                const bool second = c >= a.factors[0].channels;
                const auto& factor = a.factors[second];
                const int64_t first = group * width + o, channel = second ? c - a.factors[0].channels : c;
                for (int64_t l = 0; l < lanes_of<A>(a.outputs - first); ++l) {
                    A* out = factor.dw + ((first + l) * factor.channels + channel) * taps();
                    for (int64_t tap = 0; tap < taps(); ++tap) out[tap] += kernels[tap * lanes<A> + l];
                }
            }
    }

    void direct() const {
        // Few channels leave most of a panel empty: then a row of the kernel, which lies contiguous, takes their place.
        const bool rows_of_taps = inputs < lanes<A>;
        const int64_t kernel_h = shape.kernel_h, kernel_w = shape.kernel_w;
        // about 128 pixels: their gradients stay in the L1 cache while all channels pass over them
        const Blocks blocks(all_steps(), {1, 1}, 128, 1, 0);
        const int64_t pitch = blocks.max_cols() + kernel_w - 1, patch_rows = blocks.max_rows() + kernel_h - 1;
        const int64_t cols = rows_of_taps ? blocks.max_cols() : pitch;
        OuterLayout<A> layout;
        layout.channels = inputs * (rows_of_taps ? kernel_w : 1);
        for (int64_t ky = 0; ky < kernel_h; ++ky)
            for (int64_t kx = 0; kx < (rows_of_taps ? 1 : kernel_w); ++kx)
                layout.x_plane.push_back((ky * cols + kx) * P);
        layout.x_row = cols * P;
        layout.x_image = patch_rows * layout.x_row;
        layout.x_panel = blocks.max_images() * layout.x_image + lanes<A>;
        layout.x_size = layout.panels() * layout.x_panel;
        layout.grad_plane = 0;
        layout.grad_group = blocks.max_cells() * width;
        layout.patch_size = blocks.max_images() * patch_rows * pitch * inputs + layout.channels + lanes<A>;
        const int64_t shares = shares_of<A>(groups, layout.planes(), layout.padded_channels());
        const auto pack = [&](int64_t index, Share share, A* patch, A* x, A* grad) {
            const auto at = blocks[index];
            // of all images, one after the other: less than a whole block's rows there are in none but the only one
            const int64_t rows = at.images * patch_rows - (blocks.max_rows() - at.rows);
            copy(at, patch, inputs, at.rows + kernel_h - 1, pitch);
            for (int64_t panel = 0; panel < layout.panels(); ++panel)
                for (int64_t y = 0; y < rows; ++y)
                    for (int64_t col = 0; col < cols; ++col)
                        store(x + panel * layout.x_panel + y * layout.x_row + col * P,
                              load(patch + (y * pitch + col) * inputs + panel * P));
            for (int64_t pixel = 0; pixel < at.cells(); ++pixel, grad += width) {
                const auto [image, y, col] = at.place(pixel);
                for (int64_t o = 0; o < share.count * width; o += lanes<A>)
                    store(grad + o / width * layout.grad_group + o % width,
                          gradient(at, image, y, col, share.first * width + o));
            }
            return Extent{at.images, at.rows, at.cols};
        };
        const auto add = [&](int64_t group, const A* sums, bool, A* room) {
            add_kernels(group, room, [&](int64_t c, int64_t o, A* kernels) {
                for (int64_t tap = 0; tap < taps(); ++tap) {
                    const int64_t plane = rows_of_taps ? tap / kernel_w : tap;
                    const int64_t channel = rows_of_taps ? tap % kernel_w * inputs + c : c;
                    store(kernels + tap * lanes<A>, load(sums + layout.sum_at(0, plane, channel) + o));
                }
            });
        };
        sum_of_products<A>(layout, groups, shares, blocks.count(), taps() * lanes<A>, pack, [](auto...) {}, add);
    }

    // The gradient of output (kernel g * input d), * element by element: kernel^T (output^T grad * input d).
    template <class W>
    void winograd() const {
        constexpr int R = W::taps, points = W::points;
        using V = Simd<A>;
        const int64_t padded = round_up(inputs, P), shares = shares_of<A>(groups, points, padded);
        // about 128 tiles for each pass over the sums, fewer where they would not stay in the caches
        const int64_t bytes = points * padded * static_cast<int64_t>(sizeof(A));
        const Blocks blocks(all_steps(), {W::rows, W::cols}, std::clamp<int64_t>((4 << 20) / bytes, 64, 128), 1, 0);
        const int64_t most = blocks.max_cells(), pitch = blocks.max_cols() * W::cols + R - 1;
        OuterLayout<A> layout;
        layout.channels = inputs;
        layout.x_image = layout.x_row = 0;
        layout.x_panel = most * P + lanes<A>;
        for (int64_t point = 0; point < points; ++point)
            layout.x_plane.push_back(point * layout.panels() * layout.x_panel);
        layout.x_size = points * layout.panels() * layout.x_panel;
        layout.grad_group = most * width;
        layout.grad_plane = ceil_div(groups, shares) * layout.grad_group + cache_line<A>;
        const int64_t channels = layout.padded_channels() + lanes<A>;  // of a pixel in the patch: whole vectors, zeros
        layout.patch_size = blocks.max_images() * (blocks.max_rows() * W::rows + R - 1) * pitch * channels;
        const auto pack = [&](int64_t index, Share share, A* patch, A* x, A* grad) {
            const auto at = blocks[index];
            const int64_t patch_rows = at.rows * W::rows + R - 1;
            copy(at, patch, channels, patch_rows, pitch);
            const A largest_input = largest_magnitude(patch, at.images * patch_rows * pitch * channels);
            LargestMagnitude<A> largest;
            for (int64_t tile = 0; tile < at.cells(); ++tile) {
                const auto place = at.place(tile);
                const int64_t row = place.row * W::rows, col = place.col * W::cols;
                for (int64_t panel = 0; panel < layout.panels(); ++panel) {
                    const A* corner = patch + ((place.image * patch_rows + row) * pitch + col) * channels + panel * P;
                    A* to = x + panel * layout.x_panel + tile * P;
                    transform<W::Y::input, W::X::input, V>(
                        [&](int y, int x) { return load(corner + (y * pitch + x) * channels); },
                        [&](int y, int x, V value) { store(to + layout.x_plane[W::point(y, x)], value); });
                }
                for (int64_t o = 0; o < share.count * width; o += lanes<A>) {
                    A* to = grad + o / width * layout.grad_group + tile * width + o % width;
                    transform<W::Y::output_gradient, W::X::output_gradient, V>(
                        [&](int y, int x) {
                            const V value = gradient(at, place.image, row + y, col + x, share.first * width + o);
                            largest.see(value);
                            return value;
                        },
                        [&](int y, int x, V value) { store(to + W::point(y, x) * layout.grad_plane, value); });
                }
            }
            return Extent{1, 1, at.cells(), std::max(largest_input, largest.value()) < largest_transformed<A>};
        };
        // Without transforms, the taps in the places of as many points: an inf or a NaN would spread over them all.
        const auto sum_again = [&](int64_t index, Share share, A* patch, A* sums) {
            const auto at = blocks[index];
            const int64_t rows = std::min(at.rows * W::rows, shape.height - at.y),
                          cols = std::min(at.cols * W::cols, shape.width - at.x);
            const int64_t patch_rows = at.rows * W::rows + R - 1;
            copy(at, patch, channels, patch_rows, pitch);
            for (int64_t pixel = 0; pixel < at.images * rows * cols; ++pixel)
                for (int64_t o = 0; o < share.count * width; o += lanes<A>) {
                    const int64_t image = pixel / (rows * cols), y = pixel / cols % rows, col = pixel % cols;
                    const V grad = gradient(at, image, y, col, share.first * width + o);
                    const A* corner = patch + ((image * patch_rows + y) * pitch + col) * channels;
                    for (int64_t tap = 0; tap < taps(); ++tap)
                        for (int64_t c = 0; c < inputs; ++c) {
                            A* sum = sums + layout.sum_at(o / width, tap, c) + o % width;
                            store(sum, load(sum) + grad * corner[(tap / R * pitch + tap % R) * channels + c]);
                        }
                }
        };
        const auto add = [&](int64_t group, const A* sums, bool finite, A* room) {
            add_kernels(group, room, [&](int64_t c, int64_t o, A* kernels) {
                if (!finite) {
                    for (int tap = 0; tap < taps(); ++tap)
                        store(kernels + tap * lanes<A>, load(sums + layout.sum_at(0, tap, c) + o));
                    return;
                }
                transform<W::Y::kernel_gradient, W::X::kernel_gradient, V>(
                    [&](int y, int x) { return load(sums + layout.sum_at(0, W::point(y, x), c) + o); },
                    [&](int y, int x, V sum) { store(kernels + (y * R + x) * lanes<A>, sum); });
            });
        };
        sum_of_products<A>(layout, groups, shares, blocks.count(), taps() * lanes<A>, pack, sum_again, add);
    }

    const ConvWeightGradientArgs<T, A>& a;
    const ConvShape& shape;
    const int64_t inputs, groups;  // channels of all x
};
