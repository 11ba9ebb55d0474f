#include "credentials_type.h"

#include <errno.h>
#include <string.h>

#include "authenticate.h"

#define MAX_LIMIT_S 1e12

typedef struct {
    PyObject_HEAD
    struct credentials *credentials;
    struct signing_keys *keys;  // of `authenticate` below, which the GIL guards
} CredentialsObject;

// Seconds rounded down, which is stricter. Returns false with an exception set for less than 0.
static int whole_seconds(double seconds, int64_t *whole) {
    if (!(seconds >= 0)) {
        PyErr_SetString(PyExc_ValueError, "a limit of time is at least 0 s");
        return 0;
    }
    *whole = (int64_t)(seconds < MAX_LIMIT_S ? seconds : MAX_LIMIT_S);
    return 1;
}

// Reads (access key, secret key, tenant's number, token key). Returns false with an exception set.
static int read_given(struct credential_given *given, PyObject *row) {
    Py_ssize_t access_key_nbytes, secret_key_nbytes, token_key_nbytes;
    const char *token_key;
    if (!PyTuple_Check(row)) {
        PyErr_SetString(PyExc_TypeError, "a credential is a tuple");
        return 0;
    }
    if (!PyArg_ParseTuple(row, "s#s#iy#", &given->access_key.at, &access_key_nbytes, &given->secret_key.at,
                          &secret_key_nbytes, &given->tenant, &token_key, &token_key_nbytes))
        return 0;
    if (access_key_nbytes < 1 || access_key_nbytes > MAX_ACCESS_KEY_NBYTES || secret_key_nbytes > INT32_MAX ||
        token_key_nbytes != sizeof given->token_key || given->tenant < 0) {
        PyErr_Format(PyExc_ValueError, "a credential has an access key of 1 to %d bytes, a number from 0, and a token "
                     "key of %d bytes", MAX_ACCESS_KEY_NBYTES, SHA256_NBYTES);
        return 0;
    }
    given->access_key.len = (uint32_t)access_key_nbytes;
    given->secret_key.len = (uint32_t)secret_key_nbytes;
    memcpy(given->token_key, token_key, sizeof given->token_key);
    return 1;
}

// The credentials of a sequence of rows, or NULL with an exception set.
static struct credentials *read_credentials(PyObject *rows, struct time_limits limits) {
    PyObject *fast = PySequence_Fast(rows, "credentials are a sequence");
    if (fast == NULL) return NULL;
    struct credentials *credentials = NULL;
    size_t count = (size_t)PySequence_Fast_GET_SIZE(fast);
    struct credential_given *given = PyMem_Calloc(count ? count : 1, sizeof *given);
    if (given == NULL) {
        PyErr_NoMemory();
        goto done;
    }
    for (size_t i = 0; i < count; i++)
        if (!read_given(&given[i], PySequence_Fast_GET_ITEM(fast, (Py_ssize_t)i))) goto done;
    credentials = credentials_new(given, count, limits);
    if (credentials == NULL) {
        if (errno == EINVAL) {
            PyErr_SetString(PyExc_ValueError, "an access key is given twice");
        } else {
            PyErr_NoMemory();
        }
    }
done:
    if (given) explicit_bzero(given, count * sizeof *given);
    PyMem_Free(given);
    Py_DECREF(fast);
    return credentials;
}

static PyObject *new(PyTypeObject *type, PyObject *args, PyObject *keywords) {
    static char *names[] = {"credentials", "max_skew_s", "session_ttl_s", NULL};
    PyObject *rows;
    double max_skew_s, session_ttl_s;
    struct time_limits limits;
    if (!PyArg_ParseTupleAndKeywords(args, keywords, "O$dd:Credentials", names, &rows, &max_skew_s, &session_ttl_s))
        return NULL;
    if (!whole_seconds(max_skew_s, &limits.max_skew_s) || !whole_seconds(session_ttl_s, &limits.session_ttl_s))
        return NULL;
    CredentialsObject *self = (CredentialsObject *)type->tp_alloc(type, 0);
    if (self == NULL) return NULL;
    self->credentials = read_credentials(rows, limits);
    if (self->credentials) self->keys = signing_keys_new(self->credentials);
    if (self->keys) return (PyObject *)self;
    if (!PyErr_Occurred()) PyErr_NoMemory();
    Py_DECREF(self);
    return NULL;
}

