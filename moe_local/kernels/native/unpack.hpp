// Kinds that lie row by row, unit by unit of columns, brought into the order of int8's blocks.
#pragma once

#include "processor.hpp"

namespace moe_local {
namespace {

// A unit of 16 rows: signed codes, 64 bytes for 4 columns; and for each group of columns what they are multiplied with,
// and what is added to the products, for each row.
struct Panel {
    alignas(64) uint8_t codes[256 * BLOCK];
    Lanes::F scales[16], offsets[16];
};

// Twice the numbers of E2M1, which are whole.
alignas(16) constexpr uint8_t E2M1[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, 255, 254, 253, 252, 250, 248, 244};

// Half of 2^(exponent - 127), for twice the numbers.
float half_of_e8m0(uint8_t exponent) {
    return float_of(exponent > 1 ? uint32_t(exponent - 1) << 23 : 0x200000u << exponent);
}

float e4m3(uint8_t value) {
    const uint32_t sign = uint32_t(value & 0x80) << 24, rest = value & 0x7f;
    if (rest == 0x7f) return float_of(0x7fc00000);
    if (rest >= 8) return float_of(sign | ((rest << 20) + (120u << 23)));
    const float small = float(rest) * 0.001953125f;  // 2^-9
    return sign ? -small : small;
}

// One byte of each row as it stands for a number.
template <class Read>
Lanes::F of_rows(const uint8_t* at, size_t stride, const Read& read) {
    float found[BLOCK];
    for (int r = 0; r < BLOCK; r++) found[r] = read(at[r * stride]);
    return Lanes::load(found);
}

// The halves that begin 16 rows' blocks.
Lanes::F halves_of_rows(const uint8_t* at, size_t stride) {
    float found[BLOCK];
    for (int r = 0; r < BLOCK; r++) found[r] = from_half(uint16_t(at[r * stride] | at[r * stride + 1] << 8));
    return Lanes::load(found);
}

void put(Panel& panel, int column, Lanes::Bytes codes) { Lanes::store_bytes(panel.codes + column * BLOCK, codes); }

// 4-bit numbers of a table, in pairs: 32 columns whose even ones come first in eights.
void put_pairs(const uint8_t* at, size_t stride, Panel& panel) {
    Lanes::Bytes words[4];
    Lanes::gather(at, stride, words);
    for (int w = 0; w < 4; w++) {
        put(panel, 8 * w, Lanes::look_up(E2M1, Lanes::low(words[w])));
        put(panel, 8 * w + 4, Lanes::look_up(E2M1, Lanes::high(words[w])));
    }
}

void unpack_mxfp4(const Matrix& matrix, const uint8_t* at, size_t stride, int row, int unit, Panel& panel) {
    put_pairs(at, stride, panel);
    const size_t groups = size_t(matrix.groups());
    panel.scales[0] = of_rows(matrix.scales + row * groups + unit, groups, half_of_e8m0);
}

void unpack_nvfp4(const Matrix& matrix, const uint8_t* at, size_t stride, int row, int unit, Panel& panel) {
    put_pairs(at, stride, panel);
    const size_t groups = size_t(matrix.groups());
    const Lanes::F half = Lanes::set(0.5f), whole = Lanes::load(matrix.whole + row);
    for (int g = 0; g < 2; g++) {
        const Lanes::F scale = Lanes::mul(of_rows(matrix.scales + row * groups + 2 * unit + g, groups, e4m3), half);
        panel.scales[g] = matrix.kind == Kind::nvfp4 ? Lanes::mul(scale, whole) : Lanes::div(scale, whole);
    }
}

// Halves of bytes that are 16 columns apart.
template <bool OfTable>
void put_halves(const uint8_t* at, size_t stride, Panel& panel) {
    Lanes::Bytes words[4];
    Lanes::gather(at, stride, words);
    for (int w = 0; w < 4; w++) {
        const Lanes::Bytes low = Lanes::low(words[w]), high = Lanes::high(words[w]);
        put(panel, 4 * w, OfTable ? Lanes::look_up(E2M1, low) : Lanes::minus(low, 8));
        put(panel, 16 + 4 * w, OfTable ? Lanes::look_up(E2M1, high) : Lanes::minus(high, 8));
    }
}

void unpack_q4_0(const uint8_t* at, size_t stride, Panel& panel) {
    put_halves<false>(at + 2, stride, panel);
    panel.scales[0] = halves_of_rows(at, stride);
}

void unpack_gguf_mxfp4(const uint8_t* at, size_t stride, Panel& panel) {
    put_halves<true>(at + 1, stride, panel);
    panel.scales[0] = of_rows(at, stride, half_of_e8m0);
}

void unpack_q8_0(const uint8_t* at, size_t stride, Panel& panel) {
    for (int half = 0; half < 2; half++) {
        Lanes::Bytes words[4];
        Lanes::gather(at + 2 + 16 * half, stride, words);
        for (int w = 0; w < 4; w++) put(panel, 16 * half + 4 * w, words[w]);
    }
    panel.scales[0] = halves_of_rows(at, stride);
}

// What Q4_K and Q5_K begin with: halves d and m, then eight scales and eight offsets of 6 bits in 12 bytes.
void unpack_k_scales(const uint8_t* at, size_t stride, Panel& panel) {
    Lanes::Bytes raw[4];
    Lanes::gather(at, stride, raw);
    const auto first = Lanes::words(raw[0]);
    const Lanes::F d = Lanes::halves(first), m = Lanes::halves(Lanes::word_field(first, 16, 0xffff));
    const auto a = Lanes::words(raw[1]), b = Lanes::words(raw[2]), c = Lanes::words(raw[3]);
    const Lanes::F none = Lanes::set(0);
    for (int j = 0; j < 8; j++) {
        const int at_bit = 8 * (j % 4);
        auto scale = Lanes::word_field(a, at_bit, 63), offset = Lanes::word_field(b, at_bit, 63);
        if (j >= 4) {
            scale = Lanes::word_either(Lanes::word_field(c, at_bit, 15),
                                       Lanes::word_times16(Lanes::word_field(a, at_bit + 6, 3)));
            offset = Lanes::word_either(Lanes::word_field(c, at_bit + 4, 15),
                                        Lanes::word_times16(Lanes::word_field(b, at_bit + 6, 3)));
        }
        panel.scales[j] = Lanes::mul(d, Lanes::from_words(scale));
        panel.offsets[j] = Lanes::sub(none, Lanes::mul(m, Lanes::from_words(offset)));
    }
}

// 256 columns in four times 64: low halves of 32 bytes, then high halves; a fifth bit for each from `bits`, if any.
void put_k_codes(const uint8_t* at, const uint8_t* bits, size_t stride, Panel& panel) {
    for (int half = 0; half < 2; half++) {
        Lanes::Bytes fifth[4];
        if (bits) Lanes::gather(bits + 16 * half, stride, fifth);
        for (int chunk = 0; chunk < 4; chunk++) {
            Lanes::Bytes words[4];
            Lanes::gather(at + 32 * chunk + 16 * half, stride, words);
            for (int w = 0; w < 4; w++) {
                Lanes::Bytes low = Lanes::low(words[w]), high = Lanes::high(words[w]);
                if (bits) {
                    low = Lanes::either(low, Lanes::times16(Lanes::field(fifth[w], 2 * chunk, 1)));
                    high = Lanes::either(high, Lanes::times16(Lanes::field(fifth[w], 2 * chunk + 1, 1)));
                }
                put(panel, 64 * chunk + 16 * half + 4 * w, low);
                put(panel, 64 * chunk + 32 + 16 * half + 4 * w, high);
            }
        }
    }
}

void unpack_q4_k(const uint8_t* at, size_t stride, Panel& panel) {
    unpack_k_scales(at, stride, panel);
    put_k_codes(at + 16, nullptr, stride, panel);
}

void unpack_q5_k(const uint8_t* at, size_t stride, Panel& panel) {
    unpack_k_scales(at, stride, panel);
    put_k_codes(at + 48, at + 16, stride, panel);
}

// Twice 128 columns: 64 bytes of low bits, 32 of high ones; then 16 signed scales, then a half.
void unpack_q6_k(const uint8_t* at, size_t stride, Panel& panel) {
    for (int part = 0; part < 4; part++) {
        const int half = part / 2, place = 16 * (part % 2);
        Lanes::Bytes first[4], second[4], high[4];
        Lanes::gather(at + 64 * half + place, stride, first);
        Lanes::gather(at + 64 * half + 32 + place, stride, second);
        Lanes::gather(at + 128 + 32 * half + place, stride, high);
        for (int w = 0; w < 4; w++) {
            const int column = 128 * half + place + 4 * w;
            const Lanes::Bytes low[4] = {Lanes::low(first[w]), Lanes::low(second[w]), Lanes::high(first[w]),
                                         Lanes::high(second[w])};
            for (int q = 0; q < 4; q++) {
                const Lanes::Bytes above = Lanes::times16(Lanes::field(high[w], 2 * q, 3));
                put(panel, column + 32 * q, Lanes::minus(Lanes::either(low[q], above), 32));
            }
        }
    }
    const Lanes::F d = halves_of_rows(at + 208, stride);
    for (int g = 0; g < 16; g++) {
        const Lanes::F scale = of_rows(at + 192 + g, stride, [](uint8_t byte) { return float(int8_t(byte)); });
        panel.scales[g] = Lanes::mul(d, scale);
    }
}

bool has_offsets(Kind kind) { return kind == Kind::q4_k || kind == Kind::q5_k; }

// Unit `unit` of 16 rows from `row`.
void unpack(const Matrix& matrix, int row, int unit, Panel& panel) {
    const size_t stride = matrix.row_bytes();
    const uint8_t* at = matrix.data + row * stride + size_t(unit) * unit_of(matrix.kind).bytes;
    switch (matrix.kind) {
        case Kind::mxfp4: return unpack_mxfp4(matrix, at, stride, row, unit, panel);
        case Kind::nvfp4: case Kind::nvfp4_divided: return unpack_nvfp4(matrix, at, stride, row, unit, panel);
        case Kind::q4_0: return unpack_q4_0(at, stride, panel);
        case Kind::q8_0: return unpack_q8_0(at, stride, panel);
        case Kind::q4_k: return unpack_q4_k(at, stride, panel);
        case Kind::q5_k: return unpack_q5_k(at, stride, panel);
        case Kind::q6_k: return unpack_q6_k(at, stride, panel);
        case Kind::gguf_mxfp4: return unpack_gguf_mxfp4(at, stride, panel);
        default: return;
    }
}

}  // namespace
}  // namespace moe_local
