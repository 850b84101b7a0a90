// The forward product with a compressed matrix for up to 256 columns with AVX-512. A mask of d bits says where the
// values of a compressed row go, so that a row of sums stays in registers: an entry of A costs d / 16 expansions, where
// plain additions in memory cost k. Included by cbsr.cpp.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "simd.h"

#if TRADEOFF_X86

namespace tradeoff::avx512 {

// The columns of a compressed matrix as bits: kVectors words of 16 for each row.
template <class Place>
std::vector<uint16_t> column_masks(const Place *index, const int32_t *count, Index rows, Index k, Index vectors,
                                   Index threads) {
    std::vector<uint16_t> masks(rows * vectors, 0);
    parallel_ranges(rows, 1, 1024, threads, [&](Index begin, Index end) {
        for (Index row = begin; row < end; ++row)
            for (Index t = row * k; t < row * k + (count ? count[row] : k); ++t)
                masks[row * vectors + index[t] / 16] |= static_cast<uint16_t>(1u << (index[t] % 16));
    });
    return masks;
}

// Rows [begin, end) of Y = A H; `width` is at most 16 kVectors.
template <int kVectors>
TRADEOFF_AVX512 void expand_rows(const Index *indptr, const int32_t *indices, const float *weights,
                                 const float *values, const uint16_t *masks, Index k, float *y, Index width, Index nnz,
                                 Index begin, Index end) {
    constexpr Index kFetch = 6;
    for (Index row = begin; row < end; ++row) {
        Vec sums[kVectors];
        for (int v = 0; v < kVectors; ++v) sums[v] = zero();
        for (Index e = indptr[row]; e < indptr[row + 1]; ++e) {
            const Index ahead = Index(indices[std::min(e + kFetch, nnz - 1)]);
            for (Index t = 0; t < k; t += 16) prefetch(values + ahead * k + t);
            prefetch(masks + ahead * kVectors);
            const float *from = values + Index(indices[e]) * k;
            const uint16_t *mask = masks + Index(indices[e]) * kVectors;
            const Vec weight = spread(weights ? weights[e] : 1.0f);
            for (int v = 0; v < kVectors; ++v) {
                // Additions where the row has entries only: elsewhere 0 times an infinite weight would be NaN.
                const Vec row_part = _mm512_maskz_expandloadu_ps(mask[v], from);
                sums[v] = _mm512_mask3_fmadd_ps(weight, row_part, sums[v], mask[v]);
                from += __builtin_popcount(mask[v]);
            }
        }
        for (int v = 0; v < kVectors; ++v)
            store(y + row * width + 16 * v, sums[v], part(int(std::clamp<Index>(width - 16 * v, 0, 16))));
    }
}

using ExpandRows = decltype(&expand_rows<1>);

// How many vectors a row of sums takes for so many columns: one of a few numbers, for each of which code is there.
inline Index expanded_vectors(Index width) {
    for (const Index vectors : {2, 4, 6, 8, 12, 16})
        if (width <= 16 * vectors) return vectors;
    return 0;  // more than there are registers for
}

inline ExpandRows expand_rows_of(Index vectors) {
    switch (vectors) {
        case 2: return expand_rows<2>;
        case 4: return expand_rows<4>;
        case 6: return expand_rows<6>;
        case 8: return expand_rows<8>;
        case 12: return expand_rows<12>;
        default: return expand_rows<16>;
    }
}

}  // namespace tradeoff::avx512

#endif
