// Linear layers on compressed features (CBSR): each row of H has k values at ascending columns.
//
// W is given transposed, [d, outputs]: a value of H selects one of its rows. Each function writes what one thread
// owns, in an order that does not depend on their number: results are bit-identical for any.
#include <cstdint>
#include <cstring>

#include "arrays.h"
#include "launch.h"
#include "module.h"

namespace nb = nanobind;

namespace tradeoff {
namespace {

constexpr Index kTile = 64;   // outputs that are summed in registers
constexpr Index kGrain = 64;  // rows a thread must get to be worth starting

template <class A, class B>
bool same_shape(const A &a, const B &b) {
    return a.shape(0) == b.shape(0) && a.shape(1) == b.shape(1);
}

// out[i, :] = add[i, :] + sum_t values[i, t] weight[index[i, t], :]
template <class Column>
struct Forward {
    const float *__restrict values;
    const Column *__restrict index;
    const float *__restrict weight, *__restrict add;
    float *__restrict out;
    Index k, outputs;

    template <Index width>
    TRADEOFF_INLINE void tile(Index row, Index first) const {
        alignas(64) float sums[width];
        for (Index c = 0; c < width; ++c) sums[c] = add[row * outputs + first + c];
        for (Index t = row * k; t < row * k + k; ++t) {
            const float *__restrict w = weight + Index(index[t]) * outputs + first;
            const float value = values[t];
            for (Index c = 0; c < width; ++c) sums[c] += value * w[c];
        }
        for (Index c = 0; c < width; ++c) out[row * outputs + first + c] = sums[c];
    }

    TRADEOFF_INLINE void run(Index begin, Index end) const {
        for (Index row = begin; row < end; ++row) {
            Index first = 0;
            for (; first + kTile <= outputs; first += kTile) tile<kTile>(row, first);
            for (; first + 8 <= outputs; first += 8) tile<8>(row, first);
            for (; first < outputs; ++first) tile<1>(row, first);
        }
    }
};

// out[i, t] = sum_c grad[i, c] weight[index[i, t], c]
template <class Column>
struct Values {
    const float *__restrict grad, *__restrict weight;
    const Column *__restrict index;
    float *__restrict out;
    Index k, outputs;

    TRADEOFF_INLINE void run(Index begin, Index end) const {
        constexpr Index lanes = 32;
        const Index whole = outputs / lanes * lanes;
        for (Index row = begin; row < end; ++row) {
            const float *__restrict g = grad + row * outputs;
            for (Index t = row * k; t < row * k + k; ++t) {
                const float *__restrict w = weight + Index(index[t]) * outputs;
                alignas(64) float sums[lanes] = {};
                for (Index c = 0; c < whole; c += lanes)
                    for (Index l = 0; l < lanes; ++l) sums[l] += g[c + l] * w[c + l];
                for (Index half = lanes / 2; half; half /= 2)
                    for (Index l = 0; l < half; ++l) sums[l] += sums[l + half];
                for (Index c = whole; c < outputs; ++c) sums[0] += g[c] * w[c];
                out[t] = sums[0];
            }
        }
    }
};

// out[index[i, t], c] += values[i, t] grad[i, c], for the outputs c of a range that one thread owns
template <class Column>
struct Weight {
    const float *__restrict grad, *__restrict values;
    const Column *__restrict index;
    float *__restrict out;
    Index rows, k, outputs;

    TRADEOFF_INLINE void run(Index begin, Index end) const {  // outputs
        for (Index row = 0; row < rows; ++row) {
            const float *__restrict g = grad + row * outputs;
            for (Index t = row * k; t < row * k + k; ++t) {
                float *__restrict o = out + Index(index[t]) * outputs;
                const float value = values[t];
                for (Index c = begin; c < end; ++c) o[c] += value * g[c];
            }
        }
    }
};

// Columns are trusted: they were checked when the compressed matrix was made.
template <class Column>
void forward(Array2<float> values, Array2<Column> index, Array2<float> weight, Array2<float> add, Out2<float> out,
             Index threads) {
    require(same_shape(values, index), "values and index have different shapes");
    require(same_shape(add, out), "add and the result have different shapes");
    require(out.shape(0) == values.shape(0) && out.shape(1) == weight.shape(1), "the result has another shape");
    const Index rows = Index(values.shape(0)), k = Index(values.shape(1)), outputs = Index(weight.shape(1));
    const Forward<Column> kernel{values.data(), index.data(), weight.data(), add.data(), out.data(), k, outputs};
    nb::gil_scoped_release release;
    launch(kernel, rows, 1, kGrain, threads);
}

template <class Column>
void for_values(Array2<float> grad, Array2<float> weight, Array2<Column> index, Out2<float> out, Index threads) {
    require(grad.shape(0) == index.shape(0) && grad.shape(1) == weight.shape(1), "grad has another shape");
    require(same_shape(out, index), "the result and index have different shapes");
    const Index rows = Index(grad.shape(0)), k = Index(index.shape(1)), outputs = Index(grad.shape(1));
    const Values<Column> kernel{grad.data(), weight.data(), index.data(), out.data(), k, outputs};
    nb::gil_scoped_release release;
    launch(kernel, rows, 1, kGrain, threads);
}

template <class Column>
void for_weight(Array2<float> grad, Array2<float> values, Array2<Column> index, Out2<float> out, Index threads) {
    require(same_shape(values, index), "values and index have different shapes");
    require(grad.shape(0) == index.shape(0), "grad has another shape");
    require(out.shape(1) == grad.shape(1), "the result has another shape");
    const Index rows = Index(grad.shape(0)), k = Index(index.shape(1)), outputs = Index(grad.shape(1));
    const Weight<Column> kernel{grad.data(), values.data(), index.data(), out.data(), rows, k, outputs};
    nb::gil_scoped_release release;
    std::memset(out.data(), 0, out.size() * sizeof(float));
    launch(kernel, outputs, 16, 16, threads);
}

template <class Column>
void register_linear(nb::module_ &m) {
    m.def("cbsr_linear", &forward<Column>, operand("values"), operand("index"), operand("weight"), operand("add"),
          operand("out"), nb::arg("threads"));
    m.def("cbsr_linear_values", &for_values<Column>, operand("grad"), operand("weight"), operand("index"), operand("out"),
          nb::arg("threads"));
    m.def("cbsr_linear_weight", &for_weight<Column>, operand("grad"), operand("values"), operand("index"), operand("out"),
          nb::arg("threads"));
}

}  // namespace
}  // namespace tradeoff

void register_maxk_fused(nb::module_ &m) {
    tradeoff::register_linear<uint8_t>(m);
    tradeoff::register_linear<int16_t>(m);
}
