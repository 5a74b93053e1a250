#include "processor.hpp"

#if defined(__x86_64__) || defined(_M_X64)

#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c"))), apply_to = function)
#elif defined(__GNUC__)
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c,prefer-vector-width=512")
#endif

#include "lanes_avx512.hpp"
#include "multiply.hpp"

#if defined(__clang__)
#pragma clang attribute pop
#elif defined(__GNUC__)
#pragma GCC pop_options
#endif

namespace moe_local {

const Processor* avx512() {
    static constexpr Processor made = with("avx512");
    return &made;
}

}  // namespace moe_local

#else

const moe_local::Processor* moe_local::avx512() { return nullptr; }

#endif
