// Comparison on packed xor-shared bits: leaves, nodes of radix 4 and 2, and the dealer's products of masks.
//
// The layout is that of tradeoff/engines/two_party/bits.py, whose NumPy functions are the oracle. A level's matrices
// have one row an input or product and one column a word of 64 nodes. A node of radix 4 has the inputs
//   0: p3  1: p2  2: p1  3: g2  4: g1  5: g0  6: p0
// and the products of masks, by inputs,
//   0: 03  1: 01  2: 04  3: 14  4: 014  5: 02  6: 05  7: 12  8: 15  9: 25  10: 012  11: 015  12: 025  13: 125  14: 0125
//   15: 06  16: 16  17: 26  18: 016  19: 026  20: 126  21: 0126;
// a node of radix 2 the inputs 0: p1  1: g0  2: p0 and the products 0: 01  1: 02. The last level lacks p0.
#include <cstdint>
#include <cstring>
#include <optional>
#include <stdexcept>
#include <string>
#include <type_traits>

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>

#include "launch.h"
#include "module.h"
#include "require.h"

namespace nb = nanobind;

namespace tradeoff {
namespace {

using Word = uint64_t;

constexpr Index kGrain = 4096;  // words a thread must get to be worth starting
constexpr Index kBlock = 256;   // words of a row that a kernel goes through at a time

constexpr int inputs_of(int radix, bool last) { return (radix == 4 ? 7 : 3) - last; }
constexpr int products_of(int radix, bool last) { return radix == 4 ? (last ? 15 : 22) : (last ? 1 : 2); }

struct Leaves {
    const Word *__restrict c, *__restrict r;
    Word *__restrict g, *__restrict p;
    Word top;
    bool first;

    TRADEOFF_INLINE void run(Index begin, Index end) const {
        if (first)
            for (Index j = begin; j < end; ++j) {
                g[j] = ~(c[j] | top) & r[j];
                p[j] = ~(c[j] ^ r[j]) | top;
            }
        else
            for (Index j = begin; j < end; ++j) {
                g[j] = ~(c[j] | top) & r[j];
                p[j] = r[j] & ~top;
            }
    }
};

template <class T>
struct TopBits {
    const T *__restrict x;
    Word *__restrict out;

    TRADEOFF_INLINE void run(Index begin, Index end) const {  // elements; begin is a multiple of 64
        constexpr int top = 8 * sizeof(T) - 1;
        for (Index base = begin; base < end; base += 64) {
            Word word = 0;
            if (end - base >= 64)
                for (int k = 0; k < 64; ++k) word |= static_cast<Word>(x[base + k] >> top) << k;
            else
                for (int k = 0; k < end - base; ++k) word |= static_cast<Word>(x[base + k] >> top) << k;
            out[base / 64] = word;
        }
    }
};

// Positions whose index has bit `low` set and bit `high` clear.
constexpr Word swap_mask(int low, int high) {
    Word mask = 0;
    for (int i = 0; i < 64; ++i)
        if ((i >> low & 1) && !(i >> high & 1)) mask |= Word(1) << i;
    return mask;
}

// Exchange two bits of every bit's index.
template <int low, int high>
TRADEOFF_INLINE Word swap_index_bits(Word x) {
    constexpr int distance = (1 << high) - (1 << low);
    constexpr Word mask = swap_mask(low, high);
    const Word t = (x ^ (x >> distance)) & mask;
    return x ^ t ^ (t << distance);
}

// Gather equal residues of the bit index modulo `radix`: index bits rotate right by log2(radix).
template <int radix>
TRADEOFF_INLINE Word gather_residues(Word x) {
    if (radix == 4)
        return swap_index_bits<3, 5>(swap_index_bits<1, 3>(swap_index_bits<2, 4>(swap_index_bits<0, 2>(x))));
    return swap_index_bits<4, 5>(
        swap_index_bits<3, 4>(swap_index_bits<2, 3>(swap_index_bits<1, 2>(swap_index_bits<0, 1>(x)))));
}

template <int radix>
struct Piece;
template <>
struct Piece<4> {
    using type = uint16_t;
};
template <>
struct Piece<2> {
    using type = uint32_t;
};

// The residues of radix * count words: `radix` rows of count <= kBlock words.
template <int radix>
TRADEOFF_INLINE void gather(const Word *__restrict stream, Index count, Word (*__restrict rows)[kBlock]) {
    using Part = typename Piece<radix>::type;
    alignas(64) Word gathered[radix * kBlock];
    alignas(64) Part parts[radix][radix * kBlock];
    for (Index i = 0; i < radix * count; ++i) gathered[i] = gather_residues<radix>(stream[i]);
    for (int residue = 0; residue < radix; ++residue) {
        for (Index i = 0; i < radix * count; ++i)
            parts[residue][i] = static_cast<Part>(gathered[i] >> (64 / radix * residue));
        std::memcpy(rows[residue], parts[residue], sizeof(Word) * static_cast<size_t>(count));
    }
}

template <int radix, bool last>
struct Mask {
    const Word *g, *p, *masks;
    Word *masked, *linear;
    Index m;

