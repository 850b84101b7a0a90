// Sparse times dense, inner products at the entries of a sparse matrix, and its transpose.
//
// The equations stand in tradeoff/engines/kernels/reference.py, whose torch code is the oracle.
#include <algorithm>
#include <mutex>
#include <type_traits>
#include <vector>

#include "arrays.h"
#include "chunks.h"
#include "module.h"
#include "simd.h"

#define TRADEOFF_BODY "spmm_body.h"
#include "for_each_isa.h"

namespace nb = nanobind;

namespace tradeoff {
namespace {

static_assert(sizeof(Index) == sizeof(int64_t), "row pointers are 64-bit");

// Longer rows are cut into segments of so many entries, whose sums are added in order: one row alone then keeps all
// threads busy, and its result does not depend on how many there are.
constexpr Index kSegment = 1 << 16;
constexpr Index kCachedBytes = 32 << 20;  // results above it would only push X out of the caches
// Up to so many entries a row, Y is as much to move as what is read of X, and is best written row by row. With more, a
// tile of columns of all rows comes before the next tile: fewer columns of X are in use at a time, and stay in caches.
constexpr Index kFewEntries = 4;

// float64 is for checking gradients: plain loops.
inline void rows_of_doubles(const Index *indptr, const int32_t *indices, const double *values, const double *x,
                            double *y, const int32_t *order, Index width, Index begin, Index end) {
    for (Index row = begin; row < end; ++row) {
        double *__restrict to = y + (order ? Index(order[row]) : row) * width;
        std::fill(to, to + width, 0.0);
        for (Index e = indptr[row]; e < indptr[row + 1]; ++e) {
            const double *__restrict from = x + Index(indices[e]) * width;
            const double weight = values ? values[e] : 1.0;
            for (Index c = 0; c < width; ++c) to[c] += weight * from[c];
        }
    }
}

// A X of one type: which rows, from which row pointers, to where.
template <class T>
struct Product {
    const int32_t *indices;
    const T *values;
    const T *x;
    Index width, nnz;
    bool row_by_row;

    void rows(const Index *indptr, T *y, const int32_t *order, bool bypass, Index begin, Index end) const {
        if constexpr (std::is_same_v<T, float>) {
            switch (isa()) {
#if TRADEOFF_X86
                case Isa::avx512: return avx512::spmm_rows(of<avx512::RowsOf>(indptr, y, order, bypass), begin, end);
                case Isa::avx2: return avx2::spmm_rows(of<avx2::RowsOf>(indptr, y, order, bypass), begin, end);
#endif
                default: return portable::spmm_rows(of<portable::RowsOf>(indptr, y, order, bypass), begin, end);
            }
        } else {
            rows_of_doubles(indptr, indices, values, x, y, order, width, begin, end);
        }
    }

