// The arithmetic of ops.hpp over `Lanes`, included by multiply.hpp.
#pragma once

namespace moe_local {
namespace {

// The sum of all lanes, always in this order.
INLINED float total(F x) {
    float t[16];
    Lanes::store(t, x);
    for (int half = 8; half; half /= 2)
        for (int i = 0; i < half; i++) t[i] += t[i + half];
    return t[0];
}

F rounded(F x) {
    uint16_t part[16];
    Lanes::store_bf16(part, x);
    return Lanes::load_bf16(part);
}

void store_as(F x, Type type, void* to, int at, int end) {
    float part[16];
    if (at + 16 <= end && type == Type::float32) {
        Lanes::store(static_cast<float*>(to) + at, x);
    } else if (at + 16 <= end) {
        Lanes::store_bf16(static_cast<uint16_t*>(to) + at, x);
    } else {
        Lanes::store(part, x);
        for (int i = at; i < end; i++) store_one(part[i - at], type, to, i);
    }
}

void norm_row(const void* x, Type type, const float* weight, int columns, float eps, int rounding, void* out) {
    F sums[2] = {Lanes::set(0), Lanes::set(0)};
    for (int c = 0; c < columns; c += 16) {
        const F part = load_until(x, type, c, columns);
        sums[c / 16 % 2] = Lanes::fma(part, part, sums[c / 16 % 2]);
    }
    float factor = 1 / std::sqrt(total(Lanes::add(sums[0], sums[1])) / float(columns) + eps);
    const bool narrow = type == Type::bfloat16;
    if (narrow && rounding == 2) factor = from_bf16(to_bf16(factor));
    const F by = Lanes::set(factor);
    for (int c = 0; c < columns; c += 16) {
        F y = Lanes::mul(load_until(x, type, c, columns), by);
        if (narrow && rounding == 1) y = rounded(y);
        if (weight) y = Lanes::mul(y, load_until(weight, Type::float32, c, columns));
        store_as(y, type, out, c, columns);
    }
}

// Halves of a row: out = first * cos - second * sin, second * cos + first * sin.
void rotate_halves(const void* x, Type type, const void* cos, const void* sin, Type angles, int half, int second,
                   bool rounds, void* out) {
    const auto* from = static_cast<const uint8_t*>(x) + size_t(half) * size_of(type);
    auto* to = static_cast<uint8_t*>(out) + size_t(half) * size_of(type);
    const auto* cos_b = static_cast<const uint8_t*>(cos) + size_t(second) * size_of(angles);
    const auto* sin_b = static_cast<const uint8_t*>(sin) + size_t(second) * size_of(angles);
    for (int c = 0; c < half; c += 16) {
        const F a = load_until(x, type, c, half), b = load_until(from, type, c, half);
        F aa = Lanes::mul(a, load_until(cos, angles, c, half)), bb = Lanes::mul(b, load_until(cos_b, angles, c, half));
        F ba = Lanes::mul(b, load_until(sin, angles, c, half)), ab = Lanes::mul(a, load_until(sin_b, angles, c, half));
        if (rounds) {
            aa = rounded(aa);
            bb = rounded(bb);
            ba = rounded(ba);
            ab = rounded(ab);
        }
        store_as(Lanes::sub(aa, ba), type, out, c, half);
        store_as(Lanes::add(bb, ab), type, to, c, half);
    }
}

// out[row * out_step] = the dot of x with each of N rows.
template <int N>
INLINED void dots_of(const void* x, Type type, const void* const* rows, Type row_type, int columns, float* out) {
    F sums[N];
    UNROLLED
    for (int n = 0; n < N; n++) sums[n] = Lanes::set(0);
    for (int c = 0; c < columns; c += 16) {
        const F part = load_until(x, type, c, columns);
        UNROLLED
        for (int n = 0; n < N; n++) sums[n] = Lanes::fma(load_until(rows[n], row_type, c, columns), part, sums[n]);
    }
    UNROLLED
    for (int n = 0; n < N; n++) out[n] = total(sums[n]);
}

void dots(const void* x, Type type, const void* matrix, Type row_type, int64_t step, int rows, int columns,
          float* out) {
    const auto* bytes = static_cast<const uint8_t*>(matrix);
    int at = 0;
    for (; at + 4 <= rows; at += 4) {
        const void* four[4];
        for (int n = 0; n < 4; n++) four[n] = bytes + (at + n) * step * size_of(row_type);
        dots_of<4>(x, type, four, row_type, columns, out + at);
    }
    for (; at < rows; at++) {
        const void* one[1] = {bytes + at * step * size_of(row_type)};
        dots_of<1>(x, type, one, row_type, columns, out + at);
    }
}

// e to the power of each number less the greatest, and 0 of what is that small; NaN where any is NaN or infinite.
// Returns the greatest.
float exponentials(float* x, int count) {
    float greatest = -HUGE_VALF;
    bool sound = true;
    for (int i = 0; i < count; i++) {
        greatest = x[i] > greatest ? x[i] : greatest;
        sound &= x[i] < HUGE_VALF;
    }
    if (!sound || !(greatest > -HUGE_VALF)) {
        for (int i = 0; i < count; i++) x[i] = float_of(0x7fc00000);
        return greatest;
    }
    const F most = Lanes::set(greatest);
    for (int c = 0; c < count; c += 16) {
        const F less = Lanes::sub(load_until(x, Type::float32, c, count), most);
        float before[16], after[16];
        Lanes::store(before, less);
        Lanes::store(after, exponential(less));
        for (int i = 0; i < 16 && c + i < count; i++) x[c + i] = before[i] < -87 ? 0 : after[i];
    }
    return greatest;
}

void sigmoids(float* x, int count) {
    for (int c = 0; c < count; c += 16) {
        float after[16];
        Lanes::store(after, sigmoid(load_until(x, Type::float32, c, count)));
        for (int i = 0; i < 16 && c + i < count; i++) x[c + i] = x[c + i] == x[c + i] ? after[i] : x[c + i];
    }
}

// out[c] = the sum over rows of weights[row] * rows[row, c], in this order.
void weighted_rows(const float* weights, const uint16_t* rows, int64_t step, int count, int columns, float* out) {
    int c = 0;
    for (; c + 64 <= columns; c += 64) {
        F sums[4] = {Lanes::set(0), Lanes::set(0), Lanes::set(0), Lanes::set(0)};
        for (int r = 0; r < count; r++) {
            const F by = Lanes::set(weights[r]);
            UNROLLED
            for (int j = 0; j < 4; j++) sums[j] = Lanes::fma(Lanes::load_bf16(rows + r * step + c + 16 * j), by, sums[j]);
        }
        for (int j = 0; j < 4; j++) Lanes::store(out + c + 16 * j, sums[j]);
    }
    for (; c < columns; c += 16) {
        F sum = Lanes::set(0);
        for (int r = 0; r < count; r++)
            sum = Lanes::fma(load_until(rows + r * step, Type::bfloat16, c, columns), Lanes::set(weights[r]), sum);
        store_as(sum, Type::float32, out, c, columns);
    }
}

}  // namespace
}  // namespace moe_local
