// The arithmetic of ops.hpp over `Lanes`, included by multiply.hpp.
#pragma once

namespace moe_local {
namespace {

constexpr int HEADS = 4;                            // queries that share keys, at once
constexpr int AT_ONCE = Lanes::TILE >= 12 ? 4 : 1;  // keys, or runs of 16 columns, at once: as registers allow

template <Type type>
INLINED F load_of(const void* x, int at) {
    if constexpr (type == Type::float32) return Lanes::load(static_cast<const float*>(x) + at);
    return Lanes::load_bf16(static_cast<const uint16_t*>(x) + at);
}

template <Type type>
INLINED void store_of(F x, void* to, int at) {
    if constexpr (type == Type::float32)
        Lanes::store(static_cast<float*>(to) + at, x);
    else
        Lanes::store_bf16(static_cast<uint16_t*>(to) + at, x);
}

void store_until(F x, Type type, void* to, int at, int end) {
    float part[16];
    Lanes::store(part, x);
    for (int i = at; i < end && i < at + 16; i++) write_number(part[i - at], type, to, i);
}

INLINED F normed(F x, F factor, F weight, bool weighted, bool rounds) {
    F y = Lanes::mul(x, factor);
    if (rounds) y = Lanes::rounded(y);
    return weighted ? Lanes::mul(y, weight) : y;
}

template <Type type>
void norm_of(const void* x, const float* weight, int columns, float eps, int rounding, void* out) {
    const int whole = columns / 16 * 16;
    F sums[2] = {Lanes::set(0), Lanes::set(0)};
    for (int c = 0; c < whole; c += 16) {
        const F part = load_of<type>(x, c);
        sums[c / 16 % 2] = Lanes::fma(part, part, sums[c / 16 % 2]);
    }
    if (whole < columns) {
        const F part = load_until(x, type, whole, columns);
        sums[whole / 16 % 2] = Lanes::fma(part, part, sums[whole / 16 % 2]);
    }
    float factor = 1 / std::sqrt(Lanes::total(Lanes::add(sums[0], sums[1])) / float(columns) + eps);
    constexpr bool narrow = type == Type::bfloat16;
    if (narrow && rounding == 2) factor = from_bf16(to_bf16(factor));
    const bool rounds = narrow && rounding == 1, weighted = weight != nullptr;
    const F by = Lanes::set(factor);
    for (int c = 0; c < whole; c += 16)
        store_of<type>(normed(load_of<type>(x, c), by, weighted ? Lanes::load(weight + c) : by, weighted, rounds), out, c);
    if (whole == columns) return;
    const F last = weighted ? load_until(weight, Type::float32, whole, columns) : by;
    store_until(normed(load_until(x, type, whole, columns), by, last, weighted, rounds), type, out, whole, columns);
}

void norm_row(const void* x, Type type, const float* weight, int columns, float eps, int rounding, void* out) {
    const auto one = type == Type::float32 ? norm_of<Type::float32> : norm_of<Type::bfloat16>;
    one(x, weight, columns, eps, rounding, out);
}

INLINED F product(F x, F y, bool rounds) { return rounds ? Lanes::rounded(Lanes::mul(x, y)) : Lanes::mul(x, y); }

// Halves of a row: out = first * cos - second * sin, second * cos + first * sin.
void rotate_halves(const void* x, Type type, const void* cos, const void* sin, Type angles, int half, int second,
                   bool rounds, void* out) {
    const auto* from = static_cast<const uint8_t*>(x) + size_t(half) * size_of(type);
    auto* to = static_cast<uint8_t*>(out) + size_t(half) * size_of(type);
    const auto* more_cos = static_cast<const uint8_t*>(cos) + size_t(second) * size_of(angles);
    const auto* more_sin = static_cast<const uint8_t*>(sin) + size_t(second) * size_of(angles);
    for (int c = 0; c < half; c += 16) {
        const F a = load_until(x, type, c, half), b = load_until(from, type, c, half);
        const F aa = product(a, load_until(cos, angles, c, half), rounds);
        const F bb = product(b, load_until(more_cos, angles, c, half), rounds);
        const F ba = product(b, load_until(sin, angles, c, half), rounds);
        const F ab = product(a, load_until(more_sin, angles, c, half), rounds);
        if (c + 16 <= half && type == Type::bfloat16) {
            store_of<Type::bfloat16>(Lanes::sub(aa, ba), out, c);
            store_of<Type::bfloat16>(Lanes::add(bb, ab), to, c);
        } else {
            store_until(Lanes::sub(aa, ba), type, out, c, half);
            store_until(Lanes::add(bb, ab), type, to, c, half);
        }
    }
}

// Dots of X rows x (float32) with N rows of a matrix: out[x * out_step + n].
template <Type type, int X, int N>
INLINED void dots_of(const float* x, int x_step, const void* rows, int64_t step, int columns, float* out,
                     int64_t out_step) {
    const auto* bytes = static_cast<const uint8_t*>(rows);
    const int whole = columns / 16 * 16;
    const size_t pitch = size_t(step) * size_of(type);
    F sums[X][N];
    UNROLLED
    for (int i = 0; i < X; i++)
        UNROLLED
        for (int n = 0; n < N; n++) sums[i][n] = Lanes::set(0);
    for (int c = 0; c < whole; c += 16) {
        F parts[N];
        UNROLLED
        for (int n = 0; n < N; n++) parts[n] = load_of<type>(bytes + n * pitch, c);
        UNROLLED
        for (int i = 0; i < X; i++) {
            const F one = Lanes::load(x + i * x_step + c);
            UNROLLED
            for (int n = 0; n < N; n++) sums[i][n] = Lanes::fma(parts[n], one, sums[i][n]);
        }
    }
    UNROLLED
    for (int i = 0; i < X; i++)
        UNROLLED
        for (int n = 0; n < N; n++) {
            if (whole < columns)
                sums[i][n] = Lanes::fma(load_until(bytes + n * pitch, type, whole, columns),
                                        load_until(x + i * x_step, Type::float32, whole, columns), sums[i][n]);
            out[i * out_step + n] = Lanes::total(sums[i][n]);
        }
}

template <Type type, int X>
void dots_with(const float* x, int x_step, const void* matrix, int64_t step, int rows, int columns, float* out,
               int64_t out_step) {
    const auto* bytes = static_cast<const uint8_t*>(matrix);
    const size_t pitch = size_t(step) * size_of(type);
    int at = 0;
    for (; at + AT_ONCE <= rows; at += AT_ONCE)
        dots_of<type, X, AT_ONCE>(x, x_step, bytes + at * pitch, step, columns, out + at, out_step);
    for (; at < rows; at++) dots_of<type, X, 1>(x, x_step, bytes + at * pitch, step, columns, out + at, out_step);
}

template <Type type>
void dots_by(const float* x, int count, int x_step, const void* matrix, int64_t step, int rows, int columns,
             float* out, int64_t out_step) {
    int at = 0;
    for (; at + HEADS <= count; at += HEADS)
        dots_with<type, HEADS>(x + at * x_step, x_step, matrix, step, rows, columns, out + at * out_step, out_step);
    for (; at < count; at++)
        dots_with<type, 1>(x + at * x_step, x_step, matrix, step, rows, columns, out + at * out_step, out_step);
}

void dots(const float* x, int count, int x_step, const void* matrix, Type type, int64_t step, int rows, int columns,
          float* out, int64_t out_step) {
    const auto by = type == Type::float32 ? dots_by<Type::float32> : dots_by<Type::bfloat16>;
    by(x, count, x_step, matrix, step, rows, columns, out, out_step);
}

// The greatest of x; NaN where any is NaN or infinite, or all are minus infinity.
float greatest_of(const float* x, int count) {
    const F least = Lanes::set(-3.40282347e38f), zero = Lanes::set(0);
    F most = least, unsound = zero;
    float lanes[16];
    const int whole = count / 16 * 16;
    for (int c = 0; c < whole; c += 16) {
        const F part = Lanes::max(least, Lanes::load(x + c));  // a NaN stays one
        most = Lanes::max(most, part);
        unsound = Lanes::fma(part, zero, unsound);
    }
    Lanes::store(lanes, most);
    float found = -HUGE_VALF, wrong = Lanes::total(unsound);
    for (float lane : lanes) found = lane > found ? lane : found;
    for (int i = whole; i < count; i++) {
        const float one = x[i] < -3.40282347e38f ? -3.40282347e38f : x[i];
        found = one > found ? one : found;
        wrong += one * 0;
    }
    return wrong == 0 ? found : float_of(0x7fc00000);
}

float exponentials(float* x, int count) {
    const float greatest = greatest_of(x, count);
    const F most = Lanes::set(greatest);
    for (int c = 0; c < count; c += 16) {
        const F less = Lanes::sub(load_until(x, Type::float32, c, count), most);
        float before[16], after[16];
        Lanes::store(before, less);
        Lanes::store(after, exponential(less));
        for (int i = 0; i < 16; i++) after[i] = before[i] < -87 ? 0 : after[i];
        for (int i = 0; i < 16; i++) after[i] = before[i] != before[i] ? before[i] : after[i];
        if (c + 16 <= count)
            std::memcpy(x + c, after, sizeof after);
        else
            for (int i = c; i < count; i++) x[i] = after[i - c];
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

template <int X, int N>
INLINED void weighted_of(const float* weights, int64_t weights_step, const uint16_t* rows, int64_t step, int count,
                         float* out, int out_step) {
    F sums[X][N];
    UNROLLED
    for (int i = 0; i < X; i++)
        UNROLLED
        for (int n = 0; n < N; n++) sums[i][n] = Lanes::set(0);
    for (int r = 0; r < count; r++) {
        F parts[N];
        UNROLLED
        for (int n = 0; n < N; n++) parts[n] = Lanes::load_bf16(rows + r * step + 16 * n);
        UNROLLED
        for (int i = 0; i < X; i++) {
            const F by = Lanes::set(weights[i * weights_step + r]);
            UNROLLED
            for (int n = 0; n < N; n++) sums[i][n] = Lanes::fma(parts[n], by, sums[i][n]);
        }
    }
    UNROLLED
    for (int i = 0; i < X; i++)
        UNROLLED
        for (int n = 0; n < N; n++) Lanes::store(out + i * out_step + 16 * n, sums[i][n]);
}

template <int X>
void weighted_by(const float* weights, int64_t weights_step, const uint16_t* rows, int64_t step, int count,
                 int columns, float* out, int out_step) {
    int c = 0;
    for (; c + 16 * AT_ONCE <= columns; c += 16 * AT_ONCE)
        weighted_of<X, AT_ONCE>(weights, weights_step, rows + c, step, count, out + c, out_step);
    for (; c + 16 <= columns; c += 16) weighted_of<X, 1>(weights, weights_step, rows + c, step, count, out + c, out_step);
    for (int i = 0; i < X && c < columns; i++)
        for (int last = c; last < columns; last++) {
            F sum = Lanes::set(0);
            for (int r = 0; r < count; r++)
                sum = Lanes::fma(Lanes::set(from_bf16(rows[r * step + last])), Lanes::set(weights[i * weights_step + r]), sum);
            store_until(sum, Type::float32, out + i * out_step, last, last + 1);
        }
}

void weighted_rows(const float* weights, int count, int64_t weights_step, const uint16_t* rows, int64_t step,
                   int length, int columns, float* out, int out_step) {
    int at = 0;
    for (; at + HEADS <= count; at += HEADS)
        weighted_by<HEADS>(weights + at * weights_step, weights_step, rows, step, length, columns, out + at * out_step, out_step);
    for (; at < count; at++)
        weighted_by<1>(weights + at * weights_step, weights_step, rows, step, length, columns, out + at * out_step, out_step);
}

}  // namespace
}  // namespace moe_local
