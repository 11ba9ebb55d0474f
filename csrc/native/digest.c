/* Digests as Python sees them. kvgate/memory/plain_digest.py says what each gives, and both pass the same tests. */

#include "digest.h"

#include "buffers.h"
#include "crc64nvme.h"

#define GIL_NBYTES (16 << 10) /* what takes longer than this lets other threads run meanwhile */

static int to_uint64(PyObject *number, uint64_t *value)
{
    *value = PyLong_AsUnsignedLongLong(number);
    return *value == (uint64_t)-1 && PyErr_Occurred() ? -1 : 0;
}

static PyThreadState *let_others_run(size_t nbytes)
{
    return nbytes > GIL_NBYTES ? PyEval_SaveThread() : NULL;
}

static void go_on(PyThreadState *thread)
{
    if (thread)
        PyEval_RestoreThread(thread);
}

/* --- functions ---------------------------------------------------------------------------------------------------- */

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
    PyThreadState *thread = let_others_run((size_t)view.len);
    value = kvgate_crc64nvme_by((unsigned)path, value, view.buf, (size_t)view.len);
    go_on(thread);
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

/* What is being verified: the bytes from a block's beginning up to `nbytes` later, against the block digests there. */
struct verification {
    uint64_t nbytes, seen, rest;
    const uint64_t *blocks;
};

/* Whether the next bytes are those that were expected, as far as complete blocks can tell. */
static int verify(struct verification *verification, const uint8_t *at, size_t nbytes)
{
    if (nbytes > verification->nbytes - verification->seen)
        return 0;
    while (nbytes) {
        size_t piece = BLOCK_NBYTES - verification->seen % BLOCK_NBYTES;
        if (piece > nbytes)
            piece = nbytes;
        verification->rest = kvgate_crc64nvme(verification->rest, at, piece);
        verification->seen += piece;
        at += piece;
        nbytes -= piece;
        if (verification->seen % BLOCK_NBYTES == 0 || verification->seen == verification->nbytes) {
            if (verification->rest != verification->blocks[(verification->seen - 1) / BLOCK_NBYTES])
                return 0;
            verification->rest = 0;
        }
    }
    return 1;
}

/* Whether all the bytes of `views` are those that were expected, and no fewer; -1 with an exception set. */
static int verify_views(struct verification *verification, PyObject *views)
{
    PyObject *sequence = PySequence_Fast(views, "views must be iterable");
    if (!sequence)
        return -1;
    struct buffers buffers;
    int sound = 1;
    for (Py_ssize_t first = 0; sound == 1 && first < PySequence_Fast_GET_SIZE(sequence); first += BUFFERS) {
        if (buffers_hold(&buffers, sequence, first, PyBUF_SIMPLE)) {
            sound = -1;
            break;
        }
        PyThreadState *thread = let_others_run(buffers.nbytes);
        for (int i = 0; sound && i < buffers.count; i++)
            sound = verify(verification, buffers.held[i].buf, (size_t)buffers.held[i].len);
        go_on(thread);
        buffers_release(&buffers);
    }
    Py_DECREF(sequence);
    return sound == 1 ? verification->seen == verification->nbytes : sound;
}

/* The numbers [first, last) of `blocks`, which has `count`: memory to free, or NULL with an exception set. */
static uint64_t *block_values(PyObject *blocks, Py_ssize_t first, Py_ssize_t last)
{
    uint64_t *values = PyMem_New(uint64_t, last - first + 1);
    if (!values)
        return (uint64_t *)PyErr_NoMemory();
    for (Py_ssize_t i = first; i < last; i++) {
        PyObject *number = PySequence_GetItem(blocks, i);
        int failed = !number || to_uint64(number, &values[i - first]);
        Py_XDECREF(number);
        if (failed) {
            PyMem_Free(values);
            return NULL;
        }
    }
    return values;
}

static PyObject *verify_blocks(PyObject *module, PyObject *const *arguments, Py_ssize_t count)
{
    (void)module;
    if (count != 5)
        return PyErr_Format(PyExc_TypeError, "verify_blocks takes 5 arguments, not %zd", count);
    long long span[3]; /* start, stop, nbytes */
    for (int i = 0; i < 3; i++) {
        span[i] = PyLong_AsLongLong(arguments[1 + i]);
        if (span[i] == -1 && PyErr_Occurred())
            return NULL;
    }
    const long long start = span[0], stop = span[1], nbytes = span[2];
    if (!(0 <= start && start <= stop && stop <= nbytes) || start % BLOCK_NBYTES
        || (stop % BLOCK_NBYTES && stop != nbytes))
        return PyErr_Format(PyExc_ValueError, "the bytes [%lld, %lld) are not whole blocks of a body of %lld bytes",
            start, stop, nbytes);
    Py_ssize_t expected = (Py_ssize_t)(nbytes / BLOCK_NBYTES + (nbytes % BLOCK_NBYTES != 0));
    Py_ssize_t given = PySequence_Size(arguments[4]);
    if (given < 0)
        return NULL;
    if (given != expected)
        Py_RETURN_FALSE;
    Py_ssize_t first = (Py_ssize_t)(start / BLOCK_NBYTES);
    Py_ssize_t last = (Py_ssize_t)(stop / BLOCK_NBYTES + (stop % BLOCK_NBYTES != 0));
    uint64_t *blocks = block_values(arguments[4], first, last);
    if (!blocks)
        return NULL;
    struct verification verification = {.nbytes = (uint64_t)(stop - start), .blocks = blocks};
    int sound = verify_views(&verification, arguments[0]);
    PyMem_Free(blocks);
    return sound < 0 ? NULL : PyBool_FromLong(sound);
}