    TRADEOFF_INLINE void row(int index, const Word *__restrict values, Index at, Index count) const {
        const Word *__restrict mask = masks + index * m + at;
        Word *__restrict out = masked + index * m + at;
        for (Index j = 0; j < count; ++j) out[j] = mask[j] ^ values[j];
    }

    TRADEOFF_INLINE void run(Index begin, Index end) const {
        alignas(64) Word rows[radix][kBlock];
        for (Index at = begin; at < end; at += kBlock) {
            const Index count = std::min(kBlock, end - at);
            gather<radix>(p + radix * at, count, rows);
            for (int leaf = radix - 1; leaf > 0; --leaf) row(radix - 1 - leaf, rows[leaf], at, count);
            if (!last) row(2 * radix - 2, rows[0], at, count);
            gather<radix>(g + radix * at, count, rows);
            for (int leaf = radix - 2; leaf >= 0; --leaf) row(2 * radix - 3 - leaf, rows[leaf], at, count);
            std::memcpy(linear + at, rows[radix - 1], sizeof(Word) * static_cast<size_t>(count));
        }
    }
};

// A block of words that stays in the cache.
struct alignas(64) Block {
    Word words[kBlock];
    TRADEOFF_INLINE Word &operator[](Index j) { return words[j]; }
    TRADEOFF_INLINE Word operator[](Index j) const { return words[j]; }
};

// The kernels below go row by row within blocks of columns: some forty streams that are apart by a power of two would
// evict each other from the cache.
template <int radix, bool last>
struct Evaluate {
    const Word *opened, *linear, *masks, *products;
    Word *g, *p;
    Index m;
    Word ones;  // all ones at the party that adds the public product, else zero

    // out = d0 x ^ d1 y ^ both z ^ k for rows x, y, z, k: a product of three inputs but for what its third one selects.
    static TRADEOFF_INLINE void two_opened(const Block &d0, const Block &d1, const Block &both, const Word *__restrict x,
                                           const Word *__restrict y, const Word *__restrict z,
                                           const Word *__restrict k, Index count, Block &out) {
        for (Index j = 0; j < count; ++j) out[j] = k[j] ^ (d0[j] & x[j]) ^ (d1[j] & y[j]) ^ (both[j] & z[j]);
    }

