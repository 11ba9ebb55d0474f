/* The memory of a few Python objects, held while the GIL is not. */

#ifndef KVGATE_BUFFERS_H
#define KVGATE_BUFFERS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#define BUFFERS 64

struct buffers {
    int count;
    size_t nbytes; /* of all together */
    Py_buffer held[BUFFERS];
};

/* Hold the memory of the objects of a list or tuple from number `first` on, as far as there is room. 0, or -1 with an
 * exception set and none held. flags: PyBUF_SIMPLE or PyBUF_WRITABLE
 */
int buffers_hold(struct buffers *buffers, PyObject *sequence, Py_ssize_t first, int flags);

/* Let go of them. */
void buffers_release(struct buffers *buffers);

#endif
