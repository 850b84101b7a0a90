// Products modulo 2^64 and 2^32: matrix product and convolution.
//
// Goto and van de Geijn's scheme ("Anatomy of high-performance matrix multiplication", 2008): blocks of both operands
// are packed into panels, a micro-kernel multiplies a panel of `mr` rows by one of `nr` columns in registers. A
// convolution is the same product; its right operand, the unfolded image, exists only as packed panels.
//
// The 64-bit AVX2 micro-kernel needs one multiplication a product, counting those of four 64-bit lanes as one:
//   - With u = u0 + 2^32 u1 and v likewise, u v = u0 v0 + 2^32 (u0 v1 + u1 v0) mod 2^64. vpmuludq gives u0 v0; the
//     bracket matters modulo 2^32 only, so one vpmulld of the words (u0, u1) by (v1, v0) gives both of its products.
//     They are summed apart and joined once, after the last term.
//   - Winograd's inner product ("A new algorithm for inner product", 1968), exact in any commutative ring, halves that:
//     a0 b0 + a1 b1 = (a0 + b1) (a1 + b0) - a0 a1 - b0 b1, where the last two are summed while packing, once a row of A
//     and once a column of B.
#include <array>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/array.h>

#include "cpu.h"
#include "module.h"
#include "parallel.h"
#include "require.h"

#if TRADEOFF_X86
#include <immintrin.h>
#endif

namespace nb = nanobind;

