// The last steps of truncation and ReLU on shares, and the dealer's corrections for them, each in one pass.
//
// The equations stand in tradeoff/engines/two_party/elementwise.py, whose NumPy code is the oracle.
#include <cstdint>

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include "launch.h"
#include "module.h"
#include "require.h"

namespace nb = nanobind;

namespace tradeoff {
namespace {

constexpr Index kGrain = 8192;  // elements a thread must get to be worth starting

template <class T>
constexpr int width = 8 * sizeof(T);

// The kernels with many operands go through blocks of 64 elements, one output or intermediate at a time: operands are
// often apart by a multiple of 4096 bytes, and more than eight such streams at once evict each other from the cache.
constexpr Index kBlock = 64;

// Call body(base, count) for the blocks of [begin, end); begin is a multiple of 64.
template <class Body>
TRADEOFF_INLINE void for_each_block(Index begin, Index end, const Body &body) {
    Index base = begin;
    for (; base + kBlock <= end; base += kBlock) body(base, kBlock);
    if (base < end) body(base, end - base);
}

// The packed bits of a block, as 0 or 1 each.
template <class T>
TRADEOFF_INLINE void expand(uint64_t bits, T *__restrict out) {
    for (int k = 0; k < kBlock; k += width<T>) {
        const T part = static_cast<T>(bits >> k);
        for (int i = 0; i < width<T>; ++i) out[k + i] = static_cast<T>((part >> i) & 1);
    }
}

// What truncation needs to know of the opened c and of its shift.
template <class T>
struct Truncated {
    int shift;
    TRADEOFF_INLINE T opened(T c) const { return static_cast<T>((c >> shift) - (T(1) << (width<T> - 2 - shift))); }
    // The share of the wrap-around from that of m, which adds where the top bit of c is 0.
    TRADEOFF_INLINE T wrap(T c, T m) const {
        const T keep = static_cast<T>(static_cast<T>(c >> (width<T> - 1)) - T(1));
        return static_cast<T>(m << (width<T> - shift)) & keep;
    }
};

template <class T>
struct Truncation {
    const T *c, *rho, *m;
    T *out;
    int shift;
    bool first;  // adds the public terms

    TRADEOFF_INLINE void run(Index begin, Index end) const {
        const Truncated<T> step{shift};
        const T keep = first ? static_cast<T>(~T(0)) : T(0);
        const T *__restrict c_ = c, *__restrict rho_ = rho, *__restrict m_ = m;
        T *__restrict out_ = out;
        for (Index j = begin; j < end; ++j) out_[j] = step.wrap(c_[j], m_[j]) - rho_[j] + (step.opened(c_[j]) & keep);
    }
};

template <class T>
struct Relu {
    const T *c, *x;
    const uint64_t *t;
    const T *s, *r_s;
    T *out;

    TRADEOFF_INLINE void run(Index begin, Index end) const {
        for_each_block(begin, end, [this](Index base, Index count) TRADEOFF_LAMBDA_INLINE {
            alignas(64) T bit[kBlock];
            expand(t[base / 64], bit);
            const T *__restrict c_ = c + base, *__restrict x_ = x + base, *__restrict s_ = s + base;
            const T *__restrict r_s_ = r_s + base;
            T *__restrict out_ = out + base;
            for (Index j = 0; j < count; ++j) {
                const T product = c_[j] * s_[j] - r_s_[j], chosen = T(0) - bit[j];
                out_[j] = ((product ^ chosen) - chosen) + (x_[j] & chosen);  // product, or x - product
            }
        });
    }
};

template <class T>
struct TruncatedRelu {
    const T *c;
    const uint64_t *t;
    const T *rho, *m, *s, *rho_s, *m_s;
    T *out;
    int shift;
    bool first;

    TRADEOFF_INLINE void run(Index begin, Index end) const {
        const Truncated<T> step{shift};
        const T keep = first ? static_cast<T>(~T(0)) : T(0);
        for_each_block(begin, end, [this, step, keep](Index base, Index count) TRADEOFF_LAMBDA_INLINE {
            alignas(64) T bit[kBlock], product[kBlock];
            expand(t[base / 64], bit);
            const T *__restrict c_ = c + base, *__restrict s_ = s + base, *__restrict rho_s_ = rho_s + base;
            const T *__restrict m_s_ = m_s + base;
            for (Index j = 0; j < count; ++j)
                product[j] = step.opened(c_[j]) * s_[j] - rho_s_[j] + step.wrap(c_[j], m_s_[j]);
            const T *__restrict rho_ = rho + base, *__restrict m_ = m + base;
            T *__restrict out_ = out + base;
            for (Index j = 0; j < count; ++j) {
                const T value = step.wrap(c_[j], m_[j]) - rho_[j] + (step.opened(c_[j]) & keep);
                const T chosen = T(0) - bit[j];
                out_[j] = ((product[j] ^ chosen) - chosen) + (value & chosen);
            }
        });
    }
};

template <class T>
struct DealTruncation {
    const T *r, *rho0, *m0;
    T *rho1, *m1;
    int shift;

