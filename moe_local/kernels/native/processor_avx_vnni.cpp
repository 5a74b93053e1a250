#include "processor.hpp"

// Compilers that do not know AVX-VNNI: GCC before 11, Clang before 12, Microsoft's before 2022.
#if defined(__clang__)
#define KNOWN (__clang_major__ >= 12)
#elif defined(__GNUC__)
#define KNOWN (__GNUC__ >= 11)
#else
#define KNOWN (_MSC_VER >= 1930)
#endif

#if (defined(__x86_64__) || defined(_M_X64)) && KNOWN

#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,avxvnni"))), apply_to = function)
#elif defined(__GNUC__)
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avxvnni")
#endif

#define MOE_LOCAL_VNNI 1
#include "lanes_avx2.hpp"
#include "multiply.hpp"

#if defined(__clang__)
#pragma clang attribute pop
#elif defined(__GNUC__)
#pragma GCC pop_options
#endif

namespace moe_local {

const Processor* avx_vnni() {
    static constexpr Processor made = with("avx-vnni");
    return &made;
}

}  // namespace moe_local

#else

const moe_local::Processor* moe_local::avx_vnni() { return nullptr; }

#endif
