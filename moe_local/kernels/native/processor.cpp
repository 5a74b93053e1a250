#include "processor.hpp"

#include <cstring>

#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#if defined(_MSC_VER)
#include <intrin.h>
#else
#include <cpuid.h>
#endif
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace moe_local {
namespace {

float half_of_e8m0(uint32_t exponent) { return float_of(exponent > 1 ? (exponent - 1) << 23 : 0x200000u << exponent); }

float e4m3(uint32_t value) {
    const uint32_t sign = (value & 0x80) << 24, rest = value & 0x7f;
    if (rest == 0x7f) return float_of(0x7fc00000);
    if (rest >= 8) return float_of(sign | ((rest << 20) + (120u << 23)));
    return float_of(bits_of(float(rest) * 0.001953125f) | sign);  // 2^-9
}

ByteTables byte_tables() {
    ByteTables made;
    for (uint32_t byte = 0; byte < 256; byte++) {
        made.half_of_e8m0[byte] = half_of_e8m0(byte);
        made.e4m3[byte] = e4m3(byte);
    }
    return made;
}

#if defined(__x86_64__) || defined(_M_X64)

struct Registers {
    unsigned a = 0, b = 0, c = 0, d = 0;
};

Registers cpuid(unsigned leaf, unsigned part) {
    Registers found;
#if defined(_MSC_VER)
    int raw[4];
    __cpuidex(raw, int(leaf), int(part));
    found = {unsigned(raw[0]), unsigned(raw[1]), unsigned(raw[2]), unsigned(raw[3])};
#else
    __get_cpuid_count(leaf, part, &found.a, &found.b, &found.c, &found.d);
#endif
    return found;
}

// Which registers the system saves when it switches threads.
unsigned saved_by_the_system() {
    if (!(cpuid(1, 0).c >> 27 & 1)) return 0;
#if defined(_MSC_VER)
    return unsigned(_xgetbv(0));
#else
    unsigned low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
#endif
}

bool has(unsigned value, int bit) { return value >> bit & 1; }

bool can_avx2() {
    const bool saved = (saved_by_the_system() & 0x6) == 0x6;
    return saved && has(cpuid(7, 0).b, 5) && has(cpuid(1, 0).c, 12) && has(cpuid(1, 0).c, 29);  // AVX2, FMA, F16C
}

bool can_avx_vnni() { return can_avx2() && has(cpuid(7, 1).a, 4); }

bool can_avx512() {
    const bool saved = (saved_by_the_system() & 0xe6) == 0xe6;
    const Registers seven = cpuid(7, 0);
    return saved && can_avx2() && has(seven.b, 16) && has(seven.b, 17) && has(seven.b, 30) && has(seven.b, 31) &&
           has(seven.c, 11);  // F, DQ, BW, VL, VNNI
}

bool can_neon() { return false; }

#else

bool can_avx2() { return false; }
bool can_avx_vnni() { return false; }
bool can_avx512() { return false; }

bool can_neon() {
#if defined(__aarch64__) && defined(__linux__)
    return getauxval(AT_HWCAP) >> 20 & 1;  // dot products
#elif defined(__aarch64__) && defined(__APPLE__)
    int found = 0;
    size_t size = sizeof found;
    return sysctlbyname("hw.optional.arm.FEAT_DotProd", &found, &size, nullptr, 0) == 0 && found;
#else
    return false;
#endif
}

#endif

bool always() { return true; }

struct Choice {
    const Processor* (*made)();
    bool (*can)();
};

constexpr Choice FASTEST_FIRST[] = {
    {avx512, can_avx512}, {avx_vnni, can_avx_vnni}, {avx2, can_avx2}, {neon, can_neon}, {portable, always},
};

}  // namespace

const ByteTables TABLES = byte_tables();

const Processor* choose(const char* name) {
    for (const Choice& choice : FASTEST_FIRST) {
        const Processor* made = choice.made();
        if (made && choice.can() && (!name || std::strcmp(name, made->name) == 0)) return made;
    }
    return nullptr;
}

}  // namespace moe_local