    TRADEOFF_INLINE void run(Index begin, Index end) const {
        const T *__restrict r_ = r, *__restrict rho0_ = rho0, *__restrict m0_ = m0;
        T *__restrict rho1_ = rho1, *__restrict m1_ = m1;
        for (Index j = begin; j < end; ++j) {
            rho1_[j] = (r_[j] >> shift) - rho0_[j];
            m1_[j] = (r_[j] >> (width<T> - 1)) - m0_[j];
        }
    }
};

// share1 = value(j) - share0 over a block.
template <class T, class Value>
TRADEOFF_INLINE void deal(const T *__restrict share0, T *__restrict share1, Index count, const Value &value) {
    for (Index j = 0; j < count; ++j) share1[j] = value(j) - share0[j];
}

template <class T>
struct DealRelu {
    const T *r;
    const uint64_t *s;
    const T *bits0, *s0, *r_s0;
    T *bits1, *s1, *r_s1;

    TRADEOFF_INLINE void run(Index begin, Index end) const {
        for_each_block(begin, end, [this](Index base, Index count) TRADEOFF_LAMBDA_INLINE {
            alignas(64) T bit[kBlock];
            expand(s[base / 64], bit);
            const T *__restrict r_ = r + base, *__restrict bits0_ = bits0 + base;
            T *__restrict bits1_ = bits1 + base;
            for (Index j = 0; j < count; ++j) bits1_[j] = r_[j] ^ bits0_[j];
            deal(s0 + base, s1 + base, count, [&](Index j) { return bit[j]; });
            deal(r_s0 + base, r_s1 + base, count, [&](Index j) { return static_cast<T>(r_[j] & (T(0) - bit[j])); });
        });
    }
};

template <class T>
struct DealTruncatedRelu {
    const T *r;
    const uint64_t *s;
    const T *bits0, *rho0, *m0, *s0, *rho_s0, *m_s0;
    T *bits1, *rho1, *m1, *s1, *rho_s1, *m_s1;
    int shift;

    TRADEOFF_INLINE void run(Index begin, Index end) const {
        for_each_block(begin, end, [this](Index base, Index count) TRADEOFF_LAMBDA_INLINE {
            alignas(64) T bit[kBlock], rho[kBlock], m[kBlock];
            expand(s[base / 64], bit);
            const T *__restrict r_ = r + base, *__restrict bits0_ = bits0 + base;
            T *__restrict bits1_ = bits1 + base;
            for (Index j = 0; j < count; ++j) {
                bits1_[j] = r_[j] ^ bits0_[j];
                rho[j] = r_[j] >> shift;
                m[j] = r_[j] >> (width<T> - 1);
            }
            deal(rho0 + base, rho1 + base, count, [&](Index j) { return rho[j]; });
            deal(m0 + base, m1 + base, count, [&](Index j) { return m[j]; });
            deal(s0 + base, s1 + base, count, [&](Index j) { return bit[j]; });
            deal(rho_s0 + base, rho_s1 + base, count,
                 [&](Index j) { return static_cast<T>(rho[j] & (T(0) - bit[j])); });
            deal(m_s0 + base, m_s1 + base, count, [&](Index j) { return static_cast<T>(m[j] & bit[j]); });
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
    require(((Index(arrays.size()) == size) && ...), "arrays have different sizes");
}

void require_bits(Index elements, const Bits &bits) {
    require(Index(bits.size()) >= (elements + 63) / 64, "too few packed bits");
}

template <class T>
void require_shift(int shift) {
    require(shift >= 1 && shift <= width<T> - 2, "shift is out of range");
}

template <class T>
void step_truncation(Elements<T> c, Elements<T> rho, Elements<T> m, int shift, int party, OutElements<T> out,
                     Index threads) {
    const Index n = Index(c.size());
    require_sizes(n, rho, m, out);
    require_shift<T>(shift);
    const Truncation<T> kernel{c.data(), rho.data(), m.data(), out.data(), shift, party == 0};
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
                                  rho_s.data(), m_s.data(), out.data(), shift,    party == 0};
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
