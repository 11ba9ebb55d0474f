#include "sha256.h"

#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif

// Takes `count` blocks of 64 bytes into a state.
typedef void (*compress_fn)(uint32_t state[8], const uint8_t *blocks, size_t count);

static const uint32_t begin_state[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                        0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};

static const uint32_t round_constants[64] __attribute__((aligned(16))) = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

static uint32_t rotated(uint32_t word, int bits) { return word >> bits | word << (32 - bits); }

static uint32_t load_big_endian(const uint8_t *at) {
    return (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
}

static void store_big_endian(uint8_t *at, uint32_t word) {
    at[0] = (uint8_t)(word >> 24);
    at[1] = (uint8_t)(word >> 16);
    at[2] = (uint8_t)(word >> 8);
    at[3] = (uint8_t)word;
}

// FIPS 180-4, 6.2.2. The schedule is kept as its last 16 words.
static void compress_portable(uint32_t state[8], const uint8_t *blocks, size_t count) {
    for (; count; count--, blocks += SHA256_BLOCK_NBYTES) {
        uint32_t w[16];
        uint32_t a = state[0], b = state[1], c = state[2], d = state[3];
        uint32_t e = state[4], f = state[5], g = state[6], h = state[7];
        for (int t = 0; t < 64; t++) {
            if (t < 16) {
                w[t] = load_big_endian(blocks + 4 * t);
            } else {
                uint32_t w15 = w[(t - 15) & 15], w2 = w[(t - 2) & 15];
                w[t & 15] += w[(t - 7) & 15] + (rotated(w15, 7) ^ rotated(w15, 18) ^ w15 >> 3) +
                             (rotated(w2, 17) ^ rotated(w2, 19) ^ w2 >> 10);
            }
            uint32_t t1 = h + (rotated(e, 6) ^ rotated(e, 11) ^ rotated(e, 25)) + ((e & f) ^ (~e & g)) +
                          round_constants[t] + w[t & 15];
            uint32_t t2 = (rotated(a, 2) ^ rotated(a, 13) ^ rotated(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
            h = g, g = f, f = e, e = d + t1;
            d = c, c = b, b = a, a = t1 + t2;
        }
        state[0] += a, state[1] += b, state[2] += c, state[3] += d;
        state[4] += e, state[5] += f, state[6] += g, state[7] += h;
    }
}

#if defined(__x86_64__)
// The state is held as the instructions want it: words a b e f in one register, c d g h in the other.
__attribute__((target("sha,sse4.1,ssse3"))) static void compress_sha_ni(uint32_t state[8], const uint8_t *blocks,
                                                                        size_t count) {
    const __m128i big_endian = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
    __m128i cdab = _mm_shuffle_epi32(_mm_loadu_si128((const __m128i *)&state[0]), 0xB1);
    __m128i efgh = _mm_shuffle_epi32(_mm_loadu_si128((const __m128i *)&state[4]), 0x1B);
    __m128i abef = _mm_alignr_epi8(cdab, efgh, 8);
    __m128i cdgh = _mm_blend_epi16(efgh, cdab, 0xF0);
    for (; count; count--, blocks += SHA256_BLOCK_NBYTES) {
        const __m128i abef_before = abef, cdgh_before = cdgh;
        __m128i w[4];  // the last 16 words of the schedule
        for (int i = 0; i < 4; i++) {
            w[i] = _mm_shuffle_epi8(_mm_loadu_si128((const __m128i *)(blocks + 16 * i)), big_endian);
        }
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++) {  // four rounds each
            __m128i added = _mm_add_epi32(w[i & 3], _mm_load_si128((const __m128i *)&round_constants[4 * i]));
            cdgh = _mm_sha256rnds2_epu32(cdgh, abef, added);
            abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(added, 0x0E));
            if (i < 12) {
                __m128i last = w[(i + 3) & 3];
                __m128i sum = _mm_add_epi32(_mm_sha256msg1_epu32(w[i & 3], w[(i + 1) & 3]),
                                            _mm_alignr_epi8(last, w[(i + 2) & 3], 4));
                w[i & 3] = _mm_sha256msg2_epu32(sum, last);
            }
        }
        abef = _mm_add_epi32(abef, abef_before);
        cdgh = _mm_add_epi32(cdgh, cdgh_before);
    }
    __m128i feba = _mm_shuffle_epi32(abef, 0x1B);
    __m128i dchg = _mm_shuffle_epi32(cdgh, 0xB1);
    _mm_storeu_si128((__m128i *)&state[0], _mm_blend_epi16(feba, dchg, 0xF0));
    _mm_storeu_si128((__m128i *)&state[4], _mm_alignr_epi8(dchg, feba, 8));
}

// Asked of the processor itself: not every compiler's __builtin_cpu_supports knows "sha".
static int has_sha_ni(void) {
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_SSSE3) || !(c & bit_SSE4_1)) return 0;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & bit_SHA);
}
#endif

