// Vectors of floats for kernels that are compiled once an instruction set: a file with such kernels defines
// them in a header, and includes that header through for_each_isa.h.
//
// Each namespace has the same names: Vec, kWidth, kRegisters (how many Vec a tile of sums may take) and the
// functions below. A Part is how many of a vector's floats are there.
#pragma once

#include "cpu.h"
#include "parallel.h"

#if TRADEOFF_X86
#include <immintrin.h>
#endif

namespace tradeoff {

// Inlined at once: compilers take a function that only prefetches for one without effect, and leave its calls out.
TRADEOFF_INLINE void prefetch(const void *address) {
#if defined(__GNUC__)
    __builtin_prefetch(address, 0, 3);
#endif
}

namespace portable {

constexpr int kWidth = 8, kRegisters = 8;

struct Vec {
    float lane[kWidth];
};
struct Part {
    int count;
};

TRADEOFF_INLINE Part part(int count) { return {count}; }
TRADEOFF_INLINE Vec zero() { return Vec{}; }
TRADEOFF_INLINE Vec spread(float value) {
    Vec v;
    for (int i = 0; i < kWidth; ++i) v.lane[i] = value;
    return v;
}
TRADEOFF_INLINE Vec load(const float *from) {
    Vec v;
    for (int i = 0; i < kWidth; ++i) v.lane[i] = from[i];
    return v;
}
TRADEOFF_INLINE Vec load(const float *from, Part part) {
    Vec v{};
    for (int i = 0; i < part.count; ++i) v.lane[i] = from[i];
    return v;
}
TRADEOFF_INLINE void store(float *to, Vec v) {
    for (int i = 0; i < kWidth; ++i) to[i] = v.lane[i];
}
TRADEOFF_INLINE void store(float *to, Vec v, Part part) {
    for (int i = 0; i < part.count; ++i) to[i] = v.lane[i];
}
TRADEOFF_INLINE void stream(float *to, Vec v) { store(to, v); }
TRADEOFF_INLINE void fence() {}
TRADEOFF_INLINE Vec add(Vec a, Vec b) {
    for (int i = 0; i < kWidth; ++i) a.lane[i] += b.lane[i];
    return a;
}
TRADEOFF_INLINE Vec fma(Vec a, Vec b, Vec c) {  // a b + c
    for (int i = 0; i < kWidth; ++i) c.lane[i] += a.lane[i] * b.lane[i];
    return c;
}
TRADEOFF_INLINE float sum(Vec v) {
    float total = 0;
    for (int i = 0; i < kWidth; ++i) total += v.lane[i];
    return total;
}

}  // namespace portable

#if TRADEOFF_X86

namespace avx2 {

constexpr int kWidth = 8, kRegisters = 8;

using Vec = __m256;
struct Part {
    __m256i mask;
};

TRADEOFF_AVX2 TRADEOFF_INLINE Part part(int count) {
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return {_mm256_cmpgt_epi32(_mm256_set1_epi32(count), lane)};
}
TRADEOFF_AVX2 TRADEOFF_INLINE Vec zero() { return _mm256_setzero_ps(); }
TRADEOFF_AVX2 TRADEOFF_INLINE Vec spread(float value) { return _mm256_set1_ps(value); }
TRADEOFF_AVX2 TRADEOFF_INLINE Vec load(const float *from) { return _mm256_loadu_ps(from); }
TRADEOFF_AVX2 TRADEOFF_INLINE Vec load(const float *from, Part part) { return _mm256_maskload_ps(from, part.mask); }
TRADEOFF_AVX2 TRADEOFF_INLINE void store(float *to, Vec v) { _mm256_storeu_ps(to, v); }
TRADEOFF_AVX2 TRADEOFF_INLINE void store(float *to, Vec v, Part part) { _mm256_maskstore_ps(to, part.mask, v); }
TRADEOFF_AVX2 TRADEOFF_INLINE void stream(float *to, Vec v) { _mm256_stream_ps(to, v); }
TRADEOFF_AVX2 TRADEOFF_INLINE void fence() { _mm_sfence(); }
TRADEOFF_AVX2 TRADEOFF_INLINE Vec add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
TRADEOFF_AVX2 TRADEOFF_INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
TRADEOFF_AVX2 TRADEOFF_INLINE float sum(Vec v) {
    const __m128 half = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    const __m128 quarter = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(quarter, _mm_movehdup_ps(quarter)));
}

}  // namespace avx2

namespace avx512 {

constexpr int kWidth = 16, kRegisters = 16;

using Vec = __m512;
struct Part {
    __mmask16 mask;
};

TRADEOFF_AVX512 TRADEOFF_INLINE Part part(int count) { return {static_cast<__mmask16>((1u << count) - 1)}; }
TRADEOFF_AVX512 TRADEOFF_INLINE Vec zero() { return _mm512_setzero_ps(); }
TRADEOFF_AVX512 TRADEOFF_INLINE Vec spread(float value) { return _mm512_set1_ps(value); }
TRADEOFF_AVX512 TRADEOFF_INLINE Vec load(const float *from) { return _mm512_loadu_ps(from); }
TRADEOFF_AVX512 TRADEOFF_INLINE Vec load(const float *from, Part part) {
    return _mm512_maskz_loadu_ps(part.mask, from);
}
TRADEOFF_AVX512 TRADEOFF_INLINE void store(float *to, Vec v) { _mm512_storeu_ps(to, v); }
TRADEOFF_AVX512 TRADEOFF_INLINE void store(float *to, Vec v, Part part) {
    _mm512_mask_storeu_ps(to, part.mask, v);
}
TRADEOFF_AVX512 TRADEOFF_INLINE void stream(float *to, Vec v) { _mm512_stream_ps(to, v); }
TRADEOFF_AVX512 TRADEOFF_INLINE void fence() { _mm_sfence(); }
TRADEOFF_AVX512 TRADEOFF_INLINE Vec add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
TRADEOFF_AVX512 TRADEOFF_INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
TRADEOFF_AVX512 TRADEOFF_INLINE float sum(Vec v) { return _mm512_reduce_add_ps(v); }

}  // namespace avx512

#endif

}  // namespace tradeoff
