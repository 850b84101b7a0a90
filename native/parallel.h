// How kernels use threads: a static split, so that what a thread does never depends on timing.
#pragma once

#include <algorithm>
#include <cstddef>

namespace tradeoff {

using Index = std::ptrdiff_t;

struct Range {
    Index begin, end;
};

// The part-th of `parts` nearly equal parts of [0, count), in whole steps of `step`.
inline Range part_of(Index count, Index step, Index part, Index parts) {
    const Index steps = (count + step - 1) / step;
    return {std::min(count, steps * part / parts * step), std::min(count, steps * (part + 1) / parts * step)};
}

// Call run(begin, end) on parts of [0, count), each of at least `grain` and in whole steps of `step`.
template <class Run>
void parallel_ranges(Index count, Index step, Index grain, Index threads, const Run &run) {
    const Index parts = std::max<Index>(1, std::min(threads, count / std::max<Index>(1, grain)));
    if (parts == 1) {
        run(Index(0), count);
        return;
    }
#pragma omp parallel for num_threads(static_cast<int>(parts)) schedule(static, 1)
    for (Index part = 0; part < parts; ++part) {
        const Range range = part_of(count, step, part, parts);
        if (range.begin < range.end) run(range.begin, range.end);
    }
}

}  // namespace tradeoff
