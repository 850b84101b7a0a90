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

// Rows [begin, end) of Y = A H; `width` is more than 16 (kVectors - 1) and at most 16 kVectors.
template <int kVectors, class Column>
TRADEOFF_AVX512 void expand_rows(const Index *indptr, const Column *indices, const float *weights,
                                 const float *values, const uint16_t *masks, Index k, float *y, Index width, Index nnz,
                                 Index begin, Index end) {
    constexpr Index kFetch = 6;
    const Part last = part(int(width - 16 * (kVectors - 1)));
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
        float *to = y + row * width;
        for (int v = 0; v < kVectors - 1; ++v) store(to + 16 * v, sums[v]);
        store(to + 16 * (kVectors - 1), sums[kVectors - 1], last);
    }
}

template <class Column>
using ExpandRows = void (*)(const Index *, const Column *, const float *, const float *, const uint16_t *, Index,
                            float *, Index, Index, Index, Index);

// expand_rows for so many vectors, or null for more than fit in registers.
template <class Column, int kVectors = 16>
ExpandRows<Column> expand_rows_for(Index vectors) {
    if constexpr (kVectors == 0)
        return nullptr;
    else
        return vectors == kVectors ? expand_rows<kVectors, Column> : expand_rows_for<Column, kVectors - 1>(vectors);
}

}  // namespace tradeoff::avx512

#endif
