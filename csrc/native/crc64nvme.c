/* A body is a polynomial over GF(2), and its crc the remainder of it, times x^64, by P. Bits are reflected: the lowest
 * bit of the first byte is the highest power, and of a 64-bit number bit 63 is x^0.
 *
 * Folding (Gopal et al., "Fast CRC computation for generic polynomials using PCLMULQDQ", 2009): what stands D bits
 * before some bytes is multiplied by x^D mod P and added to them, which leaves the remainder as it is. Several
 * accumulators, each D bits wide apart, keep the multiplier busy; they are folded into one at the end, and the last
 * 128 bits and what is behind them go through the table.
 */

#include "crc64nvme.h"

#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <arm_neon.h>
#include <sys/auxv.h>
#endif

#define POLYNOMIAL 0x9a6c9329ac4bc9b5u /* of CRC-64/NVME, reflected, without its x^64 */
#define X_0 (UINT64_C(1) << 63)

static uint64_t table[8][256]; /* [n][b]: what byte b, with n bytes behind it, adds to the remainder */
static uint64_t shift_by_bytes[16][16]; /* [n][digit]: x^(8 * digit * 16^n) */

static inline uint64_t times_x(uint64_t value)
{
    return value >> 1 ^ (value & 1 ? POLYNOMIAL : 0);
}

static uint64_t x_to_the(unsigned n)
{
    uint64_t value = X_0;
    while (n--)
        value = times_x(value);
    return value;
}

static uint64_t multiply(uint64_t a, uint64_t b)
{
    uint64_t product = 0;
    for (; a; a <<= 1) {
        product ^= b & -(a >> 63);
        b = b >> 1 ^ (POLYNOMIAL & -(b & 1));
    }
    return product;
}

static uint64_t by_table(uint64_t state, const uint8_t *at, size_t nbytes)
{
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    for (; nbytes >= 8; at += 8, nbytes -= 8) {
        uint64_t eight;
        memcpy(&eight, at, 8);
        eight ^= state;
        state = table[7][eight & 255] ^ table[6][eight >> 8 & 255] ^ table[5][eight >> 16 & 255]
            ^ table[4][eight >> 24 & 255] ^ table[3][eight >> 32 & 255] ^ table[2][eight >> 40 & 255]
            ^ table[1][eight >> 48 & 255] ^ table[0][eight >> 56];
    }
#endif
    while (nbytes--)
        state = state >> 8 ^ table[0][(state ^ *at++) & 255];
    return state;
}

#if defined(__x86_64__) || (defined(__aarch64__) && defined(__linux__))

#define ACCUMULATORS 8

/* What 128 bits are multiplied by to stand so many bits further on: the two halves of each lane. */
struct shift {
    uint64_t first, second;
};

static struct shift by_128, by_128_each; /* `each`: over all accumulators */

static struct shift shift_by(unsigned nbits)
{
    return (struct shift){x_to_the(nbits + 63), x_to_the(nbits - 1)};
}

/* Ask for what comes later: one thread gets a fifth more from memory than by the processor's own foresight. */
static inline void look_ahead(const uint8_t *at, size_t nbytes)
{
    for (size_t line = 0; line < nbytes; line += 64)
        __builtin_prefetch((const void *)((uintptr_t)at + 2048 + line));
}

#endif

#if defined(__x86_64__)

static struct shift by_256, by_512, by_256_each, by_512_each;

#define PCLMUL __attribute__((target("pclmul,sse2")))
#define VPCLMUL_256 __attribute__((target("avx2,vpclmulqdq,pclmul")))
#define VPCLMUL_512 __attribute__((target("avx512f,avx2,vpclmulqdq,pclmul")))

PCLMUL static inline __m128i pair_128(const struct shift *by)
{
    return _mm_set_epi64x((int64_t)by->second, (int64_t)by->first);
}

PCLMUL static inline __m128i fold_128(__m128i sum, __m128i by, __m128i next)
{
    return _mm_xor_si128(_mm_xor_si128(_mm_clmulepi64_si128(sum, by, 0x00), _mm_clmulepi64_si128(sum, by, 0x11)), next);
}

PCLMUL static inline uint64_t finish(__m128i sum, const uint8_t *at, size_t nbytes)
{
    const __m128i by = pair_128(&by_128);
    for (; nbytes >= 16; at += 16, nbytes -= 16)
        sum = fold_128(sum, by, _mm_loadu_si128((const __m128i *)at));
    uint8_t last[16];
    _mm_storeu_si128((__m128i *)last, sum);
    return by_table(by_table(0, last, sizeof last), at, nbytes);
}