static void dealloc(PyObject *object) {
    CredentialsObject *self = (CredentialsObject *)object;
    signing_keys_free(self->keys);
    credentials_free(self->credentials);
    Py_TYPE(object)->tp_free(object);
}

// --- a head as tests give it -----------------------------------------------------------------------------------------

// Whether a path is one that a parsed head may have.
static int is_path(struct text path) {
    for (uint32_t i = 0; i < path.len; i++) {
        char c = path.at[i];
        int plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
        if (!plain && (c == '\0' || !strchr("._~/-", c))) return 0;
    }
    return path.len > 0 && path.at[0] == '/';
}

// Whether a value is one that a parsed head may have.
static int is_value(struct text value) {
    for (uint32_t i = 0; i < value.len; i++)
        if (value.at[i] != '\t' && (value.at[i] < ' ' || value.at[i] > '~')) return 0;
    return value.len == 0 || !(strchr(" \t", value.at[0]) || strchr(" \t", value.at[value.len - 1]));
}

static int text_of_bytes(PyObject *object, struct text *text) {
    char *at;
    Py_ssize_t nbytes;
    if (PyBytes_AsStringAndSize(object, &at, &nbytes)) return -1;
    if (nbytes > INT32_MAX) {
        PyErr_SetString(PyExc_ValueError, "too long for a head");
        return -1;
    }
    *text = (struct text){at, (uint32_t)nbytes};
    return 0;
}

// Returns whether there is a head of these parts, or -1 with an exception set.
static int build_head(struct head *head, PyObject *method, PyObject *path, PyObject *headers) {
    memset(head, 0, sizeof *head);
    if (!PyUnicode_Check(method) || !PyDict_Check(headers)) {
        PyErr_SetString(PyExc_TypeError, "expected a method, a path of bytes, and a dict of headers");
        return -1;
    }
    static const char *const names[] = {[GET] = "GET", [HEAD] = "HEAD", [PUT] = "PUT"};
    while (head->method <= PUT && PyUnicode_CompareWithASCIIString(method, names[head->method]) != 0) head->method++;
    if (head->method > PUT) return 0;
    if (text_of_bytes(path, &head->path)) return -1;
    if (!is_path(head->path)) return 0;
    PyObject *name, *value;
    for (Py_ssize_t at = 0; PyDict_Next(headers, &at, &name, &value);) {
        int header = 0;
        if (!PyUnicode_Check(name)) {
            PyErr_SetString(PyExc_TypeError, "a header's name is a str");
            return -1;
        }
        while (header < H_COUNT && PyUnicode_CompareWithASCIIString(name, header_names[header].at) != 0) header++;
        if (header == H_COUNT) return 0;
        if (text_of_bytes(value, &head->values[header])) return -1;
        if (!is_value(head->values[header])) return 0;
    }
    return 1;
}

static PyObject *prove(PyObject *object, PyObject *args) {
    CredentialsObject *self = (CredentialsObject *)object;
    PyObject *method, *path, *headers;
    long long now_s;
    struct head head;
    if (!PyArg_ParseTuple(args, "OOOL:authenticate", &method, &path, &headers, &now_s)) return NULL;
    int built = build_head(&head, method, path, headers);
    if (built < 0) return NULL;
    return PyLong_FromLong(built ? authenticate(self->keys, &head, now_s) : -1);
}

static PyMethodDef methods[] = {
    {"authenticate", prove, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyTypeObject credentials_type = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "kvgate.native.Credentials",
    .tp_basicsize = sizeof(CredentialsObject),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = new,
    .tp_dealloc = dealloc,
    .tp_methods = methods,
};

const struct credentials *credentials_of(PyObject *object) {
    if (!PyObject_TypeCheck(object, &credentials_type)) {
        PyErr_SetString(PyExc_TypeError, "expected kvgate.native.Credentials");
        return NULL;
    }
    return ((CredentialsObject *)object)->credentials;
}

int kvgate_add_credentials(PyObject *module) { return PyModule_AddType(module, &credentials_type); }