    // out ^= the share of p3 p2 p1 z, from that of p3 p2 p1 and the rows of the products of masks.
    TRADEOFF_INLINE void add_four(int z, const int (&rows)[7], Index at, Index count, const Block (&d)[7],
                                  const Block &d01, const Block &p321, Block &out) const {
        const auto row = [&](int i) TRADEOFF_LAMBDA_INLINE { return products + rows[i] * m + at; };
        const Word *__restrict p3z = row(0), *__restrict p2z = row(1), *__restrict p1z = row(2);
        const Word *__restrict mask = masks + z * m + at;
        for (Index j = 0; j < count; ++j)
            out[j] ^= (d[z][j] & p321[j]) ^ (d01[j] & (p1z[j] ^ (d[2][j] & mask[j]))) ^
                      (d[2][j] & ((d[0][j] & p2z[j]) ^ (d[1][j] & p3z[j])));
        const Word *__restrict p32z = row(3), *__restrict p31z = row(4), *__restrict p21z = row(5);
        const Word *__restrict p321z = row(6);
        for (Index j = 0; j < count; ++j)
            out[j] ^= p321z[j] ^ (d[0][j] & p21z[j]) ^ (d[1][j] & p31z[j]) ^ (d[2][j] & p32z[j]);
    }

    TRADEOFF_INLINE void run(Index begin, Index end) const {
        Block d[7], seen, result;
        for (Index at = begin; at < end; at += kBlock) {
            const Index count = std::min(kBlock, end - at);
            const auto mask = [&](int i) TRADEOFF_LAMBDA_INLINE { return masks + i * m + at; };
            const auto product = [&](int i) TRADEOFF_LAMBDA_INLINE { return products + i * m + at; };
            for (int i = 0; i < inputs_of(radix, last); ++i)
                std::memcpy(d[i].words, opened + i * m + at, sizeof(Word) * static_cast<size_t>(count));
            // The share of input 0 times an opened one: its mask, and its opened value at one party.
            for (Index j = 0; j < count; ++j) seen[j] = mask(0)[j] ^ (d[0][j] & ones);
            const auto two = [&](int z, int row, const Word *start, Word *out) TRADEOFF_LAMBDA_INLINE {
                const Word *__restrict k = product(row), *__restrict a = mask(z);
                for (Index j = 0; j < count; ++j)
                    out[j] = (start ? start[j] : 0) ^ k[j] ^ (d[0][j] & a[j]) ^ (d[z][j] & seen[j]);
            };
            if (radix == 2) {
                two(1, 0, linear + at, g + at);
                if (!last) two(2, 1, nullptr, p + at);
                continue;
            }
            Block d01, p32, p321;
            for (Index j = 0; j < count; ++j) d01[j] = d[0][j] & d[1][j];
            two(1, 1, nullptr, p32.words);
            two_opened(d[0], d[1], d01, product(7), product(5), mask(2), product(10), count, p321);
            for (Index j = 0; j < count; ++j) p321[j] ^= d[2][j] & p32[j];
            two_opened(d[0], d[1], d01, product(3), product(2), mask(4), product(4), count, result);
            for (Index j = 0; j < count; ++j) result[j] ^= (d[4][j] & p32[j]) ^ linear[at + j];
            two(3, 0, result.words, result.words);
            add_four(5, {6, 8, 9, 11, 12, 13, 14}, at, count, d, d01, p321, result);
            std::memcpy(g + at, result.words, sizeof(Word) * static_cast<size_t>(count));
            if (last) continue;
            std::memset(result.words, 0, sizeof result.words);
            add_four(6, {15, 16, 17, 18, 19, 20, 21}, at, count, d, d01, p321, result);
            std::memcpy(p + at, result.words, sizeof(Word) * static_cast<size_t>(count));
        }
    }
};

template <int radix, bool last>
struct Corrections {
    const Word *masks0, *masks1, *products0;
    Word *out;
    Index m;

    TRADEOFF_INLINE void put(int row, Index at, Index count, const Word *__restrict x, const Word *__restrict y) const {
        const Word *__restrict share = products0 + row * m + at;
        Word *__restrict to = out + row * m + at;
        for (Index j = 0; j < count; ++j) to[j] = share[j] ^ (x[j] & y[j]);
    }