static PyMethodDef functions[] = {
    {"crc64nvme", (PyCFunction)(void (*)(void))crc64nvme, METH_FASTCALL, NULL},
    {"combine_crc64nvme", (PyCFunction)(void (*)(void))combine_crc64nvme, METH_FASTCALL, NULL},
    {"verify_blocks", (PyCFunction)(void (*)(void))verify_blocks, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

/* --- BlockDigest -------------------------------------------------------------------------------------------------- */

int block_digest_claim(struct block_digest_object *self, size_t more)
{
    if (self->claimed) {
        PyErr_SetString(PyExc_RuntimeError, "a BlockDigest is for one thread at a time");
        return -1;
    }
    if (block_digest_reserve(&self->digest, more)) {
        PyErr_NoMemory();
        return -1;
    }
    self->claimed = 1;
    return 0;
}

static PyObject *digest_update(PyObject *object, PyObject *view)
{
    struct block_digest_object *self = (struct block_digest_object *)object;
    Py_buffer buffer;
    if (PyObject_GetBuffer(view, &buffer, PyBUF_SIMPLE))
        return NULL;
    if (block_digest_claim(self, (size_t)buffer.len)) {
        PyBuffer_Release(&buffer);
        return NULL;
    }
    struct block_digest digest = self->digest;
    PyThreadState *thread = let_others_run((size_t)buffer.len);
    block_digest_add(&digest, buffer.buf, (size_t)buffer.len);
    go_on(thread);
    self->digest = digest;
    self->claimed = 0;
    PyBuffer_Release(&buffer);
    Py_RETURN_NONE;
}

static PyObject *digest_call(PyObject *self, PyObject *arguments, PyObject *keywords)
{
    PyObject *view;
    if (keywords && PyDict_GET_SIZE(keywords)) {
        PyErr_SetString(PyExc_TypeError, "a BlockDigest takes no keywords");
        return NULL;
    }
    return PyArg_ParseTuple(arguments, "O", &view) ? digest_update(self, view) : NULL;
}

static PyObject *digest_nbytes(PyObject *self, void *closure)
{
    (void)closure;
    return PyLong_FromUnsignedLongLong(((struct block_digest_object *)self)->digest.nbytes);
}

static PyObject *digest_value(PyObject *self, void *closure)
{
    (void)closure;
    return PyLong_FromUnsignedLongLong(block_digest_value(&((struct block_digest_object *)self)->digest));
}

static PyObject *digest_blocks(PyObject *self, void *closure)
{
    (void)closure;
    const struct block_digest *digest = &((struct block_digest_object *)self)->digest;
    PyObject *bytes = PyBytes_FromStringAndSize(
        (const char *)digest->complete, (Py_ssize_t)(digest->nbytes / BLOCK_NBYTES * sizeof *digest->complete));
    if (bytes && digest->nbytes % BLOCK_NBYTES)
        PyBytes_ConcatAndDel(&bytes, PyBytes_FromStringAndSize((const char *)&digest->rest, sizeof digest->rest));
    PyObject *array = bytes ? PyImport_ImportModule("array") : NULL;
    PyObject *blocks = array ? PyObject_CallMethod(array, "array", "sO", "Q", bytes) : NULL;
    Py_XDECREF(array);
    Py_XDECREF(bytes);
    return blocks;
}

static PyObject *digest_new(PyTypeObject *type, PyObject *arguments, PyObject *keywords)
{
    if (PyTuple_GET_SIZE(arguments) || (keywords && PyDict_GET_SIZE(keywords))) {
        PyErr_SetString(PyExc_TypeError, "BlockDigest takes no arguments");
        return NULL;
    }
    return type->tp_alloc(type, 0); /* zeroes: of no bytes */
}

static void digest_free(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    free(((struct block_digest_object *)self)->digest.complete);
    type->tp_free(self);
    Py_DECREF(type);
}

struct block_digest_object *block_digest_of(PyObject *object)
{
    if (Py_TYPE(object)->tp_dealloc == digest_free)
        return (struct block_digest_object *)object;
    PyErr_Format(PyExc_TypeError, "expected a kvgate.native.BlockDigest, not %s", Py_TYPE(object)->tp_name);
    return NULL;
}

static PyMethodDef digest_methods[] = {
    {"update", digest_update, METH_O, NULL},
    {"receive", (PyCFunction)(void (*)(void))block_digest_receive, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef digest_members[] = {
    {"nbytes", digest_nbytes, NULL, NULL, NULL},
    {"value", digest_value, NULL, NULL, NULL},
    {"blocks", digest_blocks, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot digest_slots[] = {
    {Py_tp_new, digest_new},
    {Py_tp_dealloc, digest_free},
    {Py_tp_call, digest_call},
    {Py_tp_methods, digest_methods},
    {Py_tp_getset, digest_members},
    {0, NULL},
};

static PyType_Spec digest_type = {
    .name = "kvgate.native.BlockDigest",
    .basicsize = sizeof(struct block_digest_object),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = digest_slots,
};

/* --- module ------------------------------------------------------------------------------------------------------- */

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

static int add(PyObject *module, const char *name, PyObject *object)
{
    int failed = !object || PyModule_AddObjectRef(module, name, object);
    Py_XDECREF(object);
    return failed;
}

int kvgate_add_digest(PyObject *module)
{
    kvgate_crc64nvme_begin();
    return add(module, "CRC64NVME_PATHS", path_names())
            || add(module, "BlockDigest", PyType_FromModuleAndSpec(module, &digest_type, NULL))
            || PyModule_AddFunctions(module, functions)
        ? -1
        : 0;
}
