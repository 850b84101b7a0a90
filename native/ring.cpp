// Products modulo 2^64 and 2^32: the element types and micro-kernels of product.h.
//
// The 64-bit AVX2 micro-kernel needs one multiplication a product, counting those of four 64-bit lanes as one:
//   - With u = u0 + 2^32 u1 and v likewise, u v = u0 v0 + 2^32 (u0 v1 + u1 v0) mod 2^64. vpmuludq gives u0 v0; the
//     bracket matters modulo 2^32 only, so one vpmulld of the words (u0, u1) by (v1, v0) gives both of its products.
//     They are summed apart and joined once, after the last term.
//   - Winograd's inner product ("A new algorithm for inner product", 1968), exact in any commutative ring, halves that:
//     a0 b0 + a1 b1 = (a0 + b1) (a1 + b0) - a0 a1 - b0 b1, where the last two are summed while packing, once a row of A
//     and once a column of B.
#include <cstdint>
#include <cstring>

#include <nanobind/nanobind.h>

#include "cpu.h"
#include "module.h"
#include "product.h"

#if TRADEOFF_X86
#include <immintrin.h>
#endif

namespace tradeoff {
namespace {

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

}  // namespace

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

}  // namespace tradeoff

void register_ring(nanobind::module_ &m) {
    tradeoff::register_products<uint64_t, uint64_t>(m, "ring_matmul", "ring_conv2d");
    tradeoff::register_products<uint32_t, uint32_t>(m, "ring_matmul", "ring_conv2d");
}
