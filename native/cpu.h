// The instruction set that kernels run with, found once at run time; the build itself assumes none.
#pragma once

#include <cstdlib>
#include <cstring>

#if defined(__x86_64__) && defined(__GNUC__)
#define TRADEOFF_X86 1
#define TRADEOFF_AVX2 __attribute__((target("avx2,fma")))
#define TRADEOFF_AVX512 __attribute__((target("avx2,fma,avx512f,avx512dq,avx512bw,avx512vl")))
#else
#define TRADEOFF_X86 0
#define TRADEOFF_AVX2
#define TRADEOFF_AVX512
#endif
#if defined(__GNUC__)
#define TRADEOFF_INLINE inline __attribute__((always_inline))
#define TRADEOFF_LAMBDA_INLINE __attribute__((always_inline))
#else
#define TRADEOFF_INLINE inline
#define TRADEOFF_LAMBDA_INLINE
#endif

namespace tradeoff {

enum class Isa { portable, avx2, avx512 };

inline Isa detect_isa() {
#if TRADEOFF_X86
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
    // TRADEOFF_ISA lowers the choice, so that one machine can test every path.
    const char *limit = std::getenv("TRADEOFF_ISA");
    if (limit && !std::strcmp(limit, "portable")) return Isa::portable;
    if (avx512 && !(limit && !std::strcmp(limit, "avx2"))) return Isa::avx512;
    if (avx2) return Isa::avx2;
#endif
    return Isa::portable;
}

inline Isa isa() {
    static const Isa found = detect_isa();
    return found;
}

inline const char *isa_name() {
    switch (isa()) {
        case Isa::avx512: return "avx512";
        case Isa::avx2: return "avx2";
        default: return "portable";
    }
}

}  // namespace tradeoff
