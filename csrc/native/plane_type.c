#include "plane_type.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

#include "credentials_type.h"
#include "digest.h"
#include "plane.h"

#define MAX_THREADS 64
#define MAX_LATENCY_S 1e6

// --- objects ---------------------------------------------------------------------------------------------------------

// What the plane has of one object: a single allocation, and what keeps its bytes where they are.
struct holding {
    struct object object;
    Py_ssize_t view_count;
    Py_buffer *views;
};

// With the GIL.
static void let_go(struct object *object)
{
    struct holding *holding = object->views;
    for (Py_ssize_t i = 0; i < holding->view_count; i++)
        PyBuffer_Release(&holding->views[i]);
    PyMem_RawFree(holding);
}

static char *place(char **at, struct text *where, const Py_buffer *text)
{
    char *start = memcpy(*at, text->buf, (size_t)text->len);
    *where = (struct text){start, (uint32_t)text->len};
    *at += text->len;
    return start;
}

// An object of these parts, whose path is put into `path`; NULL with an exception set.
static struct object *hold(struct text *path, const Py_buffer texts[3], PyObject *views, const Py_buffer *blocks)
{
    Py_ssize_t count = PySequence_Fast_GET_SIZE(views);
    size_t texts_nbytes = (size_t)(texts[0].len + texts[1].len + texts[2].len);
    size_t nbytes = sizeof(struct holding) + (size_t)count * (sizeof(Py_buffer) + sizeof(struct extent)) +
                    (size_t)blocks->len + texts_nbytes;
    struct holding *holding = PyMem_RawCalloc(1, nbytes);
    if (!holding)
        return (struct object *)PyErr_NoMemory();
    struct object *object = &holding->object;
    holding->views = (Py_buffer *)(holding + 1);
    struct extent *extents = (struct extent *)(holding->views + count);
    uint64_t *digests = (uint64_t *)(extents + count);
    char *at = (char *)digests + blocks->len;
    object->views = holding;
    object->extents = extents;
    object->blocks = memcpy(digests, blocks->buf, (size_t)blocks->len);
    place(&at, path, &texts[0]);
    place(&at, &object->head, &texts[1]);
    place(&at, &object->checksums, &texts[2]);
    for (; holding->view_count < count; holding->view_count++) {
        Py_buffer *view = &holding->views[holding->view_count];
        if (PyObject_GetBuffer(PySequence_Fast_GET_ITEM(views, holding->view_count), view, PyBUF_SIMPLE)) {
            let_go(object);
            return NULL;
        }
        extents[holding->view_count] = (struct extent){view->buf, (uint64_t)view->len};
        object->nbytes += (uint64_t)view->len;
    }
    object->extent_count = (size_t)count;
    if ((uint64_t)blocks->len != (object->nbytes + BLOCK_NBYTES - 1) / BLOCK_NBYTES * sizeof(uint64_t) || !object->nbytes) {
        PyErr_SetString(PyExc_ValueError, "an object has bytes, and a digest for each block of them");
        let_go(object);
        return NULL;
    }
    return object;
}

// --- uploads ---------------------------------------------------------------------------------------------------------

// The memory that a body is received into, and its digest.
struct target {
    struct block_digest_object *digest; // claimed
    Py_ssize_t view_count;
    Py_buffer views[];
};

// With the GIL.
static void drop(void *held)
{
    struct target *target = held;
    while (target->view_count)
        PyBuffer_Release(&target->views[--target->view_count]);
    target->digest->claimed = 0;
    Py_DECREF(target->digest);
    PyMem_RawFree(target);
}

