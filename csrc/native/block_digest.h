/* The crc64nvme of a body and of each of its blocks, as the body arrives; kvgate/memory/plain_digest.py defines it. */

#ifndef KVGATE_BLOCK_DIGEST_H
#define KVGATE_BLOCK_DIGEST_H

#include <stddef.h>
#include <stdint.h>

#define BLOCK_NBYTES (1 << 20)

struct block_digest {
    uint64_t nbytes;    /* seen so far */
    uint64_t rest;      /* of the incomplete block at the end */
    uint64_t whole;     /* of all complete blocks together */
    uint64_t *complete; /* of each complete block: nbytes / BLOCK_NBYTES of them */
    size_t room;        /* how many fit at `complete` */
};

/* Make room for the blocks that `more` bytes complete. 0, or -1 where there is no memory. */
int block_digest_reserve(struct block_digest *digest, size_t more);

/* Add the next bytes, for whose blocks there is room. */
void block_digest_add(struct block_digest *digest, const void *data, size_t nbytes);

/* The crc64nvme of all bytes so far. */
uint64_t block_digest_value(const struct block_digest *digest);

#endif
