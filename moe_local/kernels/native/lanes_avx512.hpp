// Sixteen lanes in one register of AVX-512, dots by VNNI.
#pragma once

#include <immintrin.h>

#include "numbers.hpp"

namespace moe_local {
namespace {

struct Lanes {
    static constexpr int TILE = 12;    // tokens at once
    static constexpr int STREAMS = 4;  // blocks at once with one token

    using F = __m512;
    using I = __m512i;
    using Bytes = __m512i;
    using Dots = __m512i;

    static F set(float x) { return _mm512_set1_ps(x); }
    static F load(const float* x) { return _mm512_loadu_ps(x); }
    static F load_bf16(const uint16_t* x) {
        const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)));
        return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
    }
    static void store(float* to, F x) { _mm512_storeu_ps(to, x); }
    static void store_bf16(uint16_t* to, F x) {
        const __m512i raw = _mm512_castps_si512(x);
        const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(raw, 16), _mm512_set1_epi32(1));
        __m512i kept = _mm512_add_epi32(raw, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
        kept = _mm512_srli_epi32(kept, 16);
        const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
        kept = _mm512_mask_set1_epi32(kept, nan, 0x7fc0);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16(kept));
    }
    static F add(F a, F b) { return _mm512_add_ps(a, b); }
    static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
    static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
    static F div(F a, F b) { return _mm512_div_ps(a, b); }
    static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
    static F min(F a, F b) { return _mm512_min_ps(a, b); }
    static F max(F a, F b) { return _mm512_max_ps(a, b); }
    static F round(F a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
    static F magnitude(F a) { return _mm512_abs_ps(a); }
    static F with_sign_of(F a, F b) {
        const __m512i sign = _mm512_set1_epi32(int(0x80000000));
        return _mm512_castsi512_ps(_mm512_ternarylogic_epi32(sign, _mm512_castps_si512(b), _mm512_castps_si512(a), 0xca));
    }
    static F scale(F a, F n) {
        const __m512i power = _mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23);
        return _mm512_mul_ps(a, _mm512_castsi512_ps(power));
    }

    static I bits(F a) { return _mm512_castps_si512(a); }
    static I greater(I a, I b) { return _mm512_max_epi32(a, b); }
    static int32_t greatest(I a) { return _mm512_reduce_max_epi32(a); }
    static int32_t store_codes(int8_t* to, F a) {
        const __m512i whole = _mm512_cvtps_epi32(a);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(whole));
        return _mm512_reduce_add_epi32(whole);
    }

    static Bytes bytes(const uint8_t* at) { return _mm512_loadu_si512(at); }
    static void store_bytes(uint8_t* to, Bytes x) { _mm512_storeu_si512(to, x); }
    static __m512i four_rows(const uint8_t* at, size_t apart) {
        const auto row = [&](int r) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(at + r * apart)); };
        __m512i rows = _mm512_castsi128_si512(row(0));
        rows = _mm512_inserti32x4(rows, row(1), 1);
        rows = _mm512_inserti32x4(rows, row(2), 2);
        return _mm512_inserti32x4(rows, row(3), 3);
    }
    static void gather(const uint8_t* at, size_t stride, Bytes (&words)[4]) {
        const __m512i a = four_rows(at, 4 * stride), b = four_rows(at + stride, 4 * stride);
        const __m512i c = four_rows(at + 2 * stride, 4 * stride), d = four_rows(at + 3 * stride, 4 * stride);
        const __m512i ab = _mm512_unpacklo_epi32(a, b), cd = _mm512_unpacklo_epi32(c, d);
        words[0] = _mm512_unpacklo_epi64(ab, cd);
        words[1] = _mm512_unpackhi_epi64(ab, cd);
        const __m512i above = _mm512_unpackhi_epi32(a, b), below = _mm512_unpackhi_epi32(c, d);
        words[2] = _mm512_unpacklo_epi64(above, below);
        words[3] = _mm512_unpackhi_epi64(above, below);
    }
    static I words_of_rows(const uint8_t* at, size_t stride) {
        const __m512i rows = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        return _mm512_i32gather_epi32(_mm512_mullo_epi32(rows, _mm512_set1_epi32(int(stride))), at, 1);
    }
    static F pick16(const float* table, I index) { return _mm512_permutexvar_ps(index, _mm512_loadu_ps(table)); }
    static F pick(const float* table, I index) { return _mm512_i32gather_ps(index, table, 4); }
    static Bytes field(Bytes a, int shift, uint8_t mask) {
        return _mm512_and_si512(_mm512_srl_epi16(a, _mm_cvtsi32_si128(shift)), _mm512_set1_epi8(char(mask)));
    }
    static Bytes times16(Bytes a) { return _mm512_and_si512(_mm512_slli_epi16(a, 4), _mm512_set1_epi8(char(0xf0))); }
    static Bytes either(Bytes a, Bytes b) { return _mm512_or_si512(a, b); }
    static Bytes minus(Bytes a, uint8_t b) { return _mm512_sub_epi8(a, _mm512_set1_epi8(char(b))); }
    static Bytes look_up(const uint8_t* table, Bytes a) {
        const __m128i sixteen = _mm_loadu_si128(reinterpret_cast<const __m128i*>(table));
        return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(sixteen), a);
    }

    static I words(Bytes a) { return a; }
    static I word_field(I a, int shift, int32_t mask) {
        return _mm512_and_si512(_mm512_srl_epi32(a, _mm_cvtsi32_si128(shift)), _mm512_set1_epi32(mask));
    }
    static I word_times16(I a) { return _mm512_slli_epi32(a, 4); }
    static I word_either(I a, I b) { return _mm512_or_si512(a, b); }
    static F from_words(I a) { return _mm512_cvtepi32_ps(a); }
    static F halves(I a) { return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(a)); }
    static Bytes low(Bytes a) { return _mm512_and_si512(a, _mm512_set1_epi8(15)); }
    static Bytes high(Bytes a) { return _mm512_and_si512(_mm512_srli_epi16(a, 4), _mm512_set1_epi8(15)); }
    template <int j>
    static F unsigned_byte(Bytes a) {
        return _mm512_cvtepi32_ps(_mm512_and_si512(_mm512_srli_epi32(a, 8 * j), _mm512_set1_epi32(255)));
    }
    template <int j>
    static F signed_byte(Bytes a) {
        return _mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(a, 24 - 8 * j), 24));
    }

    static constexpr int SIGNED_BIAS = -128;

    static Dots start(const int32_t* first) { return _mm512_set1_epi32(*first); }
    static void dot4(Dots& dots, Bytes codes, const int8_t* four) {
        int32_t word;
        std::memcpy(&word, four, sizeof word);
        dots = _mm512_dpbusd_epi32(dots, codes, _mm512_set1_epi32(word));
    }
    static void dot8(Dots& dots, Bytes codes, const int8_t* four) {
        dot4(dots, _mm512_xor_si512(codes, _mm512_set1_epi8(char(0x80))), four);
    }
    static void fold(Dots&) {}
    static F finish(Dots dots) { return _mm512_cvtepi32_ps(dots); }
    static Dots join(Dots a, Dots b) { return _mm512_add_epi32(a, b); }
    static Dots nothing() { return _mm512_setzero_si512(); }

    static float total(F a) {
        const __m256 upper = _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(a), 1));
        const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(a), upper);
        __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
        four = _mm_add_ps(four, _mm_movehl_ps(four, four));
        return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
    }
    static F rounded(F a) {
        const __m512i raw = _mm512_castps_si512(a);
        const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(raw, 16), _mm512_set1_epi32(1));
        __m512i kept = _mm512_add_epi32(raw, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
        kept = _mm512_and_si512(kept, _mm512_set1_epi32(int(0xffff0000)));
        kept = _mm512_mask_set1_epi32(kept, _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q), 0x7fc00000);
        return _mm512_castsi512_ps(kept);
    }
};

}  // namespace
}  // namespace moe_local
