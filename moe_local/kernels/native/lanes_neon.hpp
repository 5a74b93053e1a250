// Sixteen lanes in four registers of NEON, dots by its dot product instructions.
#pragma once

#include <arm_neon.h>

#include "numbers.hpp"

namespace moe_local {
namespace {

struct Lanes {
    static constexpr int TILE = 4;     // tokens at once
    static constexpr int STREAMS = 4;  // blocks at once with one token

    struct F {
        float32x4_t v[4];
    };
    struct I {
        int32x4_t v[4];
    };
    struct Bytes {
        uint8x16_t v[4];
    };
    using Dots = I;

    template <class Make>
    static F each(Make make) {
        return {{make(0), make(1), make(2), make(3)}};
    }
    template <class Make>
    static I each_whole(Make make) {
        return {{make(0), make(1), make(2), make(3)}};
    }

    static F set(float x) {
        return each([&](int) { return vdupq_n_f32(x); });
    }
    static F load(const float* x) {
        return each([&](int i) { return vld1q_f32(x + 4 * i); });
    }
    static F load_bf16(const uint16_t* x) {
        return each([&](int i) { return vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(x + 4 * i), 16)); });
    }
    static void store(float* to, const F& x) {
        for (int i = 0; i < 4; i++) vst1q_f32(to + 4 * i, x.v[i]);
    }
    static void store_bf16(uint16_t* to, const F& x) {
        for (int i = 0; i < 4; i++) {
            const uint32x4_t raw = vreinterpretq_u32_f32(x.v[i]);
            const uint32x4_t odd = vandq_u32(vshrq_n_u32(raw, 16), vdupq_n_u32(1));
            const uint32x4_t kept = vshrq_n_u32(vaddq_u32(raw, vaddq_u32(odd, vdupq_n_u32(0x7fff))), 16);
            vst1_u16(to + 4 * i, vmovn_u32(vbslq_u32(vceqq_f32(x.v[i], x.v[i]), kept, vdupq_n_u32(0x7fc0))));
        }
    }
    static F add(const F& a, const F& b) {
        return each([&](int i) { return vaddq_f32(a.v[i], b.v[i]); });
    }
    static F sub(const F& a, const F& b) {
        return each([&](int i) { return vsubq_f32(a.v[i], b.v[i]); });
    }
    static F mul(const F& a, const F& b) {
        return each([&](int i) { return vmulq_f32(a.v[i], b.v[i]); });
    }
    static F div(const F& a, const F& b) {
        return each([&](int i) { return vdivq_f32(a.v[i], b.v[i]); });
    }
    static F fma(const F& a, const F& b, const F& c) {
        return each([&](int i) { return vfmaq_f32(c.v[i], a.v[i], b.v[i]); });
    }
    // b where either is NaN, as x86 has it.
    static F min(const F& a, const F& b) {
        return each([&](int i) { return vbslq_f32(vcltq_f32(a.v[i], b.v[i]), a.v[i], b.v[i]); });
    }
    static F max(const F& a, const F& b) {
        return each([&](int i) { return vbslq_f32(vcgtq_f32(a.v[i], b.v[i]), a.v[i], b.v[i]); });
    }
    static F round(const F& a) {
        return each([&](int i) { return vrndnq_f32(a.v[i]); });
    }
    static F magnitude(const F& a) {
        return each([&](int i) { return vabsq_f32(a.v[i]); });
    }
    static F with_sign_of(const F& a, const F& b) {
        return each([&](int i) { return vbslq_f32(vdupq_n_u32(0x80000000), b.v[i], a.v[i]); });
    }
    static F scale(const F& a, const F& n) {
        return each([&](int i) {
            const int32x4_t power = vshlq_n_s32(vaddq_s32(vcvtnq_s32_f32(n.v[i]), vdupq_n_s32(127)), 23);
            return vmulq_f32(a.v[i], vreinterpretq_f32_s32(power));
        });
    }

