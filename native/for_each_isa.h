// Include the header TRADEOFF_BODY once an instruction set, within its namespace of simd.h. Functions of the header
// carry TRADEOFF_TARGET, helpers also TRADEOFF_INLINE; what is included must not include anything itself.
//
// No include guard: a file may do this with several headers.

namespace tradeoff {

#define TRADEOFF_TARGET
namespace portable {
#include TRADEOFF_BODY
}
#undef TRADEOFF_TARGET

#if TRADEOFF_X86

#define TRADEOFF_TARGET TRADEOFF_AVX2
namespace avx2 {
#include TRADEOFF_BODY
}
#undef TRADEOFF_TARGET

#define TRADEOFF_TARGET TRADEOFF_AVX512
namespace avx512 {
#include TRADEOFF_BODY
}
#undef TRADEOFF_TARGET

#endif

}  // namespace tradeoff

#undef TRADEOFF_BODY
