// The products of a decoder for the few rows of a decoding step, so that a row's result does not depend on the others.
//
// tradeoff/engines/decoding/reference.py says what each computes; its torch code is the oracle.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <optional>
#include <vector>

#include "arrays.h"
#include "module.h"
#include "simd.h"

namespace tradeoff {

constexpr int kLine = 16;               // floats of a cache line
constexpr Index kInputsAtOnce = 6;      // rows of X in a register tile
constexpr Index kPassesUnblocked = 2;   // up to so many passes a pair of rows of W stays in the L1 cache
constexpr Index kBlockFloats = 1 << 15; // of W, in the L2 cache, for more passes

// y = x W^T
struct Rows {
    const float *weight, *x;
    float *y;
    Index inputs, outputs, width;  // rows of X, rows of W, columns of both
};

// Keys of one head: a query of `width` numbers, and where slot s has its key.
struct KeyPart {
    const float *query = nullptr, *keys = nullptr;
    Index stride = 0, width = 0;
};

struct Query {
    KeyPart parts[2];
    const float *values;
    Index value_stride, value_width;
    float *out;
    Index length;  // slots that the query sees
    float scale;
};

}  // namespace tradeoff

#define TRADEOFF_BODY "decoding_body.h"
#include "for_each_isa.h"

namespace nb = nanobind;

namespace tradeoff {
namespace {

constexpr Index kSerialProducts = 1 << 17;  // multiplications below which threads cost more than they give

using InRows = nb::ndarray<const float, nb::c_contig, nb::device::cpu>;  // rows are all but the last dimension
using OutRows = nb::ndarray<float, nb::c_contig, nb::device::cpu>;
using Angles = nb::ndarray<const float, nb::ndim<3>, nb::c_contig, nb::device::cpu>;
using Strided = nb::ndarray<const float, nb::ndim<4>, nb::device::cpu>;
using StridedOut = nb::ndarray<float, nb::ndim<4>, nb::device::cpu>;

#if TRADEOFF_X86
#define TRADEOFF_CHOOSE(function) \
    (isa() == Isa::avx512 ? avx512::function : isa() == Isa::avx2 ? avx2::function : portable::function)
#else
#define TRADEOFF_CHOOSE(function) portable::function
#endif

template <class Array>
Index width_of(const Array &array) {
    require(array.ndim() >= 1, "an array without dimensions");
    return Index(array.shape(array.ndim() - 1));
}

template <class Array>
Index rows_of(const Array &array) {
    Index rows = 1;
    for (size_t d = 0; d + 1 < array.ndim(); ++d) rows *= Index(array.shape(d));
    return rows;
}

void skinny_linear(Array2<float> weight, InRows x, OutRows out, Index threads) {
    const Rows of{weight.data(), x.data(), out.data(), rows_of(x), Index(weight.shape(0)), width_of(x)};
    require(Index(weight.shape(1)) == of.width, "the rows of W and of X have different widths");
    require(rows_of(out) == of.inputs && width_of(out) == of.outputs, "the result has another shape");
    const auto rows = TRADEOFF_CHOOSE(linear_rows);
    nb::gil_scoped_release release;
    if (!of.inputs || !of.outputs) return;
    if (!of.width) return void(std::fill(of.y, of.y + of.inputs * of.outputs, 0.0f));
    const Index grain = std::max<Index>(4, kSerialProducts / (of.width * of.inputs));
    parallel_ranges(of.outputs, 4, grain, threads, [&](Index begin, Index end) { rows(of, begin, end); });
}

void swiglu(InRows gate, InRows up, OutRows out, Index threads) {
    const Index rows = rows_of(gate), width = width_of(gate);
    require(rows_of(up) == rows && width_of(up) == width, "gate and up have different shapes");
    require(rows_of(out) == rows && width_of(out) == width, "the result has another shape");
    const auto row_of = TRADEOFF_CHOOSE(swiglu_row);
    const float *gates = gate.data(), *ups = up.data();
    float *to = out.data();
    nb::gil_scoped_release release;
    parallel_ranges(rows, 1, std::max<Index>(1, kSerialProducts / 16 / std::max<Index>(1, width)), threads,
                    [&](Index begin, Index end) {
                        for (Index row = begin; row < end; ++row)
                            row_of(gates + row * width, ups + row * width, to + row * width, width);
                    });
}

template <class Array>
void require_dense(const Array &array) {
    require(array.shape(3) <= 1 || array.stride(3) == 1, "the last dimension has gaps");
}

template <class Array>
auto *at(const Array &array, Index a, Index b, Index c) {
    return array.data() + a * Index(array.stride(0)) + b * Index(array.stride(1)) + c * Index(array.stride(2));
}

void rms_norm(InRows x, std::optional<Array1<float>> gain, OutRows out, float eps, float scale) {
    const Index rows = rows_of(x), width = width_of(x);
    require(!gain || Index(gain->size()) == width, "the gain has another width");
    require(rows_of(out) == rows && width_of(out) == width, "the result has another shape");
    const auto row_of = TRADEOFF_CHOOSE(norm_row);
    for (Index row = 0; row < rows; ++row)
        row_of(x.data() + row * width, gain ? gain->data() : nullptr, out.data() + row * width, width, eps, scale);
}

// Angles are those of (row of the batch or all, new token).
void rotate(Strided x, Angles cosine, Angles sine, StridedOut out) {
    const Index batch = Index(x.shape(0)), heads = Index(x.shape(1)), news = Index(x.shape(2));
    const Index half = Index(cosine.shape(2)), rows = Index(cosine.shape(0));
    require(Index(x.shape(3)) == 2 * half && Index(cosine.shape(1)) == news && (rows == 1 || rows == batch),
            "the angles have another shape");
    for (size_t d = 0; d < 3; ++d) require(sine.shape(d) == cosine.shape(d), "cosines and sines differ");
    for (size_t d = 0; d < 4; ++d) require(out.shape(d) == x.shape(d), "the result has another shape");
    require_dense(x);
    require_dense(out);
    const auto row_of = TRADEOFF_CHOOSE(rotate_row);
    for (Index b = 0; b < batch; ++b)
        for (Index n = 0; n < news; ++n) {
            const Index angle = ((rows == 1 ? 0 : b) * news + n) * half;
            for (Index head = 0; head < heads; ++head)
                row_of(at(x, b, head, n), cosine.data() + angle, sine.data() + angle, at(out, b, head, n), half);
        }
}

// What one call attends to. Row b of the batch has offsets[b] slots that all its queries see; behind them query n sees
// the slots offsets[b] + paths[starts[n]:starts[n + 1]], in this order, or without paths the next n + 1.
struct Attention {
    Strided query, keys, values;
    std::optional<Strided> rope_query, rope_keys;
    Array1<int64_t> offsets;
    std::optional<Array1<int64_t>> starts;
    std::optional<Array1<int32_t>> paths;
    StridedOut out;
    float scale;

