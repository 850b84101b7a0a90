// The last steps of truncation and ReLU on shares, and the dealer's corrections for them, each in one pass.
//
// The equations stand in tradeoff/engines/two_party/elementwise.py, whose NumPy code is the oracle.
#include <cstdint>
#include <stdexcept>
#include <string>

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include "launch.h"
#include "module.h"

namespace nb = nanobind;

namespace tradeoff {
namespace {

constexpr Index kGrain = 8192;  // elements a thread must get to be worth starting

template <class T>
constexpr int width = 8 * sizeof(T);

// Call body(j, bit) for the elements [begin, end) and their packed bits (0 or 1); begin is a multiple of 64.
template <class T, class Body>
TRADEOFF_INLINE void for_each_bit(const uint64_t *bits, Index begin, Index end, const Body &body) {
    Index base = begin;
    for (; base + width<T> <= end; base += width<T>) {
        const T some = static_cast<T>(bits[base / 64] >> (base % 64));
#pragma GCC ivdep
        for (int k = 0; k < width<T>; ++k) body(base + k, static_cast<T>((some >> k) & 1));
    }
    for (; base < end; ++base) body(base, static_cast<T>((bits[base / 64] >> (base % 64)) & 1));
}

// What truncation needs to know of the opened c and of its shift.
template <class T>
struct Truncated {
    int shift;
    TRADEOFF_INLINE T opened(T c) const { return static_cast<T>((c >> shift) - (T(1) << (width<T> - 2 - shift))); }
    // The share of the wrap-around from that of m.
    TRADEOFF_INLINE T wrap(T c, T m) const {
        return static_cast<T>((T(1) - static_cast<T>(c >> (width<T> - 1))) * static_cast<T>(m << (width<T> - shift)));
    }
};

template <class T>
struct Truncation {
    const T *__restrict c, *__restrict rho, *__restrict m;
    T *__restrict out;
    int shift;
    T first;  // 1 at the party that adds public terms

    TRADEOFF_INLINE void run(Index begin, Index end) const {
        const Truncated<T> step{shift};
#pragma GCC ivdep
        for (Index j = begin; j < end; ++j) out[j] = step.wrap(c[j], m[j]) - rho[j] + first * step.opened(c[j]);
    }
};

template <class T>
struct Relu {
    const T *__restrict c, *__restrict x;
    const uint64_t *t;
    const T *__restrict s, *__restrict r_s;
    T *__restrict out;

    TRADEOFF_INLINE void run(Index begin, Index end) const {
        for_each_bit<T>(t, begin, end, [&](Index j, T bit) {
            const T product = c[j] * s[j] - r_s[j];
            out[j] = bit ? x[j] - product : product;
        });
    }
};

template <class T>
struct TruncatedRelu {
    const T *__restrict c;
    const uint64_t *t;
    const T *__restrict rho, *__restrict m, *__restrict s, *__restrict rho_s, *__restrict m_s;
    T *__restrict out;
    int shift;
    T first;

    TRADEOFF_INLINE void run(Index begin, Index end) const {
        const Truncated<T> step{shift};
        for_each_bit<T>(t, begin, end, [&](Index j, T bit) {
            const T opened = step.opened(c[j]);
            const T value = step.wrap(c[j], m[j]) - rho[j] + first * opened;
            const T product = opened * s[j] - rho_s[j] + step.wrap(c[j], m_s[j]);
            out[j] = bit ? value - product : product;
        });
    }
};

template <class T>
struct DealTruncation {
    const T *__restrict r, *__restrict rho0, *__restrict m0;
    T *__restrict rho1, *__restrict m1;
    int shift;

    TRADEOFF_INLINE void run(Index begin, Index end) const {
#pragma GCC ivdep
        for (Index j = begin; j < end; ++j) {
            rho1[j] = (r[j] >> shift) - rho0[j];
            m1[j] = (r[j] >> (width<T> - 1)) - m0[j];
        }
    }
};

template <class T>
struct DealRelu {
    const T *__restrict r;
    const uint64_t *s;
    const T *__restrict bits0, *__restrict s0, *__restrict r_s0;
    T *__restrict bits1, *__restrict s1, *__restrict r_s1;

    TRADEOFF_INLINE void run(Index begin, Index end) const {
        for_each_bit<T>(s, begin, end, [&](Index j, T bit) {
            bits1[j] = r[j] ^ bits0[j];
            s1[j] = bit - s0[j];
            r_s1[j] = (bit ? r[j] : T(0)) - r_s0[j];
        });
    }
};

template <class T>
struct DealTruncatedRelu {
    const T *__restrict r;
    const uint64_t *s;
    const T *__restrict bits0, *__restrict rho0, *__restrict m0, *__restrict s0, *__restrict rho_s0, *__restrict m_s0;
    T *__restrict bits1, *__restrict rho1, *__restrict m1, *__restrict s1, *__restrict rho_s1, *__restrict m_s1;
    int shift;

