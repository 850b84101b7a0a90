// Rows in chunks of about equal work that threads take by turns. Which thread computes a row never changes its result.
#pragma once

#include <vector>

#include "parallel.h"

namespace tradeoff {

constexpr Index kRowWork = 8;             // what a row costs besides its entries, in entries
constexpr Index kSerialWork = 1 << 15;    // multiplications below which threads cost more than they give
constexpr Index kChunkEntries = 20000;

// Call run(part) for parts [0, count), by up to `threads` threads that take the next part when they are free.
template <class Run>
void parallel_parts(Index count, Index threads, const Run &run) {
    if (threads <= 1 || count <= 1) {
        for (Index part = 0; part < count; ++part) run(part);
        return;
    }
#pragma omp parallel for num_threads(static_cast<int>(std::min(threads, count))) schedule(dynamic, 1)
    for (Index part = 0; part < count; ++part) run(part);
}

// Bounds of chunks of rows with about equal entries + kRowWork rows.
inline std::vector<Index> chunk_bounds(const Index *indptr, Index rows, Index threads) {
    const Index nnz = indptr[rows];
    const Index parts = std::min(rows, std::max({Index(64), 16 * threads, nnz / kChunkEntries}));
    std::vector<Index> bounds(parts + 1, rows);
    bounds[0] = 0;
    const double total = double(nnz) + double(kRowWork) * double(rows);
    for (Index part = 1; part < parts; ++part) {
        const Index target = Index(total * double(part) / double(parts));
        Index low = bounds[part - 1], high = rows;
        while (low < high) {
            const Index middle = low + (high - low) / 2;
            if (indptr[middle] + kRowWork * middle < target)
                low = middle + 1;
            else
                high = middle;
        }
        bounds[part] = low;
    }
    return bounds;
}

// Call run(begin, end) on chunks of rows; `work` is the number of multiplications of all of them.
template <class Run>
void parallel_rows(const Index *indptr, Index rows, Index work, Index threads, const Run &run) {
    if (work < kSerialWork) threads = 1;
    if (threads <= 1) {
        run(Index(0), rows);
        return;
    }
    const std::vector<Index> bounds = chunk_bounds(indptr, rows, threads);
    parallel_parts(Index(bounds.size()) - 1, threads, [&](Index part) {
        if (bounds[part] < bounds[part + 1]) run(bounds[part], bounds[part + 1]);
    });
}

}  // namespace tradeoff
