// Sixteen lanes in plain C++: the reference for all others.
#pragma once

#include <cmath>

#include "numbers.hpp"

namespace moe_local {
namespace {

struct Lanes {
    static constexpr int TILE = 4;     // tokens at once
    static constexpr int STREAMS = 2;  // blocks at once with one token

    struct F {
        float v[16];
    };
    struct I {
        int32_t v[16];
    };
    struct Bytes {
        uint8_t v[64];
    };
    using Dots = I;

    template <class Make>
    static F each(Make make) {
        F made;
        for (int i = 0; i < 16; i++) made.v[i] = make(i);
        return made;
    }
    static F set(float x) { return each([&](int) { return x; }); }
    static F load(const float* x) { return each([&](int i) { return x[i]; }); }
    static F load_bf16(const uint16_t* x) { return each([&](int i) { return from_bf16(x[i]); }); }
    static void store(float* to, F x) { std::memcpy(to, x.v, sizeof x.v); }
    static void store_bf16(uint16_t* to, F x) {
        for (int i = 0; i < 16; i++) to[i] = to_bf16(x.v[i]);
    }
    static F add(F a, F b) { return each([&](int i) { return a.v[i] + b.v[i]; }); }
    static F sub(F a, F b) { return each([&](int i) { return a.v[i] - b.v[i]; }); }
    static F mul(F a, F b) { return each([&](int i) { return a.v[i] * b.v[i]; }); }
    static F div(F a, F b) { return each([&](int i) { return a.v[i] / b.v[i]; }); }
    static F fma(F a, F b, F c) { return each([&](int i) { return std::fmaf(a.v[i], b.v[i], c.v[i]); }); }
    // b where either is NaN.
    static F min(F a, F b) { return each([&](int i) { return a.v[i] < b.v[i] ? a.v[i] : b.v[i]; }); }
    static F max(F a, F b) { return each([&](int i) { return a.v[i] > b.v[i] ? a.v[i] : b.v[i]; }); }
    static F round(F a) { return each([&](int i) { return std::nearbyintf(a.v[i]); }); }
    static F magnitude(F a) { return each([&](int i) { return float_of(bits_of(a.v[i]) & 0x7fffffff); }); }
    static F with_sign_of(F a, F b) {
        return each([&](int i) { return float_of((bits_of(a.v[i]) & 0x7fffffff) | (bits_of(b.v[i]) & 0x80000000)); });
    }
    // a * 2^n, for whole n such that the result is normal.
    static F scale(F a, F n) {
        return each([&](int i) { return a.v[i] * float_of(uint32_t(int32_t(n.v[i]) + 127) << 23); });
    }

    static I bits(F a) {
        I made;
        std::memcpy(made.v, a.v, sizeof made.v);
        return made;
    }
    static I greater(I a, I b) {
        for (int i = 0; i < 16; i++) a.v[i] = a.v[i] > b.v[i] ? a.v[i] : b.v[i];
        return a;
    }
    static int32_t greatest(I a) {
        int32_t most = a.v[0];
        for (int i = 1; i < 16; i++) most = a.v[i] > most ? a.v[i] : most;
        return most;
    }
    // Whole numbers from -127 to 127 as bytes; their sum.
    static int32_t store_codes(int8_t* to, F a) {
        int32_t sum = 0;
        for (int i = 0; i < 16; i++) sum += to[i] = int8_t(a.v[i]);
        return sum;
    }