// Hold the memory for `nbytes`, and a digest for them; `*areas` is that memory, allocated. NULL with an exception set.
static struct target *hold_target(PyObject *views, struct block_digest_object *digest, uint64_t nbytes, struct areas *areas)
{
    Py_ssize_t count = PySequence_Fast_GET_SIZE(views);
    if (digest->digest.nbytes) {
        PyErr_SetString(PyExc_ValueError, "the digest is of something already");
        return NULL;
    }
    if (block_digest_claim(digest, nbytes))
        return NULL;
    struct target *target = PyMem_RawCalloc(1, sizeof *target + (size_t)count * sizeof *target->views);
    areas->at = calloc((size_t)count + 1, sizeof *areas->at);
    if (!target || !areas->at) {
        PyMem_RawFree(target);
        free(areas->at);
        digest->claimed = 0;
        PyErr_NoMemory();
        return NULL;
    }
    target->digest = (struct block_digest_object *)Py_NewRef((PyObject *)digest);
    uint64_t room = 0;
    for (; target->view_count < count; target->view_count++) {
        Py_buffer *view = &target->views[target->view_count];
        if (PyObject_GetBuffer(PySequence_Fast_GET_ITEM(views, target->view_count), view, PyBUF_WRITABLE))
            break;
        areas->at[areas->count++] = (struct iovec){view->buf, (size_t)view->len};
        room += (uint64_t)view->len;
    }
    if (target->view_count == count && room >= nbytes)
        return target;
    if (target->view_count == count)
        PyErr_Format(PyExc_ValueError, "room for %llu of %llu bytes", (unsigned long long)room, (unsigned long long)nbytes);
    drop(target);
    free(areas->at);
    return NULL;
}

// --- the type --------------------------------------------------------------------------------------------------------

typedef struct {
    PyObject_HEAD
    struct plane *plane; // NULL once it is closed
    PyObject *credentials;
    struct text *domains;
    size_t domain_count;
} PlaneObject;

static int is_open(PlaneObject *self)
{
    if (!self->plane)
        PyErr_SetString(PyExc_ValueError, "the plane is closed");
    return self->plane != NULL;
}

static void free_domains(PlaneObject *self)
{
    for (size_t i = 0; i < self->domain_count; i++)
        PyMem_RawFree((void *)self->domains[i].at);
    PyMem_RawFree(self->domains);
    self->domains = NULL;
    self->domain_count = 0;
}

// Copies of the names, in lower case as they are given. Whether there was memory, and they are text.
static int take_domains(PlaneObject *self, PyObject *names)
{
    PyObject *fast = PySequence_Fast(names, "domains are a sequence");
    if (!fast)
        return 0;
    Py_ssize_t count = PySequence_Fast_GET_SIZE(fast);
    self->domains = PyMem_RawCalloc((size_t)count + 1, sizeof *self->domains);
    for (Py_ssize_t i = 0; self->domains && i < count; i++) {
        Py_ssize_t nbytes;
        const char *name = PyUnicode_AsUTF8AndSize(PySequence_Fast_GET_ITEM(fast, i), &nbytes);
        char *copy = name ? PyMem_RawMalloc((size_t)nbytes + 1) : NULL;
        if (!copy)
            break;
        self->domains[i] = (struct text){memcpy(copy, name, (size_t)nbytes), (uint32_t)nbytes};
        self->domain_count++;
    }
    Py_DECREF(fast);
    if (self->domain_count == (size_t)count && self->domains)
        return 1;
    if (!PyErr_Occurred())
        PyErr_NoMemory();
    return 0;
}

static int take_latency_buckets(struct plane_options *options, PyObject *seconds)
{
    PyObject *fast = PySequence_Fast(seconds, "latency_buckets_s is a sequence");
    if (!fast)
        return 0;
    int right = PySequence_Fast_GET_SIZE(fast) == LATENCY_BUCKETS;
    for (Py_ssize_t i = 0; right && i < LATENCY_BUCKETS; i++) {
        double bound_s = PyFloat_AsDouble(PySequence_Fast_GET_ITEM(fast, i));
        right = bound_s >= 0 && bound_s <= MAX_LATENCY_S;
        options->latency_buckets_ns[i] = right ? (uint64_t)(bound_s * 1e9) : 0;
    }
    Py_DECREF(fast);
    if (!right && !PyErr_Occurred())
        PyErr_Format(PyExc_ValueError, "latency_buckets_s are %d bounds in seconds", LATENCY_BUCKETS);
    return right;
}

