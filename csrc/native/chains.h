/* What kvgate.native offers of kvgate/store/walks.py. */

#ifndef KVGATE_CHAINS_H
#define KVGATE_CHAINS_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

/* Add the functions that walk over chains to the module. 0, or -1 with an exception set. */
int kvgate_add_chains(PyObject *module);

#endif
