// The rows of A X for float32, in tiles of columns that fit registers. Included by for_each_isa.h.

struct RowsOf {
    const Index *indptr;
    const int32_t *indices;
    const float *values;  // null: all ones
    const float *x;
    float *y;
    const int32_t *order;  // the row of Y that each row goes to; null: its own
    Index width;           // columns of X and Y
    Index nnz;             // of A: what prefetching may look ahead to
    bool bypass;           // write Y past the caches
    bool row_by_row;       // all columns of a row before the next row, not a tile of columns of all rows
};

// Fetch the columns of the tile of the row of X that is needed `kAhead` entries later.
template <int kVectors>
TRADEOFF_TARGET TRADEOFF_INLINE void fetch_tile(const float *row) {
    constexpr int kLines = (kVectors * kWidth * int(sizeof(float)) + 63) / 64;
    for (int line = 0; line < kLines; ++line) prefetch(row + 16 * line);
}

// Add the tile of one entry's row of X, times its weight, to the sums.
template <int kVectors, bool kPartial>
TRADEOFF_TARGET TRADEOFF_INLINE void add_entry(const RowsOf &a, const float *x, Index entry, Part last, Vec *sums) {
    const float *from = x + Index(a.indices[entry]) * a.width;
    const Vec weight = spread(a.values ? a.values[entry] : 1.0f);
    for (int v = 0; v < kVectors; ++v) {
        const bool partial = kPartial && v == kVectors - 1;
        const Vec row = partial ? load(from + v * kWidth, last) : load(from + v * kWidth);
        sums[v] = fma(weight, row, sums[v]);
    }
}

// Y[begin:end, column:column + tile], where a tile is kVectors vectors, the last one of which may be a part.
// Sums of several entries at once, where the tile is narrow, keep the additions from waiting for each other.
template <int kVectors, bool kPartial>
TRADEOFF_TARGET void tile_of_rows(const RowsOf &a, Index begin, Index end, Index column, int rest) {
    constexpr int kSums = kVectors >= 4 ? 1 : kVectors >= 2 ? 2 : 4;
    constexpr Index kAhead = 8;
    const Part last = part(rest);
    const float *x = a.x + column;
    const Index limit = a.nnz - 1;
    Index e = a.indptr[begin];
    for (Index row = begin; row < end; ++row) {
        const Index stop = a.indptr[row + 1];
        Vec sums[kSums][kVectors];
        for (int s = 0; s < kSums; ++s)
            for (int v = 0; v < kVectors; ++v) sums[s][v] = zero();
        for (; e + kSums <= stop; e += kSums)
            for (int s = 0; s < kSums; ++s) {
                fetch_tile<kVectors>(x + Index(a.indices[std::min(e + s + kAhead, limit)]) * a.width);
                add_entry<kVectors, kPartial>(a, x, e + s, last, sums[s]);
            }
        for (; e < stop; ++e) {
            fetch_tile<kVectors>(x + Index(a.indices[std::min(e + kAhead, limit)]) * a.width);
            add_entry<kVectors, kPartial>(a, x, e, last, sums[0]);
        }
        for (int half = kSums / 2; half; half /= 2)
            for (int s = 0; s < half; ++s)
                for (int v = 0; v < kVectors; ++v) sums[s][v] = add(sums[s][v], sums[s + half][v]);
        float *to = a.y + (a.order ? Index(a.order[row]) : row) * a.width + column;
        for (int v = 0; v < kVectors; ++v) {
            if (kPartial && v == kVectors - 1)
                store(to + v * kWidth, sums[0][v], last);
            else if (a.bypass)
                stream(to + v * kWidth, sums[0][v]);
            else
                store(to + v * kWidth, sums[0][v]);
        }
    }
}

template <int kVectors>
TRADEOFF_TARGET TRADEOFF_INLINE void tile_of(const RowsOf &a, Index begin, Index end, Index column, int rest) {
    if (rest == kWidth)
        tile_of_rows<kVectors, false>(a, begin, end, column, rest);
    else
        tile_of_rows<kVectors, true>(a, begin, end, column, rest);
}

// All columns of rows [begin, end), tile by tile.
TRADEOFF_TARGET inline void tiles_of_rows(const RowsOf &a, Index begin, Index end) {
    for (Index column = 0; column < a.width; column += kRegisters * kWidth) {
        const Index width = std::min<Index>(a.width - column, kRegisters * kWidth);
        const int vectors = int((width + kWidth - 1) / kWidth), rest = int(width - (vectors - 1) * kWidth);
        switch (vectors) {
            case 1: tile_of<1>(a, begin, end, column, rest); break;
            case 2: tile_of<2>(a, begin, end, column, rest); break;
            case 3: tile_of<3>(a, begin, end, column, rest); break;
            case 4: tile_of<4>(a, begin, end, column, rest); break;
            case 5: tile_of<5>(a, begin, end, column, rest); break;
            case 6: tile_of<6>(a, begin, end, column, rest); break;
            case 7: tile_of<7>(a, begin, end, column, rest); break;
            case 8: tile_of<8>(a, begin, end, column, rest); break;
            default:
                if constexpr (kRegisters > 8) {
                    // A tile of 9 to 15 vectors would be rare: two of 8 at most do the same.
                    if (vectors == kRegisters) {
                        tile_of<kRegisters>(a, begin, end, column, rest);
                    } else {
                        tile_of<8>(a, begin, end, column, kWidth);
                        column -= (kRegisters - 8) * kWidth;  // the rest is the next tile
                    }
                }
        }
    }
}

// Rows [begin, end).
TRADEOFF_TARGET inline void spmm_rows(const RowsOf &a, Index begin, Index end) {
    const Index step = a.row_by_row ? 1 : end - begin;
    for (; begin < end; begin += step) tiles_of_rows(a, begin, begin + step);
    if (a.bypass) fence();
}

// The inner product of two rows.
TRADEOFF_TARGET inline float dot(const float *a, const float *b, Index width) {
    Vec sums[2] = {zero(), zero()};
    Index c = 0;
    for (; c + 2 * kWidth <= width; c += 2 * kWidth)
        for (int s = 0; s < 2; ++s) sums[s] = fma(load(a + c + s * kWidth), load(b + c + s * kWidth), sums[s]);
    for (; c < width; c += kWidth) {
        const Part rest = part(int(std::min<Index>(kWidth, width - c)));
        sums[0] = fma(load(a + c, rest), load(b + c, rest), sums[0]);
    }
    return sum(add(sums[0], sums[1]));
}
