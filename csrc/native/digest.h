/* What kvgate.native offers of kvgate/memory/digest.py. */

#ifndef KVGATE_DIGEST_H
#define KVGATE_DIGEST_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "block_digest.h"

/* kvgate.native.BlockDigest. Who works on it without the GIL claims it, works on a copy of `digest`, and puts that back
 * with the GIL held: whoever reads it meanwhile sees it as it was.
 */
struct block_digest_object {
    PyObject_HEAD
    struct block_digest digest;
    char claimed;
};

/* Claim it, with room for the blocks that `more` bytes complete. 0, or -1 with an exception set. */
int block_digest_claim(struct block_digest_object *self, size_t more);

/* The BlockDigest that an object is; NULL with an exception set for another one. */
struct block_digest_object *block_digest_of(PyObject *object);

/* Its method `receive`, in receive.c. */
PyObject *block_digest_receive(PyObject *self, PyObject *const *arguments, Py_ssize_t count);

/* Add the functions, types and constants of digests to the module. 0, or -1 with an exception set. */
int kvgate_add_digest(PyObject *module);

#endif