PCLMUL static uint64_t by_pclmul(uint64_t state, const uint8_t *at, size_t nbytes)
{
    const size_t step = 16 * ACCUMULATORS;
    if (nbytes < 16)
        return by_table(state, at, nbytes);
    __m128i sum = _mm_xor_si128(_mm_loadu_si128((const __m128i *)at), _mm_cvtsi64_si128((int64_t)state));
    if (nbytes < step)
        return finish(sum, at + 16, nbytes - 16);
    __m128i sums[ACCUMULATORS] = {sum};
    for (int i = 1; i < ACCUMULATORS; i++)
        sums[i] = _mm_loadu_si128((const __m128i *)(at + 16 * i));
    const __m128i by = pair_128(&by_128_each), one = pair_128(&by_128);
    for (at += step, nbytes -= step; nbytes >= step; at += step, nbytes -= step) {
        look_ahead(at, step);
        for (int i = 0; i < ACCUMULATORS; i++)
            sums[i] = fold_128(sums[i], by, _mm_loadu_si128((const __m128i *)(at + 16 * i)));
    }
    sum = sums[0];
    for (int i = 1; i < ACCUMULATORS; i++)
        sum = fold_128(sum, one, sums[i]);
    return finish(sum, at, nbytes);
}

VPCLMUL_256 static inline __m256i fold_256(__m256i sum, __m256i by, __m256i next)
{
    return _mm256_xor_si256(
        _mm256_xor_si256(_mm256_clmulepi64_epi128(sum, by, 0x00), _mm256_clmulepi64_epi128(sum, by, 0x11)), next);
}

VPCLMUL_256 static uint64_t by_vpclmul_256(uint64_t state, const uint8_t *at, size_t nbytes)
{
    const size_t step = 32 * ACCUMULATORS;
    if (nbytes < step)
        return by_pclmul(state, at, nbytes);
    __m256i sums[ACCUMULATORS];
    for (int i = 0; i < ACCUMULATORS; i++)
        sums[i] = _mm256_loadu_si256((const __m256i *)(at + 32 * i));
    sums[0] = _mm256_xor_si256(sums[0], _mm256_set_epi64x(0, 0, 0, (int64_t)state));
    const __m256i by = _mm256_broadcastsi128_si256(pair_128(&by_256_each));
    const __m256i one = _mm256_broadcastsi128_si256(pair_128(&by_256));
    for (at += step, nbytes -= step; nbytes >= step; at += step, nbytes -= step) {
        look_ahead(at, step);
        for (int i = 0; i < ACCUMULATORS; i++)
            sums[i] = fold_256(sums[i], by, _mm256_loadu_si256((const __m256i *)(at + 32 * i)));
    }
    __m256i sum = sums[0];
    for (int i = 1; i < ACCUMULATORS; i++)
        sum = fold_256(sum, one, sums[i]);
    const __m128i half = _mm256_castsi256_si128(sum);
    return finish(fold_128(half, pair_128(&by_128), _mm256_extracti128_si256(sum, 1)), at, nbytes);
}

VPCLMUL_512 static inline __m512i fold_512(__m512i sum, __m512i by, __m512i next)
{
    return _mm512_ternarylogic_epi64(
        _mm512_clmulepi64_epi128(sum, by, 0x00), _mm512_clmulepi64_epi128(sum, by, 0x11), next, 0x96);
}

VPCLMUL_512 static uint64_t by_vpclmul_512(uint64_t state, const uint8_t *at, size_t nbytes)
{
    const size_t step = 64 * ACCUMULATORS;
    if (nbytes < step)
        return by_vpclmul_256(state, at, nbytes);
    __m512i sums[ACCUMULATORS];
    for (int i = 0; i < ACCUMULATORS; i++)
        sums[i] = _mm512_loadu_si512(at + 64 * i);
    sums[0] = _mm512_xor_si512(sums[0], _mm512_set_epi64(0, 0, 0, 0, 0, 0, 0, (int64_t)state));
    const __m512i by = _mm512_broadcast_i32x4(pair_128(&by_512_each));
    const __m512i one = _mm512_broadcast_i32x4(pair_128(&by_512));
    for (at += step, nbytes -= step; nbytes >= step; at += step, nbytes -= step) {
        look_ahead(at, step);
        for (int i = 0; i < ACCUMULATORS; i++)
            sums[i] = fold_512(sums[i], by, _mm512_loadu_si512(at + 64 * i));
    }
    __m512i all = sums[0];
    for (int i = 1; i < ACCUMULATORS; i++)
        all = fold_512(all, one, sums[i]);
    const __m128i next = pair_128(&by_128);
    __m128i sum = _mm512_castsi512_si128(all);
    sum = fold_128(sum, next, _mm512_extracti32x4_epi32(all, 1));
    sum = fold_128(sum, next, _mm512_extracti32x4_epi32(all, 2));
    sum = fold_128(sum, next, _mm512_extracti32x4_epi32(all, 3));
    return finish(sum, at, nbytes);
}

#elif defined(__aarch64__) && defined(__linux__)

#define PMULL __attribute__((target("+crypto")))

PMULL static inline uint64x2_t load(const uint8_t *at)
{
    return vreinterpretq_u64_u8(vld1q_u8(at));
}

PMULL static inline uint64x2_t fold(uint64x2_t sum, const struct shift *by, uint64x2_t next)
{
    const poly128_t first = vmull_p64((poly64_t)vgetq_lane_u64(sum, 0), (poly64_t)by->first);
    const poly128_t second = vmull_p64((poly64_t)vgetq_lane_u64(sum, 1), (poly64_t)by->second);
    return veorq_u64(veorq_u64(vreinterpretq_u64_p128(first), vreinterpretq_u64_p128(second)), next);
}

