#include "processor.hpp"

#if defined(__aarch64__) && (defined(__GNUC__) || defined(__clang__))

#include <arm_neon.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("dotprod"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("arch=armv8.2-a+dotprod")
#endif

#include "lanes_neon.hpp"
#include "multiply.hpp"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace moe_local {

const Processor* neon() {
    static constexpr Processor made = with("neon");
    return &made;
}

}  // namespace moe_local

#else

const moe_local::Processor* moe_local::neon() { return nullptr; }

#endif
