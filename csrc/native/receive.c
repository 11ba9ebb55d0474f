/* A body taken off its socket and digested while it is in the cache, without the GIL. */

#include <errno.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "buffers.h"
#include "digest.h"

#define CALL_NBYTES (1 << 20) /* the most that one call receives: what has arrived is still in the cache */
#define ENDED (-1)            /* the peer has ended the stream; other reasons to stop are an errno, or 0 */

/* The next call's places, in memory that is filled in order. */
static int gather(const struct buffers *buffers, int at, size_t offset, size_t most, struct iovec places[BUFFERS])
{
    int count = 0;
    for (; at < buffers->count && most; at++, offset = 0) {
        size_t nbytes = (size_t)buffers->held[at].len - offset;
        if (nbytes > most)
            nbytes = most;
        if (nbytes)
            places[count++] = (struct iovec){(char *)buffers->held[at].buf + offset, nbytes};
        most -= nbytes;
    }
    return count;
}

/* Receive up to `most` bytes into the buffers, and add them to the digest. How many; *stopped says why no more. */
static size_t fill(int fd, const struct buffers *buffers, size_t most, struct block_digest *digest, int *stopped)
{
    struct iovec places[BUFFERS];
    size_t received = 0, offset = 0;
    int at = 0;
    *stopped = 0;
    while (received < most) {
        size_t asked = most - received < CALL_NBYTES ? most - received : CALL_NBYTES;
        struct msghdr message = {.msg_iov = places};
        message.msg_iovlen = (size_t)gather(buffers, at, offset, asked, places);
        ssize_t count = recvmsg(fd, &message, 0);
        if (count < 0 && errno == EINTR)
            continue;
        if (count <= 0) {
            *stopped = count < 0 ? errno : ENDED;
            break;
        }
        received += (size_t)count;
        for (size_t left = (size_t)count; left;) {
            size_t piece = (size_t)buffers->held[at].len - offset;
            if (piece > left)
                piece = left;
            block_digest_add(digest, (const char *)buffers->held[at].buf + offset, piece);
            left -= piece;
            offset += piece;
            if (offset == (size_t)buffers->held[at].len) {
                at++;
                offset = 0;
            }
        }
        if ((size_t)count < asked) { /* there is no more for now: as good as asking again */
            *stopped = EAGAIN;
            break;
        }
    }
    return received;
}

PyObject *block_digest_receive(PyObject *object, PyObject *const *arguments, Py_ssize_t count)
{
    struct block_digest_object *self = (struct block_digest_object *)object;
    if (count != 3)
        return PyErr_Format(PyExc_TypeError, "receive takes 3 arguments, not %zd", count);
    int fd = PyObject_AsFileDescriptor(arguments[0]);
    if (fd < 0)
        return NULL;
    Py_ssize_t most = PyLong_AsSsize_t(arguments[2]);
    if (most == -1 && PyErr_Occurred())
        return NULL;
    if (most < 0)
        return PyErr_Format(PyExc_ValueError, "%zd is not a number of bytes", most);
    PyObject *sequence = PySequence_Fast(arguments[1], "views must be iterable");
    if (!sequence)
        return NULL;

    struct buffers buffers;
    size_t received = 0;
    int stopped = 0, failed = 0;
    for (Py_ssize_t first = 0; first < PySequence_Fast_GET_SIZE(sequence) && !stopped; first += BUFFERS) {
        failed = buffers_hold(&buffers, sequence, first, PyBUF_WRITABLE);
        if (failed)
            break;
        size_t wanted = (size_t)most - received < buffers.nbytes ? (size_t)most - received : buffers.nbytes;
        failed = block_digest_claim(self, wanted);
        if (!failed) {
            struct block_digest digest = self->digest;
            Py_BEGIN_ALLOW_THREADS
            received += fill(fd, &buffers, wanted, &digest, &stopped);
            Py_END_ALLOW_THREADS
            self->digest = digest;
            self->claimed = 0;
        }
        buffers_release(&buffers);
        if (failed)
            break;
    }
    Py_DECREF(sequence);
    return failed ? NULL : Py_BuildValue("ni", (Py_ssize_t)received, stopped);
}
