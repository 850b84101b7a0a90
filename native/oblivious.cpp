// Oblivious transfer extension: the bit transpose of its columns, and the hash of rows of 256 bits.
//
// The layout is that of tradeoff/engines/two_party/ot/extension.py, whose NumPy functions are the oracle.
#include <algorithm>
#include <cstdint>
#include <stdexcept>

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include "arrays.h"
#include "launch.h"
#include "module.h"
#include "require.h"

namespace nb = nanobind;

namespace tradeoff {
namespace {

using Word = uint64_t;

constexpr int kTile = 64;  // words of a bit matrix that is transposed at a time

// Transpose 64x64 bits, bit j of word i to bit i of word j: halves change places, then quarters (H. Warren, Hacker's
// Delight, 2nd edition, section 7-3).
TRADEOFF_INLINE void transpose_tile(Word (&tile)[kTile]) {
    Word mask = 0x00000000FFFFFFFFull;
    for (int step = 32; step; step >>= 1, mask ^= mask << step)
        for (int base = 0; base < kTile; base += 2 * step)
            for (int i = base; i < base + step; ++i) {
                const Word swapped = ((tile[i] >> step) ^ tile[i + step]) & mask;
                tile[i] ^= swapped << step;
                tile[i + step] ^= swapped;
            }
}

struct Transpose {
    const Word *columns;
    Word *rows;
    Index width, words;  // columns, and words of a column

