// A body on its way from a socket to memory, digested while it is in the cache.
#pragma once

#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#include "block_digest.h"

#define BODY_ENDED (-1) // the peer has ended the stream

// Memory that is filled in order: up to `offset` of the area `index`.
struct areas {
    struct iovec *at;
    size_t count, index, offset;
};

// Receive up to `most` bytes from a non-blocking socket, for which there is room in the areas and in the digest, and add
// them to it. How many; `*stopped` says why no more: 0 as many as were wanted, BODY_ENDED, or an errno.
size_t body_receive(int fd, struct areas *areas, size_t most, struct block_digest *digest, int *stopped);

// The same with `nbytes` that have come already.
void body_take(struct areas *areas, const char *data, size_t nbytes, struct block_digest *digest);
