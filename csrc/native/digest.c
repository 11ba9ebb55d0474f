/* Digests as Python sees them. kvgate/memory/plain_digest.py says what each gives, and both pass the same tests. */

#include "digest.h"

#include "crc64nvme.h"

#define GIL_NBYTES (16 << 10) /* what takes longer than this lets other threads run meanwhile */

static int to_uint64(PyObject *number, uint64_t *value)
{
    *value = PyLong_AsUnsignedLongLong(number);
    return *value == (uint64_t)-1 && PyErr_Occurred() ? -1 : 0;
}

static PyObject *crc64nvme(PyObject *module, PyObject *const *arguments, Py_ssize_t count)
{
    (void)module;
    uint64_t value = 0, path = 0;
    if (count < 1 || count > 3)
        return PyErr_Format(PyExc_TypeError, "crc64nvme takes 1 to 3 arguments, not %zd", count);
    if ((count > 1 && to_uint64(arguments[1], &value)) || (count > 2 && to_uint64(arguments[2], &path)))
        return NULL;
    if (path > 9 || !kvgate_crc64nvme_path((unsigned)path))
        return PyErr_Format(PyExc_ValueError, "there is no way of that number to take a crc64nvme");
    Py_buffer view;
    if (PyObject_GetBuffer(arguments[0], &view, PyBUF_SIMPLE))
        return NULL;
    PyThreadState *thread = view.len > GIL_NBYTES ? PyEval_SaveThread() : NULL;
    value = kvgate_crc64nvme_by((unsigned)path, value, view.buf, (size_t)view.len);
    if (thread)
        PyEval_RestoreThread(thread);
    PyBuffer_Release(&view);
    return PyLong_FromUnsignedLongLong(value);
}

static PyObject *combine_crc64nvme(PyObject *module, PyObject *const *arguments, Py_ssize_t count)
{
    (void)module;
    uint64_t first, second, nbytes;
    if (count != 3)
        return PyErr_Format(PyExc_TypeError, "combine_crc64nvme takes 3 arguments, not %zd", count);
    if (to_uint64(arguments[0], &first) || to_uint64(arguments[1], &second) || to_uint64(arguments[2], &nbytes))
        return NULL;
    return PyLong_FromUnsignedLongLong(kvgate_crc64nvme_combine(first, second, nbytes));
}

static PyMethodDef functions[] = {
    {"crc64nvme", (PyCFunction)(void (*)(void))crc64nvme, METH_FASTCALL, NULL},
    {"combine_crc64nvme", (PyCFunction)(void (*)(void))combine_crc64nvme, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

static PyObject *path_names(void)
{
    PyObject *names = PyList_New(0);
    const char *name;
    for (unsigned number = 0; names && (name = kvgate_crc64nvme_path(number)); number++) {
        PyObject *text = PyUnicode_FromString(name);
        if (!text || PyList_Append(names, text))
            Py_CLEAR(names);
        Py_XDECREF(text);
    }
    PyObject *tuple = names ? PyList_AsTuple(names) : NULL;
    Py_XDECREF(names);
    return tuple;
}

int kvgate_add_digest(PyObject *module)
{
    kvgate_crc64nvme_begin();
    PyObject *names = path_names();
    int failed = !names || PyModule_AddObjectRef(module, "CRC64NVME_PATHS", names);
    Py_XDECREF(names);
    return failed || PyModule_AddFunctions(module, functions) ? -1 : 0;
}