    TRADEOFF_INLINE void run(Index begin, Index end) const {
        for_each_bit<T>(s, begin, end, [&](Index j, T bit) {
            const T rho = r[j] >> shift, m = r[j] >> (width<T> - 1);
            bits1[j] = r[j] ^ bits0[j];
            rho1[j] = rho - rho0[j];
            m1[j] = m - m0[j];
            s1[j] = bit - s0[j];
            rho_s1[j] = (bit ? rho : T(0)) - rho_s0[j];
            m_s1[j] = (m & bit) - m_s0[j];
        });
    }
};

template <class T>
using Elements = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <class T>
using OutElements = nb::ndarray<T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <class T>
using OutRows = nb::ndarray<T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Bits = nb::ndarray<const uint64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

template <class... Arrays>
void require_sizes(Index size, const Arrays &...arrays) {
    if (((Index(arrays.size()) != size) || ...)) throw std::invalid_argument("arrays have different sizes");
}

void require_bits(Index elements, const Bits &bits) {
    if (Index(bits.size()) < (elements + 63) / 64) throw std::invalid_argument("too few packed bits");
}

template <class T>
void require_shift(int shift) {
    if (shift < 1 || shift > width<T> - 2) throw std::invalid_argument("shift is out of range");
}

template <class T>
void step_truncation(Elements<T> c, Elements<T> rho, Elements<T> m, int shift, int party, OutElements<T> out,
                     Index threads) {
    const Index n = Index(c.size());
    require_sizes(n, rho, m, out);
    require_shift<T>(shift);
    const Truncation<T> kernel{c.data(), rho.data(), m.data(), out.data(), shift, T(party == 0)};
    nb::gil_scoped_release release;
    launch(kernel, n, 64, kGrain, threads);
}

template <class T>
void step_relu(Elements<T> c, Elements<T> x, Bits t, Elements<T> s, Elements<T> r_s, OutElements<T> out,
               Index threads) {
    const Index n = Index(c.size());
    require_sizes(n, x, s, r_s, out);
    require_bits(n, t);
    const Relu<T> kernel{c.data(), x.data(), t.data(), s.data(), r_s.data(), out.data()};
    nb::gil_scoped_release release;
    launch(kernel, n, 64, kGrain, threads);
}

template <class T>
void step_truncated_relu(Elements<T> c, Bits t, Elements<T> rho, Elements<T> m, Elements<T> s, Elements<T> rho_s,
                         Elements<T> m_s, int shift, int party, OutElements<T> out, Index threads) {
    const Index n = Index(c.size());
    require_sizes(n, rho, m, s, rho_s, m_s, out);
    require_bits(n, t);
    require_shift<T>(shift);
    const TruncatedRelu<T> kernel{c.data(),     t.data(),   rho.data(), m.data(), s.data(),
                                  rho_s.data(), m_s.data(), out.data(), shift,    T(party == 0)};
    nb::gil_scoped_release release;
    launch(kernel, n, 64, kGrain, threads);
}

template <class T>
void deal_truncation(Elements<T> r, Elements<T> rho0, Elements<T> m0, int shift, OutRows<T> out, Index threads) {
    const Index n = Index(r.size());
    require_sizes(n, rho0, m0);
    require_sizes(2 * n, out);
    require_shift<T>(shift);
    const DealTruncation<T> kernel{r.data(), rho0.data(), m0.data(), out.data(), out.data() + n, shift};
    nb::gil_scoped_release release;
    launch(kernel, n, 64, kGrain, threads);
}

template <class T>
void deal_relu(Elements<T> r, Bits s, Elements<T> bits0, Elements<T> s0, Elements<T> r_s0, OutRows<T> out,
               Index threads) {
    const Index n = Index(r.size());
    require_sizes(n, bits0, s0, r_s0);
    require_sizes(3 * n, out);
    require_bits(n, s);
    const DealRelu<T> kernel{r.data(),   s.data(),       bits0.data(),      s0.data(),
                             r_s0.data(), out.data(), out.data() + n, out.data() + 2 * n};
    nb::gil_scoped_release release;
    launch(kernel, n, 64, kGrain, threads);
}

template <class T>
void deal_truncated_relu(Elements<T> r, Bits s, Elements<T> bits0, Elements<T> rho0, Elements<T> m0, Elements<T> s0,
                         Elements<T> rho_s0, Elements<T> m_s0, int shift, OutRows<T> out, Index threads) {
    const Index n = Index(r.size());
    require_sizes(n, bits0, rho0, m0, s0, rho_s0, m_s0);
    require_sizes(6 * n, out);
    require_bits(n, s);
    require_shift<T>(shift);
    T *to = out.data();
    const DealTruncatedRelu<T> kernel{r.data(),      s.data(), bits0.data(), rho0.data(), m0.data(),
                                      s0.data(),     rho_s0.data(), m_s0.data(), to,      to + n,
                                      to + 2 * n,    to + 3 * n,    to + 4 * n,  to + 5 * n, shift};
    nb::gil_scoped_release release;
    launch(kernel, n, 64, kGrain, threads);
}

template <class T>
void register_elementwise_of(nb::module_ &m) {
    const auto array = [](const char *name) { return nb::arg(name).noconvert(); };
    const auto value = [](const char *name) { return nb::arg(name); };
    m.def("step_truncation", &step_truncation<T>, array("c"), array("rho"), array("m"), value("shift"), value("party"),
          array("out"), value("threads"));
    m.def("step_relu", &step_relu<T>, array("c"), array("x"), array("t"), array("s"), array("r_s"), array("out"),
          value("threads"));
    m.def("step_truncated_relu", &step_truncated_relu<T>, array("c"), array("t"), array("rho"), array("m"), array("s"),
          array("rho_s"), array("m_s"), value("shift"), value("party"), array("out"), value("threads"));
    m.def("deal_truncation", &deal_truncation<T>, array("r"), array("rho0"), array("m0"), value("shift"), array("out"),
          value("threads"));
    m.def("deal_relu", &deal_relu<T>, array("r"), array("s"), array("bits0"), array("s0"), array("r_s0"), array("out"),
          value("threads"));
    m.def("deal_truncated_relu", &deal_truncated_relu<T>, array("r"), array("s"), array("bits0"), array("rho0"),
          array("m0"), array("s0"), array("rho_s0"), array("m_s0"), value("shift"), array("out"), value("threads"));
}

}  // namespace
}  // namespace tradeoff

void register_elementwise(nanobind::module_ &m) {
    tradeoff::register_elementwise_of<uint64_t>(m);
    tradeoff::register_elementwise_of<uint32_t>(m);
}
