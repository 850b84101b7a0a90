// Products of a few rows with a matrix, attention of single queries, and gates. Included by for_each_isa.h.
//
// Every number is a sum in one fixed order: lane by lane along a row, then across the lanes. How many rows there are,
// how they are tiled, and which thread takes them never changes a bit of a result.

// kOutputs rows of W times kInputs rows of X. While the tile computes, the rows at `next` come from memory if kFetch.
template <int kOutputs, int kInputs, bool kFetch>
TRADEOFF_TARGET TRADEOFF_INLINE void tile(const Rows &of, Index output, Index input, const float *next) {
    const Index width = of.width;
    const float *w = of.weight + output * width, *x = of.x + input * width;
    Vec sums[kOutputs][kInputs];
    for (int o = 0; o < kOutputs; ++o)
        for (int i = 0; i < kInputs; ++i) sums[o][i] = zero();
    const auto multiply = [&](Index c, auto... limit) TRADEOFF_TARGET TRADEOFF_LAMBDA_INLINE {
        Vec weights[kOutputs];
        for (int o = 0; o < kOutputs; ++o) weights[o] = load(w + o * width + c, limit...);
        for (int i = 0; i < kInputs; ++i) {
            const Vec values = load(x + i * width + c, limit...);
            for (int o = 0; o < kOutputs; ++o) sums[o][i] = fma(weights[o], values, sums[o][i]);
        }
    };
    Index c = 0;
    for (; c + kLine <= width; c += kLine) {
        if (kFetch)
            for (int o = 0; o < kOutputs; ++o) prefetch(next + o * width + c);
        for (int step = 0; step < kLine; step += kWidth) multiply(c + step);
    }
    for (; c + kWidth <= width; c += kWidth) multiply(c);
    if (c < width) multiply(c, part(int(width - c)));
    for (int i = 0; i < kInputs; ++i)
        for (int o = 0; o < kOutputs; ++o) of.y[(input + i) * of.outputs + output + o] = sum(sums[o][i]);
}

// The rows [begin, end) of W, kOutputs at a time, times kInputs rows of X; `ahead` rows before their use they are
// fetched, up to row `stop`.
template <int kOutputs, int kInputs, bool kFetch>
TRADEOFF_TARGET void tiles(const Rows &of, Index begin, Index end, Index stop, Index ahead, Index input) {
    Index output = begin;
    for (; output + kOutputs <= end; output += kOutputs) {
        const Index next = output + ahead + kOutputs <= stop ? output + ahead : output;
        tile<kOutputs, kInputs, kFetch>(of, output, input, of.weight + next * of.width);
    }
    for (; output < end; ++output) tile<1, kInputs, false>(of, output, input, nullptr);
}

template <bool kFetch>
TRADEOFF_TARGET TRADEOFF_INLINE void pass(const Rows &of, Index begin, Index end, Index stop, Index ahead,
                                          Index input, Index inputs) {
    switch (inputs) {
        case 1: return tiles<2, 1, kFetch>(of, begin, end, stop, ahead, input);
        case 2: return tiles<2, 2, kFetch>(of, begin, end, stop, ahead, input);
        case 3: return tiles<2, 3, kFetch>(of, begin, end, stop, ahead, input);
        case 4: return tiles<2, 4, kFetch>(of, begin, end, stop, ahead, input);
        case 5: return tiles<2, 5, kFetch>(of, begin, end, stop, ahead, input);
        default: return tiles<2, 6, kFetch>(of, begin, end, stop, ahead, input);
    }
}

// y[:, begin:end] = x W[begin:end]^T, the rows of X in passes of up to six.
TRADEOFF_TARGET inline void linear_rows(const Rows &of, Index begin, Index end) {
    if (of.inputs == 1) return tiles<4, 1, true>(of, begin, end, end, 4, 0);
    const Index passes = (of.inputs + kInputsAtOnce - 1) / kInputsAtOnce;
    const Index block = passes <= kPassesUnblocked ? 2 : std::max<Index>(2, kBlockFloats / of.width / 2 * 2);
    for (Index first = begin; first < end; first += block) {
        const Index last = std::min(end, first + block);
        for (Index p = 0; p < passes; ++p) {
            const Range rows = part_of(of.inputs, 1, p, passes);
            if (p + 1 < passes)
                pass<false>(of, first, last, end, 0, rows.begin, rows.end - rows.begin);
            else
                pass<true>(of, first, last, end, block, rows.begin, rows.end - rows.begin);
        }
    }
}

