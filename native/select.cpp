// MaxK selection: the k largest signed values of each row, ties to the lowest column, columns ascending.
//
// Equal to the stable sort in tradeoff/engines/kernels/reference.py.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

#include "arrays.h"
#include "chunks.h"
#include "module.h"
#include "simd.h"

namespace tradeoff {

// Keys are integers in the order of the floats: -0 equals 0, NaN is above all.
constexpr int32_t kNanKey = INT32_MAX, kNoKey = INT32_MIN, kInfinity = 0x7f800000;

TRADEOFF_INLINE int32_t ordered(int32_t bits) { return bits ^ ((bits >> 31) & INT32_MAX); }

TRADEOFF_INLINE int32_t key_of(float value) {
    int32_t bits;
    __builtin_memcpy(&bits, &value, sizeof bits);
    return ordered(bits);
}

// Keys above `key`, of which there are `above`, are kept, and of those equal to it the first ones, up to k in all.
struct Threshold {
    int32_t key;
    Index above;
};

// Of the standard normal distribution: the value above which the fraction k / d lies, and the density there.
struct Normal {
    float quantile, density;
};

// Values and columns of the keys that a threshold keeps, without a branch a column.
template <class Place>
TRADEOFF_INLINE void keep_by_column(const float *x, const int32_t *keys, Index width, Index k, Threshold threshold,
                                    float *values, Place *index) {
    Index kept = 0, ties = k - threshold.above;
    for (Index c = 0; c < width && kept < k; ++c) {
        const bool tie = keys[c] == threshold.key && ties > 0;
        ties -= tie;
        values[kept] = x[c];
        index[kept] = Place(c);
        kept += tie || keys[c] > threshold.key;
    }
}

namespace portable {
template <class Place>
TRADEOFF_INLINE void keep(const float *x, const int32_t *keys, Index width, Index k, Threshold threshold,
                          float *values, Place *index) {
    keep_by_column(x, keys, width, k, threshold, values, index);
}
}  // namespace portable

#if TRADEOFF_X86

namespace avx2 {
using portable::keep;
}  // namespace avx2

namespace avx512 {

TRADEOFF_AVX512 TRADEOFF_INLINE void store_columns(uint8_t *to, __m512i columns, __mmask16 which) {
    _mm_mask_storeu_epi8(to, which, _mm512_cvtepi32_epi8(columns));
}
TRADEOFF_AVX512 TRADEOFF_INLINE void store_columns(int16_t *to, __m512i columns, __mmask16 which) {
    _mm256_mask_storeu_epi16(to, which, _mm512_cvtepi32_epi16(columns));
}

// Sixteen columns at once: those to keep are moved together. (Compressing straight to memory is slow on some.)
template <class Place>
TRADEOFF_AVX512 TRADEOFF_INLINE void keep(const float *x, const int32_t *keys, Index width, Index k,
                                          Threshold threshold, float *values, Place *index) {
    const __m512i limit = _mm512_set1_epi32(threshold.key);
    __m512i columns = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    Index kept = 0, ties = k - threshold.above;
    for (Index c = 0; c < width; c += 16, columns = _mm512_add_epi32(columns, _mm512_set1_epi32(16))) {
        const __m512i key = _mm512_loadu_si512(keys + c);
        unsigned wanted = _mm512_cmpgt_epi32_mask(key, limit);
        if (ties > 0) {
            for (unsigned equal = _mm512_cmpeq_epi32_mask(key, limit); equal && ties > 0; --ties) {
                wanted |= equal & -equal;
                equal &= equal - 1;
            }
        }
        if (!wanted) continue;
        const int count = __builtin_popcount(wanted);
        const auto which = static_cast<__mmask16>((1u << count) - 1);
        const __mmask16 there = static_cast<__mmask16>(width - c >= 16 ? 0xffff : (1u << (width - c)) - 1);
        const __m512 row = _mm512_maskz_loadu_ps(there, x + c);
        _mm512_mask_storeu_ps(values + kept, which, _mm512_maskz_compress_ps(static_cast<__mmask16>(wanted), row));
        store_columns(index + kept, _mm512_maskz_compress_epi32(static_cast<__mmask16>(wanted), columns), which);
        kept += count;
    }
}

}  // namespace avx512

#endif

}  // namespace tradeoff

#define TRADEOFF_BODY "select_body.h"
#include "for_each_isa.h"

namespace nb = nanobind;

