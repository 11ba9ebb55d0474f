#include "block_digest.h"

#include <stdlib.h>

#include "crc64nvme.h"

int block_digest_reserve(struct block_digest *digest, size_t more)
{
    size_t needed = (size_t)((digest->nbytes % BLOCK_NBYTES + more) / BLOCK_NBYTES + digest->nbytes / BLOCK_NBYTES);
    if (needed <= digest->room)
        return 0;
    if (needed < 2 * digest->room)
        needed = 2 * digest->room;
    uint64_t *complete = realloc(digest->complete, needed * sizeof *complete);
    if (!complete)
        return -1;
    digest->complete = complete;
    digest->room = needed;
    return 0;
}

void block_digest_add(struct block_digest *digest, const void *data, size_t nbytes)
{
    const uint8_t *at = data;
    while (nbytes) {
        size_t piece = BLOCK_NBYTES - digest->nbytes % BLOCK_NBYTES;
        if (piece > nbytes)
            piece = nbytes;
        digest->rest = kvgate_crc64nvme(digest->rest, at, piece);
        digest->nbytes += piece;
        at += piece;
        nbytes -= piece;
        if (digest->nbytes % BLOCK_NBYTES == 0) {
            digest->complete[digest->nbytes / BLOCK_NBYTES - 1] = digest->rest;
            digest->whole = kvgate_crc64nvme_combine(digest->whole, digest->rest, BLOCK_NBYTES);
            digest->rest = 0;
        }
    }
}

uint64_t block_digest_value(const struct block_digest *digest)
{
    return kvgate_crc64nvme_combine(digest->whole, digest->rest, digest->nbytes % BLOCK_NBYTES);
}
