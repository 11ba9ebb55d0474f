// Numbers as the codecs work on them: in float, rounded once an operation, half to even. Twin: kvgate/kernels/quantise.py.
//
// Only integer operations and IEEE float ones, in their own order, so that a CPU and a GPU give the same bits; built
// without fused multiply-add, without flushing subnormal numbers, and with exact division (kvgate/kernels/source.py).
#pragma once

#include "platform.cuh"

#define NOT_FINITE 0x7F800000u  // and every greater magnitude
#define POISON 0x7FC0u          // the scale of a group that cannot be kept

union Word {
    u32 bits;
    float number;
};

KV_INLINE float as_float(u32 bits) {
    Word word;
    word.bits = bits;
    return word.number;
}

KV_INLINE u32 as_bits(float number) {
    Word word;
    word.number = number;
    return word.bits;
}

KV_INLINE float clamp(float number, float low, float high) {
    return number < low ? low : number > high ? high : number;
}

KV_INLINE float from_bf16(u16 bits) { return as_float((u32)bits << 16); }

// Of a finite number or an infinity.
KV_INLINE u16 to_bf16(float number) {
    u32 bits = as_bits(number);
    return (u16)((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16);
}

KV_INLINE float from_f16(u16 bits) {
    u32 sign = (u32)(bits & 0x8000) << 16;
    u32 rest = (u32)(bits & 0x7FFF) << 13;
    if (rest >= 0x0F800000) return as_float(sign | (rest + (224u << 23)));  // an infinity, or a NaN
    // As a float it has an exponent that is 112 too small; a product with a power of two is exact.
    return as_float(sign | as_bits(as_float(rest) * as_float((127u + 112u) << 23)));
}

// Of a number that is at most 65504 in magnitude.
KV_INLINE u16 to_f16(float number) {
    u32 bits = as_bits(number);
    u32 sign = (bits >> 16) & 0x8000;
    bits &= 0x7FFFFFFF;
    if (bits < (113u << 23)) {
        // Below 2^-14 the steps are those of the last bits of numbers from 0.5 up: the sum rounds as it should.
        return (u16)(sign | (as_bits(as_float(bits) + 0.5f) - as_bits(0.5f)));
    }
    return (u16)(sign | ((bits - (112u << 23) + 0xFFF + ((bits >> 13) & 1)) >> 13));
}

// The dtypes in which an engine has KV: how a number lies, and how it becomes a float and comes back.
struct BF16 {
    typedef u16 Held;
    static KV_INLINE float widen(u16 held) { return from_bf16(held); }
    static KV_INLINE u16 narrow(float number) {
        float largest = as_float(0x7F7F0000u);
        return to_bf16(clamp(number, -largest, largest));
    }
};

struct F16 {
    typedef u16 Held;
    static KV_INLINE float widen(u16 held) { return from_f16(held); }
    static KV_INLINE u16 narrow(float number) { return to_f16(clamp(number, -65504.0f, 65504.0f)); }
};

struct F32 {
    typedef u32 Held;
    static KV_INLINE float widen(u32 held) { return as_float(held); }
    static KV_INLINE u32 narrow(float number) {
        float largest = as_float(0x7F7FFFFFu);
        return as_bits(clamp(number, -largest, largest));
    }
};

// `range` over `steps` in BF16, rounded up; the poison for what is not finite.
KV_INLINE u32 scale_of(float range, float steps) {
    if ((as_bits(range) & 0x7FFFFFFF) >= NOT_FINITE) return POISON;
    return (as_bits(range / steps) + 0xFFFF) >> 16;
}

KV_INLINE float divisor_of(u32 scale) {
    float number = from_bf16((u16)scale);
    return number > 0 ? number : 1.0f;
}

// BF16, rounded down.
KV_INLINE u32 low_of(float lowest) {
    u32 bits = as_bits(lowest);
    return (bits + ((bits >> 31) ? 0xFFFF : 0)) >> 16;
}

KV_INLINE bool is_scale(u32 bits) { return bits < 0x7F80; }
KV_INLINE bool is_low(u32 bits) { return (bits & 0x7F80) != 0x7F80; }

KV_INLINE u32 int8_code(float quotient) { return (u8)(i8)clamp(rintf(quotient), -127.0f, 127.0f); }
KV_INLINE float int8_number(u32 code) { return (float)(i8)(u8)code; }

KV_INLINE u32 int4_code(float quotient) { return (u32)clamp(rintf(quotient), 0.0f, 15.0f); }

// E4M3, the kind with NaN and no infinity.
KV_INLINE u32 fp8_code(float quotient) {
    u32 bits = as_bits(clamp(quotient, -448.0f, 448.0f));
    u32 sign = (bits >> 24) & 0x80;
    bits &= 0x7FFFFFFF;
    // Below 2^-6 the steps are of 2^-9; eight of them are the first normal number, and have its code.
    if (bits < (121u << 23)) return sign | (u32)rintf(as_float(bits) * 512.0f);
    return sign | (((bits + 0x7FFFF + ((bits >> 20) & 1)) >> 20) - (120 << 3));
}

KV_INLINE bool is_fp8(u32 code) { return (code & 0x7F) != 0x7F; }

KV_INLINE float fp8_number(u32 code) {
    u32 sign = (code & 0x80) << 24;
    u32 exponent = (code >> 3) & 15;
    u32 mantissa = code & 7;
    if (exponent == 0) return as_float(sign | as_bits((float)mantissa * as_float((127u - 9u) << 23)));
    return as_float(sign | ((exponent + 120) << 23) | (mantissa << 20));
}

// Numbers that one access moves.
#define EACH 4

template <class Held>
struct Several;
template <>
struct Several<u16> {
    typedef Wide8 Access;
};
template <>
struct Several<u32> {
    typedef Wide16 Access;
};

template <class Number>
KV_INLINE void load_several(u64 from, float numbers[EACH]) {
    typedef typename Number::Held Held;
    typedef typename Several<Held>::Access Access;
    Access access = load_stream((const Access*)from);
    UNROLL for (u32 i = 0; i < EACH; i++) {
        u32 byte = i * sizeof(Held);
        numbers[i] = Number::widen((Held)(access.word[byte / 4] >> (byte % 4 * 8)));
    }
}

template <class Number>
KV_INLINE void store_several(u64 to, const float numbers[EACH]) {
    typedef typename Number::Held Held;
    typedef typename Several<Held>::Access Access;
    Access access;
    UNROLL for (u32 i = 0; i < sizeof(access.word) / 4; i++) access.word[i] = 0;
    UNROLL for (u32 i = 0; i < EACH; i++) {
        u32 byte = i * sizeof(Held), held = Number::narrow(numbers[i]);
        access.word[byte / 4] |= held << (byte % 4 * 8);
    }
    store_stream((Access*)to, access);
}