    static I bits(const F& a) {
        return each_whole([&](int i) { return vreinterpretq_s32_f32(a.v[i]); });
    }
    static I greater(const I& a, const I& b) {
        return each_whole([&](int i) { return vmaxq_s32(a.v[i], b.v[i]); });
    }
    static int32_t greatest(const I& a) {
        return vmaxvq_s32(vmaxq_s32(vmaxq_s32(a.v[0], a.v[1]), vmaxq_s32(a.v[2], a.v[3])));
    }
    static int32_t store_codes(int8_t* to, const F& a) {
        const I whole = each_whole([&](int i) { return vcvtnq_s32_f32(a.v[i]); });
        const int16x8_t first = vcombine_s16(vmovn_s32(whole.v[0]), vmovn_s32(whole.v[1]));
        const int16x8_t second = vcombine_s16(vmovn_s32(whole.v[2]), vmovn_s32(whole.v[3]));
        vst1q_s8(to, vcombine_s8(vmovn_s16(first), vmovn_s16(second)));
        return vaddvq_s32(vaddq_s32(vaddq_s32(whole.v[0], whole.v[1]), vaddq_s32(whole.v[2], whole.v[3])));
    }

    static Bytes bytes(const uint8_t* at) {
        return {{vld1q_u8(at), vld1q_u8(at + 16), vld1q_u8(at + 32), vld1q_u8(at + 48)}};
    }
    static void store_bytes(uint8_t* to, const Bytes& x) {
        for (int i = 0; i < 4; i++) vst1q_u8(to + 16 * i, x.v[i]);
    }
    static void gather(const uint8_t* at, size_t stride, Bytes (&words)[4]) {
        for (int i = 0; i < 4; i++) {
            const uint8_t* rows = at + 4 * i * stride;
            const uint32x4_t a = vreinterpretq_u32_u8(vld1q_u8(rows));
            const uint32x4_t b = vreinterpretq_u32_u8(vld1q_u8(rows + stride));
            const uint32x4_t c = vreinterpretq_u32_u8(vld1q_u8(rows + 2 * stride));
            const uint32x4_t d = vreinterpretq_u32_u8(vld1q_u8(rows + 3 * stride));
            const uint64x2_t ab = vreinterpretq_u64_u32(vzip1q_u32(a, b)), cd = vreinterpretq_u64_u32(vzip1q_u32(c, d));
            const uint64x2_t above = vreinterpretq_u64_u32(vzip2q_u32(a, b));
            const uint64x2_t below = vreinterpretq_u64_u32(vzip2q_u32(c, d));
            words[0].v[i] = vreinterpretq_u8_u64(vzip1q_u64(ab, cd));
            words[1].v[i] = vreinterpretq_u8_u64(vzip2q_u64(ab, cd));
            words[2].v[i] = vreinterpretq_u8_u64(vzip1q_u64(above, below));
            words[3].v[i] = vreinterpretq_u8_u64(vzip2q_u64(above, below));
        }
    }
    static I words_of_rows(const uint8_t* at, size_t stride) {
        int32_t words[16];
        for (int r = 0; r < 16; r++) std::memcpy(words + r, at + r * stride, 4);
        return each_whole([&](int i) { return vld1q_s32(words + 4 * i); });
    }
    static F pick16(const float* table, const I& index) { return pick(table, index); }
    static F pick(const float* table, const I& index) {
        int32_t places[16];
        float found[16];
        for (int i = 0; i < 4; i++) vst1q_s32(places + 4 * i, index.v[i]);
        for (int i = 0; i < 16; i++) found[i] = table[places[i]];
        return load(found);
    }
    template <class Make>
    static Bytes each_bytes(Make make) {
        return {{make(0), make(1), make(2), make(3)}};
    }
    static Bytes field(const Bytes& a, int shift, uint8_t mask) {
        return each_bytes([&](int i) { return vandq_u8(vshlq_u8(a.v[i], vdupq_n_s8(int8_t(-shift))), vdupq_n_u8(mask)); });
    }
    static Bytes times16(const Bytes& a) {
        return each_bytes([&](int i) { return vshlq_n_u8(a.v[i], 4); });
    }
    static Bytes either(const Bytes& a, const Bytes& b) {
        return each_bytes([&](int i) { return vorrq_u8(a.v[i], b.v[i]); });
    }
    static Bytes minus(const Bytes& a, uint8_t b) {
        return each_bytes([&](int i) { return vsubq_u8(a.v[i], vdupq_n_u8(b)); });
    }
    static Bytes look_up(const uint8_t* table, const Bytes& a) {
        return each_bytes([&](int i) { return vqtbl1q_u8(vld1q_u8(table), a.v[i]); });
    }