    Index batch() const { return Index(query.shape(0)); }
    Index heads() const { return Index(query.shape(1)); }
    Index queries() const { return Index(query.shape(2)); }
    Index groups() const { return Index(keys.shape(1)); }
    Index own(Index n) const { return starts ? starts->data()[n + 1] - starts->data()[n] : n + 1; }
    Index length(Index b, Index n) const { return offsets.data()[b] + own(n); }

    Index longest() const {
        Index most = 0, prefix = 0;
        for (Index n = 0; n < queries(); ++n) most = std::max(most, own(n));
        for (Index b = 0; b < batch(); ++b) prefix = std::max<Index>(prefix, offsets.data()[b]);
        return prefix + most;
    }

    void check() const {
        const Index slots = Index(keys.shape(2));
        require(Index(keys.shape(0)) == batch() && Index(values.shape(0)) == batch(), "batches differ");
        require(groups() > 0 && heads() % groups() == 0, "the query heads are no multiple of the key heads");
        require(Index(values.shape(1)) == groups() && Index(values.shape(2)) == slots, "keys and values differ");
        require(query.shape(3) == keys.shape(3), "queries and keys have different widths");
        require(Index(out.shape(0)) == batch() && Index(out.shape(1)) == heads() &&
                    Index(out.shape(2)) == queries() && out.shape(3) == values.shape(3),
                "the result has another shape");
        require(rope_query.has_value() == rope_keys.has_value(), "a second part needs queries and keys");
        if (rope_query) {
            require(Index(rope_query->shape(0)) == batch() && Index(rope_query->shape(1)) == heads() &&
                        Index(rope_query->shape(2)) == queries(),
                    "the second queries have another shape");
            require(Index(rope_keys->shape(0)) == batch() && Index(rope_keys->shape(1)) == groups() &&
                        Index(rope_keys->shape(2)) == slots && rope_keys->shape(3) == rope_query->shape(3),
                    "the second keys have another shape");
            require_dense(*rope_query);
            require_dense(*rope_keys);
        }
        for (const auto *array : {&query, &keys, &values}) require_dense(*array);
        require_dense(out);
        require(Index(offsets.size()) == batch(), "offsets has another size");
        require(starts.has_value() == paths.has_value(), "starts and paths go together");
        Index furthest = queries();
        if (starts) {
            require(Index(starts->size()) == queries() + 1 && starts->data()[0] == 0 &&
                        uint64_t(starts->data()[queries()]) == paths->size(),
                    "starts does not fit paths");
            for (Index n = 0; n < queries(); ++n) require(own(n) >= 0, "starts decreases");
            furthest = 0;
            for (size_t i = 0; i < paths->size(); ++i) {
                require(paths->data()[i] >= 0, "a path has a negative slot");
                furthest = std::max<Index>(furthest, paths->data()[i] + 1);
            }
        }
        for (Index b = 0; b < batch(); ++b) {
            const Index offset = offsets.data()[b];
            require(offset >= 0 && offset + furthest <= slots, "a query sees slots that are not there");
            for (Index n = 0; n < queries(); ++n) require(length(b, n) > 0, "a query sees no slot");
        }
    }

