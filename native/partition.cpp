// Degree-bucketed blocks of CSR rows: counting sort by degree, then records of equal work.
//
// The layout is that of tradeoff/engines/kernels/partition.py, whose NumPy function is the oracle.
#include <algorithm>
#include <cstdint>
#include <vector>

#include "arrays.h"
#include "module.h"

namespace nb = nanobind;

namespace tradeoff {
namespace {

void sort_by_degree(Array1<int64_t> indptr, Out1<int32_t> order) {
    const Index rows = static_cast<Index>(order.size());
    require(static_cast<Index>(indptr.size()) == rows + 1, "order must have one element a row");
    const int64_t *pointers = indptr.data();
    int32_t *out = order.data();
    nb::gil_scoped_release release;
    int64_t largest = 0;
    for (Index i = 0; i < rows; ++i) {
        const int64_t degree = pointers[i + 1] - pointers[i];
        require(degree >= 0, "indptr must not decrease");
        largest = std::max(largest, degree);
    }
    // A degree beyond the number of rows (many parallel columns) would make the histogram the cost: such rows are few.
    const int64_t cap = std::max<int64_t>(rows, 1);
    std::vector<int64_t> start(static_cast<std::size_t>(std::min(largest, cap)) + 2, 0);
    const auto bucket = [&](Index i) { return std::min(pointers[i + 1] - pointers[i], cap); };
    for (Index i = 0; i < rows; ++i) ++start[static_cast<std::size_t>(bucket(i)) + 1];
    for (std::size_t g = 1; g < start.size(); ++g) start[g] += start[g - 1];
    for (Index i = 0; i < rows; ++i)
        out[start[static_cast<std::size_t>(bucket(i))]++] = static_cast<int32_t>(i);
    if (largest > cap) {
        const auto degree = [&](int32_t i) { return pointers[i + 1] - pointers[i]; };
        int32_t *first = out + rows;
        while (first > out && degree(first[-1]) >= cap) --first;
        std::stable_sort(first, out + rows, [&](int32_t a, int32_t b) { return degree(a) < degree(b); });
    }
}

int64_t count_blocks(Array1<int64_t> indptr, int64_t limit, Array1<int64_t> rows_per_block) {
    require(indptr.size() >= 1, "indptr must have an element");
    require(static_cast<int64_t>(rows_per_block.size()) == limit + 1, "rows_per_block must cover the degrees to limit");
    const Index rows = static_cast<Index>(indptr.size()) - 1;
    const int64_t *pointers = indptr.data(), *together = rows_per_block.data();
    nb::gil_scoped_release release;
    std::vector<int64_t> count(static_cast<std::size_t>(limit) + 1, 0);
    int64_t records = 0;
    for (Index i = 0; i < rows; ++i) {
        const int64_t degree = pointers[i + 1] - pointers[i];
        require(degree >= 0, "indptr must not decrease");
        if (degree <= limit)
            ++count[static_cast<std::size_t>(degree)];
        else
            records += (degree + limit - 1) / limit;
    }
    for (int64_t g = 1; g <= limit; ++g) {
        require(together[g] >= 1, "a block must hold a row");
        records += (count[static_cast<std::size_t>(g)] + together[g] - 1) / together[g];
    }
    return records;
}

template <class T>
void cut_blocks(Array1<int64_t> indptr, Array1<int32_t> order, int64_t limit, Array1<int64_t> rows_per_block,
                Array1<int64_t> width, Out2<T> blocks) {
    const Index rows = static_cast<Index>(order.size());
    require(static_cast<Index>(indptr.size()) == rows + 1, "order must have one element a row");
    require(static_cast<int64_t>(rows_per_block.size()) == limit + 1 && static_cast<int64_t>(width.size()) == limit + 1,
            "rows_per_block and width must cover the degrees to limit");
    require(blocks.shape(1) == 4, "a record has four fields");
    const int64_t *pointers = indptr.data(), *together = rows_per_block.data(), *widths = width.data();
    const int32_t *sorted = order.data();
    T *out = blocks.data(), *const end = out + blocks.size();
    nb::gil_scoped_release release;
    const auto emit = [&](int64_t degree, Index row, int64_t nonzero, int64_t info) {
        require(out < end, "more blocks than counted");
        *out++ = static_cast<T>(degree);
        *out++ = static_cast<T>(row);
        *out++ = static_cast<T>(nonzero);
        *out++ = static_cast<T>(info);
    };
    const auto degree_of = [&](Index row) {
        const int64_t i = sorted[row];
        require(i >= 0 && i < rows, "order must hold rows");
        require(pointers[i + 1] >= pointers[i], "indptr must not decrease");
        return pointers[i + 1] - pointers[i];
    };
    int64_t nonzero = 0;
    for (Index row = 0; row < rows;) {
        const int64_t degree = degree_of(row);
        if (degree == 0) {
            ++row;
        } else if (degree <= limit) {
            Index last = row + 1;
            while (last < rows && last - row < together[degree] && degree_of(last) == degree) ++last;
            emit(degree, row, nonzero, widths[degree] << 16 | (last - row));
            nonzero += (last - row) * degree;
            row = last;
        } else {
            for (int64_t at = 0; at < degree; at += limit)
                emit(degree, row, nonzero + at, std::min(limit, degree - at));
            nonzero += degree;
            ++row;
        }
    }
    require(out == end, "fewer blocks than counted");
}

template <class T>
void register_cut(nb::module_ &m) {
    m.def("cut_blocks", &cut_blocks<T>, operand("indptr"), operand("order"), nb::arg("limit"),
          operand("rows_per_block"), operand("width"), operand("blocks"));
}

}  // namespace
}  // namespace tradeoff

void register_partition(nb::module_ &m) {
    using namespace tradeoff;
    m.def("sort_by_degree", &sort_by_degree, operand("indptr"), operand("order"));
    m.def("count_blocks", &count_blocks, operand("indptr"), nb::arg("limit"), operand("rows_per_block"));
    register_cut<int32_t>(m);
    register_cut<int64_t>(m);
}
