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

// The numbers that byte `group` of 16 rows of scales, from `row`, stands for; no byte beyond the array is read.
Lanes::F scales_of(const Matrix& matrix, int row, int group, const float* table) {
    const size_t groups = size_t(matrix.groups());
    const uint8_t* rows = matrix.scales + row * groups;
    if (groups < 4) {
        float found[BLOCK];
        for (int r = 0; r < BLOCK; r++) found[r] = table[rows[r * groups + group]];
        return Lanes::load(found);
    }
    const int first = group < int(groups) - 4 ? group : int(groups) - 4;
    const auto words = Lanes::words_of_rows(rows + first, groups);
    return Lanes::pick(table, Lanes::word_field(words, 8 * (group - first), 255));
}

void unpack_mxfp4(const Matrix& matrix, const uint8_t* at, size_t stride, int row, int unit, Panel& panel) {
    put_pairs(at, stride, panel);
    panel.scales[0] = scales_of(matrix, row, unit, TABLES.half_of_e8m0);
}

void unpack_nvfp4(const Matrix& matrix, const uint8_t* at, size_t stride, int row, int unit, Panel& panel) {
    put_pairs(at, stride, panel);
    const Lanes::F half = Lanes::set(0.5f), whole = Lanes::load(matrix.whole + row);
    for (int g = 0; g < 2; g++) {
        const Lanes::F scale = Lanes::mul(scales_of(matrix, row, 2 * unit + g, TABLES.e4m3), half);
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
    panel.scales[0] = Lanes::halves(Lanes::words_of_rows(at, stride));
}

void unpack_gguf_mxfp4(const uint8_t* at, size_t stride, Panel& panel) {
    put_halves<true>(at + 1, stride, panel);
    panel.scales[0] = Lanes::pick(TABLES.half_of_e8m0, Lanes::word_field(Lanes::words_of_rows(at, stride), 0, 255));
}

void unpack_q8_0(const uint8_t* at, size_t stride, Panel& panel) {
    for (int half = 0; half < 2; half++) {
        Lanes::Bytes words[4];
        Lanes::gather(at + 2 + 16 * half, stride, words);
        for (int w = 0; w < 4; w++) put(panel, 16 * half + 4 * w, words[w]);
    }
    panel.scales[0] = Lanes::halves(Lanes::words_of_rows(at, stride));
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
    const Lanes::F d = Lanes::halves(Lanes::word_field(Lanes::words_of_rows(at + 206, stride), 16, 0xffff));
    Lanes::Bytes scales[4];
    Lanes::gather(at + 192, stride, scales);
    for (int w = 0; w < 4; w++) {
        panel.scales[4 * w] = Lanes::mul(d, Lanes::signed_byte<0>(scales[w]));
        panel.scales[4 * w + 1] = Lanes::mul(d, Lanes::signed_byte<1>(scales[w]));
        panel.scales[4 * w + 2] = Lanes::mul(d, Lanes::signed_byte<2>(scales[w]));
        panel.scales[4 * w + 3] = Lanes::mul(d, Lanes::signed_byte<3>(scales[w]));
    }
}

// 64 columns of 16 rows as numbers, and what each row's are multiplied with.
struct FloatPanel {
    Lanes::F numbers[64], scale;
};

// bitsandbytes' tables.
constexpr float NF4[16] = {
    -1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f,
    -0.28444138169288635f, -0.18477343022823334f, -0.09105003625154495f, 0.0f,
    0.07958029955625534f, 0.16093020141124725f, 0.24611230194568634f, 0.33791524171829224f,
    0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f,
};
constexpr float FP4[16] = {0, 1 / 192.f, 128 / 192.f, 1, 64 / 192.f, 96 / 192.f, 32 / 192.f, 48 / 192.f,
                           -0.f, -1 / 192.f, -128 / 192.f, -1, -64 / 192.f, -96 / 192.f, -32 / 192.f, -48 / 192.f};

// Numbers of a table, the high half of a byte first.
void unpack_table(const float* table, const uint8_t* at, size_t stride, FloatPanel& panel) {
    for (int half = 0; half < 2; half++) {
        Lanes::Bytes raw[4];
        Lanes::gather(at + 16 * half, stride, raw);
        for (int w = 0; w < 4; w++) {
            const auto word = Lanes::words(raw[w]);
            for (int j = 0; j < 8; j++)
                panel.numbers[32 * half + 8 * w + j] = Lanes::pick16(table, Lanes::word_field(word, 4 * (j ^ 1), 15));
        }
    }
}

// E4M3 is a half with another exponent: 2^8 too small.
void unpack_e4m3(const uint8_t* at, size_t stride, FloatPanel& panel) {
    const Lanes::F more = Lanes::set(256);
    for (int quarter = 0; quarter < 4; quarter++) {
        Lanes::Bytes raw[4];
        Lanes::gather(at + 16 * quarter, stride, raw);
        for (int w = 0; w < 4; w++) {
            const auto word = Lanes::words(raw[w]);
            for (int j = 0; j < 4; j++) {
                const auto byte = Lanes::word_field(word, 8 * j, 255);
                const auto sign = Lanes::word_times16(Lanes::word_times16(Lanes::word_field(byte, 0, 128)));
                const auto rest = Lanes::word_field(Lanes::word_times16(Lanes::word_times16(byte)), 1, 0x3f80);
                const Lanes::F number = Lanes::halves(Lanes::word_either(sign, rest));
                panel.numbers[16 * quarter + 4 * w + j] = Lanes::mul(number, more);
            }
        }
    }
}

// Unit `unit` of 16 rows from `row`.
void unpack(const Matrix& matrix, int row, int unit, FloatPanel& panel) {
    const size_t stride = matrix.row_bytes();
    const uint8_t* at = matrix.data + row * stride + size_t(unit) * unit_of(matrix.kind).bytes;
    if (matrix.kind != Kind::fp8)
        unpack_table(matrix.kind == Kind::nf4 ? NF4 : FP4, at, stride, panel);
    else
        unpack_e4m3(at, stride, panel);
    const auto* scales = reinterpret_cast<const float*>(matrix.scales);
    const int across = matrix.scales_across(), column = unit * 64 / matrix.scale_columns;
    float found[BLOCK];
    for (int r = 0; r < BLOCK; r++) found[r] = scales[size_t((row + r) / matrix.scale_rows) * across + column];
    panel.scale = Lanes::load(found);
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