    Query of(Index b, Index head, Index n) const {
        const Index group = head / (heads() / groups());
        Query one;
        one.parts[0] = {at(query, b, head, n), at(keys, b, group, 0), Index(keys.stride(2)), Index(keys.shape(3))};
        if (rope_query)
            one.parts[1] = {at(*rope_query, b, head, n), at(*rope_keys, b, group, 0), Index(rope_keys->stride(2)),
                            Index(rope_keys->shape(3))};
        one.values = at(values, b, group, 0);
        one.value_stride = Index(values.stride(2));
        one.value_width = Index(values.shape(3));
        one.out = at(out, b, head, n);
        one.length = length(b, n);
        one.scale = scale;
        return one;
    }

    // Tasks are numbered by row of the batch, query and head, so that the heads of a group follow each other.
    void run(Index begin, Index end) const {
        const auto attend_one = TRADEOFF_CHOOSE(attend);
        const Index longest_padded = (longest() + kLine - 1) / kLine * kLine;
        std::vector<float> scores(longest_padded);
        std::vector<Index> slots(longest_padded);
        Index prefix = 0, listed = -1;
        for (Index task = begin; task < end; ++task) {
            const Index head = task % heads(), n = task / heads() % queries(), b = task / heads() / queries();
            if (task / heads() != listed) {
                listed = task / heads();
                const Index offset = offsets.data()[b];
                if (offset < prefix) prefix = 0;
                for (; prefix < offset; ++prefix) slots[prefix] = prefix;
                const int32_t *path = starts ? paths->data() + starts->data()[n] : nullptr;
                for (Index i = 0; i < own(n); ++i) slots[offset + i] = offset + (path ? Index(path[i]) : i);
            }
            attend_one(of(b, head, n), slots.data(), scores.data());
        }
    }
};

void tree_attention(Strided query, Strided keys, Strided values, std::optional<Strided> rope_query,
                    std::optional<Strided> rope_keys, Array1<int64_t> offsets, std::optional<Array1<int64_t>> starts,
                    std::optional<Array1<int32_t>> paths, StridedOut out, float scale, Index threads) {
    const Attention attention{query, keys, values, rope_query, rope_keys, offsets, starts, paths, out, scale};
    attention.check();
    const Index tasks = attention.batch() * attention.heads() * attention.queries();
    nb::gil_scoped_release release;
    if (!tasks) return;
    const Index work = attention.longest() * Index(keys.shape(3) + values.shape(3));
    parallel_ranges(tasks, 1, std::max<Index>(1, kSerialProducts / std::max<Index>(1, work)), threads,
                    [&](Index begin, Index end) { attention.run(begin, end); });
}

}  // namespace
}  // namespace tradeoff

void register_decoding(nb::module_ &m) {
    using namespace tradeoff;
    m.def("skinny_linear", &skinny_linear, nb::arg("weight").noconvert(), nb::arg("x").noconvert(),
          nb::arg("out").noconvert(), nb::arg("threads"));
    m.def("swiglu", &swiglu, nb::arg("gate").noconvert(), nb::arg("up").noconvert(), nb::arg("out").noconvert(),
          nb::arg("threads"));
    m.def("rms_norm", &rms_norm, nb::arg("x").noconvert(), nb::arg("gain").noconvert().none(),
          nb::arg("out").noconvert(), nb::arg("eps"), nb::arg("scale"));
    m.def("rotate", &rotate, nb::arg("x").noconvert(), nb::arg("cosine").noconvert(), nb::arg("sine").noconvert(),
          nb::arg("out").noconvert());
    m.def("tree_attention", &tree_attention, nb::arg("query").noconvert(), nb::arg("keys").noconvert(),
          nb::arg("values").noconvert(), nb::arg("rope_query").noconvert().none(),
          nb::arg("rope_keys").noconvert().none(), nb::arg("offsets").noconvert(),
          nb::arg("starts").noconvert().none(), nb::arg("paths").noconvert().none(), nb::arg("out").noconvert(),
          nb::arg("scale"), nb::arg("threads"));
}
