// Types of numbers that cross the border, and conversions that every processor does alike.
#pragma once

#include <cstdint>
#include <cstring>

namespace moe_local {

enum class Type : int { float32 = 0, bfloat16 = 1 };

inline int size_of(Type type) { return type == Type::float32 ? 4 : 2; }

inline uint32_t bits_of(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

inline float float_of(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline float from_bf16(uint16_t value) { return float_of(uint32_t(value) << 16); }

inline float from_half(uint16_t value) {
    const uint32_t sign = uint32_t(value & 0x8000) << 16, rest = value & 0x7fff;
    if (rest >= 0x7c00) return float_of(sign | 0x7f800000 | (rest & 0x3ff ? 0x400000 | (rest & 0x3ff) << 13 : 0));
    if (rest >= 0x400) return float_of(sign | ((rest << 13) + 0x38000000));
    const float small = float(rest) * 5.9604644775390625e-8f;  // 2^-24
    return sign ? -small : small;
}

// By byte: half of E8M0's powers of two, for twice the numbers that they scale; and E4M3's numbers.
struct ByteTables {
    float half_of_e8m0[256], e4m3[256];
};
extern const ByteTables TABLES;

// To the nearest, ties to even; a NaN stays one.
inline uint16_t to_bf16(float value) {
    const uint32_t bits = bits_of(value);
    if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fc0;
    return uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

inline float read_number(const void* data, Type type, int at) {
    return type == Type::float32 ? static_cast<const float*>(data)[at]
                                 : from_bf16(static_cast<const uint16_t*>(data)[at]);
}

inline void write_number(float value, Type type, void* data, int at) {
    if (type == Type::float32)
        static_cast<float*>(data)[at] = value;
    else
        static_cast<uint16_t*>(data)[at] = to_bf16(value);
}

}  // namespace moe_local
