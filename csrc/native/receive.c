/* A body taken off its socket and digested while it is in the cache, without the GIL. */

#include "body.h"
#include "buffers.h"
#include "digest.h"

/* `body_receive` into these buffers. */
static size_t receive(int fd, const struct buffers *buffers, size_t most, struct block_digest *digest, int *stopped)
{
    struct iovec places[BUFFERS];
    struct areas areas = {places, (size_t)buffers->count, 0, 0};
    for (int i = 0; i < buffers->count; i++)
        places[i] = (struct iovec){buffers->held[i].buf, (size_t)buffers->held[i].len};
    return body_receive(fd, &areas, most, digest, stopped);
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
            received += receive(fd, &buffers, wanted, &digest, &stopped);
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