namespace tradeoff {
namespace {

constexpr Index kRowGrain = 64;  // rows worth a thread

Normal normal_above(double fraction) {
    double low = -8, high = 8;
    for (int step = 0; step < 60; ++step) {
        const double middle = (low + high) / 2;
        (0.5 * std::erfc(middle * M_SQRT1_2) > fraction ? low : high) = middle;
    }
    const double density = std::exp(-low * low / 2) / std::sqrt(2 * M_PI);
    return {float(low), float(std::max(density, 1e-4))};
}

template <class Place>
Index select_floats(const float *x, Index width, Index k, Normal normal, float *values, Place *index, Index begin,
                    Index end) {
    switch (isa()) {
#if TRADEOFF_X86
        case Isa::avx512: return avx512::select_rows(x, width, k, normal, values, index, begin, end);
        case Isa::avx2: return avx2::select_rows(x, width, k, normal, values, index, begin, end);
#endif
        default: return portable::select_rows(x, width, k, normal, values, index, begin, end);
    }
}

// float64 is for checking gradients: a partial sort.
template <class Place>
Index select_doubles(const double *x, Index width, Index k, double *values, Place *index, Index begin, Index end) {
    Index first_nan = -1;
    std::vector<Index> order(width);
    for (Index row = begin; row < end; ++row) {
        const double *from = x + row * width;
        if (first_nan < 0 && std::any_of(from, from + width, [](double v) { return std::isnan(v); })) first_nan = row;
        std::iota(order.begin(), order.end(), Index(0));
        const auto before = [from](Index a, Index b) {
            const bool nan_a = std::isnan(from[a]), nan_b = std::isnan(from[b]);
            if (nan_a != nan_b) return nan_a;
            return !nan_a && from[a] != from[b] ? from[a] > from[b] : a < b;
        };
        std::nth_element(order.begin(), order.begin() + (k - 1), order.end(), before);
        std::sort(order.begin(), order.begin() + k);
        for (Index t = 0; t < k; ++t) {
            values[row * k + t] = from[order[t]];
            index[row * k + t] = Place(order[t]);
        }
    }
    return first_nan;
}

// Positive (or NaN) entries to the front of a row, then padding; returns their number.
template <class T, class Place>
int32_t clip_row(T *values, Place *index, Index k) {
    Index kept = 0;
    for (Index t = 0; t < k; ++t)
        if (!(values[t] <= 0)) {
            values[kept] = values[t];
            index[kept++] = index[t];
        }
    std::fill(values + kept, values + k, T(0));
    std::fill(index + kept, index + k, kept ? index[kept - 1] : Place(0));
    return int32_t(kept);
}

// Returns the first row with NaN, or -1.
template <class T, class Place>
Index maxk_select(Array2<T> x, Index k, std::optional<Out1<int32_t>> count, Out2<T> values, Out2<Place> index,
                  Index threads) {
    const Index rows = Index(x.shape(0)), width = Index(x.shape(1));
    require(k >= 1 && k <= width, "k is out of range");
    for (const auto *shape : {values.shape_ptr(), index.shape_ptr()})
        require(Index(shape[0]) == rows && Index(shape[1]) == k, "results have another shape");
    require(!count || Index(count->size()) == rows, "count has another size");
    const Normal normal = normal_above(double(k) / double(width));
    const T *from = x.data();
    T *kept = values.data();
    Place *places = index.data();
    int32_t *counts = count ? count->data() : nullptr;
    std::atomic<Index> first_nan(rows);
    {
        nb::gil_scoped_release release;
        parallel_ranges(rows, 1, kRowGrain, threads, [&](Index begin, Index end) {
            Index found;
            if constexpr (std::is_same_v<T, double>)
                found = select_doubles(from, width, k, kept, places, begin, end);
            else
                found = select_floats(from, width, k, normal, kept, places, begin, end);
            if (counts)
                for (Index row = begin; row < end; ++row) counts[row] = clip_row(kept + row * k, places + row * k, k);
            Index known = first_nan;
            while (found >= 0 && found < known && !first_nan.compare_exchange_weak(known, found)) {
            }
        });
    }
    return first_nan == rows ? -1 : Index(first_nan);
}

template <class T, class Place>
void register_maxk(nb::module_ &m) {
    m.def("maxk_select", &maxk_select<T, Place>, operand("x"), nb::arg("k"), operand("count").none(),
          operand("values"), operand("index"), nb::arg("threads"));
}

}  // namespace
}  // namespace tradeoff

void register_select(nb::module_ &m) {
    using namespace tradeoff;
    register_maxk<float, uint8_t>(m);
    register_maxk<float, int16_t>(m);
    register_maxk<double, uint8_t>(m);
    register_maxk<double, int16_t>(m);
}