    template <class Rows>
    Rows of(const Index *indptr, float *y, const int32_t *order, bool bypass) const {
        return {indptr, indices, values, x, y, order, width, nnz, bypass, row_by_row};
    }
};

// A row in segments: partial sums side by side, then added in order.
template <class T>
void long_row(const Product<T> &product, Index first, Index stop, T *y, Index threads) {
    std::vector<Index> bounds;
    for (Index e = first; e < stop; e += kSegment) bounds.push_back(e);
    bounds.push_back(stop);
    const Index segments = Index(bounds.size()) - 1, width = product.width;
    std::vector<T> sums(segments * width);
    parallel_parts(segments, threads,
                   [&](Index part) { product.rows(bounds.data(), sums.data(), nullptr, false, part, part + 1); });
    std::copy(sums.begin(), sums.begin() + width, y);
    for (Index part = 1; part < segments; ++part)
        for (Index c = 0; c < width; ++c) y[c] += sums[part * width + c];
}

// Row i of A X goes to row order[i] of Y, or to row i.
template <class T>
void spmm(Array1<int64_t> indptr, Array1<int32_t> indices, Maybe1<T> values, Array2<T> x, Out2<T> y,
          Maybe1<int32_t> order, Index threads) {
    require_matrix(indptr, indices, values);
    const Index rows = Index(indptr.size()) - 1, width = Index(x.shape(1)), nnz = Index(indices.size());
    require(Index(y.shape(0)) == rows && Index(y.shape(1)) == width, "the result has another shape");
    const int32_t *to = pointer(order);
    require(!to || Index(order->size()) == rows, "order has another size");
    require(!to || std::all_of(to, to + rows, [rows](int32_t row) { return row >= 0 && row < rows; }),
            "order names a row that the result does not have");
    const auto *pointers = reinterpret_cast<const Index *>(indptr.data());
    const Product<T> product{indices.data(), pointer(values), x.data(), width, nnz, nnz <= kFewEntries * rows};
    T *result = y.data();
    // Streaming stores write whole aligned cache lines.
    const bool bypass = rows * width * Index(sizeof(T)) > kCachedBytes && width % 16 == 0 &&
                        reinterpret_cast<uintptr_t>(result) % 64 == 0;
    nb::gil_scoped_release release;
    if (!width || !rows) return;
    std::vector<Index> long_rows;
    std::mutex guard;
    parallel_rows(pointers, rows, (nnz + rows) * width, threads, [&](Index begin, Index end) {
        if (pointers[end] - pointers[begin] <= kSegment) return product.rows(pointers, result, to, bypass, begin, end);
        for (Index row = begin, from = begin; row <= end; ++row) {
            const bool too_long = row < end && pointers[row + 1] - pointers[row] > kSegment;
            if (!too_long && row < end) continue;
            if (from < row) product.rows(pointers, result, to, bypass, from, row);
            from = row + 1;
            if (too_long) {
                const std::lock_guard<std::mutex> lock(guard);
                long_rows.push_back(row);
            }
        }
    });
    for (const Index row : long_rows)
        long_row(product, pointers[row], pointers[row + 1], result + (to ? Index(to[row]) : row) * width, threads);
}

template <class T>
T plain_dot(const T *a, const T *b, Index width) {
    T sum = 0;
    for (Index c = 0; c < width; ++c) sum += a[c] * b[c];
    return sum;
}

template <class T>
using Dot = T (*)(const T *, const T *, Index);

template <class T>
Dot<T> dot_of() {
#if TRADEOFF_X86
    if constexpr (std::is_same_v<T, float>) {
        if (isa() == Isa::avx512) return avx512::dot;
        if (isa() == Isa::avx2) return avx2::dot;
    }
#endif
    return plain_dot<T>;
}

template <class T>
void sddmm(Array1<int64_t> indptr, Array1<int32_t> indices, Array2<T> y, Array2<T> x, Out1<T> dots, Index threads) {
    require_matrix(indptr, indices, Maybe1<T>());
    const Index rows = Index(indptr.size()) - 1, width = Index(x.shape(1)), nnz = Index(indices.size());
    require(Index(y.shape(0)) == rows && Index(y.shape(1)) == width, "y has another shape");
    require(Index(dots.size()) == nnz, "the result has another size");
    const auto *pointers = reinterpret_cast<const Index *>(indptr.data());
    const int32_t *columns = indices.data();
    const T *left = y.data(), *right = x.data();
    T *to = dots.data();
    const Dot<T> dot = dot_of<T>();
    nb::gil_scoped_release release;
    constexpr Index kAhead = 8;
    // Entries, not rows, are shared out: each result stands alone.
    parallel_ranges(nnz, 64, std::max<Index>(64, kSerialWork / std::max<Index>(1, width)), threads,
                    [&](Index begin, Index end) {
                        Index row = std::upper_bound(pointers, pointers + rows + 1, begin) - pointers - 1;
                        for (Index e = begin; e < end; ++e) {
                            while (pointers[row + 1] <= e) ++row;
                            const T *ahead = right + Index(columns[std::min(e + kAhead, nnz - 1)]) * width;
                            for (Index c = 0; c < width; c += Index(64 / sizeof(T))) prefetch(ahead + c);
                            to[e] = dot(left + row * width, right + Index(columns[e]) * width, width);
                        }
                    });
}

// Where the entries of each value of `keys` begin, in `offsets` [count + 1].
template <class Key>
void count_keys(const Key *keys, Index size, Index count, int64_t *offsets) {
    std::fill(offsets, offsets + count + 1, 0);
    for (Index e = 0; e < size; ++e) ++offsets[Index(keys[e]) + 1];
    for (Index key = 0; key < count; ++key) offsets[key + 1] += offsets[key];
}

// The transpose by a counting sort, which keeps rows ascending within a column.
template <class Column, class Row>
void transpose(Array1<int64_t> indptr, Array1<Column> indices, Out1<int64_t> indptr_t, Out1<Row> indices_t,
               Out1<int64_t> perm) {
    require_matrix(indptr, indices, Maybe1<float>());
    const Index rows = Index(indptr.size()) - 1, columns = Index(indptr_t.size()) - 1, nnz = Index(indices.size());
    require(columns >= 0 && Index(indices_t.size()) == nnz && Index(perm.size()) == nnz, "results have other sizes");
    nb::gil_scoped_release release;
    count_keys(indices.data(), nnz, columns, indptr_t.data());
    std::vector<int64_t> next(indptr_t.data(), indptr_t.data() + columns);
    for (Index row = 0; row < rows; ++row)
        for (Index e = indptr.data()[row]; e < indptr.data()[row + 1]; ++e) {
            const Index to = next[indices.data()[e]]++;
            indices_t.data()[to] = Row(row);
            perm.data()[to] = e;
        }
}

// The stable order by row, then column: a counting sort by column, then one by row.
void order_entries(Array1<int64_t> row, Array1<int64_t> column, Index rows, Index columns, Out1<int64_t> order) {
    const Index nnz = Index(row.size());
    require(Index(column.size()) == nnz && Index(order.size()) == nnz, "arrays have different sizes");
    nb::gil_scoped_release release;
    std::vector<int64_t> offsets(std::max(rows, columns) + 1), by_column(nnz);
    count_keys(column.data(), nnz, columns, offsets.data());
    for (Index e = 0; e < nnz; ++e) by_column[offsets[column.data()[e]]++] = e;
    count_keys(row.data(), nnz, rows, offsets.data());
    for (const int64_t e : by_column) order.data()[offsets[row.data()[e]]++] = e;
}

template <class T>
void register_products(nb::module_ &m) {
    m.def("sparse_spmm", &spmm<T>, operand("indptr"), operand("indices"), operand("values").none(), operand("x"),
          operand("y"), operand("order").none(), nb::arg("threads"));
    m.def("sparse_sddmm", &sddmm<T>, operand("indptr"), operand("indices"), operand("y"), operand("x"),
          operand("dots"), nb::arg("threads"));
}

template <class Column, class Row>
void register_transpose(nb::module_ &m) {
    m.def("sparse_transpose", &transpose<Column, Row>, operand("indptr"), operand("indices"), operand("indptr_t"),
          operand("indices_t"), operand("perm"));
}

}  // namespace
}  // namespace tradeoff

void register_sparse(nb::module_ &m) {
    using namespace tradeoff;
    register_products<float>(m);
    register_products<double>(m);
    register_transpose<int32_t, int32_t>(m);
    register_transpose<int32_t, int64_t>(m);
    register_transpose<int64_t, int32_t>(m);
    register_transpose<int64_t, int64_t>(m);
    m.def("sparse_order", &order_entries, operand("row"), operand("column"), nb::arg("rows"), nb::arg("columns"),
          operand("order"));
}