static PyObject *plane_type_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"credentials", "threads", "domains", "max_header", "idle_timeout_s", "header_timeout_s",
                            "body_timeout_s", "min_rate", "latency_buckets_s", NULL};
    struct plane_options options = {0};
    PyObject *credentials, *domains, *buckets;
    unsigned long max_header;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "O$IOkddddO:Plane", names, &credentials, &options.threads, &domains,
                                     &max_header, &options.idle_timeout_s, &options.header_timeout_s,
                                     &options.body_timeout_s, &options.min_rate, &buckets))
        return NULL;
    if (!(options.credentials = credentials_of(credentials)) || !take_latency_buckets(&options, buckets))
        return NULL;
    if (options.threads < 1 || options.threads > MAX_THREADS || max_header > 1 << 24)
        return PyErr_Format(PyExc_ValueError, "a plane has 1 to %d threads, and heads of at most 16 MiB", MAX_THREADS);
    options.max_header = (uint32_t)max_header;
    uint64_t random[2];
    if (getrandom(random, sizeof random, 0) != sizeof random)
        return PyErr_SetFromErrno(PyExc_OSError);
    options.first_request_id = random[0];
    options.seed = random[1];
    PlaneObject *self = (PlaneObject *)type->tp_alloc(type, 0);
    if (!self)
        return NULL;
    self->credentials = Py_NewRef(credentials);
    if (!take_domains(self, domains)) {
        Py_DECREF(self);
        return NULL;
    }
    options.domains = self->domains;
    options.domain_count = self->domain_count;
    self->plane = plane_new(&options);
    if (!self->plane) {
        PyErr_SetFromErrno(PyExc_OSError);
        Py_CLEAR(self);
    }
    return (PyObject *)self;
}

static PyObject *plane_close(PlaneObject *self, PyObject *Py_UNUSED(nothing))
{
    struct plane *plane = self->plane;
    self->plane = NULL;
    if (plane) {
        Py_BEGIN_ALLOW_THREADS
        plane_stop(plane);
        Py_END_ALLOW_THREADS
        plane_free(plane, let_go, drop);
    }
    Py_RETURN_NONE;
}

