// Exact products over rings and fields of machine words: matrix product and convolution.
//
// Goto and van de Geijn's scheme ("Anatomy of high-performance matrix multiplication", 2008): blocks of both operands
// are packed into panels, a micro-kernel multiplies a panel of `mr` rows by one of `nr` columns in registers. A
// convolution is the same product; its right operand, the unfolded image, exists only as packed panels.
//
// An element type has `+=`, `*`, construction from 0, and a `micro_kernel` of its own.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <type_traits>
#include <vector>

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/array.h>

#include "cpu.h"
#include "parallel.h"
#include "require.h"

namespace tradeoff {

constexpr Index kDepth = 256;        // rows of a packed block of B
constexpr Index kColumns = 1024;     // its columns: 2 MB at 64 bits, for the L3 cache
constexpr Index kRows = 96;          // rows of a packed block of A: 196 KB at most, for the L2 cache
constexpr Index kMaxTile = 8 * 48;   // elements of the largest micro-kernel's tile
constexpr Index kSerialWork = 1 << 15;  // products below which threads cost more than they give

template <class T>
struct MicroKernel {
    Index mr, nr;
    // Terms are taken in pairs; panels then begin with the sums of products of pairs: `mr` of A, `nr` of B.
    bool paired;
    // Pack `rows` <= mr rows of A, zeros below them.
    void (*pack)(const T *a, Index stride, Index rows, Index depth, T *out);
    // tile = panel of A times panel of B, over `depth` terms.
    void (*run)(Index depth, const T *a, const T *b, T *tile);

    Index packed_depth(Index depth) const { return paired ? depth + depth % 2 : depth; }
    Index panel_a(Index depth) const { return mr * (packed_depth(depth) + paired); }
    Index panel_b(Index depth) const { return nr * (packed_depth(depth) + paired); }
};

template <class T, Index mr>
void pack_rows(const T *a, Index stride, Index rows, Index depth, T *out) {
    const T zero = 0;
    const T *source[mr];
    Index step[mr];
    for (Index i = 0; i < mr; ++i) {
        source[i] = i < rows ? a + i * stride : &zero;
        step[i] = i < rows;
    }
    for (Index k = 0; k < depth; ++k)
        for (Index i = 0; i < mr; ++i) {
            *out++ = *source[i];
            source[i] += step[i];
        }
}

// The sums of products of pairs of rows of a packed panel of B, `nr` columns wide, before it.
template <class T>
TRADEOFF_AVX2 void sum_column_pairs(T *panel, Index nr, Index depth) {
    T *__restrict sums = panel;
    const T *__restrict rows = panel + nr;
    for (Index j = 0; j < nr; ++j) sums[j] = 0;
    for (Index k = 0; k < depth; k += 2, rows += 2 * nr)
        for (Index j = 0; j < nr; ++j) sums[j] += rows[j] * rows[nr + j];
}

template <class T>
MicroKernel<T> micro_kernel();

// Memory that a thread keeps between calls: fresh pages for every product would cost more than its packing.
template <class T>
class Scratch {
   public:
    T *get(Index count) {
        if (count > capacity_) {
            data_.reset(static_cast<T *>(::operator new(sizeof(T) * static_cast<size_t>(count), kAlignment)));
            capacity_ = count;
        }
        return data_.get();
    }

   private:
    static constexpr std::align_val_t kAlignment{64};
    struct Free {
        void operator()(T *data) const { ::operator delete(data, kAlignment); }
    };
    std::unique_ptr<T, Free> data_;
    Index capacity_ = 0;
};

// The right operand of a matrix product.
template <class T>
struct MatrixColumns {
    const T *data;
    Index stride;

    // Columns [first, first + count) of rows [row, row + depth) as rows of `nr`, zeros after the last column.
    void pack(Index row, Index depth, Index first, Index count, Index nr, T *out) const {
        const T *source = data + row * stride + first;
        for (Index k = 0; k < depth; ++k, source += stride, out += nr) {
            std::memcpy(out, source, sizeof(T) * static_cast<size_t>(count));
            std::fill(out + count, out + nr, T(0));
        }
    }
};

// The right operand of a convolution: column (image, y, x) holds the inputs under the kernel at that output position.
template <class T>
struct UnfoldedColumns {
    const T *data;              // padded images, from the group's first channel
    Index image, width;         // elements of an image (all channels); outputs in a row
    Index positions;            // outputs of an image
    Index step_y, step_x;       // elements between inputs of neighboring outputs
    std::vector<Index> terms;   // offset of each (channel, kernel row, kernel column)

