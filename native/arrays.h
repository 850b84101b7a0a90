// Arrays as kernels of sparse matrices take them: contiguous, on the CPU, of exactly this type.
#pragma once

#include <cstdint>
#include <optional>

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>

#include "parallel.h"
#include "require.h"

namespace tradeoff {

template <class T>
using Array1 = nanobind::ndarray<const T, nanobind::ndim<1>, nanobind::c_contig, nanobind::device::cpu>;
template <class T>
using Array2 = nanobind::ndarray<const T, nanobind::ndim<2>, nanobind::c_contig, nanobind::device::cpu>;
template <class T>
using Out1 = nanobind::ndarray<T, nanobind::ndim<1>, nanobind::c_contig, nanobind::device::cpu>;
template <class T>
using Out2 = nanobind::ndarray<T, nanobind::ndim<2>, nanobind::c_contig, nanobind::device::cpu>;
template <class T>
using Maybe1 = std::optional<Array1<T>>;

template <class T>
const T *pointer(const Maybe1<T> &array) {
    return array ? array->data() : nullptr;
}

// An argument that must be of its type as it is: a copy would not be what the caller holds.
inline auto operand(const char *name) { return nanobind::arg(name).noconvert(); }

// The row pointers, columns and weights fit together, and their last entry is where columns end.
template <class Column, class T>
void require_matrix(const Array1<int64_t> &indptr, const Array1<Column> &indices, const Maybe1<T> &values) {
    require(indptr.size() >= 1, "indptr is empty");
    require(uint64_t(indptr.data()[indptr.size() - 1]) == indices.size(), "indptr does not end where indices end");
    require(!values || values->size() == indices.size(), "values and indices have different sizes");
}

}  // namespace tradeoff