namespace tradeoff {
namespace {

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

// Pairs of terms side by side, and before all the sums of their products; an odd last term is paired with 0.
template <class T, Index mr>
void pack_row_pairs(const T *a, Index stride, Index rows, Index depth, T *out) {
    for (Index i = 0; i < mr; ++i) {
        const T *source = a + i * stride;
        T *to = out + mr + 2 * i, sum = 0;
        Index k = i < rows ? 0 : depth;
        for (; k + 1 < depth; k += 2, to += 2 * mr) {
            std::memcpy(to, source + k, 2 * sizeof(T));
            sum += source[k] * source[k + 1];
        }
        for (k = i < rows ? k : 0; k < depth; k += 2, to += 2 * mr) {
            to[0] = i < rows ? source[k] : T(0);
            to[1] = 0;
        }
        out[i] = sum;
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

template <class T, Index mr, Index nr>
void micro_portable(Index depth, const T *a, const T *b, T *tile) {
    T sum[mr][nr] = {};
    for (Index k = 0; k < depth; ++k, a += mr, b += nr)
        for (Index i = 0; i < mr; ++i)
            for (Index j = 0; j < nr; ++j) sum[i][j] += a[i] * b[j];
    std::memcpy(tile, sum, sizeof sum);
}

#if TRADEOFF_X86

// The micro-kernels are in assembly because their sums and temporaries are all sixteen registers, which the compiler's
// own order of these instructions exceeds.
//
// One row of a tile of two vectors (x, y), for a pair of terms: rows `b` and `b + 8` of B, elements a[0] and a[1] of A.
#define TRADEOFF_PAIR(lowx, lowy, crossx, crossy, a, b)                                                           \
    do {                                                                                                          \
        __m256i p, q, u, v;                                                                                       \
        __asm__("vpbroadcastq %[a0], %[p]\n\t"                                                                    \
                "vpbroadcastq %[a1], %[q]\n\t"                                                                    \
                "vpaddq %[x1], %[p], %[u]\n\t"                                                                    \
                "vpaddq %[x0], %[q], %[v]\n\t"                                                                    \
                "vpmuludq %[u], %[v], %[p]\n\t"                                                                   \
                "vpshufd $0xb1, %[v], %[v]\n\t"                                                                   \
                "vpaddq %[p], %[lx], %[lx]\n\t"                                                                   \
                "vpmulld %[u], %[v], %[v]\n\t"                                                                    \
                "vpbroadcastq %[a0], %[p]\n\t"                                                                    \
                "vpaddd %[v], %[cx], %[cx]\n\t"                                                                   \
                "vpaddq %[y1], %[p], %[u]\n\t"                                                                    \
                "vpaddq %[y0], %[q], %[v]\n\t"                                                                    \
                "vpmuludq %[u], %[v], %[p]\n\t"                                                                   \
                "vpshufd $0xb1, %[v], %[v]\n\t"                                                                   \
                "vpaddq %[p], %[ly], %[ly]\n\t"                                                                   \
                "vpmulld %[u], %[v], %[v]\n\t"                                                                    \
                "vpaddd %[v], %[cy], %[cy]"                                                                       \
                : [lx] "+x"(lowx), [ly] "+x"(lowy), [cx] "+x"(crossx), [cy] "+x"(crossy), [p] "=&x"(p),           \
                  [q] "=&x"(q), [u] "=&x"(u), [v] "=&x"(v)                                                        \
                : [a0] "m"((a)[0]), [a1] "m"((a)[1]), [x0] "m"(*reinterpret_cast<const __m256i *>(b)),            \
                  [y0] "m"(*reinterpret_cast<const __m256i *>((b) + 4)),                                          \
                  [x1] "m"(*reinterpret_cast<const __m256i *>((b) + 8)),                                          \
                  [y1] "m"(*reinterpret_cast<const __m256i *>((b) + 12)));                                        \
    } while (0)

// Low words plus cross words (those of both halves of each element, added and moved to its upper half), less the sums of
// products of pairs of the row of A and of the columns of B.
TRADEOFF_AVX2 inline void store_joined(uint64_t *to, __m256i low, __m256i cross, uint64_t row, const uint64_t *columns) {
    const __m256i both = _mm256_add_epi32(cross, _mm256_slli_epi64(cross, 32));
    const __m256i high = _mm256_slli_epi64(_mm256_srli_epi64(both, 32), 32);
    const __m256i pairs = _mm256_add_epi64(_mm256_set1_epi64x(static_cast<long long>(row)),
                                           _mm256_load_si256(reinterpret_cast<const __m256i *>(columns)));
    const __m256i sum = _mm256_sub_epi64(_mm256_add_epi64(low, high), pairs);
    _mm256_store_si256(reinterpret_cast<__m256i *>(to), sum);
}

TRADEOFF_AVX2 void micro64_avx2(Index depth, const uint64_t *a, const uint64_t *b, uint64_t *tile) {
    // Sums of row i (digit) and of the first (x) or second (y) vector, of low and of cross products.
    __m256i low0x = _mm256_setzero_si256(), low0y = low0x, low1x = low0x, low1y = low0x, low2x = low0x, low2y = low0x;
    __m256i cross0x = low0x, cross0y = low0x, cross1x = low0x, cross1y = low0x, cross2x = low0x, cross2y = low0x;
    const uint64_t *rows = a, *columns = b;
    a += 3;
    b += 8;
    for (Index k = 0; k < depth; k += 2, a += 6, b += 16) {
        TRADEOFF_PAIR(low0x, low0y, cross0x, cross0y, a, b);
        TRADEOFF_PAIR(low1x, low1y, cross1x, cross1y, a + 2, b);
        TRADEOFF_PAIR(low2x, low2y, cross2x, cross2y, a + 4, b);
    }
    store_joined(tile, low0x, cross0x, rows[0], columns);
    store_joined(tile + 4, low0y, cross0y, rows[0], columns + 4);
    store_joined(tile + 8, low1x, cross1x, rows[1], columns);
    store_joined(tile + 12, low1y, cross1y, rows[1], columns + 4);
    store_joined(tile + 16, low2x, cross2x, rows[2], columns);
    store_joined(tile + 20, low2y, cross2y, rows[2], columns + 4);
}

#undef TRADEOFF_PAIR

// The same for 32-bit elements: one term, one multiplication and one addition a vector.
#define TRADEOFF_ROW(sum0, sum1, b0, b1, element)                                                                 \
    do {                                                                                                          \
        __m256i t0, t1;                                                                                           \
        __asm__("vpbroadcastd %[a], %[t0]\n\t"                                                                    \
                "vpmulld %[x], %[t0], %[t1]\n\t"                                                                  \
                "vpaddd %[t1], %[s], %[s]\n\t"                                                                    \
                "vpmulld %[y], %[t0], %[t0]\n\t"                                                                  \
                "vpaddd %[t0], %[u], %[u]"                                                                        \
                : [s] "+x"(sum0), [u] "+x"(sum1), [t0] "=&x"(t0), [t1] "=&x"(t1)                                  \
                : [x] "x"(b0), [y] "x"(b1), [a] "m"(element));                                                    \
    } while (0)

TRADEOFF_AVX2 void micro32_avx2(Index depth, const uint32_t *a, const uint32_t *b, uint32_t *tile) {
    __m256i sum0x = _mm256_setzero_si256(), sum0y = sum0x, sum1x = sum0x, sum1y = sum0x, sum2x = sum0x, sum2y = sum0x;
    __m256i sum3x = sum0x, sum3y = sum0x, sum4x = sum0x, sum4y = sum0x, sum5x = sum0x, sum5y = sum0x;
    for (Index k = 0; k < depth; ++k, a += 6, b += 16) {
        const __m256i x = _mm256_load_si256(reinterpret_cast<const __m256i *>(b));
        const __m256i y = _mm256_load_si256(reinterpret_cast<const __m256i *>(b + 8));
        TRADEOFF_ROW(sum0x, sum0y, x, y, a[0]);
        TRADEOFF_ROW(sum1x, sum1y, x, y, a[1]);
        TRADEOFF_ROW(sum2x, sum2y, x, y, a[2]);
        TRADEOFF_ROW(sum3x, sum3y, x, y, a[3]);
        TRADEOFF_ROW(sum4x, sum4y, x, y, a[4]);
        TRADEOFF_ROW(sum5x, sum5y, x, y, a[5]);
    }
    const __m256i sums[] = {sum0x, sum0y, sum1x, sum1y, sum2x, sum2y, sum3x, sum3y, sum4x, sum4y, sum5x, sum5y};
    for (int i = 0; i < 12; ++i) _mm256_store_si256(reinterpret_cast<__m256i *>(tile) + i, sums[i]);
}

#undef TRADEOFF_ROW

TRADEOFF_AVX512 void micro64_avx512(Index depth, const uint64_t *a, const uint64_t *b, uint64_t *tile) {
    constexpr int mr = 8, vectors = 3, nr = 8 * vectors;
    __m512i sum[mr][vectors];
    for (int i = 0; i < mr; ++i)
        for (int j = 0; j < vectors; ++j)  // less the sums of products of pairs of row i of A and of the columns of B
            sum[i][j] = _mm512_sub_epi64(_mm512_set1_epi64(static_cast<long long>(0 - a[i])), _mm512_load_si512(b + 8 * j));
    a += mr;
    b += nr;
    for (Index k = 0; k < depth; k += 2, a += 2 * mr, b += 2 * nr) {
        const __m512i x0 = _mm512_load_si512(b), x1 = _mm512_load_si512(b + nr);
        const __m512i y0 = _mm512_load_si512(b + 8), y1 = _mm512_load_si512(b + nr + 8);
        const __m512i z0 = _mm512_load_si512(b + 16), z1 = _mm512_load_si512(b + nr + 16);
#pragma GCC unroll 8
        for (int i = 0; i < mr; ++i) {
            const __m512i p = _mm512_set1_epi64(static_cast<long long>(a[2 * i]));
            const __m512i q = _mm512_set1_epi64(static_cast<long long>(a[2 * i + 1]));
            sum[i][0] = _mm512_add_epi64(
                sum[i][0], _mm512_mullo_epi64(_mm512_add_epi64(p, x1), _mm512_add_epi64(q, x0)));
            sum[i][1] = _mm512_add_epi64(
                sum[i][1], _mm512_mullo_epi64(_mm512_add_epi64(p, y1), _mm512_add_epi64(q, y0)));
            sum[i][2] = _mm512_add_epi64(
                sum[i][2], _mm512_mullo_epi64(_mm512_add_epi64(p, z1), _mm512_add_epi64(q, z0)));
        }
    }
    for (int i = 0; i < mr; ++i)
        for (int j = 0; j < vectors; ++j) _mm512_store_si512(tile + nr * i + 8 * j, sum[i][j]);
}

TRADEOFF_AVX512 void micro32_avx512(Index depth, const uint32_t *a, const uint32_t *b, uint32_t *tile) {
    constexpr int mr = 8, vectors = 3;
    __m512i sum[mr][vectors];
    for (int i = 0; i < mr; ++i)
        for (int j = 0; j < vectors; ++j) sum[i][j] = _mm512_setzero_si512();
    for (Index k = 0; k < depth; ++k, a += mr, b += 16 * vectors) {
        const __m512i b0 = _mm512_load_si512(b), b1 = _mm512_load_si512(b + 16), b2 = _mm512_load_si512(b + 32);
#pragma GCC unroll 8
        for (int i = 0; i < mr; ++i) {
            const __m512i one = _mm512_set1_epi32(static_cast<int>(a[i]));
            sum[i][0] = _mm512_add_epi32(sum[i][0], _mm512_mullo_epi32(one, b0));
            sum[i][1] = _mm512_add_epi32(sum[i][1], _mm512_mullo_epi32(one, b1));
            sum[i][2] = _mm512_add_epi32(sum[i][2], _mm512_mullo_epi32(one, b2));
        }
    }
    for (int i = 0; i < mr; ++i)
        for (int j = 0; j < vectors; ++j) _mm512_store_si512(tile + 48 * i + 16 * j, sum[i][j]);
}

#endif  // TRADEOFF_X86

template <class T>
MicroKernel<T> micro_kernel();

template <>
MicroKernel<uint64_t> micro_kernel() {
#if TRADEOFF_X86
    if (isa() == Isa::avx512) return {8, 24, true, pack_row_pairs<uint64_t, 8>, micro64_avx512};
    if (isa() == Isa::avx2) return {3, 8, true, pack_row_pairs<uint64_t, 3>, micro64_avx2};
#endif
    return {4, 4, false, pack_rows<uint64_t, 4>, micro_portable<uint64_t, 4, 4>};
}

template <>
MicroKernel<uint32_t> micro_kernel() {
#if TRADEOFF_X86
    if (isa() == Isa::avx512) return {8, 48, false, pack_rows<uint32_t, 8>, micro32_avx512};
    if (isa() == Isa::avx2) return {6, 16, false, pack_rows<uint32_t, 6>, micro32_avx2};
#endif
    return {4, 8, false, pack_rows<uint32_t, 4>, micro_portable<uint32_t, 4, 8>};
}

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
using Matrix = nb::ndarray<T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
template <class T>
using Images = nb::ndarray<T, nb::ndim<4>, nb::c_contig, nb::device::cpu>;

template <class T>
void ring_matmul(Matrix<const T> a, Matrix<const T> b, Matrix<T> out, Index threads) {
    const Index rows = Index(a.shape(0)), depth = Index(a.shape(1)), columns = Index(b.shape(1));
    require(Index(b.shape(0)) == depth, "the inner dimensions of the operands differ");
    require(Index(out.shape(0)) == rows && Index(out.shape(1)) == columns, "out has the wrong shape");
    nb::gil_scoped_release release;
    if (depth == 0 || columns == 0) {
        std::fill(out.data(), out.data() + rows * columns, T(0));
        return;
    }
    if (rows <= kThin) {
        multiply_thin(a.data(), b.data(), out.data(), rows, depth, columns, threads);
        return;
    }
    const MatrixColumns<T> right{b.data(), columns};
    multiply(a.data(), right, Output<T>{out.data(), columns, std::max<Index>(1, columns), 0}, rows, depth, columns,
             threads);
}

template <class T>
void ring_conv2d(Images<const T> x, Images<const T> weight, Images<T> out, std::array<Index, 2> stride,
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
    nb::gil_scoped_release release;
    const T *images = x.data();
    std::unique_ptr<T[]> copy;
    if (padding[0] || padding[1]) {
        copy = padded_copy(images, g.batch * g.channels, Index(x.shape(2)), Index(x.shape(3)), padding, threads);
        images = copy.get();
    }
    if (g.inputs == 0)
        std::fill(out.data(), out.data() + out.size(), T(0));
    else if (g.inputs == 1 && groups > 1)
        depthwise(images, weight.data(), out.data(), g, threads);
    else
        convolve(images, weight.data(), out.data(), g, threads);
}

template <class T>
void register_ring_of(nb::module_ &m) {
    m.def("ring_matmul", &ring_matmul<T>, nb::arg("a").noconvert(), nb::arg("b").noconvert(),
          nb::arg("out").noconvert(), nb::arg("threads"));
    m.def("ring_conv2d", &ring_conv2d<T>, nb::arg("x").noconvert(), nb::arg("weight").noconvert(),
          nb::arg("out").noconvert(), nb::arg("stride"), nb::arg("padding"), nb::arg("dilation"), nb::arg("groups"),
          nb::arg("threads"));
}

}  // namespace
}  // namespace tradeoff

void register_ring(nanobind::module_ &m) {
    tradeoff::register_ring_of<uint64_t>(m);
    tradeoff::register_ring_of<uint32_t>(m);
}