    Index offset(Index column) const {
        const Index position = column % positions;
        return column / positions * image + position / width * step_y + position % width * step_x;
    }

    void pack(Index row, Index depth, Index first, Index count, Index nr, T *out) const {
        Index from[64];
        for (Index j = 0; j < count; ++j) from[j] = offset(first + j);
        const Index *term = terms.data() + row;
        if (from[count - 1] - from[0] == count - 1 && step_x == 1) {
            const T *source = data + from[0];
            for (Index k = 0; k < depth; ++k, out += nr) {
                std::memcpy(out, source + term[k], sizeof(T) * static_cast<size_t>(count));
                std::fill(out + count, out + nr, T(0));
            }
            return;
        }
        for (Index k = 0; k < depth; ++k, out += nr) {
            const T *source = data + term[k];
            for (Index j = 0; j < count; ++j) out[j] = source[from[j]];
            std::fill(out + count, out + nr, T(0));
        }
    }
};

// Where products go: column j of the product lies `positions` to an image, row i is `row` elements after row i - 1.
template <class T>
struct Output {
    T *data;
    Index row, positions, image;

    TRADEOFF_INLINE void write(const T *tile, Index nr, Index i0, Index rows, Index j0, Index columns, bool add) const {
        for (Index j = 0; j < columns;) {
            const Index position = (j0 + j) % positions;
            const Index run = std::min(columns - j, positions - position);
            T *to = data + (j0 + j) / positions * image + position + i0 * row;
            const T *from = tile + j;
            for (Index i = 0; i < rows; ++i, to += row, from += nr) {
                if (add)
                    for (Index c = 0; c < run; ++c) to[c] += from[c];
                else
                    std::memcpy(to, from, sizeof(T) * static_cast<size_t>(run));
            }
            j += run;
        }
    }
};
template <class T>
using WriteTile = void (*)(const Output<T> &, const T *, Index, Index, Index, Index, Index, bool);
template <class T>
void write_portable(const Output<T> &out, const T *tile, Index nr, Index i0, Index rows, Index j0, Index columns,
                    bool add) {
    out.write(tile, nr, i0, rows, j0, columns, add);
}
template <class T>
TRADEOFF_AVX2 void write_avx2(const Output<T> &out, const T *tile, Index nr, Index i0, Index rows, Index j0,
                              Index columns, bool add) {
    out.write(tile, nr, i0, rows, j0, columns, add);
}

// out += weight * x over a row: one tap of a depthwise convolution, or one term of a thin product.
template <class T>
TRADEOFF_INLINE void add_scaled(T *out, const T *x, T weight, Index count, Index step) {
    if (step == 1)
        for (Index j = 0; j < count; ++j) out[j] += weight * x[j];
    else
        for (Index j = 0; j < count; ++j) out[j] += weight * x[j * step];
}
template <class T>
void add_scaled_portable(T *out, const T *x, T weight, Index count, Index step) {
    add_scaled(out, x, weight, count, step);
}
template <class T>
TRADEOFF_AVX2 void add_scaled_avx2(T *out, const T *x, T weight, Index count, Index step) {
    add_scaled(out, x, weight, count, step);
}

// A product of so few rows that packing the right operand would cost more than the product: row by row of B.
constexpr Index kThin = 2;

template <class T>
void multiply_thin(const T *a, const T *b, T *out, Index rows, Index depth, Index columns, Index threads) {
    const auto add = isa() == Isa::portable ? add_scaled_portable<T> : add_scaled_avx2<T>;
    parallel_ranges(columns, 64, 1 + kSerialWork / depth, threads, [&](Index begin, Index end) {
        for (Index first = begin; first < end; first += kColumns) {  // outputs stay in the first cache
            const Index count = std::min(kColumns, end - first);
            for (Index i = 0; i < rows; ++i) std::fill_n(out + i * columns + first, count, T(0));
            for (Index k = 0; k < depth; ++k)
                for (Index i = 0; i < rows; ++i)
                    add(out + i * columns + first, b + k * columns + first, a[i * depth + k], count, 1);
        }
    });
}

// The part [rows) x [columns) of the product, by one thread.
template <class T, class Columns>
void multiply_part(const MicroKernel<T> &kernel, const T *a, const Columns &b, const Output<T> &out, Index depth,
                   Range rows, Range columns) {
    thread_local Scratch<T> scratch_a, scratch_b;
    const WriteTile<T> write = isa() == Isa::portable ? write_portable<T> : write_avx2<T>;
    const Index mr = kernel.mr, nr = kernel.nr;
    alignas(64) T tile[kMaxTile];
    const Index block_rows = kRows / mr * mr, block_columns = kColumns / nr * nr;
    T *packed_a = scratch_a.get(block_rows / mr * kernel.panel_a(kDepth));
    T *packed_b = scratch_b.get(block_columns / nr * kernel.panel_b(kDepth));
    for (Index jc = columns.begin; jc < columns.end; jc += block_columns) {
        const Index width = std::min(block_columns, columns.end - jc);
        for (Index pc = 0; pc < depth; pc += kDepth) {
            const Index terms = std::min(kDepth, depth - pc);
            const Index panel_a = kernel.panel_a(terms), panel_b = kernel.panel_b(terms);
            for (Index j = 0; j < width; j += nr) {
                T *panel = packed_b + j / nr * panel_b;
                b.pack(pc, terms, jc + j, std::min(nr, width - j), nr, panel + (kernel.paired ? nr : 0));
                if (kernel.paired) {
                    std::fill(panel + nr * (1 + terms), panel + panel_b, T(0));
                    sum_column_pairs(panel, nr, terms);
                }
            }
            for (Index ic = rows.begin; ic < rows.end; ic += block_rows) {
                const Index height = std::min(block_rows, rows.end - ic);
                for (Index i = 0; i < height; i += mr)
                    kernel.pack(a + (ic + i) * depth + pc, depth, std::min(mr, height - i), terms,
                                packed_a + i / mr * panel_a);
                for (Index j = 0; j < width; j += nr)
                    for (Index i = 0; i < height; i += mr) {
                        kernel.run(terms, packed_a + i / mr * panel_a, packed_b + j / nr * panel_b, tile);
                        write(out, tile, nr, ic + i, std::min(mr, height - i), jc + j, std::min(nr, width - j), pc > 0);
                    }
            }
        }
    }
}

// Split the product over a grid of threads that repeats the least packing, and run it.
template <class T, class Columns>
void multiply(const T *a, const Columns &b, const Output<T> &out, Index rows, Index depth, Index columns,
              Index threads) {
    if (rows == 0 || columns == 0) return;
    const MicroKernel<T> kernel = micro_kernel<T>();
    const Index row_tiles = (rows + kernel.mr - 1) / kernel.mr, column_tiles = (columns + kernel.nr - 1) / kernel.nr;
    if (rows * columns * std::max<Index>(depth, 1) < kSerialWork) threads = 1;
    Index grid_rows = 1, grid_columns = 1, best = -1;
    for (Index r = 1; r <= threads; ++r) {
        const Index c = threads / r;
        if (r > row_tiles || c > column_tiles) continue;
        // Time of the largest part: its products, and packing each of its operands.
        const Index part_rows = (row_tiles + r - 1) / r * kernel.mr, part_columns = (column_tiles + c - 1) / c * kernel.nr;
        const Index cost = part_rows * part_columns / 4 + part_rows + part_columns;
        if (best < 0 || cost < best) best = cost, grid_rows = r, grid_columns = c;
    }
    if (best < 0) {  // more threads than tiles along both sides: one side alone
        if (row_tiles > column_tiles)
            grid_rows = std::min(threads, row_tiles);
        else
            grid_columns = std::min(threads, column_tiles);
    }
    const auto part = [&](Index index) {
        multiply_part(kernel, a, b, out, depth, part_of(rows, kernel.mr, index / grid_columns, grid_rows),
                      part_of(columns, kernel.nr, index % grid_columns, grid_columns));
    };
    const Index parts = grid_rows * grid_columns;
    if (parts == 1) {
        part(0);
        return;
    }
#pragma omp parallel for num_threads(static_cast<int>(parts)) schedule(static, 1)
    for (Index index = 0; index < parts; ++index) part(index);
}

struct Geometry {
    Index batch, channels, height, width;          // of the padded input
    Index outputs, inputs, kernel_y, kernel_x;     // of the weight
    Index out_height, out_width;
    std::array<Index, 2> stride, dilation;
    Index groups;
};

template <class T>
void depthwise(const T *x, const T *weight, T *out, const Geometry &g, Index threads) {
    const auto add = isa() == Isa::portable ? add_scaled_portable<T> : add_scaled_avx2<T>;
    const Index plane = g.out_height * g.out_width, taps = g.kernel_y * g.kernel_x;
    const Index grain = std::max<Index>(1, kSerialWork / std::max<Index>(1, plane * taps));
    parallel_ranges(g.batch * g.outputs, 1, grain, threads, [&](Index begin, Index end) {
        for (Index index = begin; index < end; ++index) {
            const Index output = index % g.outputs, channel = output / (g.outputs / g.groups);
            const T *image = x + (index / g.outputs * g.channels + channel) * g.height * g.width;
            T *to = out + index * plane;
            std::fill(to, to + plane, T(0));
            for (Index y = 0; y < g.out_height; ++y)
                for (Index tap = 0; tap < taps; ++tap) {
                    const T *row = image + (y * g.stride[0] + tap / g.kernel_x * g.dilation[0]) * g.width;
                    add(to + y * g.out_width, row + tap % g.kernel_x * g.dilation[1], weight[output * taps + tap],
                        g.out_width, g.stride[1]);
                }
        }
    });
}

template <class T>
void convolve(const T *x, const T *weight, T *out, const Geometry &g, Index threads) {
    const Index positions = g.out_height * g.out_width, plane = g.height * g.width;
    const Index depth = g.inputs * g.kernel_y * g.kernel_x, rows = g.outputs / g.groups;
    UnfoldedColumns<T> columns{nullptr,   g.channels * plane,   g.out_width, positions, g.stride[0] * g.width,
                               g.stride[1], std::vector<Index>(static_cast<size_t>(depth))};
    for (Index k = 0; k < depth; ++k) {
        const Index tap = k % (g.kernel_y * g.kernel_x), channel = k / (g.kernel_y * g.kernel_x);
        columns.terms[static_cast<size_t>(k)] = channel * plane + tap / g.kernel_x * g.dilation[0] * g.width +
                                                tap % g.kernel_x * g.dilation[1];
    }
    for (Index group = 0; group < g.groups; ++group) {
        columns.data = x + group * g.inputs * plane;
        const Output<T> to{out + group * rows * positions, positions, positions, g.outputs * positions};
        multiply(weight + group * rows * depth, columns, to, rows, depth, g.batch * positions, threads);
    }
}

template <class T>
std::unique_ptr<T[]> padded_copy(const T *x, Index planes, Index height, Index width, std::array<Index, 2> padding,
                                 Index threads) {
    const Index wide = width + 2 * padding[1], plane = (height + 2 * padding[0]) * wide;
    std::unique_ptr<T[]> out(new T[static_cast<size_t>(planes * plane)]);
    parallel_ranges(planes, 1, 1 + kSerialWork / std::max<Index>(1, plane), threads, [&](Index begin, Index end) {
        std::fill(out.get() + begin * plane, out.get() + end * plane, T(0));
        for (Index row = begin * height; row < end * height; ++row)
            std::memcpy(out.get() + row / height * plane + (row % height + padding[0]) * wide + padding[1],
                        x + row * width, sizeof(T) * static_cast<size_t>(width));
    });
    return out;
}

template <class T>
using Matrix = nanobind::ndarray<T, nanobind::ndim<2>, nanobind::c_contig, nanobind::device::cpu>;
template <class T>
using Images = nanobind::ndarray<T, nanobind::ndim<4>, nanobind::c_contig, nanobind::device::cpu>;

// Words as the elements that compute with them.
template <class T, class Word>
auto elements(Word *words) {
    static_assert(sizeof(T) == sizeof(Word));
    return reinterpret_cast<std::conditional_t<std::is_const_v<Word>, const T, T> *>(words);
}

template <class T, class Word>
void matmul(Matrix<const Word> a, Matrix<const Word> b, Matrix<Word> out, Index threads) {
    const Index rows = Index(a.shape(0)), depth = Index(a.shape(1)), columns = Index(b.shape(1));
    require(Index(b.shape(0)) == depth, "the inner dimensions of the operands differ");
    require(Index(out.shape(0)) == rows && Index(out.shape(1)) == columns, "out has the wrong shape");
    const T *left = elements<T>(a.data()), *right = elements<T>(b.data());
    T *to = elements<T>(out.data());
    nanobind::gil_scoped_release release;
    if (depth == 0 || columns == 0) {
        std::fill(to, to + rows * columns, T(0));
        return;
    }
    if (rows <= kThin) {
        multiply_thin(left, right, to, rows, depth, columns, threads);
        return;
    }
    multiply(left, MatrixColumns<T>{right, columns}, Output<T>{to, columns, std::max<Index>(1, columns), 0}, rows, depth,
             columns, threads);
}

template <class T, class Word>
void conv2d(Images<const Word> x, Images<const Word> weight, Images<Word> out, std::array<Index, 2> stride,
            std::array<Index, 2> padding, std::array<Index, 2> dilation, Index groups, Index threads) {
    Geometry g{Index(x.shape(0)),      Index(x.shape(1)),      Index(x.shape(2)) + 2 * padding[0],
               Index(x.shape(3)) + 2 * padding[1],
               Index(weight.shape(0)), Index(weight.shape(1)), Index(weight.shape(2)), Index(weight.shape(3)),
               Index(out.shape(2)),    Index(out.shape(3)),    stride, dilation, groups};
    for (int d = 0; d < 2; ++d)
        require(stride[d] > 0 && dilation[d] > 0 && padding[d] >= 0, "stride, dilation or padding out of range");
    require(groups > 0 && g.outputs % groups == 0 && g.inputs * groups == g.channels, "groups do not fit");
    require(g.kernel_y > 0 && g.kernel_x > 0 && g.out_height > 0 && g.out_width > 0, "an empty kernel or output");
    require(Index(out.shape(0)) == g.batch && Index(out.shape(1)) == g.outputs, "out has the wrong shape");
    require((g.out_height - 1) * stride[0] + (g.kernel_y - 1) * dilation[0] < g.height &&
                (g.out_width - 1) * stride[1] + (g.kernel_x - 1) * dilation[1] < g.width,
            "out reaches beyond the padded input");
    const T *images = elements<T>(x.data()), *factors = elements<T>(weight.data());
    T *to = elements<T>(out.data());
    nanobind::gil_scoped_release release;
    std::unique_ptr<T[]> copy;
    if (padding[0] || padding[1]) {
        copy = padded_copy(images, g.batch * g.channels, Index(x.shape(2)), Index(x.shape(3)), padding, threads);
        images = copy.get();
    }
    if (g.inputs == 0)
        std::fill(to, to + out.size(), T(0));
    else if (g.inputs == 1 && groups > 1)
        depthwise(images, factors, to, g, threads);
    else
        convolve(images, factors, to, g, threads);
}

// Both products under names of their own, for words of this type.
template <class T, class Word>
void register_products(nanobind::module_ &m, const char *matmul_name, const char *conv2d_name) {
    using nanobind::arg;
    m.def(matmul_name, &matmul<T, Word>, arg("a").noconvert(), arg("b").noconvert(), arg("out").noconvert(),
          arg("threads"));
    m.def(conv2d_name, &conv2d<T, Word>, arg("x").noconvert(), arg("weight").noconvert(), arg("out").noconvert(),
          arg("stride"), arg("padding"), arg("dilation"), arg("groups"), arg("threads"));
}

}  // namespace tradeoff
