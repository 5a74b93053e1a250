// What both files of the border to Python check.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#include "layer.hpp"

namespace moe_local {

[[noreturn]] inline void refuse(const std::string& what) { throw std::invalid_argument(what); }

inline Type type_of(int type) {
    if (type != int(Type::float32) && type != int(Type::bfloat16)) refuse("numbers of type " + std::to_string(type));
    return Type(type);
}

inline Numbers numbers(const char* name, uintptr_t address, int64_t bytes, int type, int64_t rows, int64_t columns) {
    const Type known = type_of(type);
    if (rows < 1 || columns < 1 || rows > INT32_MAX / 2 || columns > INT32_MAX / 2)
        refuse(std::string(name) + ": " + std::to_string(rows) + " rows of " + std::to_string(columns));
    if (!address) refuse(std::string(name) + ": a null address");
    if (address % uintptr_t(size_of(known))) refuse(std::string(name) + ": a misaligned address");
    if (bytes / size_of(known) / columns < rows)
        refuse(std::string(name) + ": " + std::to_string(bytes) + " bytes, too few for " + std::to_string(rows) +
               " rows of " + std::to_string(columns) + " numbers");
    return {reinterpret_cast<void*>(address), known, int(rows), int(columns)};
}

}  // namespace moe_local
