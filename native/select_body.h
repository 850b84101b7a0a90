// The k largest of a row, for float32. Included by for_each_isa.h.
//
// A threshold with exactly k keys above it is looked for: first where a normal distribution of the row's mean and
// deviation would have it, then by Newton steps on that distribution within the bracket known so far, at the end from
// key to key. What is selected does not depend on the way there.

// Keys of a row, padded with kNoKey to whole vectors, and its moments: sum and sum of squares. Returns whether a
// value is NaN.
TRADEOFF_TARGET inline bool keys_of(const float *__restrict x, Index width, Index padded, int32_t *__restrict keys,
                                    float *moments) {
    int32_t missing = 0;
    float sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum, squares) reduction(| : missing)
    for (Index c = 0; c < width; ++c) {
        const float value = x[c] + 0.0f;  // -0 becomes 0
        int32_t bits;
        __builtin_memcpy(&bits, &value, sizeof bits);
        const int32_t is_nan = (bits & INT32_MAX) > kInfinity ? -1 : 0;
        keys[c] = is_nan ? kNanKey : ordered(bits);
        missing |= is_nan;
        sum += value;
        squares += value * value;
    }
    for (Index c = width; c < padded; ++c) keys[c] = kNoKey;
    moments[0] = sum;
    moments[1] = squares;
    return missing != 0;
}

TRADEOFF_TARGET inline Index count_above(const int32_t *__restrict keys, Index padded, int32_t threshold) {
    int32_t count = 0;
#pragma omp simd reduction(+ : count)
    for (Index c = 0; c < padded; ++c) count += keys[c] > threshold;
    return count;
}

// The least key above the threshold.
TRADEOFF_TARGET inline int32_t least_above(const int32_t *__restrict keys, Index padded, int32_t threshold) {
    int32_t least = INT32_MAX;
#pragma omp simd reduction(min : least)
    for (Index c = 0; c < padded; ++c) {
        const int32_t key = keys[c] > threshold ? keys[c] : INT32_MAX;
        least = key < least ? key : least;
    }
    return least;
}

// The greatest key not above the threshold.
TRADEOFF_TARGET inline int32_t greatest_upto(const int32_t *__restrict keys, Index padded, int32_t threshold) {
    int32_t greatest = INT32_MIN;
#pragma omp simd reduction(max : greatest)
    for (Index c = 0; c < padded; ++c) {
        const int32_t key = keys[c] <= threshold ? keys[c] : INT32_MIN;
        greatest = key > greatest ? key : greatest;
    }
    return greatest;
}

// The greatest threshold that keeps at most k keys above it and, with the keys equal to it, at least k.
TRADEOFF_TARGET inline Threshold find_threshold(const int32_t *keys, Index width, Index padded, Index k,
                                                const float *moments, Normal normal) {
    constexpr Index kNear = 2;  // keys too many or too few from which the search goes from key to key
    constexpr int kSteps = 6;   // Newton steps before plain bisection
    if (k == width) return {kNoKey, width};
    // Above `low` are more than k keys, above `high` at most k.
    int64_t low = kNoKey, high = kNanKey;
    Index above_low = width, above_high = 0;
    const float mean = moments[0] / float(width);
    const float variance = moments[1] / float(width) - mean * mean;
    const bool spread_out = variance > 0 && variance < 1e30f;
    const float deviation = spread_out ? __builtin_sqrtf(variance) : 0.0f;
    float guess = mean + normal.quantile * deviation;
    for (int step = 0; high - low > 1; ++step) {
        int64_t at = low + (high - low) / 2;
        if (spread_out && step < kSteps) {
            const int64_t key = key_of(guess);
            if (key > low && key < high) at = key;
        }
        const Index above = count_above(keys, padded, int32_t(at));
        if (above == k) return {int32_t(at), k};
        guess += deviation * float(above - k) / (normal.density * float(width));
        if (above > k) {
            low = at;
            above_low = above;
        } else {
            high = at;
            above_high = above;
        }
        if (above_low - k <= kNear) {  // drop the least keys, one value after the other
            int32_t key;
            do {
                key = least_above(keys, padded, int32_t(low));
                low = key;
                above_low = count_above(keys, padded, key);
            } while (above_low > k);
            return {key, above_low};
        }
        if (k - above_high <= kNear) {  // take in the greatest keys left out, while all equal ones fit
            for (;;) {
                const int32_t key = greatest_upto(keys, padded, int32_t(high));
                const Index with_key = count_above(keys, padded, key - 1);
                if (with_key > k) return {key, above_high};
                if (with_key == k) return {key - 1, k};
                high = key - 1;
                above_high = with_key;
            }
        }
    }
    return {int32_t(high), above_high};
}

// Select in rows [begin, end); returns the first row with NaN, or -1.
template <class Place>
TRADEOFF_TARGET Index select_rows(const float *x, Index width, Index k, Normal normal, float *values, Place *index,
                                  Index begin, Index end) {
    const Index padded = (width + 15) / 16 * 16;
    std::vector<int32_t> keys(padded);
    Index first_nan = -1;
    for (Index row = begin; row < end; ++row) {
        const float *from = x + row * width;
        float moments[2];
        if (keys_of(from, width, padded, keys.data(), moments) && first_nan < 0) first_nan = row;
        const Threshold threshold = find_threshold(keys.data(), width, padded, k, moments, normal);
        keep(from, keys.data(), width, k, threshold, values + row * k, index + row * k);
    }
    return first_nan;
}
