// Kernels that loop over a range: compiled once for any processor and once for AVX2, chosen at run time.
#pragma once

#include "cpu.h"
#include "parallel.h"

namespace tradeoff {

template <class Kernel>
void run_portable(const Kernel &kernel, Index begin, Index end) {
    kernel.run(begin, end);
}

template <class Kernel>
TRADEOFF_AVX2 void run_avx2(const Kernel &kernel, Index begin, Index end) {
    kernel.run(begin, end);
}

// Run a kernel (a struct with an always inlined `void run(Index begin, Index end) const`) over [0, count) in parts of
// at least `grain`, each a multiple of `step`.
template <class Kernel>
void launch(const Kernel &kernel, Index count, Index step, Index grain, Index threads) {
    const auto run = isa() == Isa::portable ? run_portable<Kernel> : run_avx2<Kernel>;
    parallel_ranges(count, step, grain, threads, [&](Index begin, Index end) { run(kernel, begin, end); });
}

}  // namespace tradeoff