// exp(x) in place for one block of lanes: to 2 ulp, for arguments up to 88; below -87 it stays at exp(-87).
TRADEOFF_TARGET TRADEOFF_INLINE void exponential(float *x) {
    constexpr float kRound = 12582912.0f;  // 1.5 2^23: adding it rounds to whole numbers
    for (int i = 0; i < kLine; ++i) {
        const float given = x[i];
        const float raised = given < -87.0f ? -87.0f : given;
        const float v = raised > 88.0f ? 88.0f : raised;
        const float shifted = v * 1.44269504f + kRound;
        const float whole = shifted - kRound;
        const float r = (v - whole * 0.693359375f) + whole * 2.12194440e-4f;
        float p = 1.9875691500e-4f;
        p = p * r + 1.3981999507e-3f;
        p = p * r + 8.3334519073e-3f;
        p = p * r + 4.1665795894e-2f;
        p = p * r + 1.6666665459e-1f;
        p = p * r + 5.0000001201e-1f;
        p = p * r * r + r + 1.0f;
        int32_t bits;
        __builtin_memcpy(&bits, &shifted, sizeof bits);
        bits = int32_t((uint32_t(bits) + 127u) << 23);  // 2^whole
        float power;
        __builtin_memcpy(&power, &bits, sizeof power);
        x[i] = p * power;
    }
}

// out = gate / (1 + exp(-gate)) * up for one block of lanes
TRADEOFF_TARGET TRADEOFF_INLINE void swiglu_line(const float *gate, const float *up, float *out) {
    alignas(64) float values[kLine];
    for (int i = 0; i < kLine; ++i) values[i] = -gate[i];
    exponential(values);
    for (int i = 0; i < kLine; ++i) out[i] = gate[i] / (1.0f + values[i]) * up[i];
}

TRADEOFF_TARGET inline void swiglu_row(const float *gate, const float *up, float *out, Index width) {
    Index c = 0;
    for (; c + kLine <= width; c += kLine) swiglu_line(gate + c, up + c, out + c);
    if (c == width) return;
    alignas(64) float gates[kLine] = {}, ups[kLine] = {}, outs[kLine];
    std::copy(gate + c, gate + width, gates);
    std::copy(up + c, up + width, ups);
    swiglu_line(gates, ups, outs);
    std::copy(outs, outs + (width - c), out + c);
}

// out = x / sqrt(mean x^2 + eps) times the scale and, if given, the gain
TRADEOFF_TARGET inline void norm_row(const float *x, const float *gain, float *out, Index width, float eps,
                                     float scale) {
    Vec sums = zero();
    Index c = 0;
    for (; c + kWidth <= width; c += kWidth) {
        const Vec values = load(x + c);
        sums = fma(values, values, sums);
    }
    if (c < width) {
        const Vec values = load(x + c, part(int(width - c)));
        sums = fma(values, values, sums);
    }
    const float factor = scale / std::sqrt(sum(sums) / float(width) + eps);
    if (gain)
        for (c = 0; c < width; ++c) out[c] = x[c] * factor * gain[c];
    else
        for (c = 0; c < width; ++c) out[c] = x[c] * factor;
}

// Turns element c with element c + half, for all of the first half.
TRADEOFF_TARGET inline void rotate_row(const float *x, const float *cosine, const float *sine, float *out,
                                       Index half) {
    for (Index c = 0; c < half; ++c) {
        const float first = x[c], second = x[c + half];
        out[c] = first * cosine[c] - second * sine[c];
        out[c + half] = second * cosine[c] + first * sine[c];
    }
}

