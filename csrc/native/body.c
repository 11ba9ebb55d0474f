#include "body.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>

#define CALL_NBYTES (1 << 20) // the most that one call receives: what has arrived is still in the cache
#define CALL_AREAS 64

// The next bytes of the areas, for one call.
static size_t gather(const struct areas *areas, size_t most, struct iovec places[CALL_AREAS])
{
    size_t count = 0, offset = areas->offset;
    for (size_t i = areas->index; i < areas->count && most && count < CALL_AREAS; i++, offset = 0) {
        size_t nbytes = areas->at[i].iov_len - offset;
        if (nbytes > most)
            nbytes = most;
        if (nbytes)
            places[count++] = (struct iovec){(char *)areas->at[i].iov_base + offset, nbytes};
        most -= nbytes;
    }
    return count;
}

// The next `nbytes` of the areas have been filled.
static void fill(struct areas *areas, size_t nbytes, struct block_digest *digest)
{
    while (nbytes) {
        struct iovec *area = &areas->at[areas->index];
        size_t piece = area->iov_len - areas->offset;
        if (piece > nbytes)
            piece = nbytes;
        block_digest_add(digest, (const char *)area->iov_base + areas->offset, piece);
        nbytes -= piece;
        areas->offset += piece;
        if (areas->offset == area->iov_len) {
            areas->index++;
            areas->offset = 0;
        }
    }
}

size_t body_receive(int fd, struct areas *areas, size_t most, struct block_digest *digest, int *stopped)
{
    size_t received = 0;
    *stopped = 0;
    while (received < most) {
        struct iovec places[CALL_AREAS];
        size_t asked = 0, wanted = most - received < CALL_NBYTES ? most - received : CALL_NBYTES;
        struct msghdr message = {.msg_iov = places, .msg_iovlen = gather(areas, wanted, places)};
        for (size_t i = 0; i < message.msg_iovlen; i++)
            asked += places[i].iov_len;
        ssize_t count = recvmsg(fd, &message, MSG_DONTWAIT);
        if (count < 0 && errno == EINTR)
            continue;
        if (count <= 0) {
            *stopped = count < 0 ? errno : BODY_ENDED;
            break;
        }
        received += (size_t)count;
        fill(areas, (size_t)count, digest);
        if ((size_t)count < asked) { // there is no more for now: as good as asking again
            *stopped = EAGAIN;
            break;
        }
    }
    return received;
}

void body_take(struct areas *areas, const char *data, size_t nbytes, struct block_digest *digest)
{
    struct areas to = *areas;
    for (size_t done = 0; done < nbytes;) {
        struct iovec *area = &to.at[to.index];
        size_t piece = area->iov_len - to.offset < nbytes - done ? area->iov_len - to.offset : nbytes - done;
        memcpy((char *)area->iov_base + to.offset, data + done, piece);
        done += piece;
        to.index++;
        to.offset = 0;
    }
    fill(areas, nbytes, digest);
}
