// Memory for large results, from which huge pages are asked: a new result of small pages costs more than many products.
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <new>

#include "arrays.h"
#include "module.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace nb = nanobind;

namespace tradeoff {
namespace {

constexpr size_t kHugePage = 2 << 20;

// `bytes` of new memory, aligned to huge pages; it is freed with the array.
nb::ndarray<nb::numpy, uint8_t, nb::ndim<1>> huge_empty(size_t bytes) {
    const size_t rounded = std::max<size_t>(1, (bytes + kHugePage - 1) / kHugePage) * kHugePage;
    void *memory = std::aligned_alloc(kHugePage, rounded);
    if (!memory) throw std::bad_alloc();
#if defined(__linux__)
    madvise(memory, rounded, MADV_HUGEPAGE);  // a wish: memory of small pages is as good, only slower to get
#endif
    const nb::capsule owner(memory, [](void *of) noexcept { std::free(of); });
    return nb::ndarray<nb::numpy, uint8_t, nb::ndim<1>>(memory, {bytes}, owner);
}

// Where the elements of an array are, as kernels see it.
uintptr_t address(nb::ndarray<nb::ro, nb::c_contig, nb::device::cpu> array) {
    return reinterpret_cast<uintptr_t>(array.data());
}

}  // namespace
}  // namespace tradeoff

void register_pages(nb::module_ &m) {
    m.def("huge_empty", &tradeoff::huge_empty, nb::arg("bytes"));
    m.def("address", &tradeoff::address, tradeoff::operand("array"));
}
