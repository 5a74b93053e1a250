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

// To the nearest, ties to even; a NaN stays one.
inline uint16_t to_bf16(float value) {
    const uint32_t bits = bits_of(value);
    if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fc0;
    return uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

}  // namespace moe_local