    // The products of z with the inputs 0, 1, 2 and with their products 01, 02, 12, 012, in these rows.
    TRADEOFF_INLINE void with(const Word *z, const int (&rows)[7], Index at, Index count,
                              const Word (*a)[kBlock], const Word (*pairs)[kBlock]) const {
        for (int i = 0; i < 3; ++i) put(rows[i], at, count, a[i], z);
        for (int i = 0; i < 4; ++i) put(rows[3 + i], at, count, pairs[i], z);
    }

    TRADEOFF_INLINE void run(Index begin, Index end) const {
        alignas(64) Word a[7][kBlock], pairs[4][kBlock];  // masks; and the products 01, 02, 12, 012 of them
        for (Index at = begin; at < end; at += kBlock) {
            const Index count = std::min(kBlock, end - at);
            for (int i = 0; i < inputs_of(radix, last); ++i) {
                const Word *__restrict x = masks0 + i * m + at, *__restrict y = masks1 + i * m + at;
                for (Index j = 0; j < count; ++j) a[i][j] = x[j] ^ y[j];
            }
            if (radix == 2) {
                put(0, at, count, a[0], a[1]);
                if (!last) put(1, at, count, a[0], a[2]);
                continue;
            }
            for (Index j = 0; j < count; ++j) {
                pairs[0][j] = a[0][j] & a[1][j];
                pairs[1][j] = a[0][j] & a[2][j];
                pairs[2][j] = a[1][j] & a[2][j];
                pairs[3][j] = pairs[0][j] & a[2][j];
            }
            put(0, at, count, a[0], a[3]);
            put(1, at, count, a[0], a[1]);
            put(2, at, count, a[0], a[4]);
            put(3, at, count, a[1], a[4]);
            put(4, at, count, pairs[0], a[4]);
            put(5, at, count, a[0], a[2]);
            put(7, at, count, a[1], a[2]);
            put(10, at, count, pairs[0], a[2]);
            with(a[5], {6, 8, 9, 11, 12, 13, 14}, at, count, a, pairs);
            if (!last) with(a[6], {15, 16, 17, 18, 19, 20, 21}, at, count, a, pairs);
        }
    }
};

using Words = nb::ndarray<const Word, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using OutWords = nb::ndarray<Word, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Rows = nb::ndarray<const Word, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using OutRows = nb::ndarray<Word, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

template <class Array>
void require_size(const Array &array, Index size, const char *name) {
    if (Index(array.size()) != size) throw std::invalid_argument(std::string(name) + " has the wrong size");
}

void require_radix(int radix) {
    require(radix == 2 || radix == 4, "the radix is 2 or 4");
}

// Call run<radix, last>() for run-time values.
template <class Run>
void with_node(int radix, bool last, const Run &run) {
    using std::integral_constant;
    if (radix == 4)
        last ? run(integral_constant<int, 4>(), std::true_type()) : run(integral_constant<int, 4>(), std::false_type());
    else
        last ? run(integral_constant<int, 2>(), std::true_type()) : run(integral_constant<int, 2>(), std::false_type());
}

void bits_leaves(Words c, Words r, Word top, int party, OutWords g, OutWords p, Index threads) {
    const Index count = Index(c.size());
    require_size(r, count, "r");
    require_size(g, count, "g");
    require_size(p, count, "p");
    const Leaves kernel{c.data(), r.data(), g.data(), p.data(), top, party == 0};
    nb::gil_scoped_release release;
    launch(kernel, count, 8, kGrain, threads);
}

template <class T>
void bits_top(nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu> x, OutWords out, Index threads) {
    const Index count = Index(x.size());
    require_size(out, (count + 63) / 64, "out");
    const TopBits<T> kernel{x.data(), out.data()};
    nb::gil_scoped_release release;
    launch(kernel, count, 64, 4 * kGrain, threads);
}

void bits_mask(int radix, bool last, Words g, Words p, Rows masks, OutRows masked, OutWords linear, Index threads) {
    require_radix(radix);
    const Index m = Index(linear.size());
    require_size(g, radix * m, "g");
    require_size(p, radix * m, "p");
    require_size(masks, inputs_of(radix, last) * m, "masks");
    require_size(masked, inputs_of(radix, last) * m, "masked");
    nb::gil_scoped_release release;
    with_node(radix, last, [&](auto r, auto l) {
        const Mask<r(), l()> kernel{g.data(), p.data(), masks.data(), masked.data(), linear.data(), m};
        launch(kernel, m, kBlock, kGrain / 8, threads);
    });
}

void bits_evaluate(int radix, bool last, Rows opened, Words linear, Rows masks, Rows products, int party, OutWords g,
                   std::optional<OutWords> p, Index threads) {
    require_radix(radix);
    const Index m = Index(linear.size());
    require_size(opened, inputs_of(radix, last) * m, "opened");
    require_size(masks, inputs_of(radix, last) * m, "masks");
    require_size(products, products_of(radix, last) * m, "products");
    require_size(g, m, "g");
    if (p) require_size(*p, m, "p");
    require(last || p, "p is needed except at the last level");
    Word *propagate = p ? p->data() : nullptr;
    nb::gil_scoped_release release;
    with_node(radix, last, [&](auto r, auto l) {
        const Evaluate<r(), l()> kernel{opened.data(), linear.data(), masks.data(), products.data(),
                                        g.data(),      propagate,     m,            party == 0 ? ~Word(0) : Word(0)};
        launch(kernel, m, 8, kGrain / 8, threads);
    });
}

void bits_corrections(int radix, bool last, Rows masks0, Rows masks1, Rows products0, OutRows out, Index threads) {
    require_radix(radix);
    const Index m = Index(products0.shape(1));
    require_size(masks0, inputs_of(radix, last) * m, "masks0");
    require_size(masks1, inputs_of(radix, last) * m, "masks1");
    require_size(products0, products_of(radix, last) * m, "products0");
    require_size(out, products_of(radix, last) * m, "out");
    nb::gil_scoped_release release;
    with_node(radix, last, [&](auto r, auto l) {
        const Corrections<r(), l()> kernel{masks0.data(), masks1.data(), products0.data(), out.data(), m};
        launch(kernel, m, 8, kGrain / 8, threads);
    });
}

}  // namespace
}  // namespace tradeoff

