// The arithmetic, over `Lanes` of one processor, which is included before this.
//
// Every number is made by the same operations in the same order, whatever the lanes, the rows beside it and the
// threads: dots of whole numbers are exact, and what comes of each group is added in the order of the columns.
#pragma once

#include "processor.hpp"
#include "unpack.hpp"

namespace moe_local {
namespace {

using F = Lanes::F;
using Dots = Lanes::Dots;

// For loops over tokens, whose sums must stay in registers.
#if defined(__clang__)
#define UNROLLED _Pragma("clang loop unroll(full)")
#define INLINED inline __attribute__((always_inline))
#elif defined(__GNUC__)
#define UNROLLED _Pragma("GCC unroll 16")
#define INLINED inline __attribute__((always_inline))
#else
#define UNROLLED
#define INLINED __forceinline
#endif

// ---- Rows of activations

F load_as(const void* x, Type type, int at) {
    return type == Type::float32 ? Lanes::load(static_cast<const float*>(x) + at)
                                 : Lanes::load_bf16(static_cast<const uint16_t*>(x) + at);
}

// Sixteen numbers from `at`, zeros from `end` on.
F load_until(const void* x, Type type, int at, int end) {
    if (at + 16 <= end) return load_as(x, type, at);
    float part[16] = {};
    for (int i = at; i < end; i++) part[i - at] = read_number(x, type, i);
    return Lanes::load(part);
}

// Even numbers before odd ones, in eights.
template <class Number>
void pair(Number* numbers, int count) {
    for (int i = 0; i < count; i += 8) {
        Number mixed[8];
        std::memcpy(mixed, numbers + i, sizeof mixed);
        for (int j = 0; j < 8; j++) numbers[i + j] = mixed[j < 4 ? 2 * j : 2 * j - 7];
    }
}

void pack_exact(const void* x, Type type, int begin, int end, const Rows& rows, int row, int group) {
    float* to = rows.exact + (size_t(group) * rows.count + row) * rows.group;
    for (int c = 0; c < rows.group; c += 16) Lanes::store(to + c, load_until(x, type, begin + c, end));
    if (rows.paired) pair(to, rows.group);
    float sum = 0;
    for (int c = 0; c < rows.group; c++) sum += to[c];
    rows.offsets[size_t(group) * rows.count + row] = sum;
}

// The largest magnitude becomes 127. A group with a NaN or an infinity becomes NaN.
void pack_codes(const void* x, Type type, int begin, int end, const Rows& rows, int row, int group) {
    const size_t place = size_t(group) * rows.count + row;
    F numbers[8];
    const int parts = rows.group / 16;
    auto most = Lanes::bits(Lanes::set(0));
    for (int p = 0; p < parts; p++) {
        numbers[p] = load_until(x, type, begin + 16 * p, end);
        most = Lanes::greater(most, Lanes::bits(Lanes::magnitude(numbers[p])));
    }
    const int32_t bits = Lanes::greatest(most);
    const bool finite = bits < 0x7f800000;
    const float largest = float_of(uint32_t(bits));
    const float scale = finite ? largest / 127 : float_of(0x7fc00000);
    const F inverse = Lanes::set(finite && scale > 0 ? 1 / scale : 0);
    const F bound = Lanes::set(127), low = Lanes::set(-127);
    int32_t sum = 0;
    for (int p = 0; p < parts; p++) {
        const F scaled = Lanes::round(Lanes::mul(numbers[p], inverse));
        const F code = finite ? Lanes::max(Lanes::min(scaled, bound), low) : Lanes::set(0);
        sum += Lanes::store_codes(rows.codes + place * rows.group + 16 * p, code);
    }
    if (rows.paired) pair(rows.codes + place * rows.group, rows.group);
    rows.scales[place] = scale;
    rows.sums[place] = rows.bias * sum;
    rows.offsets[place] = scale * float(sum);
}

void pack(const void* x, Type type, int columns, const Rows& rows, int row, int first_group) {
    const int groups = (columns + rows.group - 1) / rows.group;
    for (int g = 0; g < groups; g++) {
        const auto one = rows.codes ? pack_codes : pack_exact;
        one(x, type, g * rows.group, columns, rows, row, first_group + g);
    }
}

// ---- Dots of a group: a block's 16 rows with N tokens

template <int N>
INLINED void int4_dots(const uint8_t* codes, int group, const int8_t* x, Dots (&dots)[N]) {
    for (int step = 0; step < group / 8; step++) {
        const auto both = Lanes::bytes(codes + 64 * step);
        const auto low = Lanes::low(both), high = Lanes::high(both);
        const int8_t* at = x + 8 * step;
        UNROLLED
        for (int t = 0; t < N; t++) {
            Lanes::dot4(dots[t], low, at + t * group);
            Lanes::dot4(dots[t], high, at + t * group + 4);
        }
        if (step % 4 == 3)
            UNROLLED
            for (int t = 0; t < N; t++) Lanes::fold(dots[t]);
    }
}

template <int N>
INLINED void int8_dots(const uint8_t* codes, int group, const int8_t* x, Dots (&dots)[N]) {
    for (int step = 0; step < group / 4; step++) {
        const auto four = Lanes::bytes(codes + 64 * step);
        UNROLLED
        for (int t = 0; t < N; t++) Lanes::dot8(dots[t], four, x + t * group + 4 * step);
    }
}

// One token of a panel: so that one dot need not wait for another, there are four at once.
INLINED void int8_dots(const uint8_t* codes, int group, const int8_t* x, Dots (&dots)[1]) {
    Dots more[3] = {Lanes::nothing(), Lanes::nothing(), Lanes::nothing()};
    for (int step = 0; step < group / 4; step += 4)
        for (int i = 0; i < 4; i++)
            Lanes::dot8(i ? more[i - 1] : dots[0], Lanes::bytes(codes + 64 * (step + i)), x + 4 * (step + i));
    for (auto& each : more) dots[0] = Lanes::join(dots[0], each);
}

template <int N, int j>
INLINED void add_column(F numbers, const float* x, int group, F (&sums)[N]) {
    UNROLLED
    for (int t = 0; t < N; t++) sums[t] = Lanes::fma(numbers, Lanes::set(x[t * group + j]), sums[t]);
}

template <int N>
INLINED void int4_exact(const uint8_t* codes, int group, const float* x, F (&sums)[N]) {
    const F middle = Lanes::set(8);
    for (int step = 0; step < group / 8; step++) {
        const auto both = Lanes::bytes(codes + 64 * step);
        const auto low = Lanes::low(both), high = Lanes::high(both);
        const float* at = x + 8 * step;
        add_column<N, 0>(Lanes::sub(Lanes::unsigned_byte<0>(low), middle), at, group, sums);
        add_column<N, 1>(Lanes::sub(Lanes::unsigned_byte<1>(low), middle), at, group, sums);
        add_column<N, 2>(Lanes::sub(Lanes::unsigned_byte<2>(low), middle), at, group, sums);
        add_column<N, 3>(Lanes::sub(Lanes::unsigned_byte<3>(low), middle), at, group, sums);
        add_column<N, 4>(Lanes::sub(Lanes::unsigned_byte<0>(high), middle), at, group, sums);
        add_column<N, 5>(Lanes::sub(Lanes::unsigned_byte<1>(high), middle), at, group, sums);
        add_column<N, 6>(Lanes::sub(Lanes::unsigned_byte<2>(high), middle), at, group, sums);
        add_column<N, 7>(Lanes::sub(Lanes::unsigned_byte<3>(high), middle), at, group, sums);
    }
}

template <int N>
INLINED void int8_exact(const uint8_t* codes, int group, const float* x, F (&sums)[N]) {
    for (int step = 0; step < group / 4; step++) {
        const auto four = Lanes::bytes(codes + 64 * step);
        const float* at = x + 4 * step;
        add_column<N, 0>(Lanes::signed_byte<0>(four), at, group, sums);
        add_column<N, 1>(Lanes::signed_byte<1>(four), at, group, sums);
        add_column<N, 2>(Lanes::signed_byte<2>(four), at, group, sums);
        add_column<N, 3>(Lanes::signed_byte<3>(four), at, group, sums);
    }
}

// ---- A block: 16 rows of the matrix with N tokens, all groups

template <int N>
INLINED void start_dots(const int32_t* sums, Dots (&dots)[N]) {
    UNROLLED
    for (int t = 0; t < N; t++) dots[t] = Lanes::start(sums + t);
}

// Adds the dots of a group, times the scales of the rows and of the tokens.
template <int N>
INLINED void add_dots(const Dots (&dots)[N], F scale, const float* scales, F (&sums)[N]) {
    UNROLLED
    for (int t = 0; t < N; t++)
        sums[t] = Lanes::fma(Lanes::finish(dots[t]), Lanes::mul(scale, Lanes::set(scales[t])), sums[t]);
}

// Adds numbers of each row times numbers of each token.
template <int N>
INLINED void add_products(F row, const float* tokens, F (&sums)[N]) {
    UNROLLED
    for (int t = 0; t < N; t++) sums[t] = Lanes::fma(row, Lanes::set(tokens[t]), sums[t]);
}

template <int N>
INLINED void add_parts(const F (&parts)[N], F scale, F (&sums)[N]) {
    UNROLLED
    for (int t = 0; t < N; t++) sums[t] = Lanes::fma(parts[t], scale, sums[t]);
}

template <int N>
INLINED void clear(F (&sums)[N]) {
    UNROLLED
    for (int t = 0; t < N; t++) sums[t] = Lanes::set(0);
}

template <int N>
INLINED void int4_block(const uint8_t* block, const Matrix& matrix, const Rows& rows, int start, F (&sums)[N]) {
    const int group = matrix.group, pitch = 8 * group + 64;
    for (int g = 0; g < matrix.groups(); g++) {
        const uint8_t* codes = block + size_t(g) * pitch;
        const auto* scales = reinterpret_cast<const uint16_t*>(codes + 8 * group);
        const F scale = Lanes::load_bf16(scales), offset = Lanes::load_bf16(scales + 16);
        const size_t place = size_t(g) * rows.count + start;
        if (rows.codes) {
            Dots dots[N];
            start_dots(rows.sums + place, dots);
            int4_dots(codes, group, rows.codes + place * group, dots);
            add_dots(dots, scale, rows.scales + place, sums);
        } else {
            F parts[N];
            clear(parts);
            int4_exact(codes, group, rows.exact + place * group, parts);
            add_parts(parts, scale, sums);
        }
        add_products(offset, rows.offsets + place, sums);
    }
}

template <int N>
INLINED void int8_block(const uint8_t* block, const Matrix& matrix, const Rows& rows, int start, F (&sums)[N]) {
    const int group = matrix.group;
    for (int g = 0; g < matrix.groups(); g++) {
        const uint8_t* codes = block + size_t(g) * group * BLOCK;
        const size_t place = size_t(g) * rows.count + start;
        if (rows.codes) {
            Dots dots[N];
            start_dots(rows.sums + place, dots);
            int8_dots(codes, group, rows.codes + place * group, dots);
            UNROLLED
            for (int t = 0; t < N; t++)
                sums[t] = Lanes::fma(Lanes::finish(dots[t]), Lanes::set(rows.scales[place + t]), sums[t]);
        } else {
            int8_exact(codes, group, rows.exact + place * group, sums);
        }
    }
    const F scale = Lanes::load(reinterpret_cast<const float*>(block + size_t(matrix.groups()) * group * BLOCK));
    UNROLLED
    for (int t = 0; t < N; t++) sums[t] = Lanes::mul(sums[t], scale);
}

template <int N>
void tile(const Matrix& matrix, int first, int count, const Rows& rows, int start, float* out, int stride) {
    for (int b = 0; b < count; b++) {
        const uint8_t* block = matrix.data + size_t(first + b) * matrix.block_bytes();
        F sums[N];
        clear(sums);
        if (matrix.kind == Kind::int4)
            int4_block(block, matrix, rows, start, sums);
        else
            int8_block(block, matrix, rows, start, sums);
        UNROLLED
        for (int t = 0; t < N; t++) Lanes::store(out + size_t(t) * stride + BLOCK * b, sums[t]);
    }
}

// One token, for which the memory decides: B blocks side by side are as many streams, which processors read ahead
// better than one, and each activation is read once for all of them.
template <int B>
void one_token(const Matrix& matrix, int first, const Rows& rows, int start, float* out) {
    const int group = matrix.group;
    const size_t pitch = matrix.kind == Kind::int4 ? 8 * size_t(group) + 64 : size_t(group) * BLOCK;
    const size_t apart = matrix.block_bytes();
    const uint8_t* codes = matrix.data + size_t(first) * apart;
    F sums[B];
    UNROLLED
    for (int b = 0; b < B; b++) sums[b] = Lanes::set(0);
    for (int g = 0; g < matrix.groups(); g++, codes += pitch) {
        const size_t place = size_t(g) * rows.count + start;
        const F by = Lanes::set(rows.scales[place]), add = Lanes::set(rows.offsets[place]);
        const int8_t* x = rows.codes + place * group;
        Dots dots[B];
        if (matrix.kind == Kind::int4) {
            UNROLLED
            for (int b = 0; b < B; b++) dots[b] = Lanes::start(rows.sums + place);
            for (int step = 0; step < group / 8; step++) {
                UNROLLED
                for (int b = 0; b < B; b++) {
                    const auto both = Lanes::bytes(codes + b * apart + 64 * step);
                    Lanes::dot4(dots[b], Lanes::low(both), x + 8 * step);
                    Lanes::dot4(dots[b], Lanes::high(both), x + 8 * step + 4);
                    if (step % 4 == 3) Lanes::fold(dots[b]);
                }
            }
            UNROLLED
            for (int b = 0; b < B; b++) {
                const auto* scales = reinterpret_cast<const uint16_t*>(codes + b * apart + 8 * group);
                sums[b] = Lanes::fma(Lanes::finish(dots[b]), Lanes::mul(Lanes::load_bf16(scales), by), sums[b]);
                sums[b] = Lanes::fma(Lanes::load_bf16(scales + 16), add, sums[b]);
            }
        } else {
            UNROLLED
            for (int b = 0; b < B; b++) dots[b] = Lanes::start(rows.sums + place);
            for (int step = 0; step < group / 4; step++) {
                UNROLLED
                for (int b = 0; b < B; b++)
                    Lanes::dot8(dots[b], Lanes::bytes(codes + b * apart + 64 * step), x + 4 * step);
            }
            UNROLLED
            for (int b = 0; b < B; b++) sums[b] = Lanes::fma(Lanes::finish(dots[b]), by, sums[b]);
        }
    }
    UNROLLED
    for (int b = 0; b < B; b++) {
        if (matrix.kind == Kind::int8)
            sums[b] = Lanes::mul(sums[b], Lanes::load(reinterpret_cast<const float*>(codes + b * apart)));
        Lanes::store(out + BLOCK * b, sums[b]);
    }
}

// Adds what the groups of a panel give, of which the first is `group`, to the sums in `out`.
template <int N>
void panel_tile(const Panel& panel, int group, int groups, bool offsets, const Rows& rows, int start, float* out,
                int stride) {
    F sums[N];
    UNROLLED
    for (int t = 0; t < N; t++) sums[t] = Lanes::load(out + size_t(t) * stride);
    for (int g = 0; g < groups; g++) {
        const uint8_t* codes = panel.codes + g * rows.group * BLOCK;
        const F scale = panel.scales[g];
        const size_t place = size_t(group + g) * rows.count + start;
        if (rows.codes) {
            Dots dots[N];
            start_dots(rows.sums + place, dots);
            int8_dots(codes, rows.group, rows.codes + place * rows.group, dots);
            add_dots(dots, scale, rows.scales + place, sums);
        } else {
            F parts[N];
            clear(parts);
            int8_exact(codes, rows.group, rows.exact + place * rows.group, parts);
            add_parts(parts, scale, sums);
        }
        if (offsets) add_products(panel.offsets[g], rows.offsets + place, sums);
    }
    UNROLLED
    for (int t = 0; t < N; t++) Lanes::store(out + size_t(t) * stride, sums[t]);
}

template <int N>
void float_tile(const FloatPanel& panel, int group, const Rows& rows, int start, float* out, int stride) {
    const float* x = rows.exact + (size_t(group) * rows.count + start) * rows.group;
    F parts[N];
    UNROLLED
    for (int t = 0; t < N; t++) parts[t] = Lanes::set(0);
    for (int c = 0; c < 64; c++) {
        UNROLLED
        for (int t = 0; t < N; t++) parts[t] = Lanes::fma(panel.numbers[c], Lanes::set(x[t * 64 + c]), parts[t]);
    }
    UNROLLED
    for (int t = 0; t < N; t++) {
        float* to = out + size_t(t) * stride;
        Lanes::store(to, Lanes::fma(parts[t], panel.scale, Lanes::load(to)));
    }
}

// Calls each.operator()<N>(done) for tiles of tokens, of which there are `tokens`.
template <int N, class Each>
void last_tile(int tokens, int done, const Each& each) {
    if constexpr (N > 0) {
        if (tokens == N)
            each(std::integral_constant<int, N>(), done);
        else
            last_tile<N - 1>(tokens, done, each);
    }
}

template <class Each>
void in_tiles(int tokens, const Each& each) {
    int done = 0;
    for (; tokens - done >= Lanes::TILE; done += Lanes::TILE) each(std::integral_constant<int, Lanes::TILE>(), done);
    last_tile<Lanes::TILE - 1>(tokens - done, done, each);
}

void multiply_rowwise(const Matrix& matrix, int first, int count, const Rows& rows, int start, int tokens, float* out,
                      int stride) {
    const Unit unit = unit_of(matrix.kind);
    const int groups = unit.columns / unit.group;
    for (int b = 0; b < count; b++) {
        float* to = out + BLOCK * b;
        for (int t = 0; t < tokens; t++) Lanes::store(to + size_t(t) * stride, Lanes::set(0));
        for (int u = 0; u < matrix.in / unit.columns; u++) {
            if (is_float(matrix.kind)) {
                FloatPanel panel;
                unpack(matrix, (first + b) * BLOCK, u, panel);
                in_tiles(tokens, [&](auto n, int done) {
                    float_tile<n()>(panel, u, rows, start + done, to + size_t(done) * stride, stride);
                });
                continue;
            }
            Panel panel;
            unpack(matrix, (first + b) * BLOCK, u, panel);
            in_tiles(tokens, [&](auto n, int done) {
                panel_tile<n()>(panel, u * groups, groups, has_offsets(matrix.kind), rows, start + done,
                                to + size_t(done) * stride, stride);
            });
        }
    }
}

void multiply(const Matrix& matrix, int first, int count, const Rows& rows, int start, int tokens, float* out,
              int stride) {
    if (unit_of(matrix.kind).columns) {
        multiply_rowwise(matrix, first, count, rows, start, tokens, out, stride);
        return;
    }
    in_tiles(tokens, [&](auto n, int done) {
        float* to = out + size_t(done) * stride;
        if (n() == 1 && rows.codes && count % Lanes::STREAMS == 0)
            for (int b = 0; b < count; b += Lanes::STREAMS)
                one_token<Lanes::STREAMS>(matrix, first + b, rows, start + done, to + BLOCK * b);
        else
            tile<n()>(matrix, first, count, rows, start + done, to, stride);
    });
}

// ---- Activations

// Cephes' expf, within 2 units of the last place where the result is normal; the least normal number below, infinity
// above.
F exponential(F x) {
    const F bounded = Lanes::max(Lanes::min(x, Lanes::set(89)), Lanes::set(-87.3365402f));
    const F n = Lanes::round(Lanes::mul(bounded, Lanes::set(1.44269504f)));
    F r = Lanes::fma(n, Lanes::set(-0.693359375f), bounded);
    r = Lanes::fma(n, Lanes::set(2.12194440e-4f), r);
    F p = Lanes::set(1.9875691500e-4f);
    p = Lanes::fma(p, r, Lanes::set(1.3981999507e-3f));
    p = Lanes::fma(p, r, Lanes::set(8.3334519073e-3f));
    p = Lanes::fma(p, r, Lanes::set(4.1665795894e-2f));
    p = Lanes::fma(p, r, Lanes::set(1.6666665459e-1f));
    p = Lanes::fma(p, r, Lanes::set(5.0000001201e-1f));
    p = Lanes::add(Lanes::fma(p, Lanes::mul(r, r), r), Lanes::set(1));
    return Lanes::scale(p, n);
}

F sigmoid(F x) {
    const F one = Lanes::set(1);
    return Lanes::div(one, Lanes::add(one, exponential(Lanes::sub(Lanes::set(0), x))));
}

F tanh_of(F x) {
    const F one = Lanes::set(1), two = Lanes::set(2);
    return Lanes::sub(one, Lanes::div(two, Lanes::add(one, exponential(Lanes::mul(two, x)))));
}

// Abramowitz and Stegun 7.1.26: within 1.5e-7.
F error_function(F x) {
    const F one = Lanes::set(1), size = Lanes::magnitude(x);
    const F t = Lanes::div(one, Lanes::fma(size, Lanes::set(0.3275911f), one));
    F p = Lanes::set(1.061405429f);
    p = Lanes::fma(p, t, Lanes::set(-1.453152027f));
    p = Lanes::fma(p, t, Lanes::set(1.421413741f));
    p = Lanes::fma(p, t, Lanes::set(-0.284496736f));
    p = Lanes::fma(p, t, Lanes::set(0.254829592f));
    const F tail = exponential(Lanes::sub(Lanes::set(0), Lanes::mul(size, size)));
    return Lanes::with_sign_of(Lanes::sub(one, Lanes::mul(Lanes::mul(p, t), tail)), x);
}

// A NaN stays one: `min` and `max` give their second where one is.
F activated(Activation activation, F x) {
    const F half = Lanes::set(0.5f), one = Lanes::set(1);
    switch (activation) {
        case Activation::silu:
            return Lanes::mul(x, sigmoid(x));
        case Activation::gelu:
            return Lanes::mul(Lanes::mul(half, x), Lanes::add(one, error_function(Lanes::mul(x, Lanes::set(0.70710678f)))));
        case Activation::gelu_tanh: {
            const F cube = Lanes::mul(Lanes::mul(x, x), x);
            const F inner = Lanes::mul(Lanes::set(0.79788456f), Lanes::fma(cube, Lanes::set(0.044715f), x));
            return Lanes::mul(Lanes::mul(half, x), Lanes::add(one, tanh_of(inner)));
        }
        case Activation::relu:
            return Lanes::max(Lanes::set(0), x);
        case Activation::relu_squared: {
            const F positive = Lanes::max(Lanes::set(0), x);
            return Lanes::mul(positive, positive);
        }
        default:
            return x;
    }
}

F gated(const Gating& gating, F gate, F up) {
    if (gating.activation != Activation::clamped_swiglu) return Lanes::mul(activated(gating.activation, gate), up);
    const F limit = Lanes::set(gating.limit), low = Lanes::set(-gating.limit);
    const F bounded = Lanes::min(limit, gate);
    const F glu = Lanes::mul(bounded, sigmoid(Lanes::mul(bounded, Lanes::set(gating.alpha))));
    return Lanes::mul(Lanes::add(Lanes::max(low, Lanes::min(limit, up)), Lanes::set(1)), glu);
}

void activate(const Gating& gating, const float* gate, const float* up, int columns, float* out) {
    for (int c = 0; c < columns; c += 16) {
        F first, second;
        if (gating.interleaved) {
            float even[16], odd[16];
            for (int i = 0; i < 16; i++) {
                even[i] = gate[2 * (c + i)];
                odd[i] = gate[2 * (c + i) + 1];
            }
            first = Lanes::load(even);
            second = Lanes::load(odd);
        } else {
            first = Lanes::load(gate + c);
            second = gating.gated ? Lanes::load(up + c) : first;
        }
        Lanes::store(out + c, gating.gated ? gated(gating, first, second) : activated(gating.activation, first));
    }
}

// ---- Results

void store(const float* from, const float* bias, int count, Type type, void* to) {
    int i = 0;
    for (; i + 16 <= count; i += 16) {
        F x = Lanes::load(from + i);
        if (bias) x = Lanes::add(x, Lanes::load(bias + i));
        if (type == Type::float32)
            Lanes::store(static_cast<float*>(to) + i, x);
        else
            Lanes::store_bf16(static_cast<uint16_t*>(to) + i, x);
    }
    for (; i < count; i++) write_number(bias ? from[i] + bias[i] : from[i], type, to, i);
}

void sum(const void* parts, int choices, const float* weights, const bool* there, int columns, Type type, void* out) {
    const auto* bytes = static_cast<const uint8_t*>(parts);
    const size_t apart = size_t(columns) * size_of(type);
    for (int c = 0; c < columns; c += 16) {
        F total = Lanes::set(0);
        for (int j = 0; j < choices; j++)
            if (there[j]) total = Lanes::fma(load_until(bytes + j * apart, type, c, columns), Lanes::set(weights[j]), total);
        float last[16];
        Lanes::store(last, total);
        if (c + 16 > columns)
            for (int i = c; i < columns; i++) write_number(last[i - c], type, out, i);
        else
            store(last, nullptr, 16, type, static_cast<uint8_t*>(out) + size_t(c) * size_of(type));
    }
}

}  // namespace
}  // namespace moe_local

#include "ops_arithmetic.hpp"

namespace moe_local {
namespace {

constexpr Processor with(const char* name) {
    return {name, Lanes::SIGNED_BIAS, pack, multiply,     activate, store,        sum,
            norm_row, rotate_halves, dots, exponentials, sigmoids, weighted_rows};
}

}  // namespace
}  // namespace moe_local