    static I words(const Bytes& a) {
        return each_whole([&](int i) { return vreinterpretq_s32_u8(a.v[i]); });
    }
    static I word_field(const I& a, int shift, int32_t mask) {
        return each_whole([&](int i) {
            const uint32x4_t moved = vshlq_u32(vreinterpretq_u32_s32(a.v[i]), vdupq_n_s32(-shift));
            return vandq_s32(vreinterpretq_s32_u32(moved), vdupq_n_s32(mask));
        });
    }
    static I word_times16(const I& a) {
        return each_whole([&](int i) { return vshlq_n_s32(a.v[i], 4); });
    }
    static I word_either(const I& a, const I& b) {
        return each_whole([&](int i) { return vorrq_s32(a.v[i], b.v[i]); });
    }
    static F from_words(const I& a) {
        return each([&](int i) { return vcvtq_f32_s32(a.v[i]); });
    }
    static F halves(const I& a) {
        return each([&](int i) { return vcvt_f32_f16(vreinterpret_f16_u16(vmovn_u32(vreinterpretq_u32_s32(a.v[i])))); });
    }
    static Bytes low(const Bytes& a) {
        const uint8x16_t mask = vdupq_n_u8(15);
        return {{vandq_u8(a.v[0], mask), vandq_u8(a.v[1], mask), vandq_u8(a.v[2], mask), vandq_u8(a.v[3], mask)}};
    }
    static Bytes high(const Bytes& a) {
        return {{vshrq_n_u8(a.v[0], 4), vshrq_n_u8(a.v[1], 4), vshrq_n_u8(a.v[2], 4), vshrq_n_u8(a.v[3], 4)}};
    }
    template <int j>
    static F unsigned_byte(const Bytes& a) {
        return each([&](int i) {
            const uint32x4_t words = vshlq_n_u32(vreinterpretq_u32_u8(a.v[i]), 24 - 8 * j);
            return vcvtq_f32_u32(vshrq_n_u32(words, 24));
        });
    }
    template <int j>
    static F signed_byte(const Bytes& a) {
        return each([&](int i) {
            const int32x4_t words = vshlq_n_s32(vreinterpretq_s32_u8(a.v[i]), 24 - 8 * j);
            return vcvtq_f32_s32(vshrq_n_s32(words, 24));
        });
    }

    static constexpr int SIGNED_BIAS = 0;

    static Dots start(const int32_t* first) {
        return each_whole([&](int) { return vdupq_n_s32(*first); });
    }
    static void dot4(Dots& dots, const Bytes& codes, const int8_t* four) {
        int32_t word;
        std::memcpy(&word, four, sizeof word);
        const int8x16_t x = vreinterpretq_s8_s32(vdupq_n_s32(word));
        for (int i = 0; i < 4; i++) dots.v[i] = vdotq_s32(dots.v[i], vreinterpretq_s8_u8(codes.v[i]), x);
    }
    static void dot8(Dots& dots, const Bytes& codes, const int8_t* four) { dot4(dots, codes, four); }
    static void fold(Dots&) {}
    static F finish(const Dots& dots) {
        return each([&](int i) { return vcvtq_f32_s32(dots.v[i]); });
    }
    static Dots join(const Dots& a, const Dots& b) {
        return each_whole([&](int i) { return vaddq_s32(a.v[i], b.v[i]); });
    }
    static Dots nothing() {
        return each_whole([&](int) { return vdupq_n_s32(0); });
    }

    static float total(const F& a) {
        const float32x4_t four = vaddq_f32(vaddq_f32(a.v[0], a.v[2]), vaddq_f32(a.v[1], a.v[3]));
        const float32x2_t two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
        return vget_lane_f32(two, 0) + vget_lane_f32(two, 1);
    }
    static F rounded(const F& a) {
        uint16_t part[16];
        store_bf16(part, a);
        return load_bf16(part);
    }
};

}  // namespace
}  // namespace moe_local