    static Bytes bytes(const uint8_t* at) {
        Bytes made;
        std::memcpy(made.v, at, 64);
        return made;
    }
    static void store_bytes(uint8_t* to, Bytes x) { std::memcpy(to, x.v, 64); }
    // 16 bytes of each of 16 rows that are `stride` apart: in lane r of word w bytes 4w to 4w + 3 of row r.
    static void gather(const uint8_t* at, size_t stride, Bytes (&words)[4]) {
        for (int r = 0; r < 16; r++)
            for (int w = 0; w < 4; w++) std::memcpy(words[w].v + 4 * r, at + r * stride + 4 * w, 4);
    }
    // Four bytes of each of 16 rows; numbers of a table by index.
    static I words_of_rows(const uint8_t* at, size_t stride) {
        I made;
        for (int r = 0; r < 16; r++) std::memcpy(made.v + r, at + r * stride, 4);
        return made;
    }
    static F pick16(const float* table, I index) { return pick(table, index); }
    static F pick(const float* table, I index) { return each([&](int i) { return table[index.v[i]]; }); }
    // (byte >> shift) & mask, of which no bit comes from the byte beside.
    static Bytes field(Bytes a, int shift, uint8_t mask) {
        for (auto& byte : a.v) byte = uint8_t(byte >> shift) & mask;
        return a;
    }
    static Bytes times16(Bytes a) {
        for (auto& byte : a.v) byte = uint8_t(byte << 4);
        return a;
    }
    static Bytes either(Bytes a, Bytes b) {
        for (int i = 0; i < 64; i++) a.v[i] |= b.v[i];
        return a;
    }
    static Bytes minus(Bytes a, uint8_t b) {
        for (auto& byte : a.v) byte = uint8_t(byte - b);
        return a;
    }
    static Bytes look_up(const uint8_t* table, Bytes a) {
        for (auto& byte : a.v) byte = table[byte & 15];
        return a;
    }

    static I words(Bytes a) {
        I made;
        std::memcpy(made.v, a.v, 64);
        return made;
    }
    static I word_field(I a, int shift, int32_t mask) {
        for (auto& lane : a.v) lane = int32_t(uint32_t(lane) >> shift) & mask;
        return a;
    }
    static I word_times16(I a) {
        for (auto& lane : a.v) lane = int32_t(uint32_t(lane) << 4);
        return a;
    }
    static I word_either(I a, I b) {
        for (int i = 0; i < 16; i++) a.v[i] |= b.v[i];
        return a;
    }
    static F from_words(I a) { return each([&](int i) { return float(a.v[i]); }); }
    // The lower half of each word as an IEEE half.
    static F halves(I a) { return each([&](int i) { return from_half(uint16_t(a.v[i])); }); }
    static Bytes low(Bytes a) {
        for (auto& byte : a.v) byte &= 15;
        return a;
    }
    static Bytes high(Bytes a) {
        for (auto& byte : a.v) byte >>= 4;
        return a;
    }
    // Byte j of each lane, unsigned or signed, as a number.
    template <int j>
    static F unsigned_byte(Bytes a) {
        return each([&](int i) { return float(a.v[4 * i + j]); });
    }
    template <int j>
    static F signed_byte(Bytes a) {
        return each([&](int i) { return float(int8_t(a.v[4 * i + j])); });
    }

    static constexpr int SIGNED_BIAS = 0;

    // Dots of unsigned 4-bit codes, or of signed bytes, with four signed bytes. They begin with a number, of which
    // signed bytes are the less where they are made unsigned.
    static Dots start(const int32_t* first) {
        Dots made;
        for (auto& lane : made.v) lane = *first;
        return made;
    }
    static void dot4(Dots& dots, Bytes codes, const int8_t* four) {
        for (int i = 0; i < 16; i++)
            for (int j = 0; j < 4; j++) dots.v[i] += int32_t(codes.v[4 * i + j]) * four[j];
    }
    static void dot8(Dots& dots, Bytes codes, const int8_t* four) {
        for (int i = 0; i < 16; i++)
            for (int j = 0; j < 4; j++) dots.v[i] += int32_t(int8_t(codes.v[4 * i + j])) * four[j];
    }
    static void fold(Dots&) {}  // after eight times dot4 at the most
    static F finish(const Dots& dots) { return each([&](int i) { return float(dots.v[i]); }); }
    static Dots join(Dots a, const Dots& b) {
        for (int i = 0; i < 16; i++) a.v[i] += b.v[i];
        return a;
    }
    static Dots nothing() { return Dots{}; }

    // The sum of all lanes, halves upon halves.
    static float total(F a) {
        for (int half = 8; half; half /= 2)
            for (int i = 0; i < half; i++) a.v[i] += a.v[i + half];
        return a.v[0];
    }
    // To the nearest number of bf16.
    static F rounded(F a) { return each([&](int i) { return from_bf16(to_bf16(a.v[i])); }); }
};

}  // namespace
}  // namespace moe_local
