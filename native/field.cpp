// Products in the field of integers modulo the Mersenne prime 2^61 - 1: elementwise, matrices, convolutions.
//
// An element is a word below the prime. A product of two has 122 bits; 2^61 = 1 in the field, so its high and low 61
// bits are added. Sums of up to 32 products fit 127 bits and are reduced once.
#include <cstdint>

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include "module.h"
#include "product.h"

namespace tradeoff {
namespace {

using Wide = unsigned __int128;

constexpr int kBits = 61;
constexpr uint64_t kPrime = (uint64_t(1) << kBits) - 1;
constexpr Index kTerms = 32;      // products that are summed before a reduction
constexpr Index kGrain = 1 << 14;  // elements a thread must get to be worth starting

// Any value below 2^127 as an element.
inline uint64_t reduced(Wide x) {
    const uint64_t low = static_cast<uint64_t>(x) & kPrime;
    const Wide high = x >> kBits;
    const uint64_t sum = low + (static_cast<uint64_t>(high) & kPrime) + static_cast<uint64_t>(high >> kBits);
    const uint64_t once = (sum & kPrime) + (sum >> kBits);
    return once >= kPrime ? once - kPrime : once;
}

struct Element {
    uint64_t word;

    Element() = default;
    constexpr Element(uint64_t value) : word(value) {}

    Element &operator+=(Element other) {
        const uint64_t sum = word + other.word;
        word = std::min(sum, sum - kPrime);
        return *this;
    }
    friend Element operator*(Element a, Element b) { return reduced(Wide(a.word) * b.word); }
};

template <Index mr, Index nr>
void micro_field(Index depth, const Element *a, const Element *b, Element *tile) {
    for (Index i = 0; i < mr; ++i, tile += nr) {
        Wide sum[nr] = {};
        for (Index first = 0; first < depth; first += kTerms) {
            const Index last = std::min(depth, first + kTerms);
            for (Index k = first; k < last; ++k) {
                const uint64_t factor = a[k * mr + i].word;
#pragma GCC unroll 4
                for (Index j = 0; j < nr; ++j) sum[j] += Wide(factor) * b[k * nr + j].word;
            }
            for (Index j = 0; j < nr; ++j) sum[j] = reduced(sum[j]);
        }
        for (Index j = 0; j < nr; ++j) tile[j] = static_cast<uint64_t>(sum[j]);
    }
}

using Flat = nanobind::ndarray<const uint64_t, nanobind::ndim<1>, nanobind::c_contig, nanobind::device::cpu>;
using FlatOut = nanobind::ndarray<uint64_t, nanobind::ndim<1>, nanobind::c_contig, nanobind::device::cpu>;

void field_multiply(Flat a, Flat b, FlatOut out, Index threads) {
    const Index count = Index(out.size());
    require(Index(a.size()) == count && Index(b.size()) == count, "operands and out have different sizes");
    const Element *left = elements<Element>(a.data()), *right = elements<Element>(b.data());
    Element *to = elements<Element>(out.data());
    nanobind::gil_scoped_release release;
    parallel_ranges(count, 8, kGrain, threads, [&](Index begin, Index end) {
        for (Index i = begin; i < end; ++i) to[i] = left[i] * right[i];
    });
}

}  // namespace

template <>
MicroKernel<Element> micro_kernel() {
    return {4, 4, false, pack_rows<Element, 4>, micro_field<4, 4>};
}

}  // namespace tradeoff

void register_field(nanobind::module_ &m) {
    using namespace tradeoff;
    using nanobind::arg;
    register_products<Element, uint64_t>(m, "field_matmul", "field_conv2d");
    m.def("field_multiply", &field_multiply, arg("a").noconvert(), arg("b").noconvert(), arg("out").noconvert(),
          arg("threads"));
}
