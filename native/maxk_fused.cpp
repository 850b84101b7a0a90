// Linear layers on compressed features (CBSR): each row of H has k values at ascending columns.
//
// W is given transposed, [d, outputs]: a value of H selects one of its rows. Each function writes what one thread
// owns, in an order that does not depend on their number: results are bit-identical for any.
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include "launch.h"
#include "module.h"

namespace nb = nanobind;

namespace tradeoff {
namespace {

constexpr Index kTile = 64;   // outputs that are summed in registers
constexpr Index kGrain = 64;  // rows a thread must get to be worth starting

template <class T>
using Matrix = nb::ndarray<T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

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

template <class Column>
void forward(Matrix<const float> values, Matrix<const Column> index, Matrix<const float> weight,
             Matrix<const float> add, Matrix<float> out, Index threads) {
    const Index rows = values.shape(0), k = values.shape(1), outputs = weight.shape(1);
    const Forward<Column> kernel{values.data(), index.data(), weight.data(), add.data(), out.data(), k, outputs};
    nb::gil_scoped_release release;
    launch(kernel, rows, 1, kGrain, threads);
}

template <class Column>
void for_values(Matrix<const float> grad, Matrix<const float> weight, Matrix<const Column> index, Matrix<float> out,
                Index threads) {
    const Index rows = grad.shape(0), k = index.shape(1), outputs = grad.shape(1);
    const Values<Column> kernel{grad.data(), weight.data(), index.data(), out.data(), k, outputs};
    nb::gil_scoped_release release;
    launch(kernel, rows, 1, kGrain, threads);
}

template <class Column>
void for_weight(Matrix<const float> grad, Matrix<const float> values, Matrix<const Column> index, Matrix<float> out,
                Index threads) {
    const Index rows = grad.shape(0), k = index.shape(1), outputs = grad.shape(1);
    const Weight<Column> kernel{grad.data(), values.data(), index.data(), out.data(), rows, k, outputs};
    std::memset(out.data(), 0, out.size() * sizeof(float));
    nb::gil_scoped_release release;
    launch(kernel, outputs, 16, 16, threads);
}

}  // namespace
}  // namespace tradeoff

void register_maxk_fused(nb::module_ &m) {
    using namespace tradeoff;
    m.def("cbsr_linear", &forward<uint8_t>, nb::arg("values").noconvert(), nb::arg("index").noconvert(), nb::arg("weight").noconvert(), nb::arg("add").noconvert(), nb::arg("out").noconvert(), nb::arg("threads"));
    m.def("cbsr_linear", &forward<int16_t>, nb::arg("values").noconvert(), nb::arg("index").noconvert(), nb::arg("weight").noconvert(), nb::arg("add").noconvert(), nb::arg("out").noconvert(), nb::arg("threads"));
    m.def("cbsr_linear_values", &for_values<uint8_t>, nb::arg("grad").noconvert(), nb::arg("weight").noconvert(), nb::arg("index").noconvert(), nb::arg("out").noconvert(), nb::arg("threads"));
    m.def("cbsr_linear_values", &for_values<int16_t>, nb::arg("grad").noconvert(), nb::arg("weight").noconvert(), nb::arg("index").noconvert(), nb::arg("out").noconvert(), nb::arg("threads"));
    m.def("cbsr_linear_weight", &for_weight<uint8_t>, nb::arg("grad").noconvert(), nb::arg("values").noconvert(), nb::arg("index").noconvert(), nb::arg("out").noconvert(), nb::arg("threads"));
    m.def("cbsr_linear_weight", &for_weight<int16_t>, nb::arg("grad").noconvert(), nb::arg("values").noconvert(), nb::arg("index").noconvert(), nb::arg("out").noconvert(), nb::arg("threads"));
}
