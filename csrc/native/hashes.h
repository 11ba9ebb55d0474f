// What kvgate.native offers of sha256.h: Python has hashlib, so it is the tests that use it.
#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>

// Adds the functions to the module, and chooses the code for this processor. Returns 0, or -1 with an exception set.
int kvgate_add_hashes(PyObject *module);