PMULL static uint64_t by_pmull(uint64_t state, const uint8_t *at, size_t nbytes)
{
    const size_t step = 16 * ACCUMULATORS;
    if (nbytes < step)
        return by_table(state, at, nbytes);
    uint64x2_t sums[ACCUMULATORS];
    for (int i = 0; i < ACCUMULATORS; i++)
        sums[i] = load(at + 16 * i);
    sums[0] = veorq_u64(sums[0], vsetq_lane_u64(state, vdupq_n_u64(0), 0));
    const struct shift by = by_128_each, one = by_128;
    for (at += step, nbytes -= step; nbytes >= step; at += step, nbytes -= step) {
        look_ahead(at, step);
        for (int i = 0; i < ACCUMULATORS; i++)
            sums[i] = fold(sums[i], &by, load(at + 16 * i));
    }
    uint64x2_t sum = sums[0];
    for (int i = 1; i < ACCUMULATORS; i++)
        sum = fold(sum, &one, sums[i]);
    for (; nbytes >= 16; at += 16, nbytes -= 16)
        sum = fold(sum, &one, load(at));
    uint8_t last[16];
    vst1q_u8(last, vreinterpretq_u8_u64(sum));
    return by_table(by_table(0, last, sizeof last), at, nbytes);
}

#endif

typedef uint64_t run_function(uint64_t state, const uint8_t *at, size_t nbytes);

/* The ways that this processor has, the fastest first. */
static struct path {
    const char *name;
    run_function *run;
} paths[5];

#if defined(ACCUMULATORS)
/* Take `run` as the next way, if it agrees with the table: no machine is to find out what a test machine could not. */
static void add_path(struct path **next, const char *name, run_function *run)
{
    uint8_t some[1500];
    for (size_t i = 0; i < sizeof some; i++)
        some[i] = (uint8_t)(i * 37 ^ i >> 3);
    if (run(~UINT64_C(0), some, sizeof some) == by_table(~UINT64_C(0), some, sizeof some))
        *(*next)++ = (struct path){name, run};
}
#endif

void kvgate_crc64nvme_begin(void)
{
    for (unsigned byte = 0; byte < 256; byte++) {
        uint64_t value = byte;
        for (int i = 0; i < 8; i++)
            value = times_x(value);
        table[0][byte] = value;
    }
    for (int n = 1; n < 8; n++)
        for (int byte = 0; byte < 256; byte++)
            table[n][byte] = table[n - 1][byte] >> 8 ^ table[0][table[n - 1][byte] & 255];
    uint64_t digit = x_to_the(8);
    for (int n = 0; n < 16; n++) {
        shift_by_bytes[n][0] = X_0;
        for (int times = 1; times < 16; times++)
            shift_by_bytes[n][times] = multiply(shift_by_bytes[n][times - 1], digit);
        digit = multiply(shift_by_bytes[n][15], digit);
    }

    struct path *next = paths;
#if defined(ACCUMULATORS)
    by_128 = shift_by(128);
    by_128_each = shift_by(128 * ACCUMULATORS);
#endif
#if defined(__x86_64__)
    by_256 = shift_by(256), by_512 = shift_by(512);
    by_256_each = shift_by(256 * ACCUMULATORS);
    by_512_each = shift_by(512 * ACCUMULATORS);
    __builtin_cpu_init();
    if (__builtin_cpu_supports("pclmul") && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("vpclmulqdq")) {
        if (__builtin_cpu_supports("avx512f"))
            add_path(&next, "vpclmulqdq-512", by_vpclmul_512);
        add_path(&next, "vpclmulqdq-256", by_vpclmul_256);
    }
    if (__builtin_cpu_supports("pclmul"))
        add_path(&next, "pclmulqdq", by_pclmul);
#elif defined(__aarch64__) && defined(__linux__)
    if (getauxval(AT_HWCAP) & HWCAP_PMULL)
        add_path(&next, "pmull", by_pmull);
#endif
    *next++ = (struct path){"table", by_table};
    *next = (struct path){NULL, NULL};
}

const char *kvgate_crc64nvme_path(unsigned number)
{
    for (const struct path *path = paths; path->name; path++)
        if (number-- == 0)
            return path->name;
    return NULL;
}

uint64_t kvgate_crc64nvme_by(unsigned number, uint64_t crc, const void *data, size_t nbytes)
{
    return ~paths[number].run(~crc, data, nbytes);
}

uint64_t kvgate_crc64nvme(uint64_t crc, const void *data, size_t nbytes)
{
    return kvgate_crc64nvme_by(0, crc, data, nbytes);
}

uint64_t kvgate_crc64nvme_combine(uint64_t first, uint64_t second, uint64_t second_nbytes)
{
    if (second_nbytes == 0)
        return first;
    for (int n = 0; second_nbytes; n++, second_nbytes >>= 4)
        if (second_nbytes & 15)
            first = multiply(first, shift_by_bytes[n][second_nbytes & 15]);
    return first ^ second;
}