void register_bits(nanobind::module_ &m) {
    using namespace tradeoff;
    m.def("bits_leaves", &bits_leaves, nb::arg("c").noconvert(), nb::arg("r").noconvert(), nb::arg("top"),
          nb::arg("party"), nb::arg("g").noconvert(), nb::arg("p").noconvert(), nb::arg("threads"));
    m.def("bits_top", &bits_top<uint64_t>, nb::arg("x").noconvert(), nb::arg("out").noconvert(), nb::arg("threads"));
    m.def("bits_top", &bits_top<uint32_t>, nb::arg("x").noconvert(), nb::arg("out").noconvert(), nb::arg("threads"));
    m.def("bits_mask", &bits_mask, nb::arg("radix"), nb::arg("last"), nb::arg("g").noconvert(),
          nb::arg("p").noconvert(), nb::arg("masks").noconvert(), nb::arg("masked").noconvert(),
          nb::arg("linear").noconvert(), nb::arg("threads"));
    m.def("bits_evaluate", &bits_evaluate, nb::arg("radix"), nb::arg("last"), nb::arg("opened").noconvert(),
          nb::arg("linear").noconvert(), nb::arg("masks").noconvert(), nb::arg("products").noconvert(),
          nb::arg("party"), nb::arg("g").noconvert(), nb::arg("p").noconvert().none(), nb::arg("threads"));
    m.def("bits_corrections", &bits_corrections, nb::arg("radix"), nb::arg("last"), nb::arg("masks0").noconvert(),
          nb::arg("masks1").noconvert(), nb::arg("products0").noconvert(), nb::arg("out").noconvert(),
          nb::arg("threads"));
}
