// kvgate.native.Credentials: the gateway's credentials as Python hands them to the data plane.
#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "credentials.h"

// Adds the type to the module. Returns 0, or -1 with an exception set.
int kvgate_add_credentials(PyObject *module);

// What a Credentials object holds, valid while the object is; NULL with a TypeError set for another object.
const struct credentials *credentials_of(PyObject *object);
