/* Walks over chains, as Python sees them. kvgate/store/plain_walks.py says what each gives, and both pass the same
 * tests.
 */

#include "chains.h"

#include <stdint.h>
#include <string.h>
#include <structmember.h>

enum { HASH_NBYTES = 32, HASH_DIGITS = 2 * HASH_NBYTES };

/* The lower-case hex digits of a hash. Without branches or tables: compilers make vectors of it. */
static void hex_digits(const uint8_t *hash, uint8_t *digits)
{
    for (int i = 0; i < HASH_NBYTES; i++) {
        uint8_t high = hash[i] >> 4, low = hash[i] & 15;
        digits[2 * i] = (uint8_t)(high + '0' + (high > 9 ? 'a' - '9' - 1 : 0));
        digits[2 * i + 1] = (uint8_t)(low + '0' + (low > 9 ? 'a' - '9' - 1 : 0));
    }
}

/* What `objects` has under `prefix` and the digits of a hash: borrowed, or NULL, with an exception set if it failed. */
static PyObject *find(PyObject *objects, PyObject *prefix, const uint8_t *hash)
{
    Py_ssize_t prefix_nbytes = PyUnicode_GET_LENGTH(prefix);
    PyObject *key = PyUnicode_New(prefix_nbytes + HASH_DIGITS, 127);
    if (!key)
        return NULL;
    memcpy(PyUnicode_1BYTE_DATA(key), PyUnicode_1BYTE_DATA(prefix), (size_t)prefix_nbytes);
    hex_digits(hash, PyUnicode_1BYTE_DATA(key) + prefix_nbytes);
    PyObject *found = PyDict_GetItemWithError(objects, key);
    Py_DECREF(key);
    return found;
}

static PyObject *find_chain(PyObject *module, PyObject *const *arguments, Py_ssize_t count)
{
    (void)module;
    if (count != 3 || !PyDict_Check(arguments[0]) || !PyUnicode_Check(arguments[1]))
        return PyErr_Format(PyExc_TypeError, "find_chain takes a dict, a text and bytes");
    if (!PyUnicode_IS_ASCII(arguments[1]))
        return PyErr_Format(PyExc_ValueError, "the prefix of a key must be ASCII");
    Py_buffer hashes;
    if (PyObject_GetBuffer(arguments[2], &hashes, PyBUF_SIMPLE))
        return NULL;
    PyObject *chain = PyList_New(0);
    for (Py_ssize_t at = 0; chain && at + HASH_NBYTES <= hashes.len; at += HASH_NBYTES) {
        PyObject *found = find(arguments[0], arguments[1], (const uint8_t *)hashes.buf + at);
        if (!found && !PyErr_Occurred())
            break;
        if (!found || PyList_Append(chain, found))
            Py_CLEAR(chain);
    }
    PyBuffer_Release(&hashes);
    return chain;
}

/* Where objects of a type keep an attribute that is one of its slots: an offset, or 0 where it is kept otherwise. */
static Py_ssize_t slot_offset(PyTypeObject *type, const char *name)
{
    PyObject *member = PyObject_GetAttrString((PyObject *)type, name);
    if (!member) {
        PyErr_Clear();
        return 0;
    }
    Py_ssize_t offset = 0;
    if (Py_IS_TYPE(member, &PyMemberDescr_Type)) {
        const PyMemberDef *described = ((PyMemberDescrObject *)member)->d_member;
        offset = described->type == T_OBJECT_EX && !(described->flags & READONLY) ? described->offset : 0;
    }
    Py_DECREF(member);
    return offset;
}

/* Add to a number that is kept in a place. 0, or -1 with an exception set. */
static int add_to(PyObject **place, long more)
{
    long value = *place ? PyLong_AsLong(*place) : -1;
    if (!*place)
        PyErr_SetString(PyExc_AttributeError, "leases");
    if (value == -1 && PyErr_Occurred())
        return -1;
    if (__builtin_add_overflow(value, more, &value)) {
        PyErr_SetString(PyExc_OverflowError, "too many leases");
        return -1;
    }
    PyObject *sum = PyLong_FromLong(value), *before = *place;
    if (!sum)
        return -1;
    *place = sum;
    Py_DECREF(before);
    return 0;
}

static PyObject *add_leases(PyObject *module, PyObject *const *arguments, Py_ssize_t count)
{
    (void)module;
    if (count != 2)
        return PyErr_Format(PyExc_TypeError, "add_leases takes 2 arguments, not %zd", count);
    long more = PyLong_AsLong(arguments[1]);
    if (more == -1 && PyErr_Occurred())
        return NULL;
    PyObject *entries = PySequence_Fast(arguments[0], "entries must be iterable");
    if (!entries)
        return NULL;
    PyTypeObject *type = NULL;
    Py_ssize_t offset = 0;
    int failed = 0;
    for (Py_ssize_t i = 0; !failed && i < PySequence_Fast_GET_SIZE(entries); i++) {
        PyObject *entry = PySequence_Fast_GET_ITEM(entries, i);
        if (Py_TYPE(entry) != type) {
            type = Py_TYPE(entry);
            offset = slot_offset(type, "leases");
        }
        if (!offset)
            failed = !PyErr_Format(PyExc_TypeError, "%.100s has no slot for leases", type->tp_name);
        else
            failed = add_to((PyObject **)((char *)entry + offset), more);
    }
    Py_DECREF(entries);
    if (failed)
        return NULL;
    Py_RETURN_NONE;
}

static PyMethodDef functions[] = {
    {"find_chain", (PyCFunction)(void (*)(void))find_chain, METH_FASTCALL, NULL},
    {"add_leases", (PyCFunction)(void (*)(void))add_leases, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

int kvgate_add_chains(PyObject *module)
{
    return PyModule_AddFunctions(module, functions);
}
