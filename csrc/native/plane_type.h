/* The native data plane as Python sees it: kvgate/native.pyi says what there is. */
#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>

int kvgate_add_plane(PyObject *module);