static void plane_dealloc(PlaneObject *self)
{
    Py_XDECREF(plane_close(self, NULL));
    free_domains(self);
    Py_XDECREF(self->credentials);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

// --- connections -----------------------------------------------------------------------------------------------------

static PyObject *plane_fileno(PlaneObject *self, PyObject *Py_UNUSED(nothing))
{
    return is_open(self) ? PyLong_FromLong(plane_fd(self->plane)) : NULL;
}

static PyObject *plane_type_adopt(PlaneObject *self, PyObject *args)
{
    int fd, listener, exact;
    if (!is_open(self) || !PyArg_ParseTuple(args, "iip:adopt", &fd, &listener, &exact))
        return NULL;
    if (plane_adopt(self->plane, fd, listener, exact))
        return PyErr_SetFromErrno(PyExc_OSError);
    Py_RETURN_NONE;
}

static PyObject *row_of(struct handed *handed)
{
    return Py_BuildValue("iiy#", handed->fd, handed->listener, handed->received, (Py_ssize_t)handed->nbytes);
}

static PyObject *plane_type_handed(PlaneObject *self, PyObject *Py_UNUSED(nothing))
{
    if (!is_open(self))
        return NULL;
    PyObject *list = PyList_New(0);
    for (struct handed *handed = plane_handed(self->plane), *next; handed; handed = next) {
        next = handed->next;
        PyObject *row = list ? row_of(handed) : NULL;
        if (!row || PyList_Append(list, row)) {
            close(handed->fd);
            Py_CLEAR(list);
        }
        Py_XDECREF(row);
        free(handed);
    }
    return list;
}

// --- uploads, as Python sees them ------------------------------------------------------------------------------------

static PyObject *text_or_none(struct text text)
{
    return text.at ? PyUnicode_DecodeASCII(text.at, text.len, NULL) : Py_NewRef(Py_None);
}

static PyObject *plane_type_asked(PlaneObject *self, PyObject *Py_UNUSED(nothing))
{
    if (!is_open(self))
        return NULL;
    PyObject *list = PyList_New(0);
    for (struct put *put = plane_asked(self->plane); put && list; put = put->next) {
        PyObject *row = Py_BuildValue("iINKNN", put->fd, put->tenant, text_or_none(put->path),
                                      (unsigned long long)put->nbytes, text_or_none(put->content_type),
                                      text_or_none(put->checksum));
        if (!row || PyList_Append(list, row))
            Py_CLEAR(list);
        Py_XDECREF(row);
    }
    return list;
}

static PyObject *plane_type_received(PlaneObject *self, PyObject *Py_UNUSED(nothing))
{
    if (!is_open(self))
        return NULL;
    PyObject *list = PyList_New(0);
    for (struct put *put = plane_received(self->plane); put; put = put->next) {
        ((struct target *)put->held)->digest->digest = put->digest;
        drop(put->held);
        put->held = NULL;
        PyObject *row = list ? Py_BuildValue("ii", put->fd, put->stopped) : NULL;
        if (!row || PyList_Append(list, row))
            Py_CLEAR(list);
        Py_XDECREF(row);
    }
    return list;
}

// The upload of a number; NULL with an exception set.
static struct put *put_of(PlaneObject *self, int number)
{
    struct put *put = is_open(self) ? plane_asking(self->plane, number) : NULL;
    if (!put && !PyErr_Occurred())
        PyErr_Format(PyExc_KeyError, "no upload of the number %d waits for an answer", number);
    return put;
}

static PyObject *plane_type_receive(PlaneObject *self, PyObject *args)
{
    int number, at_once;
    PyObject *views, *object;
    struct block_digest_object *digest;
    struct put *put;
    if (!PyArg_ParseTuple(args, "iOOp:receive", &number, &views, &object, &at_once) || !(put = put_of(self, number)) ||
        !(digest = block_digest_of(object)))
        return NULL;
    if (put->areas.at)
        return PyErr_Format(PyExc_ValueError, "the upload of the number %d has a place already", number);
    PyObject *fast = PySequence_Fast(views, "views are a sequence");
    if (!fast)
        return NULL;
    struct areas areas = {0};
    struct target *target = hold_target(fast, digest, put->nbytes, &areas);
    Py_DECREF(fast);
    if (!target)
        return NULL;
    int ended;
    Py_BEGIN_ALLOW_THREADS
    ended = plane_receive(self->plane, put, areas, digest->digest, target, at_once);
    Py_END_ALLOW_THREADS
    if (!ended)
        Py_RETURN_NONE;
    int stopped = ended < 0 ? errno : put->stopped;
    digest->digest = put->digest;
    drop(target);
    return PyLong_FromLong(stopped);
}

static PyObject *plane_type_answer(PlaneObject *self, PyObject *args)
{
    int number;
    const char *lines;
    Py_ssize_t nbytes;
    struct put *put;
    if (!PyArg_ParseTuple(args, "iy#:answer", &number, &lines, &nbytes) || !(put = put_of(self, number)))
        return NULL;
    if (put->received < put->nbytes)
        return PyErr_Format(PyExc_ValueError, "the upload of the number %d is not whole", number);
    plane_answer(self->plane, put, (struct text){lines, (uint32_t)nbytes});
    Py_RETURN_NONE;
}

static PyObject *plane_type_refuse(PlaneObject *self, PyObject *args)
{
    int number, closes;
    const char *whole;
    Py_ssize_t nbytes;
    struct put *put;
    if (!PyArg_ParseTuple(args, "iy#p:refuse", &number, &whole, &nbytes, &closes) || !(put = put_of(self, number)))
        return NULL;
    plane_refuse(self->plane, put, (struct text){whole, (uint32_t)nbytes}, closes);
    Py_RETURN_NONE;
}

static PyObject *plane_type_decline(PlaneObject *self, PyObject *args)
{
    int number;
    struct put *put;
    if (!PyArg_ParseTuple(args, "i:decline", &number) || !(put = put_of(self, number)))
        return NULL;
    if (put->areas.at)
        return PyErr_Format(PyExc_ValueError, "the upload of the number %d has a place already", number);
    struct handed *handed = plane_return(self->plane, put);
    if (!handed)
        return PyErr_NoMemory();
    PyObject *row = row_of(handed);
    if (!row)
        close(handed->fd);
    free(handed);
    return row;
}

static PyObject *plane_type_connections(PlaneObject *self, void *Py_UNUSED(closure))
{
    return PyLong_FromSize_t(self->plane ? plane_connections(self->plane) : 0);
}

static PyObject *plane_type_drain(PlaneObject *self, PyObject *Py_UNUSED(nothing))
{
    if (!is_open(self))
        return NULL;
    plane_drain(self->plane);
    Py_RETURN_NONE;
}

// --- the table -------------------------------------------------------------------------------------------------------

static PyObject *plane_type_publish(PlaneObject *self, PyObject *args)
{
    unsigned int tenant;
    Py_buffer texts[3], blocks;
    PyObject *views;
    if (!is_open(self) ||
        !PyArg_ParseTuple(args, "Iy*y*y*Oy*:publish", &tenant, &texts[0], &texts[1], &texts[2], &views, &blocks))
        return NULL;
    struct text path;
    struct object *object = NULL;
    PyObject *fast = PySequence_Fast(views, "views are a sequence");
    if (fast && texts[0].len + texts[1].len + texts[2].len < 1 << 20)
        object = hold(&path, texts, fast, &blocks);
    else if (fast)
        PyErr_SetString(PyExc_ValueError, "more than 1 MiB of path and headers");
    Py_XDECREF(fast);
    for (int i = 0; i < 3; i++)
        PyBuffer_Release(&texts[i]);
    PyBuffer_Release(&blocks);
    if (!object)
        return NULL;
    uint64_t number = objects_add(plane_objects(self->plane), object, tenant, path);
    if (number)
        return PyLong_FromUnsignedLongLong(number);
    let_go(object);
    PyErr_SetString(PyExc_ValueError, "the tenant has an object of this path");
    return NULL;
}

static PyObject *plane_type_withdraw(PlaneObject *self, PyObject *argument)
{
    uint64_t number = PyLong_AsUnsignedLongLong(argument);
    if (!is_open(self) || PyErr_Occurred())
        return NULL;
    int known;
    struct object *object = objects_withdraw(plane_objects(self->plane), number, &known);
    if (!known)
        return PyErr_Format(PyExc_KeyError, "no object has the number %llu", (unsigned long long)number);
    if (object)
        let_go(object);
    return PyBool_FromLong(object != NULL);
}

static PyObject *plane_type_readers(PlaneObject *self, PyObject *argument)
{
    uint64_t number = PyLong_AsUnsignedLongLong(argument);
    if (!is_open(self) || PyErr_Occurred())
        return NULL;
    return PyLong_FromUnsignedLong(objects_readers(plane_objects(self->plane), number));
}

static PyObject *plane_type_released(PlaneObject *self, PyObject *Py_UNUSED(nothing))
{
    if (!is_open(self))
        return NULL;
    PyObject *list = PyList_New(0);
    for (struct object *object = objects_released(plane_objects(self->plane)), *next; object; object = next) {
        next = object->next_by_path;
        PyObject *number = list ? PyLong_FromUnsignedLongLong(object->number) : NULL;
        if (!number || PyList_Append(list, number))
            Py_CLEAR(list);
        Py_XDECREF(number);
        let_go(object);
    }
    return list;
}

static PyObject *list_of(struct numbers numbers)
{
    PyObject *list = PyList_New((Py_ssize_t)numbers.count);
    for (size_t i = 0; list && i < numbers.count; i++) {
        PyObject *number = PyLong_FromUnsignedLongLong(numbers.at[i]);
        if (number)
            PyList_SET_ITEM(list, (Py_ssize_t)i, number);
        else
            Py_CLEAR(list);
    }
    free(numbers.at);
    return list;
}

static PyObject *plane_type_used(PlaneObject *self, PyObject *Py_UNUSED(nothing))
{
    return is_open(self) ? list_of(objects_used(plane_objects(self->plane))) : NULL;
}

static PyObject *plane_type_corrupt(PlaneObject *self, PyObject *Py_UNUSED(nothing))
{
    return is_open(self) ? list_of(objects_corrupt(plane_objects(self->plane))) : NULL;
}

// --- counts ----------------------------------------------------------------------------------------------------------

static PyObject *counts_of(const struct plane_counts *counts, enum operation operation)
{
    PyObject *latencies = PyList_New(LATENCY_BUCKETS + 1);
    for (int i = 0; latencies && i <= LATENCY_BUCKETS; i++)
        PyList_SET_ITEM(latencies, i, PyLong_FromUnsignedLongLong(counts->latencies[operation][i]));
    return Py_BuildValue("{s:{i:K,i:K},s:d,s:N}", "answers", 200, counts->answers[operation][0], 206,
                         counts->answers[operation][1], "seconds", (double)counts->nanoseconds[operation] / 1e9,
                         "latencies", latencies);
}

static PyObject *plane_type_counts(PlaneObject *self, PyObject *Py_UNUSED(nothing))
{
    if (!is_open(self))
        return NULL;
    struct plane_counts counts;
    plane_counts(self->plane, &counts);
    return Py_BuildValue("{s:N,s:N,s:N,s:K,s:K,s:{s:K,s:K,s:K}}", "GetObject", counts_of(&counts, GET_OBJECT),
                         "HeadObject", counts_of(&counts, HEAD_OBJECT), "PutObject", counts_of(&counts, PUT_OBJECT),
                         "sent_bytes", counts.sent_bytes, "received_bytes", counts.received_bytes, "late", "request",
                         counts.late[LATE_REQUEST], "head", counts.late[LATE_HEAD], "body", counts.late[LATE_BODY]);
}

static PyMethodDef methods[] = {
    {"fileno", (PyCFunction)plane_fileno, METH_NOARGS, NULL},
    {"adopt", (PyCFunction)plane_type_adopt, METH_VARARGS, NULL},
    {"handed", (PyCFunction)plane_type_handed, METH_NOARGS, NULL},
    {"asked", (PyCFunction)plane_type_asked, METH_NOARGS, NULL},
    {"receive", (PyCFunction)plane_type_receive, METH_VARARGS, NULL},
    {"received", (PyCFunction)plane_type_received, METH_NOARGS, NULL},
    {"answer", (PyCFunction)plane_type_answer, METH_VARARGS, NULL},
    {"refuse", (PyCFunction)plane_type_refuse, METH_VARARGS, NULL},
    {"decline", (PyCFunction)plane_type_decline, METH_VARARGS, NULL},
    {"publish", (PyCFunction)plane_type_publish, METH_VARARGS, NULL},
    {"withdraw", (PyCFunction)plane_type_withdraw, METH_O, NULL},
    {"released", (PyCFunction)plane_type_released, METH_NOARGS, NULL},
    {"readers", (PyCFunction)plane_type_readers, METH_O, NULL},
    {"used", (PyCFunction)plane_type_used, METH_NOARGS, NULL},
    {"corrupt", (PyCFunction)plane_type_corrupt, METH_NOARGS, NULL},
    {"counts", (PyCFunction)plane_type_counts, METH_NOARGS, NULL},
    {"drain", (PyCFunction)plane_type_drain, METH_NOARGS, NULL},
    {"close", (PyCFunction)plane_close, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef properties[] = {
    {"connections", (getter)plane_type_connections, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyTypeObject plane_type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "kvgate.native.Plane",
    .tp_basicsize = sizeof(PlaneObject),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = plane_type_new,
    .tp_dealloc = (destructor)plane_dealloc,
    .tp_methods = methods,
    .tp_getset = properties,
};

int kvgate_add_plane(PyObject *module)
{
    return PyType_Ready(&plane_type) ? -1 : PyModule_AddObjectRef(module, "Plane", (PyObject *)&plane_type);
}
