#include "hashes.h"

#include "sha256.h"

static PyObject *bytes_of(const uint8_t digest[SHA256_NBYTES]) {
    return PyBytes_FromStringAndSize((const char *)digest, SHA256_NBYTES);
}

static PyObject *sha256_of_pieces(PyObject *module, PyObject *const *pieces, Py_ssize_t count) {
    (void)module;
    struct sha256 hash;
    uint8_t digest[SHA256_NBYTES];
    sha256_begin(&hash);
    for (Py_ssize_t i = 0; i < count; i++) {
        Py_buffer view;
        if (PyObject_GetBuffer(pieces[i], &view, PyBUF_SIMPLE)) return NULL;
        sha256_add(&hash, view.buf, (size_t)view.len);
        PyBuffer_Release(&view);
    }
    sha256_end(&hash, digest);
    return bytes_of(digest);
}

static PyObject *sha256_in_plain_c(PyObject *module, PyObject *data) {
    (void)module;
    Py_buffer view;
    uint8_t digest[SHA256_NBYTES];
    if (PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)) return NULL;
    sha256_portable(view.buf, (size_t)view.len, digest);
    PyBuffer_Release(&view);
    return bytes_of(digest);
}

static PyObject *hmac_sha256(PyObject *module, PyObject *args) {
    (void)module;
    Py_buffer key, data;
    struct hmac hmac;
    uint8_t digest[SHA256_NBYTES];
    if (!PyArg_ParseTuple(args, "y*y*:hmac_sha256", &key, &data)) return NULL;
    hmac_key(&hmac, key.buf, (size_t)key.len);
    hmac_digest(&hmac, data.buf, (size_t)data.len, digest);
    PyBuffer_Release(&key);
    PyBuffer_Release(&data);
    return bytes_of(digest);
}

static PyMethodDef functions[] = {
    {"sha256", (PyCFunction)(void (*)(void))sha256_of_pieces, METH_FASTCALL, NULL},
    {"sha256_portable", sha256_in_plain_c, METH_O, NULL},
    {"hmac_sha256", hmac_sha256, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

int kvgate_add_hashes(PyObject *module) {
    sha256_dispatch();
    int failed = PyModule_AddStringConstant(module, "SHA256_PATH", sha256_path());
    return failed || PyModule_AddFunctions(module, functions) ? -1 : 0;
}