// Inner products of a query with the keys of kKeys slots, part after part, times the scale.
template <int kKeys>
TRADEOFF_TARGET TRADEOFF_INLINE void score(const Query &query, const Index *slots, float *scores) {
    Vec sums[kKeys];
    for (int k = 0; k < kKeys; ++k) sums[k] = zero();
    for (const KeyPart &keys : query.parts) {
        if (!keys.width) continue;
        const auto multiply = [&](Index c, auto... limit) TRADEOFF_TARGET TRADEOFF_LAMBDA_INLINE {
            const Vec q = load(keys.query + c, limit...);
            for (int k = 0; k < kKeys; ++k)
                sums[k] = fma(q, load(keys.keys + slots[k] * keys.stride + c, limit...), sums[k]);
        };
        Index c = 0;
        for (; c + kWidth <= keys.width; c += kWidth) multiply(c);
        if (c < keys.width) multiply(c, part(int(keys.width - c)));
    }
    for (int k = 0; k < kKeys; ++k) scores[k] = sum(sums[k]) * query.scale;
}

// kVectors vectors of columns from `c` on of the weighted sum of values, slot by slot; the last vector may be a part.
template <int kVectors>
TRADEOFF_TARGET TRADEOFF_INLINE void weigh(const Query &query, const Index *slots, const float *weights, float inverse,
                                           Index c) {
    Vec sums[kVectors];
    for (int v = 0; v < kVectors; ++v) sums[v] = zero();
    const Index last = c + (kVectors - 1) * kWidth;
    const bool whole = last + kWidth <= query.value_width;
    const Part rest = part(int(whole ? kWidth : query.value_width - last));
    for (Index t = 0; t < query.length; ++t) {
        const float *values = query.values + slots[t] * query.value_stride;
        const Vec weight = spread(weights[t]);
        for (int v = 0; v < kVectors - 1; ++v)
            sums[v] = fma(weight, load(values + c + v * kWidth), sums[v]);
        const Vec tail = whole ? load(values + last) : load(values + last, rest);
        sums[kVectors - 1] = fma(weight, tail, sums[kVectors - 1]);
    }
    const Vec factor = spread(inverse);
    for (int v = 0; v < kVectors - 1; ++v) store(query.out + c + v * kWidth, fma(sums[v], factor, zero()));
    const Vec tail = fma(sums[kVectors - 1], factor, zero());
    if (whole)
        store(query.out + last, tail);
    else
        store(query.out + last, tail, rest);
}

// Attention of one query over its own sequence of slots; `scores` has room for it in whole lines.
TRADEOFF_TARGET inline void attend(const Query &query, const Index *slots, float *scores) {
    Index t = 0;
    for (; t + 4 <= query.length; t += 4) score<4>(query, slots + t, scores + t);
    for (; t < query.length; ++t) score<1>(query, slots + t, scores + t);
    const Index whole = query.length / kLine * kLine;
    alignas(64) float most[kLine];
    for (int i = 0; i < kLine; ++i) most[i] = scores[0];
    for (t = 0; t < whole; t += kLine)
        for (int i = 0; i < kLine; ++i) most[i] = scores[t + i] > most[i] ? scores[t + i] : most[i];
    float largest = scores[0];
    for (int i = 0; i < kLine; ++i) largest = most[i] > largest ? most[i] : largest;
    for (t = whole; t < query.length; ++t) largest = scores[t] > largest ? scores[t] : largest;
    alignas(64) float totals[kLine] = {};
    for (t = 0; t < whole; t += kLine) {
        for (int i = 0; i < kLine; ++i) scores[t + i] -= largest;
        exponential(scores + t);
        for (int i = 0; i < kLine; ++i) totals[i] += scores[t + i];
    }
    if (whole < query.length) {
        const int count = int(query.length - whole);
        for (int i = 0; i < kLine; ++i) scores[whole + i] = i < count ? scores[whole + i] - largest : 0.0f;
        exponential(scores + whole);
        for (int i = 0; i < count; ++i) totals[i] += scores[whole + i];
    }
    float total = 0;
    for (int i = 0; i < kLine; ++i) total += totals[i];
    const float inverse = 1.0f / total;
    Index c = 0;
    for (; c + 8 * kWidth <= query.value_width; c += 8 * kWidth) weigh<8>(query, slots, scores, inverse, c);
    for (; c + 2 * kWidth <= query.value_width; c += 2 * kWidth) weigh<2>(query, slots, scores, inverse, c);
    for (; c < query.value_width; c += kWidth) weigh<1>(query, slots, scores, inverse, c);
}
