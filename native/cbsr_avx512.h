// The backward product with a compressed matrix for up to 256 columns with AVX-512: a row of G stays in registers, and
// the values at 16 columns are picked from it by permutations, not gathered from memory. Included by cbsr.cpp.
#pragma once

#include <algorithm>
#include <cstdint>

#include "simd.h"

#if TRADEOFF_X86

namespace tradeoff::avx512 {

// 16 of the 16 * kTables floats in `tables`, at the columns `at`.
template <int kTables>
TRADEOFF_AVX512 TRADEOFF_INLINE Vec pick(const Vec *tables, __m512i at) {
    if constexpr (kTables == 1) {
        return _mm512_permutexvar_ps(at, tables[0]);
    } else if constexpr (kTables == 2) {
        return _mm512_permutex2var_ps(tables[0], at, tables[1]);
    } else {
        constexpr int kHalf = kTables / 2;
        const __mmask16 upper = _mm512_test_epi32_mask(at, _mm512_set1_epi32(16 * kHalf));
        return _mm512_mask_blend_ps(upper, pick<kHalf>(tables, at), pick<kHalf>(tables + kHalf, at));
    }
}

// Rows [first, last) of dV, as push_to_columns of cbsr.cpp; `width` is at most 16 * kTables.
template <int kTables, class Column>
TRADEOFF_AVX512 void push_to_columns(const Index *indptr, const Column *indices, const float *weights,
                                     const float *grad, const uint8_t *places, Index k, float *result, Index width,
                                     Index rows, Index first, Index last) {
    constexpr Index kFetch = 6;
    const __mmask16 tail = static_cast<__mmask16>((1u << (k % 16)) - 1);
    std::fill(result + first * k, result + last * k, 0.0f);
    for (Index row = 0; row < rows; ++row) {
        const Column *stop = indices + indptr[row + 1];
        const Column *at = std::lower_bound(indices + indptr[row], stop, Column(first));
        if (at == stop || *at >= last) continue;
        Vec tables[kTables];
        for (int table = 0; table < kTables; ++table) {
            const Index rest = std::clamp<Index>(width - 16 * table, 0, 16);
            tables[table] = load(grad + row * width + 16 * table, part(int(rest)));
        }
        for (; at < stop && *at < last; ++at) {
            const Index ahead = (at + kFetch < stop ? Index(at[kFetch]) : Index(*at)) * k;
            for (Index t = 0; t < k; t += 16) prefetch(result + ahead + t);
            prefetch(places + ahead);
            const uint8_t *place = places + Index(*at) * k;
            float *to = result + Index(*at) * k;
            const Vec weight = spread(weights ? weights[at - indices] : 1.0f);
            Index t = 0;
            for (; t + 16 <= k; t += 16) {
                const __m128i columns = _mm_loadu_si128(reinterpret_cast<const __m128i *>(place + t));
                const Vec values = pick<kTables>(tables, _mm512_cvtepu8_epi32(columns));
                store(to + t, fma(weight, values, load(to + t)));
            }
            if (tail) {
                const __m512i columns = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(tail, place + t));
                const Vec values = pick<kTables>(tables, columns);
                store(to + t, fma(weight, values, load(to + t, Part{tail})), Part{tail});
            }
        }
    }
}

}  // namespace tradeoff::avx512

#endif
