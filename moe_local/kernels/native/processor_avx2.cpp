#include "processor.hpp"

#if defined(__x86_64__) || defined(_M_X64)

#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#elif defined(__GNUC__)
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif

#define MOE_LOCAL_VNNI 0
#include "lanes_avx2.hpp"
#include "multiply.hpp"

#if defined(__clang__)
#pragma clang attribute pop
#elif defined(__GNUC__)
#pragma GCC pop_options
#endif

namespace moe_local {

const Processor* avx2() {
    static constexpr Processor made = with("avx2");
    return &made;
}

}  // namespace moe_local

#else

const moe_local::Processor* moe_local::avx2() { return nullptr; }

#endif
