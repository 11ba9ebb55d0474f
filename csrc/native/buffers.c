#include "buffers.h"

int buffers_hold(struct buffers *buffers, PyObject *sequence, Py_ssize_t first, int flags)
{
    buffers->count = 0;
    buffers->nbytes = 0;
    for (Py_ssize_t i = first; i < PySequence_Fast_GET_SIZE(sequence) && buffers->count < BUFFERS; i++) {
        if (PyObject_GetBuffer(PySequence_Fast_GET_ITEM(sequence, i), &buffers->held[buffers->count], flags)) {
            buffers_release(buffers);
            return -1;
        }
        buffers->nbytes += (size_t)buffers->held[buffers->count++].len;
    }
    return 0;
}

void buffers_release(struct buffers *buffers)
{
    while (buffers->count)
        PyBuffer_Release(&buffers->held[--buffers->count]);
}
