// Products with a compressed matrix (CBSR: k entries in each row) and their backward passes.
//
// The equations stand in tradeoff/engines/kernels/reference.py, whose torch code is the oracle.
#include <algorithm>
#include <type_traits>
#include <vector>

#include "arrays.h"
#include "cbsr_avx512.h"
#include "cbsr_expand.h"
#include "chunks.h"
#include "module.h"
#include "simd.h"

namespace nb = nanobind;

namespace tradeoff {
namespace {

constexpr Index kAhead = 6;        // entries of A to fetch compressed rows before they are needed
constexpr Index kExpansion = 5;    // the cost of expanding a vector, in halves of the addition of one value
constexpr Index kRowGrain = 1024;  // rows of a compressed matrix worth a thread

// The m x d matrix with k entries in each row.
template <class T, class Place>
struct Compressed {
    const T *values;
    const Place *index;
    const int32_t *count;  // null: all k entries of each row count
    Index k;

    Index counted(Index row) const { return count ? count[row] : k; }
};

template <class T, class Place>
void fetch_values(const T *values, const Place *index, Index k) {
    for (Index byte = 0; byte < k * Index(sizeof(T)); byte += 64)
        prefetch(reinterpret_cast<const char *>(values) + byte);
    for (Index byte = 0; byte < k * Index(sizeof(Place)); byte += 64)
        prefetch(reinterpret_cast<const char *>(index) + byte);
}

// Rows [begin, end) of Y = A H. Even and odd entries add to buffers of their own, so that an addition need not wait
// for the one before it where both hit one column.
template <class T, class Place>
void rows_times_compressed(const Index *indptr, const int32_t *indices, const T *weights, Compressed<T, Place> h,
                           T *y, Index width, Index nnz, Index begin, Index end) {
    std::vector<T> buffer(2 * width);
    const Index k = h.k;
    for (Index row = begin; row < end; ++row) {
        std::fill(buffer.begin(), buffer.end(), T(0));
        T *even = buffer.data(), *odd = even + width;
        for (Index e = indptr[row]; e < indptr[row + 1]; ++e) {
            const Index ahead = Index(indices[std::min(e + kAhead, nnz - 1)]) * k;
            fetch_values(h.values + ahead, h.index + ahead, k);
            const Index from = Index(indices[e]) * k;
            const T *values = h.values + from;
            const Place *index = h.index + from;
            const T weight = weights ? weights[e] : T(1);
            T *to = (e - indptr[row]) % 2 ? odd : even;
            // Entries beyond the count are 0, but 0 times an infinite weight is not.
            const Index stop = h.counted(indices[e]);
            for (Index t = 0; t < stop; ++t) to[index[t]] += weight * values[t];
        }
        T *__restrict out = y + row * width;
        for (Index c = 0; c < width; ++c) out[c] = even[c] + odd[c];
    }
}

// Rows [first, last) of dV = A^T G at the columns of H, walking all rows of A: the d floats of a row of G stay in the
// nearest cache while its entries in the range are served, and each sum is taken in the order of rows.
template <class T, class Place>
void push_to_columns(const Index *indptr, const int32_t *indices, const T *weights, const T *grad,
                     Compressed<T, Place> h, T *result, Index width, Index rows, Index first, Index last) {
    const Index k = h.k;
    std::fill(result + first * k, result + last * k, T(0));
    for (Index row = 0; row < rows; ++row) {
        const T *from = grad + row * width;
        const int32_t *stop = indices + indptr[row + 1];
        const int32_t *at = std::lower_bound(indices + indptr[row], stop, int32_t(first));
        for (; at < stop && *at < last; ++at) {
            const Index ahead = at + kAhead < stop ? Index(at[kAhead]) * k : Index(*at) * k;
            fetch_values(result + ahead, h.index + ahead, k);
            const Index column = *at;
            const Place *index = h.index + column * k;
            T *__restrict to = result + column * k;
            const T weight = weights ? weights[at - indices] : T(1);
            const Index counted = h.counted(column);
            for (Index t = 0; t < counted; ++t) to[t] += weight * from[index[t]];
        }
    }
}

// The same with AVX-512 where a row of G fits in registers; returns whether it does.
template <class T, class Column, class Place>
bool push_by_permutation(const Index *indptr, const Column *indices, const T *weights, const T *grad,
                         Compressed<T, Place> h, T *result, Index width, Index rows, Index first, Index last) {
#if TRADEOFF_X86
    if constexpr (std::is_same_v<T, float> && std::is_same_v<Place, uint8_t>) {
        if (isa() != Isa::avx512 || h.count || width > 256) return false;
        const auto push = width <= 16    ? avx512::push_to_columns<1, Column>
                          : width <= 32  ? avx512::push_to_columns<2, Column>
                          : width <= 64  ? avx512::push_to_columns<4, Column>
                          : width <= 128 ? avx512::push_to_columns<8, Column>
                                         : avx512::push_to_columns<16, Column>;
        push(indptr, indices, weights, grad, h.index, h.k, result, width, rows, first, last);
        return true;
    }
#endif
    return false;
}

template <class T, class Place>
void require_compressed(const Array2<T> &values, const Array2<Place> &index, const Maybe1<int32_t> &count) {
    require(values.shape(0) == index.shape(0) && values.shape(1) == index.shape(1),
            "values and index of the compressed matrix have different shapes");
    require(!count || count->size() == index.shape(0), "count has another size");
}

template <class T, class Place>
void cbsr_spmm(Array1<int64_t> indptr, Array1<int32_t> indices, Maybe1<T> weights, Array2<T> values,
               Array2<Place> index, Maybe1<int32_t> count, Out2<T> y, Index threads) {
    require_matrix(indptr, indices, weights);
    require_compressed(values, index, count);
    const Index rows = Index(indptr.size()) - 1, width = Index(y.shape(1)), nnz = Index(indices.size());
    require(Index(y.shape(0)) == rows, "the result has another shape");
    const auto *pointers = reinterpret_cast<const Index *>(indptr.data());
    const Compressed<T, Place> h{values.data(), index.data(), pointer(count), Index(values.shape(1))};
    nb::gil_scoped_release release;
    const Index work = nnz * h.k + rows * width;
#if TRADEOFF_X86
    if constexpr (std::is_same_v<T, float>) {
        const Index vectors = avx512::expanded_vectors(width);
        if (isa() == Isa::avx512 && vectors && 2 * h.k >= kExpansion * vectors) {
            const avx512::ExpandRows expand = avx512::expand_rows_of(vectors);
            const std::vector<uint16_t> masks =
                avx512::column_masks(h.index, h.count, Index(values.shape(0)), h.k, vectors, threads);
            return parallel_rows(pointers, rows, work, threads, [&](Index begin, Index end) {
                expand(pointers, indices.data(), pointer(weights), h.values, masks.data(), h.k, y.data(), width, nnz,
                       begin, end);
            });
        }
    }
#endif
    parallel_rows(pointers, rows, work, threads, [&](Index begin, Index end) {
        rows_times_compressed(pointers, indices.data(), pointer(weights), h, y.data(), width, nnz, begin, end);
    });
}

// Bounds of `parts` ranges of columns with about equal numbers of entries and columns.
inline std::vector<Index> column_ranges(const Index *offsets, Index columns, Index parts) {
    std::vector<Index> bounds(parts + 1, columns);
    bounds[0] = 0;
    const double total = double(offsets[columns] + columns);
    for (Index part = 1; part < parts; ++part) {
        const double target = total * double(part) / double(parts);
        Index low = bounds[part - 1], high = columns;
        while (low < high) {
            const Index middle = low + (high - low) / 2;
            if (double(offsets[middle] + middle) < target)
                low = middle + 1;
            else
                high = middle;
        }
        bounds[part] = low;
    }
    return bounds;
}

template <class T, class Place>
void cbsr_sddmm(Array1<int64_t> indptr, Array1<int32_t> indices, Maybe1<T> weights, Array2<T> grad,
                Array2<Place> index, Maybe1<int32_t> count, Array1<int64_t> column_offsets, Out2<T> result,
                Index threads) {
    require_matrix(indptr, indices, weights);
    const Index rows = Index(indptr.size()) - 1, width = Index(grad.shape(1)), nnz = Index(indices.size());
    const Index columns = Index(index.shape(0));
    require(Index(grad.shape(0)) == rows, "grad has another shape");
    require(result.shape(0) == index.shape(0) && result.shape(1) == index.shape(1), "the result has another shape");
    require(!count || Index(count->size()) == columns, "count has another size");
    require(Index(column_offsets.size()) == columns + 1, "column_offsets have another size");
    const auto *pointers = reinterpret_cast<const Index *>(indptr.data());
    const Compressed<T, Place> h{nullptr, index.data(), pointer(count), Index(index.shape(1))};
    nb::gil_scoped_release release;
    const Index parts = nnz * h.k < kSerialWork ? 1 : std::max<Index>(1, std::min(threads, columns));
    const auto *offsets = reinterpret_cast<const Index *>(column_offsets.data());
    const std::vector<Index> bounds = column_ranges(offsets, columns, parts);
    parallel_parts(parts, threads, [&](Index part) {
        if (push_by_permutation(pointers, indices.data(), pointer(weights), grad.data(), h, result.data(), width, rows,
                                bounds[part], bounds[part + 1]))
            return;
        push_to_columns(pointers, indices.data(), pointer(weights), grad.data(), h, result.data(), width, rows,
                        bounds[part], bounds[part + 1]);
    });
}

template <class T, class Place>
void cbsr_edge_dots(Array1<int64_t> indptr, Array1<int32_t> indices, Array2<T> grad, Array2<T> values,
                    Array2<Place> index, Maybe1<int32_t> count, Out1<T> dots, Index threads) {
    require_matrix(indptr, indices, Maybe1<T>());
    require_compressed(values, index, count);
    const Index rows = Index(indptr.size()) - 1, width = Index(grad.shape(1)), nnz = Index(indices.size());
    require(Index(grad.shape(0)) == rows && Index(dots.size()) == nnz, "grad or the result have other shapes");
    const auto *pointers = reinterpret_cast<const Index *>(indptr.data());
    const Compressed<T, Place> h{values.data(), index.data(), pointer(count), Index(values.shape(1))};
    const T *g = grad.data();
    T *to = dots.data();
    nb::gil_scoped_release release;
    parallel_rows(pointers, rows, nnz * h.k, threads, [&](Index begin, Index end) {
        for (Index row = begin; row < end; ++row)
            for (Index e = pointers[row]; e < pointers[row + 1]; ++e) {
                const Index column = Index(indices.data()[e]), ahead = Index(indices.data()[std::min(e + kAhead, nnz - 1)]);
                fetch_values(h.values + ahead * h.k, h.index + ahead * h.k, h.k);
                T sum = 0;
                for (Index t = 0; t < h.counted(column); ++t)
                    sum += g[row * width + h.index[column * h.k + t]] * h.values[column * h.k + t];
                to[e] = sum;
            }
    });
}

template <class T, class Place>
void cbsr_dense(Array2<T> values, Array2<Place> index, Maybe1<int32_t> count, Out2<T> dense, Index threads) {
    require_compressed(values, index, count);
    require(dense.shape(0) == values.shape(0), "the result has another shape");
    const Compressed<T, Place> h{values.data(), index.data(), pointer(count), Index(values.shape(1))};
    const Index width = Index(dense.shape(1));
    T *to = dense.data();
    nb::gil_scoped_release release;
    parallel_ranges(Index(values.shape(0)), 1, kRowGrain, threads, [&](Index begin, Index end) {
        for (Index row = begin; row < end; ++row) {
            std::fill(to + row * width, to + (row + 1) * width, T(0));
            for (Index t = 0; t < h.counted(row); ++t)
                to[row * width + h.index[row * h.k + t]] = h.values[row * h.k + t];
        }
    });
}

template <class T, class Place>
void cbsr_gather(Array2<T> dense, Array2<Place> index, Maybe1<int32_t> count, Out2<T> values, Index threads) {
    require(values.shape(0) == index.shape(0) && values.shape(1) == index.shape(1), "the result has another shape");
    require(dense.shape(0) == index.shape(0), "the dense matrix has another number of rows");
    require(!count || count->size() == index.shape(0), "count has another size");
    const Index width = Index(dense.shape(1)), k = Index(index.shape(1));
    const Compressed<T, Place> h{nullptr, index.data(), pointer(count), k};
    const T *from = dense.data();
    T *to = values.data();
    nb::gil_scoped_release release;
    parallel_ranges(Index(index.shape(0)), 1, kRowGrain, threads, [&](Index begin, Index end) {
        for (Index row = begin; row < end; ++row) {
            const Index counted = h.counted(row);
            for (Index t = 0; t < counted; ++t) to[row * k + t] = from[row * width + h.index[row * k + t]];
            std::fill(to + row * k + counted, to + (row + 1) * k, T(0));
        }
    });
}

template <class T, class Place>
void register_products(nb::module_ &m) {
    m.def("cbsr_spmm", &cbsr_spmm<T, Place>, operand("indptr"), operand("indices"), operand("weights").none(),
          operand("values"), operand("index"), operand("count").none(), operand("y"), nb::arg("threads"));
    m.def("cbsr_sddmm", &cbsr_sddmm<T, Place>, operand("indptr"), operand("indices"), operand("weights").none(),
          operand("grad"), operand("index"), operand("count").none(), operand("column_offsets"), operand("result"),
          nb::arg("threads"));
    m.def("cbsr_edge_dots", &cbsr_edge_dots<T, Place>, operand("indptr"), operand("indices"), operand("grad"),
          operand("values"), operand("index"), operand("count").none(), operand("dots"), nb::arg("threads"));
}

template <class T, class Place>
void register_forms(nb::module_ &m) {
    m.def("cbsr_dense", &cbsr_dense<T, Place>, operand("values"), operand("index"), operand("count").none(),
          operand("dense"), nb::arg("threads"));
    m.def("cbsr_gather", &cbsr_gather<T, Place>, operand("dense"), operand("index"), operand("count").none(),
          operand("values"), nb::arg("threads"));
    register_products<T, Place>(m);
}

}  // namespace
}  // namespace tradeoff

void register_cbsr(nb::module_ &m) {
    using namespace tradeoff;
    register_forms<float, uint8_t>(m);
    register_forms<float, int16_t>(m);
    register_forms<double, uint8_t>(m);
    register_forms<double, int16_t>(m);
}
