/* kvgate.native: what Python is too slow for. Optional: without it kvgate does the same in Python.
 *
 * A file that offers something to Python has a function that adds it to the module, and a line in `contents`.
 * kvgate/native.pyi says what there is; `make native` builds it in place.
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "chains.h"
#include "credentials_type.h"
#include "digest.h"
#include "hashes.h"
#include "plane_type.h"

static int (*const contents[])(PyObject *module) = {
    kvgate_add_digest,
    kvgate_add_hashes,
    kvgate_add_credentials,
    kvgate_add_plane,
    kvgate_add_chains,
};

static int fill_module(PyObject *module)
{
    for (size_t i = 0; i < sizeof contents / sizeof *contents; i++)
        if (contents[i](module))
            return -1;
    return 0;
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, (void *)fill_module},
    {0, NULL},
};

static PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "kvgate.native",
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit_native(void)
{
    return PyModuleDef_Init(&definition);
}
