/* What kvgate.native offers of kvgate/memory/digest.py. */

#ifndef KVGATE_DIGEST_H
#define KVGATE_DIGEST_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

/* Add the functions and constants of digests to the module. 0, or -1 with an exception set. */
int kvgate_add_digest(PyObject *module);

#endif