static compress_fn compress = compress_portable;

void sha256_dispatch(void) {
#if defined(__x86_64__)
    if (has_sha_ni()) compress = compress_sha_ni;
#endif
}

const char *sha256_path(void) { return compress == compress_portable ? "portable" : "sha-ni"; }

static inline void add(struct sha256 *hash, const uint8_t *data, size_t nbytes, compress_fn take) {
    size_t held = hash->nbytes % SHA256_BLOCK_NBYTES;
    hash->nbytes += nbytes;
    if (held) {
        size_t room = SHA256_BLOCK_NBYTES - held;
        if (nbytes < room) {
            memcpy(hash->rest + held, data, nbytes);
            return;
        }
        memcpy(hash->rest + held, data, room);
        take(hash->state, hash->rest, 1);
        data += room;
        nbytes -= room;
    }
    size_t blocks = nbytes / SHA256_BLOCK_NBYTES;
    if (blocks) take(hash->state, data, blocks);
    size_t left = nbytes % SHA256_BLOCK_NBYTES;
    if (left) memcpy(hash->rest, data + nbytes - left, left);
}

// FIPS 180-4, 5.1.1: a one bit, zeros, and the length in bits as the last 8 bytes of a block.
static inline void end(struct sha256 *hash, uint8_t out[SHA256_NBYTES], compress_fn take) {
    size_t held = hash->nbytes % SHA256_BLOCK_NBYTES;
    hash->rest[held++] = 0x80;
    if (held > SHA256_BLOCK_NBYTES - 8) {
        memset(hash->rest + held, 0, SHA256_BLOCK_NBYTES - held);
        take(hash->state, hash->rest, 1);
        held = 0;
    }
    memset(hash->rest + held, 0, SHA256_BLOCK_NBYTES - 8 - held);
    store_big_endian(hash->rest + 56, (uint32_t)(hash->nbytes >> 29));
    store_big_endian(hash->rest + 60, (uint32_t)(hash->nbytes << 3));
    take(hash->state, hash->rest, 1);
    for (int i = 0; i < 8; i++) store_big_endian(out + 4 * i, hash->state[i]);
}

void sha256_begin(struct sha256 *hash) {
    memcpy(hash->state, begin_state, sizeof begin_state);
    hash->nbytes = 0;
}

void sha256_add(struct sha256 *hash, const void *data, size_t nbytes) { add(hash, data, nbytes, compress); }

void sha256_end(struct sha256 *hash, uint8_t out[SHA256_NBYTES]) { end(hash, out, compress); }

void sha256_portable(const void *data, size_t nbytes, uint8_t out[SHA256_NBYTES]) {
    struct sha256 hash;
    sha256_begin(&hash);
    add(&hash, data, nbytes, compress_portable);
    end(&hash, out, compress_portable);
}

void hmac_key(struct hmac *hmac, const void *key, size_t nbytes) {
    uint8_t pad[SHA256_BLOCK_NBYTES] = {0};
    if (nbytes > sizeof pad) {
        sha256_begin(&hmac->inner);
        sha256_add(&hmac->inner, key, nbytes);
        sha256_end(&hmac->inner, pad);
    } else if (nbytes) {
        memcpy(pad, key, nbytes);
    }
    for (size_t i = 0; i < sizeof pad; i++) pad[i] ^= 0x36;
    sha256_begin(&hmac->inner);
    sha256_add(&hmac->inner, pad, sizeof pad);
    for (size_t i = 0; i < sizeof pad; i++) pad[i] ^= 0x36 ^ 0x5c;
    sha256_begin(&hmac->outer);
    sha256_add(&hmac->outer, pad, sizeof pad);
    memset(hmac->inner.rest, 0, sizeof hmac->inner.rest);
    memset(hmac->outer.rest, 0, sizeof hmac->outer.rest);
    explicit_bzero(pad, sizeof pad);
}

void hmac_digest(const struct hmac *hmac, const void *data, size_t nbytes, uint8_t out[SHA256_NBYTES]) {
    uint8_t inner[SHA256_NBYTES];
    struct sha256 hash = hmac->inner;
    sha256_add(&hash, data, nbytes);
    sha256_end(&hash, inner);
    hash = hmac->outer;
    sha256_add(&hash, inner, sizeof inner);
    sha256_end(&hash, out);
}
