// Sixteen lanes in two registers of AVX2; dots by AVX-VNNI where MOE_LOCAL_VNNI is set.
#pragma once

#include <immintrin.h>

#include "numbers.hpp"

namespace moe_local {
namespace {

struct Lanes {
    static constexpr int TILE = 4;     // tokens at once
    static constexpr int STREAMS = 4;  // blocks at once with one token

    struct F {
        __m256 a, b;
    };
    struct I {
        __m256i a, b;
    };
    using Bytes = I;
#if MOE_LOCAL_VNNI
    using Dots = I;
#else
    struct Dots {
        I whole, pairs;  // int32; int16 that are not in `whole` yet
    };
#endif

    static F set(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
    static F load(const float* x) { return {_mm256_loadu_ps(x), _mm256_loadu_ps(x + 8)}; }
    static F load_bf16(const uint16_t* x) {
        const __m256i raw = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
        const __m256i a = _mm256_cvtepu16_epi32(_mm256_castsi256_si128(raw));
        const __m256i b = _mm256_cvtepu16_epi32(_mm256_extracti128_si256(raw, 1));
        return {_mm256_castsi256_ps(_mm256_slli_epi32(a, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(b, 16))};
    }
    static void store(float* to, F x) {
        _mm256_storeu_ps(to, x.a);
        _mm256_storeu_ps(to + 8, x.b);
    }
    static __m256i rounded_to_bf16(__m256 x) {
        const __m256i raw = _mm256_castps_si256(x);
        const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(raw, 16), _mm256_set1_epi32(1));
        const __m256i kept =
            _mm256_srli_epi32(_mm256_add_epi32(raw, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
        const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
        return _mm256_blendv_epi8(kept, _mm256_set1_epi32(0x7fc0), nan);
    }
    static void store_bf16(uint16_t* to, F x) {
        const __m256i mixed = _mm256_packus_epi32(rounded_to_bf16(x.a), rounded_to_bf16(x.b));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_permute4x64_epi64(mixed, 0xd8));
    }
    static F add(F x, F y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
    static F sub(F x, F y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
    static F mul(F x, F y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
    static F div(F x, F y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
    static F fma(F x, F y, F z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
    static F min(F x, F y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
    static F max(F x, F y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
    static F round(F x) {
        constexpr int nearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        return {_mm256_round_ps(x.a, nearest), _mm256_round_ps(x.b, nearest)};
    }
    static F magnitude(F x) {
        const __m256 sign = _mm256_set1_ps(-0.0f);
        return {_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b)};
    }
    static F with_sign_of(F x, F y) {
        const __m256 sign = _mm256_set1_ps(-0.0f);
        return {_mm256_or_ps(_mm256_andnot_ps(sign, x.a), _mm256_and_ps(sign, y.a)),
                _mm256_or_ps(_mm256_andnot_ps(sign, x.b), _mm256_and_ps(sign, y.b))};
    }
    static __m256 power(__m256 n) {
        return _mm256_castsi256_ps(
            _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
    }
    static F scale(F x, F n) { return {_mm256_mul_ps(x.a, power(n.a)), _mm256_mul_ps(x.b, power(n.b))}; }

    static I bits(F x) { return {_mm256_castps_si256(x.a), _mm256_castps_si256(x.b)}; }
    static I greater(I x, I y) { return {_mm256_max_epi32(x.a, y.a), _mm256_max_epi32(x.b, y.b)}; }
    static int32_t greatest(I x) {
        const __m256i eight = _mm256_max_epi32(x.a, x.b);
        __m128i four = _mm_max_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
        four = _mm_max_epi32(four, _mm_shuffle_epi32(four, 0x4e));
        return _mm_cvtsi128_si32(_mm_max_epi32(four, _mm_shuffle_epi32(four, 0xb1)));
    }
    static int32_t store_codes(int8_t* to, F x) {
        const __m256i a = _mm256_cvtps_epi32(x.a), b = _mm256_cvtps_epi32(x.b);
        const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(a, b), 0xd8);
        const __m128i codes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to), codes);
        const __m256i eight = _mm256_add_epi32(a, b);
        __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
        four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
        return _mm_cvtsi128_si32(_mm_add_epi32(four, _mm_shuffle_epi32(four, 0xb1)));
    }

    static Bytes bytes(const uint8_t* at) {
        return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)),
                _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at + 32))};
    }
    static void store_bytes(uint8_t* to, Bytes x) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), x.a);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + 32), x.b);
    }
    static __m256i two_rows(const uint8_t* at, size_t apart) {
        const __m128i first = _mm_loadu_si128(reinterpret_cast<const __m128i*>(at));
        const __m128i second = _mm_loadu_si128(reinterpret_cast<const __m128i*>(at + apart));
        return _mm256_inserti128_si256(_mm256_castsi128_si256(first), second, 1);
    }
    static void gather_eight(const uint8_t* at, size_t stride, __m256i (&words)[4]) {
        const __m256i a = two_rows(at, 4 * stride), b = two_rows(at + stride, 4 * stride);
        const __m256i c = two_rows(at + 2 * stride, 4 * stride), d = two_rows(at + 3 * stride, 4 * stride);
        const __m256i ab = _mm256_unpacklo_epi32(a, b), cd = _mm256_unpacklo_epi32(c, d);
        words[0] = _mm256_unpacklo_epi64(ab, cd);
        words[1] = _mm256_unpackhi_epi64(ab, cd);
        const __m256i above = _mm256_unpackhi_epi32(a, b), below = _mm256_unpackhi_epi32(c, d);
        words[2] = _mm256_unpacklo_epi64(above, below);
        words[3] = _mm256_unpackhi_epi64(above, below);
    }
    static void gather(const uint8_t* at, size_t stride, Bytes (&words)[4]) {
        __m256i first[4], second[4];
        gather_eight(at, stride, first);
        gather_eight(at + 8 * stride, stride, second);
        for (int w = 0; w < 4; w++) words[w] = {first[w], second[w]};
    }
    static I words_of_rows(const uint8_t* at, size_t stride) {
        const __m256i rows = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        const __m256i places = _mm256_mullo_epi32(rows, _mm256_set1_epi32(int(stride)));
        return {_mm256_i32gather_epi32(reinterpret_cast<const int*>(at), places, 1),
                _mm256_i32gather_epi32(reinterpret_cast<const int*>(at + 8 * stride), places, 1)};
    }
    static __m256 eight_of_16(const float* table, __m256i index) {
        const __m256 low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table), index);
        const __m256 high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table + 8), index);
        return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(index, 28)));
    }
    static F pick16(const float* table, I index) { return {eight_of_16(table, index.a), eight_of_16(table, index.b)}; }
    static F pick(const float* table, I index) {
        return {_mm256_i32gather_ps(table, index.a, 4), _mm256_i32gather_ps(table, index.b, 4)};
    }
    static Bytes field(Bytes x, int shift, uint8_t mask) {
        const __m128i by = _mm_cvtsi32_si128(shift);
        const __m256i kept = _mm256_set1_epi8(char(mask));
        return {_mm256_and_si256(_mm256_srl_epi16(x.a, by), kept), _mm256_and_si256(_mm256_srl_epi16(x.b, by), kept)};
    }
    static Bytes times16(Bytes x) {
        const __m256i kept = _mm256_set1_epi8(char(0xf0));
        return {_mm256_and_si256(_mm256_slli_epi16(x.a, 4), kept), _mm256_and_si256(_mm256_slli_epi16(x.b, 4), kept)};
    }
    static I either(I x, I y) { return {_mm256_or_si256(x.a, y.a), _mm256_or_si256(x.b, y.b)}; }
    static Bytes minus(Bytes x, uint8_t y) {
        const __m256i all = _mm256_set1_epi8(char(y));
        return {_mm256_sub_epi8(x.a, all), _mm256_sub_epi8(x.b, all)};
    }
    static Bytes look_up(const uint8_t* table, Bytes x) {
        const __m128i sixteen = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table));
        const __m256i both = _mm256_broadcastsi128_si256(sixteen);
        return {_mm256_shuffle_epi8(both, x.a), _mm256_shuffle_epi8(both, x.b)};
    }

    static I words(Bytes x) { return x; }
    static I word_field(I x, int shift, int32_t mask) {
        const __m128i by = _mm_cvtsi32_si128(shift);
        const __m256i kept = _mm256_set1_epi32(mask);
        return {_mm256_and_si256(_mm256_srl_epi32(x.a, by), kept), _mm256_and_si256(_mm256_srl_epi32(x.b, by), kept)};
    }
    static I word_times16(I x) { return {_mm256_slli_epi32(x.a, 4), _mm256_slli_epi32(x.b, 4)}; }
    static I word_either(I x, I y) { return either(x, y); }
    static F from_words(I x) { return from_whole(x); }
    static __m256 eight_halves(__m256i x) {
        const __m256i low = _mm256_and_si256(x, _mm256_set1_epi32(0xffff));
        const __m256i mixed = _mm256_permute4x64_epi64(_mm256_packus_epi32(low, low), 0xd8);
        return _mm256_cvtph_ps(_mm256_castsi256_si128(mixed));
    }
    static F halves(I x) { return {eight_halves(x.a), eight_halves(x.b)}; }
    static Bytes low(Bytes x) {
        const __m256i mask = _mm256_set1_epi8(15);
        return {_mm256_and_si256(x.a, mask), _mm256_and_si256(x.b, mask)};
    }
    static Bytes high(Bytes x) { return low({_mm256_srli_epi16(x.a, 4), _mm256_srli_epi16(x.b, 4)}); }
    static F from_whole(I x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
    template <int j>
    static F unsigned_byte(Bytes x) {
        const __m256i mask = _mm256_set1_epi32(255);
        return from_whole({_mm256_and_si256(_mm256_srli_epi32(x.a, 8 * j), mask),
                           _mm256_and_si256(_mm256_srli_epi32(x.b, 8 * j), mask)});
    }
    template <int j>
    static F signed_byte(Bytes x) {
        return from_whole({_mm256_srai_epi32(_mm256_slli_epi32(x.a, 24 - 8 * j), 24),
                           _mm256_srai_epi32(_mm256_slli_epi32(x.b, 24 - 8 * j), 24)});
    }

    static __m256i broadcast(const int8_t* four) {
        int32_t word;
        std::memcpy(&word, four, sizeof word);
        return _mm256_set1_epi32(word);
    }
    static I zeros() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
    static I plus(I x, I y) { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
    static I whole(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }

#if MOE_LOCAL_VNNI
    static constexpr int SIGNED_BIAS = -128;

    static Dots start(const int32_t* first) { return whole(*first); }
    static void dot4(Dots& dots, Bytes codes, const int8_t* four) {
        const __m256i x = broadcast(four);
        dots.a = _mm256_dpbusd_avx_epi32(dots.a, codes.a, x);
        dots.b = _mm256_dpbusd_avx_epi32(dots.b, codes.b, x);
    }
    static void dot8(Dots& dots, Bytes codes, const int8_t* four) {
        const __m256i flip = _mm256_set1_epi8(char(0x80));
        dot4(dots, {_mm256_xor_si256(codes.a, flip), _mm256_xor_si256(codes.b, flip)}, four);
    }
    static void fold(Dots&) {}
    static F finish(const Dots& dots) { return from_whole(dots); }
    static Dots join(Dots x, const Dots& y) { return plus(x, y); }
    static Dots nothing() { return zeros(); }
#else
    static constexpr int SIGNED_BIAS = 0;

    static Dots start(const int32_t* first) { return {whole(*first), zeros()}; }
    // Two products of a 4-bit code are 3,810 at the most: eight such pairs fit 16 bits.
    static void dot4(Dots& dots, Bytes codes, const int8_t* four) {
        const __m256i x = broadcast(four);
        dots.pairs.a = _mm256_add_epi16(dots.pairs.a, _mm256_maddubs_epi16(codes.a, x));
        dots.pairs.b = _mm256_add_epi16(dots.pairs.b, _mm256_maddubs_epi16(codes.b, x));
    }
    // Of two bytes from -127 to 127 they are 32,258 at the most: one pair fits.
    static void dot8(Dots& dots, Bytes codes, const int8_t* four) {
        const __m256i x = broadcast(four), one = _mm256_set1_epi16(1);
        const __m256i a = _mm256_maddubs_epi16(_mm256_abs_epi8(codes.a), _mm256_sign_epi8(x, codes.a));
        const __m256i b = _mm256_maddubs_epi16(_mm256_abs_epi8(codes.b), _mm256_sign_epi8(x, codes.b));
        dots.whole = plus(dots.whole, {_mm256_madd_epi16(a, one), _mm256_madd_epi16(b, one)});
    }
    static void fold(Dots& dots) {
        const __m256i one = _mm256_set1_epi16(1);
        dots.whole = plus(dots.whole, {_mm256_madd_epi16(dots.pairs.a, one), _mm256_madd_epi16(dots.pairs.b, one)});
        dots.pairs = zeros();
    }
    static F finish(const Dots& dots) { return from_whole(dots.whole); }
    static Dots join(const Dots& x, const Dots& y) { return {plus(x.whole, y.whole), zeros()}; }
    static Dots nothing() { return {zeros(), zeros()}; }
#endif

    static float total(F x) {
        const __m256 eight = _mm256_add_ps(x.a, x.b);
        __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
        four = _mm_add_ps(four, _mm_movehl_ps(four, four));
        return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
    }
    static F rounded(F x) {
        return {_mm256_castsi256_ps(_mm256_slli_epi32(rounded_to_bf16(x.a), 16)),
                _mm256_castsi256_ps(_mm256_slli_epi32(rounded_to_bf16(x.b), 16))};
    }
};

}  // namespace
}  // namespace moe_local
