// SHA-256 (FIPS 180-4) and HMAC with it (FIPS 198-1), by the processor's own instructions where it has them.
#pragma once

#include <stddef.h>
#include <stdint.h>

#define SHA256_NBYTES 32
#define SHA256_BLOCK_NBYTES 64

// A hash that is being taken. `rest` holds what does not fill a block yet.
struct sha256 {
    uint32_t state[8];
    uint64_t nbytes;
    uint8_t rest[SHA256_BLOCK_NBYTES];
};

// A key made ready: the states behind its inner and outer pads. Never changed by its use, so threads may share it.
struct hmac {
    struct sha256 inner, outer;
};

// Chooses the fastest code that this processor runs. To be called once, before anything else; until then it is plain C.
void sha256_dispatch(void);

// What was chosen: "sha-ni" or "portable".
const char *sha256_path(void);

void sha256_begin(struct sha256 *);
void sha256_add(struct sha256 *, const void *data, size_t nbytes);

// Writes the hash; what it was taken with is to be begun anew.
void sha256_end(struct sha256 *, uint8_t out[SHA256_NBYTES]);

// The hash of `data` by plain C: what tests hold the processor's instructions against.
void sha256_portable(const void *data, size_t nbytes, uint8_t out[SHA256_NBYTES]);

void hmac_key(struct hmac *, const void *key, size_t nbytes);
void hmac_digest(const struct hmac *, const void *data, size_t nbytes, uint8_t out[SHA256_NBYTES]);