    TRADEOFF_INLINE void run(Index begin, Index end) const {
        Word tile[kTile];
        for (Index word = begin; word < end; ++word)
            for (Index group = 0; group < width / kTile; ++group) {
                for (Index i = 0; i < kTile; ++i) tile[i] = columns[(group * kTile + i) * words + word];
                transpose_tile(tile);
                for (Index i = 0; i < kTile; ++i) rows[(word * kTile + i) * (width / kTile) + group] = tile[i];
            }
    }
};

constexpr uint32_t kRounds[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

constexpr uint32_t kInitial[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                  0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};

TRADEOFF_INLINE uint32_t rotated(uint32_t x, int by) { return (x >> by) | (x << (32 - by)); }

TRADEOFF_INLINE uint32_t swapped_bytes(uint32_t x) {
    return (x << 24) | ((x & 0xFF00u) << 8) | ((x >> 8) & 0xFF00u) | (x >> 24);
}

// 16 bits of SHA-256 (FIPS 180-4) of counter and row, 40 bytes, hence one block. A row is four words, first xored with
// the same four words of `mask`. Rows are hashed kLanes at a time, in step, which compilers vectorize.
struct RowHash {
    static constexpr int kLanes = 8;

    const Word *rows, *mask;
    uint16_t *out;
    Word first;

    TRADEOFF_INLINE void run(Index begin, Index end) const {
        uint32_t w[64][kLanes];
        for (Index at = begin; at < end; at += kLanes) {
            const int lanes = static_cast<int>(std::min<Index>(kLanes, end - at));
            for (int lane = 0; lane < kLanes; ++lane) load(w, lane, at + std::min(lane, lanes - 1));
            for (int t = 16; t < 64; ++t)
                for (int lane = 0; lane < kLanes; ++lane) {
                    const uint32_t a = w[t - 15][lane], b = w[t - 2][lane];
                    w[t][lane] = w[t - 16][lane] + w[t - 7][lane] + (rotated(a, 7) ^ rotated(a, 18) ^ (a >> 3)) +
                                 (rotated(b, 17) ^ rotated(b, 19) ^ (b >> 10));
                }
            uint32_t s[8][kLanes];
            for (int i = 0; i < 8; ++i)
                for (int lane = 0; lane < kLanes; ++lane) s[i][lane] = kInitial[i];
            for (int t = 0; t < 64; t += 8) {  // after eight rounds every word of the state is back in its place
                round<0>(s, w[t], kRounds[t]);
                round<1>(s, w[t + 1], kRounds[t + 1]);
                round<2>(s, w[t + 2], kRounds[t + 2]);
                round<3>(s, w[t + 3], kRounds[t + 3]);
                round<4>(s, w[t + 4], kRounds[t + 4]);
                round<5>(s, w[t + 5], kRounds[t + 5]);
                round<6>(s, w[t + 6], kRounds[t + 6]);
                round<7>(s, w[t + 7], kRounds[t + 7]);
            }
            for (int lane = 0; lane < lanes; ++lane)
                out[at + lane] = static_cast<uint16_t>(swapped_bytes(s[0][lane] + kInitial[0]));
        }
    }

    TRADEOFF_INLINE void load(uint32_t (&w)[64][kLanes], int lane, Index row) const {
        const Word words[5] = {first + static_cast<Word>(row), rows[4 * row] ^ mask[0], rows[4 * row + 1] ^ mask[1],
                               rows[4 * row + 2] ^ mask[2], rows[4 * row + 3] ^ mask[3]};
        for (int i = 0; i < 5; ++i) {
            w[2 * i][lane] = swapped_bytes(static_cast<uint32_t>(words[i]));
            w[2 * i + 1][lane] = swapped_bytes(static_cast<uint32_t>(words[i] >> 32));
        }
        w[10][lane] = 0x80000000u;
        for (int t = 11; t < 15; ++t) w[t][lane] = 0;
        w[15][lane] = 8 * 40;
    }

    // One round in which the state's words a, b, ... stand from `shift` places before the first on: in place of moving
    // all eight, their names move.
    template <int shift>
    static TRADEOFF_INLINE void round(uint32_t (&s)[8][kLanes], const uint32_t (&w)[kLanes], uint32_t k) {
        const auto word = [&](int i) TRADEOFF_LAMBDA_INLINE -> uint32_t * { return s[(i + 8 - shift) % 8]; };
        const uint32_t *a = word(0), *b = word(1), *c = word(2), *e = word(4), *f = word(5), *g = word(6);
        uint32_t *d = word(3), *h = word(7);
        for (int lane = 0; lane < kLanes; ++lane) {
            const uint32_t x = a[lane], y = e[lane];
            const uint32_t one = h[lane] + (rotated(y, 6) ^ rotated(y, 11) ^ rotated(y, 25)) +
                                 (g[lane] ^ (y & (f[lane] ^ g[lane]))) + k + w[lane];
            const uint32_t two =
                (rotated(x, 2) ^ rotated(x, 13) ^ rotated(x, 22)) + ((x & b[lane]) | (c[lane] & (x | b[lane])));
            d[lane] += one;
            h[lane] = one + two;
        }
    }
};

void ot_transpose(Array2<Word> columns, Out2<Word> rows, Index threads) {
    const Index width = Index(columns.shape(0)), words = Index(columns.shape(1));
    require(width % kTile == 0, "a bit matrix has whole words of columns");
    require(Index(rows.shape(0)) == kTile * words && Index(rows.shape(1)) == width / kTile, "rows has the wrong shape");
    const Transpose kernel{columns.data(), rows.data(), width, words};
    nb::gil_scoped_release release;
    launch(kernel, words, 8, 256, threads);
}

void ot_row_hash(Array2<Word> rows, Array1<Word> mask, Word first, Out1<uint16_t> out, Index threads) {
    require(rows.shape(1) == 4 && mask.size() == 4, "rows and mask have four words");
    require(out.size() == rows.shape(0), "out has the wrong size");
    const RowHash kernel{rows.data(), mask.data(), out.data(), first};
    nb::gil_scoped_release release;
    launch(kernel, Index(out.size()), RowHash::kLanes, 4096, threads);
}

}  // namespace
}  // namespace tradeoff

void register_oblivious(nb::module_ &m) {
    using tradeoff::operand;
    m.def("ot_transpose", &tradeoff::ot_transpose, operand("columns"), operand("rows"), nb::arg("threads"),
          "Bit transpose of (width, words) packed columns");
    m.def("ot_row_hash", &tradeoff::ot_row_hash, operand("rows"), operand("mask"), nb::arg("first"), operand("out"),
          nb::arg("threads"), "16 bits of SHA-256 of counter and row");
}
